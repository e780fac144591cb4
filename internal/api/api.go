// Package api is the HTTP API: it turns requests into calls of the packages that
// do the work, and what they answer into JSON. openapi.yaml is its contract,
// written by hand; every route and every kind of answer is in it, and the tests
// hold the two together.
//
// It promises:
//
//   - Credentials are judged before the body is read, and the body as a whole:
//     all that is wrong with a request is told at once.
//   - What another tenant has answers byte for byte as what nobody has.
//   - An error that was not made to be shown is "Internal error" to the caller,
//     and whole in the log, under the request's id.
//   - A request that fails, however badly, harms no other.
//
// It must not know how events are delivered: no lanes, no dispatcher, no sender.
package api

import (
	"context"
	_ "embed"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/plinqx/hypha/internal/auth"
	"github.com/plinqx/hypha/internal/catalog"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/ingest"
	"github.com/plinqx/hypha/internal/oidc"
	"github.com/plinqx/hypha/internal/registry"
	"github.com/plinqx/hypha/internal/rekey"
	"github.com/plinqx/hypha/internal/seal"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/internal/vault"
	"github.com/plinqx/hypha/signature"
)

//go:embed openapi.yaml
var openAPI []byte

// OpenAPI is the contract, an OpenAPI 3.1 document in YAML.
func OpenAPI() []byte { return slices.Clone(openAPI) }

// Publisher takes events in (package ingest).
type Publisher interface {
	Publish(ctx context.Context, r ingest.Request) ([]store.AcceptResult, error)
	Test(ctx context.Context, tenant id.Tenant, webhook id.Webhook, authorize func(*catalog.Snapshot) error) (id.Delivery, *hook.Attempt, error)
}

// Replays does again, or gives up, what is there already (package replay).
type Replays interface {
	// RetryAllFailed puts all that a webhook failed to get back in its queue.
	// The job of an earlier call is answered while it runs.
	RetryAllFailed(ctx context.Context, tenant id.Tenant, webhook id.Webhook) (*store.Job, error)
	// Retry starts a delivery's schedule again; hook.CodeConflict if its
	// webhook is disabled.
	Retry(ctx context.Context, tenant id.Tenant, delivery id.Delivery) (*hook.Delivery, error)
	// Cancel gives up an unfinished delivery; hook.CodeConflict if it is done.
	Cancel(ctx context.Context, tenant id.Tenant, delivery id.Delivery) (*hook.Delivery, error)
	// DiscardQueue gives up all unfinished deliveries of a webhook, and answers
	// how many those are.
	DiscardQueue(ctx context.Context, tenant id.Tenant, webhook id.Webhook) (int64, error)
}

// History is what happened (package store).
type History interface {
	Event(ctx context.Context, tenant id.Tenant, publicID string) (*hook.Event, error)
	Events(ctx context.Context, q store.EventQuery) (*store.EventPage, error)
	Delivery(ctx context.Context, tenant id.Tenant, delivery id.Delivery) (*hook.Delivery, error)
	Attempts(ctx context.Context, tenant id.Tenant, delivery id.Delivery) ([]hook.Attempt, error)
	Deliveries(ctx context.Context, q store.DeliveryQuery) (*store.DeliveryPage, error)
	CountDeliveries(ctx context.Context, q store.DeliveryQuery, max int64) (n int64, more bool, err error)
	Stats(ctx context.Context, q store.StatsQuery) (*store.Stats, error)
	WebhookRevision(ctx context.Context, tenant id.Tenant, webhook id.Webhook, revision int64) (*store.WebhookRow, error)
}

// SecretKeys looks after what is sealed under the server's keys (package rekey).
type SecretKeys interface {
	Keys(ctx context.Context) ([]rekey.Key, error)
	NewKey(ctx context.Context) (seal.KeyID, error)
	Rekey(ctx context.Context) (*rekey.Result, error)
}

