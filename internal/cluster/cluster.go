// Package cluster makes a process one of many nodes on a shared store. It holds the
// node's lease, knows when this node may send, takes over what dead nodes had, and
// tells the others parts of the program what other nodes have changed.
//
// It promises:
//
//   - MaySend is true only while the last beat that the store confirmed was sent
//     less than half a lease ago. So of two nodes that both believe to have a
//     delivery, one does not start an attempt: whoever takes over waits for a whole
//     lease.
//   - A peer is taken over only when it has been silent for longer than a lease, by
//     the database's clock, and every beat of this node went through in that time.
//     An outage of the database kills nobody.
//   - What a peer had is looked for at once when it was taken over or has left;
//     besides, what lies waiting longer than it should is looked for every now and
//     then.
//   - A node that was declared dead by others gives up all that it has in memory
//     before it joins them again.
//   - A change of the configuration on another node is applied here after a beat at
//     the latest. After a time without beats everything is read anew.
//
// It must not know what a database is, nor how anything is sent.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/plinqx/hypha/internal/contain"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// Committer runs what must see the store and the lanes agree (package commit).
type Committer interface {
	Do(f func(ctx context.Context))
}

// Lanes have deliveries in memory (package dispatch). Fence and Discards are called
// in the committer's goroutine.
type Lanes interface {
	// Pump starts what may start, now that MaySend is true again.
	Pump()
	// Fence gives up all that waits in memory.
	Fence()
	// Look takes up all that the store has waiting, Reconcile what has been
	// waiting there for too long.
	Look(ctx context.Context) error
	Reconcile(ctx context.Context) error
	// Discards says which queues are being discarded, and answers those where
	// that is another node's doing.
	Discards(all []store.LaneKey) (elsewhere []store.LaneKey)
	Held(tenant id.Tenant, webhook id.Webhook) func(id.Delivery) bool
	// BreakerElsewhere takes until when a breaker is open, as it was read after
	// a Mark.
	BreakerElsewhere(mark uint64, tenant id.Tenant, webhook id.Webhook, until time.Time)
	Mark() uint64
}

// Catalog has the configuration in memory (package catalog).
type Catalog interface {
	// Moved is told at which version a tenant is; Renew that all may have moved.
	Moved(ctx context.Context, tenant id.Tenant, version int64) error
	Renew(ctx context.Context) error
	// PausedElsewhere takes until when a webhook is held back, as it was read
	// after a Mark.
	PausedElsewhere(mark uint64, tenant id.Tenant, webhook id.Webhook, until time.Time)
	Mark() uint64
}

// Jobs work off what was asked for once (package replay).
type Jobs interface {
	TakeUp(ctx context.Context) error
}

// Parts are the parts of the program that are told what other nodes do.
type Parts struct {
	Committer Committer
	Lanes     Lanes
	Catalog   Catalog
	Jobs      Jobs
}

// The timing. Nodes of one store must agree on Lease.
const (
	// Interval is how often a node beats.
	Interval = time.Second
	// Lease is how long a node may be silent before others take its work over.
	// Half of it, the time in which it may start attempts after a beat, must
	// leave room for a beat that is late; all of it, and a beat or two, is what
	// passes before a dead node's work goes on elsewhere.
	Lease = 6 * time.Second
	// spacing is the least between two beats: many changes elsewhere are read
	// together.
	spacing = 100 * time.Millisecond
	// gap is after how long without a beat changes may have been missed: a store
	// tells of a change for 15 s, and a change may take 10 s to be committed.
	gap = 4 * time.Second
	// reconcileEach is how often what lies waiting is looked for.
	reconcileEach = 30 * time.Second
	// releaseEach is how often what was given back to the disk is released for
	// the node that discards it.
	releaseEach = 3 * time.Second
	// patience is how long one thing that is asked of the store may take, and
	// takeOverTime how long a take-over: much may have to be freed.
	patience     = 10 * time.Second
	takeOverTime = time.Minute
)

// Options are what a Cluster needs. Nodes and Clock are required.
type Options struct {
	Nodes  store.Nodes
	Clock  *Clock
	Logger *slog.Logger
	// Guard contains panics. Default: they end the process by themselves.
	Guard *contain.Guard
}

