package dispatch

import (
	"net/http"
	"slices"
	"time"

	"github.com/plinqx/hypha/internal/lane"
)

// maxIdleWorkers bounds how many goroutines wait for the next attempt. Of these,
// those end that were not needed for trimAfter.
const (
	maxIdleWorkers = 256
	trimAfter      = time.Second
)

// workers are the goroutines that make attempts. They are used again: an attempt
// goes deep, and in a new goroutine the growing of its stack was 5 % of what the
// server did. The one that went idle last is taken first, so that a worker whose
// end lets the next attempt begin makes that one too, without a switch. All of
// it is under the dispatcher's lock.
type workers struct {
	idle []worker // the longest idle first
	// spare is how many there were at all times since trimmed.
	spare   int
	trimmed time.Time
}

// worker takes its next attempt from its channel, which has room for one; it
// ends when the channel is closed.
type worker chan job

type job struct {
	lane *laneState
	item *lane.Item
}

// work makes an attempt in a goroutine. d.mu is held.
func (d *Dispatcher) work(j job) {
	if n := len(d.workers.idle); n > 0 {
		w := d.workers.idle[n-1]
		d.workers.idle = d.workers.idle[:n-1]
		d.workers.spare = min(d.workers.spare, n-1)
		w <- j
		return
	}
	w := make(worker, 1)
	w <- j
	d.wg.Go(func() {
		h := make(http.Header, maxVarying)
		for j := range w {
			d.attempt(j.lane, j.item, w, h)
		}
	})
}

// rest puts a worker among the idle ones, or ends it. d.mu is held.
func (d *Dispatcher) rest(w worker) {
	if d.stopping || len(d.workers.idle) == maxIdleWorkers {
		close(w)
		return
	}
	d.workers.idle = append(d.workers.idle, w)
	if len(d.workers.idle) == 1 {
		kick(d.wake) // so that it ends in time
	}
}

// trim ends the workers that have not been needed for a time, and reports whether
// it is to be called again. d.mu is held.
func (d *Dispatcher) trim(now time.Time) bool {
	ws := &d.workers
	if now.Sub(ws.trimmed) >= trimAfter {
		for _, w := range ws.idle[:ws.spare] {
			close(w)
		}
		ws.idle = slices.Delete(ws.idle, 0, ws.spare)
		ws.spare, ws.trimmed = len(ws.idle), now
	}
	return len(ws.idle) > 0
}

// dismiss ends the idle workers; the others end with their attempts. d.mu is
// held, and d.stopping is set.
func (d *Dispatcher) dismiss() {
	for _, w := range d.workers.idle {
		close(w)
	}
	d.workers.idle, d.workers.spare = nil, 0
}
