package adminsocket

import (
	"errors"
	"net"

	"golang.org/x/sys/unix"
)

// peersKnown says that the system tells who connects.
const peersKnown = true

// peerOf asks the system who made the other end (unix(7), SO_PEERCRED): who
// connected, or who listens.
func peerOf(c *net.UnixConn) (Peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var cred *unix.Ucred
	var asked error
	err = raw.Control(func(fd uintptr) {
		cred, asked = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, asked); err != nil {
		return Peer{}, err
	}
	return Peer{UID: int(cred.Uid), PID: int(cred.Pid)}, nil
}
