// Package shared is what the load programs have in common: how they are called, and
// the contexts that they make up.
package shared

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
)

// Main reads what to do as JSON from the first file, does it, and writes what came
// out as JSON into the second.
func Main[Plan, Report any](do func(Plan) (Report, error)) {
	if err := run(do); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run[Plan, Report any](do func(Plan) (Report, error)) error {
	if len(os.Args) != 3 {
		return fmt.Errorf("usage: load PLAN RESULT")
	}
	text, err := os.ReadFile(os.Args[1])
	if err != nil {
		return err
	}
	var plan Plan
	if err := json.Unmarshal(text, &plan); err != nil {
		return err
	}
	report, err := do(plan)
	if err != nil {
		return err
	}
	text, err = json.Marshal(report)
	if err != nil {
		return err
	}
	return os.WriteFile(os.Args[2], text, 0o644)
}

// RandomHex makes lower-case hex digits for n bytes.
func RandomHex(n int) string {
	bytes := make([]byte, n)
	for i := range bytes {
		bytes[i] = byte(rand.Uint32())
	}
	bytes[0] |= 1 // never all zeros
	return hex.EncodeToString(bytes)
}

// UUID makes one of version 4, as Envoy does.
func UUID() string {
	h := RandomHex(16)
	return h[:8] + "-" + h[8:12] + "-4" + h[13:16] + "-" + string("89ab"[rand.IntN(4)]) + h[17:20] + "-" + h[20:]
}

// Context counts the headers that carry a context, or a part of one.
func Context(h http.Header) int {
	found := 0
	for name, values := range h {
		if strings.HasPrefix(name, "X-B3-") || name == "B3" || name == "Traceparent" {
			found += len(values)
		}
	}
	return found
}
