package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// maxHooks is how many webhooks a receiver tells apart.
	maxHooks = 4096

	// maxPages bounds the memory of a receiver's arrival bitmaps: 128 MiB, room
	// for 1e9 arrivals.
	maxPages = 16384
)

// RunReceiver is the child process `hypha bench-receiver`: a lean HTTP/1.1
// server that is the receiving end of a load. It prints "listening <address>"
// to stdout once it accepts, and returns when ctx is done or stdin ends, so
// that it does not outlive the process that started it. An error means that it
// could not listen, or that args make no sense.
//
//	--listen address   where to listen; default 127.0.0.1:0 (any free port)
//
// A webhook's path says how deliveries are answered; N (0 to 4095) tells
// webhooks apart:
//
//	/ok/N              200 at once; arrivals are counted and timed
//	/late/N?ms=M       200 M milliseconds after it arrived; counted and timed alike
//	/well/N            200 at once; arrivals are counted as those below are
//	/slow/N?ms=M       200 after M milliseconds
//	/hang/N            never; the connection stays open until the peer leaves
//	/drip/N            200, and then a body of a byte a second
//	/fail/N            500
//	/busy/N            429, Retry-After: 5
//	/gate/N            503 until it is opened, 200 from then on; N makes no difference
//
// For the harness itself there are POST /_reset?run=R, which forgets what has
// arrived and counts only arrivals of run R from then on, POST /_stats, and
// POST /_arrived?hook=N, the numbers that have arrived at /ok/N or /late/N as a
// bitmap. The gate has a run of its own: POST /_gate?run=R&open=true,
// POST /_gatestats and POST /_gatepassed.
func RunReceiver(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	flags := flag.NewFlagSet("bench-receiver", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // the error says it all
	listen := flags.String("listen", "127.0.0.1:0", "where to listen")
	if err := flags.Parse(args); err != nil {
		return fmt.Errorf("bench-receiver: %w", err)
	}
	ln, err := net.Listen("tcp", *listen)
	if err != nil {
		return fmt.Errorf("bench-receiver: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	endWith(stdin, cancel)
	if _, err := fmt.Fprintf(stdout, "%s%s\n", listening, ln.Addr()); err != nil {
		return errors.Join(fmt.Errorf("bench-receiver: saying where it listens: %w", err), ln.Close())
	}
	rc := newReceiver()
	return rc.serve(ctx, ln)
}

// listening precedes the address that a child process prints when it is ready.
const listening = "listening "

// endWith calls end when stdin is closed, which the parent's death does too. A
// read from a process's standard input cannot be broken off, so the goroutine
// lasts until the parent closes it or this process ends.
func endWith(stdin io.Reader, end func()) {
	go func() {
		_, _ = io.Copy(io.Discard, stdin) // any end is the end
		end()
	}()
}

// A receiver serves the connections of one listener.
type receiver struct {
	tally      *tally
	bystanders *bystanders
	gate       gate
}

func newReceiver() *receiver { return &receiver{tally: newTally(), bystanders: newBystanders()} }

// serve accepts connections until ctx is done, and returns when all of them
// are closed.
func (rc *receiver) serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	for {
		conn, err := ln.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = conn.Close()
			}
			return nil
		case err != nil:
			return fmt.Errorf("accepting a connection: %w", err)
		}
		wg.Go(func() {
			closeConn := context.AfterFunc(ctx, func() { _ = conn.Close() })
			defer closeConn()
			defer func() { _ = conn.Close() }() // nothing is left to be sent
			rc.connection(ctx, conn)
		})
	}
}

// A connection's answers, whole. Nothing in them is worth a header more.
const (
	answerOK       = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
	answerBusy     = "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n"
	answerDown     = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
	answerDrip     = "HTTP/1.1 200 OK\r\nContent-Length: 86400\r\n\r\n" // a day of bytes
	answerFail     = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"
	answerNotFound = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
	answerContinue = "HTTP/1.1 100 Continue\r\n\r\n"
)

