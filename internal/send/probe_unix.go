//go:build unix

package send

import (
	"errors"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// probe asks a socket whether there is anything to read, without reading.
type probe struct {
	raw syscall.RawConn
	// What one question needs, so that it allocates nothing.
	ask   func(fd uintptr)
	fds   [1]unix.PollFd
	ready int
	err   error
}

// newProbe returns nil for what is not a socket.
func newProbe(c net.Conn) *probe {
	s, ok := c.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return nil
	}
	p := &probe{raw: raw}
	p.ask = func(fd uintptr) {
		p.fds[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
		for {
			p.ready, p.err = unix.Poll(p.fds[:], 0)
			if !errors.Is(p.err, unix.EINTR) {
				return
			}
		}
	}
	return p
}

// quiet reports whether nothing has come: no bytes, no end and no error.
func (p *probe) quiet() bool {
	return p.raw.Control(p.ask) == nil && p.err == nil && p.ready == 0
}
