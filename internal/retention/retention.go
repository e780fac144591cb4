// Package retention keeps the history within its bounds: it deletes what is
// older than an age, and then the oldest of what is larger than a size, a little
// at a time, so that nobody waits for it. What is unfinished is never touched.
package retention

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/plinqx/hypha/internal/store"
)

// Store deletes history.
type Store interface {
	Prune(ctx context.Context, p store.PruneParams) (*store.PruneResult, error)
	Size(ctx context.Context) (int64, error)
}

// The defaults of Options.
const (
	DefaultMaxAge   = 30 * 24 * time.Hour
	DefaultMaxBytes = 10 << 30
)

// Options say what to keep. Store, Now and Logger are required.
type Options struct {
	Store    Store
	MaxAge   time.Duration // default 30 days
	MaxBytes int64         // default 10 GiB
	Now      func() time.Time
	Logger   *slog.Logger
}

// How it goes about it: every interval it looks, and deletes chunk by chunk
// with a rest between two, so that most of the store's time is for others.
const (
	interval = time.Minute
	chunk    = 1000
	rest     = 20 * time.Millisecond
	// minAge is what is kept however large the history is.
	minAge = time.Hour
)

// Retention works between Start and Stop.
type Retention struct {
	o      Options
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// New makes a Retention that has not started.
func New(o Options) *Retention {
	if o.MaxAge == 0 {
		o.MaxAge = DefaultMaxAge
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	r := &Retention{o: o}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// Start begins to look.
func (r *Retention) Start() {
	r.wg.Go(func() {
		for r.sleep(interval) {
			if err := r.Enforce(r.ctx); err != nil && r.ctx.Err() == nil {
				r.o.Logger.Warn("old history could not be deleted; trying again", "err", err)
			}
		}
	})
}

// Stop ends the looking between two chunks.
func (r *Retention) Stop() {
	r.cancel()
	r.wg.Wait()
}

// Enforce deletes what is over the bounds now.
func (r *Retention) Enforce(ctx context.Context) error {
	if err := r.prune(ctx, r.o.MaxAge); err != nil {
		return err
	}
	// The age that fits the size is not known: it is found by taking a tenth
	// off, as often as it needs.
	for age := r.o.MaxAge; age > minAge; age = max(age*9/10, minAge) {
		size, err := r.o.Store.Size(ctx)
		if err != nil || size <= r.o.MaxBytes {
			return err
		}
		if err := r.prune(ctx, age*9/10); err != nil {
			return err
		}
	}
	if size, err := r.o.Store.Size(ctx); err != nil || size <= r.o.MaxBytes {
		return err
	}
	r.o.Logger.Warn("the history is larger than it may be although nothing older than an hour is left", "max_bytes", r.o.MaxBytes)
	return nil
}

func (r *Retention) prune(ctx context.Context, age time.Duration) error {
	now := r.o.Now()
	total := store.PruneResult{More: true}
	for total.More {
		got, err := r.o.Store.Prune(ctx, store.PruneParams{Before: now.Add(-age), Now: now, Limit: chunk})
		if err != nil {
			return err
		}
		total.Events += got.Events
		total.Deliveries += got.Deliveries
		total.More = got.More
		if total.More && !r.sleep(rest) {
			return r.ctx.Err()
		}
	}
	if total.Events+total.Deliveries > 0 {
		r.o.Logger.Info("history deleted", "events", total.Events, "deliveries", total.Deliveries, "older_than", age)
	}
	return nil
}

func (r *Retention) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.ctx.Done():
		return false
	}
}
