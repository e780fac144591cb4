package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/auth"
	"github.com/plinqx/hypha/internal/egress/dnstest"
	"github.com/plinqx/hypha/internal/obs"
	"github.com/plinqx/hypha/internal/pgtest"
)

// asProgram makes this test binary the program itself, so that tests can run it
// as a process of its own without building anything.
const asProgram = "HYPHA_TEST_AS_PROGRAM"

// nameServer has the addresses of the one that the program is to ask when it is a
// process of its own, over UDP and over TCP.
const nameServer = "HYPHA_TEST_NAME_SERVER"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		if udp, tcp, ok := strings.Cut(os.Getenv(nameServer), ","); ok {
			net.DefaultResolver = dnstest.Resolver(udp, tcp)
		}
		main()
		return
	}
	os.Exit(pgtest.Main(m, databases))
}

// databases is the PostgreSQL server of these tests.
var databases = pgtest.New(nil)

// keys that tests give the server at its first start.
const (
	testKey      = "hypha_test-key-0123456789-abcdef"
	operatorKey  = "hypha_test-operator-0123456789-abcdef"
	testEmail    = "admin@example.com"
	testPassword = "correct horse battery staple"
)

func testBootstrap() auth.Bootstrap {
	return auth.Bootstrap{APIKey: testKey, OperatorKey: operatorKey, Email: testEmail, Password: testPassword}
}

// startServer runs the server in this process until the test ends.
func startServer(t *testing.T, change func(*settings)) *server {
	t.Helper()
	return startTuned(t, change, func(*server) {})
}

// startTuned is startServer for a server that is changed before it runs.
func startTuned(t *testing.T, change func(*settings), tune func(*server)) *server {
	t.Helper()
	s, err := defaults()
	if err != nil {
		t.Fatal(err)
	}
	s.Listen, s.Data, s.AllowEgress = "127.0.0.1:0", t.TempDir(), []string{"127.0.0.0/8"}
	if change != nil {
		change(s)
	}
	logger, err := obs.NewLogger(testWriter{t}, "text", s.LogLevel)
	if err != nil {
		t.Fatal(err)
	}
	v, err := newServer(t.Context(), s, testBootstrap(), logger, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	tune(v)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- v.run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("server: %v", err)
		}
	})
	return v
}

// testWriter shows a server's log with the test that it belongs to.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimRight(p, "\n"))
	return len(p), nil
}

// programProcess is the program, running as a process of its own.
type programProcess struct {
	cmd    *exec.Cmd
	url    string
	stdout *lines
	stderr *lines
	exited chan struct{}
	err    error
}

// startProgram runs the program and waits until it says that it is ready.
func startProgram(t *testing.T, env []string, args ...string) *programProcess {
	t.Helper()
	p := spawn(t, env, args...)
	line := p.stderr.await(t, p.exited, "msg=ready")
	_, rest, _ := strings.Cut(line, "url=")
	p.url, _, _ = strings.Cut(rest, " ")
	return p
}

// spawn runs the program.
func spawn(t *testing.T, env []string, args ...string) *programProcess {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return spawnCommand(t, exec.Command(self, args...), append(env, asProgram+"=1"))
}

func spawnCommand(t *testing.T, cmd *exec.Cmd, env []string) *programProcess {
	t.Helper()
	p := &programProcess{cmd: cmd, stdout: new(lines), stderr: new(lines), exited: make(chan struct{})}
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = p.stdout, p.stderr
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true // so that what it starts ends with it
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(func() { p.kill(t) })
	return p
}

// kill ends the process, and what it started, as a crash would.
func (p *programProcess) kill(t *testing.T) {
	t.Helper()
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // it may have ended
	<-p.exited
}

// stop asks the process to end, and waits.
func (p *programProcess) stop(t *testing.T) error {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-p.exited
	return p.err
}

