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
	"os"
	"slices"
	"strings"
	"time"

	"github.com/plinqx/hypha/internal/api"
	"github.com/plinqx/hypha/internal/auth"
	"github.com/plinqx/hypha/internal/catalog"
	"github.com/plinqx/hypha/internal/certificate"
	"github.com/plinqx/hypha/internal/cluster"
	"github.com/plinqx/hypha/internal/commit"
	"github.com/plinqx/hypha/internal/contain"
	"github.com/plinqx/hypha/internal/dispatch"
	"github.com/plinqx/hypha/internal/egress"
	"github.com/plinqx/hypha/internal/framing"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/ingest"
	"github.com/plinqx/hypha/internal/lane"
	"github.com/plinqx/hypha/internal/listener"
	"github.com/plinqx/hypha/internal/obs"
	"github.com/plinqx/hypha/internal/oidc"
	"github.com/plinqx/hypha/internal/registry"
	"github.com/plinqx/hypha/internal/rekey"
	"github.com/plinqx/hypha/internal/replay"
	"github.com/plinqx/hypha/internal/retention"
	"github.com/plinqx/hypha/internal/seal"
	"github.com/plinqx/hypha/internal/send"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/internal/store/postgres"
	"github.com/plinqx/hypha/internal/vault"
)

// server is the whole program, wired. It is made by newServer, which leaves
// nothing behind when it fails, and works in run.
type server struct {
	listener net.Listener
	// connections are what comes in by the listener, within its limits.
	connections *listener.Limited
	certificate *certificate.Certificate // nil without TLS
	guard       *contain.Guard
	hangups     <-chan os.Signal // have the certificate looked at; may be nil
	http        *http.Server
	admin       *adminServer // nil if there is no admin socket
	debug       *debugServer
	logger      *slog.Logger
	draining    chan struct{} // closed when no more traffic is wanted

	store      store.Store
	cluster    *cluster.Cluster // nil for a store that this process has to itself
	auth       *auth.Auth
	committer  *commit.Committer
	dispatcher *dispatch.Dispatcher
	sender     *send.Sender
	replays    *replay.Replays
	retention  *retention.Retention
	rekeyer    *rekey.Rekeyer
}

// The limits of the listener. A client that is slower than this is gone.
const (
	headerTimeout = 10 * time.Second
	readTimeout   = 60 * time.Second
	// writeTimeout holds the longest answer there is: a test-send that waits
	// for a receiver's whole timeout.
	writeTimeout = readTimeout + registry.MaxTimeout + 10*time.Second
	idleTimeout  = 2 * time.Minute
	// maxHeader bounds the head of a request. One of many short lines takes fifteen times
	// its bytes in memory.
	maxHeader = 16 << 10
)

// drainTime is how long requests to the API may take to end at shutdown, and
// stopTime how long attempts in flight may: the longest timeout of a webhook.
const (
	drainTime = 10 * time.Second
	stopTime  = registry.MaxTimeout + 2*time.Second
)

