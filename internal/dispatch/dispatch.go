// Package dispatch decides which delivery is sent next, sends it, and says what
// becomes of it. It owns the lanes: events are handed over to them by the
// committer, what is due on disk is claimed for them, and the slots for
// attempts in flight are shared fairly among tenants and webhooks.
//
// It promises:
//
//   - A delivery is in flight once at most in this process, and an attempt's
//     outcome is recorded before the delivery can be sent again.
//   - A webhook that hangs holds no more than its own share of slots, and memory
//     is bounded whatever waits.
//   - Attempts in flight and outcomes that are not on disk yet are together no
//     more than there are slots: a crash can't double more than that.
//   - Nothing is polled: a lane moves when something happened to it, or when the
//     time it named has come.
//   - An attempt that panics has failed, and harms nobody else. A panic while the
//     lanes change ends the process: they would not agree with the disk any more.
//
// It must not know HTTP, nor who published what.
package dispatch

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/plinqx/hypha/internal/catalog"
	"github.com/plinqx/hypha/internal/contain"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/lane"
	"github.com/plinqx/hypha/internal/retry"
	"github.com/plinqx/hypha/internal/send"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/signature"
)

// Store is where work is claimed from. Its methods are called in the
// committer's goroutine, Backlog anywhere.
type Store interface {
	Claim(ctx context.Context, p store.ClaimParams) (*store.Claimed, error)
	Expire(ctx context.Context, p store.ExpireParams) (*store.ExpireResult, error)
	Backlog(ctx context.Context) ([]store.BacklogLane, error)
}

// Committer takes outcomes, and runs what must see the store and the lanes
// agree (package commit).
type Committer interface {
	Record(o *store.Outcome)
	Unrecorded() int
	Do(f func(ctx context.Context))
}

// Sender makes one attempt (package send).
type Sender interface {
	Send(ctx context.Context, r send.Request) *hook.Attempt
}

// Holder changes a webhook when its receiver asked for it (package registry).
type Holder interface {
	Pause(ctx context.Context, tenant id.Tenant, webhook id.Webhook, until time.Time) error
	Disable(ctx context.Context, tenant id.Tenant, webhook id.Webhook, reason hook.DisabledReason) error
}

// Options are what a dispatcher needs. Zero values of the numbers stand for the
// defaults; the rest is required.
type Options struct {
	Store     Store
	Committer Committer
	Catalog   *catalog.Catalog
	Sender    Sender
	Holder    Holder
	Schedule  retry.Schedule
	Prefix    signature.Prefix
	// UserAgent is what requests say of themselves.
	UserAgent string
	Now       func() time.Time
	Logger    *slog.Logger
	// Guard contains panics. Default: they end the process by themselves.
	Guard *contain.Guard
	// Slots is the most attempts in flight at once; default 1,024.
	Slots int
	// Memory is the most that deliveries waiting in memory may take, in bytes;
	// default 32 MiB.
	Memory int
	// MaxAge is how long a delivery may stay unfinished; default 7 days.
	MaxAge time.Duration
	// Chance rolls the jitter of a retry: uniform in [0, 1); default
	// math/rand/v2.
	Chance func() float64
	// Attempted is told of every attempt, for the metrics. It must not wait.
	Attempted func(a *hook.Attempt, change hook.Change)

	// MaySend reports whether attempts may start at all; Pump is to be called when
	// it turns true. It is asked for every attempt. Default: they may.
	MaySend func() bool
	// TellBreaker tells other processes until when a webhook's breaker is open,
	// zero for closed. It is called by a goroutine that does nothing else. Default:
	// there are none.
	TellBreaker func(ctx context.Context, tenant id.Tenant, webhook id.Webhook, until time.Time) error
	// Release lets other processes have what this one has of a webhook and does not
	// hold. It is called in the committer's goroutine when the dispatcher stops.
	// Default: there are none.
	Release func(ctx context.Context, tenant id.Tenant, webhook id.Webhook, held func(id.Delivery) bool) error
}

// The defaults of Options.
const (
	DefaultSlots  = 1024
	DefaultMemory = 32 << 20
	DefaultMaxAge = 7 * 24 * time.Hour
)

// itemOverhead is what a delivery takes in memory besides its body, in bytes.
const itemOverhead = 512

