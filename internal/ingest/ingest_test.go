package ingest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/plinqx/hypha/internal/catalog"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/ingest"
	"github.com/plinqx/hypha/internal/store"
)

var (
	tenant = id.Tenant{1}
	now    = time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.FixedZone("elsewhere", 3600))
)

// world stands for all that is around ingest: it notes what it is told.
type world struct {
	t       *testing.T
	in      *ingest.Ingest
	catalog *catalog.Catalog
	config  store.TenantConfig
	lines   []string
	full    bool // no more tests are taken
	// commit judges an accept; nil writes it.
	commit  func(a *store.Accept) error
	accepts []store.Accept
	watches map[id.Delivery]chan *hook.Attempt
	attempt *hook.Attempt // what a watch is told when its delivery is handed over
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, config: store.TenantConfig{Tenant: hook.Tenant{ID: tenant}, Version: 1}, watches: make(map[id.Delivery]chan *hook.Attempt)}
	w.catalog = catalog.New(w, open{})
	w.in = ingest.New(ingest.Options{Catalog: w.catalog, Committer: w, Lanes: w, Now: func() time.Time { return now }, MaxAge: time.Hour, MaxQueued: 77})
	return w
}

type open struct{}

func (open) Seal(plain, _ []byte) ([]byte, error)  { return plain, nil }
func (open) Open(sealed, _ []byte) ([]byte, error) { return sealed, nil }

func (w *world) webhook(n byte, events ...string) {
	row, err := w.catalog.Seal(&hook.Webhook{ID: id.Webhook{n}, Tenant: tenant, Enabled: true, Events: events})
	if err != nil {
		w.t.Fatal(err)
	}
	w.config.Version++
	w.config.Webhooks = append(w.config.Webhooks, row)
}

func (w *world) note(format string, args ...any) {
	w.lines = append(w.lines, fmt.Sprintf(format, args...))
}

func (w *world) TenantConfig(context.Context, id.Tenant) (*store.TenantConfig, error) {
	c := w.config
	return &c, nil
}

func (w *world) Accept(_ context.Context, a *store.Accept, settle func(bool)) error {
	a.Err, a.Results = nil, nil
	if a.ConfigVersion != w.config.Version {
		a.Err = store.ErrConfigMoved
	} else if w.commit != nil {
		a.Err = w.commit(a)
	}
	if a.Err == nil && a.Results == nil {
		a.Results = make([]store.AcceptResult, len(a.Events))
	}
	w.accepts = append(w.accepts, *a)
	settle(a.Err == nil)
	return a.Err
}

func (w *world) Reserve(_ id.Tenant, e *store.NewEvent) {
	w.note("reserve %s %d", e.GivenID, len(e.Deliveries))
}

func (w *world) HandOver(_ id.Tenant, e *store.NewEvent) {
	w.note("hand over %s", e.GivenID)
	for _, d := range e.Deliveries {
		if c := w.watches[d.ID]; c != nil {
			c <- w.attempt
		}
	}
}

func (w *world) Release(_ id.Tenant, e *store.NewEvent) { w.note("release %s", e.GivenID) }

func (w *world) Watch(_ id.Tenant, d id.Delivery) (<-chan *hook.Attempt, func(), bool) {
	if w.full {
		return nil, nil, false
	}
	w.watches[d] = make(chan *hook.Attempt, 1)
	return w.watches[d], func() { delete(w.watches, d) }, true
}

func allow(*catalog.Snapshot) error { return nil }

func (w *world) publish(events ...ingest.Event) ([]store.AcceptResult, error) {
	return w.in.Publish(w.t.Context(), ingest.Request{Tenant: tenant, Events: events, Authorize: allow})
}

