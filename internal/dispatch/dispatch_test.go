package dispatch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/plinqx/hypha/internal/dispatch"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/lane"
	"github.com/plinqx/hypha/internal/send"
	"github.com/plinqx/hypha/internal/store"
)

func TestScheduleToTheSecond(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		r.webhook(1, "ill.test")
		r.receive("ill.test", after(3*time.Second, 500))
		r.publish(1, "ill.test", 1, 1)
		r.rest(3 * 24 * time.Hour)
		at := time.Duration(0)
		var want []time.Duration
		for _, wait := range []time.Duration{0, 5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour, 10 * time.Hour, 10 * time.Hour} {
			at += wait
			want = append(want, at)
			at += 3 * time.Second // a delay counts from the end of the attempt
		}
		if diff := cmp.Diff(want, r.times("ill.test")); diff != "" {
			t.Errorf("attempts (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(map[hook.Status]int{hook.StatusFailed: 1}, r.disk.counts()); diff != "" {
			t.Errorf("what became of it (-want +got):\n%s", diff)
		}
		for _, row := range r.disk.rows {
			for i, a := range row.attempts {
				if a.Number != i+1 || a.Trigger != hook.TriggerAuto {
					t.Errorf("attempt %d is number %d, %s", i+1, a.Number, a.Trigger)
				}
			}
		}
	})
}

func TestJitter(t *testing.T) {
	chances := []float64{0, 0.999999}
	run(t, func(o *dispatch.Options) {
		o.Chance = func() float64 { c := chances[0]; chances = append(chances[1:], 0.5); return c }
	}, func(t *testing.T, r *rig) {
		r.webhook(1, "ill.test")
		r.receive("ill.test", answers(500))
		r.publish(1, "ill.test", 1, 1)
		r.rest(10 * time.Minute)
		got := r.times("ill.test")
		if len(got) < 3 || got[1] != 4*time.Second || (got[2]-got[1]).Round(time.Second) != 6*time.Minute {
			t.Errorf("attempts at %v, want after 4 s and 6 min", got)
		}
	})
}

func TestOneThatHangsDelaysNobody(t *testing.T) {
	run(t, func(o *dispatch.Options) { o.Slots, o.Memory = 16, 1<<20 }, func(t *testing.T, r *rig) {
		r.webhook(1, "hangs.test")
		r.webhook(1, "sibling.test") // of the same tenant
		r.webhook(2, "other.test")
		r.receive("hangs.test", hangs)
		r.receive("sibling.test", after(time.Millisecond, 200))
		r.receive("other.test", after(time.Millisecond, 200))
		for i := range 300 {
			if err := r.tryPublish(1, "hangs.test", i, `"`+strings.Repeat("x", 4<<10)+`"`); err != nil {
				t.Fatal(err)
			}
		}
		if taken := r.Gauge().Memory; taken > 1<<20/8 {
			t.Errorf("what waits for it takes %d bytes, want a quarter of its tenant's half at most", taken)
		}
		r.publish(1, "sibling.test", 1, 300)
		r.publish(2, "other.test", 1, 300)
		r.rest(2 * time.Second)
		for _, host := range []string{"sibling.test", "other.test"} {
			if diff := cmp.Diff(events(1, 300), r.allTo(host)); diff != "" {
				t.Errorf("%s within two seconds (-want +got):\n%s", host, diff)
			}
		}
		r.stopAtOnce()
	})
}

func (r *rig) stopAtOnce() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	r.stop(ctx)
}

// A tenant with many webhooks that are slow leaves slots to the others.
func TestTenantsShareSlots(t *testing.T) {
	run(t, func(o *dispatch.Options) { o.Slots = 16 }, func(t *testing.T, r *rig) {
		for i := range 40 {
			host := fmt.Sprintf("slow%d.test", i)
			r.webhook(1, host)
			r.receive(host, hangs)
			r.publish(1, host, 1, 5)
		}
		r.webhook(2, "quick.test")
		synctest.Wait()
		if got := r.Gauge().InFlight; got > 15 {
			t.Fatalf("one tenant has %d of 16 slots", got)
		}
		r.publish(2, "quick.test", 1, 50)
		r.rest(0)
		if diff := cmp.Diff(events(1, 50), r.allTo("quick.test")); diff != "" {
			t.Errorf("at once (-want +got):\n%s", diff)
		}
		r.stopAtOnce()
	})
}