// Dispatcher is safe for concurrent use. It works between Start and Stop.
type Dispatcher struct {
	o Options

	// hard ends attempts that are in flight when there is no more time.
	hard   context.Context
	cancel context.CancelFunc
	wake   chan struct{} // holds one: a wake-up earlier than the one slept for
	quit   chan struct{}
	wg     sync.WaitGroup

	mu       sync.Mutex
	stopping bool
	lanes    map[key]*laneState
	fair     fair
	wakes    wakeHeap
	inFlight int
	workers  workers
	// How often the breakers of lanes that were forgotten turned since the gauge
	// was read.
	opened, closed int
	memory         budget
	watches        map[id.Delivery]*watch
	tests          int // watches that have not ended, in all and by tenant
	testsOf        map[id.Tenant]int
	// names of headers that differ from attempt to attempt
	eventHeader, deliveryHeader string
	idle                        chan struct{} // closed when stopping and nothing is in flight
	telling                     telling
	discarded                   map[key]struct{} // what Discards was told last

	proxyReports, blockedReports rate.Sometimes
}

type key struct {
	tenant  id.Tenant
	webhook id.Webhook
}

// laneState is a lane and what the dispatcher needs to serve it.
type laneState struct {
	*lane.Lane
	known   bool // the webhook's configuration has been looked at
	deleted bool // and there was none: the lane goes when nothing is in flight
	// target is what requests are made of, for the webhook's revision.
	target  *target
	lookAt  time.Time // while not known: when to look, if it failed before
	looking bool
	sweepAt time.Time // when deliveries may have grown too old; zero: none
	// sweeping says that a sweep is on its way. What comes meanwhile sets
	// sweepAt for itself.
	sweeping  bool
	wakeAt    time.Time // when to look at the lane again; zero: not in the heap
	wakeIndex int       // in the heap
	queued    bool      // waits its turn in fair
	hungry    bool      // waits for memory
	memory    int       // that it is held to, in bytes
	breaker   hearsay
}

// watch is a test-send, from before it is committed until it has ended.
type watch struct {
	attempt chan *hook.Attempt
	result  *hook.Attempt
	started bool
}

// Test-sends go past what holds lanes back, and take slots that nobody shares
// out: so a tenant has few at a time, and all together leave most slots alone.
const (
	testsOfTenant = 8
	testsOfSlots  = 8 // one slot in so many
)

// New makes a dispatcher that has not started.
func New(o Options) *Dispatcher {
	if o.Slots == 0 {
		o.Slots = DefaultSlots
	}
	if o.Memory == 0 {
		o.Memory = DefaultMemory
	}
	if o.MaxAge == 0 {
		o.MaxAge = DefaultMaxAge
	}
	if o.Chance == nil {
		o.Chance = rand.Float64
	}
	if o.Attempted == nil {
		o.Attempted = func(*hook.Attempt, hook.Change) {}
	}
	if o.MaySend == nil {
		o.MaySend = func() bool { return true }
	}
	d := &Dispatcher{
		o: o, wake: make(chan struct{}, 1), quit: make(chan struct{}), idle: make(chan struct{}),
		lanes: make(map[key]*laneState), watches: make(map[id.Delivery]*watch), testsOf: make(map[id.Tenant]int), fair: newFair(), memory: newBudget(o.Memory),
		proxyReports: rate.Sometimes{Interval: reportEvery}, blockedReports: rate.Sometimes{Interval: reportEvery},
		telling:        telling{wake: make(chan struct{}, 1)},
		eventHeader:    http.CanonicalHeaderKey(o.Prefix.String() + "-Event"),
		deliveryHeader: http.CanonicalHeaderKey(o.Prefix.String() + "-Delivery"),
	}
	d.hard, d.cancel = context.WithCancel(context.Background())
	return d
}

// Start takes up what the store has waiting and begins to send. It returns when
// the backlog is known, which does not grow with the number of deliveries.
func (d *Dispatcher) Start(ctx context.Context) error {
	backlog, err := d.o.Store.Backlog(ctx)
	if err != nil {
		return err
	}
	now := d.now()
	d.mu.Lock()
	for _, b := range backlog {
		l := d.lane(b.Tenant, b.Webhook)
		l.Behind()
		l.sweepAt = now
	}
	d.mu.Unlock()
	d.wg.Go(func() { d.o.Guard.OrEnd("the clock of the lanes", d.clock) })
	if d.o.TellBreaker != nil {
		d.wg.Go(func() { d.o.Guard.OrEnd("the telling of breakers", d.tellBreakers) })
	}
	d.wg.Go(func() {
		// Which webhooks may send is the catalogue's to say; reading it for all
		// of them must not keep the server from being ready.
		for _, b := range backlog {
			select {
			case <-d.quit:
				return
			default:
				d.WebhookChanged(b.Tenant, b.Webhook)
			}
		}
	})
	return nil
}