// Options are what the API needs. The first ten are required.
type Options struct {
	Auth       *auth.Auth
	Catalog    *catalog.Catalog
	Registry   *registry.Registry
	Vault      *vault.Vault
	SecretKeys SecretKeys
	Publisher  Publisher
	Replays    Replays
	History    History
	Audit      AuditLog
	Now        func() time.Time

	// Admit says whether an event of a tenant could be taken in now. It is asked
	// before the body is read, so that what is refused costs little. Default: it
	// could.
	Admit func(id.Tenant) error
	// NoRoom is told of events that are refused because there is no memory for
	// their bodies, in all or for their tenant. Default: nobody is.
	NoRoom func(ofTenant bool)
	// Ready says why no traffic may come, or nil. Default: it always may.
	Ready func(context.Context) error
	// RateLimits are how much each party may ask for; default: whatever it likes.
	// RateLimited is told of each request that was refused; default: nobody is.
	RateLimits  RateLimits
	RateLimited func(Limit)
	// TrustedProxies are the networks of proxies that say in X-Forwarded-For whom
	// they ask for. Default: none is believed.
	TrustedProxies []netip.Prefix
	// CrossOrigin refuses what pages of other sites send, but for those that it
	// trusts. Default: it trusts none.
	CrossOrigin *http.CrossOriginProtection
	// Provider signs people in through OpenID Connect. Default: there is none.
	Provider *oidc.Provider
	// Metrics answers /metrics. Default: there is none.
	Metrics http.Handler
	// Logger gets one line for each request: at debug, also if there was too much
	// to do; at info if the server could not do what it should, at error for what
	// nobody foresaw.
	Logger *slog.Logger
	// Observe is told of every request, for the metrics.
	Observe func(Exchange)
	// Panicked is told of every request that ended with a panic.
	Panicked func()

	// Prefix and UserAgent are those of the attempts, whose requests are shown.
	Prefix    signature.Prefix
	UserAgent string

	// The largest bodies, in bytes: of an event (default 1 MiB), of a batch
	// (16 MiB), of anything else (256 KiB); and of all that are being read or
	// worked on at a time (256 MiB), beyond which requests are refused. A tenant
	// may take half of what the others leave of that.
	MaxEventBody, MaxBatchBody, MaxBody, MaxBodies int64
	// Timeout is how long a request may take; default 30 s. A test of a webhook
	// may take TestTimeout; default 90 s: the longest attempt, and its turn.
	Timeout, TestTimeout time.Duration
}

// Exchange is a request and what became of it.
type Exchange struct {
	Method string
	// Route is the pattern that matched, "" if none did.
	Route    string
	Status   int
	Bytes    int64 // of the answer's body
	Duration time.Duration
}

// API is the handler's state.
type api struct {
	o         Options
	constants constants
	bodies    *bodies
	readers   sync.Pool // of *reader
	publicly  *publicly
	limits    *limits
}

