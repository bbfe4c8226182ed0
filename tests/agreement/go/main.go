// The readings of OpenTelemetry for Go: of B3 in both forms (`b3`), set up for the
// single header (`single`), and of W3C Trace Context (`w3c`). Lines: see lines.py.
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
	var propagator propagation.TextMapPropagator
	switch os.Args[1] {
	case "b3":
		propagator = b3.New()
	case "single":
		propagator = b3.New(b3.WithInjectEncoding(b3.B3SingleHeader))
	case "w3c":
		propagator = propagation.TraceContext{}
	}
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
