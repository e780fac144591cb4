package bench

import (
	"sync"
	"time"
)

// A gate is a webhook that is down until it is opened. It tells the events that
// it turned away from the rest: those have been put off by the server, and may
// come out of order. For the others it says how far out of order they came.
// Unlike a tally it knows its own run, so that others may go on beside it.
type gate struct {
	mu     sync.Mutex
	run    uint32
	open   bool
	tried  bitmap // turned away
	passed bitmap
	stats  gateStats
	newest uint64 // the highest number that has passed, plus one
}

// gateStats is what a receiver says on /_gatestats. Other runs' events are not
// counted.
type gateStats struct {
	TurnedAway   uint64 `json:"turnedAway"`   // requests, while it was shut
	Tried        uint64 `json:"tried"`        // events among them
	Unique       uint64 `json:"unique"`       // events that have passed
	Duplicates   uint64 `json:"duplicates"`   // events that passed more than once, each time beyond the first
	FirstAt      int64  `json:"firstAt"`      // Unix nanoseconds of the first that passed
	LastAt       int64  `json:"lastAt"`       // and of the last
	Displacement uint64 `json:"displacement"` // the most by which an untried event was behind the newest before it
}

// set begins a run that is shut, or opens or shuts the gate in it.
func (g *gate) set(run uint32, open bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if run != g.run {
		g.run, g.tried, g.passed, g.stats, g.newest = run, bitmap{}, bitmap{}, gateStats{}, 0
	}
	g.open = open
}

// knock says whether the gate is open, and counts the event.
func (g *gate) knock(body []byte, now time.Time) bool {
	m, ok := findMarker(body)
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case !ok || m.run != g.run || m.number > maxNumber:
		return g.open
	case !g.open:
		g.stats.TurnedAway++
		if g.tried.add(m.number) {
			g.stats.Tried++
		}
		return false
	case !g.passed.add(m.number):
		g.stats.Duplicates++
		return true
	}
	if g.stats.Unique++; g.stats.Unique == 1 {
		g.stats.FirstAt = now.UnixNano()
	}
	g.stats.LastAt = now.UnixNano()
	if g.tried.holds(m.number) {
		return true
	}
	if m.number+1 < g.newest {
		g.stats.Displacement = max(g.stats.Displacement, g.newest-1-m.number)
	}
	g.newest = max(g.newest, m.number+1)
	return true
}

func (g *gate) read() gateStats {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.stats
}

// numbers are the events that have passed, as a bitmap.
func (g *gate) numbers() []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.passed.encode()
}