// What a client may do with one connection of HTTP/2. The buffers are for what its
// requests send ahead: enough for 5 MB a second over 100 ms.
const (
	maxStreams   = 100
	streamBuffer = 256 << 10
	connBuffer   = 512 << 10
	// pingAfter is after how long a silent connection is asked whether it lives, and
	// pingAnswer how long it has to say so; writeStall is how long nothing may go out.
	pingAfter  = 30 * time.Second
	pingAnswer = 15 * time.Second
	writeStall = 30 * time.Second
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
	if v.debug, err = serveDebug(s.DebugListen); err != nil {
		return nil, err
	}
	opened = append(opened, v.debug.stop)

	metrics := obs.NewMetrics()
	guard := newGuard(metrics, logger)
	v.guard = guard
	if s.TLSCert != "" {
		v.certificate, err = certificate.Open(certificate.Options{CertFile: s.TLSCert, KeyFile: s.TLSKey, Logger: logger, Guard: guard})
		if err != nil {
			return nil, fmt.Errorf("--tls-cert: %w", err)
		}
		metrics.WatchCertificate(v.certificate.Expires)
		if strings.HasPrefix(s.PublicURL, "http://") {
			logger.Warn("--public-url begins with http://, but this server is served over TLS: browsers can't reach it there", "public_url", s.PublicURL)
		}
	}
	v.connections = listener.Limit(v.listener, listener.Limits{
		Total: connectionLimit(s.MaxConnections, s.Slots, logger), PerAddress: s.MaxConnectionsPerAddress,
		Shared: func(a netip.Addr) bool {
			return slices.ContainsFunc(c.proxies, func(p netip.Prefix) bool { return p.Contains(a) })
		},
		Refused: func(why listener.Why) { metrics.ConnectionRefused(string(why)) },
	})
	metrics.WatchConnections(v.connections.Open, refusedConnections()...)
	clock := cluster.NewClock(time.Now)
	var nodes *postgres.Store
	var ring *seal.Ring
	var fingerprints []int64
	if c.secretKeys != nil {
		if ring, err = openKeys(c.secretKeys, s.Data); err != nil {
			return nil, err
		}
		fingerprints = ring.Fingerprints()
	}
	if v.store, nodes, err = openStore(ctx, s, fingerprints, clock, guard, logger); err != nil {
		return nil, err
	}
	opened = append(opened, func() { _ = v.store.Close() })
	if nodes != nil {
		// Others take over who does not beat.
		v.cluster = cluster.New(cluster.Options{Nodes: nodes, Clock: clock, Logger: logger, Guard: guard})
		opened = append(opened, v.cluster.Stop)
		if err := v.cluster.Start(ctx); err != nil {
			return nil, err
		}
	}

	if ring == nil {
		// The folder is there by now, and it is ours.
		if ring, err = openKeys(nil, s.Data); err != nil {
			return nil, err
		}
	}
	// It stands in the folder, which is ours by now.
	if v.admin, err = openAdminSocket(ctx, s, logger); err != nil {
		return nil, err
	}
	opened = append(opened, v.admin.close)
	logger.Info("secret keys", "seals", ring.Current(), "open", ring.IDs())
	v.rekeyer = rekey.New(rekey.Options{Store: v.store, Ring: ring, KeyFile: s.keyFile(), Logger: logger})
	policy, err := egress.New(egress.Options{Allow: c.allow, Deny: c.deny, Ports: c.ports, Proxy: c.proxy, OwnListeners: v.ownListeners()})
	if err != nil {
		return nil, err
	}
	if c.proxy != nil {
		logger.Info("webhooks are reached through a proxy, which decides what names lead to", "proxy", c.proxy)
	}
	var provider *oidc.Provider
	if s.OIDCIssuer != "" {
		provider = oidc.New(oidc.Options{
			Issuer: s.OIDCIssuer, ClientID: s.OIDCClientID, ClientSecret: s.OIDCClientSecret, RedirectURL: s.redirectURL(), Box: ring, Now: clock.Now,
		})
	}
	configs := catalog.New(v.store, ring)
	configs.Contain(guard)
	v.auth, err = auth.New(auth.Options{
		Store: v.store, Catalog: configs, Now: clock.Now, Logger: logger, Guard: guard, SessionLifetime: s.SessionLifetime, SessionIdle: s.SessionIdle,
	})
	if err != nil {
		return nil, err
	}
	made, err := v.bootstrap(ctx, nodes, ring, bootstrap)
	if err != nil {
		return nil, err
	}
	if made != nil {
		printBootstrap(notice, made, bootstrap)
	}

	prefix, userAgent := c.prefix, "Hypha-Webhooks/"+obs.Version()
	v.committer = commit.New(commit.Options{
		Store: v.store, Logger: logger, Guard: guard, Committed: metrics.Committed,
		Refused: func(why commit.Reason, n int) { metrics.Refused(string(why), n) },
		// Outcomes keep their slots until they are on disk: with few slots they
		// must not wait for company.
		FlushOutcomes: min(256, max(1, s.Slots/4)),
		Recorded:      func(outcomes []*store.Outcome) { v.dispatcher.Recorded(outcomes) },
	})
	webhooks := registry.New(registry.Options{
		Store: v.store, Catalog: configs, URLs: policy, HeaderPrefix: prefix.String(), MaxWebhooks: s.MaxWebhooks, Now: clock.Now,
		Discard: func(tenant id.Tenant, job id.Replay) { v.replays.Resume(tenant, job) }, Shared: nodes != nil,
	})
	v.sender = send.New(send.Options{Dial: policy.DialContext, Proxied: c.proxy != nil, Guard: guard})
	sending := dispatch.Options{
		Store: v.store, Committer: v.committer, Catalog: configs, Sender: v.sender, Holder: webhooks,
		Schedule: s.RetrySchedule, Prefix: prefix, UserAgent: userAgent, Now: clock.Now, Logger: logger, Guard: guard,
		Slots: s.Slots, Memory: s.LaneMemory, MaxAge: s.MaxAge, Attempted: metrics.Attempted,
	}
	pruning := retention.Options{Store: v.store, MaxAge: s.HistoryAge, MaxBytes: s.HistorySize, AuditAge: s.AuditAge, Now: clock.Now, Logger: logger, Guard: guard}
	if nodes != nil {
		sending.MaySend, sending.TellBreaker, sending.Release = v.cluster.MaySend, nodes.SetBreaker, nodes.Release
		metrics.WatchNode(func() obs.NodeState { return nodeState(v.cluster) })
	} else {
		// There is one writer: what is deleted takes its turn.
		pruning.Turn, pruning.Idle = v.inTurn, func() bool { return v.committer.Idle(idleStore) }
	}
	v.dispatcher = dispatch.New(sending)
	configs.Observe(v.dispatcher)
	v.replays = replay.New(replay.Options{
		Store: v.store, Lanes: v.dispatcher, Committer: v.committer, Webhooks: configs, Now: clock.Now, MaxAge: s.MaxAge, Logger: logger, Guard: guard,
	})
	v.retention = retention.New(pruning)
	metrics.Reasons(refusals()...)
	for _, by := range api.Limits() {
		metrics.Limits(string(by))
	}
	metrics.Watch(v.state)
	handler := api.New(api.Options{
		Auth: v.auth, Catalog: configs, Registry: webhooks, Replays: v.replays, History: v.store, Audit: v.store, Now: clock.Now, SecretKeys: v.rekeyer,
		Vault: vault.New(vault.Options{Store: v.store, Catalog: configs, Now: clock.Now, Shared: nodes != nil}),
		Publisher: ingest.New(ingest.Options{
			Catalog: configs, Committer: v.committer, Lanes: v.dispatcher, Now: clock.Now, MaxAge: s.MaxAge, MaxQueued: s.MaxQueued,
		}),
		Admit: v.committer.Admit,
		NoRoom: func(ofTenant bool) {
			if ofTenant {
				metrics.Refused(refusedTenantMemory, 1)
			} else {
				metrics.Refused(refusedMemory, 1)
			}
		},
		RateLimits: s.rateLimits(), RateLimited: func(by api.Limit) { metrics.Limited(string(by)) }, TrustedProxies: c.proxies,
		CrossOrigin: c.crossOrigin, Provider: provider,
		Ready: v.ready, Metrics: metrics.Handler(), Logger: logger,
		Observe:  func(x api.Exchange) { metrics.Requested(x.Route, x.Status, x.Duration) },
		Panicked: func() { metrics.Panicked(string(contain.Request)) },
		Prefix:   prefix, UserAgent: userAgent,
		MaxEventBody: s.MaxEventBytes, MaxBatchBody: s.MaxBatchBytes,
	})
	v.http = httpServer(handler, logger)
	v.admin.handle(handler, logger)
	if v.certificate != nil {
		v.http.TLSConfig = v.certificate.Config() // so that it speaks HTTP/2 with those who chose it
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
	if v.cluster != nil {
		v.cluster.Attach(cluster.Parts{Committer: v.committer, Lanes: v.dispatcher, Catalog: configs, Jobs: v.replays})
	}
	return v, nil
}

// exitTorn is what the process ends with after a panic that left it in a state that
// nobody knows, as Go's runtime does after any.
const exitTorn = 2

// newGuard makes what contains panics.
func newGuard(metrics *obs.Metrics, logger *slog.Logger) *contain.Guard {
	metrics.Places(places()...)
	return contain.New(contain.Options{
		Logger: logger, Counted: func(where contain.Where) { metrics.Panicked(string(where)) },
		// Not by way of run: that waits for what may never end now, and writes what
		// may not be so. What is on disk stands.
		End: func() { os.Exit(exitTorn) },
	})
}

// places are where panics are contained.
func places() (all []string) {
	for _, where := range contain.Places() {
		all = append(all, string(where))
	}
	return all
}

// httpServer is what answers requests, within the limits of all.
func httpServer(handler http.Handler, logger *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeader,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams, MaxReceiveBufferPerStream: streamBuffer, MaxReceiveBufferPerConnection: connBuffer,
			SendPingTimeout: pingAfter, PingTimeout: pingAnswer, WriteByteTimeout: writeStall,
		},
		// "OPTIONS *" is answered as any other path that there is nothing at.
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(logger.Handler(), slog.LevelDebug), // what clients do wrong below HTTP
	}
}

