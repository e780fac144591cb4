// Package contain keeps a panic to the piece of work that it happened in: the
// piece fails, its neighbours go on, and whoever runs the server hears of it once,
// in the log and in a count.
//
// It promises that nothing of what was worked on gets into the log: a panic says of
// itself what Go's runtime says (an index, the name of a type), or else only of
// what type it is. Where in the code it was, its stack says.
//
// Work that others depend on is not contained, where a panic may have left it half
// done: the process ends then, at once, as if it had been killed, and its next start
// goes by what is on disk. Which is which is decided where the work is; this package
// must not know what that is.
package contain

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"time"
)

// Where is what kind of work a panic was in.
type Where string

// The kinds of work.
const (
	// Request is a request to the API: it is answered with 500.
	Request Where = "request"
	// Delivery is an attempt: it has failed.
	Delivery Where = "delivery"
	// Store is a call of the store by those who have it do things in their turn: it
	// has failed, and is tried again where an error would be.
	Store Where = "store"
	// Background is what the server does by itself: it is tried again.
	Background Where = "background"
)

// Places are all kinds of work.
func Places() []Where { return []Where{Request, Delivery, Store, Background} }

// pause is how long work rests that is begun again after a panic: whatever is wrong
// with it is likely to be wrong still.
const pause = 5 * time.Second

// Error is what work ends with that panicked. Its text may be logged.
type Error struct{ text string }

func (e *Error) Error() string { return e.text }

// Options are what a guard needs. All are required.
type Options struct {
	Logger *slog.Logger
	// Counted is told of each panic that was contained.
	Counted func(where Where)
	// End ends the process at once. It does not return.
	End func()
}

// Guard contains panics. It is safe for concurrent use. A nil guard contains
// nothing: under it a panic ends the process by itself, as is right in tests.
type Guard struct{ o Options }

// New makes a guard.
func New(o Options) *Guard { return &Guard{o: o} }

// Describe is what may be told of a panic's value. The value itself may be made of
// anything: of a body, or a secret.
func Describe(p any) string {
	if err, ok := p.(error); ok {
		var own runtime.Error
		if errors.As(err, &own) {
			return own.Error()
		}
	}
	return fmt.Sprintf("a value of type %T, which is not shown", p)
}

// Caught takes what a deferred function has recovered, which is to do what is left
// to do for the work. The attributes say what it was about, as for package slog.
func (g *Guard) Caught(where Where, what string, p any, attrs ...any) *Error {
	if g == nil {
		panic(p) //nolint:forbidigo // it goes on as if nobody had recovered it
	}
	g.o.Counted(where)
	err := &Error{text: what + " panicked: " + Describe(p)}
	g.o.Logger.Error("a panic was contained", append([]any{
		"where", string(where), "what", what, "panic", Describe(p), "stack", string(debug.Stack()),
	}, attrs...)...)
	return err
}

// Torn takes what a deferred function has recovered where the state that others work
// with is half changed. It ends the process, and does not return.
func (g *Guard) Torn(what string, p any) {
	if g == nil {
		panic(p) //nolint:forbidigo // it goes on as if nobody had recovered it
	}
	g.o.Logger.Error("a panic has left the server in an unknown state; it ends, to begin anew with what is on disk",
		"what", what, "panic", Describe(p), "stack", string(debug.Stack()))
	g.o.End()
}

// Try runs f. A panic of it is an *Error.
func (g *Guard) Try(where Where, what string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = g.Caught(where, what, p)
		}
	}()
	return f()
}

// Loop runs f, again after a pause each time that it panics, until it returns or ctx
// ends.
func (g *Guard) Loop(ctx context.Context, what string, f func()) {
	for {
		var broken *Error
		err := g.Try(Background, what, func() error { f(); return nil })
		if !errors.As(err, &broken) {
			return
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// OrEnd runs f. A panic of it ends the process.
func (g *Guard) OrEnd(what string, f func()) {
	defer func() {
		if p := recover(); p != nil {
			g.Torn(what, p)
		}
	}()
	f()
}
