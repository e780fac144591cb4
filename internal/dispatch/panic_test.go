package dispatch_test

import (
	"bytes"
	"context"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/contain"
	"github.com/plinqx/hypha/internal/dispatch"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/retry"
	"github.com/plinqx/hypha/internal/send"
	"github.com/plinqx/hypha/internal/store"
)

// guarded is a guard, and what it was told.
type guarded struct {
	*contain.Guard
	log   lockedBuffer
	ended chan struct{}

	mu      sync.Mutex
	counted map[contain.Where]int
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newGuarded() *guarded {
	g := &guarded{counted: map[contain.Where]int{}, ended: make(chan struct{})}
	g.Guard = contain.New(contain.Options{
		Logger: slog.New(slog.NewTextHandler(&g.log, nil)),
		Counted: func(w contain.Where) {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.counted[w]++
		},
		End: func() { close(g.ended); runtime.Goexit() },
	})
	return g
}

func (g *guarded) count(w contain.Where) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.counted[w]
}

// secretText is what panics are made of, as those of a library may be.
const secretText = "whsec_in-a-panic"

func panics(context.Context, send.Request) *hook.Attempt { panic(secretText) }

// attempts lists what is recorded of a webhook's only delivery.
func (r *rig) attempts(webhook id.Webhook) (hook.Status, []hook.Attempt) {
	r.disk.mu.Lock()
	defer r.disk.mu.Unlock()
	for _, row := range r.disk.rows {
		if row.webhook == webhook {
			return row.status, row.attempts
		}
	}
	return 0, nil
}

// An attempt that panics has failed as any other: it is on disk, its slot is free,
// it is made again when the schedule says so, and the neighbour knows nothing of it.
func TestAttemptPanics(t *testing.T) {
	g := newGuarded()
	run(t, func(o *dispatch.Options) { o.Slots, o.Guard = 1, g.Guard }, func(t *testing.T, r *rig) {
		w := r.webhook(1, "a.test")
		r.webhook(1, "b.test")
		var calls atomic.Int32
		r.receive("a.test", func(ctx context.Context, q send.Request) *hook.Attempt {
			if calls.Add(1) <= 2 {
				r.mu.Lock()
				delete(r.inFlight, q.Header.Get("X-Plinqx-Delivery"))
				r.mu.Unlock()
				panic(secretText)
			}
			return answers(200)(ctx, q)
		})
		r.publish(1, "a.test", 1, 1)
		r.publish(1, "b.test", 2, 1) // with the one slot that there is
		r.rest(time.Second)
		if got := r.to("b.test"); len(got) != 1 {
			t.Errorf("the neighbour was sent %v", got)
		}
		if in := r.Gauge().InFlight; in != 0 {
			t.Errorf("%d in flight", in)
		}
		status, made := r.attempts(w)
		if status != hook.StatusRetrying || len(made) != 1 {
			t.Fatalf("%s with %+v", status, made)
		}
		if a := made[0]; a.Failure == nil || a.Failure.Kind != hook.FailureInternal || a.Number != 1 || a.Revision != 1 || a.Failure.Message != "the attempt failed within the server" {
			t.Errorf("recorded %+v", a)
		}
		r.rest(time.Hour)
		if status, made := r.attempts(w); status != hook.StatusSuccess || len(made) != 3 || made[2].Number != 3 {
			t.Errorf("%s with %+v", status, made)
		}
		if times := r.times("a.test"); len(times) != 3 || times[1]-times[0] != 5*time.Second {
			t.Errorf("sent at %v", times)
		}
		if n := g.count(contain.Delivery); n != 2 {
			t.Errorf("counted %d", n)
		}
		log := g.log.String()
		if strings.Count(log, "a panic was contained") != 2 || !strings.Contains(log, "TestAttemptPanics") || !strings.Contains(log, w.String()) || strings.Contains(log, secretText) {
			t.Errorf("logged:\n%s", log)
		}
	})
}

// What always panics is given up in the end.
func TestAttemptAlwaysPanics(t *testing.T) {
	g := newGuarded()
	run(t, func(o *dispatch.Options) { o.Guard, o.Schedule = g.Guard, retry.Schedule{time.Second, time.Minute} }, func(t *testing.T, r *rig) {
		w := r.webhook(1, "a.test")
		r.receive("a.test", func(ctx context.Context, q send.Request) *hook.Attempt {
			r.mu.Lock()
			delete(r.inFlight, q.Header.Get("X-Plinqx-Delivery"))
			r.mu.Unlock()
			return panics(ctx, q)
		})
		r.publish(1, "a.test", 1, 1)
		r.rest(time.Hour)
		if status, made := r.attempts(w); status != hook.StatusFailed || len(made) != 3 {
			t.Errorf("%s after %d attempts", status, len(made))
		}
	})
}

