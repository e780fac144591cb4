// Package commit is the one committer: it gathers the accepts and outcomes that
// wait into batches and writes each batch in one synced transaction. While one
// is being written the next one gathers, so batches grow by themselves under
// load and a lone event waits for nobody.
//
// It promises:
//
//   - An accept's callers hear of it after the sync, in the order of commits.
//   - What was written is settled (handed over to the lanes, recorded) by the
//     committer's own goroutine before it touches the store again. So a function
//     given to Do sees a store and lanes that agree.
//   - An outcome is never dropped while the store can't be written: it waits and
//     is tried again. It needs no sync of its own, since losing it costs one
//     duplicate at most: it rides with the next accept, or goes after
//     OutcomeDelay.
//   - What waits is bounded, in memory and in time. An accept that would have to
//     wait too long is refused at once, and while the store hangs all are.
//   - Tenants take turns, each with as much as another: one that publishes more
//     than can be written waits, and is refused, by itself.
//   - What makes the store panic fails alone, as what it can't write does. A panic
//     of anything else in here ends the process: nobody would be told any more what
//     was written, and what was not.
//
// It must not know what a lane is, nor how a store works.
package commit

import (
	"context"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/plinqx/hypha/internal/contain"
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
	// Guard contains panics. Default: they end the process by themselves.
	Guard *contain.Guard
	// MaxBatchRows bounds a transaction: events, deliveries and outcomes
	// together; default 20,000. MaxBatchBytes bounds its bodies; default 16 MiB.
	MaxBatchRows, MaxBatchBytes int
	// MaxWaitingRows and MaxWaitingBytes bound the accepts that wait; default
	// 40,000 and 64 MiB. One tenant may take half of them.
	MaxWaitingRows, MaxWaitingBytes int
	// MaxWait is how long an accept may expect to wait until its transaction
	// begins; default 300 ms. One that would wait longer is refused; the first
	// one that a tenant has waiting is let in for twice that, since it is not to
	// blame. A transaction is made as large as is written in a quarter of it. A
	// store whose every transaction takes longer than MaxWait sets the measure
	// itself, for that is no queue's fault.
	MaxWait time.Duration
	// OutcomeDelay is the longest that an outcome waits for an accept to ride
	// with; default 100 ms. FlushOutcomes is how many don't wait; default 256.
	OutcomeDelay  time.Duration
	FlushOutcomes int
	// Recorded is told of outcomes once they are on disk, or can't ever be.
	Recorded func([]*store.Outcome)
	// Committed is told of every batch, for the metrics.
	Committed func(accepts, outcomes int, took time.Duration, err error)
	// Refused is told why accepts were refused, for the metrics.
	Refused func(why Reason, n int)
}

// Reason is why an accept was refused.
type Reason string

// The reasons.
const (
	// QueueFull: as many wait as there is memory for.
	QueueFull Reason = "queue_full"
	// Overloaded: it would have waited too long, or has.
	Overloaded Reason = "overloaded"
	// TenantShare: likewise, and its tenant has more waiting than the others, or
	// half of what may wait.
	TenantShare Reason = "tenant_share"
	// Stalled: the store has been writing the same transaction for too long.
	Stalled Reason = "stalled"
	// StoreDown: the store could not write.
	StoreDown Reason = "store"
	// TenantBacklog: the tenant has as many unfinished deliveries as it may.
	TenantBacklog Reason = "tenant_backlog"
	// Draining: the server is shutting down.
	Draining Reason = "draining"
)

// Reasons are all that there are.
func Reasons() []Reason {
	return []Reason{QueueFull, Overloaded, TenantShare, Stalled, StoreDown, TenantBacklog, Draining}
}