// connection answers requests until the peer leaves, says something that is not
// HTTP, or ctx is done.
func (rc *receiver) connection(ctx context.Context, conn net.Conn) {
	reader := newWireReader(conn)
	reader.onContinue = func() error {
		_, err := io.WriteString(conn, answerContinue)
		return err
	}
	for {
		req, err := reader.readRequest()
		if err != nil {
			return
		}
		answer := answerOK
		path, query, _ := strings.Cut(req.target, "?")
		mode, hook, known := parseHook(path)
		switch {
		case strings.HasPrefix(path, "/_"):
			answer = rc.control(path, query)
		case !known || req.method != "POST":
			answer = answerNotFound
		case mode == modeOK:
			rc.tally.arrived(hook, req.body, time.Now())
		case mode == modeLate:
			now := time.Now()
			rc.tally.arrived(hook, req.body, now)
			if !sleep(ctx, time.Until(now.Add(delay(query)))) {
				return
			}
		case mode == modeGate:
			if !rc.gate.knock(req.body, time.Now()) {
				answer = answerDown
			}
		default:
			ended := rc.bystanders.began(mode, hook, req.body, time.Now())
			answer = misbehave(ctx, conn, reader.br, mode, query)
			ended()
			if answer == "" {
				return
			}
		}
		if _, err := io.WriteString(conn, answer); err != nil || req.close {
			return
		}
	}
}

// misbehave does what a webhook of the mode does, and returns what is still to
// be answered: nothing if the connection is of no use any more.
func misbehave(ctx context.Context, conn net.Conn, br *bufio.Reader, mode, query string) string {
	switch mode {
	case modeSlow:
		if !sleep(ctx, delay(query)) {
			return ""
		}
	case modeHang:
		hang(br)
		return ""
	case modeDrip:
		drip(ctx, conn, br)
		return ""
	case modeFail:
		return answerFail
	case modeBusy:
		return answerBusy
	}
	return answerOK
}

// hang reads until the peer, or the end of the receiver, closes the connection.
func hang(br *bufio.Reader) { _, _ = io.Copy(io.Discard, br) }

// drip answers slowly until the peer, or the end of the receiver, closes the
// connection.
func drip(ctx context.Context, conn net.Conn, br *bufio.Reader) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var reading sync.WaitGroup
	defer reading.Wait()
	reading.Go(func() {
		hang(br)
		cancel()
	})
	defer func() { _ = conn.Close() }() // ends the reading
	if _, err := io.WriteString(conn, answerDrip); err != nil {
		return
	}
	for sleep(ctx, time.Second) {
		if _, err := io.WriteString(conn, "."); err != nil {
			return
		}
	}
}

// The modes of a webhook, as in its path. No two begin with the same letter.
const (
	modeOK   = "ok"
	modeLate = "late"
	modeWell = "well"
	modeSlow = "slow"
	modeHang = "hang"
	modeDrip = "drip"
	modeFail = "fail"
	modeBusy = "busy"
	modeGate = "gate"
)

// hookPath is the path of a webhook; delay is for slow and late ones only.
func hookPath(mode string, hook int, delay time.Duration) string {
	path := "/" + mode + "/" + strconv.Itoa(hook)
	if mode == modeSlow || mode == modeLate {
		path += "?ms=" + strconv.FormatInt(delay.Milliseconds(), 10)
	}
	return path
}

func parseHook(path string) (mode string, hook int, ok bool) {
	mode, number, ok := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	if !ok {
		return "", 0, false
	}
	switch mode {
	case modeOK, modeLate, modeWell, modeSlow, modeHang, modeDrip, modeFail, modeBusy, modeGate:
	default:
		return "", 0, false
	}
	hook, err := strconv.Atoi(number)
	return mode, hook, err == nil && hook >= 0 && hook < maxHooks
}

// delay is the wait that a slow or late webhook's query asks for; none if it is broken.
func delay(query string) time.Duration {
	ms, err := strconv.Atoi(strings.TrimPrefix(query, "ms="))
	if err != nil {
		return 0
	}
	return time.Duration(ms) * time.Millisecond
}

