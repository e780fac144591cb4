package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// What can be measured.
const (
	subjectHypha = "hypha"
	subjectRelay = "relay"
)

const (
	pollInterval = 50 * time.Millisecond

	// settleTime is how long a server may go on after the last arrival before
	// its CPU time is read: recording what the receiver answered is part of the
	// work of a delivery.
	settleTime = 300 * time.Millisecond

	// cleanupTimeout bounds the requests that tidy up at a server that stays.
	cleanupTimeout = 10 * time.Second
)

// runner carries out the scenarios of one Run.
type runner struct {
	opts Options
	out  io.Writer
}

// scenario runs one scenario as often as asked, each time with fresh processes.
// What was measured is returned even if there is an error.
func (r *runner) scenario(ctx context.Context, sc Scenario) (ScenarioReport, error) {
	sr := ScenarioReport{Scenario: sc, Duration: r.opts.Duration.String(), Warmup: max(r.opts.Warmup, 0).String()}
	var failures []error
	for pair := range r.opts.Pairs {
		order := []string{subjectHypha}
		if r.opts.Against != "" {
			order = append(order, r.opts.Against)
			if pair%2 == 1 { // whoever goes second must not always be the same
				order[0], order[1] = order[1], order[0]
			}
		}
		for _, subject := range order {
			result, err := r.measure(ctx, sc, subject)
			if result != nil {
				result.Pair = pair + 1
				sr.Runs = append(sr.Runs, *result)
			}
			if err != nil {
				failures = append(failures, fmt.Errorf("%s: %w", subject, err))
			}
			if ctx.Err() != nil {
				sr.summarize()
				return sr, errors.Join(failures...)
			}
		}
	}
	sr.summarize()
	return sr, errors.Join(failures...)
}

