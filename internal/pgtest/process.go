//go:build unix

package pgtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// process is a server in a folder.
type process struct {
	bin, folder string
	port        int
	user        *syscall.Credential
	password    string
	watchdog    *watchdog
	// within, if set, makes the server's command one that puts the server on a disk
	// of its own first.
	within func(*exec.Cmd)

	mu     sync.Mutex
	cmd    *exec.Cmd     // nil while it is down
	exited chan struct{} // closed when cmd has ended
	frozen bool
}

// attemptsOfPort is how often a start is tried: a port that was free may be taken by
// somebody faster.
const attemptsOfPort = 5

// startNew makes a server in a new folder, and starts it.
func startNew(ctx context.Context, password string, within func(*exec.Cmd)) (*process, error) {
	return startMade(ctx, password, within, (*process).initialize)
}

// startMade starts a server in a new folder, whose data folder is made first.
func startMade(ctx context.Context, password string, within func(*exec.Cmd), makeData func(*process, context.Context) error) (*process, error) {
	bin, err := findPrograms()
	if err != nil {
		return nil, err
	}
	account, err := unprivileged()
	if err != nil {
		return nil, err
	}
	// A socket's path may have some 100 bytes.
	folder, err := os.MkdirTemp("", "pgtest")
	if err != nil {
		return nil, err
	}
	p := &process{bin: bin, folder: folder, user: account, password: password, within: within}
	if err := p.claimFolder(); err != nil {
		return nil, errors.Join(err, p.remove())
	}
	if err := makeData(p, ctx); err != nil {
		return nil, errors.Join(err, p.remove())
	}
	for n := 1; ; n++ {
		if p.port, err = freePort(); err == nil {
			err = p.start(ctx)
		}
		if err == nil {
			return p, nil
		}
		if n == attemptsOfPort || ctx.Err() != nil {
			return nil, errors.Join(err, p.remove())
		}
	}
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

func (p *process) address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.port)) }
func (p *process) data() string    { return filepath.Join(p.folder, "data") }
func (p *process) log() string     { return filepath.Join(p.folder, "log") }

// claimFolder gives the folder to the server's user, and has it deleted whatever
// becomes of us.
func (p *process) claimFolder() (err error) {
	if p.user != nil {
		if err := os.Chown(p.folder, int(p.user.Uid), int(p.user.Gid)); err != nil {
			return err
		}
	}
	p.watchdog, err = watch(p.folder)
	return err
}

// initialize makes the data folder. That it is not synced saves a second; what is
// committed later is.
func (p *process) initialize(ctx context.Context) error {
	password := filepath.Join(p.folder, "password")
	if err := p.write(password, []string{p.password}); err != nil {
		return err
	}
	cmd := p.command(ctx, filepath.Join(p.bin, "initdb"), "--pgdata", p.data(), "--no-sync", "--encoding=UTF8", "--no-locale", "--username="+superuser,
		"--auth=md5", "--pwfile="+password)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	return nil
}

// command is a program as the server's user, in a process group of its own: an interrupt at the
// terminal is for the test binary alone.
func (p *process) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = p.folder
	cmd.Env = []string{"LC_ALL=C", "TZ=UTC", "PATH=" + p.bin + string(os.PathListSeparator) + os.Getenv("PATH"), "HOME=" + p.folder}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.user, Setpgid: true}
	return cmd
}

// start starts the server and waits until it answers.
func (p *process) start(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		return errors.New("the PostgreSQL server runs already")
	}
	log, err := os.OpenFile(p.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the server has its own
	cmd := p.command(context.WithoutCancel(ctx), filepath.Join(p.bin, "postgres"), "-D", p.data(), "-p", strconv.Itoa(p.port))
	for _, setting := range [...]string{
		"listen_addresses=127.0.0.1", "unix_socket_directories=" + p.folder,
		"fsync=on", "synchronous_commit=on", "full_page_writes=on",
		"shared_buffers=64MB", "max_connections=300", "max_wal_size=512MB",
		// In the data folder, which goes.
		"dynamic_shared_memory_type=mmap",
		"timezone=UTC", "log_timezone=UTC", "log_min_messages=warning",
	} {
		cmd.Args = append(cmd.Args, "-c", setting)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if p.within != nil {
		p.within(cmd)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start PostgreSQL: %w", err)
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // the log says why
		close(exited)
	}()
	if err := p.await(ctx, p.address(), exited); err != nil {
		_ = cmd.Process.Signal(syscall.SIGQUIT) // it may have ended
		<-exited
		return fmt.Errorf("start PostgreSQL: %w\n%s", err, p.lastLines())
	}
	p.cmd, p.exited = cmd, exited
	return nil
}

// await asks until the server answers at an address, which may be a proxy's, or its
// process has ended.
func (p *process) await(ctx context.Context, address string, exited <-chan struct{}) error {
	ticks := time.NewTicker(20 * time.Millisecond)
	defer ticks.Stop()
	url := fmt.Sprintf("postgres://%s:%s@%s/postgres?sslmode=disable&connect_timeout=5", superuser, p.password, address)
	for {
		c, err := pgconn.Connect(ctx, url)
		if err == nil {
			return c.Close(ctx)
		}
		select {
		case <-exited:
			return errors.New("it ended")
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-ticks.C:
		}
	}
}

// lastLines is the end of the server's log.
func (p *process) lastLines() []byte {
	b, err := os.ReadFile(p.log())
	if err != nil {
		return []byte(err.Error())
	}
	return b[max(0, len(b)-4<<10):]
}

// up reports whether the server runs and answers.
func (p *process) up() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd != nil && !p.frozen
}