func TestSlotsAreTheMostInFlight(t *testing.T) {
	run(t, func(o *dispatch.Options) { o.Slots = 7 }, func(t *testing.T, r *rig) {
		for i := range 30 {
			host := fmt.Sprintf("w%d.test", i)
			r.webhook(byte(1+i%5), host)
			r.receive(host, after(time.Second, 200))
			r.publish(byte(1+i%5), host, 1, 10)
		}
		r.rest(10 * time.Minute)
		if n := r.disk.counts()[hook.StatusSuccess]; n != 300 || r.most > 7 {
			t.Errorf("%d of 300 delivered, %d at once", n, r.most)
		}
		if r.most < 6 {
			t.Errorf("only %d of 7 slots were used", r.most)
		}
	})
}

// What does not fit in memory goes by way of the disk, in order, and comes back.
func TestOverflow(t *testing.T) {
	for _, tc := range []struct {
		name   string
		memory int
		size   int
		events int
	}{
		{"more than a lane holds", dispatch.DefaultMemory, 1, 3000},
		{"more than the memory", 64 << 10, 4 << 10, 300},
		{"each larger than the memory", 8 << 10, 64 << 10, 40},
	} {
		t.Run(tc.name, func(t *testing.T) {
			run(t, func(o *dispatch.Options) { o.Memory, o.Slots = tc.memory, 1 }, func(t *testing.T, r *rig) {
				r.webhook(1, "slow.test")
				r.receive("slow.test", after(10*time.Millisecond, 200))
				data := `"` + strings.Repeat("x", tc.size) + `"`
				for i := 1; i <= tc.events; i++ {
					if err := r.tryPublish(1, "slow.test", i, data); err != nil {
						t.Fatal(err)
					}
					if g := r.Gauge(); g.Waiting > lane.Capacity {
						t.Fatalf("%d wait in memory", g.Waiting)
					}
				}
				r.rest(10 * time.Minute)
				if diff := cmp.Diff(events(1, tc.events), r.to("slow.test")); diff != "" {
					t.Errorf("sent (-want +got):\n%s", diff)
				}
				if r.memory > tc.memory+tc.memory/4+tc.size+1024 {
					t.Errorf("%d bytes taken of %d", r.memory, tc.memory)
				}
			})
		})
	}
}

// The memory is a bound for all lanes together, and when the server starts with
// a backlog of all of them.
func TestMemoryIsBoundedAtTheStart(t *testing.T) {
	const lanes, each, memory = 300, 5, 4 << 20
	body := []byte(strings.Repeat("x", 200<<10)) // on the real disk a copy for each
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		first := newRig(t, d, nil)
		for i := range lanes {
			webhook := first.webhook(byte(1+i%3), fmt.Sprintf("w%d.test", i))
			for n := range each {
				delivery := id.Delivery{byte(i), byte(i >> 8), byte(n)}
				d.put(&row{tenant: tenant(byte(1 + i%3)), webhook: webhook, Queued: store.Queued{
					ID: delivery, PublicEventID: fmt.Sprintf("e%d", n), Body: body, Trigger: hook.TriggerAuto, Due: time.Now(), ExpiresAt: time.Now().Add(time.Hour),
				}})
			}
		}
		first.stop(t.Context())
		r := newRig(t, d, func(o *dispatch.Options) { o.Memory, o.Slots = memory, 20 })
		for i := range lanes {
			r.receive(fmt.Sprintf("w%d.test", i), after(50*time.Millisecond, 200))
		}
		r.rest(time.Hour / 2)
		if n := d.counts()[hook.StatusSuccess]; n != lanes*each {
			t.Errorf("%d of %d delivered", n, lanes*each)
		}
		if r.memory > memory+memory/4+len(body) {
			t.Errorf("%d bytes taken of %d", r.memory, memory)
		}
		r.stop(t.Context())
	})
}