// holder is a Holder that panics.
type holder struct{ dispatch.Holder }

func (holder) Pause(context.Context, id.Tenant, id.Webhook, time.Time) error { panic(secretText) }

// Where what comes after the attempt panics, the receiver's answer stands: what it
// took is not sent again, and what it refused is.
func TestAfterwardsPanics(t *testing.T) {
	g := newGuarded()
	run(t, func(o *dispatch.Options) { o.Guard, o.Holder = g.Guard, holder{o.Holder} }, func(t *testing.T, r *rig) {
		w := r.webhook(1, "a.test")
		r.receive("a.test", retryAfter(429, "60"))
		r.publish(1, "a.test", 1, 1)
		r.rest(time.Second)
		status, made := r.attempts(w)
		if status != hook.StatusRetrying || len(made) != 1 || made[0].StatusCode != 429 || made[0].Number != 1 {
			t.Fatalf("%s with %+v", status, made)
		}
		r.receive("a.test", answers(200))
		r.rest(time.Hour)
		if status, made := r.attempts(w); status != hook.StatusSuccess || len(made) != 2 {
			t.Errorf("%s with %+v", status, made)
		}
		if n := g.count(contain.Delivery); n != 2 { // and once more when it was decided anew
			t.Errorf("counted %d", n)
		}
	})
	g = newGuarded()
	run(t, func(o *dispatch.Options) {
		o.Guard = g.Guard
		o.Chance = func() float64 { panic(secretText) }
	}, func(t *testing.T, r *rig) {
		w := r.webhook(1, "a.test")
		r.publish(1, "a.test", 1, 1)
		r.rest(time.Hour)
		if status, made := r.attempts(w); status != hook.StatusSuccess || len(made) != 1 || len(r.to("a.test")) != 1 {
			t.Errorf("%s with %+v, sent %v", status, made, r.to("a.test"))
		}
	})
}

// A test-send that panics answers whoever waits for it.
func TestTestSendPanics(t *testing.T) {
	g := newGuarded()
	run(t, func(o *dispatch.Options) { o.Guard = g.Guard }, func(t *testing.T, r *rig) {
		w := r.webhook(1, "a.test")
		r.receive("a.test", panics)
		a, err := r.test(t.Context(), 1, w)
		if err != nil || a == nil || a.Failure == nil || a.Failure.Kind != hook.FailureInternal {
			t.Errorf("%+v, %v", a, err)
		}
		r.rest(time.Second)
		if in := r.Gauge().InFlight; in != 0 || g.count(contain.Delivery) != 1 {
			t.Errorf("%d in flight, counted %d", in, g.count(contain.Delivery))
		}
	})
}

// breaking is a disk whose calls panic as long as they are told to.
type breaking struct {
	*disk
	claim, expire atomic.Bool
}

func (b *breaking) Claim(ctx context.Context, p store.ClaimParams) (*store.Claimed, error) {
	if b.claim.Load() {
		panic(secretText)
	}
	return b.disk.Claim(ctx, p)
}

func (b *breaking) Expire(ctx context.Context, p store.ExpireParams) (*store.ExpireResult, error) {
	if b.expire.Load() {
		panic(secretText)
	}
	return b.disk.Expire(ctx, p)
}

// What can't be fetched or given up because the store panics is tried again, and the
// committer, in whose goroutine that is, goes on.
func TestStorePanics(t *testing.T) {
	g := newGuarded()
	var b *breaking
	run(t, func(o *dispatch.Options) {
		b = &breaking{disk: o.Store.(*disk)}
		o.Store, o.Guard, o.Memory = b, g.Guard, 2048 // so most is fetched from disk
		b.claim.Store(true)
		b.expire.Store(true)
	}, func(t *testing.T, r *rig) {
		r.webhook(1, "a.test")
		r.publish(1, "a.test", 1, 20)
		r.rest(10 * time.Second)
		if n := g.count(contain.Store); n == 0 || len(r.to("a.test")) == 20 {
			t.Fatalf("counted %d, sent %v", n, r.to("a.test"))
		}
		b.claim.Store(false)
		b.expire.Store(false)
		r.rest(10 * time.Minute)
		if got := r.to("a.test"); len(got) != 20 {
			t.Errorf("sent %v", got)
		}
	})
}

// Where the lanes themselves panic, nobody sees them again: the process ends.
func TestLanesPanic(t *testing.T) {
	g := newGuarded()
	d := dispatch.New(dispatch.Options{Guard: g.Guard, Now: func() time.Time { panic(secretText) }})
	go d.Gauge() // asks for the time with the lanes held
	<-g.ended
	if log := g.log.String(); strings.Count(log, "unknown state") != 1 || !strings.Contains(log, "TestLanesPanic") || strings.Contains(log, secretText) {
		t.Errorf("logged:\n%s", log)
	}
}