// Committer is safe for concurrent use. It works between Start and Close.
type Committer struct {
	o    Options
	done chan struct{}
	wake chan struct{} // holds one: something changed
	wg   sync.WaitGroup
	// alarm goes off when a transaction takes too long.
	alarm *time.Timer
	// Of the committer's goroutine: room that it uses again and again.
	taken, tooLate []*accept
	batch          []*store.Accept
	warned         time.Time // when it was last said that outcomes can't be written

	mu        sync.Mutex
	closed    bool
	abandoned bool // closed, and out of time
	line      line // accepts
	outcomes  []*store.Outcome
	oldest    time.Time // of outcomes
	funcs     []func(context.Context)
	pace      pace
	// at is since when the committer has been at what it does now, weight how
	// much of that is to be written, and ends when that is expected to be over.
	// At is zero when it does nothing.
	at, ends time.Time
	weight   int
	failed   bool // what it did last
	// wrote says that the store has answered: what is left is to tell everybody.
	wrote bool
	// worked is when it last ended with something.
	worked time.Time
	// writing counts the outcomes of the batch that is being written.
	writing int
	// holdOff is until when outcomes alone are not tried again, after a failure.
	holdOff time.Time
	// trouble is that of the store, since it last wrote something.
	trouble trouble
}

// trouble is that nothing could be written.
type trouble struct {
	since, last time.Time // zero while there is none
	err         error
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
	orDefault(&o.MaxWait, 300*time.Millisecond)
	orDefault(&o.OutcomeDelay, 100*time.Millisecond)
	orDefault(&o.FlushOutcomes, 256)
	if o.Recorded == nil {
		o.Recorded = func([]*store.Outcome) {}
	}
	if o.Committed == nil {
		o.Committed = func(int, int, time.Duration, error) {}
	}
	if o.Refused == nil {
		o.Refused = func(Reason, int) {}
	}
	c := &Committer{o: o, done: make(chan struct{}), wake: make(chan struct{}, 1), alarm: time.NewTimer(idle), line: newLine(), pace: newPace()}
	c.alarm.Stop()
	return c
}

func orDefault[T comparable](v *T, fallback T) {
	var zero T
	if *v == zero {
		*v = fallback
	}
}

// Start begins to commit. It returns at once; Close ends it.
func (c *Committer) Start() {
	c.wg.Go(func() { c.o.Guard.OrEnd("the committer", c.run) })
	c.wg.Go(func() { c.o.Guard.OrEnd("the committer's watch", c.watch) })
}

// Close refuses further accepts, writes all that waits, and ends the committer.
// When ctx ends first, what could not be written by then is left: accepts are
// refused, and outcomes cost a duplicate each. A write that the store has begun
// is waited for all the same. It must follow a Start.
func (c *Committer) Close(ctx context.Context) error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.kick()
	defer c.wg.Wait()
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
	}
	c.mu.Lock()
	c.abandoned = true
	c.mu.Unlock()
	c.kick()
	return ctx.Err()
}

// Admit says at once what Accept would say at the door to an event of a tenant:
// nil if it may come in. It is for a caller that has not made its accept yet,
// and spares it the work.
func (c *Committer) Admit(tenant id.Tenant) error {
	return c.refusal(c.admit(tenant))
}

func (c *Committer) admit(tenant id.Tenant) Reason {
	c.mu.Lock()
	defer c.unlock()
	return c.judge(tenant, load{rows: 1}, time.Now())
}

// unlock gives c.mu back, deferred. After a panic it does not: what waits may be half
// changed, and nobody may see that before the process has ended.
func (c *Committer) unlock() {
	if p := recover(); p != nil {
		c.o.Guard.Torn("what waits to be committed", p)
	}
	c.mu.Unlock()
}