// measure runs a scenario once. The result is nil if it came to no end.
func (r *runner) measure(ctx context.Context, sc Scenario, kind string) (result *Result, err error) {
	dir, err := os.MkdirTemp(r.opts.TempDir, "hypha-bench-")
	if err != nil {
		return nil, fmt.Errorf("making a temporary data folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	var processes []*child
	defer func() {
		// The receiver goes first: that frees connections which hang on
		// purpose, and a server that is stopping need not wait for them.
		for _, c := range processes {
			err = errors.Join(err, c.stop(r.opts.StopTimeout))
		}
		if err != nil && ctx.Err() == nil {
			for _, c := range processes {
				c.show(r.out)
			}
		}
	}()

	rcProcess, err := startChild("receiver", r.opts.Self,
		[]string{"bench-receiver", "--listen", net.JoinHostPort(r.opts.ReceiverHost, "0")}, nil)
	if err != nil {
		return nil, err
	}
	processes = append(processes, rcProcess)
	address, err := rcProcess.address(ctx, r.opts.ReadyTimeout)
	if err != nil {
		return nil, err
	}
	rc := &receiverClient{base: "http://" + address, pid: rcProcess.pid()}

	var hooks []string
	for _, g := range []struct {
		mode string
		n    int
	}{{modeOK, sc.Fanout}, {modeSlow, sc.Slow}, {modeHang, sc.Hanging}, {modeFail, sc.Failing}} {
		for i := range g.n {
			hooks = append(hooks, rc.base+hookPath(g.mode, i, r.opts.SlowDelay))
		}
	}

	s := &subject{kind: kind, key: r.opts.APIKey, pid: r.opts.TargetPID}
	switch {
	case kind == subjectRelay:
		s.process, s.base, err = r.startRelay(ctx, dir, hooks)
	case r.opts.Target != "":
		s.base, err = url.Parse(r.opts.Target)
	default:
		s.process, s.base, s.key, err = r.startServer(dir)
	}
	if s.process != nil {
		processes = append(processes, s.process)
		s.pid = s.process.pid()
	}
	if err != nil {
		return nil, err
	}
	if err := s.ready(ctx, r.opts.ReadyTimeout); err != nil {
		return nil, err
	}
	if kind == subjectHypha {
		defer func() {
			if r.opts.Target != "" {
				err = errors.Join(err, s.deleteWebhooks(ctx))
			}
		}()
		if err := s.createWebhooks(ctx, hooks); err != nil {
			return nil, err
		}
	}
	return r.load(ctx, sc, s, rc)
}

// load warms s up, loads it, waits until everything has arrived, and does the
// sums.
func (r *runner) load(ctx context.Context, sc Scenario, s *subject, rc *receiverClient) (*Result, error) {
	result := &Result{Subject: s.kind}
	idle, err := s.usage()
	if err != nil {
		return nil, err
	}
	result.MemoryIdle = idle.memory
	if r.opts.Warmup > 0 {
		warm, err := r.stretch(ctx, sc, s, rc, r.opts.Warmup)
		if err != nil {
			return nil, fmt.Errorf("warm-up: %w", err)
		}
		result.WarmupLost = warm.lost
	}

	before, err := s.usage()
	if err != nil {
		return nil, err
	}
	harnessBefore, err := rc.harnessUsage()
	if err != nil {
		return nil, err
	}
	result.LoadBefore = loadAverage()
	st, err := r.stretch(ctx, sc, s, rc, r.opts.Duration)
	if err != nil {
		return nil, err
	}
	after, err := s.usage()
	if err != nil {
		return nil, err
	}
	harnessAfter, err := rc.harnessUsage()
	if err != nil {
		return nil, err
	}

	p, a := st.published, st.arrivals
	result.LoadAfter = loadAverage()
	result.MemoryAfter = after.memory
	result.CPUSeconds = (after.cpu - before.cpu).Seconds()
	result.HarnessCPUSeconds = (harnessAfter - harnessBefore).Seconds()
	if a.Unique > 0 {
		result.CPUSecondsPer1000 = result.CPUSeconds / float64(a.Unique) * 1000
	}
	result.Accepted, result.Refused, result.Failed, result.Unsent = p.accepted, p.refused, p.failed, p.unsent
	result.AcceptedPerSecond = p.perSecond()
	result.AckMs = p.ack.latency()
	result.Delivered, result.Duplicates, result.Stray = a.Unique, a.Duplicates, a.Stray
	result.DeliveredPerSecond = perSecond(a.Unique, time.Unix(0, a.LastAt).Sub(p.first))
	result.LatencyMs = a.LatencyMs
	result.Lost, result.Unaccepted = st.lost, st.unaccepted
	result.Bystanders = a.Bystanders

	if lost := result.Lost + result.WarmupLost; lost > 0 {
		return result, fmt.Errorf("%w: %d of %d deliveries (no arrival for %v)", ErrLost, lost,
			p.accepted*uint64(sc.Fanout), r.opts.DrainIdle)
	}
	if p.failed > 0 {
		return result, fmt.Errorf("%d publishes failed; the first: %w", p.failed/uint64(sc.Batch), p.failure)
	}
	return result, nil
}

// A stretch is a load and what arrived of it.
type stretch struct {
	published  *published
	arrivals   arrivals
	lost       uint64 // accepted, and never arrived at a webhook
	unaccepted uint64 // arrived, although refused or failed
}

func (r *runner) stretch(ctx context.Context, sc Scenario, s *subject, rc *receiverClient, duration time.Duration) (*stretch, error) {
	run, err := randomRun()
	if err != nil {
		return nil, err
	}
	if err := rc.reset(ctx, run); err != nil {
		return nil, err
	}
	l := load{
		publishers: sc.Publishers, rate: sc.Rate, batch: sc.Batch, duration: duration,
		connect: func() publisher { return newWirePublisher(s.base, s.key, run, sc.Batch, sc.PayloadBytes) },
	}
	p, err := l.drive(ctx)
	if err != nil {
		return nil, errors.Join(err, s.gone())
	}
	if p.accepted == 0 {
		return nil, errors.Join(errors.New("the server accepted nothing"), p.failure, s.gone())
	}
	st := &stretch{published: p}
	if err := r.drain(ctx, sc, rc, st); err != nil {
		return nil, errors.Join(err, s.gone())
	}
	if !sleep(ctx, settleTime) {
		return nil, ctx.Err()
	}
	// Duplicates may have come since.
	st.arrivals, err = rc.stats(ctx)
	if err != nil {
		return nil, err
	}
	if st.arrivals.Untracked > 0 {
		return nil, fmt.Errorf("%d arrivals were more than the receiver can tell apart: shorten the run", st.arrivals.Untracked)
	}
	return st, nil
}

// drain waits until every accepted event has arrived at every webhook, or
// nothing new has arrived for long enough.
func (r *runner) drain(ctx context.Context, sc Scenario, rc *receiverClient, st *stretch) error {
	expected := st.published.accepted * uint64(sc.Fanout)
	seen, lastChange := uint64(0), time.Now()
	for {
		a, err := rc.stats(ctx)
		if err != nil {
			return err
		}
		if a.Unique != seen {
			seen, lastChange = a.Unique, time.Now()
		}
		over := time.Since(lastChange) >= r.opts.DrainIdle
		if a.Unique >= expected || over {
			st.lost, st.unaccepted = 0, 0
			for hook := range sc.Fanout {
				arrived, err := rc.arrived(ctx, hook)
				if err != nil {
					return err
				}
				st.lost += st.published.numbers.missingFrom(arrived)
				st.unaccepted += arrived.missingFrom(&st.published.numbers)
			}
			if st.lost == 0 || over {
				return nil
			}
		}
		if !sleep(ctx, pollInterval) {
			return ctx.Err()
		}
	}
}

// startServer starts a Hypha server with its data in dir.
func (r *runner) startServer(dir string) (*child, *url.URL, string, error) {
	key, err := randomKey()
	if err != nil {
		return nil, nil, "", err
	}
	address, err := freeAddress()
	if err != nil {
		return nil, nil, "", err
	}
	egress := r.opts.ReceiverHost + "/32"
	if ip := net.ParseIP(r.opts.ReceiverHost); ip.IsLoopback() && ip.To4() != nil {
		egress = "127.0.0.0/8"
	} else if ip.To4() == nil {
		egress = r.opts.ReceiverHost + "/128"
	}
	args := append([]string{
		"serve", "--data", filepath.Join(dir, "data"), "--listen", address, "--allow-egress", egress,
	}, r.opts.ServeArgs...)
	c, err := startChild("server", r.opts.Self, args, []string{"HYPHA_BOOTSTRAP_API_KEY=" + key})
	return c, &url.URL{Scheme: "http", Host: address}, key, err
}

func (r *runner) startRelay(ctx context.Context, dir string, hooks []string) (*child, *url.URL, error) {
	args := []string{"bench-relay", "--log", filepath.Join(dir, "relay.log")}
	for _, h := range hooks {
		args = append(args, "--forward", h)
	}
	c, err := startChild("relay", r.opts.Self, args, nil)
	if err != nil {
		return nil, nil, err
	}
	address, err := c.address(ctx, r.opts.ReadyTimeout)
	return c, &url.URL{Scheme: "http", Host: address}, err
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

// A subject is the server that is measured.
type subject struct {
	kind     string
	base     *url.URL
	key      string
	pid      int    // 0 if unknown
	process  *child // nil if we did not start it
	webhooks []string
}

func (s *subject) usage() (usage, error) {
	if s.pid == 0 {
		return usage{}, nil
	}
	return readUsage(s.pid)
}

// gone is an error if the subject was started here and has ended.
func (s *subject) gone() error {
	if s.process == nil {
		return nil
	}
	select {
	case <-s.process.exited:
		return s.process.early()
	default:
		return nil
	}
}

// ready waits until GET /readyz answers 200. The relay takes traffic as soon
// as it listens.
func (s *subject) ready(ctx context.Context, timeout time.Duration) error {
	if s.kind == subjectRelay {
		return nil
	}
	deadline := time.Now().Add(timeout)
	for {
		status, _, err := s.request(ctx, http.MethodGet, "/readyz", nil)
		if err == nil && status == http.StatusOK {
			return nil
		}
		if err := errors.Join(ctx.Err(), s.gone()); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			if err == nil {
				err = fmt.Errorf("GET /readyz answered %d", status)
			}
			return fmt.Errorf("the server was not ready within %v: %w", timeout, err)
		}
		sleep(ctx, 20*time.Millisecond)
	}
}

// createWebhooks registers one webhook for each URL, all for our event type.
func (s *subject) createWebhooks(ctx context.Context, urls []string) error {
	for i, u := range urls {
		status, answer, err := s.request(ctx, http.MethodPost, "/services/webhooks", map[string]any{
			"name": "bench " + strconv.Itoa(i), "url": u, "events": []string{eventType},
		})
		if err != nil {
			return fmt.Errorf("creating a webhook: %w", err)
		}
		var created struct {
			ID string `json:"id"`
		}
		if err := json.Unmarshal(answer, &created); status != http.StatusCreated || err != nil || created.ID == "" {
			return fmt.Errorf("creating a webhook for %s: the server answered %d: %.300s", u, status, answer)
		}
		s.webhooks = append(s.webhooks, created.ID)
	}
	return nil
}

// deleteWebhooks removes what createWebhooks made, even if ctx is done: the
// server stays, and its webhooks would deliver to nobody.
func (s *subject) deleteWebhooks(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	var failures []error
	for _, id := range s.webhooks {
		status, answer, err := s.request(ctx, http.MethodDelete, "/services/webhooks/"+id, nil)
		if err == nil && status/100 != 2 {
			err = fmt.Errorf("the server answered %d: %.300s", status, answer)
		}
		if err != nil {
			failures = append(failures, fmt.Errorf("deleting webhook %s, please do so yourself: %w", id, err))
		}
	}
	return errors.Join(failures...)
}

func (s *subject) request(ctx context.Context, method, path string, body any) (int, []byte, error) {
	var text []byte
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return 0, nil, err
		}
	}
	return request(ctx, method, s.base.JoinPath(path).String(), s.key, text)
}