// stop ends the server: fast shutdown (SIGINT), or immediate shutdown (SIGQUIT), see
// https://www.postgresql.org/docs/current/server-shutdown.html.
func (p *process) stop(crash bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return errors.New("the PostgreSQL server does not run")
	}
	if err := p.signalAll(syscall.SIGCONT); err != nil {
		return err
	}
	how := syscall.SIGINT
	if crash {
		how = syscall.SIGQUIT
	}
	_ = p.cmd.Process.Signal(how) // it may have ended
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case <-p.exited:
	case <-late.C:
		_ = p.cmd.Process.Kill()
		<-p.exited
		return fmt.Errorf("the PostgreSQL server did not end in %v and was killed\n%s", patience, p.lastLines())
	}
	p.cmd, p.frozen = nil, false
	return nil
}

func (p *process) freeze() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return errors.New("the PostgreSQL server does not run")
	}
	p.frozen = true
	return p.signalAll(syscall.SIGSTOP)
}

func (p *process) thaw() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return errors.New("the PostgreSQL server does not run")
	}
	p.frozen = false
	return p.signalAll(syscall.SIGCONT)
}

// signalAll signals the server and its children, each of which leads a process group
// of its own. The server comes first: when it is halted it starts no more.
func (p *process) signalAll(sig syscall.Signal) error {
	server := p.cmd.Process.Pid
	if err := syscall.Kill(server, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	children, err := childrenOf(server)
	if err != nil {
		return fmt.Errorf("find the processes of the PostgreSQL server: %w", err)
	}
	for _, child := range children {
		if err := syscall.Kill(child, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return nil
}

// remove ends the server and deletes its folder.
func (p *process) remove() error {
	var err error
	p.mu.Lock()
	runs := p.cmd != nil
	p.mu.Unlock()
	if runs {
		err = p.stop(true)
	}
	err = errors.Join(err, os.RemoveAll(p.folder))
	if p.watchdog != nil {
		err = errors.Join(err, p.watchdog.end())
	}
	return err
}

// watchdog ends a server whose test binary has ended without doing so: it was
// killed, or a test panicked.
type watchdog struct {
	cmd  *exec.Cmd
	line io.Closer // held open by us, and by the system while we live
}

// watchScript waits for the end of its input. A server that was halted must go on to
// end, and its children if the end shall not take it seconds. It is told from a
// stranger with its number by the folder that it runs in, where the system shows that.
const watchScript = `
read -r _
server=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)
if [ -n "$server" ] && { [ ! -d /proc/self ] || [ "$(readlink "/proc/$server/cwd")" = "$1/data" ]; }; then
	kill -QUIT "$server"
	for halted in "$server" $(cat "/proc/$server/task/$server/children" 2>/dev/null); do kill -CONT "$halted"; done
	n=0
	while kill -0 "$server" && [ "$n" -lt 100 ]; do sleep 0.1; n=$((n + 1)); done
	kill -KILL "$server"
fi
for file in "$1"/*.pid; do
	proxy=$(cat "$file" 2>/dev/null) && [ -n "$proxy" ] || continue
	if [ ! -d /proc/self ] || [ "$(readlink "/proc/$proxy/cwd")" = "$1" ]; then kill -KILL "$proxy"; fi
done
rm -rf "$1"
`

func watch(folder string) (*watchdog, error) {
	cmd := exec.Command("/bin/sh", "-c", watchScript, "pgtest-watchdog", folder)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	line, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start what ends PostgreSQL after us: %w", err)
	}
	return &watchdog{cmd, line}, nil
}

func (w *watchdog) end() error {
	return errors.Join(w.line.Close(), w.cmd.Wait())
}
