package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// The garbage collector runs when the heap has grown by so much over what lives,
// in percent. What lives of a server with few webhooks is small, and collecting
// it at each doubling took a fifth of the processor time under load; so it may
// grow to five times that, as long as it stays below heapGoal. Beyond, memory
// counts for more, down to what Go does by itself.
const (
	mostGrowth  = 400
	leastGrowth = 100
	heapGoal    = 160 << 20 // bytes
	// heapLook is how often that is looked at. A peak that is shorter may pass it.
	heapLook = time.Second
)

// growth is by how much a heap may grow of which so many bytes live, in percent.
func growth(live uint64) int {
	if live == 0 {
		return mostGrowth
	}
	return min(mostGrowth, max(leastGrowth, int(heapGoal*100/live)-100))
}

// tuneHeap keeps the collector at that until ctx ends.
func tuneHeap(ctx context.Context) {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	now := 0
	tick := time.NewTicker(heapLook)
	defer tick.Stop()
	for {
		metrics.Read(live)
		if next := growth(live[0].Value.Uint64()); next != now {
			debug.SetGCPercent(next)
			now = next
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
