package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/plinqx/hypha/internal/api"
	"github.com/plinqx/hypha/internal/auth"
	"github.com/plinqx/hypha/internal/catalog"
	"github.com/plinqx/hypha/internal/commit"
	"github.com/plinqx/hypha/internal/dispatch"
	"github.com/plinqx/hypha/internal/egress"
	"github.com/plinqx/hypha/internal/framing"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/ingest"
	"github.com/plinqx/hypha/internal/obs"
	"github.com/plinqx/hypha/internal/registry"
	"github.com/plinqx/hypha/internal/replay"
	"github.com/plinqx/hypha/internal/retention"
	"github.com/plinqx/hypha/internal/seal"
	"github.com/plinqx/hypha/internal/send"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/internal/store/sqlite"
)

// server is the whole program, wired. It is made by newServer, which leaves
// nothing behind when it fails, and works in run.
type server struct {
	listener net.Listener
	http     *http.Server
	logger   *slog.Logger
	draining chan struct{} // closed when no more traffic is wanted

	store      *sqlite.Store
	auth       *auth.Auth
	committer  *commit.Committer
	dispatcher *dispatch.Dispatcher
	sender     *send.Sender
	replays    *replay.Replays
	retention  *retention.Retention
}

// The limits of the listener. A client that is slower than this is gone.
const (
	headerTimeout = 10 * time.Second
	readTimeout   = 60 * time.Second
	// writeTimeout holds the longest answer there is: a test-send that waits
	// for a receiver's whole timeout.
	writeTimeout = readTimeout + registry.MaxTimeout + 10*time.Second
	idleTimeout  = 2 * time.Minute
	maxHeader    = 32 << 10
)

// drainTime is how long requests to the API may take to end at shutdown, and
// stopTime how long attempts in flight may: the longest timeout of a webhook.
const (
	drainTime = 10 * time.Second
	stopTime  = registry.MaxTimeout + 2*time.Second
)

// newServer opens everything and starts to work; requests are answered once run
// is called. bootstrap is what the first start is given.
func newServer(ctx context.Context, s *settings, bootstrap auth.Bootstrap, logger *slog.Logger, notice io.Writer) (_ *server, err error) {
	c, err := s.check()
	if err != nil {
		return nil, err
	}
	v := &server{logger: logger, draining: make(chan struct{})}
	var opened []func()
	defer func() {
		if err != nil {
			for i := len(opened) - 1; i >= 0; i-- {
				opened[i]()
			}
		}
	}()

	// The port first: a server that is running already is the likeliest reason
	// not to start, and it has the store too.
	if v.listener, err = net.Listen("tcp", s.Listen); err != nil {
		return nil, fmt.Errorf("listen: %w (is another server running? --listen takes another address)", err)
	}
	opened = append(opened, func() { _ = v.listener.Close() })

	v.store, err = sqlite.Open(ctx, sqlite.Options{Dir: s.Data, Logger: logger})
	if errors.Is(err, store.ErrLocked) {
		return nil, fmt.Errorf("%w; stop that server, or name another folder with --data", err)
	}
	if err != nil {
		return nil, err
	}
	opened = append(opened, func() { _ = v.store.Close() })

	box, err := openBox(c.secretKey, s.Data)
	if err != nil {
		return nil, err
	}
	policy, err := egress.New(egress.Options{Allow: c.allow, Deny: c.deny, Ports: c.ports, OwnListeners: ownListeners(v.listener)})
	if err != nil {
		return nil, err
	}
	metrics := obs.NewMetrics()
	configs := catalog.New(v.store, box)
	if v.auth, err = auth.New(auth.Options{Store: v.store, Catalog: configs, Now: time.Now, Logger: logger}); err != nil {
		return nil, err
	}
	made, err := v.auth.Bootstrap(ctx, bootstrap)
	if err != nil {
		return nil, err
	}
	if made != nil {
		printBootstrap(notice, made, bootstrap)
	}

	prefix, userAgent := c.prefix, "Hypha-Webhooks/"+obs.Version()
	v.committer = commit.New(commit.Options{
		Store: v.store, Logger: logger, Committed: metrics.Committed,
		// Outcomes keep their slots until they are on disk: with few slots they
		// must not wait for company.
		FlushOutcomes: min(256, max(1, s.Slots/4)),
		Recorded:      func(outcomes []*store.Outcome) { v.dispatcher.Recorded(outcomes) },
	})
	webhooks := registry.New(registry.Options{
		Store: v.store, Catalog: configs, URLs: policy, HeaderPrefix: prefix.String(), MaxWebhooks: s.MaxWebhooks, Now: time.Now,
		Discard: func(tenant id.Tenant, job id.Replay) { v.replays.Resume(tenant, job) },
	})
	v.sender = send.New(send.Options{Dial: policy.DialContext})
	v.dispatcher = dispatch.New(dispatch.Options{
		Store: v.store, Committer: v.committer, Catalog: configs, Sender: v.sender, Holder: webhooks,
		Schedule: s.RetrySchedule, Prefix: prefix, UserAgent: userAgent, Now: time.Now, Logger: logger,
		Slots: s.Slots, Memory: s.LaneMemory, MaxAge: s.MaxAge, Attempted: metrics.Attempted,
	})
	configs.Observe(v.dispatcher)
	v.replays = replay.New(replay.Options{
		Store: v.store, Lanes: v.dispatcher, Committer: v.committer, Webhooks: configs, Now: time.Now, MaxAge: s.MaxAge, Logger: logger,
	})
	v.retention = retention.New(retention.Options{Store: v.store, MaxAge: s.HistoryAge, MaxBytes: s.HistorySize, Now: time.Now, Logger: logger})
	v.gauges(metrics)
	v.http = &http.Server{
		Handler: api.New(api.Options{
			Auth: v.auth, Catalog: configs, Registry: webhooks, Replays: v.replays, History: v.store, Now: time.Now,
			Publisher: ingest.New(ingest.Options{
				Catalog: configs, Committer: v.committer, Lanes: v.dispatcher, Now: time.Now, MaxAge: s.MaxAge, MaxQueued: s.MaxQueued,
			}),
			Ready: v.ready, Metrics: metrics.Handler(), Logger: logger,
			Observe: func(x api.Exchange) { metrics.Requested(x.Route, x.Status, x.Duration) },
			Prefix:  prefix, UserAgent: userAgent,
			MaxEventBody: s.MaxEventBytes, MaxBatchBody: s.MaxBatchBytes,
		}),
		ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeader,
		// "OPTIONS *" is answered as any other path that there is nothing at.
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(logger.Handler(), slog.LevelDebug), // what clients do wrong below HTTP
	}

	// The queue that is being discarded must be known before anything is sent.
	if err := v.replays.Start(ctx); err != nil {
		return nil, err
	}
	opened = append(opened, v.replays.Stop)
	if err := v.dispatcher.Start(ctx); err != nil {
		return nil, err
	}
	v.committer.Start()
	v.auth.Start()
	v.retention.Start()
	return v, nil
}