// The body is built once, of the very bytes that were published.
func TestEnvelope(t *testing.T) {
	for _, tc := range []struct {
		name  string
		event ingest.Event
		want  string
	}{
		{"all of it", ingest.Event{ID: "order_1", Type: "order.paid", Data: []byte(`{"n":1}`), Metadata: []byte(`{"k":"v"}`), Timestamp: time.Date(2020, 2, 3, 4, 5, 6, 7_000_000, time.UTC)},
			`{"id":"order_1","type":"order.paid","timestamp":"2020-02-03T04:05:06.007Z","data":{"n":1},"metadata":{"k":"v"}}`},
		{"no metadata, no timestamp", ingest.Event{ID: "a", Type: "t", Data: []byte(`null`)},
			`{"id":"a","type":"t","timestamp":"2026-03-01T11:00:00.123Z","data":null,"metadata":{}}`},
		{"the order of keys, and spaces", ingest.Event{ID: "a", Type: "t", Data: []byte("{ \"z\":1,\n\t\"a\" :2 }")},
			"{\"id\":\"a\",\"type\":\"t\",\"timestamp\":\"2026-03-01T11:00:00.123Z\",\"data\":{ \"z\":1,\n\t\"a\" :2 },\"metadata\":{}}"},
		{"numbers that no float holds", ingest.Event{ID: "a", Type: "t", Data: []byte(`[12345678901234567890123,1.10,1e400,-0]`)},
			`{"id":"a","type":"t","timestamp":"2026-03-01T11:00:00.123Z","data":[12345678901234567890123,1.10,1e400,-0],"metadata":{}}`},
		{"what others escape", ingest.Event{ID: "a", Type: "t", Data: []byte("\"<a href='x'>&\u2028\u2029/\\u003c\"")},
			"{\"id\":\"a\",\"type\":\"t\",\"timestamp\":\"2026-03-01T11:00:00.123Z\",\"data\":\"<a href='x'>&\u2028\u2029/\\u003c\",\"metadata\":{}}"},
		{"a timestamp of another zone, and finer", ingest.Event{ID: "a", Type: "t", Data: []byte(`1`), Timestamp: time.Date(2020, 1, 1, 1, 0, 0, 999_999, time.FixedZone("", 3600))},
			`{"id":"a","type":"t","timestamp":"2020-01-01T00:00:00.000Z","data":1,"metadata":{}}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			if _, err := w.publish(tc.event); err != nil {
				t.Fatal(err)
			}
			got := w.accepts[0].Events[0].Body
			if diff := cmp.Diff(tc.want, string(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if !json.Valid(got) {
				t.Error("it is not JSON")
			}
		})
	}
}

func TestEventWithoutAnIDGetsOne(t *testing.T) {
	w := newWorld(t)
	if _, err := w.publish(ingest.Event{Type: "t", Data: []byte(`1`)}); err != nil {
		t.Fatal(err)
	}
	e := w.accepts[0].Events[0]
	var body struct{ ID string }
	if err := json.Unmarshal(e.Body, &body); err != nil || body.ID != e.ID.String() || e.GivenID != "" || e.Hash != [32]byte{} {
		t.Errorf("%q in the body, %s and %q beside it, %v", body.ID, e.ID, e.GivenID, err)
	}
}

func TestWhoGetsIt(t *testing.T) {
	w := newWorld(t)
	w.webhook(1, "a.b")
	w.webhook(2, "a.*")
	w.webhook(3, "c")
	if _, err := w.publish(ingest.Event{ID: "1", Type: "a.b"}, ingest.Event{ID: "2", Type: "x"}); err != nil {
		t.Fatal(err)
	}
	a := w.accepts[0]
	var got []id.Webhook
	for _, d := range a.Events[0].Deliveries {
		got = append(got, d.Webhook)
		if d.Trigger != hook.TriggerAuto || d.ID.IsZero() {
			t.Errorf("%+v", d)
		}
	}
	if diff := cmp.Diff([]id.Webhook{{1}, {2}}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if len(a.Events[1].Deliveries) != 0 {
		t.Error("nobody wants the second; it is kept all the same")
	}
	if e := a.Events[0]; !e.ExpiresAt.Equal(e.Due.Add(time.Hour)) || a.MaxQueued != 77 || a.Key != nil {
		t.Errorf("%+v", a)
	}
	want := []string{"reserve 1 2", "reserve 2 0", "hand over 1", "hand over 2"}
	if diff := cmp.Diff(want, w.lines); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestPlacesGoBack(t *testing.T) {
	for _, tc := range []struct {
		name   string
		commit func(a *store.Accept) error
		want   []string
	}{
		{"of what was there already", func(a *store.Accept) error {
			a.Results = []store.AcceptResult{{Duplicate: true}, {}}
			return nil
		}, []string{"reserve 1 1", "reserve 2 1", "release 1", "hand over 2"}},
		{"of all that is refused", func(*store.Accept) error { return hook.Conflict("taken") },
			[]string{"reserve 1 1", "reserve 2 1", "release 1", "release 2"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.webhook(1, "*")
			w.commit = tc.commit
			_, _ = w.publish(ingest.Event{ID: "1", Type: "a"}, ingest.Event{ID: "2", Type: "a"}) // the places are looked at
			if diff := cmp.Diff(tc.want, w.lines); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// hashOf is what a request is recognized by.
func hashOf(t *testing.T, events ...ingest.Event) [32]byte {
	t.Helper()
	w := newWorld(t)
	if _, err := w.in.Publish(t.Context(), ingest.Request{Tenant: tenant, Key: "k", Events: events, Authorize: allow}); err != nil {
		t.Fatal(err)
	}
	key := w.accepts[0].Key
	if key.Key != "k" || !key.ExpiresAt.Equal(now.Truncate(time.Millisecond).Add(7*24*time.Hour)) {
		t.Errorf("%+v", key)
	}
	return key.Hash
}

func TestSameBody(t *testing.T) {
	event := func(change func(*ingest.Event)) []ingest.Event {
		e := ingest.Event{ID: "a", Type: "t", Data: []byte(`{"a":1}`), Metadata: []byte(`{}`), Timestamp: now}
		change(&e)
		return []ingest.Event{e}
	}
	base := event(func(*ingest.Event) {})
	for _, tc := range []struct {
		name   string
		events []ingest.Event
		same   bool
	}{
		{"the same", base, true},
		{"the same moment in another zone", event(func(e *ingest.Event) { e.Timestamp = now.UTC() }), true},
		{"another id: the store compares those", event(func(e *ingest.Event) { e.ID = "b" }), true},
		{"another type", event(func(e *ingest.Event) { e.Type = "u" }), false},
		{"other data", event(func(e *ingest.Event) { e.Data = []byte(`{"a":2}`) }), false},
		{"the same data, written otherwise", event(func(e *ingest.Event) { e.Data = []byte(`{"a": 1}`) }), false},
		{"no metadata", event(func(e *ingest.Event) { e.Metadata = nil }), false},
		{"another moment", event(func(e *ingest.Event) { e.Timestamp = now.Add(time.Nanosecond) }), false},
		{"no timestamp", event(func(e *ingest.Event) { e.Timestamp = time.Time{} }), false},
		{"twice", append(slices.Clone(base), base...), false},
		{"a byte that moved from one part to the next", event(func(e *ingest.Event) { e.Type, e.Data = `t{`, []byte(`"a":1}`) }), false},
	} {
		if got := hashOf(t, tc.events...) == hashOf(t, base...); got != tc.same {
			t.Errorf("%s: the same %t, want %t", tc.name, got, tc.same)
		}
	}
}

// When the configuration moved, events are matched again with the new one, the
// places of the first time go back, and the caller is asked for again.
func TestConfigurationMoves(t *testing.T) {
	w := newWorld(t)
	w.webhook(1, "*")
	if _, err := w.publish(ingest.Event{ID: "0", Type: "a"}); err != nil {
		t.Fatal(err)
	}
	w.lines = nil
	w.webhook(2, "*") // by another node: this catalogue does not know
	asked := 0
	_, err := w.in.Publish(t.Context(), ingest.Request{Tenant: tenant, Events: []ingest.Event{{ID: "1", Type: "a"}}, Authorize: func(*catalog.Snapshot) error {
		asked++
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"reserve 1 1", "release 1", "reserve 1 2", "hand over 1"}
	if diff := cmp.Diff(want, w.lines); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if asked != 2 {
		t.Errorf("authorized %d times, want 2", asked)
	}
}

func TestRevokedCredentialPublishesNothing(t *testing.T) {
	w := newWorld(t)
	w.webhook(1, "*")
	if _, err := w.catalog.Tenant(t.Context(), tenant); err != nil {
		t.Fatal(err)
	}
	w.config.Version++ // the key is revoked elsewhere
	revoked := &hook.Error{Code: hook.CodeUnauthorized, Message: "Invalid or expired API key"}
	results, err := w.in.Publish(t.Context(), ingest.Request{Tenant: tenant, Events: []ingest.Event{{ID: "1", Type: "a"}}, Authorize: func(s *catalog.Snapshot) error {
		if s.Version == w.config.Version {
			return revoked
		}
		return nil
	}})
	if !errors.Is(err, revoked) || results != nil {
		t.Errorf("%v, %v", results, err)
	}
	if diff := cmp.Diff([]string{"reserve 1 1", "release 1"}, w.lines); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, a := range w.accepts {
		if a.Err == nil {
			t.Error("it was written")
		}
	}
}

func TestTestSend(t *testing.T) {
	attempt := &hook.Attempt{StatusCode: 204}
	for _, tc := range []struct {
		name    string
		webhook byte
		attempt *hook.Attempt
		gone    bool // deleted once it is handed over
		want    hook.Code
	}{
		{"answers the attempt", 1, attempt, false, ""},
		{"to an unknown webhook", 9, nil, false, hook.CodeNotFound},
		{"that was not sent", 1, nil, false, hook.CodeUnavailable},
		{"whose webhook is deleted meanwhile", 1, nil, true, hook.CodeNotFound},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.webhook(1, "other")
			w.attempt = tc.attempt
			w.commit = func(*store.Accept) error {
				if tc.gone {
					w.config.Version++
					w.config.Webhooks = nil
					w.catalog.DeleteWebhook(w.config.Version, tenant, id.Webhook{1})
				}
				return nil
			}
			delivery, a, err := w.in.Test(t.Context(), tenant, id.Webhook{tc.webhook}, allow)
			if tc.want != "" {
				if err == nil || hook.CodeOf(err) != tc.want {
					t.Fatalf("%v, want %s", err, tc.want)
				}
				return
			}
			if err != nil || a != attempt || len(w.watches) != 0 {
				t.Fatalf("%v, %v, %d watches left", a, err, len(w.watches))
			}
			e := w.accepts[0].Events[0]
			want := []store.NewDelivery{{ID: delivery, Webhook: id.Webhook{1}, Trigger: hook.TriggerTest}}
			if diff := cmp.Diff(want, e.Deliveries); diff != "" || e.Type != "webhook.test" || !json.Valid(e.Body) {
				t.Errorf("%s %s\n%s", e.Type, e.Body, diff)
			}
		})
	}
}

func TestTooManyTestsAreRefused(t *testing.T) {
	w := newWorld(t)
	w.full = true
	_, _, err := w.in.Test(t.Context(), tenant, id.Webhook{1}, allow)
	if e, ok := errors.AsType[*hook.Error](err); !ok || e.Code != hook.CodeRateLimited || e.RetryAfter <= 0 {
		t.Errorf("refused with %v", err)
	}
	if len(w.lines) > 0 {
		t.Errorf("it did something: %v", w.lines)
	}
}
