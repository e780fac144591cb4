package dispatch

import (
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/lane"
)

// claimBytes is the most that one claim brings of bodies.
const claimBytes = 1 << 20

// budget is the memory for what waits in lanes, for places, and for what claims
// are bringing. A tenant may take half of what the others leave, a lane a
// quarter of its tenant's, so that what waits for a receiver that hangs leaves
// room for everybody else.
type budget struct {
	allowed int
	taken   int
	tenants map[id.Tenant]int
	// hungry are the lanes that have nothing in memory and find no room. They
	// get one delivery each, in turn, from a reserve of a quarter: what has a
	// lane of its own to itself is sent as soon as there is a slot.
	hungry []*laneState
}

func newBudget(allowed int) budget {
	return budget{allowed: allowed, tenants: make(map[id.Tenant]int)}
}

// urgentSize is what a claim for a hungry lane sets aside before its size is
// known.
func (b *budget) urgentSize() int { return min(claimBytes, b.allowed/8) }

// room is how many bytes a lane may still take; not positive for none.
func (b *budget) room(l *laneState) int {
	mine := b.tenants[l.Tenant]
	share := (b.allowed - b.taken + mine) / 2
	return min(share-mine, share/4-l.memory)
}

// take notes memory. Charge is what the lane is held to; size is less where a
// body is shared.
func (b *budget) take(l *laneState, charge, size int) {
	l.memory += charge
	b.taken += size
	if left := b.tenants[l.Tenant] + size; left != 0 {
		b.tenants[l.Tenant] = left
	} else {
		delete(b.tenants, l.Tenant)
	}
}

// charge is what an item counts for in its lane, and size what it takes of the
// budget as long as it has its body to itself.
func charge(body []byte) int { return itemOverhead + len(body) }

// letGo returns the memory of an item. d.mu is held.
func (d *Dispatcher) letGo(l *laneState, it *lane.Item) {
	size := it.Size
	if s := it.Shared; s != nil {
		if s.Holders--; s.Holders == 0 {
			size += s.Size
		}
	}
	d.memory.take(l, -charge(it.Body), -size)
	d.feed()
}

// starve puts a lane in line for one delivery. d.mu is held.
func (d *Dispatcher) starve(l *laneState) {
	if !l.hungry {
		l.hungry = true
		d.memory.hungry = append(d.memory.hungry, l)
		d.feed()
	}
}

// feed gives hungry lanes one delivery each, as far as the reserve reaches.
// d.mu is held.
func (d *Dispatcher) feed() {
	b := &d.memory
	for len(b.hungry) > 0 && !d.stopping && (b.taken == 0 || b.taken+b.urgentSize() <= b.allowed+b.allowed/4) {
		l := b.hungry[0]
		b.hungry[0] = nil
		if b.hungry = b.hungry[1:]; len(b.hungry) == 0 {
			b.hungry = nil
		}
		l.hungry = false
		if _, ok := l.WantsClaim(d.now()); ok {
			d.fetch(l, 1, 1, true)
		}
	}
}

// places says what an event's deliveries take of the memory: the body, which
// all share, is counted with the first that has a place.
type places struct {
	body []byte
	n    int
}

// next is the size of one more place.
func (p *places) next() int {
	if p.n == 0 {
		return itemOverhead + len(p.body)
	}
	return itemOverhead
}
