package replay_test

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plinqx/hypha/internal/contain"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/replay"
	"github.com/plinqx/hypha/internal/store"
)

// panicking is a world that panics some times, as the store and as the lanes.
type panicking struct {
	*world
	step, busy atomic.Int32
}

func (p *panicking) StepJob(ctx context.Context, q store.JobStepParams) (*store.Job, error) {
	if p.step.Add(-1) >= 0 {
		panic("whatever it is")
	}
	return p.world.StepJob(ctx, q)
}

func (p *panicking) Busy(tenant id.Tenant, webhook id.Webhook) bool {
	if p.busy.Add(-1) >= 0 {
		panic("whatever it is")
	}
	return p.world.Busy(tenant, webhook)
}

// A job that panics goes on from where it was.
func TestJobGoesOnAfterAPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var background, inStore atomic.Int32
		guard := contain.New(contain.Options{
			Logger: slog.New(slog.DiscardHandler), End: func() { t.Error("the process ends") },
			Counted: func(w contain.Where) {
				if w == contain.Store {
					inStore.Add(1)
				} else {
					background.Add(1)
				}
			},
		})
		p := &panicking{world: &world{perStep: 10, enabled: true, left: 10}}
		p.step.Store(2)
		p.busy.Store(2)
		r := replay.New(replay.Options{Store: p, Lanes: p, Committer: p, Webhooks: p, Now: time.Now, MaxAge: time.Hour, Logger: slog.New(slog.DiscardHandler), Guard: guard})
		defer r.Stop()
		if _, err := r.RetryAllFailed(t.Context(), tenant, webhook); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // of the fake clock
		synctest.Wait()
		if p.left != 0 || background.Load() != 2 || inStore.Load() != 2 {
			t.Errorf("%d left, counted %d and %d", p.left, background.Load(), inStore.Load())
		}
	})
}
