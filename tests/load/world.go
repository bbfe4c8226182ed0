package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"load/shared"
)

const (
	headerID      = "X-Request-Id"
	headerTrace   = "X-B3-Traceid"
	headerSpan    = "X-B3-Spanid"
	headerSampled = "X-B3-Sampled"
)

// What became of a call, as the sink sees it.
type class int

const (
	right class = iota
	// The right trace, but another parent.
	otherParent
	wrongTrace
	// The context of the right request, but not its sampling decision, or with
	// a header that the request did not have.
	altered
	// No context at all.
	missed
	classes
)

// The context of a request.
type b3 struct{ trace, span, sampled string }

func randomB3() b3 {
	return b3{shared.RandomHex(16), shared.RandomHex(8), strconv.Itoa(rand.IntN(2))}
}

func (c b3) newSpan() b3 {
	c.span = shared.RandomHex(8)
	return c
}

// The client, the application, the sink, and what they count.
type world struct {
	stage   stage
	client  *http.Client
	caller  *http.Client
	servers []*http.Server
	next    atomic.Int64
	// What the application does for a request, and what the sink does for a call
	// before it answers: by the number in the path.
	serves, hooks sync.Map

	results [kindsMost][classes]atomic.Int64
	// Calls that the application made, and requests that the client sent.
	calls, requests atomic.Int64
	// Requests of which at least one call was missed.
	requestsMissed atomic.Int64
	// Requests and calls without the answer that they should have.
	failed atomic.Int64
	// Requests that did not reach the application as they were sent.
	inboundChanged atomic.Int64
	latency        histogram
}

func newWorld(s stage) (*world, error) {
	w := &world{stage: s, client: clientTo(s.Inbound), caller: clientTo(s.Outbound)}
	for address, handler := range map[string]http.HandlerFunc{s.App: w.serveApp, s.Sink: w.serveSink} {
		listener, err := net.Listen("tcp", address)
		if err != nil {
			return nil, err
		}
		server := &http.Server{Handler: handler, ErrorLog: log.New(os.Stderr, "", 0)}
		w.servers = append(w.servers, server)
		go server.Serve(listener)
	}
	return w, nil
}

func (w *world) close() {
	for _, server := range w.servers {
		server.Close()
	}
}

// Whatever the URL says, it goes there.
func clientTo(address string) *http.Client {
	dialer := net.Dialer{}
	return &http.Client{
		Timeout: time.Minute,
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, network, address)
			},
			MaxIdleConnsPerHost: 1 << 14,
			DisableCompression:  true,
		},
	}
}

// The application's view of one request.
type visit struct {
	w      *world
	id     string
	got    b3
	missed atomic.Bool
	// The client has given up.
	gone <-chan struct{}
}

// Sends a request to the pod; the application serves it with `serve`.
func (w *world) send(id string, sent b3, serve func(*visit)) {
	w.sendUntil(context.Background(), id, sent, serve)
}

// The same, but gives up when the context is cancelled.
func (w *world) sendUntil(ctx context.Context, id string, sent b3, serve func(*visit)) {
	number := w.next.Add(1)
	w.serves.Store(number, func(v *visit) {
		if v.id != id || v.got != sent {
			w.inboundChanged.Add(1)
		}
		serve(v)
		if v.missed.Load() {
			w.requestsMissed.Add(1)
		}
	})
	w.requests.Add(1)
	request, _ := http.NewRequestWithContext(ctx, "GET", fmt.Sprintf("http://pod/%d", number), nil)
	request.Header = http.Header{
		headerID: {id}, headerTrace: {sent.trace}, headerSpan: {sent.span}, headerSampled: {sent.sampled},
	}
	began := time.Now()
	_, err := get(w.client, request)
	w.latency.add(time.Since(began))
	if err != nil && ctx.Err() == nil {
		w.fail("request", err)
	}
}

// One call for the request that is being served.
func (v *visit) call(k kind) { v.callWith(k, v.id, nil) }

// One call under another request ID than the one that came, or for which the
// sink does something (with the context that should have come) before it answers.
func (v *visit) callWith(k kind, id string, hook func(b3)) {
	number := int64(0)
	if hook != nil {
		number = v.w.next.Add(1)
		v.w.hooks.Store(number, hook)
	}
	url := fmt.Sprintf("http://sink/%d/%s/%s/%s/%d", k, v.got.trace, v.got.span, v.got.sampled, number)
	request, _ := http.NewRequest("GET", url, nil)
	request.Header = http.Header{headerID: {id}}
	v.w.calls.Add(1)
	body, err := get(v.w.caller, request)
	if err != nil {
		v.w.fail("call", err)
	} else if body == strconv.Itoa(int(missed)) {
		v.missed.Store(true)
	}
}

