package catalog_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/plinqx/hypha/internal/catalog"
	"github.com/plinqx/hypha/internal/contain"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/seal"
	"github.com/plinqx/hypha/internal/store"
)

var (
	tenant = id.Tenant{1}
	noon   = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
)

// source is a store that holds one tenant.
type source struct {
	mu     sync.Mutex
	config store.TenantConfig
	err    error
	reads  int
}

func (s *source) TenantConfig(_ context.Context, t id.Tenant) (*store.TenantConfig, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	if s.err != nil {
		return nil, s.err
	}
	if t != tenant {
		return nil, hook.NotFound("Tenant")
	}
	c := s.config
	c.Webhooks, c.Keys = slices.Clone(c.Webhooks), slices.Clone(c.Keys)
	return &c, nil
}

func newBox(t interface{ Fatal(...any) }) *seal.Ring {
	box, err := seal.New(bytes.Repeat([]byte{7}, seal.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	return box
}

func webhook(n byte) *hook.Webhook {
	return &hook.Webhook{
		ID: id.Webhook{n}, Tenant: tenant, Revision: 1, Name: fmt.Sprintf("w%d", n), Enabled: true, Events: []string{"a.*"},
		Headers: map[string]string{"X-Api-Key": fmt.Sprintf("key-%d", n)}, Secrets: []hook.Secret{{Value: "new"}, {Value: "old", Until: noon}},
	}
}

// world is a store, a catalogue over it, and changes that the store took and
// the catalogue has not been told of yet.
type world struct {
	*source
	catalog *catalog.Catalog
	// states are what the store held at each version.
	states map[int64]state
	untold []func()
}

type state struct {
	webhooks map[id.Webhook]string // name and enabled
	keys     map[id.Key]string
}

func newWorld(t interface{ Fatal(...any) }) *world {
	w := &world{source: &source{config: store.TenantConfig{Tenant: hook.Tenant{ID: tenant, Name: "one"}, Version: 1}}, states: make(map[int64]state)}
	w.catalog = catalog.New(w.source, newBox(t))
	w.note()
	return w
}

func (w *world) note() {
	s := state{make(map[id.Webhook]string), make(map[id.Key]string)}
	for _, row := range w.config.Webhooks {
		s.webhooks[row.ID] = fmt.Sprintf("%s %t", row.Name, row.Enabled)
	}
	for _, k := range w.config.Keys {
		s.keys[k.ID] = k.Name
	}
	w.states[w.config.Version] = s
}

// take is the store's part of a change: it makes a version of it.
func (w *world) take(edit func()) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	edit()
	w.config.Version++
	w.note()
	return w.config.Version
}

func (w *world) putWebhook(t interface{ Fatal(...any) }, hk *hook.Webhook) {
	row, err := w.catalog.Seal(hk)
	if err != nil {
		t.Fatal(err)
	}
	version := w.take(func() {
		w.config.Webhooks = slices.DeleteFunc(w.config.Webhooks, func(r store.WebhookRow) bool { return r.ID == hk.ID })
		w.config.Webhooks = append(w.config.Webhooks, row)
	})
	w.untold = append(w.untold, func() { w.catalog.PutWebhook(version, hk) })
}

func (w *world) deleteWebhook(n id.Webhook) {
	version := w.take(func() {
		w.config.Webhooks = slices.DeleteFunc(w.config.Webhooks, func(r store.WebhookRow) bool { return r.ID == n })
	})
	w.untold = append(w.untold, func() { w.catalog.DeleteWebhook(version, tenant, n) })
}

func (w *world) putKey(k store.KeyRow) {
	version := w.take(func() {
		w.config.Keys = slices.DeleteFunc(w.config.Keys, func(r store.KeyRow) bool { return r.ID == k.ID })
		w.config.Keys = append(w.config.Keys, k)
	})
	w.untold = append(w.untold, func() { w.catalog.PutKey(version, k) })
}

func (w *world) deleteKey(k id.Key) {
	version := w.take(func() {
		w.config.Keys = slices.DeleteFunc(w.config.Keys, func(r store.KeyRow) bool { return r.ID == k })
	})
	w.untold = append(w.untold, func() { w.catalog.DeleteKey(version, tenant, k) })
}

func stateOf(s *catalog.Snapshot) state {
	out := state{make(map[id.Webhook]string), make(map[id.Key]string)}
	for _, h := range s.Webhooks() {
		out.webhooks[h.ID] = fmt.Sprintf("%s %t", h.Name, h.Enabled)
	}
	for _, k := range s.Keys() {
		out.keys[k.ID] = k.Name
	}
	return out
}

// A snapshot of a version holds what the store held at that version, in whatever
// order changes are told and the tenant is read; and when all has been told, it
// is the newest.
func TestSnapshotsAreWhatTheStoreHeld(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		look := func() *catalog.Snapshot {
			s, err := w.catalog.Tenant(t.Context(), tenant)
			if err != nil {
				t.Fatal(err)
			}
			if diff := gocmp.Diff(w.states[s.Version], stateOf(s), gocmp.AllowUnexported(state{})); diff != "" {
				t.Fatalf("version %d (-store +snapshot):\n%s", s.Version, diff)
			}
			for _, h := range s.Webhooks() {
				if same, ok := s.Webhook(h.ID); !ok || same != h {
					t.Fatal("the list and the map differ")
				}
				if got := slices.Contains(s.Match("a.b"), h); got != h.Enabled {
					t.Fatalf("%s wants the event: %t", h.Name, got)
				}
			}
			return s
		}
		number := rapid.ByteRange(1, 4)
		name := rapid.StringN(1, 3, -1)
		t.Repeat(map[string]func(*rapid.T){
			"look": func(*rapid.T) { look() },
			"put webhook": func(t *rapid.T) {
				h := webhook(number.Draw(t, "n"))
				h.Name, h.Enabled = name.Draw(t, "name"), rapid.Bool().Draw(t, "enabled")
				w.putWebhook(t, h)
			},
			"delete webhook": func(t *rapid.T) { w.deleteWebhook(id.Webhook{number.Draw(t, "n")}) },
			"put key": func(t *rapid.T) {
				w.putKey(store.KeyRow{APIKey: hook.APIKey{ID: id.Key{number.Draw(t, "n")}, Tenant: tenant, Name: name.Draw(t, "name")}})
			},
			"delete key": func(t *rapid.T) { w.deleteKey(id.Key{number.Draw(t, "n")}) },
			"tell": func(t *rapid.T) {
				if len(w.untold) == 0 {
					t.SkipNow()
				}
				i := rapid.IntRange(0, len(w.untold)-1).Draw(t, "which")
				w.untold[i]()
				w.untold = slices.Delete(w.untold, i, i+1)
			},
			"pause": func(t *rapid.T) { w.catalog.Pause(tenant, id.Webhook{number.Draw(t, "n")}, noon) },
			"refresh": func(t *rapid.T) {
				held := look().Version
				s, err := w.catalog.Refresh(t.Context(), tenant, held)
				if err != nil {
					t.Fatal(err)
				}
				if s.Version != w.config.Version && s.Version <= held {
					t.Fatalf("refreshed to %d, had %d, the store has %d", s.Version, held, w.config.Version)
				}
			},
		})
		for _, tell := range w.untold {
			tell()
		}
		if s := look(); s.Version != w.config.Version {
			t.Fatalf("version %d, and the store has %d", s.Version, w.config.Version)
		}
	})
}

