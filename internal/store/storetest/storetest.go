// Package storetest is the suite that every driver of the store must pass. A
// driver's own test file is a harness, and tests of what only that driver has.
//
// It tests the promises of package store, and nothing of how they are kept.
package storetest

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// Harness gives a test a store of its own.
type Harness struct {
	// Store is empty.
	Store store.Store
	// Reopen opens the same data again as after a crash: the store before was
	// not closed in order, and is not used any more.
	Reopen func() store.Store
	// Spans says that Prune deletes whole spans of time, however many rows are in
	// them.
	Spans bool
}

// Run runs the suite, or the groups of it that are named. open is called for each
// test, and closes what it opened with the test's Cleanup.
func Run(t *testing.T, open func(t *testing.T) Harness, groups ...string) {
	for _, group := range []struct {
		name  string
		tests tests
	}{
		{"Accept", acceptTests()},
		{"Queue", queueTests()},
		{"Outcome", outcomeTests()},
		{"Jobs", jobTests()},
		{"Lists", listTests()},
		{"Stats", statsTests()},
		{"Prune", pruneTests()},
		{"Audit", auditTests()},
		{"Configuration", configTests()},
		{"Vault", vaultTests()},
		{"Directory", directoryTests()},
		{"Users", userTests()},
		{"Isolation", isolationTests()},
		{"Model", modelTests()},
	} {
		if len(groups) > 0 && !slices.Contains(groups, group.name) {
			continue
		}
		t.Run(group.name, func(t *testing.T) {
			for name, test := range group.tests {
				// Whether a process holds what it publishes makes no difference to
				// anybody who asks.
				for _, held := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s, held %v", name, held), func(t *testing.T) { test(t, newFixture(t, open(t), held)) })
				}
			}
		})
	}
}

// tests are the promises of a part, each with its test.
type tests map[string]func(*testing.T, *fixture)

// tb is what helpers need of a test, ordinary or of rapid.
type tb interface {
	Helper()
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

// fixture is a store with a tenant and two webhooks, and a clock that the test
// moves. Ids are made at that clock.
type fixture struct {
	tb
	ctx     context.Context
	store   store.Store
	reopen  func() store.Store
	spans   bool
	now     time.Time
	ids     uint64
	tenant  id.Tenant
	a, b    id.Webhook
	version map[id.Tenant]int64
	held    bool // of the deliveries of new events
}

func newFixture(t *testing.T, h Harness, held bool) *fixture {
	f := &fixture{
		tb: t, ctx: t.Context(), store: h.Store, reopen: h.Reopen, spans: h.Spans,
		now: time.Now().UTC().Truncate(time.Millisecond), version: map[id.Tenant]int64{},
		held: held,
	}
	f.tenant = f.newTenant()
	f.a, f.b = f.newWebhook(f.tenant), f.newWebhook(f.tenant)
	return f
}

// crash opens the store anew.
func (f *fixture) crash() { f.store = f.reopen() }

func (f *fixture) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatalf("unexpected error: %v", err)
	}
}

// wantCode fails unless err has a code.
func (f *fixture) wantCode(err error, want hook.Code) {
	f.Helper()
	var e *hook.Error
	if !errors.As(err, &e) || e.Code != want {
		f.Fatalf("error is %v; want %s", err, want)
	}
}

func (f *fixture) wantMoved(err error) {
	f.Helper()
	if !errors.Is(err, store.ErrConfigMoved) {
		f.Fatalf("error is %v; want ErrConfigMoved", err)
	}
}

// equal compares, taking no slice and an empty one for the same.
func (f *fixture) equal(what string, got, want any) {
	f.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		f.Fatalf("%s (-want +got):\n%s", what, diff)
	}
}

// makeID makes a UUIDv7 (RFC 9562 §5.7) of the fixture's clock; later ones are larger.
func (f *fixture) makeID() [16]byte {
	v := id.First(f.now)
	f.ids++
	binary.BigEndian.PutUint64(v[8:], f.ids|1<<63)
	v[6] = 0x70
	return v
}

