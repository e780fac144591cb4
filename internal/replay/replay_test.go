package replay_test

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/replay"
	"github.com/plinqx/hypha/internal/store"
)

var (
	tenant   = id.Tenant{1}
	webhook  = id.Webhook{1}
	delivery = id.Delivery{1}
)

// world stands for store, lanes, committer and webhooks.
type world struct {
	mu       sync.Mutex
	job      *store.Job
	left     int64 // of the job
	held     int64 // of those, being sent
	perStep  int64
	steps    int
	failures int // of the next steps
	busy     bool
	sending  bool // the delivery
	lines    []string
	delivery hook.Delivery
	enabled  bool
	deleted  bool
}

func run(t *testing.T, do func(t *testing.T, w *world, r *replay.Replays)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{perStep: 10, enabled: true, delivery: hook.Delivery{ID: delivery, Tenant: tenant, Webhook: webhook, Status: hook.StatusRetrying}}
		r := newReplays(w)
		defer r.Stop()
		do(t, w, r)
	})
}

func newReplays(w *world) *replay.Replays {
	return replay.New(replay.Options{Store: w, Lanes: w, Committer: w, Webhooks: w, Now: time.Now, MaxAge: time.Hour, Logger: slog.New(slog.DiscardHandler)})
}

func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *world) StartJob(_ context.Context, p store.JobParams) (*store.Job, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.job != nil && !w.job.Done {
		again := *w.job
		again.Existing = true
		return &again, nil
	}
	w.job = &store.Job{ID: p.ID, Tenant: p.Tenant, Webhook: p.Webhook, Kind: p.Kind, Total: w.left, Done: w.left == 0}
	j := *w.job
	return &j, nil
}

func (w *world) StepJob(_ context.Context, p store.JobStepParams) (*store.Job, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.steps++
	if w.deleted {
		return nil, hook.NotFound("Job")
	}
	if w.failures > 0 {
		w.failures--
		return nil, hook.Unavailable(time.Second, nil, "away")
	}
	n := min(w.left-w.held, w.perStep)
	w.left -= n
	w.job.Moved += n
	w.job.Done = w.left == 0
	if w.job.Kind == store.JobRetryFailed {
		w.busy = n > 0
	}
	j := *w.job
	return &j, nil
}

func (w *world) RunningJobs(context.Context) ([]store.Job, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.job == nil || w.job.Done {
		return nil, nil
	}
	return []store.Job{*w.job}, nil
}

func (w *world) Job(context.Context, id.Tenant, id.Replay) (*store.Job, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	j := *w.job
	return &j, nil
}

func (w *world) RetryDelivery(_ context.Context, p store.RetryParams) (*hook.Delivery, error) {
	w.lines = append(w.lines, "retry")
	d := w.delivery
	d.Due = p.Now
	return &d, nil
}

func (w *world) CancelDelivery(context.Context, id.Tenant, id.Delivery, time.Time) (*hook.Delivery, error) {
	w.lines = append(w.lines, "cancel")
	d := w.delivery
	d.Status = hook.StatusFailed
	return &d, nil
}

func (w *world) Delivery(context.Context, id.Tenant, id.Delivery) (*hook.Delivery, error) {
	d := w.delivery
	return &d, nil
}

func (w *world) Drop(id.Tenant, id.Webhook, id.Delivery) bool {
	w.lines = append(w.lines, "drop")
	return !w.sending
}

func (w *world) Discard(_ id.Tenant, _ id.Webhook, on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines = append(w.lines, map[bool]string{true: "discard", false: "discarded"}[on])
}

func (w *world) Held(id.Tenant, id.Webhook) func(id.Delivery) bool {
	return func(id.Delivery) bool { return false }
}

func (w *world) Wake(id.Tenant, id.Webhook) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines = append(w.lines, "wake")
}

func (w *world) Busy(id.Tenant, id.Webhook) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.busy
}

func (w *world) Do(f func(context.Context)) { go f(context.Background()) }

func (w *world) Webhook(context.Context, id.Tenant, id.Webhook) (*hook.Webhook, error) {
	if w.deleted {
		return nil, hook.NotFound("Webhook")
	}
	return &hook.Webhook{ID: webhook, Tenant: tenant, Enabled: w.enabled, DisabledReason: hook.DisabledManual}, nil
}

func TestRetryAllGoesNoFasterThanItsWebhook(t *testing.T) {
	run(t, func(t *testing.T, w *world, r *replay.Replays) {
		w.left = 35
		job, err := r.RetryAllFailed(t.Context(), tenant, webhook)
		if err != nil || job.Total != 35 || job.Existing {
			t.Fatalf("%+v, %v", job, err)
		}
		for chunk := range 4 {
			time.Sleep(time.Minute) // of the fake clock
			synctest.Wait()
			if w.steps != chunk+1 {
				t.Fatalf("%d chunks while the webhook has taken %d", w.steps, chunk)
			}
			again, err := r.RetryAllFailed(t.Context(), tenant, webhook)
			if chunk < 3 && (err != nil || !again.Existing || again.ID != job.ID) {
				t.Fatalf("a second call: %+v, %v", again, err)
			}
			w.set(func() { w.busy = false })
		}
		if w.left != 0 {
			t.Errorf("%d are left", w.left)
		}
	})
}

