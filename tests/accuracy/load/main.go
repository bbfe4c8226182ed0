// Client and callee ("sink") of one pod whose application forwards nothing. The
// truth travels where no header filter sees it, in the bodies:
//
//	client -> Envoy inbound -> application -> Envoy outbound -> sink
//
// Reads the stages as JSON from the first file, runs them one after the other
// against an application that lives as long as they do, and writes what came out
// as JSON into the second. The Python drivers beside it start the rest.
package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"load/shared"
)

type stage struct {
	Concurrency int `json:"concurrency"`
	Requests    int `json:"requests"`
}

type plan struct {
	// Addresses, host:port.
	Inbound string `json:"inbound"`
	Sink    string `json:"sink"`
	// How long a client waits after an answer, and the sink before it gives one:
	// the mean of an exponential, the median of a lognormal distribution.
	PauseMs float64 `json:"pause_ms"`
	CallMs  float64 `json:"call_ms"`
	// Every request names a user that no other names.
	Token bool `json:"token"`
	// The request's number in a header too, for the access logs.
	Truth bool `json:"truth"`
	// Requests and calls are gRPC's, with messages of bytes.
	GRPC   bool    `json:"grpc"`
	Stages []stage `json:"stages"`
	// Between two stages.
	SettleMs float64 `json:"settle_ms"`
	// Where Envoy tells its metrics, if they are wanted, and how those begin.
	Metrics string `json:"metrics"`
	Prefix  string `json:"prefix"`
}

// What became of the calls of a stage.
type result struct {
	stage
	Seconds float64 `json:"seconds"`
	// With the context of their own request, with none, with another's; and of the
	// last, those with the trace of their own and another span.
	Right       int64 `json:"right"`
	Abstained   int64 `json:"abstained"`
	Wrong       int64 `json:"wrong"`
	OtherParent int64 `json:"other_parent"`
	// Calls made for no request: left alone, and given to one.
	BackgroundAlone int64 `json:"background_alone"`
	BackgroundTaken int64 `json:"background_taken"`
	// Requests that made calls, and of those: all calls right, at least one wrong.
	Calling int64 `json:"calling"`
	Whole   int64 `json:"whole"`
	Crossed int64 `json:"crossed"`
	// Requests and calls that were not answered, or not as they should be.
	Failed int64 `json:"failed"`
	// How many requests the clients had open, on average.
	InFlight float64 `json:"in_flight"`
	// The share of the machine's cores that were busy, whatever with; niced work aside.
	Busy float64 `json:"busy"`
	// Envoy's metrics at its end.
	Metrics []string `json:"metrics"`
}

type report struct {
	// Envoy's metrics before the first stage.
	Before []string `json:"before"`
	Stages []result `json:"stages"`
}

// The context that a request brings, and what its calls got.
type request struct {
	trace, span string
	stage       *tally
	calls       atomic.Int64
	right       atomic.Int64
	wrong       atomic.Int64
}

type tally struct {
	right, abstained, wrong, otherParent atomic.Int64
	alone, taken, failed                 atomic.Int64
	openNs                               atomic.Int64
}

type world struct {
	plan     plan
	client   *http.Client
	requests []request
	next     atomic.Int64
	current  atomic.Pointer[tally]
	// Calls of which no request is known.
	odd atomic.Int64
}

func main() { shared.Main(run) }

