package lane

import "time"

// What follows is for the metrics: it shows a lane and changes nothing that the
// lane goes by.

// State is what a lane is about: one of a closed set.
type State string

// The states, in this order: a lane is in the first that fits.
const (
	Discarding  State = "discarding"   // its queue is being given up
	Disabled    State = "disabled"     // its webhook is switched off, or was deleted
	Paused      State = "paused"       // its webhook is held back until a time
	BreakerOpen State = "breaker_open" // its receiver is ill: one attempt at a time, now and then
	Sending     State = "sending"      // attempts are in flight
	Waiting     State = "waiting"      // something is due and none of it is in flight
	Idle        State = "idle"         // nothing is due
)

// States are all that there are.
func States() []State {
	return []State{Discarding, Disabled, Paused, BreakerOpen, Sending, Waiting, Idle}
}

// State is what the lane is about now.
func (l *Lane) State(now time.Time) State {
	switch {
	case l.discards():
		return Discarding
	case !l.enabled:
		return Disabled
	case l.pausedUntil.After(now):
		return Paused
	case l.breaker.open():
		return BreakerOpen
	case l.inFlight > 0:
		return Sending
	case l.Busy(now):
		return Waiting
	default:
		return Idle
	}
}

// Limit is the most that the lane may have in flight as far as its receiver is
// concerned; slots may be fewer.
func (l *Lane) Limit() int { return l.limit(maxInFlight) }

// LimitBounds are the steps in which limits are worth telling apart: the last is
// the highest there is.
func LimitBounds() []int { return []int{1, 2, 4, 8, 16, 32, maxInFlight} }

// Spilled reports whether the lane works off what is on disk.
func (l *Lane) Spilled() bool { return l.spilled }

// TakeBreakerTurns is how often the breaker opened and closed since this was
// asked before.
func (l *Lane) TakeBreakerTurns() (opened, closed int) {
	opened, closed = l.opened, l.closed
	l.opened, l.closed = 0, 0
	return opened, closed
}
