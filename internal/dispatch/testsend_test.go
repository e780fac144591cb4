package dispatch_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plinqx/hypha/internal/dispatch"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/lane"
)

func TestTestSendIsHeldByNothing(t *testing.T) {
	for _, tc := range []struct {
		name string
		hold func(r *rig, w id.Webhook)
	}{
		{"nothing", func(*rig, id.Webhook) {}},
		{"disabled", func(r *rig, w id.Webhook) { r.enable(1, w, false) }},
		{"paused", func(r *rig, w id.Webhook) { _ = r.Pause(r.t.Context(), tenant(1), w, time.Now().Add(time.Hour)) }},
		{"a queue before it", func(r *rig, _ id.Webhook) {
			r.receive("a.test", hangs)
			r.publish(1, "a.test", 1, 600)
			synctest.Wait()
		}},
		{"an open breaker", func(r *rig, _ id.Webhook) {
			r.receive("a.test", refuses)
			r.publish(1, "a.test", 1, 20)
			synctest.Wait()
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			run(t, nil, func(t *testing.T, r *rig) {
				w := r.webhook(1, "a.test")
				tc.hold(r, w)
				r.receive("a.test", answers(418))
				a, err := r.test(t.Context(), 1, w)
				if err != nil || a.StatusCode != 418 || a.Number != 1 || a.Trigger != hook.TriggerTest {
					t.Fatalf("%+v, %v", a, err)
				}
				if at := time.Since(r.begin); at > time.Second {
					t.Errorf("after %v", at)
				}
				r.stopAtOnce()
				tests := 0
				for _, row := range r.disk.rows {
					if row.Trigger == hook.TriggerTest {
						tests++
						if row.status != hook.StatusFailed || len(row.attempts) != 1 {
							t.Errorf("%s after %d attempts; a test is tried once", row.status, len(row.attempts))
						}
					}
				}
				if tests != 1 {
					t.Errorf("%d tests are recorded", tests)
				}
			})
		})
	}
}

func TestTestSendWhoseCallerLeft(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		w := r.webhook(1, "a.test")
		r.disk.held = make(chan struct{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := r.test(ctx, 1, w); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		close(r.disk.held)
		r.rest(time.Minute)
		if len(r.to("a.test")) != 1 {
			t.Error("it is on disk, and was not sent")
		}
		for range 2 * lane.Capacity { // no place was lost
			r.publish(1, "a.test", 1, 1)
		}
		r.rest(time.Minute)
	})
}

// Test-sends go past all limits of lanes: they have one of their own, so that a
// tenant can't take the slots of all others with them.
func TestTestSendsAreFew(t *testing.T) {
	run(t, func(o *dispatch.Options) { o.Slots = 128 }, func(t *testing.T, r *rig) {
		w := r.webhook(1, "a.test")
		r.webhook(2, "b.test")
		r.receive("a.test", hangs)
		left, cancel := context.WithCancel(t.Context())
		cancel()
		refused := 0
		for range 200 { // nobody waits for an answer
			if _, err := r.test(left, 1, w); hook.CodeOf(err) == hook.CodeRateLimited {
				refused++
			}
			synctest.Wait()
		}
		if n := len(r.to("a.test")); n != 8 || refused != 200-8 {
			t.Errorf("%d tests were sent, %d refused; want 8 of 200 sent", n, refused)
		}
		r.publish(2, "b.test", 1, 5)
		synctest.Wait()
		if n := len(r.to("b.test")); n != 5 {
			t.Errorf("%d of the other tenant's 5 events arrived", n)
		}
		r.rest(5 * time.Minute)
		r.receive("a.test", answers(200))
		if _, err := r.test(t.Context(), 1, w); err != nil {
			t.Errorf("when all have ended: %v", err)
		}
	})
}

func TestTestSendAtTheEnd(t *testing.T) {
	for _, busy := range []bool{false, true} {
		run(t, nil, func(t *testing.T, r *rig) {
			w := r.webhook(1, "a.test")
			if busy {
				r.receive("a.test", after(10*time.Second, 200))
				r.publish(1, "a.test", 1, 1)
				synctest.Wait()
			}
			r.disk.held = make(chan struct{})
			answered := make(chan error, 1)
			go func() {
				_, err := r.test(context.Background(), 1, w)
				answered <- err
			}()
			synctest.Wait()
			stopped := make(chan struct{})
			go func() { r.Stop(context.Background()); close(stopped) }()
			synctest.Wait()
			close(r.disk.held)
			if err := <-answered; hook.CodeOf(err) != hook.CodeUnavailable {
				t.Errorf("answered %v", err)
			}
			<-stopped
			for _, row := range r.disk.rows {
				if row.Trigger == hook.TriggerTest && (row.status != hook.StatusPending || row.Attempts != 0) {
					t.Errorf("the test is %s after %d attempts", row.status, row.Attempts)
				}
			}
		})
	}
}
