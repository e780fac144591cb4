package send

import (
	"errors"
	"sync"
)

// What may come on an HTTP/2 connection, in bytes as they are on the socket. The
// library answers pings and settings and passes over what concerns nobody for
// as long as they come, also between attempts; so what comes is counted.
const (
	// maxPerAttempt is for the head, for as much of the body as is read and as
	// may be sent ahead, and as much again as one of those for all the rest.
	maxPerAttempt = maxHeader + maxBody + streamWindow + 64<<10
	// maxUnasked is for what comes while there is no attempt: settings, pings,
	// and what was on its way when an attempt had read enough.
	maxUnasked = 2 * streamWindow
)

// errFlood is what follows the last byte that is read of an HTTP/2 connection.
var errFlood = errors.New("more came than was asked for")

// meter counts what comes on an HTTP/2 connection against what its attempts may
// read. It is safe for concurrent use.
type meter struct {
	mu       sync.Mutex
	left     int64 // bytes
	attempts int   // that have the connection now
}

func newMeter() *meter { return &meter{left: maxUnasked} }

// enter is for an attempt that gets the connection.
func (m *meter) enter() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.attempts++
	m.left = min(m.left+maxPerAttempt, m.limit())
}

// leave is for one that has ended. What it has not used up is gone, so that
// nobody saves for a flood by being good.
func (m *meter) leave() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.attempts--
	m.left = min(m.left, m.limit())
}

func (m *meter) limit() int64 { return int64(m.attempts)*maxPerAttempt + maxUnasked }

// spend counts what has come.
func (m *meter) spend(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.left -= int64(n)
}

// spent reports whether nothing more may come.
func (m *meter) spent() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.left <= 0
}