func TestNothingIsReadTwice(t *testing.T) {
	w := newWorld(t)
	for range 3 {
		if _, err := w.catalog.Tenant(t.Context(), tenant); err != nil {
			t.Fatal(err)
		}
		w.putWebhook(t, webhook(1))
		w.untold[len(w.untold)-1]()
	}
	if w.reads != 1 {
		t.Errorf("the store was read %d times", w.reads)
	}
}

// Many that ask at once make one read, and the race detector finds nothing.
func TestConcurrentUse(t *testing.T) {
	w := newWorld(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if _, err := w.catalog.Tenant(t.Context(), tenant); err != nil {
				t.Error(err)
			}
			w.catalog.Pause(tenant, id.Webhook{byte(i)}, noon)
			w.catalog.PutWebhook(2, webhook(byte(i)))
			w.catalog.Held(tenant, id.Webhook{1})
		})
	}
	wg.Wait()
	if w.reads != 1 {
		t.Errorf("the store was read %d times", w.reads)
	}
}

func TestErrors(t *testing.T) {
	w := newWorld(t)
	if _, err := w.catalog.Tenant(t.Context(), id.Tenant{9}); hook.CodeOf(err) != hook.CodeNotFound {
		t.Errorf("an unknown tenant: %v", err)
	}
	w.err = hook.Unavailable(time.Second, nil, "away")
	if _, err := w.catalog.Webhook(t.Context(), tenant, id.Webhook{1}); hook.CodeOf(err) != hook.CodeUnavailable {
		t.Errorf("a store that is away: %v", err)
	}
	w.err = nil
	if _, err := w.catalog.Webhook(t.Context(), tenant, id.Webhook{1}); hook.CodeOf(err) != hook.CodeNotFound {
		t.Errorf("an unknown webhook: %v", err)
	}
	w.catalog.DeleteTenant(tenant)
	w.err = hook.NotFound("Tenant")
	if _, err := w.catalog.Tenant(t.Context(), tenant); hook.CodeOf(err) != hook.CodeNotFound {
		t.Errorf("a deleted tenant: %v", err)
	}
}

