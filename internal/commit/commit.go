// Package commit is the one committer: it gathers the accepts and outcomes that
// wait into batches and writes each batch in one synced transaction. While one
// is being written the next one gathers, so batches grow by themselves under
// load and a lone event waits for nobody.
//
// It promises:
//
//   - An accept's callers hear of it after the sync, in the order of commits.
//   - What is settled (handed over to the lanes, recorded) is settled by the
//     committer's own goroutine before it touches the store again. So a function
//     given to Do sees a store and lanes that agree.
//   - An outcome is never dropped while the store can't be written: it waits and
//     is tried again. It needs no sync of its own, since losing it costs one
//     duplicate at most: it rides with the next accept, or goes after
//     OutcomeDelay.
//   - What waits is bounded. An accept over the bound is refused at once.
//
// It must not know what a lane is, nor how a store works.
package commit

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// Applier writes batches: the part of the store that is needed here.
type Applier interface {
	Apply(ctx context.Context, b *store.Batch) error
}

// Options say how to gather. Zero values stand for the defaults.
type Options struct {
	Store  Applier // required
	Logger *slog.Logger
	// MaxBatchRows bounds a transaction: events, deliveries and outcomes
	// together; default 20,000. MaxBatchBytes bounds its bodies; default 16 MiB.
	MaxBatchRows, MaxBatchBytes int
	// MaxWaitingRows and MaxWaitingBytes bound the accepts that wait; default
	// 40,000 and 64 MiB. One tenant may take half of them.
	MaxWaitingRows, MaxWaitingBytes int
	// OutcomeDelay is the longest that an outcome waits for an accept to ride
	// with; default 100 ms. FlushOutcomes is how many don't wait; default 256.
	OutcomeDelay  time.Duration
	FlushOutcomes int
	// Recorded is told of outcomes once they are on disk, or can't ever be.
	Recorded func([]*store.Outcome)
	// Committed is told of every batch, for the metrics.
	Committed func(accepts, outcomes int, took time.Duration, err error)
}

// Committer is safe for concurrent use. It works between Start and Close.
type Committer struct {
	o    Options
	done chan struct{}
	wake chan struct{} // holds one: something changed

	mu        sync.Mutex
	closed    bool
	abandoned bool // closed, and out of time
	accepts   []*accept
	outcomes  []*store.Outcome
	oldest    time.Time // of outcomes
	funcs     []func(context.Context)
	rows      int // of accepts
	bytes     int
	tenants   map[id.Tenant]load // of accepts, by tenant
	// writing counts the outcomes of the batch that is being written.
	writing int
	// holdOff is until when outcomes alone are not tried again, after a failure.
	holdOff time.Time
}

// load is how much waits.
type load struct{ rows, bytes int }

type accept struct {
	*store.Accept
	rows, bytes int
	settle      func(committed bool)
	done        chan error
}

// New makes a committer that has not started.
func New(o Options) *Committer {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	orDefault(&o.MaxBatchRows, 20_000)
	orDefault(&o.MaxBatchBytes, 16<<20)
	orDefault(&o.MaxWaitingRows, 40_000)
	orDefault(&o.MaxWaitingBytes, 64<<20)
	orDefault(&o.OutcomeDelay, 100*time.Millisecond)
	orDefault(&o.FlushOutcomes, 256)
	if o.Recorded == nil {
		o.Recorded = func([]*store.Outcome) {}
	}
	if o.Committed == nil {
		o.Committed = func(int, int, time.Duration, error) {}
	}
	return &Committer{o: o, done: make(chan struct{}), wake: make(chan struct{}, 1), tenants: make(map[id.Tenant]load)}
}

func orDefault[T comparable](v *T, fallback T) {
	var zero T
	if *v == zero {
		*v = fallback
	}
}

// Start begins to commit. It returns at once; Close ends it.
func (c *Committer) Start() { go c.run() }

// Close refuses further accepts, writes all that waits, and ends the committer.
// When ctx ends first, what could not be written by then is left: accepts are
// refused, and outcomes cost a duplicate each. A write that the store has begun
// is waited for all the same. It must follow a Start.
func (c *Committer) Close(ctx context.Context) error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.kick()
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
	}
	c.mu.Lock()
	c.abandoned = true
	c.mu.Unlock()
	c.kick()
	<-c.done
	return ctx.Err()
}

