package dispatch_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/plinqx/hypha/internal/dispatch"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

func TestNothingStartsWithoutLeave(t *testing.T) {
	var may atomic.Bool
	run(t, func(o *dispatch.Options) { o.MaySend = may.Load }, func(t *testing.T, r *rig) {
		webhook := r.webhook(1, "a.test")
		r.publish(1, "a.test", 1, 5)
		r.rest(time.Minute)
		if got := r.to("a.test"); len(got) != 0 {
			t.Fatalf("%v were sent", got)
		}
		if _, err := r.test(t.Context(), 1, webhook); hook.CodeOf(err) != hook.CodeUnavailable {
			t.Errorf("a test-send: %v", err)
		}
		if got := r.to("a.test"); len(got) != 0 {
			t.Fatalf("%v were sent", got)
		}
		may.Store(true)
		r.Pump()
		r.rest(time.Minute)
		if got := r.to("a.test"); len(got) != 6 { // the test is on disk too
			t.Errorf("%v were sent", got)
		}
	})
}

// Between the decision to send and the sending, the configuration may have to be
// read, from a store that hangs.
func TestLeaveIsAskedForAtTheLastMoment(t *testing.T) {
	var asked atomic.Int32
	run(t, func(o *dispatch.Options) {
		o.MaySend = func() bool { return asked.Add(1) != 2 } // not the second time
	}, func(t *testing.T, r *rig) {
		r.webhook(1, "a.test")
		r.publish(1, "a.test", 1, 1)
		synctest.Wait()
		if got := r.to("a.test"); len(got) > 1 || len(got) == 1 && asked.Load() < 4 {
			t.Errorf("%v was sent without leave", got)
		}
		r.rest(time.Minute)
		if got := r.to("a.test"); len(got) != 1 {
			t.Errorf("%v were sent, want it once", got)
		}
	})
}

func TestFenceGivesUpWhatWaits(t *testing.T) {
	run(t, func(o *dispatch.Options) { o.Slots = 4 }, func(t *testing.T, r *rig) {
		r.webhook(1, "a.test")
		r.receive("a.test", after(10*time.Second, 200))
		r.publish(1, "a.test", 1, 20)
		time.Sleep(time.Second) // of the fake clock
		flying := len(r.to("a.test"))
		done := make(chan struct{})
		r.committer.Do(func(context.Context) {
			defer close(done)
			r.Fence()
			if g := r.Gauge(); g.Waiting != 0 || g.InFlight != flying {
				t.Errorf("after a fence: %+v", g)
			}
			// Others send what waits, while we are joining.
			r.disk.mu.Lock()
			defer r.disk.mu.Unlock()
			for _, name := range r.disk.order[10:] {
				r.disk.rows[name].status = hook.StatusSuccess
			}
		})
		<-done
		r.rest(time.Hour)
		if got := r.allTo("a.test"); !slices.Equal(got, events(1, 10)) {
			t.Errorf("sent: %v", got)
		}
	})
}