func TestHeldAsksNobody(t *testing.T) {
	w := newWorld(t)
	w.putWebhook(t, webhook(1))
	if _, ok := w.catalog.Held(tenant, id.Webhook{1}); ok || w.reads != 0 {
		t.Errorf("held %t after %d reads", ok, w.reads)
	}
	if _, err := w.catalog.Tenant(t.Context(), tenant); err != nil {
		t.Fatal(err)
	}
	if h, ok := w.catalog.Held(tenant, id.Webhook{1}); !ok || h == nil {
		t.Error("it is in memory now")
	}
	if h, ok := w.catalog.Held(tenant, id.Webhook{2}); !ok || h != nil {
		t.Error("the tenant is in memory, and has no such webhook")
	}
}

func TestPauses(t *testing.T) {
	w := newWorld(t)
	w.putWebhook(t, webhook(1))
	before, err := w.catalog.Tenant(t.Context(), tenant)
	if err != nil {
		t.Fatal(err)
	}
	old, _ := before.Webhook(id.Webhook{1})
	changed := *old
	changed.Name, changed.Revision = "renamed", 2 // read before the pause, told after it
	w.catalog.Pause(tenant, old.ID, noon)
	w.putWebhook(t, &changed)
	w.untold[1]()
	got, err := w.catalog.Webhook(t.Context(), tenant, old.ID)
	if err != nil || got.Name != "renamed" || !got.PausedUntil.Equal(noon) {
		t.Errorf("%+v, %v: want both the name and the pause", got, err)
	}
	if !old.PausedUntil.IsZero() || old.Name != "w1" {
		t.Error("a snapshot changed under its reader")
	}
}

