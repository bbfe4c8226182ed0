// A service in Go that is called by gRPC and calls by gRPC: a goroutine a request, and one
// channel, and so one connection, for all calls to a service. Arguments and behaviour
// as ../go/main.go has them; the messages are bytes.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// Of each route its steps, and of each step the services that it calls at once.
var routes = map[string]map[string][][]string{
	"sequential":          {"a": {{"h1"}, {"h2"}}, "b": {{"h2"}, {"h3"}}, "c": {}, "d": {{"h1"}}},
	"parallel-background": {"a": {{"h1"}, {"h2"}}, "b": {{"h2", "h3"}, {"h1"}}, "c": {}, "d": {{"h1"}}},
}

var methods = map[string]string{"h1": "/items.Items/List", "h2": "/profiles.Profiles/Get", "h3": "/ratings.Ratings/List"}

const backgroundMs = 200

var (
	workMs   = 0.3
	forward  string
	channels = map[string]*grpc.ClientConn{}
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
	if spin(int(roundsMs*workMs*math.Exp(0.5*rand.NormFloat64()))) == 0 {
		panic("xorshift never gives 0")
	}
}

// Messages as they are.
type raw struct{}

func (raw) Marshal(message any) ([]byte, error) { return *message.(*[]byte), nil }

// Of the bytes that are read, the library makes other use afterwards.
func (raw) Unmarshal(data []byte, message any) error {
	*message.(*[]byte) = bytes.Clone(data)
	return nil
}

func (raw) Name() string { return "proto" }

func call(context context.Context, host string, truth []byte, incoming metadata.MD) error {
	outgoing := metadata.MD{}
	switch {
	case forward == "request-id" && len(incoming.Get("x-request-id")) > 0:
		outgoing.Set("x-request-id", incoming.Get("x-request-id")...)
	case forward == "truth" && incoming != nil:
		outgoing.Set("x-truth", string(bytes.Fields(truth)[0]))
	}
	var answer []byte
	return channels[host].Invoke(metadata.NewOutgoingContext(context, outgoing), methods[host], &truth, &answer)
}

func serve(context context.Context, steps [][]string, truth []byte) error {
	incoming, _ := metadata.FromIncomingContext(context)
	work()
	for _, hosts := range steps {
		failed := make([]error, len(hosts))
		var calling sync.WaitGroup
		for n, host := range hosts {
			calling.Add(1)
			go func() {
				defer calling.Done()
				failed[n] = call(context, host, truth, incoming)
			}()
		}
		calling.Wait()
		if err := errors.Join(failed...); err != nil {
			log.Print(err)
			return err
		}
		work()
	}
	return nil
}

func background() {
	for {
		time.Sleep(time.Duration(rand.ExpFloat64() * backgroundMs * float64(time.Millisecond)))
		if err := call(context.Background(), "h1", []byte(fmt.Sprintf("%-58s", "background")), nil); err != nil {
			log.Print(err)
		}
	}
}

// One method for each route.
func description(variant string) *grpc.ServiceDesc {
	service := grpc.ServiceDesc{ServiceName: "service.Routes", HandlerType: (*any)(nil)}
	for name, steps := range routes[variant] {
		handler := func(_ any, context context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			var truth []byte
			if err := decode(&truth); err != nil {
				return nil, err
			}
			answer := []byte("ok")
			return &answer, serve(context, steps, truth)
		}
		service.Methods = append(service.Methods, grpc.MethodDesc{MethodName: name, Handler: handler})
	}
	return &service
}

func main() {
	port, outbound, variant := os.Args[1], os.Args[2], os.Args[3]
	forward = os.Args[4]
	if given := os.Getenv("WORK_MS"); given != "" {
		var err error
		if workMs, err = strconv.ParseFloat(given, 64); err != nil {
			log.Fatal(err)
		}
	}
	roundsMs = calibrate()
	for host := range methods {
		channel, err := grpc.NewClient(
			"passthrough:///127.0.0.1:"+outbound,
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithAuthority(host),
			// The background calls before the sidecar listens.
			grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{}), grpc.WaitForReady(true)),
		)
		if err != nil {
			log.Fatal(err)
		}
		channels[host] = channel
	}
	if variant == "parallel-background" {
		go background()
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer(grpc.ForceServerCodec(raw{}))
	server.RegisterService(description(variant), nil)
	log.Fatal(server.Serve(listener))
}