// Cluster is this process as a node. It is safe for concurrent use. It works
// between Start and Stop.
type Cluster struct {
	o      Options
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	// confirmed is when the last beat was sent that the store confirmed; nil
	// while there is none that counts.
	confirmed atomic.Pointer[time.Time]
	// discarding says that a list of discards waits for the committer.
	discarding atomic.Bool
	takeovers  atomic.Int64
	fences     atomic.Int64

	// Of the goroutine that beats.
	discards  bool      // there were some
	reconcile time.Time // when that was last asked for
	sent      time.Time // the last beat
	// Of the committer's goroutine: when what was last released.
	released map[store.LaneKey]time.Time

	mu    sync.Mutex
	parts *Parts
	run   time.Time        // since when every beat went through; zero: the last did not
	peers map[int64]string // the others, by name
	// took are peers that this node took over: they will be gone from the list.
	took map[int64]struct{}
	// away is since when beats have failed, and why; zero while they do not.
	away    time.Time
	awayErr error
	fenced  bool
	news    news
	chores  chores
	heed    chan struct{} // holds one: there is news
	survey  chan struct{} // holds one: there are chores
}

// New makes a Cluster that has not started.
func New(o Options) *Cluster {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Cluster{
		o: o, news: newNews(), peers: make(map[int64]string), took: make(map[int64]struct{}), released: make(map[store.LaneKey]time.Time),
		heed: make(chan struct{}, 1), survey: make(chan struct{}, 1),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// Start beats once, after which Clock is the database's, and begins to beat. What
// it learns is kept for Attach.
func (c *Cluster) Start(ctx context.Context) error {
	if err := c.beat(ctx); err != nil {
		return fmt.Errorf("join the nodes of the database: %w", err)
	}
	// A node that can't say that it lives, or does not take in what others changed,
	// does best to end: others take its work over.
	c.wg.Go(func() { c.o.Guard.OrEnd("the node's beats", c.beats) })
	return nil
}

// Attach begins to tell the parts what it learns. It may be called once.
func (c *Cluster) Attach(p Parts) {
	c.mu.Lock()
	c.parts = &p
	c.mu.Unlock()
	c.wg.Go(func() { c.o.Guard.OrEnd("what other nodes changed", func() { c.whenever(c.heed, c.tell) }) })
	c.wg.Go(func() { c.o.Guard.OrEnd("what other nodes left", func() { c.whenever(c.survey, c.work) }) })
	kick(c.heed)
	kick(c.survey)
}

// Stop ends the beating. The lease lasts until the store is closed, or for its time.
// Nothing may be sent or written any more by then.
func (c *Cluster) Stop() {
	c.cancel()
	c.wg.Wait()
}

// MaySend reports whether an attempt may start now. It costs next to nothing.
func (c *Cluster) MaySend() bool { return c.age() < Lease/2 }

// age is how old the last confirmed beat is.
func (c *Cluster) age() time.Duration {
	last := c.confirmed.Load()
	if last == nil {
		return never
	}
	return since(*last, time.Now())
}

const never = time.Duration(1<<63 - 1)

// since is what has passed by the clock that says more: the monotonic one stands
// still while a machine sleeps, the other one may be set back.
func since(t, now time.Time) time.Duration {
	return max(now.Sub(t), now.Round(0).Sub(t.Round(0)))
}

// Ready says why no traffic should come to this node: nil while the last confirmed
// beat is younger than the lease.
func (c *Cluster) Ready() error {
	if c.age() < Lease {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fenced {
		return hook.Unavailable(Interval, c.awayErr, "Other nodes have declared this one dead; it is joining them anew")
	}
	if c.away.IsZero() { // a beat hangs, or this process did
		return hook.Unavailable(Interval, nil, "The database has not answered for %s", Lease)
	}
	return hook.Unavailable(Interval, c.awayErr, "The database can't be reached since %s", c.away.UTC().Format(time.RFC3339))
}

// State is what the metrics show.
type State struct {
	Node int64
	// Peers are the other nodes that have a lease.
	Peers int
	// BeatAge is how long ago the last confirmed beat was sent; negative if there
	// is none that counts.
	BeatAge time.Duration
	MaySend bool
	// Takeovers is how many nodes this one took over, Fences how often others
	// took it over.
	Takeovers, Fences int64
	// ClockOffset is how far the database's clock is ahead of this machine's.
	ClockOffset time.Duration
}

// State is of this moment.
func (c *Cluster) State() State {
	c.mu.Lock()
	peers := len(c.peers)
	c.mu.Unlock()
	age := c.age()
	s := State{
		Node: c.o.Nodes.Node(), Peers: peers, BeatAge: age, MaySend: age < Lease/2,
		Takeovers: c.takeovers.Load(), Fences: c.fences.Load(), ClockOffset: c.o.Clock.Offset(),
	}
	if age == never {
		s.BeatAge = -1
	}
	return s
}

// beats beats every Interval, and at once when another node changed something.
func (c *Cluster) beats() {
	timer := time.NewTimer(Interval)
	defer timer.Stop()
	notices := c.o.Nodes.Notices()
	for {
		select {
		case <-c.ctx.Done():
			return
		case _, ok := <-notices:
			if !ok {
				notices = nil
				continue
			}
			if wait := spacing - time.Since(c.sent); wait > 0 {
				timer.Reset(wait)
				continue
			}
		case <-timer.C:
		}
		_ = c.beat(c.ctx) // noted there
		timer.Reset(max(Interval-time.Since(c.sent), 0))
	}
}

// beat renews the lease and takes in what comes with it.
func (c *Cluster) beat(ctx context.Context) error {
	m := c.mark()
	c.sent = time.Now()
	ctx, cancel := context.WithTimeout(ctx, Lease/2) // confirmed later, it would be worth nothing
	var pulse *store.Pulse
	err := c.o.Guard.Try(contain.Background, "a beat", func() (err error) {
		pulse, err = c.o.Nodes.Beat(ctx)
		return err
	})
	cancel()
	switch {
	case errors.Is(err, store.ErrFenced):
		return c.rejoin()
	case err != nil:
		c.missed(err)
		return err
	}
	c.confirm(c.sent)
	c.o.Clock.observe(c.sent, time.Now(), pulse.Now)
	c.take(m, pulse)
	return nil
}

// marks are from before a beat.
type marks struct{ lanes, catalog uint64 }

func (c *Cluster) mark() marks {
	if p := c.attached(); p != nil {
		return marks{lanes: p.Lanes.Mark(), catalog: p.Catalog.Mark()}
	}
	return marks{}
}

func (c *Cluster) attached() *Parts {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.parts
}

// confirm notes a beat that went through.
func (c *Cluster) confirm(sent time.Time) {
	before := c.age()
	c.mu.Lock()
	last := c.confirmed.Swap(&sent)
	if c.run.IsZero() || last == nil || since(*last, sent) >= Lease/2 {
		c.run = sent // there may have been beats that this process slept through
	}
	if !c.away.IsZero() {
		c.o.Logger.Info("the database answers again", "after", time.Since(c.away).Round(time.Millisecond))
	}
	c.away, c.awayErr, c.fenced = time.Time{}, nil, false
	if last != nil && since(*last, sent) >= gap {
		c.chores.renew = true
	}
	p := c.parts
	c.mu.Unlock()
	if before >= Lease/2 && p != nil {
		p.Lanes.Pump()
	}
}

// missed notes a beat that did not go through.
func (c *Cluster) missed(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.run = time.Time{}
	if c.ctx.Err() != nil {
		return
	}
	if c.awayErr = err; c.away.IsZero() {
		c.away = c.sent
		c.o.Logger.Warn("the database does not answer; attempts stop until it does", "err", err)
	}
}

// rejoin is for a node that others declared dead: what it had is theirs. The lanes
// give up what they have before there is a new incarnation to take anything for,
// and in the committer's goroutine, so that nothing is written in between.
func (c *Cluster) rejoin() error {
	c.confirmed.Store(nil)
	p := c.attached()
	c.mu.Lock()
	c.run = time.Time{}
	if !c.fenced {
		c.o.Logger.Warn("other nodes have declared this one dead, and have taken its work over; joining them anew", "node", c.o.Nodes.Node())
	}
	c.fenced = true
	c.mu.Unlock()
	type result struct {
		sent time.Time
		err  error
	}
	joined := make(chan result, 1)
	join := func(ctx context.Context) {
		if p != nil {
			p.Lanes.Fence()
		}
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		sent := time.Now()
		joined <- result{sent, c.o.Guard.Try(contain.Store, "joining the other nodes", func() error { return c.o.Nodes.Join(ctx) })}
	}
	if p == nil {
		join(c.ctx)
	} else {
		p.Committer.Do(join)
	}
	select {
	case got := <-joined:
		if got.err != nil {
			c.missed(got.err)
			return got.err
		}
		c.sent = got.sent
	case <-c.ctx.Done():
		return c.ctx.Err()
	}
	c.fences.Add(1)
	c.o.Logger.Info("joined the other nodes anew", "node", c.o.Nodes.Node())
	c.confirm(c.sent)
	c.ask(chores{renew: true, look: true, jobs: true})
	return nil
}

// take takes in what a beat brought.
func (c *Cluster) take(m marks, pulse *store.Pulse) {
	var want chores
	c.mu.Lock()
	lived := c.lived()
	peers := make(map[int64]string, len(pulse.Peers))
	for _, p := range pulse.Peers {
		peers[p.Node] = p.Name
		if _, known := c.peers[p.Node]; !known {
			c.o.Logger.Info("another node is there", "node", p.Node, "name", p.Name)
		}
		if p.Silent > Lease && lived {
			c.news.dead[p.Node] = p
		}
	}
	for node, name := range c.peers {
		if _, still := peers[node]; still {
			continue
		}
		c.o.Logger.Info("another node is gone", "node", node, "name", name)
		if _, took := c.took[node]; !took {
			want.look, want.jobs = true, true
		}
	}
	for node := range c.took {
		if _, still := peers[node]; !still {
			delete(c.took, node)
		}
	}
	c.peers = peers
	for _, t := range pulse.Tenants {
		c.news.tenant(t)
	}
	for _, l := range pulse.Lanes {
		c.news.lanes[l.LaneKey] = laneNews{m, l}
	}
	some := !c.news.empty()
	p := c.parts
	c.mu.Unlock()
	if some {
		kick(c.heed)
	}
	if p != nil {
		c.heldBack(p, pulse.Discards)
	}
	want.jobs = want.jobs || pulse.Orphans > 0
	if since(c.reconcile, c.sent) >= reconcileEach {
		if !c.reconcile.IsZero() { // a start has looked
			want.reconcile, want.jobs = true, true
		}
		c.reconcile = c.sent
	}
	c.ask(want)
}

// lived reports whether every beat went through for a whole lease, up to now: only
// then does it mean something that a peer was silent. c.mu is held.
func (c *Cluster) lived() bool {
	last := c.confirmed.Load()
	return !c.run.IsZero() && last != nil && since(c.run, *last) >= Lease && c.MaySend()
}

// heldBack has the lanes hold back what is being discarded, and releases what they
// have of it for the node that does. The committer may be slow: there is one list on
// its way to it at most, and the next beat brings another.
func (c *Cluster) heldBack(p *Parts, discards []store.LaneKey) {
	if len(discards) == 0 && !c.discards || !c.discarding.CompareAndSwap(false, true) {
		return
	}
	c.discards = len(discards) > 0
	p.Committer.Do(func(ctx context.Context) {
		defer c.discarding.Store(false)
		now, elsewhere := time.Now(), p.Lanes.Discards(discards)
		before := c.released
		c.released = make(map[store.LaneKey]time.Time, len(elsewhere))
		for _, k := range elsewhere {
			if last, ok := before[k]; ok && now.Sub(last) < releaseEach {
				c.released[k] = last
				continue
			}
			c.released[k] = now
			within, cancel := context.WithTimeout(ctx, patience)
			held := p.Lanes.Held(k.Tenant, k.Webhook)
			err := c.o.Guard.Try(contain.Store, "releasing what another node discards", func() error { return c.o.Nodes.Release(within, k.Tenant, k.Webhook, held) })
			cancel()
			if err != nil {
				c.o.Logger.Warn("what another node discards could not be released; trying again", "tenant", k.Tenant, "webhook", k.Webhook, "err", err)
			}
		}
	})
}

func kick(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