// What observers are told is what they can read.
func TestObserversSeeTheChange(t *testing.T) {
	w := newWorld(t)
	seen := observer{c: w.catalog}
	w.catalog.Observe(&seen)
	if _, err := w.catalog.Tenant(t.Context(), tenant); err != nil {
		t.Fatal(err)
	}
	w.putWebhook(t, webhook(1))
	w.untold[0]()
	w.catalog.Pause(tenant, id.Webhook{1}, noon)
	w.deleteWebhook(id.Webhook{1})
	w.untold[1]()
	want := []string{"w1 paused false", "w1 paused true", "gone"}
	if diff := gocmp.Diff(want, seen.lines); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// breaking is an observer that panics.
type breaking struct{}

func (breaking) WebhookChanged(id.Tenant, id.Webhook) { panic("whatever it is") }

// An observer that panics harms neither whoever changes something nor the others.
func TestObserverPanics(t *testing.T) {
	w := newWorld(t)
	counted := 0
	w.catalog.Contain(contain.New(contain.Options{
		Logger: slog.New(slog.DiscardHandler), Counted: func(contain.Where) { counted++ }, End: func() { t.Error("the process ends") },
	}))
	seen := observer{c: w.catalog}
	w.catalog.Observe(breaking{})
	w.catalog.Observe(&seen)
	if _, err := w.catalog.Tenant(t.Context(), tenant); err != nil {
		t.Fatal(err)
	}
	w.putWebhook(t, webhook(1))
	w.deleteWebhook(id.Webhook{1})
	w.untold[0]()
	w.untold[1]()
	if len(seen.lines) != 2 || counted != 2 {
		t.Errorf("the other one saw %q; counted %d", seen.lines, counted)
	}
}

type observer struct {
	c     *catalog.Catalog
	lines []string
}

func (o *observer) WebhookChanged(t id.Tenant, webhook id.Webhook) {
	h, err := o.c.Webhook(context.Background(), t, webhook)
	if err != nil {
		o.lines = append(o.lines, "gone")
		return
	}
	o.lines = append(o.lines, fmt.Sprintf("%s paused %t", h.Name, !h.PausedUntil.IsZero()))
}

func TestSealedWithItsWebhook(t *testing.T) {
	c := catalog.New(&source{}, newBox(t))
	h := webhook(1)
	h.Secrets[0].CreatedAt = noon
	h.Signatures = []hook.SignatureVersion{hook.SignatureV1, hook.SignatureV1a}
	h.SigningKeys = []hook.SigningKey{{ID: "b", Public: "whpk_b", Private: "whsk_key-1b", CreatedAt: noon}, {ID: "a", Public: "whpk_a", Private: "whsk_key-1a", Until: noon}}
	row, err := c.Seal(h)
	if err != nil {
		t.Fatal(err)
	}
	if row.Headers != nil || row.Secrets != nil || row.Signatures != nil || row.SigningKeys != nil || strings.Contains(string(row.Sealed), "key-1") {
		t.Error("a secret is in the row as it is")
	}
	back, err := c.Open(&row)
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(h, back); diff != "" {
		t.Errorf("(-sealed +opened):\n%s", diff)
	}
	for name, moved := range map[string]func(*store.WebhookRow){
		"another tenant's row":  func(r *store.WebhookRow) { r.Tenant = id.Tenant{2} },
		"another webhook's row": func(r *store.WebhookRow) { r.ID = id.Webhook{2} },
		"a damaged row":         func(r *store.WebhookRow) { r.Sealed = append(slices.Clone(r.Sealed), 0) },
	} {
		r := row
		moved(&r)
		if _, err := c.Open(&r); !errors.Is(err, seal.ErrOpen) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What was sealed before webhooks had keys is read as it was meant.
func TestOpensOldRows(t *testing.T) {
	box := newBox(t)
	h := webhook(1)
	sealed, err := box.Seal([]byte(`{"headers":{"X-Api-Key":"key-1"},"secrets":[{"value":"new"},{"value":"old","until":"`+noon.Format(time.RFC3339)+`"}]}`), append(h.Tenant[:], h.ID[:]...))
	if err != nil {
		t.Fatal(err)
	}
	row := store.WebhookRow{Webhook: *h, Sealed: sealed}
	row.Headers, row.Secrets = nil, nil
	back, err := catalog.New(&source{}, box).Open(&row)
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(h, back); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSigningKeysOfAllWebhooks(t *testing.T) {
	w := newWorld(t)
	if _, ok := w.catalog.HeldTenant(tenant); ok {
		t.Error("a tenant is held that nobody asked for")
	}
	for n, keys := range map[byte]string{1: "d", 2: "ac", 3: "", 4: "b"} {
		h := webhook(n)
		for _, k := range keys {
			h.SigningKeys = append(h.SigningKeys, hook.SigningKey{ID: string(k)})
		}
		w.putWebhook(t, h)
	}
	s, err := w.catalog.Tenant(t.Context(), tenant)
	if err != nil {
		t.Fatal(err)
	}
	ids := ""
	for _, k := range s.SigningKeys() {
		ids += k.ID
	}
	if ids != "abcd" {
		t.Errorf("keys %s, want abcd", ids)
	}
	if held, ok := w.catalog.HeldTenant(tenant); !ok || held != s {
		t.Error("the tenant is not held")
	}
	if _, ok := w.catalog.HeldTenant(id.Tenant{9}); ok {
		t.Error("a tenant is held that there is not")
	}
}

func TestListsAreInTheOrderOfMaking(t *testing.T) {
	w := newWorld(t)
	for _, n := range []byte{3, 1, 2} {
		w.putWebhook(t, webhook(n))
		w.putKey(store.KeyRow{APIKey: hook.APIKey{ID: id.Key{n}, Tenant: tenant}})
	}
	s, err := w.catalog.Tenant(t.Context(), tenant)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.IsSortedFunc(s.Webhooks(), func(a, b *hook.Webhook) int { return a.ID.Compare(b.ID) }) || len(s.Match("a.b")) != 3 {
		t.Error("webhooks are not in order")
	}
	if !slices.IsSortedFunc(s.Keys(), func(a, b store.KeyRow) int { return cmp.Compare(a.ID[0], b.ID[0]) }) {
		t.Error("keys are not in order")
	}
	if _, ok := s.Key(id.Key{2}); !ok || len(s.Keys()) != 3 {
		t.Error("a key is missing")
	}
}