// New makes the handler. It is also a chi.Routes.
func New(o Options) http.Handler {
	if o.Ready == nil {
		o.Ready = func(context.Context) error { return nil }
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Observe == nil {
		o.Observe = func(Exchange) {}
	}
	if o.Panicked == nil {
		o.Panicked = func() {}
	}
	orDefault(&o.MaxEventBody, 1<<20)
	orDefault(&o.MaxBatchBody, 16<<20)
	orDefault(&o.MaxBody, 256<<10)
	orDefault(&o.MaxBodies, 256<<20)
	orDefault(&o.Timeout, 30*time.Second)
	orDefault(&o.TestTimeout, 90*time.Second)
	if o.Admit == nil {
		o.Admit = func(id.Tenant) error { return nil }
	}
	if o.CrossOrigin == nil {
		o.CrossOrigin = http.NewCrossOriginProtection()
	}
	if o.RateLimited == nil {
		o.RateLimited = func(Limit) {}
	}
	if o.NoRoom == nil {
		o.NoRoom = func(bool) {}
	}
	a := &api{o: o, constants: newConstants(), bodies: newBodies(o.MaxBodies), publicly: newPublicly(), limits: newLimits(&o)}
	a.readers.New = func() any { return newReader() }
	return a.router()
}

func orDefault[T comparable](v *T, fallback T) {
	var zero T
	if *v == zero {
		*v = fallback
	}
}

// endpoint is one route.
type endpoint struct {
	method, pattern string
	access          access
	// scope is what the caller must be allowed; "" is anything.
	scope hook.Scope
	// query says that the endpoint reads the URL's parameters; where it does
	// not, there may be none.
	query bool
	serve func(*call) (reply, error)
}

// publishes reports whether the endpoint takes events in.
func (e *endpoint) publishes() bool { return e.scope == hook.ScopeEventsWrite }

// probed reports whether the endpoint is for those who look after the server. They
// must get their answer whatever else goes on, and it costs next to nothing.
func (e *endpoint) probed() bool { return e.pattern == healthzPath || e.pattern == readyzPath }

// access is who may come to an endpoint.
type access uint8

const (
	tenants   access = iota // a credential that belongs to, or acts for, a tenant
	operators               // an operator, for no tenant in particular
	either                  // both: an operator may act for a tenant, or for none
	everybody               // no credential is asked for
)

// Where the server says that it is well.
const (
	healthzPath = "/healthz"
	readyzPath  = "/readyz"
)

// testPath waits for an attempt, so it may take longer than the others.
const testPath = "/services/webhooks/{webhook}/test"

// endpoints is every route that there is.
func (a *api) endpoints() []endpoint {
	const (
		get    = http.MethodGet
		post   = http.MethodPost
		patch  = http.MethodPatch
		remove = http.MethodDelete

		hooks      = "/services/webhooks"
		one        = hooks + "/{webhook}"
		deliveries = hooks + "/deliveries"
		delivery   = deliveries + "/{delivery}"
		events     = "/services/events"
		keys       = "/services/api-keys"
		topKeys    = "/services/operator-keys"
		tenantsAt  = "/services/tenants"
		auditAt    = "/services/audit"
		vaultAt    = "/services/vault"
		secretKeys = "/services/secret-keys"
		users      = "/services/users"
		signIn     = "/services/auth"

		readHooks   = hook.ScopeWebhooksRead
		writeHooks  = hook.ScopeWebhooksWrite
		publish     = hook.ScopeEventsWrite
		readLog     = hook.ScopeDeliveriesRead
		writeLog    = hook.ScopeDeliveriesWrite
		admin       = hook.ScopeAdmin
		operator    = hook.ScopeOperator
		anyTenant   = hook.Scope("")
		unprotected = hook.Scope("")

		params, plain = true, false
	)
	return []endpoint{
		{get, healthzPath, everybody, unprotected, plain, a.healthz},
		{get, readyzPath, everybody, unprotected, plain, a.readyz},
		{get, "/services/openapi.yaml", everybody, unprotected, plain, a.document},
		{get, keysPath, everybody, unprotected, params, a.publicKeys},

		{post, signIn + "/login", everybody, unprotected, plain, a.login},
		{post, signIn + "/logout", tenants, anyTenant, plain, a.logout},
		{post, signIn + "/logout-all", tenants, anyTenant, plain, a.logoutAll},
		{get, signIn + "/sessions", tenants, anyTenant, params, a.listSessions},
		{post, signIn + "/password", tenants, anyTenant, plain, a.changePassword},
		{get, signIn + "/oidc/login", everybody, unprotected, params, a.oidcLogin},
		{get, signIn + "/oidc/callback", everybody, unprotected, params, a.oidcCallback},
		{get, signIn + "/me", tenants, anyTenant, plain, a.me},

		{get, users, tenants, admin, params, a.listUsers},
		{post, users, tenants, admin, plain, a.createUser},
		{get, users + "/{user}", tenants, admin, plain, a.getUser},
		{patch, users + "/{user}", tenants, admin, plain, a.updateUser},
		{remove, users + "/{user}", tenants, admin, plain, a.deleteUser},
		{post, users + "/{user}/sign-out", tenants, admin, plain, a.signOutUser},

		{get, keys, tenants, admin, params, a.listKeys},
		{post, keys, tenants, admin, plain, a.createKey},
		{get, keys + "/{key}", tenants, admin, plain, a.getKey},
		{patch, keys + "/{key}", tenants, admin, plain, a.updateKey},
		{remove, keys + "/{key}", tenants, admin, plain, a.deleteKey},

		{get, auditAt, either, admin, params, a.listAudit},
		{get, auditAt + "/export", either, admin, params, a.exportAudit},

		{get, tenantsAt, operators, operator, params, a.listTenants},
		{post, tenantsAt, operators, operator, plain, a.createTenant},
		{get, tenantsAt + "/{tenant}", operators, operator, plain, a.getTenant},
		{patch, tenantsAt + "/{tenant}", operators, operator, plain, a.updateTenant},
		{remove, tenantsAt + "/{tenant}", operators, operator, plain, a.deleteTenant},

		{get, topKeys, operators, operator, params, a.listOperatorKeys},
		{post, topKeys, operators, operator, plain, a.createOperatorKey},
		{get, topKeys + "/{operatorKey}", operators, operator, plain, a.getOperatorKey},
		{patch, topKeys + "/{operatorKey}", operators, operator, plain, a.updateOperatorKey},
		{remove, topKeys + "/{operatorKey}", operators, operator, plain, a.deleteOperatorKey},

		{get, secretKeys, operators, operator, plain, a.listSecretKeys},
		{post, secretKeys, operators, operator, plain, a.createSecretKey},
		{post, secretKeys + "/rekey", operators, operator, plain, a.rekey},

		{get, vaultAt, tenants, readHooks, params, a.listVaultSecrets},
		{post, vaultAt, tenants, writeHooks, plain, a.createVaultSecret},
		{get, vaultAt + "/{secret}", tenants, readHooks, plain, a.getVaultSecret},
		{patch, vaultAt + "/{secret}", tenants, writeHooks, plain, a.updateVaultSecret},
		{remove, vaultAt + "/{secret}", tenants, writeHooks, plain, a.deleteVaultSecret},

		{get, hooks, tenants, readHooks, params, a.listWebhooks},
		{post, hooks, tenants, writeHooks, plain, a.createWebhook},
		{get, hooks + "/stats", tenants, readLog, params, a.stats},
		{get, one, tenants, readHooks, plain, a.getWebhook},
		{patch, one, tenants, writeHooks, plain, a.updateWebhook},
		{remove, one, tenants, writeHooks, plain, a.deleteWebhook},
		{post, testPath, tenants, writeLog, plain, a.testWebhook},
		{post, one + "/rotate-secret", tenants, writeHooks, plain, a.rotateSecret},
		{post, one + "/resume", tenants, writeHooks, plain, a.resumeWebhook},
		{post, one + "/discard-queue", tenants, writeLog, plain, a.discardQueue},
		{get, one + "/deliveries", tenants, readLog, params, a.listWebhookDeliveries},
		{post, one + "/deliveries/retry-all-failed", tenants, writeLog, plain, a.retryAllFailed},

		{get, deliveries, tenants, readLog, params, a.listDeliveries},
		{get, deliveries + "/failed", tenants, readLog, params, a.listFailed},
		{get, delivery, tenants, readLog, plain, a.getDelivery},
		{post, delivery + "/retry", tenants, writeLog, plain, a.retryDelivery},
		{post, delivery + "/cancel", tenants, writeLog, plain, a.cancelDelivery},

		{get, events, tenants, readLog, params, a.listEvents},
		{post, events, tenants, publish, plain, a.publish},
		{post, events + "/batch", tenants, publish, plain, a.publishBatch},
		{get, events + "/{event}", tenants, readLog, plain, a.getEvent},
	}
}

func (a *api) router() *chi.Mux {
	mux := chi.NewMux()
	mux.Use(a.around)
	for _, e := range a.endpoints() {
		h := a.handler(e)
		mux.Method(e.method, e.pattern, h)
		if e.method == http.MethodGet {
			mux.Method(http.MethodHead, e.pattern, h)
		}
	}
	if a.o.Metrics != nil {
		mux.Method(http.MethodGet, "/metrics", a.o.Metrics)
		mux.Method(http.MethodHead, "/metrics", a.o.Metrics)
	}
	mux.NotFound(func(w http.ResponseWriter, _ *http.Request) { a.fail(w, errNoRoute()) })
	mux.MethodNotAllowed(func(w http.ResponseWriter, r *http.Request) { a.fail(w, wrongMethod(w, r, mux)) })
	return mux
}

func errNoRoute() error {
	return &hook.Error{Code: hook.CodeNotFound, Message: "There is nothing at this path"}
}

// wrongMethod names in Allow what may be done at the path (RFC 9110, 15.5.6).
// The router comes here for a method that it does not know as well, whatever
// the path.
func wrongMethod(w http.ResponseWriter, r *http.Request, mux *chi.Mux) error {
	path := r.URL.RawPath
	if path == "" {
		path = r.URL.Path
	}
	allowed := ""
	for _, m := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPatch, http.MethodDelete} {
		if !mux.Match(chi.NewRouteContext(), m, path) {
			continue
		}
		if allowed != "" {
			allowed += ", "
		}
		allowed += m
	}
	if allowed == "" {
		return errNoRoute()
	}
	w.Header().Set("Allow", allowed)
	return &hook.Error{Code: hook.CodeMethodNotAllowed, Message: "This path does not take this method; it takes " + allowed}
}
