package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A child is a process that the harness started. Its standard input stays open
// until it is stopped, so that it can notice if the harness dies.
type child struct {
	name   string
	cmd    *exec.Cmd
	stdin  io.Closer
	says   *announcement
	tail   *tail
	exited chan struct{}
	err    error // of Wait; set before exited is closed
	told   bool  // early has been called: once is enough
}

// startChild starts `self args…` with env added to what of this process's
// environment is not the server's.
func startChild(name, self string, args, env []string) (*child, error) {
	c := &child{name: name, says: newAnnouncement(), tail: &tail{}, exited: make(chan struct{})}
	c.cmd = exec.Command(self, args...) //nolint:noctx // its end is asked for by SIGTERM, and waited for
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "HYPHA_") {
			c.cmd.Env = append(c.cmd.Env, v)
		}
	}
	c.cmd.Env = append(c.cmd.Env, env...)
	c.cmd.Stdout = io.MultiWriter(c.says, c.tail)
	c.cmd.Stderr = c.tail
	c.cmd.WaitDelay = 5 * time.Second
	stdin, err := c.cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("starting the %s: %w", name, err)
	}
	c.stdin = stdin
	started := make(chan error, 1)
	go func() {
		dieWithParent(c.cmd)
		err := c.cmd.Start()
		started <- err
		if err == nil {
			c.err = c.cmd.Wait()
			close(c.exited)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting the %s: %w", name, err)
	}
	return c, nil
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// address waits until the child has printed where it listens.
func (c *child) address(ctx context.Context, timeout time.Duration) (string, error) {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-c.says.complete:
	case <-c.exited:
		return "", c.early()
	case <-timer.C:
		return "", fmt.Errorf("the %s did not say where it listens within %v", c.name, timeout)
	case <-ctx.Done():
		return "", ctx.Err()
	}
	address, ok := strings.CutPrefix(c.says.text(), listening)
	if !ok {
		return "", fmt.Errorf("the %s said %q instead of where it listens", c.name, c.says.text())
	}
	return address, nil
}

// early is the error of a child that ended although nobody had stopped it.
func (c *child) early() error {
	c.told = true
	return fmt.Errorf("the %s ended by itself (%s)", c.name, c.cmd.ProcessState)
}

// stop ends the child by SIGTERM and waits for it. It is an error if the child
// had ended before (unless that has been said already), needs longer than the timeout (it is killed then), or ends
// with a failure.
func (c *child) stop(timeout time.Duration) error {
	select {
	case <-c.exited:
		if c.told {
			return nil
		}
		return c.early()
	default:
	}
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		// Where there are no signals, the end of its input must do.
		if err := c.stdin.Close(); err != nil {
			return errors.Join(fmt.Errorf("stopping the %s: %w", c.name, err), c.kill())
		}
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-c.exited:
	case <-timer.C:
		return errors.Join(fmt.Errorf("the %s did not stop within %v and was killed", c.name, timeout), c.kill())
	}
	if c.err == nil || stoppedBySignal(c.cmd.ProcessState) {
		return nil
	}
	return fmt.Errorf("the %s stopped with a failure: %w", c.name, c.err)
}

func (c *child) kill() error {
	if err := c.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("killing the %s: %w", c.name, err)
	}
	<-c.exited
	return nil
}

// stoppedBySignal says whether a process died of SIGTERM or SIGINT, or exited
// with the code by which a shell reports that (128 + the signal). An interrupt
// at the terminal reaches the children as well as the harness.
func stoppedBySignal(state *os.ProcessState) bool {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		if state.ExitCode() == 128+int(sig) {
			return true
		}
		if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() && ws.Signal() == sig {
			return true
		}
	}
	return false
}

// show writes the last lines of the child's output to out.
func (c *child) show(out io.Writer) {
	lines := c.tail.lines(20)
	if len(lines) == 0 {
		_, _ = fmt.Fprintf(out, "\n(the %s has printed nothing)\n", c.name)
		return
	}
	_, _ = fmt.Fprintf(out, "\nlast lines of the %s's output:\n  %s\n", c.name, strings.Join(lines, "\n  "))
}

// An announcement keeps the first line written to it.
type announcement struct {
	mu       sync.Mutex
	line     []byte
	done     bool
	complete chan struct{} // closed when the line is whole
}

func newAnnouncement() *announcement { return &announcement{complete: make(chan struct{})} }

func (a *announcement) Write(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.done {
		return len(p), nil
	}
	line, _, whole := bytes.Cut(p, []byte{'\n'})
	a.line = append(a.line, line...)
	// A child that is not asked to announce anything may print at any length.
	if whole || len(a.line) > 4<<10 {
		a.done = true
		close(a.complete)
	}
	return len(p), nil
}

func (a *announcement) text() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return string(bytes.TrimSpace(a.line))
}

// A tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailBytes = 16 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.buf)+len(p) > 2*tailBytes {
		// Cutting down to half makes moving rare for a child that logs a lot.
		kept := t.buf[max(0, len(t.buf)-tailBytes):]
		t.buf = append(t.buf[:0], kept...)
	}
	t.buf = append(t.buf, p[max(0, len(p)-tailBytes):]...)
	return len(p), nil
}

// lines returns at most the last n whole or partial lines.
func (t *tail) lines(n int) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := strings.TrimSpace(string(t.buf))
	if text == "" {
		return nil
	}
	lines := strings.Split(text, "\n")
	return lines[max(0, len(lines)-n):]
}