// Stop starts nothing more and waits for what is in flight, as long as ctx
// lasts; then it breaks that off. What waits stays on disk, and other processes may
// have it at once.
func (d *Dispatcher) Stop(ctx context.Context) {
	d.mu.Lock()
	if d.stopping {
		d.mu.Unlock()
		return
	}
	d.stopping = true
	d.dismiss()
	if d.inFlight == 0 {
		close(d.idle)
	}
	if d.o.Release != nil {
		d.release()
	}
	d.mu.Unlock()
	close(d.quit)
	select {
	case <-d.idle:
	case <-ctx.Done():
	}
	d.cancel()
	d.wg.Wait()
}

func (d *Dispatcher) now() time.Time { return d.o.Now() }

// unlock gives d.mu back, deferred. After a panic it does not: what the lanes hold
// may be half changed, and nobody may see that before the process has ended.
func (d *Dispatcher) unlock() {
	if p := recover(); p != nil {
		d.o.Guard.Torn("the lanes", p)
	}
	d.mu.Unlock()
}

// lane finds or makes a lane. d.mu is held.
func (d *Dispatcher) lane(tenant id.Tenant, webhook id.Webhook) *laneState {
	k := key{tenant, webhook}
	l := d.lanes[k]
	if l == nil {
		l = &laneState{Lane: lane.New(tenant, webhook)}
		d.lanes[k] = l
	}
	return l
}

// WebhookChanged takes over what the catalogue says of a webhook. It implements
// catalog.Observer.
func (d *Dispatcher) WebhookChanged(tenant id.Tenant, webhook id.Webhook) {
	d.mu.Lock()
	l := d.lanes[key{tenant, webhook}]
	d.mu.Unlock()
	if l == nil {
		return // it has no work; it is looked at when it gets some
	}
	_, _ = d.look(l) // logged, and tried again
}

// look answers a lane's webhook as it is now, nil for one that was deleted, and
// puts its state into the lane. d.mu is not held.
func (d *Dispatcher) look(l *laneState) (*hook.Webhook, error) {
	for {
		w, err := d.read(l)
		gone := err != nil && hook.CodeOf(err) == hook.CodeNotFound
		if err != nil && !gone {
			d.o.Logger.Warn("a webhook's configuration could not be read; trying again", "tenant", l.Tenant, "webhook", l.Webhook, "err", err)
			d.mu.Lock()
			defer d.unlock()
			// Until it is known what may be sent, nothing is.
			l.known, l.looking, l.lookAt = false, false, d.now().Add(time.Second)
			l.Configure(false, time.Time{}, d.now())
			d.update(l)
			return nil, err
		}
		if w, ok := d.looked(l, w, gone); ok {
			return w, nil
		}
	}
}

// read answers a lane's webhook as the catalogue has it.
func (d *Dispatcher) read(l *laneState) (w *hook.Webhook, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = d.o.Guard.Caught(contain.Background, "reading a webhook's configuration", p, "tenant", l.Tenant, "webhook", l.Webhook)
		}
	}()
	return d.o.Catalog.Webhook(d.hard, l.Tenant, l.Webhook)
}

// looked puts the state of a webhook that was read into its lane, unless it has to be
// read again.
func (d *Dispatcher) looked(l *laneState, w *hook.Webhook, gone bool) (*hook.Webhook, bool) {
	d.mu.Lock()
	defer d.unlock()
	// It may have changed since, and whoever was to tell may have been here before
	// us. What the catalogue holds now is the newest: of a later change we are told
	// later.
	held, ok := d.o.Catalog.Held(l.Tenant, l.Webhook)
	if !ok && !gone {
		return nil, false
	}
	if ok {
		w = held
	}
	if d.configure(l, w) {
		d.update(l)
	}
	return w, true
}

// configure puts a webhook's state into its lane, nil for one that was deleted,
// and reports whether that is news. d.mu is held.
func (d *Dispatcher) configure(l *laneState, w *hook.Webhook) bool {
	news := !l.known || l.deleted != (w == nil)
	l.known, l.looking, l.deleted = true, false, w == nil
	if w == nil {
		l.target = nil
		return l.Configure(false, time.Time{}, d.now()) || news
	}
	if l.target != nil && l.target.revision != w.Revision {
		l.target = nil
	}
	news = l.Configure(w.Enabled, w.PausedUntil, d.now()) || news
	d.turned(l)
	return news
}