// lines collects what a process prints.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
	more chan struct{}
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.more != nil {
		close(l.more)
		l.more = nil
	}
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// await waits for a line that holds a text.
func (l *lines) await(t *testing.T, exited <-chan struct{}, want string) string {
	t.Helper()
	deadline := time.After(60 * time.Second)
	for {
		l.mu.Lock()
		text := l.text.String()
		if l.more == nil {
			l.more = make(chan struct{})
		}
		more := l.more
		l.mu.Unlock()
		for line := range strings.Lines(text) {
			if strings.HasSuffix(line, "\n") && strings.Contains(line, want) {
				return strings.TrimRight(line, "\n")
			}
		}
		select {
		case <-more:
		case <-exited:
			t.Fatalf("it ended before it printed %q:\n%s", want, l)
		case <-deadline:
			t.Fatalf("it did not print %q within a minute:\n%s", want, l)
		}
	}
}

// client calls a server with a key.
type client struct {
	base, key string
}

func (c client) do(method, path string, body any, out any) (int, error) {
	var in io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		in = strings.NewReader(b)
	case []byte:
		in = bytes.NewReader(b)
	default:
		raw, err := json.Marshal(b)
		if err != nil {
			return 0, err
		}
		in = bytes.NewReader(raw)
	}
	req, err := http.NewRequest(method, c.base+"/services"+path, in)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+c.key)
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	if out != nil && resp.StatusCode < 300 {
		return resp.StatusCode, json.Unmarshal(raw, out)
	}
	if resp.StatusCode >= 300 {
		return resp.StatusCode, fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, raw)
	}
	return resp.StatusCode, nil
}

// must is do, where anything but success ends the test.
func (c client) must(t *testing.T, method, path string, body, out any) {
	t.Helper()
	if _, err := c.do(method, path, body, out); err != nil {
		t.Fatal(err)
	}
}

func (c client) createWebhook(t *testing.T, url string, events ...string) (id, secret string) {
	t.Helper()
	var made struct{ ID, Secret string }
	c.must(t, http.MethodPost, "/webhooks", map[string]any{"name": "test", "url": url, "events": events}, &made)
	return made.ID, made.Secret
}

// arrivals is a receiver that keeps what it gets.
type arrivals struct {
	*httptest.Server
	mu   sync.Mutex
	got  []arrived
	more chan struct{}
	// answer decides on a status; nil answers 200.
	answer func(arrived) int
}

type arrived struct {
	path   string
	header http.Header
	body   []byte
}

func newArrivals(t *testing.T, answer func(arrived) int) *arrivals {
	t.Helper()
	r := &arrivals{more: make(chan struct{}), answer: answer}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return // the sender was killed
		}
		a := arrived{req.URL.Path, req.Header.Clone(), body}
		r.mu.Lock()
		r.got = append(r.got, a)
		close(r.more)
		r.more = make(chan struct{})
		r.mu.Unlock()
		status := http.StatusOK
		if r.answer != nil {
			status = r.answer(a)
		}
		w.WriteHeader(status)
	}))
	t.Cleanup(r.Close)
	return r
}

// await waits until what arrived satisfies a condition.
func (r *arrivals) await(t *testing.T, what string, enough func([]arrived) bool) []arrived {
	t.Helper()
	deadline := time.After(90 * time.Second)
	for {
		r.mu.Lock()
		got, more := r.got, r.more
		r.mu.Unlock()
		if enough(got) {
			return got
		}
		select {
		case <-more:
		case <-deadline:
			t.Fatalf("%s did not come about; %d requests arrived", what, len(got))
		}
	}
}

func (r *arrivals) awaitCount(t *testing.T, n int) []arrived {
	t.Helper()
	return r.await(t, fmt.Sprintf("the arrival of %d requests", n), func(got []arrived) bool { return len(got) >= n })
}

// eventually asks again and again, until a condition holds or a deadline passes.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
		<-tick.C
	}
}
