package bench

import (
	"maps"
	"sync"
	"time"
)

// maxTracked bounds the memory for deliveries to bystanders: some 60 MB.
const maxTracked = 1 << 20

// hangPatience is how long a webhook that hangs may hold an attempt before the
// server may send the event again: the default timeout of 30 s, less a second
// for clocks and scheduling.
const hangPatience = 29 * time.Second

// patienceOf says how long after an arrival at a bystander the same event must
// not come again: before it can have failed. It is false for those where every
// attempt fails at once, so that nothing that comes again is a duplicate.
func patienceOf(mode string) (time.Duration, bool) {
	switch mode {
	case modeHang:
		return hangPatience, true
	case modeFail, modeBusy:
		return 0, false
	default:
		return 1<<63 - 1, true // it answers 200: once is enough
	}
}

// bystanders follow the requests to webhooks that are not measured. Unlike a
// tally they forget nothing at the start of a run but the counts, so that an
// event that came before and comes again is known.
type bystanders struct {
	mu         sync.Mutex
	requests   map[string]uint64 // by mode
	inFlight   int               // at those that are not well
	peak       int
	duplicates uint64
	untracked  uint64
	last       map[delivered]time.Time
}

// delivered is one event at one bystander.
type delivered struct {
	mode   byte // the first letter: no two modes share one
	hook   uint16
	run    uint32
	number uint32
}

func newBystanders() *bystanders {
	return &bystanders{requests: map[string]uint64{}, last: map[delivered]time.Time{}}
}

// reset forgets the counts. What is in flight stays in flight.
func (b *bystanders) reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.requests)
	b.peak, b.duplicates, b.untracked = b.inFlight, 0, 0
}

// began notes a request. What it returns must be called when the request is
// over.
func (b *bystanders) began(mode string, hook int, body []byte, now time.Time) (ended func()) {
	m, marked := findMarker(body)
	patience, tracked := patienceOf(mode)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests[mode]++
	if marked && tracked && m.number <= maxNumber {
		b.track(delivered{mode[0], uint16(hook), m.run, uint32(m.number)}, patience, now)
	}
	if mode == modeWell {
		return func() {}
	}
	b.inFlight++
	b.peak = max(b.peak, b.inFlight)
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.inFlight--
	}
}

func (b *bystanders) track(d delivered, patience time.Duration, now time.Time) {
	before, again := b.last[d]
	switch {
	case again && now.Sub(before) < patience:
		b.duplicates++
	case !again && len(b.last) >= maxTracked:
		b.untracked++
		return
	}
	b.last[d] = now
}

// addTo puts what was counted into a receiver's answer.
func (b *bystanders) addTo(a *arrivals) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a.Bystanders = maps.Clone(b.requests)
	a.BystanderDuplicates, a.BystanderPeak = b.duplicates, b.peak
	a.Untracked += b.untracked
}
