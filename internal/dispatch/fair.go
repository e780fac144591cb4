package dispatch

import (
	"container/heap"
	"time"

	"github.com/plinqx/hypha/internal/id"
)

// fair is the queue for slots: tenants take turns, and so do the lanes of each.
type fair struct {
	turns   queue[*tenantTurn]
	tenants map[id.Tenant]*tenantTurn
}

type tenantTurn struct {
	tenant   id.Tenant
	lanes    queue[*laneState]
	inFlight int
	waiting  bool // stands in turns
}

func newFair() fair { return fair{tenants: make(map[id.Tenant]*tenantTurn)} }

func (f *fair) tenant(t id.Tenant) *tenantTurn {
	turn := f.tenants[t]
	if turn == nil {
		turn = &tenantTurn{tenant: t}
		f.tenants[t] = turn
	}
	return turn
}

// push queues a lane, unless it stands there already.
func (f *fair) push(l *laneState) {
	if l.queued {
		return
	}
	l.queued = true
	turn := f.tenant(l.Tenant)
	turn.lanes.push(l)
	if !turn.waiting {
		turn.waiting = true
		f.turns.push(turn)
	}
}

// pop takes the tenant whose turn it is out of the queue.
func (f *fair) pop() *tenantTurn {
	turn := f.turns.pop()
	turn.waiting = false
	return turn
}

func (t *tenantTurn) pop() *laneState {
	l := t.lanes.pop()
	l.queued = false
	return l
}

// requeue puts a tenant with waiting lanes at the end, and forgets one that has
// nothing.
func (f *fair) requeue(t *tenantTurn) {
	switch {
	case t.waiting:
	case t.lanes.len() > 0:
		t.waiting = true
		f.turns.push(t)
	case t.inFlight == 0:
		delete(f.tenants, t.tenant)
	}
}

// pump starts attempts while there are slots and somebody may have one. A
// tenant may take half of the slots that the others leave, a lane a quarter of
// its tenant's. d.mu is held.
func (d *Dispatcher) pump() {
	for passed := 0; passed < d.fair.turns.len(); {
		// An outcome keeps its slot until it is on disk, so that a crash can
		// double no more deliveries than there are slots.
		free := d.o.Slots - d.inFlight - d.o.Committer.Unrecorded()
		if d.stopping || free <= 0 || !d.o.MaySend() {
			return // whatever ends or is recorded next pumps again
		}
		turn := d.fair.pop()
		share := max((turn.inFlight+free)/2, 1)
		if turn.inFlight < share && d.startOne(turn, max(share/4, 1)) {
			passed = 0
		} else {
			passed++
		}
		d.fair.requeue(turn)
	}
}

// startOne starts one attempt of a tenant, of the lane whose turn it is. Lanes
// that can't send leave the queue: what happens to them next brings them back.
func (d *Dispatcher) startOne(turn *tenantTurn, share int) bool {
	now := d.now()
	for range turn.lanes.len() {
		l := turn.pop()
		it := l.Next(now, share)
		if it == nil {
			continue
		}
		turn.inFlight++
		d.inFlight++
		d.work(job{l, it})
		d.letGo(l, it)
		if l.Ready(now) && !l.Saturated(share) {
			d.fair.push(l)
		}
		d.claim(l, now)
		return true
	}
	return false
}

// wakeHeap has the lanes that are to be looked at, the earliest first. A lane is
// in it once at most.
type wakeHeap []*laneState

// Len, Less, Swap, Push and Pop implement heap.Interface; use set.
func (h wakeHeap) Len() int           { return len(h) }
func (h wakeHeap) Less(i, j int) bool { return h[i].wakeAt.Before(h[j].wakeAt) }
func (h wakeHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].wakeIndex, h[j].wakeIndex = i, j
}

// Push implements heap.Interface.
func (h *wakeHeap) Push(x any) {
	l := x.(*laneState)
	l.wakeIndex = len(*h)
	*h = append(*h, l)
}

// Pop implements heap.Interface.
func (h *wakeHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return last
}

// set says when a lane is to be looked at; zero for never.
func (h *wakeHeap) set(l *laneState, at time.Time) {
	was := l.wakeAt
	l.wakeAt = at
	switch {
	case was.IsZero() && at.IsZero():
	case was.IsZero():
		heap.Push(h, l)
	case at.IsZero():
		heap.Remove(h, l.wakeIndex)
	case !at.Equal(was):
		heap.Fix(h, l.wakeIndex)
	}
}

// queue is first in, first out, and keeps its room while it is in use.
type queue[T any] struct {
	items []T
	head  int
}

func (q *queue[T]) len() int { return len(q.items) - q.head }

func (q *queue[T]) push(v T) { q.items = append(q.items, v) }

// pop takes the first of a queue that has one.
func (q *queue[T]) pop() T {
	var none T
	v := q.items[q.head]
	q.items[q.head] = none
	q.head++
	switch {
	case q.len() == 0:
		q.items, q.head = q.items[:0], 0
	case q.head > 64 && q.head > q.len():
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	return v
}
