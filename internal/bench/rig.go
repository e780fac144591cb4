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
	"strconv"
	"sync"
	"time"
)

// A rig is what one run is made in: a folder, a receiver, the servers that are
// started for it, and a database if they are to use one.
type rig struct {
	r         *runner
	dir       string
	receiver  *receiverClient
	processes []*child
	database  *database // nil until a server needs it
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
		if g.database != nil {
			err = errors.Join(err, g.database.drop(ctx))
		}
	}()
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
	data     string    // folder; it may hold a store already
	database *database // instead of data, if the run uses a database
	key      string    // the API key; a store that is there has its own
	operator string    // the operator's key; default: none
	args     []string
}

// server starts a Hypha server, or as many nodes of one as there are to be, and
// waits until all are ready.
func (g *rig) server(ctx context.Context, o serverOptions) (*subject, error) {
	if o.key == "" {
		var err error
		if o.key, err = randomKey(); err != nil {
			return nil, err
		}
	}
	if o.database == nil && g.r.databases != nil {
		var err error
		if o.database, err = g.ownDatabase(ctx); err != nil {
			return nil, err
		}
	}
	if o.data == "" {
		o.data = filepath.Join(g.dir, "data")
	}
	s := &subject{kind: subjectHypha, key: o.key, database: o.database}
	for i := range max(1, g.r.opts.Nodes) {
		n, err := g.r.startNode(o, i+1)
		if err != nil {
			return nil, err
		}
		g.processes = append(g.processes, n.process)
		s.nodes = append(s.nodes, n)
		// Whoever comes first to a new database makes what the others find.
		if o.database != nil && !o.database.used {
			if err := n.ready(ctx, g.r.opts.ReadyTimeout); err != nil {
				return nil, err
			}
			o.database.used = true
		}
	}
	return s, s.ready(ctx, g.r.opts.ReadyTimeout)
}

// ownDatabase is the database of this run, which goes with it.
func (g *rig) ownDatabase(ctx context.Context) (*database, error) {
	if g.database == nil {
		d, err := newDatabase(g.r.databases)
		if err != nil {
			return nil, err
		}
		g.database = d // from here on it is dropped, even if making it is broken off
		if err := d.server.create(ctx, d.name, ""); err != nil {
			return nil, err
		}
	}
	return g.database, nil
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
	n := node{base: &url.URL{Scheme: "http", Host: address}, process: c, pid: c.pid()}
	return &subject{kind: subjectRelay, nodes: []node{n}}, err
}

// stop ends a server before the rig is taken down: all of its nodes at once.
func (g *rig) stop(s *subject) error {
	failures := make([]error, len(s.nodes))
	var stopping sync.WaitGroup
	for i, n := range s.nodes {
		stopping.Go(func() { failures[i] = n.process.stop(g.r.opts.StopTimeout) })
	}
	stopping.Wait()
	g.processes = slices.DeleteFunc(g.processes, func(c *child) bool {
		i := slices.IndexFunc(s.nodes, func(n node) bool { return n.process == c })
		return i >= 0 && failures[i] == nil
	})
	return errors.Join(failures...)
}

// hooks are the URLs of n webhooks of a mode, numbered from first.
func (g *rig) hooks(mode string, first, n int) []string {
	return g.hooksAfter(mode, first, n, g.r.opts.SlowDelay)
}

// hooksAfter is hooks for those that answer after a time.
func (g *rig) hooksAfter(mode string, first, n int, delay time.Duration) []string {
	var out []string
	for i := range n {
		out = append(out, g.receiver.base+hookPath(mode, first+i, delay))
	}
	return out
}

// measured are the URLs of the webhooks of a load that are measured.
func (g *rig) measured(sc Scenario) []string {
	if sc.LateMs > 0 {
		return g.hooksAfter(modeLate, 0, sc.Fanout, time.Duration(sc.LateMs)*time.Millisecond)
	}
	return g.hooks(modeOK, 0, sc.Fanout)
}

// startNode starts a Hypha server, numbered among those that share a database. It
// may not be ready yet.
func (r *runner) startNode(o serverOptions, number int) (node, error) {
	address, err := freeAddress()
	if err != nil {
		return node{}, err
	}
	egress := r.opts.ReceiverHost + "/32"
	if ip := net.ParseIP(r.opts.ReceiverHost); ip.IsLoopback() && ip.To4() != nil {
		egress = "127.0.0.0/8"
	} else if ip.To4() == nil {
		egress = r.opts.ReceiverHost + "/128"
	}
	name := "server"
	env := []string{"HYPHA_BOOTSTRAP_API_KEY=" + o.key}
	if o.operator != "" {
		env = append(env, "HYPHA_BOOTSTRAP_OPERATOR_KEY="+o.operator)
	}
	// All publishers have one address.
	args := []string{"serve", "--listen", address, "--allow-egress", egress, "--max-connections-per-address", "0"}
	if o.database == nil {
		args = append(args, "--data", o.data)
	} else {
		name = nodeName(number)
		args = append(args, "--data", filepath.Join(o.data, name), "--node-name", name)
		env = append(env, o.database.env()...)
	}
	// What is asked for is stronger than what a scenario sets.
	args = append(append(args, o.args...), r.opts.ServeArgs...)
	c, err := startChild(name, r.opts.Self, args, env)
	if err != nil {
		return node{}, err
	}
	return node{base: &url.URL{Scheme: "http", Host: address}, process: c, pid: c.pid()}, nil
}

// nodeName is the name of a server among those that share a database.
func nodeName(number int) string { return "bench-" + strconv.Itoa(number) }

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
	server        usage // of all nodes
	database      databaseUsage
	harness, idle time.Duration
	processors    int
}

func startMeter(ctx context.Context, s *subject, rc *receiverClient) (*meter, error) {
	m := &meter{s: s, rc: rc, load: loadAverage()}
	var err error
	m.from, err = m.read(ctx)
	return m, err
}

func (m *meter) read(ctx context.Context) (r reading, err error) {
	r.at = time.Now()
	if r.database, err = m.s.database.usage(ctx); err != nil {
		return r, err
	}
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
	database                databaseUsage
}

// since is what was taken from one reading to another.
func (r reading) since(from reading) taken {
	t := taken{server: r.server.cpu - from.server.cpu, harness: r.harness - from.harness, memory: r.server.memory}
	t.database = r.database.since(from.database)
	all := time.Duration(r.processors) * r.at.Sub(from.at)
	t.others = max(0, all-(r.idle-from.idle)-t.server-t.harness-t.database.cpu)
	return t
}

func (m *meter) taken(ctx context.Context) (taken, error) {
	now, err := m.read(ctx)
	if err != nil {
		return taken{}, err
	}
	t := now.since(m.from)
	if !m.s.known() {
		t.others = 0 // the server is among them
	}
	return t, nil
}

// stop writes what was taken into a result.
func (m *meter) stop(ctx context.Context, result *Result) error {
	t, err := m.taken(ctx)
	if err != nil {
		return err
	}
	result.LoadBefore, result.LoadAfter = m.load, loadAverage()
	result.MemoryAfter = t.memory
	result.CPUSeconds, result.HarnessCPUSeconds = t.server.Seconds(), t.harness.Seconds()
	result.OtherCPUSeconds = t.others.Seconds()
	result.DatabaseCPUSeconds = t.database.cpu.Seconds()
	result.DatabaseCommits, result.DatabaseWALBytes = t.database.commits, t.database.wal
	return nil
}