func (rc *receiver) control(path, query string) string {
	values, err := url.ParseQuery(query)
	if err != nil {
		return answerNotFound
	}
	var body []byte
	switch path {
	case "/_reset":
		run, err := strconv.ParseUint(values.Get("run"), 16, 32)
		if err != nil {
			return answerNotFound
		}
		rc.tally.reset(uint32(run))
		rc.bystanders.reset()
		body = []byte("{}")
	case "/_stats":
		stats := rc.tally.stats()
		rc.bystanders.addTo(&stats)
		if body, err = json.Marshal(stats); err != nil {
			return answerFail
		}
	case "/_gate":
		run, err := strconv.ParseUint(values.Get("run"), 16, 32)
		if err != nil {
			return answerNotFound
		}
		rc.gate.set(uint32(run), values.Get("open") == "true")
		body = []byte("{}")
	case "/_gatestats":
		if body, err = json.Marshal(rc.gate.read()); err != nil {
			return answerFail
		}
	case "/_gatepassed":
		body = rc.gate.numbers()
	case "/_arrived":
		hook, err := strconv.Atoi(values.Get("hook"))
		if err != nil || hook < 0 || hook >= maxHooks {
			return answerNotFound
		}
		body = rc.tally.numbers(hook)
	default:
		return answerNotFound
	}
	return "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + string(body)
}

// arrivals is what a receiver says on /_stats.
type arrivals struct {
	Run        string            `json:"run"`
	Unique     uint64            `json:"unique"`     // by webhook and number
	Duplicates uint64            `json:"duplicates"` // arrivals beyond the first
	Stray      uint64            `json:"stray"`      // marked with another run
	Unmarked   uint64            `json:"unmarked"`   // not from a publisher of ours
	Untracked  uint64            `json:"untracked"`  // beyond the room for bitmaps
	LastAt     int64             `json:"lastAt"`     // Unix nanoseconds of the last unique arrival
	LatencyMs  Latency           `json:"latencyMs"`  // publish to first arrival
	Bystanders map[string]uint64 `json:"bystanders"` // requests to webhooks that are not ok, by mode

	// Of those, arrivals of an event before the one before it can have failed,
	// and the most requests at once to webhooks that are not well.
	BystanderDuplicates uint64 `json:"bystanderDuplicates"`
	BystanderPeak       int    `json:"bystanderPeak"`
}

// A tally counts arrivals. Its memory is bounded: a histogram of fixed size and
// bitmaps of at most maxPages pages.
type tally struct {
	mu      sync.Mutex
	run     uint32
	seen    [maxHooks]bitmap
	pages   int
	latency *histogram
	totals  arrivals
}

func newTally() *tally {
	t := &tally{}
	t.reset(0)
	return t
}

func (t *tally) reset(run uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.run, t.pages, t.latency = run, 0, new(histogram)
	clear(t.seen[:])
	t.totals = arrivals{Run: formatRun(run)}
}

func (t *tally) arrived(hook int, body []byte, now time.Time) {
	m, ok := findMarker(body)
	t.mu.Lock()
	defer t.mu.Unlock()
	seen := &t.seen[hook]
	switch {
	case !ok:
		t.totals.Unmarked++
		return
	case m.run != t.run:
		t.totals.Stray++
		return
	case m.number > maxNumber || (!seen.has(m.number) && t.pages == maxPages):
		t.totals.Untracked++
		return
	}
	if !seen.has(m.number) {
		t.pages++
	}
	if !seen.add(m.number) {
		t.totals.Duplicates++
		return
	}
	t.totals.Unique++
	t.totals.LastAt = now.UnixNano()
	t.latency.record(time.Duration(t.totals.LastAt - m.sentAt))
}

func (t *tally) stats() arrivals {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.totals
	s.LatencyMs = t.latency.latency()
	return s
}

func (t *tally) numbers(hook int) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.seen[hook].encode()
}