// Accept writes an accept and returns when it is on disk: nil, the accept's own
// error, or why nothing could be written. Settle is called exactly once and
// before Accept returns, with whether it was written: by the committer if it
// was, and by whoever refuses it if it was not. When ctx ends first Accept
// returns its error, and the accept may be written all the same.
func (c *Committer) Accept(ctx context.Context, a *store.Accept, settle func(committed bool)) error {
	it := &accept{Accept: a, load: loadOf(a), at: time.Now(), settle: settle, done: make(chan error, 1)}
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

func (c *Committer) enqueue(it *accept) error { return c.refusal(c.push(it)) }

// push has an accept wait, or says why not.
func (c *Committer) push(it *accept) Reason {
	c.mu.Lock()
	defer c.unlock()
	why := c.judge(it.Tenant, it.load, it.at)
	if why == "" {
		c.line.push(it)
		c.kick()
	}
	return why
}

// judge says why an accept is refused, "" if it is not. c.mu is held.
func (c *Committer) judge(tenant id.Tenant, l load, now time.Time) Reason {
	switch {
	case c.closed:
		return Draining
	case c.stalled(now):
		return Stalled
	case c.line.empty():
		return "" // whatever it is: nothing is written before it but what is being written
	case c.line.rows+l.rows > c.o.MaxWaitingRows || c.line.bytes+l.bytes > c.o.MaxWaitingBytes:
		return QueueFull
	}
	tenants, own := len(c.line.tenants), 0
	most := max(c.o.MaxWait, c.pace.fixed)
	if q := c.line.tenants[tenant]; q != nil {
		if q.rows+l.rows > c.o.MaxWaitingRows/2 || q.bytes+l.bytes > c.o.MaxWaitingBytes/2 {
			return TenantShare
		}
		own = q.weight()
	} else {
		tenants++
		most *= 2
	}
	// Tenants take turns: nobody has more before this than its own tenant has,
	// and a turn.
	ahead := min(c.line.weight(), tenants*(own+quantum)) + len(c.outcomes)
	if c.wait(ahead, now) <= most {
		return ""
	}
	if tenants > 1 && own*tenants > c.line.weight() {
		return TenantShare
	}
	return Overloaded
}

// wait is how long it is expected to take until what comes after so much weight
// is begun. c.mu is held.
func (c *Committer) wait(ahead int, now time.Time) time.Duration {
	wait := max(0, c.ends.Sub(now))
	if c.at.IsZero() {
		wait = 0
	}
	return wait + time.Duration(ahead/c.room())*c.pace.fixed + time.Duration(ahead)*c.pace.each
}

// room is the weight of one transaction. c.mu is held.
func (c *Committer) room() int { return c.pace.room(c.o.MaxWait / 4) }

// stalled reports whether the store does not end a transaction. c.mu is held.
func (c *Committer) stalled(now time.Time) bool {
	return !c.at.IsZero() && !c.wrote && now.Sub(c.at) >= c.patience()
}

// patience is how long a transaction may take, and an accept may wait: twice
// what it was to expect. c.mu is held.
func (c *Committer) patience() time.Duration { return 2 * max(c.o.MaxWait, c.pace.fixed) }

// refusal is what a refused accept is told, nil for none.
func (c *Committer) refusal(why Reason) error {
	if why == "" {
		return nil
	}
	c.o.Refused(why, 1)
	return refused(why)
}

func refused(why Reason) error {
	switch why {
	case TenantShare:
		return &hook.Error{Code: hook.CodeRateLimited, RetryAfter: time.Second, Message: "This tenant is publishing more events than can be stored; try again"}
	case Stalled:
		return hook.Unavailable(2*time.Second, nil, "The store takes too long to write; try again")
	case Draining:
		return hook.Unavailable(5*time.Second, nil, "The server is shutting down; try again")
	default:
		return hook.Unavailable(time.Second, nil, "More events are arriving than can be stored; try again")
	}
}

// Record writes an outcome soon. It does not wait.
func (c *Committer) Record(o *store.Outcome) {
	c.mu.Lock()
	defer c.unlock()
	c.outcomes = append(c.outcomes, o)
	if len(c.outcomes) == 1 {
		c.oldest = time.Now()
		c.kick()
	} else if len(c.outcomes) == c.o.FlushOutcomes {
		c.kick()
	}
}

// Gauge is the state of the committer in numbers, for the metrics.
type Gauge struct {
	// Waiting accepts' rows and bodies, and of how many tenants they are.
	Rows, Bytes, Tenants int
	Unrecorded           int
	// Wait is how long the next accept of a tenant that has none waiting is
	// expected to wait until its transaction begins.
	Wait time.Duration
}

// Gauge tells how much waits now.
func (c *Committer) Gauge() Gauge {
	c.mu.Lock()
	defer c.unlock()
	g := Gauge{Rows: c.line.rows, Bytes: c.line.bytes, Tenants: len(c.line.tenants), Unrecorded: len(c.outcomes) + c.writing}
	now := time.Now()
	g.Wait = c.wait(min(c.line.weight(), g.Tenants*quantum)+len(c.outcomes), now)
	if !c.at.IsZero() && now.After(c.ends) {
		g.Wait += now.Sub(c.ends) // it takes longer than expected: nobody knows how much
	}
	return g
}

const (
	// troubled is how long nothing must have been written, for want of a store that
	// can, before that is more than a hiccup; forgotten is how long after the last try
	// nothing is known any more.
	troubled  = 2 * time.Second
	forgotten = 8 * time.Second
)

// Trouble says why the store can't be written, as far as is known: nil if it could
// be, the last time it was tried, or if that is long ago.
func (c *Committer) Trouble() error {
	c.mu.Lock()
	defer c.unlock()
	t := &c.trouble
	if t.err == nil || t.last.Sub(t.since) < troubled || time.Since(t.last) > forgotten {
		return nil
	}
	return t.err
}

// noted notes what came of a try to write. c.mu is held.
func (t *trouble) noted(err error, now time.Time) {
	switch {
	case hook.CodeOf(err) != hook.CodeUnavailable:
		*t = trouble{}
	case t.err == nil || now.Sub(t.last) > forgotten:
		*t = trouble{since: now, last: now, err: err}
	default:
		t.last, t.err = now, err
	}
}

// Idle reports whether nothing has been written for a time.
func (c *Committer) Idle(since time.Duration) bool {
	c.mu.Lock()
	defer c.unlock()
	return c.at.IsZero() && c.line.empty() && time.Since(c.worked) >= since
}

// Unrecorded is how many outcomes are not on disk yet.
func (c *Committer) Unrecorded() int {
	c.mu.Lock()
	defer c.unlock()
	return len(c.outcomes) + c.writing
}

// Do runs f in the committer's goroutine, where all that was committed is
// settled, and nothing is committed while it runs. Functions run in the order in
// which they came, before what waits to be written, unless they take so long
// that it is its turn. It does not wait. After Close it is not run.
func (c *Committer) Do(f func(ctx context.Context)) {
	c.mu.Lock()
	defer c.unlock()
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
	defer c.alarm.Stop()
	// What was taken in is written whatever becomes of whoever asked for it.
	ctx := context.Background()
	timer := time.NewTimer(idle)
	defer timer.Stop()
	for {
		w, wait := c.take()
		if wait < 0 {
			c.refuseAll(Draining)
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
		if len(w.late) > 0 {
			c.o.Refused(Overloaded, len(w.late))
			c.settleAccepts(w.late, refused(Overloaded))
			clear(w.late)
		}
		c.call(ctx, w.funcs)
		if len(w.accepts) > 0 || len(w.outcomes) > 0 {
			c.write(ctx, w)
			c.giveWay()
		}
		clear(w.accepts)
	}
}

// giveWay lets those run first, where processors are short, who were told of the
// batch just written: what they bring goes into the next one, which is larger for
// it. With a load that took all of two cores this saved a tenth of the processor
// time. With nobody else to run it costs nothing.
func (c *Committer) giveWay() {
	c.mu.Lock()
	c.ended(time.Now())
	c.mu.Unlock()
	runtime.Gosched()
}

// callTime is how long functions may keep what waits to be written waiting.
const callTime = 50 * time.Millisecond

// call runs functions. Those that are not reached in time stay for the next
// round.
func (c *Committer) call(ctx context.Context, funcs []func(context.Context)) {
	if len(funcs) == 0 {
		return
	}
	began := time.Now()
	for i, f := range funcs {
		f(ctx)
		if i+1 < len(funcs) && time.Since(began) > callTime {
			c.mu.Lock()
			c.funcs = slices.Concat(funcs[i+1:], c.funcs)
			c.mu.Unlock()
			return
		}
	}
}

// watch refuses what waits when a transaction takes too long: nobody knows when
// it will end, and what waits has not been written.
func (c *Committer) watch() {
	for {
		select {
		case <-c.done:
			return
		case <-c.alarm.C:
			c.mu.Lock()
			stalled := c.stalled(time.Now())
			c.mu.Unlock()
			if stalled {
				c.refuseAll(Stalled)
			}
		}
	}
}

// refuseAll answers the accepts that wait.
func (c *Committer) refuseAll(why Reason) {
	c.mu.Lock()
	left := c.line.all(nil)
	c.mu.Unlock()
	if len(left) > 0 {
		c.o.Refused(why, len(left))
		c.settleAccepts(left, refused(why))
	}
}

type work struct {
	accepts  []*accept
	late     []*accept // to be refused
	outcomes []*store.Outcome
	funcs    []func(context.Context)
}

func (w *work) empty() bool {
	return len(w.accepts)+len(w.late)+len(w.outcomes)+len(w.funcs) == 0
}

// idle is how long the committer sleeps at most when nothing is due.
const idle = time.Hour

// take takes what is to be done now; if that is nothing, it says how long to
// wait, or a negative time when all is over.
func (c *Committer) take() (w work, wait time.Duration) {
	c.mu.Lock()
	defer c.unlock()
	if c.abandoned {
		return w, -1
	}
	now := time.Now()
	c.ended(now)
	defer func() {
		if wait >= 0 && !w.empty() {
			c.begin(now, &w)
		}
	}()
	w.funcs, c.funcs = c.funcs, nil
	var rows int
	if !c.line.empty() {
		most, weight := load{c.o.MaxBatchRows, c.o.MaxBatchBytes}, c.room()
		if c.line.weight() > weight {
			w.late = c.line.late(now.Add(-c.patience()), c.tooLate[:0])
			c.tooLate = w.late
		}
		var taken load
		w.accepts, taken = c.line.batch(most, weight, c.taken[:0])
		c.taken, rows, c.weight = w.accepts, taken.rows, taken.weight()
	}

	if len(c.outcomes) > 0 {
		due := c.oldest.Add(c.o.OutcomeDelay)
		if len(c.outcomes) >= c.o.FlushOutcomes || c.closed {
			due = now
		}
		if due.Before(c.holdOff) {
			due = c.holdOff
		}
		if len(w.accepts) > 0 || !due.After(now) {
			take := min(len(c.outcomes), max(1, c.o.MaxBatchRows-rows))
			w.outcomes = c.outcomes[:take:take]
			if c.outcomes = c.outcomes[take:]; len(c.outcomes) == 0 {
				c.outcomes = nil
			}
			c.writing = take
			c.weight += take
		} else {
			return w, due.Sub(now)
		}
	}
	if w.empty() && c.closed {
		return w, -1
	}
	return w, idle
}

// begin notes what the committer is about to do. c.mu is held.
func (c *Committer) begin(now time.Time, w *work) {
	c.at, c.ends = now, now
	if len(w.accepts)+len(w.outcomes) > 0 {
		c.ends = now.Add(c.pace.expect(c.weight))
	}
	c.alarm.Reset(c.patience())
}

// maxLearned is the most that a transaction teaches: a disk that hangs for once
// is not always as slow.
const maxLearned = 2 * time.Second

// ended takes account of what the committer did. c.mu is held.
func (c *Committer) ended(now time.Time) {
	if c.at.IsZero() {
		return
	}
	if c.weight > 0 && !c.failed {
		c.pace.learn(c.weight, min(now.Sub(c.at), maxLearned))
	}
	c.at, c.weight, c.failed, c.wrote, c.worked = time.Time{}, 0, false, false, now
	c.alarm.Stop()
}

func (c *Committer) write(ctx context.Context, w work) {
	err := c.apply(ctx, w.accepts, w.outcomes)
	if err != nil && hook.CodeOf(err) != hook.CodeUnavailable && len(w.accepts)+len(w.outcomes) > 1 {
		// Something in the batch can't be written. Each on its own, so that it
		// harms nobody else.
		c.o.Logger.Error("a batch could not be written; writing its parts one by one", "err", err, "accepts", len(w.accepts), "outcomes", len(w.outcomes))
		for i := range w.accepts {
			one := w.accepts[i : i+1]
			c.written(one, c.apply(ctx, one, nil))
		}
		for i := range w.outcomes {
			one := w.outcomes[i : i+1]
			c.settleOutcomes(one, c.apply(ctx, nil, one))
		}
		return
	}
	c.written(w.accepts, err)
	c.settleOutcomes(w.outcomes, err)
}

func (c *Committer) apply(ctx context.Context, accepts []*accept, outcomes []*store.Outcome) error {
	b := store.Batch{Outcomes: outcomes, Accepts: c.batch[:0]}
	for _, a := range accepts {
		b.Accepts = append(b.Accepts, a.Accept)
	}
	if c.wrote { // it is the next part of a batch
		c.mu.Lock()
		c.wrote = false
		c.mu.Unlock()
	}
	start := time.Now()
	err := c.tryApply(ctx, &b)
	c.mu.Lock()
	c.wrote, c.failed = true, c.failed || err != nil
	c.trouble.noted(err, time.Now())
	c.mu.Unlock()
	c.o.Committed(len(accepts), len(outcomes), time.Since(start), err)
	clear(b.Accepts)
	c.batch = b.Accepts
	return err
}

// tryApply has the store write. It leaves no trace where it panics: a transaction
// that does not come to its end is none.
func (c *Committer) tryApply(ctx context.Context, b *store.Batch) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = c.o.Guard.Caught(contain.Store, "writing events and outcomes", p, "accepts", len(b.Accepts), "outcomes", len(b.Outcomes))
		}
	}()
	return c.o.Store.Apply(ctx, b)
}

