package bench

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"
)

const (
	relayWorkers = 64      // forwarding at once to one receiver: what a Hypha lane grows to
	relayQueue   = 4096    // accepted and not yet forwarded, for each receiver
	relayBody    = 8 << 20 // larger requests are refused
)

// RunRelay is the child process `hypha bench-relay`: the least that a durable
// webhook server can do, as a yardstick. It takes a POST on any path, appends
// the body to a log file, answers 202 once the log is synced (one sync for all
// that wait), and forwards the body to every receiver. It knows no webhooks, no
// signatures, no retries and no history, and it forgets an event as soon as it
// has been forwarded; what it gains by that is what those features cost.
//
// It prints "listening <address>" to stdout once it accepts, and returns when
// ctx is done or stdin ends, after it has forwarded what it had accepted. An
// error means that it could not listen or write its log, that args make no
// sense, or that events could not be forwarded.
//
//	--listen address   where to listen; default 127.0.0.1:0 (any free port)
//	--log file         the log, which is created; required
//	--forward URL      a receiver; may be repeated
func RunRelay(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	flags := flag.NewFlagSet("bench-relay", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // the error says it all
	listen := flags.String("listen", "127.0.0.1:0", "where to listen")
	logPath := flags.String("log", "", "the log file")
	var receivers []*url.URL
	flags.Func("forward", "a receiver's URL", func(s string) error {
		u, err := url.Parse(s)
		if err == nil && (u.Scheme != "http" || u.Host == "") {
			err = errors.New("not an http URL")
		}
		receivers = append(receivers, u)
		return err
	})
	if err := flags.Parse(args); err != nil {
		return fmt.Errorf("bench-relay: %w", err)
	}
	if *logPath == "" {
		return errors.New("bench-relay: --log is missing: name the file to append events to")
	}
	file, err := os.OpenFile(*logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("bench-relay: %w", err)
	}
	ln, err := net.Listen("tcp", *listen)
	if err != nil {
		return errors.Join(fmt.Errorf("bench-relay: %w", err), file.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	endWith(stdin, cancel)
	if _, err := fmt.Fprintf(stdout, "%s%s\n", listening, ln.Addr()); err != nil {
		return errors.Join(fmt.Errorf("bench-relay: saying where it listens: %w", err), ln.Close(), file.Close())
	}
	err = serveRelay(ctx, ln, newGroupLog(file), receivers)
	return errors.Join(err, file.Close())
}

func serveRelay(ctx context.Context, ln net.Listener, log *groupLog, receivers []*url.URL) error {
	var committer, workers sync.WaitGroup
	committer.Go(log.run)

	transport := &http.Transport{
		MaxIdleConns:        0,
		MaxIdleConnsPerHost: relayWorkers * max(len(receivers), 1),
		DisableCompression:  true,
	}
	forwarders := make([]*forwarder, len(receivers))
	for i, u := range receivers {
		f := &forwarder{target: u, transport: transport, queue: make(chan []byte, relayQueue)}
		forwarders[i] = f
		for range relayWorkers {
			workers.Go(f.work)
		}
	}

	server := &http.Server{
		ReadHeaderTimeout: requestTimeout,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var body bytes.Buffer
			if n := r.ContentLength; n > 0 && n <= relayBody {
				body.Grow(int(n) + bytes.MinRead)
			}
			if _, err := body.ReadFrom(http.MaxBytesReader(w, r.Body, relayBody)); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			if err := log.append(body.Bytes()); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			// A full queue holds the answer back: that is the only brake.
			for _, f := range forwarders {
				f.queue <- body.Bytes()
			}
			w.Header()["Date"] = nil
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusAccepted)
			_, _ = io.WriteString(w, `{"id":"evt_relay"}`) // a peer that left needs no answer
		}),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()

	var err error
	select {
	case err = <-served:
	case <-ctx.Done():
		// Handlers in flight end by themselves: nothing in them waits for long.
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
		err = server.Shutdown(grace)
		cancel()
		if ended := <-served; !errors.Is(ended, http.ErrServerClosed) {
			err = errors.Join(err, ended)
		}
	}
	for _, f := range forwarders {
		close(f.queue)
	}
	workers.Wait()
	transport.CloseIdleConnections()
	log.close()
	committer.Wait()
	for _, f := range forwarders {
		if f.failed > 0 {
			err = errors.Join(err, fmt.Errorf("%d events could not be forwarded to %s: %w", f.failed, f.target, f.failure))
		}
	}
	return err
}

// A forwarder sends what is in its queue to one receiver, once.
type forwarder struct {
	target    *url.URL
	transport *http.Transport
	queue     chan []byte

	mu      sync.Mutex
	failed  uint64
	failure error // the first
}

// work forwards until the queue is closed and empty.
func (f *forwarder) work() {
	for body := range f.queue {
		if err := f.forward(body); err != nil {
			f.mu.Lock()
			if f.failed++; f.failed == 1 {
				f.failure = err
			}
			f.mu.Unlock()
		}
	}
}

func (f *forwarder) forward(body []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.target.String(), bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := f.transport.RoundTrip(req)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, res.Body)
	if err = errors.Join(err, res.Body.Close()); err != nil {
		return err
	}
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("the receiver answered %s", res.Status)
	}
	return nil
}

// A groupLog appends to a file and syncs it, one sync for everything that came
// in while the last one ran. That is how a database's group commit behaves, and
// what makes the comparison a fair one.
type groupLog struct {
	file interface {
		io.Writer
		sync() error
	}

	mu      sync.Mutex
	wake    sync.Cond
	pending []byte
	done    *syncRound // of what is pending
	closed  bool
}

// A syncRound is one write and sync, for which several may wait.
type syncRound struct {
	over chan struct{}
	err  error // set before over is closed
}

func newGroupLog(file *os.File) *groupLog {
	l := &groupLog{file: syncedFile{file}, done: &syncRound{over: make(chan struct{})}}
	l.wake.L = &l.mu
	return l
}

// append returns when record is in the log and synced.
func (l *groupLog) append(record []byte) error {
	l.mu.Lock()
	l.pending = append(append(l.pending, record...), '\n')
	round := l.done
	l.wake.Signal()
	l.mu.Unlock()
	<-round.over
	return round.err
}

// run writes and syncs until the log is closed and nothing is pending.
func (l *groupLog) run() {
	var spare []byte
	for {
		l.mu.Lock()
		for len(l.pending) == 0 && !l.closed {
			l.wake.Wait()
		}
		records, round := l.pending, l.done
		l.pending, l.done = spare[:0], &syncRound{over: make(chan struct{})}
		l.mu.Unlock()
		if len(records) == 0 {
			return
		}
		if _, round.err = l.file.Write(records); round.err == nil {
			round.err = l.file.sync()
		}
		close(round.over)
		spare = records
	}
}

func (l *groupLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.wake.Signal()
}

// measureSync is the median time of appending 4 KiB to a file in dir and
// syncing it: the disk's share of every 202. 0 if it cannot be measured.
func measureSync(dir string) time.Duration {
	file, err := os.CreateTemp(dir, "hypha-bench-sync-")
	if err != nil {
		return 0
	}
	defer func() { _, _ = file.Close(), os.Remove(file.Name()) }() // it holds nothing
	var h histogram
	block := make([]byte, 4<<10)
	for range 20 {
		start := time.Now()
		if _, err := file.Write(block); err != nil {
			return 0
		}
		if err := (syncedFile{file}).sync(); err != nil {
			return 0
		}
		h.record(time.Since(start))
	}
	return h.quantile(0.5)
}
