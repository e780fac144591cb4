package registry

import (
	"context"
	"maps"
	"net/url"
	"slices"
	"time"

	"github.com/plinqx/hypha/internal/audit"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
)

// What the audit log is told of webhooks. The values of headers and what stands in
// the query of a URL may be credentials, whatever they are called: of those it has
// the names.

func note(ctx context.Context, action hook.AuditAction, w *hook.Webhook, shown bool, d audit.Diff) context.Context {
	return audit.Note(ctx, hook.AuditEntry{
		Tenant: w.Tenant, Action: action, Object: hook.AuditObject{Kind: hook.ObjectWebhook, ID: w.ID.String(), Name: w.Name},
		SecretShown: shown, Changes: d,
	})
}

func noteCreated(ctx context.Context, w *hook.Webhook, secretShown bool) context.Context {
	var d audit.Diff
	d.Set("enabled", w.Enabled)
	d.Set("events", w.Events)
	for _, name := range slices.Sorted(maps.Keys(w.Headers)) {
		d.Secret("headers." + name)
	}
	d.Set("url", shownURL(w.URL))
	return note(ctx, hook.AuditWebhookCreated, w, secretShown, d)
}

// edit is what the audit log calls a change, and whether its answer shows a secret.
type edit struct {
	action      hook.AuditAction
	secretShown bool
}

// noteEdited tells what is different. The object has the name that it had.
func noteEdited(ctx context.Context, e edit, held, w *hook.Webhook) context.Context {
	var d audit.Diff
	d.Changed("description", held.Description, w.Description)
	d.Changed("disabledReason", reason(held), reason(w))
	d.Changed("enabled", held.Enabled, w.Enabled)
	d.Changed("events", held.Events, w.Events)
	names := maps.Clone(held.Headers)
	if names == nil {
		names = map[string]string{}
	}
	maps.Copy(names, w.Headers)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		before, had := held.Headers[name]
		if after, has := w.Headers[name]; had != has || before != after {
			d.Secret("headers." + name)
		}
	}
	d.Changed("name", held.Name, w.Name)
	// Those that are at their end go with any change, and are no news.
	if held.Secrets[0].Value != w.Secrets[0].Value {
		d.Secret("secret")
	}
	d.Changed("signatures", signatures(held), signatures(w))
	d.Changed("timeoutMs", held.Timeout.Milliseconds(), w.Timeout.Milliseconds())
	if before, after := shownURL(held.URL), shownURL(w.URL); before != after {
		d.Changed("url", before, after)
	} else if held.URL != w.URL {
		d.Secret("url") // its query is another
	}
	return note(ctx, e.action, held, e.secretShown, d)
}

func signatures(w *hook.Webhook) []string {
	names := make([]string, len(w.Signatures))
	for i, s := range w.Signatures {
		names[i] = string(s)
	}
	return names
}

// reason is why a webhook is disabled, null if it is not.
func reason(w *hook.Webhook) any {
	if w.DisabledReason == "" {
		return nil
	}
	return string(w.DisabledReason)
}

func (r *Registry) notePause(ctx context.Context, w *hook.Webhook, until time.Time) context.Context {
	action := hook.AuditWebhookResumed
	if until.After(r.now()) {
		action = hook.AuditWebhookPaused
	}
	var d audit.Diff
	d.Changed("pausedUntil", w.PausedUntil, until)
	return note(ctx, action, w, false, d)
}

func (r *Registry) noteDeleted(ctx context.Context, tenant id.Tenant, webhook id.Webhook) context.Context {
	w := &hook.Webhook{ID: webhook, Tenant: tenant}
	if snap, err := r.Catalog.Tenant(ctx, tenant); err == nil { // else the store will say what is wrong
		if held, ok := snap.Webhook(webhook); ok {
			w = held
		}
	}
	return note(ctx, hook.AuditWebhookDeleted, w, false, nil)
}

// shownURL is a URL without the values in its query.
func shownURL(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	if u.RawQuery == "" {
		return raw
	}
	u.RawQuery = ""
	return u.String() + "?…"
}