func TestHolds(t *testing.T) {
	for _, tc := range []struct {
		name    string
		hold    func(r *rig, w id.Webhook)
		release func(r *rig, w id.Webhook)
	}{
		{"disabled", func(r *rig, w id.Webhook) { r.enable(1, w, false) }, func(r *rig, w id.Webhook) { r.enable(1, w, true) }},
		{"paused, and the pause taken back",
			func(r *rig, w id.Webhook) { _ = r.Pause(r.t.Context(), tenant(1), w, time.Now().Add(24*time.Hour)) },
			func(r *rig, w id.Webhook) { _ = r.Pause(r.t.Context(), tenant(1), w, time.Time{}) }},
		{"paused, and the pause over",
			func(r *rig, w id.Webhook) { _ = r.Pause(r.t.Context(), tenant(1), w, time.Now().Add(time.Hour)) },
			func(*rig, id.Webhook) { time.Sleep(time.Hour) }}, // of the fake clock
		{"its queue being discarded",
			func(r *rig, w id.Webhook) { r.Discard(tenant(1), w, true) },
			func(r *rig, w id.Webhook) { r.Discard(tenant(1), w, false) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			run(t, nil, func(t *testing.T, r *rig) {
				w := r.webhook(1, "a.test")
				r.receive("a.test", after(time.Second, 200))
				r.publish(1, "a.test", 1, 20)
				synctest.Wait()
				tc.hold(r, w)
				before := r.to("a.test")
				if len(before) == 0 || len(before) == 20 {
					t.Fatalf("%d were sent before the hold", len(before))
				}
				r.rest(time.Minute)
				if diff := cmp.Diff(before, r.to("a.test")); diff != "" {
					t.Errorf("sent in spite of the hold (-want +got):\n%s", diff)
				}
				if g := r.Gauge(); g.Waiting != 0 {
					t.Errorf("%d wait in memory of a lane that can't send", g.Waiting)
				}
				tc.release(r, w)
				r.rest(time.Minute)
				if diff := cmp.Diff(events(1, 20), r.allTo("a.test")); diff != "" {
					t.Errorf("sent (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestGoneDisables(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		w := r.webhook(1, "gone.test")
		r.receive("gone.test", after(time.Second, 410))
		r.publish(1, "gone.test", 1, 10)
		r.rest(time.Hour)
		if n := len(r.to("gone.test")); n != 4 {
			t.Errorf("%d were sent, want the four that were under way", n)
		}
		got, err := r.catalog.Webhook(t.Context(), tenant(1), w)
		if err != nil || got.Enabled || got.DisabledReason != hook.DisabledGone {
			t.Errorf("%+v, %v", got, err)
		}
		r.receive("gone.test", answers(200))
		r.enable(1, w, true)
		r.rest(24 * time.Hour)
		if n := r.disk.counts()[hook.StatusSuccess]; n != 10 {
			t.Errorf("%d of 10 delivered once it was enabled", n)
		}
	})
}

func TestRetryAfterHoldsTheWholeWebhook(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		r.webhook(1, "busy.test")
		r.receive("busy.test", retryAfter(429, "90"))
		r.publish(1, "busy.test", 1, 1)
		r.rest(time.Second)
		r.receive("busy.test", answers(200))
		r.publish(1, "busy.test", 2, 3)
		r.rest(time.Hour)
		want := []time.Duration{0, 90 * time.Second, 90 * time.Second, 90 * time.Second, 90 * time.Second}
		if diff := cmp.Diff(want, r.times("busy.test")); diff != "" {
			t.Errorf("attempts (-want +got):\n%s", diff)
		}
	})
}

func TestBreaker(t *testing.T) {
	run(t, func(o *dispatch.Options) { o.Schedule, o.Slots = nil, 1 }, func(t *testing.T, r *rig) {
		r.webhook(1, "down.test")
		r.receive("down.test", refuses)
		r.publish(1, "down.test", 1, 1000)
		synctest.Wait()
		if n := len(r.to("down.test")); n != 10 {
			t.Fatalf("%d attempts before the breaker opens, want 10", n)
		}
		if r.Gauge().Open != 1 {
			t.Error("no breaker is open")
		}
		r.rest(4 * time.Minute)
		var probes []time.Duration
		for _, s := range []int{1, 3, 7, 15, 31, 63, 123, 183} {
			probes = append(probes, time.Duration(s)*time.Second)
		}
		if diff := cmp.Diff(probes, r.times("down.test")[10:]); diff != "" {
			t.Errorf("probes (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(events(1, 18), r.to("down.test")); diff != "" {
			t.Errorf("the oldest is the probe (-want +got):\n%s", diff)
		}
		r.receive("down.test", answers(200))
		r.rest(10 * time.Minute)
		if diff := cmp.Diff(events(1, 1000), r.to("down.test")); diff != "" {
			t.Errorf("sent in the end (-want +got):\n%s", diff)
		}
	})
}

func TestWhatIsNotTheReceiversHealthOpensNoBreaker(t *testing.T) {
	for name, answer := range map[string]func(context.Context, send.Request) *hook.Attempt{
		"404": answers(404),
		"an address that may not be called": func(context.Context, send.Request) *hook.Attempt {
			return failed(hook.FailureBlocked)
		},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(o *dispatch.Options) { o.Schedule = nil }, func(t *testing.T, r *rig) {
				r.webhook(1, "a.test")
				r.receive("a.test", answer)
				r.publish(1, "a.test", 1, 100)
				r.rest(time.Second)
				if n := r.disk.counts()[hook.StatusFailed]; n != 100 || r.Gauge().Open != 0 {
					t.Errorf("%d of 100 tried, %d breakers open", n, r.Gauge().Open)
				}
			})
		})
	}
}

// A retry comes when it is due, though a later delivery of the lane hangs.
func TestARetryDoesNotWaitForOneThatHangs(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		r.webhook(1, "a.test")
		r.receive("a.test", func(ctx context.Context, q send.Request) *hook.Attempt {
			switch id := q.Header.Get("webhook-id"); {
			case id == "e1" && len(r.to("a.test")) == 1:
				return answers(404)(ctx, q)
			case id == "e1":
				return answers(200)(ctx, q)
			default:
				return hangs(ctx, q)
			}
		})
		r.publish(1, "a.test", 1, 1)
		time.Sleep(4 * time.Second) // of the fake clock
		r.publish(1, "a.test", 2, 1)
		r.rest(2 * time.Second)
		if diff := cmp.Diff([]string{"e1", "e2", "e1"}, r.to("a.test")); diff != "" {
			t.Errorf("sent within six seconds (-want +got):\n%s", diff)
		}
		r.stopAtOnce()
	})
}

