package main

import (
	"context"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"load/shared"
)

// What a worker does again and again. Some have calls of several kinds.
type kind int

const kindsMost = 64

// What is expected of a kind's calls.
const (
	// All right. Above the capacity some may be missed.
	allRight = "right"
	// All left alone, by design: nobody can tell whose they are.
	allAlone = "left alone"
	// Right or left alone, never of another trace.
	notCrossed = "not crossed"
	// Never of another trace; which parent is only counted.
	rightTrace = "right trace"
)

var kinds []struct {
	name, expect string
	run          func(*world, kind, int)
}

func init() {
	add := func(name, expect string, run func(*world, kind, int)) {
		kinds = append(kinds, struct {
			name, expect string
			run          func(*world, kind, int)
		}{name, expect, run})
	}
	add("plain", allRight, plain)

	add("forwarded with another character 14", allRight, otherReason)
	add("prefixes of one another, 8 to 255 bytes", allRight, prefixes)
	add("255 bytes, differing in one", allRight, long)
	add("UUID forwarded in capitals", allRight, otherCase)
	add("odd bytes", allRight, oddBytes)
	add("1 or 2 bytes, used again after the grace", allRight, short)
	add("UUID used again after the grace", allRight, usedAgain)
	add("call within the grace", allRight, lateCall)
	add("call after the grace", allAlone, tooLateCall)
	add("256 bytes", allAlone, tooLong)
	add("one ID, several traces at once", allAlone, sharedID)
	add("IDs differing at 14, two traces at once", allAlone, twins)
	add("UUIDs differing in case, two traces at once", allAlone, cases)
	add("used again within the grace, other trace", notCrossed, usedAgainTooSoon)

	// Of each shape, its calls in the order in which they are made.
	add("loop", rightTrace, loop)
	add("loop: into it", rightTrace, nil)
	add("loop: by #2", rightTrace, nil)
	add("loop: by #1 afterwards", rightTrace, nil)
	add("diamond: #1's calls, then #2's", rightTrace, diamondSequential)
	add("diamond: in turns", rightTrace, diamondInTurns)
	add("diamond: at random", rightTrace, diamondAtRandom)
	add("retry, same span, both go on", rightTrace, retrySameSpan)
	add("retry, other span, both go on", rightTrace, retryOtherSpan)
	add("retry, other span, first given up", rightTrace, retryGivenUp)
}

func kindNamed(name string) (kind, bool) {
	for k := range kinds {
		if kinds[k].name == name && kinds[k].run != nil {
			return kind(k), true
		}
	}
	return 0, false
}

// Runs all of them at the same time.
func together(each ...func()) {
	var running sync.WaitGroup
	for _, one := range each {
		running.Add(1)
		go func() {
			defer running.Done()
			one()
		}()
	}
	running.Wait()
}

// A point where so many wait for each other. Nobody waits for ever: a request
// that failed does not come.
type meeting struct {
	all     sync.WaitGroup
	reached chan struct{}
}

func meet(n int) *meeting {
	m := &meeting{reached: make(chan struct{})}
	m.all.Add(n)
	go func() {
		m.all.Wait()
		close(m.reached)
	}()
	return m
}

func (m *meeting) here() {
	m.all.Done()
	select {
	case <-m.reached:
	case <-time.After(30 * time.Second):
	}
}

func (w *world) pause() {
	if w.stage.WaitMs > 0 {
		time.Sleep(time.Duration(rand.Float64() * 2 * w.stage.WaitMs * float64(time.Millisecond)))
	}
}

func (w *world) grace() time.Duration { return time.Duration(w.stage.GraceMs) * time.Millisecond }

// Printable ASCII, without commas: an ID with one may be two, and its parts those of others.
func randomText(n int) string {
	text := make([]byte, n)
	for i := range text {
		text[i] = byte('!' + rand.IntN('~'-'!'+1))
	}
	return strings.ReplaceAll(string(text), ",", ".")
}