// request is for the few calls that are not part of the load.
func request(ctx context.Context, method, target, key string, body []byte) (int, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	// Nothing is left idle in either process, and no proxy comes between, as
	// none does for the load.
	req.Close = true
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := new(http.Transport).RoundTrip(req)
	if err != nil {
		return 0, nil, err
	}
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxPages*pageBytes))
	return res.StatusCode, answer, errors.Join(err, res.Body.Close())
}

// A receiverClient asks the receiver what has arrived.
type receiverClient struct {
	base string
	pid  int
}

func (c *receiverClient) call(ctx context.Context, path string) ([]byte, error) {
	status, answer, err := request(ctx, http.MethodPost, c.base+path, "", nil)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("it answered %d", status)
	}
	if err != nil {
		return nil, fmt.Errorf("asking the receiver for %s: %w", path, err)
	}
	return answer, nil
}

func (c *receiverClient) reset(ctx context.Context, run uint32) error {
	_, err := c.call(ctx, "/_reset?run="+formatRun(run))
	return err
}

func (c *receiverClient) stats(ctx context.Context) (arrivals, error) {
	answer, err := c.call(ctx, "/_stats")
	if err != nil {
		return arrivals{}, err
	}
	var a arrivals
	if err := json.Unmarshal(answer, &a); err != nil {
		return arrivals{}, fmt.Errorf("reading the receiver's counts: %w", err)
	}
	return a, nil
}

func (c *receiverClient) arrived(ctx context.Context, hook int) (*bitmap, error) {
	answer, err := c.call(ctx, "/_arrived?hook="+strconv.Itoa(hook))
	if err != nil {
		return nil, err
	}
	return parseBitmap(answer), nil
}

// harnessUsage is the CPU time of publisher and receiver together.
func (c *receiverClient) harnessUsage() (time.Duration, error) {
	var sum time.Duration
	for _, pid := range []int{os.Getpid(), c.pid} {
		u, err := readUsage(pid)
		if err != nil {
			return 0, err
		}
		sum += u.cpu
	}
	return sum, nil
}