func TestStop(t *testing.T) {
	for _, tc := range []struct {
		name  string
		takes time.Duration
		want  hook.Status
	}{
		{"waits for what is in flight", 5 * time.Second, hook.StatusSuccess},
		{"breaks off what takes too long, and gives it back as it was", 20 * time.Second, hook.StatusPending},
	} {
		t.Run(tc.name, func(t *testing.T) {
			run(t, nil, func(t *testing.T, r *rig) {
				r.webhook(1, "a.test")
				r.receive("a.test", after(tc.takes, 200))
				r.publish(1, "a.test", 1, 1)
				synctest.Wait()
				begin := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				r.stop(ctx)
				if took := time.Since(begin); took != min(tc.takes, 10*time.Second) {
					t.Errorf("stopped after %v", took)
				}
				if diff := cmp.Diff(map[hook.Status]int{tc.want: 1}, r.disk.counts()); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
				for _, row := range r.disk.rows {
					if tc.want == hook.StatusPending && row.Attempts != 0 {
						t.Error("an attempt that we broke off ourselves counts")
					}
				}
			})
		})
	}
}

func TestStartAndStopManyTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // fails if a goroutine is left
		d := newDisk()
		first := newRig(t, d, nil)
		first.webhook(1, "a.test")
		first.stop(t.Context())
		for i := range 300 {
			r := newRig(t, d, nil)
			r.receive("a.test", after(time.Duration(i%3)*time.Second, 200))
			r.publish(1, "a.test", i, 3)
			if i%2 == 0 {
				synctest.Wait()
			}
			if i%4 == 0 {
				r.stopAtOnce()
			} else {
				r.stop(t.Context())
			}
		}
		r := newRig(t, d, nil)
		r.rest(time.Minute)
		r.stop(t.Context())
		if n := d.counts()[hook.StatusSuccess]; n != 900 {
			t.Errorf("%d of 900 delivered", n)
		}
	})
}

