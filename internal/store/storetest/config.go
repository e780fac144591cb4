package storetest

import (
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

func configTests() tests {
	return tests{
		"a webhook is read as it was written":      configRoundTrip,
		"revisions are kept":                       configRevisions,
		"an update of what has moved on":           configMoved,
		"every change raises the version by one":   configVersions,
		"a pause is no change of the version":      configPause,
		"what is there already is a conflict":      configTwice,
		"what is not there is not found":           configMissing,
		"a failed change leaves the version alone": configFailed,
	}
}

func (f *fixture) config() *store.TenantConfig {
	f.Helper()
	c, err := f.store.TenantConfig(f.ctx, f.tenant)
	f.must(err)
	return c
}

func (f *fixture) keyRow() store.KeyRow {
	n := f.makeID()
	return store.KeyRow{
		APIKey: hook.APIKey{
			ID: n, Tenant: f.tenant, Name: "ci", Hint: "hypha_ab", Scopes: []hook.Scope{hook.ScopeEventsWrite, hook.ScopeWebhooksRead},
			CreatedAt: f.now, ExpiresAt: f.now.Add(time.Hour),
		},
		Hash: hash(string(n[:])),
	}
}

func configRoundTrip(_ *testing.T, f *fixture) {
	tenant := f.newTenant()
	w, k := f.webhookRow(tenant), f.keyRow()
	w.Enabled, w.DisabledReason = false, hook.DisabledGone
	w.PausedUntil = f.now.Add(time.Hour)
	k.Tenant, k.ExpiresAt = tenant, time.Time{}
	_, err := f.store.InsertWebhook(f.ctx, w)
	f.must(err)
	v, err := f.store.InsertKey(f.ctx, k)
	f.must(err)
	f.crash()
	f.tenant = tenant
	f.equal("configuration", f.config(), &store.TenantConfig{
		Tenant:  hook.Tenant{ID: tenant, Name: "acme", CreatedAt: f.now, UpdatedAt: f.now},
		Version: v, Webhooks: []store.WebhookRow{w}, Keys: []store.KeyRow{k},
	})
}

func configRevisions(_ *testing.T, f *fixture) {
	first := f.webhookRow(f.tenant)
	_, err := f.store.InsertWebhook(f.ctx, first)
	f.must(err)
	second := first
	second.Revision, second.URL, second.Sealed, second.UpdatedAt = 2, "https://example.com/other", []byte("more"), f.now.Add(time.Hour)
	second.Events = []string{"*"}
	_, err = f.store.UpdateWebhook(f.ctx, second)
	f.must(err)
	_, err = f.store.DeleteWebhook(f.ctx, store.DeleteWebhookParams{Tenant: f.tenant, Webhook: first.ID, Job: f.makeID(), Now: f.now})
	f.must(err)
	for i, want := range []store.WebhookRow{first, second} {
		got, err := f.store.WebhookRevision(f.ctx, f.tenant, first.ID, int64(i+1))
		f.must(err)
		f.equal("revision", *got, want)
	}
	_, err = f.store.WebhookRevision(f.ctx, f.tenant, first.ID, 3)
	f.wantCode(err, hook.CodeNotFound)
	if n := len(f.config().Webhooks); n != 2 {
		f.Fatalf("%d webhooks are there; want 2", n)
	}
}

func configMoved(_ *testing.T, f *fixture) {
	w := f.webhookRow(f.tenant)
	v, err := f.store.InsertWebhook(f.ctx, w)
	f.must(err)
	for _, revision := range []int64{1, 3} {
		w.Revision = revision
		_, err = f.store.UpdateWebhook(f.ctx, w)
		f.wantMoved(err)
	}
	if got := f.config().Version; got != v {
		f.Fatalf("the version is %d; want %d", got, v)
	}
	w.Revision = 2
	_, err = f.store.UpdateWebhook(f.ctx, w)
	f.must(err)
}

func configVersions(_ *testing.T, f *fixture) {
	w, k := f.webhookRow(f.tenant), f.keyRow()
	updated := w
	updated.Revision = 2
	renamed := k
	renamed.Name = "cd"
	want := f.version[f.tenant]
	for i, change := range []func() (int64, error){
		func() (int64, error) { return f.store.InsertWebhook(f.ctx, w) },
		func() (int64, error) { return f.store.UpdateWebhook(f.ctx, updated) },
		func() (int64, error) { return f.store.InsertKey(f.ctx, k) },
		func() (int64, error) { return f.store.UpdateKey(f.ctx, renamed) },
		func() (int64, error) { return f.store.DeleteKey(f.ctx, f.tenant, k.ID) },
		func() (int64, error) {
			return f.store.DeleteWebhook(f.ctx, store.DeleteWebhookParams{Tenant: f.tenant, Webhook: w.ID, Job: f.makeID(), Now: f.now})
		},
	} {
		got, err := change()
		f.must(err)
		want++
		if got != want || f.config().Version != want {
			f.Fatalf("change %d answered version %d and left %d; want %d", i, got, f.config().Version, want)
		}
		if i == 3 && f.config().Keys[0].Name != "cd" {
			f.Fatalf("the key is %+v", f.config().Keys)
		}
	}
}

func configPause(_ *testing.T, f *fixture) {
	until := f.now.Add(time.Hour)
	f.must(f.store.SetPause(f.ctx, f.tenant, f.b, until))
	f.crash()
	for _, w := range f.config().Webhooks {
		if (w.ID == f.b) != w.PausedUntil.Equal(until) || (w.ID == f.a) != w.PausedUntil.IsZero() {
			f.Fatalf("webhook %s is paused until %v", w.ID, w.PausedUntil)
		}
	}
	f.must(f.store.SetPause(f.ctx, f.tenant, f.b, time.Time{}))
	c := f.config()
	if c.Version != f.version[f.tenant] || !c.Webhooks[0].PausedUntil.IsZero() || !c.Webhooks[1].PausedUntil.IsZero() {
		f.Fatalf("the configuration is %+v", c)
	}
}

func configTwice(_ *testing.T, f *fixture) {
	w, k := f.webhookRow(f.tenant), f.keyRow()
	_, err := f.store.InsertWebhook(f.ctx, w)
	f.must(err)
	_, err = f.store.InsertWebhook(f.ctx, w)
	f.wantCode(err, hook.CodeConflict)
	_, err = f.store.InsertKey(f.ctx, k)
	f.must(err)
	k.ID = f.makeID()
	_, err = f.store.InsertKey(f.ctx, k)
	f.wantCode(err, hook.CodeConflict)
	f.wantCode(f.store.InsertTenant(f.ctx, hook.Tenant{ID: f.tenant, CreatedAt: f.now, UpdatedAt: f.now}), hook.CodeConflict)
}

func configMissing(_ *testing.T, f *fixture) {
	w, k := f.webhookRow(f.tenant), f.keyRow()
	w.Revision = 2
	_, err := f.store.UpdateWebhook(f.ctx, w)
	f.wantCode(err, hook.CodeNotFound)
	_, err = f.store.UpdateKey(f.ctx, k)
	f.wantCode(err, hook.CodeNotFound)
	_, err = f.store.DeleteKey(f.ctx, f.tenant, k.ID)
	f.wantCode(err, hook.CodeNotFound)
	f.wantCode(f.store.SetPause(f.ctx, f.tenant, w.ID, f.now), hook.CodeNotFound)
	nobody := id.Tenant(f.makeID())
	_, err = f.store.TenantConfig(f.ctx, nobody)
	f.wantCode(err, hook.CodeNotFound)
	w.Tenant, w.Revision = nobody, 1
	_, err = f.store.InsertWebhook(f.ctx, w)
	f.wantCode(err, hook.CodeNotFound)
	k.Tenant = nobody
	_, err = f.store.InsertKey(f.ctx, k)
	f.wantCode(err, hook.CodeNotFound)
}

func configFailed(_ *testing.T, f *fixture) {
	configMissing(nil, f)
	if got := f.config().Version; got != f.version[f.tenant] {
		f.Fatalf("the version is %d; want %d", got, f.version[f.tenant])
	}
	f.accept(f.request(f.event(f.a)))
}
