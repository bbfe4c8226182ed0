// Client, application and downstream ("sink") of one pod, for a load in which
// the truth travels past the filter, in the URL path:
//
//	client -> Envoy inbound -> application -> Envoy outbound -> sink
//
// Reads one stage as JSON from the first file, runs it, and writes what came out
// as JSON into the second. The Python drivers beside it start the Envoys.
package main

import (
	"fmt"
	"sync"
	"time"

	"load/shared"
)

// A stage, as the drivers give it.
type stage struct {
	// Addresses, host:port.
	Inbound  string `json:"inbound"`
	Outbound string `json:"outbound"`
	App      string `json:"app"`
	Sink     string `json:"sink"`
	// How many workers do what, by the name of the kind.
	Workers map[string]int `json:"workers"`
	// Ends after so many calls, or so many seconds; 0 for no such end.
	Calls   int64   `json:"calls"`
	Seconds float64 `json:"seconds"`
	// Of plain requests: at most so many calls each, one after the other or all
	// at once, with waits of so long on average before each.
	CallsMost int     `json:"calls_most"`
	WaitMs    float64 `json:"wait_ms"`
	// The share of plain requests whose ID is not a UUID but up to 255 bytes.
	Odd float64 `json:"odd"`
	// The filter's, for kinds that have to do with it.
	GraceMs int `json:"grace_ms"`
}

func main() { shared.Main(run) }

func run(s stage) (report, error) {
	w, err := newWorld(s)
	if err != nil {
		return report{}, err
	}
	defer w.close()
	began := time.Now()
	var working sync.WaitGroup
	for name, workers := range s.Workers {
		k, known := kindNamed(name)
		if !known {
			return report{}, fmt.Errorf("no kind %q", name)
		}
		for n := range workers {
			working.Add(1)
			go func() {
				defer working.Done()
				for !w.over(began) {
					kinds[k].run(w, k, n)
				}
			}()
		}
	}
	working.Wait()
	return w.report(time.Since(began)), nil
}

func (w *world) over(began time.Time) bool {
	return (w.stage.Calls > 0 && w.calls.Load() >= w.stage.Calls) ||
		(w.stage.Seconds > 0 && time.Since(began).Seconds() >= w.stage.Seconds)
}
