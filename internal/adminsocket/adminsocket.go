// Package adminsocket is the door of whoever is on the server's machine and has its
// account: a Unix socket. Nothing that is sent through it says who comes; the system
// does.
//
// It promises:
//
//   - Nobody but the account that runs the server, and root, gets through, at any
//     instant: the socket is made where nobody else can reach it, and comes to its
//     place with its mode. Of everybody who connects, the system is asked who it is.
//   - What a killed server left is replaced. The socket of one that lives is not, nor
//     is anything that is no socket.
//   - A client talks to a server of its own account, of root, or of the account that
//     the folder belongs to, and to nobody who put a socket of theirs in its place.
//
// It must not know what is said through it.
package adminsocket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// ErrInUse is why a socket is not replaced: somebody listens on it, or may.
var ErrInUse = errors.New("another server listens on it")

// ErrStranger is why a client does not talk to who listens.
var ErrStranger = errors.New("who listens there is neither your account, nor root, nor the account that the folder belongs to")

// Peer is who is at the other end, as the system says: the address of a connection.
type Peer struct {
	UID int
	// PID is of the process that connected; 0 where the system does not say.
	PID int
	// Account is the name of the account with its number, or the number alone. A
	// Listener says it.
	Account string
}

// Network is part of net.Addr.
func (Peer) Network() string { return "unix" }

// String tells people who it is.
func (p Peer) String() string {
	if p.PID == 0 {
		return "uid " + strconv.Itoa(p.UID)
	}
	return fmt.Sprintf("uid %d, pid %d", p.UID, p.PID)
}

// account is the name of an account with its number, or the number alone. The system
// may have to ask others on the network for it.
func account(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return fmt.Sprintf("%s (uid %d)", u.Username, uid)
	}
	return fmt.Sprintf("uid %d", uid)
}

const (
	mode      = 0o600
	nursery   = ".new" // the folder beside the socket in which it is made
	newborn   = "s"
	probeTime = 2 * time.Second
)

// MaxPath is how many bytes the path of a socket may have: what the system takes,
// with room for the folder in which it is made.
const MaxPath = len(syscall.RawSockaddrUnix{}.Path) - 1 - len(nursery+"/"+newborn)

// CheckPath says what is wrong with a path for a socket.
func CheckPath(path string) error {
	if len(path) > MaxPath {
		return fmt.Errorf("the path %s has %d bytes, and that of a socket can have %d; give a shorter one", path, len(path), MaxPath)
	}
	return nil
}

// Listener accepts connections of the account that runs the server, and of root. The
// address of their other end is a Peer.
type Listener struct {
	unix    *net.UnixListener
	path    string
	made    fs.FileInfo
	refused func(Peer, error)
	// accounts are those that may connect, by their numbers. They are looked up
	// once, so that nobody waits for it.
	accounts map[int]string

	close  sync.Once
	closed error
}

// Listen makes the socket, whose folder must be there. refused is told of whom the
// listener turns away: of an error, if the system does not say who it is. ctx is for the call.
func Listen(ctx context.Context, path string, refused func(Peer, error)) (*Listener, error) {
	if err := CheckPath(path); err != nil {
		return nil, err
	}
	if !peersKnown {
		return nil, fmt.Errorf("this system does not say who connects to a socket: %w", errors.ErrUnsupported)
	}
	if err := vacant(ctx, path); err != nil {
		return nil, err
	}
	// The mode that a socket is born with is the process's umask to say, which other
	// goroutines need as it is. So it is born where its mode does not matter yet.
	room := path + nursery
	err := os.Mkdir(room, 0o700)
	if errors.Is(err, fs.ErrExist) {
		cleanUp(room) // a start that was killed here left it
		err = os.Mkdir(room, 0o700)
	}
	if err != nil {
		return nil, err
	}
	defer cleanUp(room)
	l := &Listener{path: path, refused: refused, accounts: map[int]string{}}
	for _, uid := range []int{0, os.Geteuid()} {
		l.accounts[uid] = account(uid)
	}
	if l.unix, err = net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(room, newborn), Net: "unix"}); err != nil {
		return nil, err
	}
	l.unix.SetUnlinkOnClose(false) // it would look for it where it was born
	if err := l.place(filepath.Join(room, newborn)); err != nil {
		return nil, errors.Join(err, l.unix.Close())
	}
	return l, nil
}

// place gives the socket its mode and then its path, over what a killed server left
// there.
func (l *Listener) place(born string) (err error) {
	if err = os.Chmod(born, mode); err != nil {
		return err
	}
	if l.made, err = os.Lstat(born); err != nil {
		return err
	}
	return os.Rename(born, l.path)
}

// cleanUp removes the folder in which a socket is made, and nothing that Listen has not
// put there.
func cleanUp(room string) {
	_ = os.Remove(filepath.Join(room, newborn)) // it is where it belongs by now, but for a start that failed
	_ = os.Remove(room)                         // the next start says what is in its way
}

// vacant reports whether a socket may be made: nothing is there, or what a killed
// server left.
func vacant(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is there already, and is no socket", path)
	}
	c, err := (&net.Dialer{Timeout: probeTime}).DialContext(ctx, "unix", path)
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return nil // nobody listens
	}
	if err == nil {
		_ = c.Close() // nothing was said
	}
	return fmt.Errorf("%s: %w", path, ErrInUse)
}

// Accept waits for the next connection of somebody who may connect.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.unix.AcceptUnix()
		if err != nil {
			return nil, err
		}
		peer, err := peerOf(c)
		var known bool
		if peer.Account, known = l.accounts[peer.UID]; known && err == nil {
			return &conn{UnixConn: c, peer: peer}, nil
		}
		_ = c.Close() // it is told nothing
		if l.refused != nil {
			l.refused(peer, err)
		}
	}
}

// Addr is where it listens.
func (l *Listener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// Close stops listening and removes the socket, if it is still its own.
func (l *Listener) Close() error {
	l.close.Do(func() {
		if info, err := os.Lstat(l.path); err == nil && os.SameFile(info, l.made) {
			l.closed = os.Remove(l.path)
		}
		l.closed = errors.Join(l.closed, l.unix.Close())
	})
	return l.closed
}

type conn struct {
	*net.UnixConn
	peer Peer
}

// RemoteAddr is the Peer.
func (c *conn) RemoteAddr() net.Addr { return c.peer }

// Dial connects to the server that listens at a path. The error wraps
// fs.ErrNotExist, syscall.ECONNREFUSED or fs.ErrPermission as the system says, or is
// ErrStranger.
func Dial(ctx context.Context, path string) (net.Conn, error) {
	if err := CheckPath(path); err != nil {
		return nil, err
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if err := known(c, path); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// known reports whether a server is one that its caller may tell secrets.
func known(c net.Conn, path string) error {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return errors.ErrUnsupported
	}
	server, err := peerOf(u)
	if err != nil {
		return fmt.Errorf("ask the system who listens: %w", err)
	}
	owner, err := ownerOf(filepath.Dir(path))
	if err != nil {
		return err
	}
	if !slices.Contains([]int{os.Geteuid(), 0, owner}, server.UID) {
		return fmt.Errorf("%w: it is %s", ErrStranger, server)
	}
	return nil
}
