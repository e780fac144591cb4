package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/api"
	"github.com/plinqx/hypha/internal/api/openapitest"
	"github.com/plinqx/hypha/internal/auth"
	"github.com/plinqx/hypha/internal/catalog"
	"github.com/plinqx/hypha/internal/commit"
	"github.com/plinqx/hypha/internal/egress"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/ingest"
	"github.com/plinqx/hypha/internal/registry"
	"github.com/plinqx/hypha/internal/rekey"
	"github.com/plinqx/hypha/internal/seal"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/internal/store/sqlite"
	"github.com/plinqx/hypha/internal/vault"
)

const (
	adminKey    = "hypha_an-administrators-key-for-tests"
	operatorKey = "an-operators-key-for-tests"
	email       = "admin@example.com"
	password    = "correct horse battery"
)

// server is the API over a real store, with nobody who sends.
type server struct {
	t       *testing.T
	handler http.Handler
	store   *sqlite.Store
	commits *commit.Committer
	tenant  id.Tenant
	lanes   *noLanes
	check   *openapitest.Validator
	log     *bytes.Buffer
	ticks   atomic.Int64
	start   time.Time
}

// now goes on by a millisecond each time it is asked, so that no two things
// happen at one time.
func (s *server) now() time.Time {
	return s.start.Add(time.Duration(s.ticks.Add(1)) * time.Millisecond)
}

