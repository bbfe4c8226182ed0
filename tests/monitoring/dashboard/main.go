// Reads a dashboard as Grafana's own schema has it: an unknown field, a missing one, a
// wrong type, or a value that is not allowed is an error.
package main

import (
	"fmt"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

// check says what is wrong; nothing if nothing is.
func check(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	plugins.RegisterDefaultPlugins()
	var read dashboard.Dashboard
	// Errors of this library may be there and empty.
	if err := read.UnmarshalJSONStrict(text); err != nil && err.Error() != "" {
		return err.Error()
	}
	if err := read.Validate(); err != nil {
		return err.Error()
	}
	if len(read.Panels) == 0 {
		return "no panels"
	}
	return ""
}

func main() {
	if wrong := check(os.Args[1]); wrong != "" {
		fmt.Fprintf(os.Stderr, "%s: %s\n", os.Args[1], wrong)
		os.Exit(1)
	}
}