// written settles accepts that the store was given.
func (c *Committer) written(accepts []*accept, err error) {
	if err != nil {
		if hook.CodeOf(err) == hook.CodeUnavailable && len(accepts) > 0 {
			c.o.Refused(StoreDown, len(accepts))
		}
		c.settleAccepts(accepts, err)
		return
	}
	for _, a := range accepts {
		own := a.Err
		if own != nil && hook.CodeOf(own) == hook.CodeRateLimited {
			c.o.Refused(TenantBacklog, 1)
		}
		a.settle(own == nil)
		a.done <- own
	}
}

// settleAccepts answers accepts of which nothing was written.
func (c *Committer) settleAccepts(accepts []*accept, err error) {
	for _, a := range accepts {
		a.settle(false)
		a.done <- err
	}
}

// retryDelay is how long outcomes wait after the store could not take them.
const retryDelay = 500 * time.Millisecond

// warnEach is how long nothing more is said of a store that can't be written.
const warnEach = 10 * time.Second

func (c *Committer) settleOutcomes(outcomes []*store.Outcome, err error) {
	if len(outcomes) == 0 {
		return
	}
	if err != nil && hook.CodeOf(err) == hook.CodeUnavailable {
		now := time.Now()
		c.mu.Lock()
		// Not append: outcomes may be a part of a batch whose rest is needed.
		c.outcomes = slices.Concat(outcomes, c.outcomes)
		c.writing -= len(outcomes)
		c.holdOff = now.Add(retryDelay)
		c.mu.Unlock()
		// They are tried with every accept.
		if now.Sub(c.warned) >= warnEach {
			c.warned = now
			c.o.Logger.Warn("outcomes could not be written and will be tried again", "err", err, "outcomes", len(outcomes))
		}
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
