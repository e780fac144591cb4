package dispatch

import (
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/lane"
)

// What the breaker of a lane did is told once, also when the lane was forgotten
// before anybody asked.
func TestBreakerTurnsOfForgottenLanes(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	d := New(Options{Now: func() time.Time { return now }})
	open := func(webhook id.Webhook) *laneState {
		l := d.lane(id.Tenant{1}, webhook)
		for range 10 {
			l.Finished(lane.Ailing, now)
		}
		return l
	}
	d.mu.Lock()
	d.forget(open(id.Webhook{1}))
	open(id.Webhook{2})
	d.mu.Unlock()
	for _, want := range []int{2, 0} {
		if g := d.Gauge(); g.Opened != want || g.Closed != 0 {
			t.Errorf("breakers opened %d times and closed %d times, want %d and 0", g.Opened, g.Closed, want)
		}
	}
}