func TestDiscardHoldsTheLane(t *testing.T) {
	run(t, func(t *testing.T, w *world, r *replay.Replays) {
		w.left, w.held = 35, 2
		n, err := r.DiscardQueue(t.Context(), tenant, webhook)
		if err != nil || n != 35 {
			t.Fatalf("%d, %v", n, err)
		}
		time.Sleep(time.Minute) // of the fake clock: two attempts hang
		synctest.Wait()
		if w.left != 2 {
			t.Errorf("%d are left, want the two that are being sent", w.left)
		}
		if w.steps < 20 || w.steps > 100 {
			t.Errorf("%d steps in the minute in which nothing could be moved", w.steps)
		}
		if diff := cmp.Diff([]string{"discard"}, w.lines); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		w.set(func() { w.held = 0 })
		time.Sleep(2 * time.Second) // of the fake clock
		synctest.Wait()
		if diff := cmp.Diff([]string{"discard", "discarded"}, w.lines); diff != "" || w.left != 0 {
			t.Errorf("%d left (-want +got):\n%s", w.left, diff)
		}
	})
}

func TestJobsAreTakenUpAgain(t *testing.T) {
	run(t, func(t *testing.T, w *world, r *replay.Replays) {
		w.left, w.failures, w.busy = 25, 3, true
		if _, err := r.RetryAllFailed(t.Context(), tenant, webhook); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		r.Stop() // amid the job
		if w.left != 25 {
			t.Fatalf("%d are left of 25", w.left)
		}
		next := newReplays(w)
		if err := next.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			w.set(func() { w.busy = false })
			time.Sleep(5 * time.Second) // of the fake clock: the store is away at first
		}
		next.Stop()
		if w.left != 0 {
			t.Errorf("%d are left", w.left)
		}
	})
}

func TestJobsOfOtherProcesses(t *testing.T) {
	run(t, func(t *testing.T, w *world, r *replay.Replays) {
		w.left = 35
		w.job = &store.Job{ID: id.Replay{1}, Tenant: tenant, Webhook: webhook, Kind: store.JobDiscard, Total: 35, Elsewhere: true}
		// It is answered to whoever asks, and worked off by the other one.
		if n, err := r.DiscardQueue(t.Context(), tenant, webhook); err != nil || n != 35 {
			t.Fatalf("%d, %v", n, err)
		}
		r.Resume(tenant, w.job.ID)
		time.Sleep(time.Minute) // of the fake clock
		synctest.Wait()
		if w.steps != 0 || len(w.lines) != 0 {
			t.Fatalf("%d steps, %v", w.steps, w.lines)
		}
		// The other one has died.
		w.set(func() { w.job.Elsewhere = false })
		for range 3 {
			if err := r.TakeUp(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Minute) // of the fake clock
		synctest.Wait()
		if diff := cmp.Diff([]string{"discard", "discarded"}, w.lines); diff != "" || w.left != 0 {
			t.Errorf("%d left (-want +got):\n%s", w.left, diff)
		}
		r.Stop()
		w.set(func() { w.job.Done, w.left = false, 1 })
		if err := r.TakeUp(t.Context()); err != nil || w.left != 1 {
			t.Errorf("after the end: %d left, %v", w.left, err)
		}
	})
}

func TestJobEndsWithItsWebhook(t *testing.T) {
	run(t, func(t *testing.T, w *world, r *replay.Replays) {
		w.left, w.busy = 25, true
		if _, err := r.RetryAllFailed(t.Context(), tenant, webhook); err != nil {
			t.Fatal(err)
		}
		w.set(func() { w.deleted, w.busy = true, false })
		time.Sleep(time.Minute) // of the fake clock
		synctest.Wait()
		if w.steps != 1 {
			t.Errorf("%d steps", w.steps)
		}
	})
}

func TestOneDelivery(t *testing.T) {
	retry := func(r *replay.Replays) (*hook.Delivery, error) {
		return r.Retry(context.Background(), tenant, delivery)
	}
	cancel := func(r *replay.Replays) (*hook.Delivery, error) {
		return r.Cancel(context.Background(), tenant, delivery)
	}
	for _, tc := range []struct {
		name  string
		set   func(w *world)
		do    func(*replay.Replays) (*hook.Delivery, error)
		want  hook.Code
		lines []string
	}{
		{"retry", func(*world) {}, retry, "", []string{"drop", "retry", "wake"}},
		{"retry of one that is done", func(w *world) { w.delivery.Status = hook.StatusSuccess }, retry, "", []string{"drop", "retry", "wake"}},
		{"retry of one that is being sent changes nothing", func(w *world) { w.sending = true }, retry, "", []string{"drop"}},
		{"retry while the webhook is disabled", func(w *world) { w.enabled = false }, retry, hook.CodeConflict, nil},
		{"retry after the webhook was deleted", func(w *world) { w.deleted = true }, retry, hook.CodeConflict, nil},
		{"cancel", func(*world) {}, cancel, "", []string{"drop", "cancel"}},
		{"cancel of one that is done", func(w *world) { w.delivery.Status = hook.StatusFailed }, cancel, hook.CodeConflict, nil},
		{"cancel of one that is being sent", func(w *world) { w.sending = true }, cancel, hook.CodeConflict, []string{"drop"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			run(t, func(t *testing.T, w *world, r *replay.Replays) {
				tc.set(w)
				d, err := tc.do(r)
				if tc.want == "" && (err != nil || d == nil) || tc.want != "" && (err == nil || hook.CodeOf(err) != tc.want) {
					t.Fatalf("%+v, %v; want %q", d, err, tc.want)
				}
				if diff := cmp.Diff(tc.lines, w.lines); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			})
		})
	}
}