func TestLookAndReconcile(t *testing.T) {
	for _, tc := range []struct {
		name string
		late time.Duration
		look func(*rig) error
		// after is when it is sent; negative: never.
		after time.Duration
	}{
		{"looked for, due", 0, func(r *rig) error { return r.Look(context.Background()) }, 0},
		{"looked for, due later", -time.Hour, func(r *rig) error { return r.Look(context.Background()) }, time.Hour},
		{"reconciled, due just now", time.Second, func(r *rig) error { return r.Reconcile(context.Background()) }, -1},
		{"reconciled, overdue", 6 * time.Second, func(r *rig) error { return r.Reconcile(context.Background()) }, 0},
		{"reconciled, due later", -time.Hour, func(r *rig) error { return r.Reconcile(context.Background()) }, -1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			run(t, nil, func(t *testing.T, r *rig) {
				webhook := r.webhook(1, "a.test")
				r.rest(time.Minute)
				// Another process has put it there.
				r.disk.mu.Lock()
				r.disk.put(&row{tenant: tenant(1), webhook: webhook, Queued: store.Queued{
					ID: id.Delivery{9}, PublicEventID: "e1", EventType: "to.a.test", Body: []byte("{}"), Trigger: hook.TriggerAuto,
					Due: time.Now().Add(-tc.late), ExpiresAt: time.Now().Add(24 * time.Hour),
				}})
				r.disk.mu.Unlock()
				began := time.Since(r.begin)
				if err := tc.look(r); err != nil {
					t.Fatal(err)
				}
				r.rest(2 * time.Hour)
				var got []time.Duration
				for _, at := range r.times("a.test") {
					got = append(got, at-began)
				}
				var want []time.Duration
				if tc.after >= 0 {
					want = append(want, tc.after)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("sent (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// board is where two processes write down what they know of breakers.
type board struct {
	mu    sync.Mutex
	until map[id.Webhook]time.Time
	lines []string
	begin time.Time
	fails bool
}

func (b *board) tell(_ context.Context, _ id.Tenant, webhook id.Webhook, until time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fails {
		return errors.New("away")
	}
	b.until[webhook] = until
	line := "closed"
	if !until.IsZero() {
		line = fmt.Sprintf("open until %s", until.Sub(b.begin))
	}
	b.lines = append(b.lines, line)
	return nil
}

func (b *board) read(webhook id.Webhook) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.until[webhook]
}

func TestBreakerIsTold(t *testing.T) {
	b := &board{until: make(map[id.Webhook]time.Time)}
	run(t, func(o *dispatch.Options) { o.TellBreaker = b.tell }, func(t *testing.T, r *rig) {
		b.begin = r.begin
		r.webhook(1, "ill.test")
		r.receive("ill.test", refuses)
		r.publish(1, "ill.test", 1, 30)
		r.rest(8 * time.Second)
		r.receive("ill.test", answers(200))
		r.rest(time.Minute)
		if diff := cmp.Diff([]string{"open until 1s", "open until 3s", "open until 7s", "open until 15s", "closed"}, b.lines); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// Two processes have work for one receiver, which is ill for ten minutes. Together
// they try it as often as one would.
func TestProbesAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &board{until: make(map[id.Webhook]time.Time)}
		d := newDisk()
		tells := func(o *dispatch.Options) { o.TellBreaker = b.tell }
		one := newRig(t, d, tells)
		defer one.stop(context.Background())
		webhook := one.webhook(1, "ill.test")
		two := newRig(t, newDisk(), tells) // with a queue of its own, to keep it simple
		defer two.stop(context.Background())
		two.disk.mu.Lock()
		two.disk.webhooks, two.disk.versions = d.webhooks, d.versions
		two.disk.mu.Unlock()
		one.receive("ill.test", refuses)
		two.receive("ill.test", refuses)
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		for _, r := range []*rig{one, two} {
			go func() { // as package cluster does
				for ctx.Err() == nil {
					mark := r.Mark()
					until := b.read(webhook)
					r.BreakerElsewhere(mark, tenant(1), webhook, until)
					select {
					case <-time.After(time.Second):
					case <-ctx.Done():
					}
				}
			}()
		}
		one.publish(1, "ill.test", 1, 100)
		two.publish(1, "ill.test", 101, 100)
		synctest.Wait()
		before := len(one.to("ill.test")) + len(two.to("ill.test"))
		time.Sleep(10 * time.Minute)
		probes := len(one.to("ill.test")) + len(two.to("ill.test")) - before
		// 1, 2, 4, …, 32 s, and then each minute, besides one of the other's for
		// each minute that it has followed.
		if probes < 10 || probes > 30 {
			t.Errorf("%d probes in ten minutes", probes)
		}
		one.receive("ill.test", answers(200))
		two.receive("ill.test", answers(200))
		time.Sleep(2*time.Minute + 5*time.Second)
		if one.Gauge().Open+two.Gauge().Open != 0 {
			t.Error("a breaker stays open although the receiver is well")
		}
		stop()
	})
}

func TestOwnWordIsNoNews(t *testing.T) {
	b := &board{until: make(map[id.Webhook]time.Time)}
	run(t, func(o *dispatch.Options) { o.TellBreaker = b.tell }, func(t *testing.T, r *rig) {
		webhook := r.webhook(1, "ill.test")
		r.receive("ill.test", refuses)
		before := r.Mark()
		r.publish(1, "ill.test", 1, 30)
		r.rest(100 * time.Millisecond)
		// What was read before it opened, and what it wrote itself, say nothing.
		r.BreakerElsewhere(before, tenant(1), webhook, time.Now().Add(time.Hour))
		r.BreakerElsewhere(r.Mark(), tenant(1), webhook, b.read(webhook))
		sent := len(r.to("ill.test"))
		r.rest(time.Second)
		if got := len(r.to("ill.test")); got != sent+1 {
			t.Errorf("%d probes after a second, want one", got-sent)
		}
		// What another one says afterwards does.
		r.BreakerElsewhere(r.Mark(), tenant(1), webhook, time.Time{})
		r.receive("ill.test", answers(200))
		r.rest(10 * time.Millisecond)
		if r.Gauge().Open != 0 {
			t.Errorf("%d breakers are open", r.Gauge().Open)
		}
		// A webhook without a lane here is nobody's concern.
		r.BreakerElsewhere(r.Mark(), tenant(1), id.Webhook{77}, time.Now().Add(time.Hour))
		if n := r.Gauge().Lanes; n != 1 {
			t.Errorf("%d lanes", n)
		}
	})
}

func TestDiscardsOfOthers(t *testing.T) {
	run(t, func(o *dispatch.Options) { o.Slots = 4 }, func(t *testing.T, r *rig) {
		webhook, mine := r.webhook(1, "a.test"), r.webhook(1, "b.test")
		r.receive("a.test", after(10*time.Second, 200))
		r.publish(1, "a.test", 1, 10)
		r.Discard(tenant(1), mine, true)
		all := []store.LaneKey{{Tenant: tenant(1), Webhook: webhook}, {Tenant: tenant(1), Webhook: mine}}
		for range 3 {
			r.committer.Do(func(context.Context) {
				if got := r.Discards(all); !slices.Equal(got, all[:1]) {
					t.Errorf("others discard %v", got)
				}
			})
			synctest.Wait()
		}
		flying := len(r.to("a.test"))
		r.rest(time.Minute)
		if got := len(r.to("a.test")); got != flying {
			t.Errorf("%d were sent while the queue was being discarded", got-flying)
		}
		r.Discard(tenant(1), mine, false)
		r.committer.Do(func(context.Context) { r.Discards(nil) })
		r.rest(10 * time.Minute)
		if got := r.allTo("a.test"); !slices.Equal(got, events(1, 10)) {
			t.Errorf("sent: %v", got)
		}
	})
}

func TestStopReleasesWhatWaits(t *testing.T) {
	var mu sync.Mutex
	var released []string
	run(t, func(o *dispatch.Options) {
		o.Slots = 2
		o.Release = func(_ context.Context, _ id.Tenant, webhook id.Webhook, _ func(id.Delivery) bool) error {
			mu.Lock()
			defer mu.Unlock()
			released = append(released, webhook.String())
			return nil
		}
	}, func(t *testing.T, r *rig) {
		hanging := r.webhook(1, "hangs.test")
		r.webhook(1, "idle.test")
		r.receive("hangs.test", after(20*time.Second, 200))
		r.publish(1, "hangs.test", 1, 10)
		synctest.Wait()
		began := time.Now()
		go func() {
			time.Sleep(time.Second) // of the fake clock
			mu.Lock()
			defer mu.Unlock()
			if diff := cmp.Diff([]string{hanging.String()}, released); diff != "" {
				t.Errorf("a second after the stop (-want +got):\n%s", diff)
			}
		}()
		r.stop(context.Background())
		if took := time.Since(began); took < 15*time.Second {
			t.Errorf("it did not wait for what is in flight: %s", took)
		}
	})
}