// What is on disk from before goes before what is new.
func TestRestartKeepsTheOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		first := newRig(t, d, nil)
		first.webhook(1, "a.test")
		first.receive("a.test", hangs) // what is broken off counts for nothing
		first.publish(1, "a.test", 1, 700)
		first.stopAtOnce()
		r := newRig(t, d, func(o *dispatch.Options) { o.Slots = 1 })
		r.receive("a.test", after(time.Millisecond, 200))
		synctest.Wait()
		r.publish(1, "a.test", 701, 300)
		r.rest(time.Minute)
		if diff := cmp.Diff(events(1, 1000), r.to("a.test")); diff != "" {
			t.Errorf("sent (-want +got):\n%s", diff)
		}
		r.stop(t.Context())
	})
}

// The store's absence delays and loses nothing.
func TestStoreThatIsAway(t *testing.T) {
	for _, tc := range []struct {
		name string
		set  func(d *disk, away bool)
	}{
		{"the configuration can't be read", func(d *disk, away bool) { d.blind = away }},
		{"nothing can be claimed", func(d *disk, away bool) { d.stuck = away }},
		{"nothing can be written", func(d *disk, away bool) { d.down = away }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDisk()
				first := newRig(t, d, nil)
				w := first.webhook(1, "a.test")
				first.enable(1, w, false)
				first.stop(t.Context())
				for i := range 20 {
					d.put(&row{tenant: tenant(1), webhook: w, Queued: store.Queued{
						ID: id.Delivery{byte(i)}, PublicEventID: fmt.Sprintf("e%d", i), Trigger: hook.TriggerAuto, Due: time.Now(), ExpiresAt: time.Now().Add(time.Hour),
					}})
				}
				enabled := d.webhooks[w]
				enabled.Enabled = true
				d.webhooks[w] = enabled
				tc.set(d, true)
				r := newRig(t, d, nil)
				r.rest(30 * time.Second)
				d.mu.Lock()
				tc.set(d, false)
				d.mu.Unlock()
				r.rest(5 * time.Second)
				if n := d.counts()[hook.StatusSuccess]; n != 20 {
					t.Errorf("%d of 20 delivered in the five seconds after", n)
				}
				r.stop(t.Context())
			})
		})
	}
}

