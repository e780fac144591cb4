package dispatch

import (
	"context"
	"math"
	"time"

	"github.com/plinqx/hypha/internal/contain"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// What follows is for a store that several processes share (package cluster): what
// one of them must do with what the others did.

// Pump starts what may start: it is for when Options.MaySend has turned true.
func (d *Dispatcher) Pump() {
	d.mu.Lock()
	defer d.unlock()
	d.pump()
}

// Fence gives up all that waits in memory, because other processes have it now.
// What is in flight stays until its outcome is recorded. It is to be called in the
// committer's goroutine, before the store takes anything new for this process.
func (d *Dispatcher) Fence() {
	d.mu.Lock()
	defer d.unlock()
	for _, l := range d.lanes {
		for _, it := range l.Fence() {
			d.letGo(l, it)
		}
		d.update(l)
	}
}

// release gives up all that waits in memory, for others to take: what is in flight
// may keep this process for as long as a receiver hangs. d.mu is held, and
// d.stopping is set.
func (d *Dispatcher) release() {
	var given []*laneState
	for _, l := range d.lanes {
		items := l.Fence()
		for _, it := range items {
			d.letGo(l, it)
		}
		if len(items) > 0 {
			given = append(given, l)
		}
	}
	if len(given) == 0 {
		return
	}
	d.o.Committer.Do(func(ctx context.Context) {
		for _, l := range given {
			held := d.Held(l.Tenant, l.Webhook)
			err := d.o.Guard.Try(contain.Store, "releasing what waits", func() error { return d.o.Release(ctx, l.Tenant, l.Webhook, held) })
			if err != nil {
				d.o.Logger.Warn("what waits could not be released; other nodes have it when this one has stopped", "err", err)
				return
			}
		}
	})
}

// overdue is how long something must have been due for Reconcile to fetch it:
// whoever queued it comes first, without being hindered by all the others.
const overdue = 5 * time.Second

// Look takes up what the store has waiting, as Start does: what another process
// had may be everybody's now.
func (d *Dispatcher) Look(ctx context.Context) error {
	return d.takeUp(ctx, func(time.Duration) bool { return true })
}

// Reconcile takes up what the store has had waiting for longer than it should
// have. It finds what nobody knows of, such as what a commit wrote whose answer
// was lost, and shares out what is too much for one process.
func (d *Dispatcher) Reconcile(ctx context.Context) error {
	return d.takeUp(ctx, func(late time.Duration) bool { return late >= overdue })
}

// takeUp wakes the lanes of the backlog that are wanted, by how late they are.
func (d *Dispatcher) takeUp(ctx context.Context, want func(late time.Duration) bool) error {
	backlog, err := d.o.Store.Backlog(ctx)
	if err != nil {
		return err
	}
	// One after another, for the sake of the store that the catalogue reads.
	for _, k := range d.wakeAll(backlog, want) {
		select {
		case <-d.quit:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		default:
			d.WebhookChanged(k.tenant, k.webhook)
		}
	}
	return nil
}

// wakeAll wakes those lanes, and answers the ones whose webhooks are to be looked at
// first.
func (d *Dispatcher) wakeAll(backlog []store.BacklogLane, want func(late time.Duration) bool) (unknown []key) {
	d.mu.Lock()
	defer d.unlock()
	now := d.now()
	for _, b := range backlog {
		late := now.Sub(b.Due)
		if !want(late) {
			continue
		}
		l := d.lane(b.Tenant, b.Webhook)
		if late >= 0 {
			l.Wake()
		} else {
			l.Expect(b.Due)
		}
		if l.sweepAt.IsZero() && !l.sweeping {
			l.sweepAt = now
		}
		if l.known {
			d.update(l)
		} else {
			unknown = append(unknown, key{b.Tenant, b.Webhook})
		}
	}
	return unknown
}

// Discards says which queues are being discarded, by this process or others:
// nothing of these is sent. It answers those that others discard, who want what is
// marked as this process's and is not held. It is to be called in the committer's
// goroutine, with all of them, again and again.
func (d *Dispatcher) Discards(all []store.LaneKey) (elsewhere []store.LaneKey) {
	d.mu.Lock()
	defer d.unlock()
	now := d.now()
	before := d.discarded
	d.discarded = make(map[key]struct{}, len(all))
	for _, k := range all {
		d.discarded[key{k.Tenant, k.Webhook}] = struct{}{}
		l := d.lane(k.Tenant, k.Webhook)
		l.DiscardElsewhere(true)
		if here, _ := l.Discarded(); !here {
			elsewhere = append(elsewhere, k)
		}
		if l.sweepAt.IsZero() && !l.sweeping {
			l.sweepAt = now // it may have nothing, and is forgotten then
		}
		d.update(l)
	}
	for k := range before {
		l := d.lanes[k]
		if _, still := d.discarded[k]; l != nil && !still {
			l.DiscardElsewhere(false)
			d.update(l)
		}
	}
	return elsewhere
}

// hearsay is what a lane and those of other processes have told each other.
type hearsay struct {
	// heard is what stands written: what others said last, or this process did.
	heard time.Time
	// told is what this process has to say, and mark when it was written, by the
	// count of Mark; unwritten if it is not yet.
	told   time.Time
	mark   uint64
	queued bool
}

const unwritten = math.MaxUint64

// telling are the lanes whose breakers have turned.
type telling struct {
	lanes queue[*laneState]
	wake  chan struct{} // holds one
	marks uint64
}

// Mark is a moment in what this process says of breakers. What was read from the
// store after a Mark tells nothing of a breaker that turned since; BreakerElsewhere
// passes over it.
func (d *Dispatcher) Mark() uint64 {
	d.mu.Lock()
	defer d.unlock()
	return d.telling.marks
}

// turned has other processes be told if an attempt turned a lane's breaker. d.mu
// is held.
func (d *Dispatcher) turned(l *laneState) {
	if d.o.TellBreaker == nil {
		return
	}
	until, turned := l.TakeTurn()
	if !turned {
		return
	}
	l.breaker.told, l.breaker.mark = until, unwritten
	if !l.breaker.queued {
		l.breaker.queued = true
		d.telling.lanes.push(l)
		kick(d.telling.wake)
	}
}

// tellBreakers tells one turn after another. A breaker turns once a second at
// most; where many do at the same time, each lane's latest state is told.
func (d *Dispatcher) tellBreakers() {
	for {
		d.mu.Lock()
		if d.telling.lanes.len() == 0 {
			d.mu.Unlock()
			select {
			case <-d.quit:
				return
			case <-d.telling.wake:
			}
			continue
		}
		l := d.telling.lanes.pop()
		l.breaker.queued = false
		until := l.breaker.told
		d.mu.Unlock()

		err := d.o.Guard.Try(contain.Background, "the telling of a breaker", func() error {
			return d.o.TellBreaker(d.hard, l.Tenant, l.Webhook, until)
		})

		d.mu.Lock()
		if !l.breaker.queued {
			d.telling.marks++
			l.breaker.mark = d.telling.marks
		}
		if err == nil {
			l.breaker.heard = until
		}
		d.mu.Unlock()
		if err != nil && d.hard.Err() == nil {
			d.o.Logger.Warn("other nodes could not be told of a breaker; they find out by themselves", "tenant", l.Tenant, "webhook", l.Webhook, "err", err)
		}
		select {
		case <-d.quit:
			return
		default:
		}
	}
}

// graceToTell is how long a process has to tell what came of an attempt, besides
// the attempt's own time.
const graceToTell = 2 * time.Second

// BreakerElsewhere takes what stands written of a webhook's breaker: until when it
// is open, zero for closed. Mark is from before that was read. The same may be told
// many times.
func (d *Dispatcher) BreakerElsewhere(mark uint64, tenant id.Tenant, webhook id.Webhook, until time.Time) {
	d.mu.Lock()
	defer d.unlock()
	l := d.lanes[key{tenant, webhook}]
	if l == nil || l.breaker.mark > mark || until.Equal(l.breaker.heard) {
		return
	}
	l.breaker.heard = until
	if until.IsZero() {
		l.CloseElsewhere()
	} else {
		grace := graceToTell
		if w, ok := d.o.Catalog.Held(tenant, webhook); ok && w != nil {
			grace += w.Timeout
		}
		l.OpenElsewhere(until, grace, d.now())
	}
	d.update(l)
}
