// Package retention keeps the history within its bounds: it deletes what is
// older than an age, and then the oldest of what is larger than a size. What is
// unfinished is never touched. The audit log has an age of its own, and no size.
//
// It promises to leave the store to others: a deletion takes about 10 ms, and
// while others write, at most a tenth of the time goes into deleting. Only when
// that is not enough to keep the size near its bound it takes more, up to half.
package retention

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/plinqx/hypha/internal/contain"
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
	DefaultAuditAge = 400 * 24 * time.Hour
)

// Options say what to keep. Store, Now and Logger are required.
type Options struct {
	Store    Store
	MaxAge   time.Duration // default 30 days
	MaxBytes int64         // default 10 GiB
	// AuditAge is how old the audit log may grow, however large it is; default 400
	// days.
	AuditAge time.Duration
	Now      func() time.Time
	Logger   *slog.Logger
	// Guard contains panics. Default: they end the process by themselves.
	Guard *contain.Guard
	// Turn runs f when nobody else writes to the store, and waits for it; else its
	// error says why f was not run, or not to its end. What a chunk takes is told
	// apart from the wait for it by that. Default: f is run at once.
	Turn func(ctx context.Context, f func(context.Context)) error
	// Idle reports whether nobody else is using the store. Default: somebody is.
	Idle func() bool
}

// How it goes about it: every interval it looks, and deletes chunk by chunk.
// Whoever writes meanwhile waits for the chunk, so its size follows the time
// that chunks take; and after each it rests as many times as long as that took.
const (
	interval = time.Minute
	// The rows of each kind that a chunk deletes: at first, and the bounds.
	firstChunk = 100
	minChunk   = 20
	maxChunk   = 1000
	// target is how long a chunk may take.
	target = 10 * time.Millisecond
	// The rest after a chunk, in times of what that took: while others write, when
	// the size is a tenth over its bound, and when it is a quarter over, or nobody
	// writes.
	restBusy = 9
	restOver = 3
	restIdle = 1
	maxRest  = 30 * time.Second
	// sizeEach is after how many chunks the size is looked at again.
	sizeEach = 64
	// minAge is what is kept however large the history is.
	minAge = time.Hour
)

// Retention works between Start and Stop.
type Retention struct {
	o      Options
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	// chunk is how many rows are deleted at a time. Enforce has it for itself.
	chunk int
}

// New makes a Retention that has not started.
func New(o Options) *Retention {
	if o.MaxAge == 0 {
		o.MaxAge = DefaultMaxAge
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.AuditAge == 0 {
		o.AuditAge = DefaultAuditAge
	}
	if o.Turn == nil {
		o.Turn = func(ctx context.Context, f func(context.Context)) error { f(ctx); return nil }
	}
	if o.Idle == nil {
		o.Idle = func() bool { return false }
	}
	r := &Retention{o: o, chunk: firstChunk}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// Start begins to look.
func (r *Retention) Start() {
	r.wg.Go(func() {
		for r.sleep(interval) {
			err := r.o.Guard.Try(contain.Background, "the deleting of old history", func() error { return r.Enforce(r.ctx) })
			if err != nil && r.ctx.Err() == nil {
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

// Enforce deletes what is over the bounds now. It must not be called twice at a
// time.
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
	var size int64
	for chunks := 0; total.More; chunks++ {
		if chunks%sizeEach == 0 {
			var err error
			if size, err = r.o.Store.Size(ctx); err != nil {
				return err
			}
		}
		got, took, err := r.deleteChunk(ctx, store.PruneParams{Before: now.Add(-age), AuditBefore: now.Add(-r.o.AuditAge), Now: now, Limit: r.chunk})
		if err != nil {
			return err
		}
		total.Events += got.Events
		total.Deliveries += got.Deliveries
		total.AuditEntries += got.AuditEntries
		total.More = got.More
		if total.More && !r.sleep(r.pace(took, size)) {
			return r.ctx.Err()
		}
	}
	if total.Events+total.Deliveries > 0 {
		r.o.Logger.Info("history deleted", "events", total.Events, "deliveries", total.Deliveries, "older_than", age)
	}
	if total.AuditEntries > 0 {
		r.o.Logger.Info("audit log shortened", "entries", total.AuditEntries, "older_than", r.o.AuditAge)
	}
	return nil
}

// deleteChunk deletes a chunk, and says how long the store was taken for it.
func (r *Retention) deleteChunk(ctx context.Context, p store.PruneParams) (*store.PruneResult, time.Duration, error) {
	type result struct {
		*store.PruneResult
		took time.Duration
		err  error
	}
	done := make(chan result, 1) // f may come to its end when nobody waits any more
	err := r.o.Turn(ctx, func(ctx context.Context) {
		began := time.Now()
		var got *store.PruneResult
		err := r.o.Guard.Try(contain.Store, "the deleting of old history", func() (err error) {
			got, err = r.o.Store.Prune(ctx, p)
			return err
		})
		done <- result{got, time.Since(began), err}
	})
	if err != nil {
		return nil, 0, err
	}
	got := <-done
	return got.PruneResult, got.took, got.err
}

// pace says how long to rest after a chunk that took so long, when the history
// is so large, and sets the number of rows of the next.
func (r *Retention) pace(took time.Duration, size int64) time.Duration {
	switch {
	case took > target:
		r.chunk = max(r.chunk/2, minChunk)
	case took < target/2:
		r.chunk = min(r.chunk*3/2, maxChunk)
	}
	switch over := size - r.o.MaxBytes; {
	case over > r.o.MaxBytes/4 || r.o.Idle():
		return min(restIdle*took, maxRest)
	case over > r.o.MaxBytes/10:
		return min(restOver*took, maxRest)
	default:
		return min(restBusy*took, maxRest)
	}
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