// Accept writes an accept and returns when it is on disk: nil, the accept's own
// error, or why nothing could be written. Settle is called exactly once, by the
// committer and before Accept returns, with whether it was written; unless the
// accept was refused at the door, when Accept calls it itself. When ctx ends
// first Accept returns its error, and the accept may be written all the same.
func (c *Committer) Accept(ctx context.Context, a *store.Accept, settle func(committed bool)) error {
	it := &accept{Accept: a, settle: settle, done: make(chan error, 1)}
	for i := range a.Events {
		it.rows += 1 + len(a.Events[i].Deliveries)
		it.bytes += len(a.Events[i].Body)
	}
	if err := c.enqueue(it); err != nil {
		settle(false)
		return err
	}
	select {
	case err := <-it.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *Committer) enqueue(it *accept) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return shuttingDown()
	}
	if len(c.accepts) > 0 {
		if c.rows+it.rows > c.o.MaxWaitingRows || c.bytes+it.bytes > c.o.MaxWaitingBytes {
			return hook.Unavailable(time.Second, nil, "More events are arriving than can be stored; try again")
		}
		mine := c.tenants[it.Tenant]
		if mine.rows > 0 && (mine.rows+it.rows > c.o.MaxWaitingRows/2 || mine.bytes+it.bytes > c.o.MaxWaitingBytes/2) {
			return &hook.Error{Code: hook.CodeRateLimited, RetryAfter: time.Second, Message: "This tenant is publishing more events than can be stored; try again"}
		}
	}
	c.accepts = append(c.accepts, it)
	c.rows += it.rows
	c.bytes += it.bytes
	mine := c.tenants[it.Tenant]
	c.tenants[it.Tenant] = load{mine.rows + it.rows, mine.bytes + it.bytes}
	c.kick()
	return nil
}

// Record writes an outcome soon. It does not wait.
func (c *Committer) Record(o *store.Outcome) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.outcomes = append(c.outcomes, o)
	if len(c.outcomes) == 1 {
		c.oldest = time.Now()
		c.kick()
	} else if len(c.outcomes) == c.o.FlushOutcomes {
		c.kick()
	}
}

// Unrecorded is how many outcomes are not on disk yet.
func (c *Committer) Unrecorded() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.outcomes) + c.writing
}

// Do runs f in the committer's goroutine, after all that was committed before
// is settled and before anything else is committed. It does not wait. After
// Close it is not run.
func (c *Committer) Do(f func(ctx context.Context)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.funcs = append(c.funcs, f)
	c.kick()
}

func (c *Committer) kick() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *Committer) run() {
	defer close(c.done)
	// What was taken in is written whatever becomes of whoever asked for it.
	ctx := context.Background()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		w, wait := c.take()
		if wait < 0 {
			c.refuse()
			return
		}
		if w.empty() {
			timer.Reset(wait)
			select {
			case <-c.wake:
			case <-timer.C:
			}
			continue
		}
		for _, f := range w.funcs {
			f(ctx)
		}
		if len(w.accepts) > 0 || len(w.outcomes) > 0 {
			c.write(ctx, w)
		}
	}
}

// refuse answers the accepts that there was no time to write.
func (c *Committer) refuse() {
	c.mu.Lock()
	left := c.accepts
	c.accepts = nil
	c.mu.Unlock()
	c.settleAccepts(left, shuttingDown())
}

func shuttingDown() error {
	return hook.Unavailable(5*time.Second, nil, "The server is shutting down; try again")
}

type work struct {
	accepts  []*accept
	outcomes []*store.Outcome
	funcs    []func(context.Context)
}

func (w *work) empty() bool { return len(w.accepts)+len(w.outcomes)+len(w.funcs) == 0 }

// idle is how long the committer sleeps at most when nothing is due.
const idle = time.Hour