// What was sent and is not on disk is no more than there are slots: a crash can
// double no more than that.
func TestUnrecordedOutcomesHoldTheRest(t *testing.T) {
	run(t, func(o *dispatch.Options) { o.Slots = 8 }, func(t *testing.T, r *rig) {
		for i := range 5 {
			r.webhook(byte(1+i), fmt.Sprintf("w%d.test", i))
		}
		// Published, and the store goes away before the first is recorded.
		for i := range 5 {
			r.receive(fmt.Sprintf("w%d.test", i), after(time.Second, 200))
			r.publish(byte(1+i), fmt.Sprintf("w%d.test", i), 1, 40)
		}
		r.disk.mu.Lock()
		r.disk.down = true
		r.disk.mu.Unlock()
		time.Sleep(5 * time.Minute) // of the fake clock
		synctest.Wait()
		if n := r.committer.Unrecorded(); n != 8 {
			t.Errorf("%d outcomes wait to be recorded, with 8 slots", n)
		}
		if started := len(r.log); started != 8 {
			t.Errorf("%d were sent and none recorded", started)
		}
		r.disk.mu.Lock()
		r.disk.down = false
		r.disk.mu.Unlock()
		r.rest(10 * time.Minute)
		if n := r.disk.counts()[hook.StatusSuccess]; n != 200 {
			t.Errorf("%d of 200 delivered", n)
		}
	})
}

func TestExpiry(t *testing.T) {
	for _, tc := range []struct {
		name string
		hold func(r *rig, w id.Webhook)
	}{
		{"of a webhook that is disabled", func(r *rig, w id.Webhook) { r.enable(1, w, false) }},
		{"of one that is paused", func(r *rig, w id.Webhook) {
			_ = r.Pause(r.t.Context(), tenant(1), w, time.Now().Add(30*24*time.Hour))
		}},
		{"of one that does not answer", func(*rig, id.Webhook) {}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			run(t, func(o *dispatch.Options) {
				o.Schedule, o.MaxAge = nil, 12*time.Hour
				for range 50 {
					o.Schedule = append(o.Schedule, 7*time.Hour)
				}
			}, func(t *testing.T, r *rig) {
				w := r.webhook(1, "a.test")
				r.receive("a.test", refuses)
				r.publish(1, "a.test", 1, 5)
				synctest.Wait()
				tc.hold(r, w)
				r.rest(12*time.Hour - time.Minute)
				if n := r.disk.counts()[hook.StatusFailed]; n != 0 {
					t.Errorf("%d expired too early", n)
				}
				r.rest(3 * time.Minute)
				for _, row := range r.disk.rows {
					if row.status != hook.StatusFailed || row.failure == nil || row.failure.Kind != hook.FailureExpired {
						t.Errorf("%s, %+v: want expired", row.status, row.failure)
					}
				}
			})
		})
	}
}

func TestDeletedWebhook(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		w := r.webhook(1, "a.test")
		r.receive("a.test", after(10*time.Second, 500))
		r.publish(1, "a.test", 1, 20)
		synctest.Wait()
		r.delete(1, w)
		r.rest(time.Minute)
		if n := len(r.to("a.test")); n != 4 {
			t.Errorf("%d were sent, want the four that were under way", n)
		}
		if diff := cmp.Diff(map[hook.Status]int{hook.StatusFailed: 4, hook.StatusPending: 16}, r.disk.counts()); diff != "" {
			t.Errorf("attempts under way are recorded, without a retry; the rest is left to the discard (-want +got):\n%s", diff)
		}
		// The job that discards the queue comes by.
		r.Discard(tenant(1), w, true)
		r.Discard(tenant(1), w, false)
		r.rest(time.Minute)
		if g := r.Gauge(); g.Lanes != 0 {
			t.Errorf("%d lanes are left", g.Lanes)
		}
	})
}

func TestLanesOfTheIdleAreForgotten(t *testing.T) {
	run(t, func(o *dispatch.Options) { o.MaxAge = time.Hour }, func(t *testing.T, r *rig) {
		for i := range 20 {
			host := fmt.Sprintf("w%d.test", i)
			r.webhook(1, host)
			r.publish(1, host, 1, 5)
		}
		r.rest(2 * time.Hour)
		if g := r.Gauge(); g.Lanes != 0 {
			t.Errorf("%d lanes are left", g.Lanes)
		}
		r.publish(1, "w3.test", 9, 1)
		r.rest(0)
		if got := r.to("w3.test"); got[len(got)-1] != "e9" {
			t.Errorf("after it was forgotten: %v", got)
		}
	})
}