func run(p plan) (report, error) {
	w := world{plan: p}
	all := 0
	for _, s := range w.plan.Stages {
		all += s.Requests
	}
	w.requests = make([]request, all)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!w.plan.GRPC)
	protocols.SetUnencryptedHTTP2(w.plan.GRPC)
	w.client = &http.Client{
		Timeout:   time.Minute,
		Transport: &http.Transport{MaxIdleConnsPerHost: 1 << 10, DisableCompression: true, Protocols: protocols},
	}
	w.current.Store(&tally{})
	sink := &http.Server{
		Addr: w.plan.Sink, Handler: http.HandlerFunc(w.serve), ErrorLog: log.New(os.Stderr, "", 0),
		Protocols: protocols,
	}
	go func() { log.Print(sink.ListenAndServe()) }()
	var found report
	var err error
	if found.Before, err = w.metrics(); err != nil {
		return found, err
	}
	for _, s := range w.plan.Stages {
		r := w.run(s)
		if r.Metrics, err = w.metrics(); err != nil {
			return found, err
		}
		found.Stages = append(found.Stages, r)
	}
	sink.Close()
	if odd := w.odd.Load(); odd > 0 {
		return found, fmt.Errorf("%d calls with a body that no request has", odd)
	}
	return found, nil
}

// A closed loop: each client sends its next request when the last is answered.
func (w *world) run(s stage) result {
	t := &tally{}
	w.current.Store(t)
	first := w.next.Load()
	last := first + int64(s.Requests)
	began := time.Now()
	busyBefore, allBefore := processor()
	var working sync.WaitGroup
	for range s.Concurrency {
		working.Add(1)
		go func() {
			defer working.Done()
			for {
				time.Sleep(exponential(w.plan.PauseMs))
				number := w.next.Add(1) - 1
				if number >= last {
					return
				}
				w.send(int(number), t)
			}
		}()
	}
	working.Wait()
	took := time.Since(began)
	busy, all := processor()
	w.next.Store(last)
	time.Sleep(time.Duration(w.plan.SettleMs * float64(time.Millisecond)))
	r := result{
		stage: s, Seconds: took.Seconds(),
		Right: t.right.Load(), Abstained: t.abstained.Load(), Wrong: t.wrong.Load(),
		OtherParent: t.otherParent.Load(), BackgroundAlone: t.alone.Load(),
		BackgroundTaken: t.taken.Load(), Failed: t.failed.Load(),
		InFlight: float64(t.openNs.Load()) / float64(took.Nanoseconds()), Busy: (busy - busyBefore) / max(1, all-allBefore),
	}
	for n := first; n < last; n++ {
		one := &w.requests[n]
		if one.calls.Load() > 0 {
			r.Calling++
		}
		if one.calls.Load() > 0 && one.right.Load() == one.calls.Load() {
			r.Whole++
		}
		if one.wrong.Load() > 0 {
			r.Crossed++
		}
	}
	return r
}

// Of /proc/stat: the time that the cores were busy, and all of it, in ticks; none where
// there is no such file. What runs niced gives way, and does not count.
func processor() (busy, all float64) {
	var user, nice, system, idle, wait, irq, soft, steal float64
	text, _ := os.ReadFile("/proc/stat")
	fmt.Sscanf(string(text), "cpu %f %f %f %f %f %f %f %f", &user, &nice, &system, &idle, &wait, &irq, &soft, &steal)
	busy = user + system + irq + soft + steal
	return busy, busy + nice + idle + wait
}

func (w *world) metrics() ([]string, error) {
	found := []string{}
	if w.plan.Metrics == "" {
		return found, nil
	}
	response, err := http.Get(w.plan.Metrics)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	for _, line := range strings.Split(string(body), "\n") {
		if strings.HasPrefix(line, w.plan.Prefix) {
			found = append(found, line)
		}
	}
	return found, err
}

func exponential(ms float64) time.Duration {
	return time.Duration(rand.ExpFloat64() * ms * float64(time.Millisecond))
}