// take takes what is to be done now; if that is nothing, it says how long to
// wait, or a negative time when all is over.
func (c *Committer) take() (w work, wait time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.abandoned {
		return w, -1
	}
	w.funcs, c.funcs = c.funcs, nil
	rows, size, n := 0, 0, 0
	for ; n < len(c.accepts); n++ {
		a := c.accepts[n]
		if n > 0 && (rows+a.rows > c.o.MaxBatchRows || size+a.bytes > c.o.MaxBatchBytes) {
			break
		}
		rows += a.rows
		size += a.bytes
		left := c.tenants[a.Tenant]
		left.rows -= a.rows
		left.bytes -= a.bytes
		if c.tenants[a.Tenant] = left; left.rows == 0 {
			delete(c.tenants, a.Tenant)
		}
	}
	w.accepts = c.accepts[:n:n]
	c.accepts = c.accepts[n:]
	if len(c.accepts) == 0 {
		c.accepts = nil
	}
	c.rows -= rows
	c.bytes -= size

	if len(c.outcomes) > 0 {
		now := time.Now()
		due := c.oldest.Add(c.o.OutcomeDelay)
		if len(c.outcomes) >= c.o.FlushOutcomes || c.closed {
			due = now
		}
		if due.Before(c.holdOff) {
			due = c.holdOff
		}
		if n > 0 || !due.After(now) {
			take := min(len(c.outcomes), max(1, c.o.MaxBatchRows-rows))
			w.outcomes = c.outcomes[:take:take]
			if c.outcomes = c.outcomes[take:]; len(c.outcomes) == 0 {
				c.outcomes = nil
			}
			c.writing = take
		} else {
			return w, due.Sub(now)
		}
	}
	if w.empty() && c.closed {
		return w, -1
	}
	return w, idle
}

func (c *Committer) write(ctx context.Context, w work) {
	err := c.apply(ctx, w.accepts, w.outcomes)
	if err != nil && hook.CodeOf(err) != hook.CodeUnavailable && len(w.accepts)+len(w.outcomes) > 1 {
		// Something in the batch can't be written. Each on its own, so that it
		// harms nobody else.
		c.o.Logger.Error("a batch could not be written; writing its parts one by one", "err", err, "accepts", len(w.accepts), "outcomes", len(w.outcomes))
		for i := range w.accepts {
			one := w.accepts[i : i+1]
			c.settleAccepts(one, c.apply(ctx, one, nil))
		}
		for i := range w.outcomes {
			one := w.outcomes[i : i+1]
			c.settleOutcomes(one, c.apply(ctx, nil, one))
		}
		return
	}
	c.settleAccepts(w.accepts, err)
	c.settleOutcomes(w.outcomes, err)
}

func (c *Committer) apply(ctx context.Context, accepts []*accept, outcomes []*store.Outcome) error {
	b := store.Batch{Outcomes: outcomes, Accepts: make([]*store.Accept, len(accepts))}
	for i, a := range accepts {
		b.Accepts[i] = a.Accept
	}
	start := time.Now()
	err := c.o.Store.Apply(ctx, &b)
	c.o.Committed(len(accepts), len(outcomes), time.Since(start), err)
	return err
}

func (c *Committer) settleAccepts(accepts []*accept, err error) {
	for _, a := range accepts {
		own := err
		if own == nil {
			own = a.Err
		}
		a.settle(own == nil)
		a.done <- own
	}
}

// retryDelay is how long outcomes wait after the store could not take them.
const retryDelay = 500 * time.Millisecond

func (c *Committer) settleOutcomes(outcomes []*store.Outcome, err error) {
	if len(outcomes) == 0 {
		return
	}
	if err != nil && hook.CodeOf(err) == hook.CodeUnavailable {
		c.o.Logger.Warn("outcomes could not be written and will be tried again", "err", err, "outcomes", len(outcomes))
		c.mu.Lock()
		// Not append: outcomes may be a part of a batch whose rest is needed.
		c.outcomes = slices.Concat(outcomes, c.outcomes)
		c.writing -= len(outcomes)
		c.holdOff = time.Now().Add(retryDelay)
		c.mu.Unlock()
		return
	}
	if err != nil {
		c.o.Logger.Error("an outcome can't be written and is given up; its delivery may be sent again", "err", err,
			"delivery", outcomes[0].Delivery, "webhook", outcomes[0].Webhook, "tenant", outcomes[0].Tenant)
	}
	c.mu.Lock()
	c.writing -= len(outcomes)
	c.mu.Unlock()
	c.o.Recorded(outcomes)
}