// A delivery that is canceled leaves its lane with nothing to do.
func TestDrop(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		w := r.webhook(1, "a.test")
		r.receive("a.test", after(10*time.Second, 200))
		r.publish(1, "a.test", 1, 5)
		synctest.Wait()
		done := make(chan struct{})
		r.committer.Do(func(context.Context) {
			defer close(done)
			for _, row := range r.disk.rows {
				in := slices.Contains(r.to("a.test"), row.PublicEventID)
				if got := r.Drop(tenant(1), w, row.ID); got == in {
					t.Errorf("%s: dropped %t, being sent %t", row.PublicEventID, got, in)
				}
				if !in {
					row.status = hook.StatusFailed
				}
			}
		})
		<-done
		r.rest(time.Minute)
		if diff := cmp.Diff(events(1, 4), r.allTo("a.test")); diff != "" {
			t.Errorf("sent (-want +got):\n%s", diff)
		}
		if r.Busy(tenant(1), w) {
			t.Error("a lane that has nothing says that it is busy")
		}
	})
}

func TestDropOfAllThatALaneHas(t *testing.T) {
	run(t, func(o *dispatch.Options) { o.Slots = 1 }, func(t *testing.T, r *rig) {
		r.webhook(1, "hangs.test")
		w := r.webhook(2, "a.test")
		r.receive("hangs.test", hangs)
		r.publish(1, "hangs.test", 1, 1)
		synctest.Wait()
		r.publish(2, "a.test", 1, 1)
		r.committer.Do(func(context.Context) {
			for _, row := range r.disk.queue(w) {
				if !r.Drop(tenant(2), w, row.ID) {
					t.Error("what waits can be taken out")
				}
				row.status = hook.StatusFailed
			}
		})
		synctest.Wait()
		if r.Busy(tenant(2), w) {
			t.Error("a lane that has nothing says that it is busy: a replay would wait for it for ever")
		}
		r.rest(2 * time.Minute)
		if got := r.to("a.test"); len(got) != 0 {
			t.Errorf("sent %v", got)
		}
	})
}

// Bodies are shared by the lanes of an event, and counted once, until the last
// lets go.
func TestSharedBodiesAreCountedOnce(t *testing.T) {
	run(t, func(o *dispatch.Options) { o.Slots = 2 }, func(t *testing.T, r *rig) {
		const lanes, size = 10, 100 << 10
		for i := range lanes {
			host := fmt.Sprintf("w%d.test", i)
			r.webhook(1, host)
			r.change(1, lastWebhook(r), func(w *hook.Webhook) { w.Events = []string{"to.all"} })
			r.receive(host, after(time.Second, 200))
		}
		if err := r.tryPublish(1, "all", 1, `"`+strings.Repeat("x", size)+`"`); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for waiting := lanes - 1; waiting > 0; waiting-- {
			g := r.Gauge()
			if g.Waiting != waiting || g.Memory < size || g.Memory > size+lanes*1024 {
				t.Fatalf("%d wait and take %d bytes; want %d, and one body of %d", g.Waiting, g.Memory, waiting, size)
			}
			time.Sleep(time.Second) // of the fake clock
			synctest.Wait()
		}
		r.rest(time.Minute)
	})
}

func lastWebhook(r *rig) id.Webhook {
	var last id.Webhook
	for w := range r.disk.webhooks {
		if w.Compare(last) > 0 {
			last = w
		}
	}
	return last
}

