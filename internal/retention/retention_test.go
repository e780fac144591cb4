package retention_test

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plinqx/hypha/internal/contain"
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

// auditLog is a store that notes what it is to forget.
type auditLog struct {
	history
	asked []store.PruneParams
}

func (l *auditLog) Prune(_ context.Context, p store.PruneParams) (*store.PruneResult, error) {
	l.asked = append(l.asked, p)
	return &store.PruneResult{AuditEntries: 1, More: len(l.asked) == 1}, nil
}

// However large the history is, the audit log goes by its age alone.
func TestAuditLogHasAnAgeOfItsOwn(t *testing.T) {
	for given, want := range map[time.Duration]time.Duration{0: 400 * 24 * time.Hour, 48 * time.Hour: 48 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			l := &auditLog{history: history{ages: days(30)}}
			start := time.Now()
			r := retention.New(retention.Options{
				Store: l, MaxBytes: 1, AuditAge: given, Now: func() time.Time { return start }, Logger: slog.New(slog.DiscardHandler),
			})
			defer r.Stop()
			if err := r.Enforce(t.Context()); err != nil {
				t.Fatal(err)
			}
			if len(l.asked) < 3 {
				t.Errorf("asked %d times: the history is too large", len(l.asked))
			}
			for _, p := range l.asked {
				if got := start.Sub(p.AuditBefore); got != want {
					t.Errorf("entries go that are older than %s, want %s", got, want)
				}
			}
		})
	}
}

// slow is a store that takes a while for each row, and notes what it was asked.
type slow struct {
	left    int
	each    time.Duration
	busy    time.Duration // deleting, in all
	longest time.Duration // of a deletion, but for the first ones
	size    int64         // that it says it has
	calls   int
}

func (s *slow) Prune(_ context.Context, p store.PruneParams) (*store.PruneResult, error) {
	n := min(s.left, p.Limit)
	took := time.Duration(n) * s.each
	time.Sleep(took) // of the bubble's clock
	s.left -= n
	s.busy += took
	if s.calls++; s.calls > 4 {
		s.longest = max(s.longest, took)
	}
	return &store.PruneResult{Events: n, More: s.left > 0}, nil
}

func (s *slow) Size(context.Context) (int64, error) { return s.size, nil }

func TestItLeavesTheStoreToOthers(t *testing.T) {
	for _, tc := range []struct {
		name  string
		each  time.Duration
		idle  bool
		wait  time.Duration
		size  int64   // of 1000
		share float64 // of the time that goes into deleting, at most
		rows  int     // that are deleted in a minute, at least
	}{
		{"a fast store", 5 * time.Microsecond, false, 0, 500, 0.101, 1_000_000},
		{"a usual store", 50 * time.Microsecond, false, 0, 500, 0.101, 110_000},
		{"a slow store", 400 * time.Microsecond, false, 0, 500, 0.101, 14_000},
		{"a store that others write to", 50 * time.Microsecond, false, 100 * time.Millisecond, 1000, 0.101, 35_000},
		{"faster when it is over its size", 50 * time.Microsecond, false, 0, 1150, 0.251, 270_000},
		{"fast when it is far over its size", 50 * time.Microsecond, false, 0, 1300, 0.501, 550_000},
		{"fast when nobody uses it", 50 * time.Microsecond, true, 0, 500, 0.501, 550_000},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &slow{left: 1 << 30, each: tc.each, size: tc.size}
				r := retention.New(retention.Options{
					Store: s, MaxBytes: 1000, Now: time.Now, Logger: slog.New(slog.DiscardHandler), Idle: func() bool { return tc.idle },
					// That it must wait for its turn is no reason to delete less.
					Turn: func(ctx context.Context, f func(context.Context)) error {
						time.Sleep(tc.wait) // of the bubble's clock
						f(ctx)
						return nil
					},
				})
				ctx, cancel := context.WithCancel(t.Context())
				go func() {
					defer cancel()
					if err := r.Enforce(ctx); err == nil {
						t.Error("it deleted everything")
					}
				}()
				time.Sleep(time.Minute) // of the bubble's clock
				r.Stop()
				<-ctx.Done()
				deleted := 1<<30 - s.left
				if share := float64(s.busy) / float64(time.Minute); share > tc.share {
					t.Errorf("it took the store for %.3f of the time, want %.3f at most", share, tc.share)
				}
				if s.longest > 15*time.Millisecond {
					t.Errorf("a deletion took %v", s.longest)
				}
				if deleted < tc.rows {
					t.Errorf("%d rows in a minute, want %d", deleted, tc.rows)
				}
			})
		})
	}
}

// A turn that never comes does not keep it from stopping.
func TestItStopsWhileItWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &history{ages: days(40), now: time.Now}
		r := retention.New(retention.Options{Store: h, Now: time.Now, Logger: slog.New(slog.DiscardHandler),
			Turn: func(ctx context.Context, _ func(context.Context)) error {
				<-ctx.Done()
				return ctx.Err()
			}})
		r.Start()
		time.Sleep(2 * time.Minute) // of the bubble's clock
		r.Stop()
		if h.calls != 0 {
			t.Errorf("it deleted %d times out of turn", h.calls)
		}
	})
}

// panicking is a history whose first calls panic.
type panicking struct {
	history
	size, prune int
}

func (p *panicking) Size(ctx context.Context) (int64, error) {
	if p.size > 0 {
		p.size--
		panic("whatever it is")
	}
	return p.history.Size(ctx)
}

func (p *panicking) Prune(ctx context.Context, q store.PruneParams) (*store.PruneResult, error) {
	if p.prune > 0 {
		p.prune--
		panic("whatever it is")
	}
	return p.history.Prune(ctx, q)
}

// After a panic it is tried again when it would have been anyway.
func TestItGoesOnAfterAPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		counted := map[contain.Where]int{}
		guard := contain.New(contain.Options{
			Logger: slog.New(slog.DiscardHandler), Counted: func(w contain.Where) { counted[w]++ }, End: func() { t.Error("the process ends") },
		})
		start := time.Now()
		p := &panicking{history: history{ages: days(40), now: func() time.Time { return start }}, size: 1, prune: 1}
		r := retention.New(retention.Options{Store: p, MaxAge: 30 * 24 * time.Hour, MaxBytes: 1000, Now: p.now, Logger: slog.New(slog.DiscardHandler), Guard: guard})
		r.Start()
		time.Sleep(3*time.Minute + time.Second) // the bubble's clock
		r.Stop()
		if len(p.ages) != 30 || counted[contain.Background] != 1 || counted[contain.Store] != 1 {
			t.Errorf("%d left, counted %v", len(p.ages), counted)
		}
	})
}
