package bench

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// A rig is what one run is made in: a folder, a receiver, and the servers that
// are started for it.
type rig struct {
	r         *runner
	dir       string
	receiver  *receiverClient
	processes []*child
}

// inRig makes a rig, works in it, and takes it down. What the processes said at
// last is shown if there is an error.
func (r *runner) inRig(ctx context.Context, work func(*rig) error) (err error) {
	dir, err := os.MkdirTemp(r.opts.TempDir, "hypha-bench-")
	if err != nil {
		return fmt.Errorf("making a temporary data folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	g := &rig{r: r, dir: dir}
	defer func() {
		// The receiver goes first: that frees connections which hang on
		// purpose, and a server that is stopping need not wait for them.
		for _, c := range g.processes {
			err = errors.Join(err, c.stop(r.opts.StopTimeout))
		}
		if err != nil && ctx.Err() == nil {
			for _, c := range g.processes {
				c.show(r.out)
			}
		}
	}()
	process, err := startChild("receiver", r.opts.Self,
		[]string{"bench-receiver", "--listen", net.JoinHostPort(r.opts.ReceiverHost, "0")}, nil)
	if err != nil {
		return err
	}
	g.processes = append(g.processes, process)
	address, err := process.address(ctx, r.opts.ReadyTimeout)
	if err != nil {
		return err
	}
	g.receiver = &receiverClient{base: "http://" + address, pid: process.pid()}
	return work(g)
}

// serverOptions say how a server is started. A field that is not set stands for
// something new.
type serverOptions struct {
	data     string // folder; it may hold a store already
	key      string // the API key; a store that is there has its own
	operator string // the operator's key; default: none
	args     []string
}

// server starts a Hypha server and waits until it is ready.
func (g *rig) server(ctx context.Context, o serverOptions) (*subject, error) {
	if o.data == "" {
		o.data = filepath.Join(g.dir, "data")
	}
	if o.key == "" {
		var err error
		if o.key, err = randomKey(); err != nil {
			return nil, err
		}
	}
	s, err := g.r.startServer(o)
	if err != nil {
		return nil, err
	}
	g.processes = append(g.processes, s.process)
	return s, s.ready(ctx, g.r.opts.ReadyTimeout)
}

// relay starts a relay.
func (g *rig) relay(ctx context.Context, hooks []string) (*subject, error) {
	args := []string{"bench-relay", "--log", filepath.Join(g.dir, "relay.log")}
	for _, h := range hooks {
		args = append(args, "--forward", h)
	}
	c, err := startChild("relay", g.r.opts.Self, args, nil)
	if err != nil {
		return nil, err
	}
	g.processes = append(g.processes, c)
	address, err := c.address(ctx, g.r.opts.ReadyTimeout)
	return &subject{kind: subjectRelay, base: &url.URL{Scheme: "http", Host: address}, process: c, pid: c.pid()}, err
}

// stop ends a server before the rig is taken down.
func (g *rig) stop(s *subject) error {
	err := s.process.stop(g.r.opts.StopTimeout)
	if err == nil {
		g.processes = slices.DeleteFunc(g.processes, func(c *child) bool { return c == s.process })
	}
	return err
}

// hooks are the URLs of n webhooks of a mode, numbered from first.
func (g *rig) hooks(mode string, first, n int) []string {
	var out []string
	for i := range n {
		out = append(out, g.receiver.base+hookPath(mode, first+i, g.r.opts.SlowDelay))
	}
	return out
}

// startServer starts a Hypha server. It may not be ready yet.
func (r *runner) startServer(o serverOptions) (*subject, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	egress := r.opts.ReceiverHost + "/32"
	if ip := net.ParseIP(r.opts.ReceiverHost); ip.IsLoopback() && ip.To4() != nil {
		egress = "127.0.0.0/8"
	} else if ip.To4() == nil {
		egress = r.opts.ReceiverHost + "/128"
	}
	args := append([]string{"serve", "--data", o.data, "--listen", address, "--allow-egress", egress}, o.args...)
	env := []string{"HYPHA_BOOTSTRAP_API_KEY=" + o.key}
	if o.operator != "" {
		env = append(env, "HYPHA_BOOTSTRAP_OPERATOR_KEY="+o.operator)
	}
	// What is asked for is stronger than what a scenario sets.
	c, err := startChild("server", r.opts.Self, append(args, r.opts.ServeArgs...), env)
	if err != nil {
		return nil, err
	}
	return &subject{
		kind: subjectHypha, base: &url.URL{Scheme: "http", Host: address}, key: o.key, process: c, pid: c.pid(),
	}, nil
}

// freeAddress is a loopback address that was free a moment ago.
func freeAddress() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("looking for a free port: %w", err)
	}
	return ln.Addr().String(), ln.Close()
}

// randomKey is an API key nobody else knows: `hypha_` and 32 bytes in base64url.
func randomKey() (string, error) {
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		return "", fmt.Errorf("making an API key: %w", err)
	}
	return "hypha_" + base64.RawURLEncoding.EncodeToString(secret), nil
}

func randomRun() (uint32, error) {
	var b [4]byte
	if _, err := rand.Read(b[:]); err != nil {
		return 0, fmt.Errorf("making a run's name: %w", err)
	}
	return binary.BigEndian.Uint32(b[:]), nil
}

// A meter reads what the machine's processes take over a run.
type meter struct {
	s    *subject
	rc   *receiverClient
	load float64
	from reading
}

// A reading is what had been taken at a moment.
type reading struct {
	at            time.Time
	server        usage
	harness, idle time.Duration
	processors    int
}

func startMeter(s *subject, rc *receiverClient) (*meter, error) {
	m := &meter{s: s, rc: rc, load: loadAverage()}
	var err error
	m.from, err = m.read()
	return m, err
}

func (m *meter) read() (r reading, err error) {
	r.at = time.Now()
	if r.server, err = m.s.usage(); err != nil {
		return r, err
	}
	if r.harness, err = m.rc.harnessUsage(); err != nil {
		return r, err
	}
	r.idle, r.processors, err = readIdle()
	return r, err
}

// taken is what was taken since a meter was started.
type taken struct {
	server, harness, others time.Duration // CPU time
	memory                  Memory        // of the server, now
}

// since is what was taken from one reading to another.
func (r reading) since(from reading) taken {
	t := taken{server: r.server.cpu - from.server.cpu, harness: r.harness - from.harness, memory: r.server.memory}
	all := time.Duration(r.processors) * r.at.Sub(from.at)
	t.others = max(0, all-(r.idle-from.idle)-t.server-t.harness)
	return t
}

func (m *meter) taken() (taken, error) {
	now, err := m.read()
	if err != nil {
		return taken{}, err
	}
	t := now.since(m.from)
	if m.s.pid == 0 {
		t.others = 0 // the server is among them
	}
	return t, nil
}

// stop writes what was taken into a result.
func (m *meter) stop(result *Result) error {
	t, err := m.taken()
	if err != nil {
		return err
	}
	result.LoadBefore, result.LoadAfter = m.load, loadAverage()
	result.MemoryAfter = t.memory
	result.CPUSeconds, result.HarnessCPUSeconds = t.server.Seconds(), t.harness.Seconds()
	result.OtherCPUSeconds = t.others.Seconds()
	return nil
}