func (f *fixture) newTenant() id.Tenant {
	f.Helper()
	tenant := id.Tenant(f.makeID())
	f.must(f.store.InsertTenant(f.ctx, hook.Tenant{ID: tenant, Name: "acme", CreatedAt: f.now, UpdatedAt: f.now}))
	c, err := f.store.TenantConfig(f.ctx, tenant)
	f.must(err)
	f.version[tenant] = c.Version
	return tenant
}

func (f *fixture) webhookRow(tenant id.Tenant) store.WebhookRow {
	return store.WebhookRow{
		Webhook: hook.Webhook{
			ID: f.makeID(), Tenant: tenant, Revision: 1, Name: "orders", URL: "https://example.com/hook",
			Events: []string{"invocation.*", "tool.error"}, Enabled: true, Timeout: 30 * time.Second, Description: "the orders",
			CreatedAt: f.now, UpdatedAt: f.now,
		},
		Sealed: []byte{0, 1, 2, 255},
	}
}

func (f *fixture) newWebhook(tenant id.Tenant) id.Webhook {
	f.Helper()
	w := f.webhookRow(tenant)
	v, err := f.store.InsertWebhook(f.ctx, w)
	f.must(err)
	f.version[tenant] = v
	return w.ID
}

// event makes an event with a delivery to each webhook.
func (f *fixture) event(to ...id.Webhook) store.NewEvent {
	e := store.NewEvent{
		ID: f.makeID(), Type: "invocation.completed", Timestamp: f.now.Add(-time.Second), Body: []byte(`{"data":1}`),
		Due: f.now, ExpiresAt: f.now.Add(7 * 24 * time.Hour),
	}
	for _, w := range to {
		e.Deliveries = append(e.Deliveries, store.NewDelivery{ID: f.makeID(), Webhook: w, Trigger: hook.TriggerAuto, Held: f.held})
	}
	return e
}

func hash(s string) [32]byte { return sha256.Sum256([]byte(s)) }

// request makes an accept at the tenant's version.
func (f *fixture) request(events ...store.NewEvent) *store.Accept {
	return &store.Accept{Tenant: f.tenant, ConfigVersion: f.version[f.tenant], Events: events}
}

// apply writes a batch, which must work as a whole.
func (f *fixture) apply(b *store.Batch) {
	f.Helper()
	f.must(f.store.Apply(f.ctx, b))
}

// accept writes requests, which must all be taken.
func (f *fixture) accept(requests ...*store.Accept) {
	f.Helper()
	f.apply(&store.Batch{Accepts: requests})
	for i, r := range requests {
		if r.Err != nil {
			f.Fatalf("request %d was refused: %v", i, r.Err)
		}
	}
}

// queue writes n events, each with a delivery to the webhook, and answers the
// deliveries.
func (f *fixture) queue(to id.Webhook, n int) []id.Delivery {
	f.Helper()
	r := f.request()
	var ids []id.Delivery
	for range n {
		e := f.event(to)
		r.Events = append(r.Events, e)
		ids = append(ids, e.Deliveries[0].ID)
	}
	f.accept(r)
	return ids
}

// attempt is an attempt with everything in it that can be kept.
func (f *fixture) attempt(number int, failure *hook.Failure) hook.Attempt {
	a := hook.Attempt{
		Number: number, Trigger: hook.TriggerAuto, StartedAt: f.now.Add(-20 * time.Millisecond), Duration: 20123 * time.Microsecond,
		Timings:  hook.Timings{DNS: time.Millisecond, Connect: 2 * time.Millisecond, TLS: 3 * time.Millisecond, FirstByte: 4567 * time.Microsecond},
		Revision: 3, StatusCode: 200, Header: http.Header{"Content-Type": {"text/plain"}, "X-Two": {"a", "b"}},
		Body: []byte("thank you\x00"), Failure: failure,
	}
	if failure != nil {
		a.StatusCode = 500
	}
	return a
}

