package lane

import "time"

// A lane begins with startInFlight attempts at once; each success adds one, up
// to maxInFlight; each sign of overload halves it. A receiver finds its own
// level, and one that hangs holds few slots.
const (
	startInFlight = 4
	maxInFlight   = 64
)

type pace struct{ limit int }

func newPace() pace { return pace{limit: startInFlight} }

func (p *pace) succeeded() { p.limit = min(p.limit+1, maxInFlight) }
func (p *pace) failed()    { p.limit = max(p.limit/2, 1) }

// A breaker opens after openAfter failures in a row that say the receiver is
// ill. Then one delivery at a time, the oldest, goes as a probe: the first at
// once after minOpen, and each that fails doubles the wait, up to maxOpen. A
// success closes it.
const (
	openAfter = 10
	minOpen   = time.Second
	maxOpen   = time.Minute
)

type breaker struct {
	failures int // in a row
	wait     time.Duration
	until    time.Time // no probe before; zero while closed
	probing  bool
	// followed is since when the breaker has been open because of what another
	// process said, without an attempt from here.
	followed time.Time
}

func (b *breaker) open() bool { return !b.until.IsZero() }

func (b *breaker) allows(now time.Time) bool {
	return !b.open() || !b.probing && !b.until.After(now)
}

func (b *breaker) started() { b.probing = b.open() }

// succeeded reports whether it closed the breaker.
func (b *breaker) succeeded() (closed bool) {
	closed = b.open()
	*b = breaker{}
	return closed
}

// failed reports whether it opened the breaker.
func (b *breaker) failed(now time.Time) (opened bool) {
	b.failures++
	switch {
	case b.probing:
		b.wait = min(2*b.wait, maxOpen)
	case b.open():
		return false // one of those that were in flight when it opened
	case b.failures < openAfter:
		return false
	default:
		b.wait, opened = minOpen, true
	}
	b.probing = false
	b.until, b.followed = now.Add(b.wait), time.Time{}
	return opened
}

func (b *breaker) released() { b.probing = false }