// Reserve implements ingest.Lanes.
func (d *Dispatcher) Reserve(tenant id.Tenant, e *store.NewEvent) {
	if len(e.Deliveries) == 0 {
		return
	}
	d.learn(tenant, e)
	now, taken := d.now(), places{body: e.Body}
	d.mu.Lock()
	defer d.unlock()
	for i := range e.Deliveries {
		nd := &e.Deliveries[i]
		l := d.lane(tenant, nd.Webhook)
		if l.sweepAt.IsZero() || e.ExpiresAt.Before(l.sweepAt) {
			l.sweepAt = e.ExpiresAt
		}
		if nd.Trigger == hook.TriggerTest {
			l.Hold(nd.ID)
			nd.Held = true
			continue
		}
		if charge(e.Body) > d.memory.room(l) || d.stopping {
			nd.Held = false
			l.Spill()
			continue
		}
		if nd.Held = l.Reserve(now); nd.Held {
			d.memory.take(l, charge(e.Body), taken.next())
			taken.n++
		}
	}
}

// learn looks at the configuration of lanes that are new. The event was just
// matched, so the catalogue has it at hand.
func (d *Dispatcher) learn(tenant id.Tenant, e *store.NewEvent) {
	var unknown []id.Webhook
	d.mu.Lock()
	for i := range e.Deliveries {
		if l := d.lane(tenant, e.Deliveries[i].Webhook); !l.known {
			unknown = append(unknown, l.Webhook)
		}
	}
	d.mu.Unlock()
	for _, webhook := range unknown {
		d.WebhookChanged(tenant, webhook)
	}
}

// HandOver implements ingest.Lanes.
func (d *Dispatcher) HandOver(tenant id.Tenant, e *store.NewEvent) {
	publicID := e.GivenID
	if publicID == "" {
		publicID = e.ID.String()
	}
	shared := &lane.Shared{Size: len(e.Body)}
	d.mu.Lock()
	defer d.unlock()
	for i := range e.Deliveries {
		if nd := &e.Deliveries[i]; nd.Held && nd.Trigger != hook.TriggerTest {
			shared.Holders++
		}
	}
	for i := range e.Deliveries {
		nd := &e.Deliveries[i]
		l := d.lane(tenant, nd.Webhook)
		if !nd.Held {
			l.Committed()
			d.update(l)
			continue
		}
		it := &lane.Item{Queued: store.Queued{
			ID: nd.ID, Event: e.ID, PublicEventID: publicID, EventType: e.Type, Body: e.Body,
			Trigger: nd.Trigger, Due: e.Due, ExpiresAt: e.ExpiresAt,
		}}
		if nd.Trigger == hook.TriggerTest {
			d.startTest(l, it)
			continue
		}
		it.Size, it.Shared = itemOverhead, shared
		if !l.HandOver(it) {
			d.letGo(l, it)
		}
		d.update(l)
	}
}

// startTest sends a test, though whoever asked for it may not wait any more: it
// is on disk. d.mu is held.
func (d *Dispatcher) startTest(l *laneState, it *lane.Item) {
	w := d.watches[it.ID]
	if w == nil { // who asked for it has left
		w = d.newWatch(it.ID, l.Tenant)
		delete(d.watches, it.ID)
	}
	w.started = true
	if d.stopping || !d.o.MaySend() {
		d.testEnded(l.Tenant)
		l.Forget(it.ID)
		w.attempt <- nil
		d.update(l)
		return
	}
	d.inFlight++
	d.wg.Go(func() { d.test(l, it, w) })
}

// Release implements ingest.Lanes.
func (d *Dispatcher) Release(tenant id.Tenant, e *store.NewEvent) {
	returned := places{body: e.Body}
	d.mu.Lock()
	defer d.unlock()
	for i := range e.Deliveries {
		nd := &e.Deliveries[i]
		l := d.lane(tenant, nd.Webhook)
		if nd.Trigger == hook.TriggerTest {
			l.Recorded(nd.ID, time.Time{})
			d.update(l)
			continue
		}
		if nd.Held {
			d.memory.take(l, -charge(e.Body), -returned.next())
			returned.n++
		}
		l.Release(nd.Held)
		d.update(l)
	}
	d.feed()
}

