package adminsocket_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/plinqx/hypha/internal/adminsocket"
)

// These make this test binary a client or a server, which may be of another account.
const (
	dialAt   = "HYPHA_TEST_DIAL"
	listenAt = "HYPHA_TEST_LISTEN"
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(dialAt) != "":
		c, err := adminsocket.Dial(context.Background(), os.Getenv(dialAt))
		if err == nil {
			_, err = io.ReadAll(c)
		}
		fmt.Println(err)
	case os.Getenv(listenAt) != "":
		l, err := net.Listen("unix", os.Getenv(listenAt))
		fmt.Println(err)
		if err == nil {
			_, _ = io.Copy(io.Discard, os.Stdin) // until the test lets go of it
			_ = l.Close()
		}
	default:
		os.Exit(m.Run())
	}
}

// another runs this binary as an account, and answers the first line that it prints.
func another(t *testing.T, binary string, uid uint32, env string) string {
	t.Helper()
	cmd := exec.Command(binary)
	cmd.Env = append(os.Environ(), env)
	if int(uid) != os.Geteuid() {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

func listen(t *testing.T, path string) *adminsocket.Listener {
	t.Helper()
	l, err := adminsocket.Listen(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// alone fails unless the socket is all that its folder has.
func alone(t *testing.T, path string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 || entries[0].Name() != filepath.Base(path) {
		t.Errorf("the folder has %v, %v; want %s alone", entries, err, filepath.Base(path))
	}
}

func TestTheSystemSaysWhoComes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	l := listen(t, path)
	c, err := adminsocket.Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	in, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	peer, ok := in.RemoteAddr().(adminsocket.Peer)
	if !ok || peer.UID != os.Geteuid() || peer.PID != os.Getpid() || !strings.Contains(peer.Account, "uid ") {
		t.Errorf("the peer is %#v", in.RemoteAddr())
	}
	if _, err := c.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if n, err := in.Read(make([]byte, 2)); n != 1 || err != nil {
		t.Errorf("read %d, %v", n, err)
	}
}

func TestNobodyElseMayConnect(t *testing.T) {
	old := syscall.Umask(0) // the least that a process can ask for
	defer syscall.Umask(old)
	path := filepath.Join(t.TempDir(), "admin.sock")
	l := listen(t, path)
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := fs.ModeSocket | 0o600; info.Mode() != want {
		t.Errorf("the socket has mode %v, want %v", info.Mode(), want)
	}
	alone(t, path)
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Close: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("Close again: %v", err)
	}
}

// Should the mode of the socket not hold somebody up, the system's word does; and a
// client does not talk to a stranger who has put a socket there. It takes root to be
// two accounts: others see that they themselves are let in.
func TestAccountsOfOthers(t *testing.T) {
	nobody, nothing := uint32(65534), uint32(65533)
	root := os.Geteuid() == 0
	if !root {
		nobody = uint32(os.Geteuid())
		nothing = nobody
	}
	dir, err := os.MkdirTemp("", "hypha") //nolint:usetesting // that of the test is closed to other accounts
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "test") // where it was built is closed to others too
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	code, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(binary, code, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "admin.sock")
	refused := make(chan adminsocket.Peer, 1)
	l, err := adminsocket.Listen(t.Context(), path, func(p adminsocket.Peer, _ error) { refused <- p })
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan net.Addr, 1)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- c.RemoteAddr()
			c.Close()
		}
	}()
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if said := another(t, binary, nobody, dialAt+"="+path); !strings.HasPrefix(said, "<nil>") && !strings.Contains(said, "reset") {
		t.Errorf("the client: %s", said)
	}
	select {
	case p := <-refused:
		if !root || p.UID != int(nobody) || p.Account != "" {
			t.Errorf("refused %#v", p)
		}
	case p := <-accepted:
		if root || p.(adminsocket.Peer).UID != int(nobody) {
			t.Errorf("accepted %#v", p)
		}
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if p, more := <-accepted; more {
		t.Errorf("%v was let in", p)
	}

	theirs := filepath.Join(dir, "theirs.sock")
	if said := another(t, binary, nothing, listenAt+"="+theirs); said != "<nil>" {
		t.Fatal(said)
	}
	c, err := adminsocket.Dial(t.Context(), theirs)
	if root {
		if !errors.Is(err, adminsocket.ErrStranger) {
			t.Errorf("a stranger's socket: %v", err)
		}
		if err := os.Chown(dir, int(nothing), int(nothing)); err != nil {
			t.Fatal(err)
		}
		c, err = adminsocket.Dial(t.Context(), theirs) // root, in the folder of the account that runs the server
	}
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestWhatIsThereAlready(t *testing.T) {
	dead := func(t *testing.T, path string) {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false) // as a kill would leave it
		l.Close()
	}
	for name, tc := range map[string]struct {
		make func(t *testing.T, path string)
		want string // in the error; "" if it is replaced
	}{
		"nothing":                       {func(*testing.T, string) {}, ""},
		"the socket of a killed server": {dead, ""},
		"what a start that was killed left": {func(t *testing.T, path string) {
			if err := os.Mkdir(path+".new", 0o700); err != nil {
				t.Fatal(err)
			}
			dead(t, filepath.Join(path+".new", "s"))
		}, ""},
		"the socket of a living server": {func(t *testing.T, path string) { listen(t, path) }, "another server listens"},
		"a file": {func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "is no socket"},
		"a link to a file": {func(t *testing.T, path string) {
			if err := os.Symlink("/etc/passwd", path); err != nil {
				t.Fatal(err)
			}
		}, "is no socket"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			tc.make(t, path)
			before, _ := os.Lstat(path)
			l, err := adminsocket.Listen(t.Context(), path, nil)
			if tc.want != "" {
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Fatalf("Listen: %v; want it to say %q", err, tc.want)
				}
				if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
					t.Errorf("it was replaced: %v", err)
				}
				alone(t, path)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			alone(t, path)
			c, err := adminsocket.Dial(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
		})
	}
}

// Whoever stops removes the socket that it made, and not that of another.
func TestCloseLeavesTheSocketOfAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	first := listen(t, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	listen(t, path)
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Error(err)
	}
}

func TestErrorsOfDialing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	if _, err := adminsocket.Dial(t.Context(), path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing there: %v", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if _, err := adminsocket.Dial(t.Context(), path); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens: %v", err)
	}
}

func TestLongPaths(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, strings.Repeat("x", adminsocket.MaxPath-len(dir)-1))
	listen(t, path) // as long as may be
	path += "x"
	for name, err := range map[string]error{
		"Listen": func() error { _, err := adminsocket.Listen(t.Context(), path, nil); return err }(),
		"Dial":   func() error { _, err := adminsocket.Dial(t.Context(), path); return err }(),
	} {
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("has %d bytes, and that of a socket can have %d", len(path), len(path)-1)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
