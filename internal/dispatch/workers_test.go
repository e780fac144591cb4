package dispatch

import (
	"testing"
	"time"
)

// Workers that nobody needed for a time end; those that were needed stay.
func TestIdleWorkersEnd(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	d := New(Options{Now: func() time.Time { return now }})
	ended := func(w worker) bool {
		select {
		case _, open := <-w:
			return !open
		default:
			return false
		}
	}
	rest := func(n int) (all []worker) {
		for range n {
			all = append(all, make(worker, 1))
			d.rest(all[len(all)-1])
		}
		return all
	}
	look := func(want ...bool) func(all []worker) {
		return func(all []worker) {
			t.Helper()
			for i, w := range all {
				if ended(w) != want[i] {
					t.Errorf("worker %d has ended: %v", i, !want[i])
				}
			}
		}
	}

	all := rest(4)
	if !d.trim(now) {
		t.Error("there are idle workers, and it says that it need not look again")
	}
	look(false, false, false, false)(all)

	d.work(job{}) // takes the last, and the one before
	d.work(job{})
	<-all[3]
	<-all[2]
	d.rest(all[2])
	d.rest(all[3])
	now = now.Add(trimAfter)
	d.trim(now)
	look(true, true, false, false)(all)

	now = now.Add(trimAfter / 2)
	d.trim(now)
	look(false, false)(all[2:])
	now = now.Add(trimAfter / 2)
	if d.trim(now) {
		t.Error("no worker is left, and it wants to look again")
	}
	look(true, true)(all[2:])

	for _, w := range rest(maxIdleWorkers + 1)[maxIdleWorkers:] {
		if !ended(w) {
			t.Errorf("more than %d workers are idle", maxIdleWorkers)
		}
	}
}