// idleStore is how long nobody must have published for the store to be idle.
const idleStore = time.Second

// inTurn runs f where the committer would write.
func (v *server) inTurn(ctx context.Context, f func(context.Context)) error {
	done := make(chan struct{})
	v.committer.Do(func(ctx context.Context) {
		defer close(done)
		f(ctx)
	})
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Why events are refused before the committer sees them.
const (
	refusedMemory       = "memory"        // for their bodies
	refusedTenantMemory = "tenant_memory" // likewise, of their tenant
)

func refusals() []string {
	all := []string{refusedMemory, refusedTenantMemory}
	for _, why := range commit.Reasons() {
		all = append(all, string(why))
	}
	return all
}

// state is what the metrics show of this moment.
func (v *server) state() obs.State {
	d, c := v.dispatcher.Gauge(), v.committer.Gauge()
	lanes := map[string]int{string(dispatch.Unknown): d.States[dispatch.Unknown]}
	for _, state := range lane.States() {
		lanes[string(state)] = d.States[state]
	}
	return obs.State{
		InFlight: d.InFlight, Slots: d.Slots,
		Lanes: lanes, Spilled: d.Spilled, AtLimit: d.AtLimit, Hungry: d.Hungry,
		LimitBounds: lane.LimitBounds(), Limits: d.Limits, LimitSum: d.LimitSum,
		InMemory: d.Waiting, Memory: d.Memory, MemoryAllowed: d.MemoryAllowed,
		TenantsSending: d.TenantsSending, TenantsWaiting: d.TenantsWaiting,
		BreakersOpened: d.Opened, BreakersClosed: d.Closed,
		Unrecorded: c.Unrecorded, WaitingRows: c.Rows, WaitingBytes: c.Bytes, WaitingTenants: c.Tenants, ExpectedWait: c.Wait,
	}
}

func (v *server) url() string {
	scheme := "http://"
	if v.certificate != nil {
		scheme = "https://"
	}
	return scheme + v.listener.Addr().String()
}

// accept is what requests come in by: within the limits, over TLS if there is a
// certificate, and each with one end.
func (v *server) accept() net.Listener {
	var in net.Listener = v.connections
	if v.certificate != nil {
		in = listener.Secure(in, listener.Handshake{Config: v.http.TLSConfig, Timeout: headerTimeout, Logger: v.logger, Guard: v.guard})
	}
	return framing.Listen(in)
}

// refusedConnections are why connections are closed as soon as they come.
func refusedConnections() (all []string) {
	for _, why := range listener.Reasons() {
		all = append(all, string(why))
	}
	return all
}

// ready says why no traffic may come.
func (v *server) ready(ctx context.Context) error {
	select {
	case <-v.draining:
		return hook.Unavailable(5*time.Second, nil, "The server is shutting down")
	default:
		if v.cluster != nil {
			// Its beats are written: but in place, which a full disk allows.
			if err := v.cluster.Ready(); err != nil {
				return err
			}
			return v.committer.Trouble()
		}
		ctx, cancel := context.WithTimeout(ctx, pingTime)
		defer cancel()
		return v.store.Ping(ctx)
	}
}

// pingTime is how long the store may keep whoever asks whether it is well
// waiting: one that hangs is not.
const pingTime = 2 * time.Second

// run answers requests until ctx ends, and then lets go of everything in order:
// no more requests, no more attempts, all that is known to disk.
func (v *server) run(ctx context.Context) error {
	if v.certificate != nil {
		v.certificate.Start(v.hangups)
		defer v.certificate.Stop()
	}
	served := make(chan error, 2)
	go func() { served <- v.http.Serve(v.accept()) }()
	if v.admin != nil {
		go func() { served <- v.admin.serve() }()
	}
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
	v.admin.stop(drain)
	cancel()
	v.replays.Stop()
	v.retention.Stop()
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	v.dispatcher.Stop(stop)
	err := errors.Join(failed, v.committer.Close(stop), v.auth.Stop(stop))
	v.sender.Close()
	if v.cluster != nil {
		v.cluster.Stop() // there is nothing left to write
	}
	err = errors.Join(err, v.store.Close())
	v.debug.stop()
	v.logger.Info("stopped", "took", time.Since(began).Round(time.Millisecond))
	return err
}

// ownListeners are where no webhook may lead.
func (v *server) ownListeners() (own []netip.AddrPort) {
	listeners := []net.Listener{v.listener}
	if v.debug != nil {
		listeners = append(listeners, v.debug.listener)
	}
	for _, l := range listeners {
		if addr, ok := l.Addr().(*net.TCPAddr); ok {
			own = append(own, addr.AddrPort())
		}
	}
	return own
}
