package dispatch

import (
	"slices"

	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/lane"
)

// What follows lets others (package replay) change what waits on a lane. All of
// it is to be called in the committer's goroutine, where the store and the
// lanes agree, except Busy.

// Drop takes a delivery out of the lane's memory, for its row to be changed. It
// reports false when the delivery is being sent, or its outcome is not on disk
// yet: then nothing may be changed.
func (d *Dispatcher) Drop(tenant id.Tenant, webhook id.Webhook, delivery id.Delivery) bool {
	d.mu.Lock()
	defer d.unlock()
	l := d.lanes[key{tenant, webhook}]
	if l == nil {
		return true
	}
	if it, ok := l.DropOne(delivery); ok {
		d.letGo(l, it)
		d.update(l)
		return true
	}
	return !l.Holds(delivery)
}

// Discard begins or ends the discarding of a webhook's queue: meanwhile nothing
// of it is sent.
func (d *Dispatcher) Discard(tenant id.Tenant, webhook id.Webhook, on bool) {
	d.mu.Lock()
	defer d.unlock()
	l := d.lanes[key{tenant, webhook}]
	if l == nil && !on {
		return
	}
	l = d.lane(tenant, webhook)
	l.Discard(on)
	if l.sweepAt.IsZero() {
		l.sweepAt = d.now() // it may have nothing, and is forgotten then
	}
	d.update(l)
}

// Held reports what is in memory or being sent, as it is now.
func (d *Dispatcher) Held(tenant id.Tenant, webhook id.Webhook) func(id.Delivery) bool {
	d.mu.Lock()
	defer d.unlock()
	l := d.lanes[key{tenant, webhook}]
	if l == nil {
		return func(id.Delivery) bool { return false }
	}
	held := l.Held()
	return func(delivery id.Delivery) bool { _, ok := held[delivery]; return ok }
}

// Wake makes a lane look for what is due on disk.
func (d *Dispatcher) Wake(tenant id.Tenant, webhook id.Webhook) {
	d.mu.Lock()
	l := d.lane(tenant, webhook)
	l.Wake()
	if l.sweepAt.IsZero() {
		l.sweepAt = d.now().Add(d.o.MaxAge)
	}
	known := l.known
	d.update(l)
	d.mu.Unlock()
	if !known {
		d.WebhookChanged(tenant, webhook)
	}
}

// Busy reports whether a lane has work that is due, or can't send.
func (d *Dispatcher) Busy(tenant id.Tenant, webhook id.Webhook) bool {
	d.mu.Lock()
	defer d.unlock()
	l := d.lanes[key{tenant, webhook}]
	return l != nil && (!l.known || l.Busy(d.now()))
}

// Unknown is the state of lanes whose webhook could not be looked at yet; the
// other states are those of package lane.
const Unknown lane.State = "unknown"

// Gauge is the state of the dispatcher in numbers, for the metrics.
type Gauge struct {
	InFlight, Slots       int
	Memory, MemoryAllowed int
	// Lanes is how many there are, States what each of them is about.
	Lanes  int
	States map[lane.State]int
	// Waiting is how many deliveries wait in memory, Open how many breakers are
	// open.
	Waiting, Open int
	// Of the lanes: Spilled work off what is on disk, AtLimit have all in flight
	// that their receivers are trusted with, Hungry wait for memory.
	Spilled, AtLimit, Hungry int
	// Limits are how many lanes may have so much in flight, by
	// lane.LimitBounds, and LimitSum is all that together.
	Limits   []int
	LimitSum int
	// Tenants that have attempts in flight, and those that wait for a slot.
	TenantsSending, TenantsWaiting int
	// How often breakers opened and closed since the gauge was read before.
	Opened, Closed int
}

// Gauge counts; its cost grows with the number of lanes.
func (d *Dispatcher) Gauge() Gauge {
	bounds := lane.LimitBounds()
	sending, waiting := make(map[id.Tenant]struct{}), make(map[id.Tenant]struct{})
	d.mu.Lock()
	defer d.unlock()
	now := d.now()
	g := Gauge{
		InFlight: d.inFlight, Slots: d.o.Slots, Memory: d.memory.taken, MemoryAllowed: d.o.Memory,
		Lanes: len(d.lanes), States: make(map[lane.State]int, 8), Limits: make([]int, len(bounds)),
		Opened: d.opened, Closed: d.closed,
	}
	d.opened, d.closed = 0, 0
	for _, l := range d.lanes {
		state := l.State(now)
		if !l.known {
			state = Unknown
		}
		g.States[state]++
		g.Waiting += l.Waiting()
		if l.Open() {
			g.Open++
		}
		if l.Spilled() {
			g.Spilled++
		}
		limit := l.Limit()
		if l.InFlight() >= limit {
			g.AtLimit++
		}
		at, _ := slices.BinarySearch(bounds, limit)
		g.Limits[at]++
		g.LimitSum += limit
		if l.hungry {
			g.Hungry++
		}
		if l.InFlight() > 0 {
			sending[l.Tenant] = struct{}{}
		}
		if l.queued {
			waiting[l.Tenant] = struct{}{}
		}
		opened, closed := l.TakeBreakerTurns()
		g.Opened += opened
		g.Closed += closed
	}
	g.TenantsSending, g.TenantsWaiting = len(sending), len(waiting)
	return g
}