// Watch implements ingest.Lanes.
func (d *Dispatcher) Watch(tenant id.Tenant, delivery id.Delivery) (attempt <-chan *hook.Attempt, stop func(), ok bool) {
	d.mu.Lock()
	defer d.unlock()
	if d.testsOf[tenant] >= testsOfTenant || d.tests >= max(d.o.Slots/testsOfSlots, 1) {
		return nil, nil, false
	}
	w := d.newWatch(delivery, tenant)
	return w.attempt, func() {
		d.mu.Lock()
		defer d.unlock()
		delete(d.watches, delivery)
		if !w.started {
			d.testEnded(tenant)
		}
	}, true
}

// newWatch counts a test-send. testEnded must follow. d.mu is held.
func (d *Dispatcher) newWatch(delivery id.Delivery, tenant id.Tenant) *watch {
	w := &watch{attempt: make(chan *hook.Attempt, 1)}
	d.watches[delivery] = w
	d.tests++
	d.testsOf[tenant]++
	return w
}

// testEnded makes room for another test-send. d.mu is held.
func (d *Dispatcher) testEnded(tenant id.Tenant) {
	d.tests--
	if d.testsOf[tenant]--; d.testsOf[tenant] == 0 {
		delete(d.testsOf, tenant)
	}
}

// Recorded takes outcomes that are on disk. The committer calls it.
func (d *Dispatcher) Recorded(outcomes []*store.Outcome) {
	d.mu.Lock()
	defer d.unlock()
	for _, o := range outcomes {
		l := d.lane(o.Tenant, o.Webhook)
		due := time.Time{}
		if o.Change == hook.Postponed {
			due = o.Due
		}
		l.Recorded(o.Delivery, due)
		if w := d.watches[o.Delivery]; w != nil && w.result != nil {
			w.attempt <- w.result // has room for the one there is
			w.result = nil
		}
		d.update(l)
	}
	d.pump()
}

// update looks at a lane after something happened to it: gives back what can't
// be sent, fetches what is due, queues it for a slot, notes when to look again.
// d.mu is held.
func (d *Dispatcher) update(l *laneState) {
	now := d.now()
	for _, it := range l.Settle(now) {
		d.letGo(l, it)
	}
	d.claim(l, now)
	if l.deleted && !l.queued && !l.sweeping && l.Gone() {
		d.forget(l)
		return
	}
	if l.Ready(now) {
		d.fair.push(l)
		d.pump()
	}
	at := earlier(l.NextWake(now), l.sweepAt)
	if !l.known && !l.looking {
		if at = l.lookAt; at.Before(now) {
			at = now
		}
	}
	d.wakes.set(l, at)
	if l.wakeIndex == 0 && !at.IsZero() {
		kick(d.wake)
	}
}

// earlier is the first of two times; zero is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// forget lets go of a lane. d.mu is held.
func (d *Dispatcher) forget(l *laneState) {
	d.wakes.set(l, time.Time{})
	if k := (key{l.Tenant, l.Webhook}); d.lanes[k] == l {
		opened, closed := l.TakeBreakerTurns()
		d.opened += opened
		d.closed += closed
		delete(d.lanes, k)
	}
}

// claim fetches what is due for a lane, if it wants anything and there is room.
// d.mu is held.
func (d *Dispatcher) claim(l *laneState, now time.Time) {
	limit, ok := l.WantsClaim(now)
	if !ok || d.stopping {
		return
	}
	if room := min(claimBytes, d.memory.room(l)); room >= claimBytes/16 {
		d.fetch(l, limit, room, false)
	} else if l.Waiting() == 0 && l.InFlight() == 0 {
		d.starve(l)
	} // else it waits for what it has to go
}