// Chaos: receivers of all kinds, a store that comes and goes, webhooks that are
// switched off and on. In the end every delivery has an end, and none was in
// flight twice (the rig watches).
func TestNothingIsLostInChaos(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			run(t, func(o *dispatch.Options) { o.Slots, o.Memory, o.MaxAge = 10, 96<<10, 12*time.Hour }, func(t *testing.T, r *rig) {
				rnd := rand.New(rand.NewPCG(seed, 1))
				var hooks []id.Webhook
				var hosts []string
				for i := range 6 {
					hosts = append(hosts, fmt.Sprintf("w%d.test", i))
					hooks = append(hooks, r.webhook(byte(1+i%2), hosts[i]))
				}
				kinds := []func(context.Context, send.Request) *hook.Attempt{
					answers(200), after(time.Second, 200), answers(500), after(time.Second, 404), refuses, hangs, retryAfter(503, "20"), answers(410),
				}
				published := 0
				for range 400 {
					i := rnd.IntN(6)
					n := byte(1 + i%2)
					switch rnd.IntN(10) {
					case 0:
						r.receive(hosts[i], kinds[rnd.IntN(len(kinds))])
					case 1:
						r.enable(n, hooks[i], rnd.IntN(3) > 0)
					case 2:
						_ = r.Pause(t.Context(), tenant(n), hooks[i], time.Now().Add(time.Duration(rnd.IntN(60))*time.Second))
					case 3:
						r.disk.mu.Lock()
						r.disk.stuck, r.disk.down = rnd.IntN(4) == 0, rnd.IntN(4) == 0
						r.disk.mu.Unlock()
					case 4:
						on := rnd.IntN(3) == 0
						r.committer.Do(func(context.Context) { r.Discard(tenant(n), hooks[i], on) })
					case 5:
						time.Sleep(time.Duration(rnd.IntN(30_000)) * time.Millisecond) // of the fake clock
					default:
						for range rnd.IntN(30) {
							published++
							_ = r.tryPublish(n, hosts[i], published, `"`+strings.Repeat("x", rnd.IntN(8<<10))+`"`) // refused while the store is away
						}
					}
				}
				r.disk.mu.Lock()
				r.disk.stuck, r.disk.down = false, false
				r.disk.mu.Unlock()
				synctest.Wait()
				for i, w := range hooks {
					r.receive(hosts[i], answers(200))
					n := byte(1 + i%2)
					r.enable(n, w, true)
					_ = r.Pause(t.Context(), tenant(n), w, time.Time{})
					r.Discard(tenant(n), w, false)
				}
				r.rest(14 * time.Hour)
				counts := r.disk.counts()
				if counts[hook.StatusPending]+counts[hook.StatusRetrying] > 0 || len(r.disk.rows) < 100 {
					t.Errorf("%v", counts)
				}
				if g := r.Gauge(); g.Memory != 0 || g.Waiting != 0 || g.Lanes != 0 {
					t.Errorf("at the end: %+v", g)
				}
			})
		})
	}
}

// The operator's log has why a proxy or an address is at fault, once in ten
// seconds however many attempts it fails, with what customers are not told.
func TestFaultsOfTheNetworkAreLogged(t *testing.T) {
	for kind, text := range map[hook.FailureKind]string{
		hook.FailureProxy:   "the egress proxy made no connection",
		hook.FailureBlocked: "a webhook leads to an address that may not be called",
	} {
		t.Run(string(kind), func(t *testing.T) {
			var log bytes.Buffer
			logging := func(o *dispatch.Options) {
				o.Schedule, o.Logger = nil, slog.New(slog.NewTextHandler(&log, nil))
			}
			run(t, logging, func(t *testing.T, r *rig) {
				r.webhook(1, "a.test")
				r.receive("a.test", func(context.Context, send.Request) *hook.Attempt {
					a := failed(kind)
					a.Failure.Cause = errors.New("10.0.0.3 says no")
					return a
				})
				r.publish(1, "a.test", 1, 9)
				r.rest(time.Second)
				if n := strings.Count(log.String(), text); n != 1 || !strings.Contains(log.String(), "10.0.0.3 says no") || !strings.Contains(log.String(), "webhook=") {
					t.Errorf("nine failures are logged %d times:\n%s", n, &log)
				}
				r.rest(10 * time.Second)
				r.publish(1, "a.test", 10, 1)
				r.rest(time.Second)
				if n := strings.Count(log.String(), text); n != 2 {
					t.Errorf("ten seconds later there are %d lines:\n%s", n, &log)
				}
			})
		})
	}
}