func plain(w *world, k kind, _ int) {
	id := shared.UUID()
	if rand.Float64() < w.stage.Odd {
		id = randomText(12 + rand.IntN(244))
	}
	calls := 1 + rand.IntN(w.stage.CallsMost)
	parallel := rand.IntN(2) == 0
	w.send(id, randomB3(), func(v *visit) {
		one := func() {
			w.pause()
			v.call(k)
		}
		if parallel {
			each := make([]func(), calls)
			for i := range each {
				each[i] = one
			}
			together(each...)
		} else {
			for range calls {
				one()
			}
		}
		w.pause()
	})
}

func twoCalls(w *world, k kind) func(*visit) {
	return func(v *visit) {
		w.pause()
		v.call(k)
		v.call(k)
	}
}

// Character 14 is where Envoy keeps its tracing decision: it may differ from
// one hop to the next, and does not make another ID.
func withReason(id string, reason byte) string { return id[:14] + string(reason) + id[15:] }

func otherReason(w *world, k kind, _ int) {
	id := shared.UUID()
	w.send(id, randomB3(), func(v *visit) {
		for _, reason := range []byte("9ab4") {
			v.callWith(k, withReason(id, reason), nil)
		}
	})
}

func otherCase(w *world, k kind, _ int) {
	id := shared.UUID()
	w.send(id, randomB3(), func(v *visit) {
		v.callWith(k, strings.ToUpper(id), nil)
		v.call(k)
	})
}

// Requests with these IDs, each of a trace of its own, all in flight at once
// while each makes its calls.
func atOnce(w *world, k kind, ids ...string) {
	begin, end := meet(len(ids)), meet(len(ids))
	each := make([]func(), len(ids))
	for i, id := range ids {
		each[i] = func() {
			w.send(id, randomB3(), func(v *visit) {
				begin.here()
				v.call(k)
				w.pause()
				v.call(k)
				end.here()
			})
		}
	}
	together(each...)
}

func prefixes(w *world, k kind, _ int) {
	text := randomText(255)
	atOnce(w, k, text[:8], text[:9], text[:16], text[:35], text[:36], text[:37], text[:254], text)
}

func long(w *world, k kind, _ int) {
	middle := randomText(253)
	atOnce(w, k, "a"+middle+"a", "b"+middle+"a", "a"+middle+"b")
}

func cases(w *world, k kind, _ int) {
	// At least one letter, or both would be the same.
	id := "a" + shared.UUID()[1:]
	atOnce(w, k, id, strings.ToUpper(id))
}

func oddBytes(w *world, k kind, _ int) {
	bytes := make([]byte, 12+rand.IntN(60))
	for i := range bytes {
		bytes[i] = byte(0x80 + rand.IntN(0x80))
	}
	w.send(string(bytes), randomB3(), twoCalls(w, k))
}

func short(w *world, k kind, worker int) {
	const characters = "0123456789abcdefghijklmnopqrstuvwxyz"
	id := characters[worker%36 : worker%36+1]
	if worker >= 36 {
		id += string(characters[worker/36-1])
	}
	w.send(id, randomB3(), twoCalls(w, k))
	time.Sleep(w.grace() + 300*time.Millisecond)
}

func usedAgain(w *world, k kind, _ int) {
	id := shared.UUID()
	for range 3 {
		w.send(id, randomB3(), twoCalls(w, k))
		time.Sleep(w.grace() + 300*time.Millisecond)
	}
}

func usedAgainTooSoon(w *world, k kind, _ int) {
	id := shared.UUID()
	w.send(id, randomB3(), func(*visit) {})
	w.send(id, randomB3(), twoCalls(w, k))
}

func callAfter(w *world, k kind, wait time.Duration) {
	done := make(chan struct{})
	w.send(shared.UUID(), randomB3(), func(v *visit) {
		go func() {
			defer close(done)
			time.Sleep(wait)
			v.call(k)
		}()
	})
	select {
	case <-done:
	case <-time.After(wait + 30*time.Second):
	}
}

func lateCall(w *world, k kind, _ int) {
	callAfter(w, k, time.Duration(rand.Float64()*float64(w.grace())/2))
}

func tooLateCall(w *world, k kind, _ int) { callAfter(w, k, w.grace()+300*time.Millisecond) }