// fetch has the committer claim for a lane. An urgent claim brings one delivery,
// of whatever size. d.mu is held.
func (d *Dispatcher) fetch(l *laneState, limit, room int, urgent bool) {
	reserve := room
	if urgent {
		reserve = d.memory.urgentSize()
	}
	l.Claiming(limit)
	d.memory.take(l, reserve, reserve)
	d.o.Committer.Do(func(ctx context.Context) {
		d.mu.Lock()
		held := l.Held()
		d.mu.Unlock()
		var got *store.Claimed
		err := d.o.Guard.Try(contain.Store, "fetching what is due", func() (err error) {
			got, err = d.o.Store.Claim(ctx, store.ClaimParams{
				Tenant: l.Tenant, Webhook: l.Webhook, Now: d.now(), Limit: limit, MaxBytes: room,
				Held: func(delivery id.Delivery) bool { _, ok := held[delivery]; return ok },
			})
			return err
		})
		d.mu.Lock()
		defer d.unlock()
		d.memory.take(l, -reserve, -reserve)
		if err != nil {
			d.o.Logger.Warn("due deliveries could not be fetched; trying again", "tenant", l.Tenant, "webhook", l.Webhook, "err", err)
			l.ClaimFailed(d.now().Add(time.Second))
		} else {
			items := make([]*lane.Item, len(got.Deliveries))
			for i, q := range got.Deliveries {
				items[i] = &lane.Item{Queued: q, Size: charge(q.Body)}
				d.memory.take(l, items[i].Size, items[i].Size)
			}
			if !l.Claimed(items, got.More, got.NextDue) {
				for _, it := range items {
					d.letGo(l, it)
				}
			}
		}
		d.update(l)
		if d.forgettable(l) {
			d.forget(l)
		}
		d.feed()
	})
}

// clock wakes lanes whose time has come. It sleeps a second at most towards the
// next one, because timers stand still while a machine sleeps.
func (d *Dispatcher) clock() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-d.quit:
			return
		case <-d.wake:
		case <-timer.C:
		}
		timer.Reset(d.tick())
	}
}

// idleSleep is how long the clock sleeps when no lane named a time.
const idleSleep = time.Hour

func (d *Dispatcher) tick() time.Duration {
	d.mu.Lock()
	defer d.unlock()
	now := d.now()
	sleep := idleSleep
	if d.trim(now) {
		sleep = trimAfter
	}
	for len(d.wakes) > 0 && !d.stopping {
		l := d.wakes[0]
		if wait := l.wakeAt.Sub(now); wait > 0 {
			return min(wait, time.Second)
		}
		d.wakes.set(l, time.Time{})
		if !l.known && !l.looking {
			l.looking = true
			d.wg.Go(func() { _, _ = d.look(l) }) // logs, and tries again
		}
		if !l.sweepAt.IsZero() && !l.sweepAt.After(now) {
			d.sweep(l)
		}
		if d.forgettable(l) {
			d.forget(l)
			continue
		}
		d.update(l)
	}
	return sleep
}

func (d *Dispatcher) forgettable(l *laneState) bool {
	return l.known && !l.queued && !l.sweeping && l.sweepAt.IsZero() && l.Quiet()
}

// sweepLimit is how many deliveries one transaction gives up.
const sweepLimit = 2000

// sweep gives up what grew too old on a lane, whatever holds the lane back.
// d.mu is held.
func (d *Dispatcher) sweep(l *laneState) {
	l.sweeping, l.sweepAt = true, time.Time{}
	d.o.Committer.Do(func(ctx context.Context) {
		d.mu.Lock()
		held := l.Held()
		d.mu.Unlock()
		var got *store.ExpireResult
		err := d.o.Guard.Try(contain.Store, "giving up what is too old", func() (err error) {
			got, err = d.o.Store.Expire(ctx, store.ExpireParams{
				Tenant: l.Tenant, Webhook: l.Webhook, Now: d.now(), Limit: sweepLimit,
				Held: func(delivery id.Delivery) bool { _, ok := held[delivery]; return ok },
			})
			return err
		})
		d.mu.Lock()
		defer d.unlock()
		l.sweeping = false
		again := d.now().Add(sweepAgain)
		switch {
		case err != nil:
			d.o.Logger.Warn("deliveries that are too old could not be given up; trying again", "tenant", l.Tenant, "webhook", l.Webhook, "err", err)
		case got.More:
			again = d.now()
		case got.Next.IsZero() || got.Next.After(d.now()):
			again = got.Next
		}
		l.sweepAt = earlier(l.sweepAt, again)
		if err == nil && got.Expired > 0 {
			d.o.Logger.Info("deliveries expired", "tenant", l.Tenant, "webhook", l.Webhook, "count", got.Expired)
		}
		if d.forgettable(l) {
			d.forget(l)
			return
		}
		d.update(l)
	})
}

// sweepAgain is when a lane is swept again of which something could not be given
// up now: the store did not answer, or it is being sent.
const sweepAgain = time.Minute

func kick(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
