// A service in Go as people write them: a goroutine a request, pooled connections.
//
//	app PORT OUTBOUND_PORT sequential|parallel-background FORWARD
//
// FORWARD is none, request-id or truth (see ../../stacks.py). What it does is the
// same in every language: see routes.
package main

import (
	"bytes"
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
	"time"
)

// Of each route its steps, and of each step the services that it calls at once.
var routes = map[string]map[string][][]string{
	"sequential":          {"a": {{"h1"}, {"h2"}}, "b": {{"h2"}, {"h3"}}, "c": {}, "d": {{"h1"}}},
	"parallel-background": {"a": {{"h1"}, {"h2"}}, "b": {{"h2", "h3"}, {"h1"}}, "c": {}, "d": {{"h1"}}},
}

// What a call asks for, without and with the user that the request named.
var paths = map[string][2]string{
	"h1": {"/items", "/items?user=%s"},
	"h2": {"/profiles", "/profiles/%s"},
	"h3": {"/ratings", "/ratings/%s/all"},
}

const backgroundMs = 200

var (
	workMs   = 0.3
	steps    map[string][][]string
	forward  string
	client   *http.Client
	roundsMs float64
)

// So many rounds of arithmetic. The compiler must not see that nobody needs them.
func spin(rounds int) uint64 {
	x := uint64(88172645463325252)
	for range rounds {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	return x
}

// How many rounds take a millisecond on a core that has nothing else to do.
func calibrate() float64 {
	const rounds = 1_000_000
	best := math.Inf(1)
	for range 20 {
		began := time.Now()
		if spin(rounds) == 0 {
			panic("xorshift never gives 0")
		}
		best = min(best, float64(time.Since(began).Nanoseconds())/1e6)
	}
	return rounds / best
}

func work() {
	rounds := int(roundsMs * workMs * math.Exp(0.5*rand.NormFloat64()))
	if spin(rounds) == 0 {
		panic("xorshift never gives 0")
	}
}

func call(host, user string, truth []byte, header http.Header) error {
	path := paths[host][0]
	if user != "" {
		path = fmt.Sprintf(paths[host][1], user)
	}
	request, err := http.NewRequest("POST", "http://"+host+path, bytes.NewReader(truth))
	if err != nil {
		return err
	}
	switch {
	case forward == "request-id" && header.Get("X-Request-Id") != "":
		request.Header.Set("X-Request-Id", header.Get("X-Request-Id"))
	case forward == "truth" && header != nil:
		request.Header.Set("X-Truth", string(bytes.Fields(truth)[0]))
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: status %d", host, response.StatusCode)
	}
	return nil
}

func serve(answer http.ResponseWriter, request *http.Request) {
	truth, err := io.ReadAll(request.Body)
	if err != nil {
		return
	}
	parts := strings.Split(request.URL.Path, "/")
	user := ""
	if parts[1] == "users" {
		user = parts[2]
	}
	work()
	for _, hosts := range steps[parts[len(parts)-1]] {
		failed := make([]error, len(hosts))
		var calling sync.WaitGroup
		for n, host := range hosts {
			calling.Add(1)
			go func() {
				defer calling.Done()
				failed[n] = call(host, user, truth, request.Header)
			}()
		}
		calling.Wait()
		for _, err := range failed {
			if err != nil {
				log.Print(err)
				answer.WriteHeader(http.StatusBadGateway)
				return
			}
		}
		work()
	}
	io.WriteString(answer, "ok")
}

func background() {
	for {
		time.Sleep(time.Duration(rand.ExpFloat64() * backgroundMs * float64(time.Millisecond)))
		if err := call("h1", "", []byte(fmt.Sprintf("%-58s", "background")), nil); err != nil {
			log.Print(err)
		}
	}
}

func main() {
	port, outbound := os.Args[1], os.Args[2]
	steps, forward = routes[os.Args[3]], os.Args[4]
	if given := os.Getenv("WORK_MS"); given != "" {
		var err error
		if workMs, err = strconv.ParseFloat(given, 64); err != nil {
			log.Fatal(err)
		}
	}
	roundsMs = calibrate()
	dialer := net.Dialer{}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	// The sidecar takes all connections, wherever they go.
	transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return dialer.DialContext(ctx, network, "127.0.0.1:"+outbound)
	}
	transport.MaxIdleConnsPerHost = 100
	client = &http.Client{Transport: transport}
	if os.Args[3] == "parallel-background" {
		go background()
	}
	log.Fatal(http.ListenAndServe("127.0.0.1:"+port, http.HandlerFunc(serve)))
}