func (w *world) send(number int, t *tally) {
	one := &w.requests[number]
	one.trace, one.span, one.stage = shared.RandomHex(16), shared.RandomHex(8), t
	path := "/" + string("abcd"[rand.IntN(4)])
	if w.plan.Token {
		path = "/users/" + shared.UUID() + path
	} else if w.plan.GRPC {
		path = "/service.Routes" + path
	}
	// All bodies are of one length, the background's too: what a header filter can
	// see of them, their length, tells nothing.
	body := fmt.Sprintf("%08d %s %s", number, one.trace, one.span)
	if w.plan.GRPC {
		body = message(body)
	}
	request, _ := http.NewRequest("POST", "http://"+w.plan.Inbound+path, strings.NewReader(body))
	request.Host = "service"
	// Any name here: Go writes them as they are, and HTTP/1 does not care.
	request.Header = http.Header{
		"X-B3-Traceid": {one.trace}, "X-B3-Spanid": {one.span}, "X-B3-Sampled": {"1"},
		"X-Request-Id": {shared.UUID()},
	}
	if w.plan.GRPC {
		request.Header["Content-Type"] = []string{"application/grpc"}
		request.Header["Te"] = []string{"trailers"}
	}
	if w.plan.Truth {
		request.Header["X-Truth"] = []string{fmt.Sprintf("%08d", number)}
	}
	// A new connection now and then, so that a request and its calls meet on all
	// pairs of Envoy's workers: each connection stays with one.
	request.Close = rand.IntN(100) == 0
	began := time.Now()
	response, err := w.client.Do(request)
	if err == nil {
		_, err = io.Copy(io.Discard, response.Body)
		response.Body.Close()
		if err == nil && response.StatusCode != http.StatusOK {
			err = fmt.Errorf("status %d", response.StatusCode)
		}
		// The status of a failure without an answer is a header.
		if status := response.Header.Get("Grpc-Status") + response.Trailer.Get("Grpc-Status"); err == nil && w.plan.GRPC && status != "0" {
			err = fmt.Errorf("gRPC status %s", status)
		}
	}
	t.openNs.Add(time.Since(began).Nanoseconds())
	if err != nil {
		w.fail(t, "request", err)
	}
}

func (w *world) fail(t *tally, what string, err error) {
	if t.failed.Add(1) <= 5 {
		fmt.Fprintf(os.Stderr, "load: %s: %v\n", what, err)
	}
}

func (w *world) serve(answer http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		w.fail(w.current.Load(), "call", err)
		return
	}
	if w.plan.GRPC && len(body) >= prefix {
		body = body[prefix:]
	}
	w.count(r.Header, bytes.Fields(body))
	time.Sleep(time.Duration(w.plan.CallMs * math.Exp(0.6*rand.NormFloat64()) * float64(time.Millisecond)))
	if !w.plan.GRPC {
		io.WriteString(answer, "ok")
		return
	}
	answer.Header().Set("Content-Type", "application/grpc")
	answer.Header().Set("Trailer", "Grpc-Status")
	io.WriteString(answer, message("ok"))
	answer.Header().Set("Grpc-Status", "0")
}

// What stands before a message of gRPC: not compressed, and its length.
const prefix = 5

func message(text string) string {
	return string(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(text)))) + text
}

// Compares the headers of a call with the body that tells what they should be.
func (w *world) count(h http.Header, truth [][]byte) {
	alone := shared.Context(h) == 0
	if len(truth) == 1 && string(truth[0]) == "background" {
		t := w.current.Load()
		if alone {
			t.alone.Add(1)
		} else {
			t.taken.Add(1)
		}
		return
	}
	if len(truth) != 3 {
		w.odd.Add(1)
		return
	}
	number, err := strconv.Atoi(string(truth[0]))
	if err != nil || number < 0 || number >= len(w.requests) ||
		w.requests[number].trace != string(truth[1]) || w.requests[number].span != string(truth[2]) {
		w.odd.Add(1)
		return
	}
	one := &w.requests[number]
	one.calls.Add(1)
	switch {
	case alone:
		one.stage.abstained.Add(1)
	case h.Get("X-B3-Traceid") == one.trace && h.Get("X-B3-Spanid") == one.span:
		one.stage.right.Add(1)
		one.right.Add(1)
	default:
		one.stage.wrong.Add(1)
		one.wrong.Add(1)
		if h.Get("X-B3-Traceid") == one.trace {
			one.stage.otherParent.Add(1)
		}
	}
}
