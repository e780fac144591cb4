package cluster

import (
	"sync/atomic"
	"time"
)

// Clock is the database's time, as far as a process can tell: the same on every
// node, whatever the clock of its machine says. Between two looks at the database
// it goes on with the machine's monotonic clock, so that setting the machine's time
// moves nothing.
//
// An answer says what time it was at the database at some moment between question
// and answer. As long as what Now says lies in between, nothing is corrected: so it
// does not tremble with the delays of the network. Else it is moved by as little as
// makes it fit, back too if need be: where the database's own clock was set back, or
// another machine took its place. The first answer is taken at its middle.
type Clock struct {
	local func() time.Time
	ref   atomic.Pointer[reference]
}

// tolerance is how far a local clock may be off: more than one that is kept in time
// is, and less than a due time needs.
const tolerance = 100 * time.Millisecond

// reference is one moment on both clocks.
type reference struct{ local, database time.Time }

// NewClock makes a clock that follows a local one, such as time.Now, until it is
// told better.
func NewClock(local func() time.Time) *Clock { return &Clock{local: local} }

// Now is the database's time.
func (c *Clock) Now() time.Time { return c.at(c.local()) }

func (c *Clock) at(local time.Time) time.Time {
	ref := c.ref.Load()
	if ref == nil {
		return local
	}
	return ref.database.Add(local.Sub(ref.local))
}

// Offset is how far the database's clock is ahead of this machine's.
func (c *Clock) Offset() time.Duration {
	local := c.local()
	return c.at(local).Round(0).Sub(local.Round(0)) // Round takes the monotonic reading off
}

// observe takes an answer of the database to a question.
func (c *Clock) observe(asked, answered, database time.Time) {
	took := max(answered.Sub(asked), 0)
	least, most := database, database.Add(took) // at the time of the answer
	ref := c.ref.Load()
	may := tolerance
	if ref != nil {
		may /= 2 // so that it does not go to and fro
	}
	if !answered.Before(least.Add(-may)) && !answered.After(most.Add(may)) {
		c.ref.Store(nil)
		return
	}
	var now time.Time
	switch said := c.at(answered); {
	case ref == nil:
		now = least.Add(took / 2)
	case said.Before(least):
		now = least
	case said.After(most):
		now = most
	default:
		now = said
	}
	c.ref.Store(&reference{local: answered, database: now.Round(0).UTC()})
}
