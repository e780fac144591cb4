package registry_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/plinqx/hypha/internal/catalog"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/registry"
	"github.com/plinqx/hypha/internal/store"
)

var (
	tenant = id.Tenant{1}
	start  = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
)

// disk is the store, as far as the registry needs it.
type disk struct {
	mu      sync.Mutex
	version int64
	rows    map[id.Webhook]store.WebhookRow
	writes  int
	// before is called before each write of a webhook: somebody else is faster.
	before func()
	jobs   []id.Replay
}

func (d *disk) TenantConfig(_ context.Context, t id.Tenant) (*store.TenantConfig, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if t != tenant {
		return nil, hook.NotFound("Tenant")
	}
	return &store.TenantConfig{Tenant: hook.Tenant{ID: t}, Version: d.version, Webhooks: slices.Collect(maps.Values(d.rows))}, nil
}

func (d *disk) put(w store.WebhookRow) int64 {
	d.version++
	d.writes++
	d.rows[w.ID] = w
	return d.version
}

func (d *disk) InsertWebhook(_ context.Context, w store.WebhookRow) (int64, error) {
	for range 100 { // it takes a while
		runtime.Gosched()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.put(w), nil
}

func (d *disk) UpdateWebhook(_ context.Context, w store.WebhookRow) (int64, error) {
	if f := d.before; f != nil {
		d.before = nil
		f()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	held, ok := d.rows[w.ID]
	if !ok {
		return 0, hook.NotFound("Webhook")
	}
	if held.Revision != w.Revision-1 {
		return 0, store.ErrConfigMoved
	}
	return d.put(w), nil
}

func (d *disk) DeleteWebhook(_ context.Context, p store.DeleteWebhookParams) (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.rows[p.Webhook]; !ok {
		return 0, hook.NotFound("Webhook")
	}
	delete(d.rows, p.Webhook)
	d.version++
	return d.version, nil
}

func (d *disk) SetPause(_ context.Context, _ id.Tenant, webhook id.Webhook, until time.Time) error {
	runtime.Gosched() // room for somebody else to be faster
	d.mu.Lock()
	defer d.mu.Unlock()
	w, ok := d.rows[webhook]
	if !ok {
		return hook.NotFound("Webhook")
	}
	w.PausedUntil = until
	d.rows[webhook] = w
	return nil
}

type open struct{}

func (open) Seal(plain, _ []byte) ([]byte, error)  { return plain, nil }
func (open) Open(sealed, _ []byte) ([]byte, error) { return sealed, nil }

// urls takes any URL of https.
type urls struct{}

func (urls) CheckURL(raw string) (*url.URL, error) {
	if !strings.HasPrefix(raw, "https://") {
		return nil, errors.New("must be https here")
	}
	return url.Parse(raw)
}

type rig struct {
	*registry.Registry
	disk    *disk
	catalog *catalog.Catalog
}

func newRig() *rig {
	r := &rig{disk: &disk{rows: make(map[id.Webhook]store.WebhookRow)}}
	r.catalog = catalog.New(r.disk, open{})
	r.Registry = r.another(r.catalog)
	return r
}

// another is a registry of another process, with a catalogue of its own.
func (r *rig) another(c *catalog.Catalog) *registry.Registry {
	return registry.New(registry.Options{
		Store: r.disk, Catalog: c, URLs: urls{}, HeaderPrefix: "X-Plinqx", MaxWebhooks: 3, Now: func() time.Time { return start },
		Discard: func(_ id.Tenant, job id.Replay) { r.disk.jobs = append(r.disk.jobs, job) },
	})
}

func valid() registry.Change {
	return registry.Change{Name: new("one"), URL: new("https://example.com/"), Events: &[]string{"a.b"}}
}

func (r *rig) create(t *testing.T, c registry.Change) *registry.Created {
	t.Helper()
	got, err := r.Create(t.Context(), tenant, c)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

const secret = "a-secret-of-sixteen"

func TestRules(t *testing.T) {
	many := func(n int) *[]string {
		var events []string
		for i := range n {
			events = append(events, fmt.Sprintf("a.e%d", i))
		}
		return &events
	}
	for _, tc := range []struct {
		name   string
		change registry.Change
		wrong  []string // paths
	}{
		{"a name", registry.Change{Name: new("Billing — prod ✓")}, nil},
		{"a name of 255 characters", registry.Change{Name: new(strings.Repeat("é", 255))}, nil},
		{"a name of 256", registry.Change{Name: new(strings.Repeat("é", 256))}, []string{"name"}},
		{"no name", registry.Change{Name: new("")}, []string{"name"}},
		{"a name of spaces", registry.Change{Name: new(" \u00a0 ")}, []string{"name"}},
		{"a name of two lines", registry.Change{Name: new("a\nb")}, []string{"name"}},
		{"a name that turns what follows around", registry.Change{Name: new("a\u202eb")}, []string{"name"}},
		{"a name that is not UTF-8", registry.Change{Name: new("a\xff")}, []string{"name"}},
		{"an empty description", registry.Change{Description: new("")}, nil},
		{"a description of two lines", registry.Change{Description: new("a\n\tb")}, nil},
		{"a description that rings", registry.Change{Description: new("a\ab")}, []string{"description"}},
		{"a description of 4,097 characters", registry.Change{Description: new(strings.Repeat("x", 4097))}, []string{"description"}},
		{"a URL that may not be called", registry.Change{URL: new("http://10.0.0.1/")}, []string{"url"}},
		{"exact types, a prefix, all", registry.Change{Events: &[]string{"a", "a-b.c_d", "a.*", "*"}}, nil},
		{"a hundred types", registry.Change{Events: many(100)}, nil},
		{"a hundred and one", registry.Change{Events: many(101)}, []string{"events"}},
		{"no types", registry.Change{Events: &[]string{}}, []string{"events"}},
		{"types that are none", registry.Change{Events: &[]string{"", "a..b", "a.", ".a", "ü", "a*", "*.a", "a b", strings.Repeat("x", 129)}},
			[]string{"events[0]", "events[1]", "events[2]", "events[3]", "events[4]", "events[5]", "events[6]", "events[7]", "events[8]"}},
		{"a type twice", registry.Change{Events: &[]string{"a", "b", "a"}}, []string{"events[2]"}},
		{"a secret of 16 characters", registry.Change{Secret: new("0123456789abcdef")}, nil},
		{"of 15", registry.Change{Secret: new("0123456789abcde")}, []string{"secret"}},
		{"of 257", registry.Change{Secret: new(strings.Repeat("x", 257))}, []string{"secret"}},
		{"whsec_ and 24 bytes", registry.Change{Secret: new("whsec_" + strings.Repeat("AAAA", 8))}, nil},
		{"whsec_ and 21 bytes", registry.Change{Secret: new("whsec_" + strings.Repeat("AAAA", 7))}, []string{"secret"}},
		{"whsec_ and no base64", registry.Change{Secret: new("whsec_!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!")}, []string{"secret"}},
		{"a private key", registry.Change{Secret: new("whsk_" + strings.Repeat("AAAA", 8))}, []string{"secret"}},
		{"a public key", registry.Change{Secret: new("whpk_" + strings.Repeat("AAAA", 8))}, []string{"secret"}},
		{"a masked secret", registry.Change{Secret: new("whsec_****************")}, []string{"secret"}},
		{"a secret with a control character", registry.Change{Secret: new("0123456789abcdef\n")}, []string{"secret"}},
		{"a second", registry.Change{TimeoutMS: new(int64(1000))}, nil},
		{"less", registry.Change{TimeoutMS: new(int64(999))}, []string{"timeoutMs"}},
		{"a minute", registry.Change{TimeoutMS: new(int64(60_000))}, nil},
		{"more", registry.Change{TimeoutMS: new(int64(60_001))}, []string{"timeoutMs"}},
		{"more than a duration holds", registry.Change{TimeoutMS: new(int64(1) << 62)}, []string{"timeoutMs"}},
		{"headers of its own", registry.Change{Headers: &map[string]string{"X-Tag": "a b", "Authorization": "Bearer x"}}, nil},
		{"headers that are ours", registry.Change{Headers: &map[string]string{"X-Plinqx-Event": "x", "webhook-id": "x", "Idempotency-Key": "x"}},
			[]string{"headers.Idempotency-Key", "headers.X-Plinqx-Event", "headers.webhook-id"}},
		{"a header of two lines", registry.Change{Headers: &map[string]string{"X-Tag": "a\r\nb: c"}}, []string{"headers.X-Tag"}},
		{"a mask that stands for nothing", registry.Change{Headers: &map[string]string{"X-Api-Key": registry.Masked}}, []string{"headers.X-Api-Key"}},
		{"asterisks that are no mask", registry.Change{Headers: &map[string]string{"X-Rating": registry.Masked}}, nil},
		{"a pause of a year", registry.Change{PausedUntil: new(start.Add(365 * 24 * time.Hour))}, nil},
		{"a longer one", registry.Change{PausedUntil: new(start.Add(366 * 24 * time.Hour))}, []string{"pausedUntil"}},
		{"v1", registry.Change{Signatures: &[]string{"v1"}}, nil},
		{"both versions", registry.Change{Signatures: &[]string{"v1a", "v1"}}, nil},
		{"no version", registry.Change{Signatures: &[]string{}}, []string{"signatures"}},
		{"an unknown version, and one twice", registry.Change{Signatures: &[]string{"v1", "V1A", "v1", "v2"}}, []string{"signatures[1]", "signatures[2]", "signatures[3]"}},
		{"all at once", registry.Change{Name: new(""), URL: new("x"), Events: &[]string{}, TimeoutMS: new(int64(0)), Secret: new("x")},
			[]string{"events", "name", "secret", "timeoutMs", "url"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig()
			w := r.create(t, valid()).Webhook
			written := r.disk.writes
			_, err := r.Update(t.Context(), tenant, w.ID, tc.change)
			if diff := cmp.Diff(tc.wrong, paths(err)); diff != "" {
				t.Fatalf("(-want +got):\n%s\n%v", diff, err)
			}
			if tc.wrong != nil && r.disk.writes != written {
				t.Error("it was written all the same")
			}
		})
	}
}

// paths are where a validation error says that something is wrong.
func paths(err error) []string {
	var e *hook.Error
	if !errors.As(err, &e) {
		return nil
	}
	var out []string
	for _, d := range e.Details {
		out = append(out, d.Path)
	}
	return out
}

func TestCreate(t *testing.T) {
	r := newRig()
	got := r.create(t, valid())
	w := got.Webhook
	if w.Revision != 1 || !w.Enabled || w.Timeout != 30*time.Second || !w.CreatedAt.Equal(start) || w.DisabledReason != "" {
		t.Errorf("%+v", w)
	}
	if !strings.HasPrefix(got.Secret, "whsec_") || w.Secrets[0].Value != got.Secret {
		t.Errorf("made the secret %q", got.Secret)
	}
	c := valid()
	c.Secret = new(secret)
	if got := r.create(t, c); got.Secret != "" || got.Webhook.Secrets[0].Value != secret {
		t.Error("a secret that was given is not told again")
	}
	_, err := r.Create(t.Context(), tenant, registry.Change{Enabled: new(false)})
	if diff := cmp.Diff([]string{"events", "name", "url"}, paths(err)); diff != "" {
		t.Errorf("what is required (-want +got):\n%s", diff)
	}
	c = valid()
	c.Enabled = new(false)
	if w := r.create(t, c).Webhook; w.Enabled || w.DisabledReason != hook.DisabledManual {
		t.Errorf("%+v", w)
	}
	if _, err := r.Create(t.Context(), tenant, valid()); hook.CodeOf(err) != hook.CodeConflict {
		t.Errorf("a fourth of three: %v", err)
	}
	list, err := r.List(t.Context(), tenant)
	if err != nil || len(list) != 3 || list[0] != w {
		t.Errorf("%d webhooks, %v", len(list), err)
	}
}

// All at once, they are no more than one after the other.
func TestCreatesDoNotPassTheLimitTogether(t *testing.T) {
	r := newRig()
	var wg sync.WaitGroup
	var made, refused atomic.Int64
	for range 40 {
		wg.Go(func() {
			switch _, err := r.Create(context.Background(), tenant, valid()); {
			case err == nil:
				made.Add(1)
			case hook.CodeOf(err) == hook.CodeConflict:
				refused.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if made.Load() != 3 || refused.Load() != 37 {
		t.Errorf("%d were made and %d refused; three are allowed", made.Load(), refused.Load())
	}
}

func TestUpdate(t *testing.T) {
	r := newRig()
	c := valid()
	c.Headers = &map[string]string{"X-Api-Key": "k1", "X-Tag": "t"}
	c.Secret = new(secret)
	w := r.create(t, c).Webhook

	same, err := r.Update(t.Context(), tenant, w.ID, registry.Change{Name: new("one"), Enabled: new(true), Secret: new(secret)})
	if err != nil || same.Revision != 1 || r.disk.writes != 1 {
		t.Errorf("a change of nothing made revision %d, %v", same.Revision, err)
	}
	got, err := r.Update(t.Context(), tenant, w.ID, registry.Change{Name: new("two")})
	if err != nil || got.Revision != 2 || got.Name != "two" || got.URL != w.URL || w.Name != "one" {
		t.Errorf("%+v, %v; before %+v", got, err, w)
	}

	// Headers as an answer shows them, with one more.
	shown := registry.MaskHeaders(got.Headers)
	if diff := cmp.Diff(map[string]string{"X-Api-Key": "****", "X-Tag": "t"}, shown); diff != "" {
		t.Errorf("shown (-want +got):\n%s", diff)
	}
	shown["X-More"] = "m"
	got, err = r.Update(t.Context(), tenant, w.ID, registry.Change{Headers: &shown})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"X-Api-Key": "k1", "X-Tag": "t", "X-More": "m"}, got.Headers); diff != "" {
		t.Errorf("sent back (-want +got):\n%s", diff)
	}
	// The name in another case is the same header still.
	got, err = r.Update(t.Context(), tenant, w.ID, registry.Change{Headers: &map[string]string{"x-api-key": "****"}})
	if err != nil || got.Headers["x-api-key"] != "k1" {
		t.Errorf("%v, %v", got.Headers, err)
	}

	got, err = r.Update(t.Context(), tenant, w.ID, registry.Change{Enabled: new(false)})
	if err != nil || got.Enabled || got.DisabledReason != hook.DisabledManual {
		t.Errorf("%+v, %v", got, err)
	}
	if err := r.Disable(t.Context(), tenant, w.ID, hook.DisabledGone); err != nil {
		t.Fatal(err)
	}
	if got, _ = r.Get(t.Context(), tenant, w.ID); got.DisabledReason != hook.DisabledManual {
		t.Errorf("disabled again, now because %q", got.DisabledReason)
	}
	got, err = r.Update(t.Context(), tenant, w.ID, registry.Change{Enabled: new(true)})
	if err != nil || !got.Enabled || got.DisabledReason != "" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := r.Update(t.Context(), id.Tenant{2}, w.ID, registry.Change{Name: new("mine")}); hook.CodeOf(err) != hook.CodeNotFound {
		t.Errorf("of another tenant: %v", err)
	}
}

// Two processes change the same webhook: neither's change is lost.
func TestConfigurationMoves(t *testing.T) {
	r := newRig()
	w := r.create(t, valid()).Webhook
	other := r.another(catalog.New(r.disk, open{}))
	if _, err := r.Get(t.Context(), tenant, w.ID); err != nil {
		t.Fatal(err)
	}
	r.disk.before = func() {
		if _, err := other.Update(t.Context(), tenant, w.ID, registry.Change{Description: new("theirs")}); err != nil {
			t.Error(err)
		}
	}
	got, err := r.Update(t.Context(), tenant, w.ID, registry.Change{Name: new("mine")})
	if err != nil || got.Name != "mine" || got.Description != "theirs" || got.Revision != 3 {
		t.Errorf("%+v, %v", got, err)
	}
	r.disk.before = func() {
		if err := other.Delete(t.Context(), tenant, w.ID); err != nil {
			t.Error(err)
		}
	}
	if _, err := r.Update(t.Context(), tenant, w.ID, registry.Change{Name: new("late")}); hook.CodeOf(err) != hook.CodeNotFound {
		t.Errorf("deleted meanwhile: %v", err)
	}
}

func TestPause(t *testing.T) {
	r := newRig()
	w := r.create(t, valid()).Webhook
	until := func() time.Time {
		got, err := r.Get(t.Context(), tenant, w.ID)
		if err != nil {
			t.Fatal(err)
		}
		if held := r.disk.rows[w.ID].PausedUntil; !held.Equal(got.PausedUntil) {
			t.Errorf("paused until %v, and the store has %v", got.PausedUntil, held)
		}
		return got.PausedUntil
	}
	hour, minute := start.Add(time.Hour), start.Add(time.Minute)
	for i, step := range []struct {
		do   func() error
		want time.Time
	}{
		{func() error { return r.Pause(t.Context(), tenant, w.ID, minute) }, minute},
		{func() error { return r.Pause(t.Context(), tenant, w.ID, hour) }, hour},
		{func() error { return r.Pause(t.Context(), tenant, w.ID, minute) }, hour}, // a shorter one changes nothing
		{func() error { _, err := r.Resume(t.Context(), tenant, w.ID); return err }, time.Time{}},
		{func() error {
			_, err := r.Update(t.Context(), tenant, w.ID, registry.Change{PausedUntil: &hour})
			return err
		}, hour},
		{func() error {
			_, err := r.Update(t.Context(), tenant, w.ID, registry.Change{PausedUntil: &minute}) // a person may shorten it
			return err
		}, minute},
		{func() error {
			_, err := r.Update(t.Context(), tenant, w.ID, registry.Change{Name: new("paused")})
			return err
		}, minute},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if got := until(); !got.Equal(step.want) {
			t.Errorf("step %d: paused until %v, want %v", i+1, got, step.want)
		}
	}
	if got, _ := r.Get(t.Context(), tenant, w.ID); got.Revision != 2 {
		t.Errorf("revision %d: a pause makes none", got.Revision)
	}
}

// Of pauses that come at the same time, the latest end stands.
func TestPausesDoNotCross(t *testing.T) {
	r := newRig()
	w := r.create(t, valid()).Webhook
	for round := range 100 {
		from := start.Add(time.Duration(round) * time.Hour)
		var wg sync.WaitGroup
		for n := range 8 {
			wg.Go(func() {
				if err := r.Pause(t.Context(), tenant, w.ID, from.Add(time.Duration(n)*time.Minute)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		want := from.Add(7 * time.Minute)
		got, err := r.Get(t.Context(), tenant, w.ID)
		if err != nil || !got.PausedUntil.Equal(want) || !r.disk.rows[w.ID].PausedUntil.Equal(want) {
			t.Fatalf("paused until %v, the store has %v, want %v; %v", got.PausedUntil, r.disk.rows[w.ID].PausedUntil, want, err)
		}
	}
}

func TestDelete(t *testing.T) {
	r := newRig()
	w := r.create(t, valid()).Webhook
	if err := r.Delete(t.Context(), tenant, w.ID); err != nil {
		t.Fatal(err)
	}
	if len(r.disk.jobs) != 1 || r.disk.jobs[0].IsZero() {
		t.Errorf("jobs: %v", r.disk.jobs)
	}
	if _, err := r.Get(t.Context(), tenant, w.ID); hook.CodeOf(err) != hook.CodeNotFound {
		t.Errorf("afterwards: %v", err)
	}
	if err := r.Delete(t.Context(), tenant, w.ID); hook.CodeOf(err) != hook.CodeNotFound || len(r.disk.jobs) != 1 {
		t.Errorf("again: %v", err)
	}
}
