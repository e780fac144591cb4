// Package lane is the queue of one webhook: what of it is in memory, what is on
// disk, how many may be sent at once, and what holds it back.
//
// A Lane is a state machine without clock, lock or goroutine: its owner
// (package dispatch) serializes the calls and passes the time in. It promises
// that a delivery is in memory once at most, that what does not fit stays on
// disk and is asked for again, and that the order of arrival is kept.
//
// It must not know how a delivery is sent, nor who is served before whom.
package lane

import (
	"maps"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// Capacity is the most deliveries of one lane that wait in memory, those that
// are on their way there counted. As many replays may wait beside: they take no
// place from what is live.
const Capacity = 1024

// refill is how empty a lane's memory must be before more is fetched from disk:
// so that a claim is worth its cost.
const refill = Capacity / 2

// Item is a delivery in memory.
type Item struct {
	store.Queued
	// Size is what it takes of the memory budget for itself, in bytes.
	Size int
	// Shared is the body, where others have the same one in memory; else nil.
	Shared *Shared
}

// Shared is a body that several items have: it takes Size bytes of the memory
// budget until the last of its Holders is let go.
type Shared struct{ Size, Holders int }

// Lane is the queue of one webhook.
type Lane struct {
	Tenant  id.Tenant
	Webhook id.Webhook

	enabled     bool
	pausedUntil time.Time
	// discarding says that this process discards the queue, elsewhere that
	// another one does.
	discarding, elsewhere bool

	live       fifo // new events and retries
	background fifo // replays: they go when nothing live waits
	// held are the deliveries that a claim must pass over: in memory, in
	// flight, or sent and not recorded yet.
	held     map[id.Delivery]struct{}
	reserved int // places taken by events that are being committed
	inFlight int

	// While spilled, everything goes by way of the disk, so that nothing
	// overtakes what is there. spilling counts inserts without a place that are
	// being committed.
	spilled  bool
	spilling int
	// onDisk says that something due is (or may be) there to be claimed.
	onDisk bool
	// after is when to claim again, after a claim that failed.
	after    time.Time
	nextDue  time.Time // of what is on disk and not due yet; zero: nothing
	claiming bool
	coming   int  // the most that the claim on its way brings
	undone   bool // a claim is on its way that what was given back goes before
	stale    bool // something came to the disk while a claim was on its way

	pace    pace
	breaker breaker
	// How often the breaker opened and closed, for the metrics.
	opened, closed int
	// turned says that the breaker's state is news to others; see TakeTurn.
	turned bool
	// healthy is when an attempt last went well.
	healthy time.Time
}

// New makes the lane of a webhook.
func New(tenant id.Tenant, webhook id.Webhook) *Lane {
	return &Lane{Tenant: tenant, Webhook: webhook, held: make(map[id.Delivery]struct{}), pace: newPace()}
}

// Configure sets what the webhook's configuration says of the lane, and reports
// whether that is new. Settle is to follow.
func (l *Lane) Configure(enabled bool, pausedUntil, now time.Time) bool {
	if l.enabled == enabled && l.pausedUntil.Equal(pausedUntil) {
		return false
	}
	l.enabled, l.pausedUntil = enabled, pausedUntil
	if enabled && !pausedUntil.After(now) {
		if l.breaker.open() {
			l.closed++
			l.turned = true // others may have missed that it was off
		}
		l.breaker = breaker{} // somebody says that it can go on: believe them
	}
	return true
}

// Settle gives back to the disk what waits in memory of a lane that can't send
// for a while, so that it takes nobody's memory. What is given back is returned.
func (l *Lane) Settle(now time.Time) []*Item {
	if l.enabled && !l.discards() && !l.pausedUntil.After(now) && !l.breaker.until.After(now) {
		return nil
	}
	dropped := l.drop()
	if len(dropped) > 0 {
		l.undone = l.claiming
	}
	return dropped
}

// Fence gives back all that waits in memory: this process does not have it any
// more. What is in flight stays held until its outcome is recorded. A claim that
// is on its way is made after this, and may bring what it finds.
func (l *Lane) Fence() []*Item { return l.drop() }

func (l *Lane) drop() []*Item {
	dropped := append(l.live.clear(), l.background.clear()...)
	for _, it := range dropped {
		delete(l.held, it.ID)
	}
	if len(dropped) > 0 {
		l.returned()
	}
	return dropped
}

// returned notes that something was given back to the disk.
func (l *Lane) returned() { l.spilled, l.onDisk, l.stale = true, true, l.claiming }

// DropOne forgets one delivery that waits in memory. It reports false when the
// delivery is not there; Holds then tells whether it is being sent.
func (l *Lane) DropOne(delivery id.Delivery) (*Item, bool) {
	it := l.live.remove(delivery)
	if it == nil {
		it = l.background.remove(delivery)
	}
	if it == nil {
		return nil, false
	}
	delete(l.held, delivery)
	l.returned()
	return it, true
}

// Holds reports whether a delivery is in memory, in flight, or not recorded yet.
func (l *Lane) Holds(delivery id.Delivery) bool {
	_, ok := l.held[delivery]
	return ok
}

// Held is a copy of all that Holds reports.
func (l *Lane) Held() map[id.Delivery]struct{} { return maps.Clone(l.held) }

// Discard starts or ends the time in which this process discards the queue on
// disk: nothing is fetched from it meanwhile. When it ends, no other one does
// either, as far as is known. Settle is to follow.
func (l *Lane) Discard(on bool) {
	l.discarding, l.elsewhere = on, l.elsewhere && on
	l.Wake()
}

// DiscardElsewhere is Discard, for what another process does.
func (l *Lane) DiscardElsewhere(on bool) {
	if l.elsewhere != on {
		l.elsewhere = on
		l.Wake()
	}
}

// Discarded reports who discards the queue: this process, or another one.
func (l *Lane) Discarded() (here, elsewhere bool) { return l.discarding, l.elsewhere }

func (l *Lane) discards() bool { return l.discarding || l.elsewhere }

// Reserve takes a place for a delivery that is about to be committed. Without
// one, the delivery is to be left on disk. Commit or Release must follow.
func (l *Lane) Reserve(now time.Time) bool {
	if l.spilled || l.blocked(now) || l.live.len()+l.reserved+l.coming >= Capacity {
		l.Spill()
		return false
	}
	l.reserved++
	return true
}

// Spill is a Reserve that is given no place, for want of memory.
func (l *Lane) Spill() {
	l.spilled = true
	l.spilling++
}

// Release gives back what Reserve answered: nothing was committed.
func (l *Lane) Release(place bool) {
	if place {
		l.reserved--
	} else {
		l.spilling--
		l.Wake() // so that a claim finds out whether the lane is clear again
	}
}

// Committed follows a Reserve without a place: the delivery is on disk.
func (l *Lane) Committed() {
	l.spilling--
	l.Wake()
}

// HandOver follows a Reserve with a place: the delivery is on disk, and is sent
// from memory. It reports false where the delivery is left on disk, because what
// came before it was given back there meanwhile.
func (l *Lane) HandOver(it *Item) bool {
	l.reserved--
	if l.spilled && (l.onDisk || l.claiming) {
		l.Wake()
		return false
	}
	l.held[it.ID] = struct{}{}
	l.live.push(it)
	return true
}

// Hold marks a delivery that is sent outside the lane's order.
func (l *Lane) Hold(delivery id.Delivery) { l.held[delivery] = struct{}{} }

// Recorded says that a delivery's outcome is on disk. Due is its next attempt;
// zero if it is done.
func (l *Lane) Recorded(delivery id.Delivery, due time.Time) {
	delete(l.held, delivery)
	if !due.IsZero() {
		l.expect(due)
	}
}

// Forget says that a delivery was given back without an outcome: it is on disk
// as it was.
func (l *Lane) Forget(delivery id.Delivery) {
	delete(l.held, delivery)
	l.returned()
}

// Expect says when something will be due on disk.
func (l *Lane) Expect(due time.Time) { l.expect(due) }

func (l *Lane) expect(due time.Time) {
	if l.nextDue.IsZero() || due.Before(l.nextDue) {
		l.nextDue = due
	}
}

// Behind says that the disk has what came before: until that has been fetched,
// everything goes by way of the disk.
func (l *Lane) Behind() {
	l.spilled = true
	l.Wake()
}

// Wake says that something new may be due on disk.
func (l *Lane) Wake() { l.onDisk, l.stale = true, l.claiming }

// WantsClaim reports whether something should be fetched from disk now, and how
// much.
func (l *Lane) WantsClaim(now time.Time) (limit int, ok bool) {
	waiting := l.live.len() + l.background.len() + l.reserved
	if l.claiming || l.discards() || l.blocked(now) || waiting > refill || l.after.After(now) {
		return 0, false
	}
	if !l.onDisk && (l.nextDue.IsZero() || l.nextDue.After(now)) {
		return 0, false
	}
	if l.breaker.open() {
		return 1, waiting == 0 // the probe
	}
	if !l.spilled {
		// What is published meanwhile needs places too.
		return (Capacity - waiting) / 2, true
	}
	return Capacity - waiting, true
}

// Claiming says that a claim of at most limit deliveries is on its way; Claimed
// or ClaimFailed must follow.
func (l *Lane) Claiming(limit int) {
	l.claiming, l.coming, l.stale, l.undone = true, limit, false, false
}

// Claimed takes what a claim brought, or reports false and leaves it on disk,
// because what goes before it was given back there meanwhile. Settle is to
// follow.
func (l *Lane) Claimed(items []*Item, more bool, nextDue time.Time) bool {
	l.claiming, l.coming = false, 0
	if l.undone {
		return false
	}
	l.onDisk, l.nextDue = more || l.stale, nextDue
	if !more && !l.stale && l.spilling == 0 {
		l.spilled = false
	}
	for _, it := range items {
		l.held[it.ID] = struct{}{}
		if it.Trigger == hook.TriggerReplay {
			l.background.push(it)
		} else {
			l.live.push(it)
		}
	}
	return true
}

// ClaimFailed says that the claim brought nothing, because the store did not
// answer.
func (l *Lane) ClaimFailed(retry time.Time) {
	l.claiming, l.coming = false, 0
	l.spilled, l.onDisk, l.after = true, true, retry
}

// blocked reports whether the lane may send nothing now.
func (l *Lane) blocked(now time.Time) bool {
	return !l.enabled || l.pausedUntil.After(now) || !l.breaker.allows(now)
}

// Next takes the next delivery to send; nil if there is none, or none may be
// sent now. Finished must follow. share is the most that the lane may have in
// flight, besides its own limit.
func (l *Lane) Next(now time.Time, share int) *Item {
	if l.discards() || l.blocked(now) || l.inFlight >= l.limit(share) {
		return nil
	}
	it := l.live.pop()
	if it == nil {
		it = l.background.pop()
	}
	if it != nil {
		l.inFlight++
		l.breaker.started()
	}
	return it
}

// Ready reports whether Next would find something, had the lane a slot.
func (l *Lane) Ready(now time.Time) bool {
	return !l.discards() && !l.blocked(now) && l.live.len()+l.background.len() > 0
}

// Saturated reports whether the lane has all in flight that it may.
func (l *Lane) Saturated(share int) bool { return l.inFlight >= l.limit(share) }

func (l *Lane) limit(share int) int {
	if l.breaker.open() {
		return 1
	}
	return min(l.pace.limit, share)
}

// Verdict is what an attempt says of the receiver's health.
type Verdict uint8

// The verdicts.
const (
	Healthy Verdict = iota // it answered, and not that it is overloaded
	Ailing                 // no answer, 429 or 5xx
	NoWord                 // nothing was sent
)

// Judge is what an attempt says. Only what points at the receiver's health is
// held against it: an address that may not be called, or a 404, is not.
//
// What the operator's proxy could not do counts as what our own network or
// resolver can't: it does not tell a receiver that is gone from a fault of ours.
// Were it not counted, a receiver that hangs behind the proxy would keep its
// slots, and an outage of the proxy would use up the tries of all that waits.
// Held back, it waits, and a probe finds out when it may go on.
func Judge(a *hook.Attempt) Verdict {
	switch {
	case a.Failure == nil:
		return Healthy
	case a.StatusCode == 429 || a.StatusCode >= 500:
		return Ailing
	case a.Failure.Kind == hook.FailureTimeout, a.Failure.Kind == hook.FailureConnect,
		a.Failure.Kind == hook.FailureDNS, a.Failure.Kind == hook.FailureTLS, a.Failure.Kind == hook.FailureProtocol,
		a.Failure.Kind == hook.FailureProxy:
		return Ailing
	case a.Failure.Kind == hook.FailureBlocked, a.Failure.Kind == hook.FailureInternal:
		return NoWord
	default:
		return Healthy
	}
}

// Finished follows a Next.
func (l *Lane) Finished(v Verdict, now time.Time) {
	l.inFlight--
	was := l.breaker.until
	switch v {
	case Healthy:
		l.healthy = now
		if l.breaker.succeeded() {
			l.closed++
			l.pace = pace{limit: 1} // closing ramps
		}
		l.pace.succeeded()
	case Ailing:
		if l.breaker.failed(now) {
			l.opened++
		}
		l.pace.failed()
	case NoWord:
		l.breaker.released()
	}
	l.turned = l.turned || !l.breaker.until.Equal(was)
}

// NextWake is when the lane is worth another look though nothing happened to
// it; zero for never.
func (l *Lane) NextWake(now time.Time) time.Time {
	waiting := l.onDisk || l.live.len()+l.background.len() > 0
	if !l.enabled || l.discards() || !waiting && l.nextDue.IsZero() {
		return time.Time{}
	}
	at := later(l.pausedUntil, l.breaker.until)
	switch {
	case !waiting:
		at = later(at, l.nextDue)
	case at.After(now):
	case l.onDisk && l.after.After(now):
		at = l.after
	default:
		// What waits may go now. What is due later needs a look of its own:
		// nothing else may happen until then.
		at = l.nextDue
	}
	if !at.After(now) {
		return time.Time{}
	}
	return at
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// Busy reports whether the lane has work that is due, in memory or on disk, or
// can't send what it would have.
func (l *Lane) Busy(now time.Time) bool {
	return l.blocked(now) || l.discards() || l.claiming || l.onDisk || l.live.len()+l.background.len() > 0 ||
		!l.nextDue.IsZero() && !l.nextDue.After(now)
}

// Quiet reports whether the lane can be forgotten: nothing in memory, nothing
// known on disk, nothing in flight. What it learned of its receiver goes with
// it; that is old by the time its owner asks.
func (l *Lane) Quiet() bool {
	return len(l.held) == 0 && l.reserved == 0 && l.inFlight == 0 && l.spilling == 0 && !l.onDisk && !l.claiming &&
		!l.spilled && l.nextDue.IsZero() && !l.discards()
}

// Gone reports whether nothing of the lane is in memory or in flight.
func (l *Lane) Gone() bool {
	return len(l.held) == 0 && l.reserved == 0 && l.inFlight == 0 && l.spilling == 0 && !l.claiming
}

// InFlight is how many are being sent.
func (l *Lane) InFlight() int { return l.inFlight }

// Waiting is how many wait in memory.
func (l *Lane) Waiting() int { return l.live.len() + l.background.len() }

// Open reports whether the breaker holds the lane back.
func (l *Lane) Open() bool { return l.breaker.open() }