func newServer(t *testing.T, change func(*api.Options)) *server {
	t.Helper()
	s := &server{t: t, lanes: &noLanes{}, log: new(bytes.Buffer), start: time.Now().Add(-time.Minute)}
	var err error
	if s.store, err = sqlite.Open(t.Context(), sqlite.Options{Dir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.store.Close(); err != nil {
			t.Error(err)
		}
	})
	box, err := seal.New(make([]byte, seal.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	cat := catalog.New(s.store, box)
	policy, err := egress.New(egress.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s.commits = commit.New(commit.Options{Store: s.store})
	s.commits.Start()
	t.Cleanup(func() {
		if err := s.commits.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	who, err := auth.New(auth.Options{Store: s.store, Catalog: cat, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	made, err := who.Bootstrap(t.Context(), auth.Bootstrap{APIKey: adminKey, Email: email, Password: password, OperatorKey: operatorKey})
	if err != nil {
		t.Fatal(err)
	}
	s.tenant = made.Tenant.ID
	o := api.Options{
		Auth: who, Catalog: cat, History: s.store, Audit: s.store, Now: time.Now, UserAgent: "Hypha-Webhooks/test",
		Registry: registry.New(registry.Options{
			Store: s.store, Catalog: cat, URLs: policy, HeaderPrefix: "X-Plinqx", Now: s.now, Discard: func(id.Tenant, id.Replay) {},
		}),
		Vault:      vault.New(vault.Options{Store: s.store, Catalog: cat, Now: s.now}),
		SecretKeys: rekey.New(rekey.Options{Store: s.store, Ring: box}),
		Publisher:  ingest.New(ingest.Options{Catalog: cat, Committer: s.commits, Lanes: s.lanes, Now: s.now, MaxAge: 7 * 24 * time.Hour}),
		Replays:    &replays{s.store},
		Logger:     slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			_, _ = io.WriteString(w, "up 1\n")
		}),
	}
	if change != nil {
		change(&o)
	}
	s.handler = api.New(o)
	s.check = openapitest.New(t, api.OpenAPI())
	return s
}

// noLanes have no place for anything; a test's attempt is made up.
type noLanes struct {
	mu      sync.Mutex
	watched map[id.Delivery]chan *hook.Attempt
}

func (*noLanes) Reserve(id.Tenant, *store.NewEvent) {}
func (*noLanes) Release(id.Tenant, *store.NewEvent) {}

func (l *noLanes) HandOver(_ id.Tenant, e *store.NewEvent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range e.Deliveries {
		if c := l.watched[d.ID]; c != nil {
			c <- &hook.Attempt{Number: 1, Trigger: hook.TriggerTest, StartedAt: time.Now(), Duration: 12 * time.Millisecond, Revision: 1, StatusCode: 200, Body: []byte("ok")}
		}
	}
}

func (l *noLanes) Watch(_ id.Tenant, d id.Delivery) (<-chan *hook.Attempt, func(), bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := make(chan *hook.Attempt, 1)
	l.watched = map[id.Delivery]chan *hook.Attempt{d: c}
	return c, func() {}, true
}

// replays asks the store for what package replay does with more care.
type replays struct{ store *sqlite.Store }

func (r *replays) job(ctx context.Context, tenant id.Tenant, webhook id.Webhook, kind store.JobKind) (*store.Job, error) {
	job, err := id.NewReplay()
	if err != nil {
		return nil, err
	}
	return r.store.StartJob(ctx, store.JobParams{ID: job, Tenant: tenant, Webhook: webhook, Kind: kind, Now: time.Now()})
}

func (r *replays) RetryAllFailed(ctx context.Context, tenant id.Tenant, webhook id.Webhook) (*store.Job, error) {
	return r.job(ctx, tenant, webhook, store.JobRetryFailed)
}

func (r *replays) DiscardQueue(ctx context.Context, tenant id.Tenant, webhook id.Webhook) (int64, error) {
	job, err := r.job(ctx, tenant, webhook, store.JobDiscard)
	if err != nil {
		return 0, err
	}
	return job.Total, nil
}

func (r *replays) Retry(ctx context.Context, tenant id.Tenant, delivery id.Delivery) (*hook.Delivery, error) {
	return r.store.RetryDelivery(ctx, store.RetryParams{Tenant: tenant, Delivery: delivery, Now: time.Now(), ExpiresAt: time.Now().Add(time.Hour)})
}

func (r *replays) Cancel(ctx context.Context, tenant id.Tenant, delivery id.Delivery) (*hook.Delivery, error) {
	return r.store.CancelDelivery(ctx, tenant, delivery, time.Now())
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   string
}

// ask sends a request as the administrator, unless the headers ("Name: value")
// say otherwise, and holds the exchange against the contract.
func (s *server) ask(method, target, body string, headers ...string) answer {
	s.t.Helper()
	req := httptest.NewRequest(method, target, strings.NewReader(body))
	req.Header.Set("Authorization", "Bearer "+adminKey)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if value == "" {
			req.Header.Del(name)
			continue
		}
		req.Header.Set(name, value)
	}
	return s.send(req, body)
}

func (s *server) send(req *http.Request, body string) answer {
	s.t.Helper()
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, req)
	resp := w.Result()
	a := answer{status: resp.StatusCode, header: resp.Header, body: w.Body.String()}
	if a.status != http.StatusNotFound && a.status != http.StatusMethodNotAllowed {
		s.check.CheckExchange(s.t, req, []byte(body), resp, w.Body.Bytes())
	}
	return a
}

// must is ask where one status is expected.
func (s *server) must(status int, method, target, body string, headers ...string) answer {
	s.t.Helper()
	a := s.ask(method, target, body, headers...)
	if a.status != status {
		s.t.Fatalf("%s %s = %d, want %d\n%s", method, target, a.status, status, a.body)
	}
	return a
}

// get reads a member of the answer: "error.code", "data.0.id".
func (a answer) get(path string) any {
	var v any
	if json.Unmarshal([]byte(a.body), &v) != nil {
		return nil
	}
	for _, name := range strings.Split(path, ".") {
		switch in := v.(type) {
		case map[string]any:
			v = in[name]
		case []any:
			i := int(name[0] - '0')
			if i >= len(in) {
				return nil
			}
			v = in[i]
		default:
			return nil
		}
	}
	return v
}

func (a answer) text(path string) string {
	s, _ := a.get(path).(string)
	return s
}

// problems are the details of a refusal, "path: message".
func (a answer) problems() []string {
	var v struct {
		Error struct{ Details []hook.Detail }
	}
	_ = json.Unmarshal([]byte(a.body), &v)
	var out []string
	for _, d := range v.Error.Details {
		out = append(out, d.Path+": "+d.Message)
	}
	return out
}

// fail records that a delivery's first attempt failed for good.
func (s *server) fail(delivery string) {
	s.t.Helper()
	d, err := id.ParseDelivery(delivery)
	if err != nil {
		s.t.Fatal(err)
	}
	row, err := s.store.Delivery(s.t.Context(), s.tenant, d)
	if err != nil {
		s.t.Fatal(err)
	}
	failure := &hook.Failure{Kind: hook.FailureStatus, Message: "answered 500"}
	now := time.Now()
	b := store.Batch{Outcomes: []*store.Outcome{{
		Tenant: s.tenant, Webhook: row.Webhook, Delivery: d, Change: hook.Exhausted, Try: 1, At: now, Failure: failure,
		Attempt: hook.Attempt{
			Number: 1, Trigger: hook.TriggerAuto, StartedAt: now, Duration: 1500 * time.Microsecond, Revision: 1, StatusCode: 500,
			Timings: hook.Timings{Connect: 250 * time.Microsecond},
			Header:  http.Header{"X-Server": {"a", "b\xff"}}, Body: []byte("oh \xffno"), Failure: failure,
		},
	}}}
	if err := s.store.Apply(s.t.Context(), &b); err != nil {
		s.t.Fatal(err)
	}
}

const hookBody = `{"name":"My hook","url":"https://example.com/in","events":["order.*"],"headers":{"X-Api-Key":"k","X-Tag":"t"}}`

func (s *server) newWebhook() string {
	s.t.Helper()
	return s.must(201, "POST", "/services/webhooks", hookBody).text("id")
}

// newTenant makes a second tenant, and answers a key of its own.
func (s *server) newTenant() (tenant, key string) {
	s.t.Helper()
	operator := "Authorization: Bearer " + operatorKey
	tenant = s.must(201, "POST", "/services/tenants", `{"name":"other"}`, operator).text("id")
	key = s.must(201, "POST", "/services/api-keys", `{"name":"other's"}`, operator, "X-Hypha-Tenant: "+tenant).text("key")
	return tenant, key
}
