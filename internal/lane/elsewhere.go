package lane

import "time"

// Several processes may have a lane of the same webhook. What follows makes them
// try an ill receiver together as often as one would alone: whoever found it ill
// tries it, and tells the others what came of that.

const (
	// trust is how long a success of our own is believed over what others say:
	// it may be they who can't reach the receiver.
	trust = 10 * time.Second
	// maxFollow is how long others are believed without an attempt of our own,
	// for the same reason. It costs an ill receiver one attempt a minute and
	// process, at most.
	maxFollow = maxOpen
)

// TakeTurn answers until when the breaker is open (zero: it is closed), if that
// has changed by an attempt of this lane, or by somebody who let it go on, since
// TakeTurn was called before. Times
// are to the millisecond.
func (l *Lane) TakeTurn() (until time.Time, turned bool) {
	turned, l.turned = l.turned, false
	return l.breaker.until.Truncate(time.Millisecond), turned
}

// OpenElsewhere opens the breaker, or keeps it open, because another process
// found the receiver ill and tries it at a time: this one tries it when the other
// has had grace to say what came of it, and did not. It counts as no turn of the
// breaker. Settle is to follow.
func (l *Lane) OpenElsewhere(until time.Time, grace time.Duration, now time.Time) {
	at := until.Add(grace)
	if now.Sub(l.healthy) < trust || !at.After(now) {
		return
	}
	b := &l.breaker
	if b.followed.IsZero() {
		b.followed = now
	}
	b.wait = min(max(b.wait, until.Sub(now), minOpen), maxOpen)
	if b.until = b.followed.Add(maxFollow); at.Before(b.until) {
		b.until = at
	}
	l.turned = false // what we had to say is older
}

// CloseElsewhere closes the breaker, because another process found the receiver
// well. It counts as no turn of the breaker.
func (l *Lane) CloseElsewhere() {
	if l.breaker.open() {
		l.breaker = breaker{}
		l.pace = pace{limit: 1} // closing ramps
	}
	l.turned = false
}
