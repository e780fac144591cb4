package dispatch

import (
	"github.com/plinqx/hypha/internal/id"
)

// What follows lets others (package replay) change what waits on a lane. All of
// it is to be called in the committer's goroutine, where the store and the
// lanes agree, except Busy.

// Drop takes a delivery out of the lane's memory, for its row to be changed. It
// reports false when the delivery is being sent, or its outcome is not on disk
// yet: then nothing may be changed.
func (d *Dispatcher) Drop(tenant id.Tenant, webhook id.Webhook, delivery id.Delivery) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
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
	defer d.mu.Unlock()
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
	defer d.mu.Unlock()
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
	defer d.mu.Unlock()
	l := d.lanes[key{tenant, webhook}]
	return l != nil && (!l.known || l.Busy(d.now()))
}

// Gauge is the state of the dispatcher in numbers, for the metrics.
type Gauge struct {
	InFlight, Slots       int
	Lanes, Waiting, Open  int
	Memory, MemoryAllowed int
}

// Gauge counts; its cost grows with the number of lanes.
func (d *Dispatcher) Gauge() Gauge {
	d.mu.Lock()
	defer d.mu.Unlock()
	g := Gauge{InFlight: d.inFlight, Slots: d.o.Slots, Lanes: len(d.lanes), Memory: d.memory.taken, MemoryAllowed: d.o.Memory}
	for _, l := range d.lanes {
		g.Waiting += l.Waiting()
		if l.Open() {
			g.Open++
		}
	}
	return g
}
