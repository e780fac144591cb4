package contain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const secret = "whsec_do-not-show-me"

type rig struct {
	*Guard
	log     bytes.Buffer
	counted map[Where]int
	ended   int
}

func newRig() *rig {
	r := &rig{counted: map[Where]int{}}
	r.Guard = New(Options{
		Logger:  slog.New(slog.NewTextHandler(&r.log, nil)),
		Counted: func(w Where) { r.counted[w]++ },
		End:     func() { r.ended++; runtime.Goexit() },
	})
	return r
}

func TestDescribe(t *testing.T) {
	recovered := func(f func()) (p any) {
		defer func() { p = recover() }()
		f()
		return nil
	}
	var none []int
	for name, tc := range map[string]struct {
		panics func()
		want   string
	}{
		"an index":           {func() { _ = none[len(name0)] }, "runtime error: index out of range [3] with length 0"},
		"a type":             {func() { _ = any(secret).(int) }, "interface conversion: interface {} is string, not int"},
		"wrapped":            {func() { panic(fmt.Errorf("%s: %w", secret, recovered(func() { _ = none[len(name0)] }).(error))) }, "runtime error: index out of range [3] with length 0"},
		"a text":             {func() { panic(secret) }, "a value of type string, which is not shown"},
		"an error":           {func() { panic(errors.New(secret)) }, "a value of type *errors.errorString, which is not shown"},
		"something that has": {func() { panic(struct{ s string }{secret}) }, "a value of type struct { s string }, which is not shown"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Describe(recovered(tc.panics)); got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}

const name0 = "abc"

func TestTry(t *testing.T) {
	r := newRig()
	plain := errors.New("no")
	if err := r.Try(Store, "x", func() error { return plain }); !errors.Is(err, plain) || r.log.Len() > 0 {
		t.Errorf("an error came back as %v; logged %q", err, &r.log)
	}
	err := r.Try(Store, "a call", func() error { panic(secret) })
	var broken *Error
	if !errors.As(err, &broken) || strings.Contains(err.Error(), secret) {
		t.Errorf("%v", err)
	}
	if r.counted[Store] != 1 || len(r.counted) != 1 {
		t.Errorf("counted %v", r.counted)
	}
	log := r.log.String()
	if strings.Count(log, "a panic was contained") != 1 || !strings.Contains(log, "TestTry") || strings.Contains(log, secret) {
		t.Errorf("the log wants one line with the stack and without the value:\n%s", log)
	}
}

func TestNilContainsNothing(t *testing.T) {
	var g *Guard
	for name, f := range map[string]func(){
		"Try":   func() { _ = g.Try(Store, "x", func() error { panic(secret) }) },
		"Loop":  func() { g.Loop(t.Context(), "x", func() { panic(secret) }) },
		"OrEnd": func() { g.OrEnd("x", func() { panic(secret) }) },
	} {
		func() {
			defer func() {
				if p := recover(); p != secret {
					t.Errorf("%s: recovered %v", name, p)
				}
			}()
			f()
		}()
	}
}

// Work that panics is begun again after a pause, and until it returns.
func TestLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig()
		began, runs := time.Now(), 0
		r.Loop(t.Context(), "work", func() {
			if runs++; runs < 4 {
				panic(secret)
			}
		})
		if runs != 4 || r.counted[Background] != 3 || time.Since(began) != 3*pause {
			t.Errorf("ran %d times in %s, counted %v", runs, time.Since(began), r.counted)
		}
	})
}

func TestLoopEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig()
		ctx, cancel := context.WithTimeout(t.Context(), pause/2)
		defer cancel()
		began := time.Now()
		r.Loop(ctx, "work", func() { panic(secret) })
		if time.Since(began) != pause/2 {
			t.Errorf("ended after %s", time.Since(began))
		}
	})
}

func TestOrEnd(t *testing.T) {
	r, done := newRig(), make(chan struct{})
	went := false
	go func() {
		defer close(done)
		r.OrEnd("the state", func() { panic(secret) })
		went = true
	}()
	<-done
	if r.ended != 1 || went {
		t.Errorf("ended %d times; went on: %t", r.ended, went)
	}
	if log := r.log.String(); !strings.Contains(log, "the state") || !strings.Contains(log, "TestOrEnd") || strings.Contains(log, secret) {
		t.Errorf("logged:\n%s", log)
	}
	r.OrEnd("the state", func() { went = true })
	if !went || r.ended != 1 {
		t.Error("work without a panic does not come to its end")
	}
}
