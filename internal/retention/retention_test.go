package retention_test

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plinqx/hypha/internal/retention"
	"github.com/plinqx/hypha/internal/store"
)

// history is a store that holds one event of size 1 for each age.
type history struct {
	ages  []time.Duration // oldest first
	now   func() time.Time
	calls int
}

func (h *history) Prune(_ context.Context, p store.PruneParams) (*store.PruneResult, error) {
	h.calls++
	deleted := 0
	for len(h.ages) > 0 && deleted < p.Limit && h.now().Add(-h.ages[0]).Before(p.Before) {
		h.ages = h.ages[1:]
		deleted++
	}
	more := len(h.ages) > 0 && h.now().Add(-h.ages[0]).Before(p.Before)
	return &store.PruneResult{Events: deleted, More: more}, nil
}

func (h *history) Size(context.Context) (int64, error) { return int64(len(h.ages)), nil }

func days(n int) []time.Duration {
	ages := make([]time.Duration, 0, n)
	for d := n; d > 0; d-- {
		ages = append(ages, time.Duration(d)*24*time.Hour-time.Minute)
	}
	return ages
}

func TestHistoryStaysWithinItsBounds(t *testing.T) {
	for _, tc := range []struct {
		name     string
		ages     []time.Duration
		maxAge   time.Duration
		maxBytes int64
		wantMin  int
		wantMax  int
	}{
		{"young and small is kept", days(10), 30 * 24 * time.Hour, 1000, 10, 10},
		{"what is too old goes", days(40), 30 * 24 * time.Hour, 1000, 30, 30},
		{"the oldest of what is too large goes", days(30), 30 * 24 * time.Hour, 10, 8, 10},
		{"an hour is kept whatever its size", []time.Duration{2 * time.Hour, time.Minute, time.Second}, 30 * 24 * time.Hour, 1, 2, 2},
		{"more than one chunk", days(2500), 24 * time.Hour, 1000, 1, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &history{ages: tc.ages, now: time.Now}
				start := time.Now()
				h.now = func() time.Time { return start }
				r := retention.New(retention.Options{Store: h, MaxAge: tc.maxAge, MaxBytes: tc.maxBytes, Now: h.now, Logger: slog.New(slog.DiscardHandler)})
				defer r.Stop()
				if err := r.Enforce(t.Context()); err != nil {
					t.Fatal(err)
				}
				if left := len(h.ages); left < tc.wantMin || left > tc.wantMax {
					t.Errorf("%d left, want %d to %d", left, tc.wantMin, tc.wantMax)
				}
			})
		})
	}
}

func TestItLooksEveryMinuteUntilStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &history{now: time.Now}
		r := retention.New(retention.Options{Store: h, Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
		r.Start()
		time.Sleep(3*time.Minute + time.Second) // the bubble's clock
		r.Stop()
		if h.calls != 3 {
			t.Errorf("looked %d times in 3 minutes", h.calls)
		}
	})
}