func get(client *http.Client, request *http.Request) (string, error) {
	// A new connection now and then, so that requests and calls meet on all pairs
	// of Envoy's workers: each connection stays with one.
	request.Close = rand.IntN(100) == 0
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %.200s", response.StatusCode, body)
	}
	return string(body), err
}

func (w *world) fail(what string, err error) {
	if w.failed.Add(1) <= 5 {
		fmt.Fprintf(os.Stderr, "load: %s: %v\n", what, err)
	}
}

func (w *world) serveApp(_ http.ResponseWriter, r *http.Request) {
	number, _ := strconv.ParseInt(r.URL.Path[1:], 10, 64)
	serve, known := w.serves.LoadAndDelete(number)
	if !known {
		panic(http.ErrAbortHandler)
	}
	h := r.Header
	serve.(func(*visit))(&visit{
		w: w, id: h.Get(headerID), gone: r.Context().Done(),
		got: b3{h.Get(headerTrace), h.Get(headerSpan), h.Get(headerSampled)},
	})
}

func (w *world) serveSink(answer http.ResponseWriter, r *http.Request) {
	parts := strings.Split(r.URL.Path, "/") // "", kind, trace, span, sampled, hook
	k, err := strconv.Atoi(parts[1])
	if err != nil || len(parts) != 6 || k >= len(kinds) {
		panic(http.ErrAbortHandler)
	}
	truth := b3{parts[2], parts[3], parts[4]}
	class := classify(r.Header, truth)
	w.results[k][class].Add(1)
	if number, _ := strconv.ParseInt(parts[5], 10, 64); number != 0 {
		if hook, known := w.hooks.LoadAndDelete(number); known {
			hook.(func(b3))(truth)
		}
	}
	io.WriteString(answer, strconv.Itoa(int(class)))
}

func classify(h http.Header, truth b3) class {
	brought := shared.Context(h)
	switch got := (b3{h.Get(headerTrace), h.Get(headerSpan), h.Get(headerSampled)}); {
	case brought == 0:
		return missed
	case got.trace != truth.trace:
		return wrongTrace
	case got.span != truth.span:
		return otherParent
	case got.sampled != truth.sampled || brought != 3:
		return altered
	}
	return right
}

// Durations, in buckets that are 2 % wide.
type histogram struct {
	counts [1200]atomic.Int64
	most   atomic.Int64
}

const width = 1.02

func (h *histogram) add(d time.Duration) {
	microseconds := max(1, float64(d.Nanoseconds())/1000)
	bucket := int(math.Log(microseconds) / math.Log(width))
	h.counts[min(bucket, len(h.counts)-1)].Add(1)
	for most := h.most.Load(); int64(d) > most && !h.most.CompareAndSwap(most, int64(d)); {
		most = h.most.Load()
	}
}

// Bucket (by its number) to count, so that drivers can add phases up.
func (h *histogram) report() map[int]int64 {
	found := map[int]int64{}
	for bucket := range h.counts {
		if n := h.counts[bucket].Load(); n > 0 {
			found[bucket] = n
		}
	}
	return found
}

type result struct {
	Kind        string `json:"kind"`
	Expect      string `json:"expect"`
	Right       int64  `json:"right"`
	OtherParent int64  `json:"other_parent"`
	WrongTrace  int64  `json:"wrong_trace"`
	Altered     int64  `json:"altered"`
	Missed      int64  `json:"missed"`
}

type report struct {
	Seconds        float64       `json:"seconds"`
	Requests       int64         `json:"requests"`
	Calls          int64         `json:"calls"`
	RequestsMissed int64         `json:"requests_missed"`
	Failed         int64         `json:"failed"`
	InboundChanged int64         `json:"inbound_changed"`
	Results        []result      `json:"results"`
	Latency        map[int]int64 `json:"latency"`
	LatencyWidth   float64       `json:"latency_width"`
	LatencyMostMs  float64       `json:"latency_most_ms"`
}

func (w *world) report(took time.Duration) report {
	r := report{
		Seconds: took.Seconds(), Requests: w.requests.Load(), Calls: w.calls.Load(),
		RequestsMissed: w.requestsMissed.Load(), Failed: w.failed.Load(),
		InboundChanged: w.inboundChanged.Load(), Latency: w.latency.report(), LatencyWidth: width,
		LatencyMostMs: float64(w.latency.most.Load()) / 1e6,
	}
	for k := range kinds {
		counts := &w.results[k]
		found := result{
			kinds[k].name, kinds[k].expect, counts[right].Load(), counts[otherParent].Load(),
			counts[wrongTrace].Load(), counts[altered].Load(), counts[missed].Load(),
		}
		if found.Right+found.OtherParent+found.WrongTrace+found.Altered+found.Missed > 0 {
			r.Results = append(r.Results, found)
		}
	}
	return r
}
