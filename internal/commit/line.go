package commit

import (
	"time"

	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// accept is an accept that waits, or is being written.
type accept struct {
	*store.Accept
	load
	at     time.Time // when it came
	settle func(committed bool)
	done   chan error
}

// load is how much something is.
type load struct{ rows, bytes int }

// pageBytes is how many bytes of bodies cost the store about as much as a row.
const pageBytes = 4096

// weight is what a load costs the store, in rows.
func (l load) weight() int { return l.rows + l.bytes/pageBytes }

func (l *load) add(other load) { l.rows, l.bytes = l.rows+other.rows, l.bytes+other.bytes }

func (l *load) remove(other load) { l.rows, l.bytes = l.rows-other.rows, l.bytes-other.bytes }

func loadOf(a *store.Accept) load {
	var l load
	for i := range a.Events {
		l.rows += 1 + len(a.Events[i].Deliveries)
		l.bytes += len(a.Events[i].Body)
	}
	return l
}

// line is what waits to be written. Tenants take turns in it, each with as much
// as another, whatever each has waiting (deficit round robin; Shreedhar and
// Varghese, 1995); what a tenant sent first goes first.
type line struct {
	tenants     map[id.Tenant]*queue
	first, last *queue // in the order of turns
	load
	// spare are queues that had an end, for whoever comes next.
	spare []*queue
}

// queue is what waits of a tenant; it is in line as long as it has something.
type queue struct {
	tenant id.Tenant
	items  []*accept
	head   int
	load
	// credit is what it may still take in this turn, as weight.
	credit int
	next   *queue
}

// A turn is good for quantum of weight. A tenant that sends more at once saves
// up for it over several turns.
const (
	quantum   = 64
	maxSpare  = 64
	keptItems = 1024 // more room than this is not kept
)

func newLine() line { return line{tenants: make(map[id.Tenant]*queue)} }

func (l *line) empty() bool { return l.first == nil }

func (l *line) push(a *accept) {
	q := l.tenants[a.Tenant]
	if q == nil {
		if n := len(l.spare); n > 0 {
			q, l.spare = l.spare[n-1], l.spare[:n-1]
		} else {
			q = new(queue)
		}
		q.tenant, q.credit = a.Tenant, quantum
		l.tenants[a.Tenant] = q
		l.join(q)
	}
	q.items = append(q.items, a)
	q.add(a.load)
	l.add(a.load)
}

// join puts a queue at the end of the line.
func (l *line) join(q *queue) {
	if l.first == nil {
		l.first = q
	} else {
		l.last.next = q
	}
	l.last = q
}

// leave takes the first queue out of the line.
func (l *line) leave() *queue {
	q := l.first
	if l.first = q.next; l.first == nil {
		l.last = nil
	}
	q.next = nil
	return q
}

// pop takes the first accept of the queue whose turn it is.
func (l *line) pop() *accept {
	q := l.first
	a := q.items[q.head]
	q.items[q.head] = nil
	q.head++
	q.remove(a.load)
	l.remove(a.load)
	switch {
	case q.head == len(q.items):
		l.drop(l.leave())
	case q.head > keptItems && 2*q.head > len(q.items):
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	return a
}

// drop forgets a queue that is empty and has left the line.
func (l *line) drop(q *queue) {
	delete(l.tenants, q.tenant)
	if len(l.spare) < maxSpare && cap(q.items) <= keptItems {
		*q = queue{items: q.items[:0]}
		l.spare = append(l.spare, q)
	}
}

// all takes everything, as much as each tenant has.
func (l *line) all(into []*accept) []*accept {
	for !l.empty() {
		q := l.leave()
		into = append(into, q.items[q.head:]...)
		l.remove(q.load)
		clear(q.items[q.head:])
		l.drop(q)
	}
	return into
}

// late takes what came before a time.
func (l *line) late(before time.Time, into []*accept) []*accept {
	for end := l.last; end != nil; {
		q := l.first
		for l.first == q && q.items[q.head].at.Before(before) {
			into = append(into, l.pop())
		}
		if l.first == q { // something is left of it: it goes to the end, where all go once
			l.join(l.leave())
		}
		if q == end {
			break
		}
	}
	return into
}

// batch takes what goes into a transaction of at most so much: at least one.
func (l *line) batch(most load, weight int, into []*accept) ([]*accept, load) {
	if l.rows <= most.rows && l.bytes <= most.bytes && l.weight() <= weight {
		taken := l.load
		return l.all(into), taken
	}
	var taken load
	for !l.empty() {
		q := l.first
		a := q.items[q.head]
		if a.weight() > q.credit {
			q.credit += quantum
			l.join(l.leave())
			continue
		}
		sum := taken
		sum.add(a.load)
		if len(into) > 0 && (sum.rows > most.rows || sum.bytes > most.bytes || sum.weight() > weight) {
			break // and its turn goes on in the next one
		}
		q.credit -= a.weight()
		into = append(into, l.pop())
		taken = sum
	}
	return into, taken
}

// pace learns what a transaction costs: a part that each does, which is the
// sync, and a part for each row. It is a line through what the last ones took,
// by least squares, the newer the heavier.
type pace struct {
	n, w, t, ww, wt float64
	// fixed and each are what it found so far.
	fixed, each time.Duration
	// largest is about the weight of the largest one lately.
	largest float64
}

// memory is what the past counts for as each transaction comes: the last twenty
// make up most of it.
const memory = 0.95

// What is assumed before anything is known counts for little once there is
// something, but it keeps the line in place when all transactions are alike. The
// slope was measured on two cores and a local disk.
const (
	assumedFixed  = time.Millisecond
	assumedEach   = 25 * time.Microsecond
	assumedWeight = 256 // of the larger of the two that are assumed
	assumption    = 0.05
	leastEach     = time.Microsecond
)

func newPace() pace { return pace{fixed: assumedFixed, each: assumedEach} }

// learn takes note of a transaction.
func (p *pace) learn(weight int, took time.Duration) {
	w, t := float64(weight), float64(took)
	p.n = p.n*memory + 1
	p.w = p.w*memory + w
	p.t = p.t*memory + t
	p.ww = p.ww*memory + w*w
	p.wt = p.wt*memory + w*t
	p.largest = max(p.largest*memory, w)

	large := float64(assumedFixed + assumedWeight*assumedEach)
	n := p.n + 2*assumption
	meanW := (p.w + assumption*assumedWeight) / n
	meanT := (p.t + assumption*(float64(assumedFixed)+large)) / n
	variance := (p.ww+assumption*assumedWeight*assumedWeight)/n - meanW*meanW
	covariance := (p.wt+assumption*assumedWeight*large)/n - meanW*meanT
	p.each = max(time.Duration(covariance/variance), leastEach)
	p.fixed = max(0, time.Duration(meanT-meanW*float64(p.each)))
}

// room is the weight of a transaction that takes no longer than a time, or than
// twice the part that does not depend on the weight: then little would be won by
// writing less. It is no guess: at most growth times what is known to be taken.
func (p *pace) room(target time.Duration) int {
	return max(quantum, min(int(max(target, p.fixed)/p.each), int(p.largest*growth)))
}

const growth = 4

// expect is what a transaction of a weight takes.
func (p *pace) expect(weight int) time.Duration { return p.fixed + time.Duration(weight)*p.each }
