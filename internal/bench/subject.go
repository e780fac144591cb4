package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync/atomic"
	"time"
)

// A node is a process that is measured.
type node struct {
	base    *url.URL
	pid     int    // 0 if unknown
	process *child // nil if we did not start it
}

// A subject is the server that is measured, or several that share a database.
type subject struct {
	kind     string
	key      string
	nodes    []node    // the load is spread over them, all else is for the first
	database *database // that they share; nil if there is none
	webhooks []string

	// neighbour is a tenant of the same server that publishes whenever this one
	// does, neighbourFactor times as much; nil if there is none.
	neighbour *subject
}

// base is where all is asked that is not part of the load.
func (s *subject) base() *url.URL { return s.nodes[0].base }

// known says whether the system tells what the subject takes.
func (s *subject) known() bool { return s.nodes[0].pid != 0 }

// usage is what all nodes have taken together.
func (s *subject) usage() (sum usage, err error) {
	for _, n := range s.nodes {
		if n.pid == 0 {
			continue
		}
		u, err := readUsage(n.pid)
		if err != nil {
			return usage{}, err
		}
		sum.add(u)
	}
	return sum, nil
}

// publishers makes publishers of some events, who go to one node each, in turn. It
// may be called by several goroutines at once.
func (s *subject) publishers(events wireEvents) func() publisher {
	var made atomic.Uint64
	return func() publisher {
		n := s.nodes[(made.Add(1)-1)%uint64(len(s.nodes))]
		return newWirePublisher(n.base, s.key, events)
	}
}

// gone is an error if a node was started here and has ended.
func (s *subject) gone() error {
	for _, n := range s.nodes {
		if err := n.gone(); err != nil {
			return err
		}
	}
	return nil
}

func (n node) gone() error {
	if n.process == nil {
		return nil
	}
	select {
	case <-n.process.exited:
		return n.process.early()
	default:
		return nil
	}
}

// readyInterval is how often a server is asked whether it is ready, and so how
// exact the time that its start takes is known.
const readyInterval = 5 * time.Millisecond

// ready waits until GET /readyz answers 200 everywhere. The relay takes traffic as
// soon as it listens.
func (s *subject) ready(ctx context.Context, timeout time.Duration) error {
	if s.kind == subjectRelay {
		return nil
	}
	for _, n := range s.nodes {
		if err := n.ready(ctx, timeout); err != nil {
			return err
		}
	}
	return nil
}

func (n node) ready(ctx context.Context, timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	for {
		status, _, err := request(ctx, http.MethodGet, n.base.JoinPath("/readyz").String(), "", "", nil)
		if err == nil && status == http.StatusOK {
			return nil
		}
		if err := errors.Join(ctx.Err(), n.gone()); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			if err == nil {
				err = fmt.Errorf("GET /readyz answered %d", status)
			}
			return fmt.Errorf("the server was not ready within %v: %w", timeout, err)
		}
		sleep(ctx, readyInterval)
	}
}

// createWebhooks registers a webhook for each URL: all for our event type, or
// each for one of its own.
func (s *subject) createWebhooks(ctx context.Context, urls []string, spread bool) error {
	for i, u := range urls {
		wanted := eventType
		if spread {
			wanted = spreadType(i)
		}
		if _, err := s.createWebhook(ctx, u, wanted); err != nil {
			return err
		}
	}
	return nil
}

func (s *subject) createWebhook(ctx context.Context, url, eventType string) (id string, err error) {
	var created struct {
		ID string `json:"id"`
	}
	err = s.create(ctx, "/services/webhooks", "", map[string]any{
		"name": "bench " + strconv.Itoa(len(s.webhooks)), "url": url, "events": []string{eventType},
	}, &created)
	if err != nil {
		return "", fmt.Errorf("creating a webhook for %s: %w", url, err)
	}
	s.webhooks = append(s.webhooks, created.ID)
	return created.ID, nil
}

// create posts and reads what was created. tenant is whom an operator acts for.
func (s *subject) create(ctx context.Context, path, tenant string, body, created any) error {
	status, answer, err := s.requestFor(ctx, http.MethodPost, path, tenant, body)
	if err != nil {
		return err
	}
	if status != http.StatusCreated {
		return fmt.Errorf("the server answered %d: %.300s", status, answer)
	}
	if err := json.Unmarshal(answer, created); err != nil {
		return fmt.Errorf("reading the server's answer: %w: %.300s", err, answer)
	}
	return nil
}

// setEnabled switches a webhook on or off.
func (s *subject) setEnabled(ctx context.Context, webhook string, on bool) error {
	status, answer, err := s.request(ctx, http.MethodPatch, "/services/webhooks/"+webhook, map[string]any{"enabled": on})
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("the server answered %d: %.300s", status, answer)
	}
	if err != nil {
		return fmt.Errorf("changing webhook %s: %w", webhook, err)
	}
	return nil
}

// get reads an answer of 200.
func (s *subject) get(ctx context.Context, path string, answer any) error {
	target, err := s.base().Parse(path)
	if err != nil {
		return err
	}
	status, text, err := request(ctx, http.MethodGet, target.String(), s.key, "", nil)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("the server answered %d: %.300s", status, text)
	}
	if err == nil {
		err = json.Unmarshal(text, answer)
	}
	if err != nil {
		return fmt.Errorf("GET %s: %w", path, err)
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
	s.webhooks = nil
	return errors.Join(failures...)
}

func (s *subject) request(ctx context.Context, method, path string, body any) (int, []byte, error) {
	return s.requestFor(ctx, method, path, "", body)
}

// requestFor asks as an operator who acts for a tenant; "" for none.
func (s *subject) requestFor(ctx context.Context, method, path, tenant string, body any) (int, []byte, error) {
	var text []byte
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return 0, nil, err
		}
	}
	return request(ctx, method, s.base().JoinPath(path).String(), s.key, tenant, text)
}

// request is for the few calls that are not part of the load.
func request(ctx context.Context, method, target, key, tenant string, body []byte) (int, []byte, error) {
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
	if tenant != "" {
		req.Header.Set("X-Hypha-Tenant", tenant)
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
	status, answer, err := request(ctx, http.MethodPost, c.base+path, "", "", nil)
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

func (c *receiverClient) stats(ctx context.Context) (a arrivals, err error) {
	return a, c.read(ctx, "/_stats", &a)
}

func (c *receiverClient) read(ctx context.Context, path string, counts any) error {
	answer, err := c.call(ctx, path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(answer, counts); err != nil {
		return fmt.Errorf("reading the receiver's counts: %w", err)
	}
	return nil
}

func (c *receiverClient) arrived(ctx context.Context, hook int) (*bitmap, error) {
	return c.numbers(ctx, "/_arrived?hook="+strconv.Itoa(hook))
}

func (c *receiverClient) numbers(ctx context.Context, path string) (*bitmap, error) {
	answer, err := c.call(ctx, path)
	if err != nil {
		return nil, err
	}
	return parseBitmap(answer), nil
}

// setGate begins a run at the gate, or opens or shuts it.
func (c *receiverClient) setGate(ctx context.Context, run uint32, open bool) error {
	_, err := c.call(ctx, fmt.Sprintf("/_gate?run=%s&open=%t", formatRun(run), open))
	return err
}

func (c *receiverClient) gate(ctx context.Context) (g gateStats, err error) {
	return g, c.read(ctx, "/_gatestats", &g)
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