// gauges are the states that are looked at when somebody reads the metrics.
func (v *server) gauges(m *obs.Metrics) {
	for name, g := range map[string]struct {
		help string
		read func(dispatch.Gauge) int
	}{
		"hypha_attempts_in_flight":         {"Attempts being made now.", func(g dispatch.Gauge) int { return g.InFlight }},
		"hypha_attempt_slots":              {"Most attempts that may be made at once.", func(g dispatch.Gauge) int { return g.Slots }},
		"hypha_lanes":                      {"Webhooks that had work lately.", func(g dispatch.Gauge) int { return g.Lanes }},
		"hypha_lanes_breaker_open":         {"Webhooks whose breaker holds them back.", func(g dispatch.Gauge) int { return g.Open }},
		"hypha_lanes_waiting":              {"Deliveries that wait in memory.", func(g dispatch.Gauge) int { return g.Waiting }},
		"hypha_lanes_memory_bytes":         {"Memory that deliveries take which wait in memory.", func(g dispatch.Gauge) int { return g.Memory }},
		"hypha_lanes_memory_allowed_bytes": {"Most memory that they may take.", func(g dispatch.Gauge) int { return g.MemoryAllowed }},
	} {
		m.Gauge(name, g.help, func() float64 { return float64(g.read(v.dispatcher.Gauge())) })
	}
	m.Gauge("hypha_outcomes_unrecorded", "Outcomes of attempts that are not on disk yet.", func() float64 { return float64(v.committer.Unrecorded()) })
}

func (v *server) url() string { return "http://" + v.listener.Addr().String() }

// ready says why no traffic may come.
func (v *server) ready(ctx context.Context) error {
	select {
	case <-v.draining:
		return hook.Unavailable(5*time.Second, nil, "The server is shutting down")
	default:
		return v.store.Ping(ctx)
	}
}

// run answers requests until ctx ends, and then lets go of everything in order:
// no more requests, no more attempts, all that is known to disk.
func (v *server) run(ctx context.Context) error {
	served := make(chan error, 1)
	go func() { served <- v.http.Serve(framing.Listen(v.listener)) }()
	var failed error
	select {
	case <-ctx.Done():
	case failed = <-served:
	}
	began := time.Now()
	close(v.draining)
	v.logger.Info("stopping: finishing what is in flight")
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	if err := v.http.Shutdown(drain); err != nil {
		_ = v.http.Close() // who has not finished by now is cut off
	}
	cancel()
	v.replays.Stop()
	v.retention.Stop()
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	v.dispatcher.Stop(stop)
	err := errors.Join(failed, v.committer.Close(stop), v.auth.Stop(stop))
	v.sender.Close()
	err = errors.Join(err, v.store.Close())
	v.logger.Info("stopped", "took", time.Since(began).Round(time.Millisecond))
	return err
}

func ownListeners(l net.Listener) []netip.AddrPort {
	if addr, ok := l.Addr().(*net.TCPAddr); ok {
		return []netip.AddrPort{addr.AddrPort()}
	}
	return nil
}

// openBox takes the key that is given, or the one in the data folder.
func openBox(given []byte, dir string) (*seal.Box, error) {
	if given != nil {
		return seal.New(given)
	}
	key, err := seal.KeyFile(dir)
	if err != nil {
		return nil, err
	}
	return seal.New(key)
}