func tooLong(w *world, k kind, _ int) { w.send(randomText(256), randomB3(), twoCalls(w, k)) }

func sharedID(w *world, k kind, _ int) {
	id := shared.UUID()
	atOnce(w, k, []string{id, id, id}[:2+rand.IntN(2)]...)
}

func twins(w *world, k kind, _ int) {
	id := shared.UUID()
	atOnce(w, k, id, withReason(id, '9'))
}

// The pod's callee calls the pod again, in the same trace, before it answers.
func loop(w *world, k kind, _ int) {
	into, inner, after := k+1, k+2, k+3
	id := shared.UUID()
	w.send(id, randomB3(), func(v *visit) {
		w.pause()
		v.call(into)
		v.callWith(into, id, func(truth b3) {
			w.send(id, truth.newSpan(), func(v *visit) {
				for range 1 + rand.IntN(3) {
					w.pause()
					v.call(inner)
				}
			})
		})
		for range 1 + rand.IntN(3) {
			w.pause()
			v.call(after)
		}
	})
}

// Two requests with one ID and one trace that are in flight at the same time.
func pair(w *world, second func(b3) b3, first, other func(*visit)) {
	id, context := shared.UUID(), randomB3()
	begin, end := meet(2), meet(2)
	serve := func(calls func(*visit)) func(*visit) {
		return func(v *visit) {
			begin.here()
			calls(v)
			end.here()
		}
	}
	together(
		func() { w.send(id, context, serve(first)) },
		// Who comes first is not left to chance.
		func() {
			time.Sleep(2 * time.Millisecond)
			w.send(id, second(context), serve(other))
		},
	)
}

func diamondSequential(w *world, k kind, _ int) {
	done := make(chan struct{})
	three := func(v *visit) {
		for range 3 {
			w.pause()
			v.call(k)
		}
	}
	pair(w, b3.newSpan, func(v *visit) {
		defer close(done)
		three(v)
	}, func(v *visit) {
		<-done
		three(v)
	})
}

func diamondInTurns(w *world, k kind, _ int) {
	turns := [2]chan struct{}{make(chan struct{}, 1), make(chan struct{}, 1)}
	turns[0] <- struct{}{}
	of := func(n int) func(*visit) {
		return func(v *visit) {
			for range 3 {
				<-turns[n]
				w.pause()
				v.call(k)
				turns[1-n] <- struct{}{}
			}
		}
	}
	pair(w, b3.newSpan, of(0), of(1))
}

// Without any order: they need not even overlap from the first call on.
func diamondAtRandom(w *world, k kind, _ int) {
	id, context := shared.UUID(), randomB3()
	serve := func(v *visit) {
		for range 1 + rand.IntN(4) {
			w.pause()
			v.call(k)
		}
		w.pause()
	}
	together(
		func() { w.send(id, context, serve) },
		func() {
			w.pause()
			w.send(id, context.newSpan(), serve)
		},
	)
}

func someCalls(w *world, k kind) func(*visit) {
	return func(v *visit) {
		for range 2 {
			w.pause()
			v.call(k)
		}
	}
}

func retrySameSpan(w *world, k kind, _ int) {
	pair(w, func(c b3) b3 { return c }, someCalls(w, k), someCalls(w, k))
}

func retryOtherSpan(w *world, k kind, _ int) {
	pair(w, b3.newSpan, someCalls(w, k), someCalls(w, k))
}

// The client closes the connection and sends the request again; the
// application goes on with the first one all the same.
func retryGivenUp(w *world, k kind, _ int) {
	id, sent := shared.UUID(), randomB3()
	ctx, giveUp := context.WithCancel(context.Background())
	defer giveUp()
	begun, done := make(chan struct{}), make(chan struct{})
	go w.sendUntil(ctx, id, sent, func(v *visit) {
		defer close(done)
		v.call(k)
		close(begun)
		<-v.gone
		someCalls(w, k)(v)
	})
	select {
	case <-begun:
	case <-time.After(30 * time.Second):
		return
	}
	giveUp()
	w.send(id, sent.newSpan(), someCalls(w, k))
	<-done
}
