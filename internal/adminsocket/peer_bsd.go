//go:build darwin || freebsd

package adminsocket

import (
	"errors"
	"net"

	"golang.org/x/sys/unix"
)

// peersKnown says that the system tells who connects.
const peersKnown = true

// peerOf asks the system who made the other end (unix(4), LOCAL_PEERCRED): who
// connected, or who listens. It does not say with which process.
func peerOf(c *net.UnixConn) (Peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var cred *unix.Xucred
	var asked error
	err = raw.Control(func(fd uintptr) {
		cred, asked = unix.GetsockoptXucred(int(fd), 0 /* SOL_LOCAL */, unix.LOCAL_PEERCRED)
	})
	if err := errors.Join(err, asked); err != nil {
		return Peer{}, err
	}
	return Peer{UID: int(cred.Uid)}, nil
}