// refused is the failure of an answer that is not 2xx.
func refused() *hook.Failure {
	return &hook.Failure{Kind: hook.FailureStatus, Message: "the receiver answered 500"}
}

// outcome is the end of an attempt at the fixture's time.
func (f *fixture) outcome(w id.Webhook, d id.Delivery, number int, change hook.Change) *store.Outcome {
	o := &store.Outcome{Tenant: f.tenant, Webhook: w, Delivery: d, Change: change, Try: number, At: f.now}
	if change == hook.Succeeded {
		o.Attempt = f.attempt(number, nil)
	} else {
		o.Attempt = f.attempt(number, refused())
	}
	if change == hook.Postponed {
		o.Due = f.now.Add(5 * time.Second)
	}
	return o
}

// finish records outcomes, all of which must match.
func (f *fixture) finish(outcomes ...*store.Outcome) {
	f.Helper()
	f.apply(&store.Batch{Outcomes: outcomes})
	for i, o := range outcomes {
		if !o.Matched {
			f.Fatalf("outcome %d of delivery %s did not match", i, o.Delivery)
		}
	}
}

// fail records that the first attempt at each delivery was the last.
func (f *fixture) fail(w id.Webhook, ids ...id.Delivery) {
	f.Helper()
	var outcomes []*store.Outcome
	for _, d := range ids {
		outcomes = append(outcomes, f.outcome(w, d, 1, hook.Exhausted))
	}
	f.finish(outcomes...)
}

func (f *fixture) delivery(d id.Delivery) *hook.Delivery {
	f.Helper()
	v, err := f.store.Delivery(f.ctx, f.tenant, d)
	f.must(err)
	return v
}

func (f *fixture) attempts(d id.Delivery) []hook.Attempt {
	f.Helper()
	v, err := f.store.Attempts(f.ctx, f.tenant, d)
	f.must(err)
	return v
}

// claim takes what is due now.
func (f *fixture) claim(w id.Webhook, limit int) *store.Claimed {
	f.Helper()
	c, err := f.store.Claim(f.ctx, store.ClaimParams{Tenant: f.tenant, Webhook: w, Now: f.now, Limit: limit, MaxBytes: 64 << 20})
	f.must(err)
	return c
}

func claimed(c *store.Claimed) []id.Delivery {
	var ids []id.Delivery
	for _, q := range c.Deliveries {
		ids = append(ids, q.ID)
	}
	return ids
}

func (f *fixture) stats(w id.Webhook, since, until time.Time) *store.Stats {
	f.Helper()
	s, err := f.store.Stats(f.ctx, store.StatsQuery{Tenant: f.tenant, Webhook: w, Since: since, Until: until})
	f.must(err)
	return s
}

func (f *fixture) count(q store.DeliveryQuery, most int64) (int64, bool) {
	f.Helper()
	q.Tenant = f.tenant
	n, more, err := f.store.CountDeliveries(f.ctx, q, most)
	f.must(err)
	return n, more
}

func status(s hook.Status) *hook.Status { return &s }

// counts are the numbers of deliveries of a webhook (or, with none, of the
// tenant), as a text that is easy to compare.
func (f *fixture) counts(w id.Webhook) string {
	f.Helper()
	failed, _ := f.count(store.DeliveryQuery{Webhook: w, Status: status(hook.StatusFailed)}, 1)
	total, _ := f.count(store.DeliveryQuery{Webhook: w}, 1)
	s := f.stats(w, time.Time{}, time.Time{})
	return fmt.Sprintf("pending %d failed %d total %d; attempts %d+ %d-", s.Pending, failed, total, s.Succeeded, s.Failed)
}

func (f *fixture) wantCounts(w id.Webhook, want string) {
	f.Helper()
	if got := f.counts(w); got != want {
		f.Fatalf("counts are %q; want %q", got, want)
	}
}
