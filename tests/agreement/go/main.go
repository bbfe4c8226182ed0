// The reading of OpenTelemetry for Go. Lines: see lines.py.
package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"strings"

	"go.opentelemetry.io/contrib/propagators/b3"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

func main() {
	propagator := b3.New()
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<20)
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	for in.Scan() {
		headers := http.Header{}
		for _, word := range strings.Fields(in.Text()) {
			name, digits, _ := strings.Cut(word, "=")
			value, err := hex.DecodeString(digits)
			if err != nil {
				panic(err)
			}
			headers.Add(name, string(value))
		}
		ctx := propagator.Extract(context.Background(), propagation.HeaderCarrier(headers))
		span := trace.SpanContextFromContext(ctx)
		if !span.IsValid() {
			fmt.Fprintln(out, "- - ~ ~")
			continue
		}
		sampled := 0
		if span.IsSampled() {
			sampled = 1
		}
		fmt.Fprintln(out, span.TraceID(), span.SpanID(), "~", sampled)
	}
}
