// Package registry is where webhooks are created, changed, paused and deleted:
// the one room for the rules that a webhook must keep. The API, and whatever
// else changes webhooks, comes through here. It must not know how a webhook is
// delivered to, nor anything of HTTP.
package registry

import (
	"context"
	"errors"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/plinqx/hypha/internal/catalog"
	"github.com/plinqx/hypha/internal/egress"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/internal/vault"
	"github.com/plinqx/hypha/signature"
)

// Store is what the registry writes to.
type Store interface {
	InsertWebhook(ctx context.Context, w store.WebhookRow) (int64, error)
	UpdateWebhook(ctx context.Context, w store.WebhookRow) (int64, error)
	DeleteWebhook(ctx context.Context, p store.DeleteWebhookParams) (int64, error)
	SetPause(ctx context.Context, tenant id.Tenant, webhook id.Webhook, until time.Time) error
}

// URLs judges endpoint URLs (package egress).
type URLs interface {
	CheckURL(raw string) (*url.URL, error)
}

// Options are what a registry needs; all are required but MaxWebhooks.
type Options struct {
	Store   Store
	Catalog *catalog.Catalog
	URLs    URLs
	// HeaderPrefix is the prefix of the headers that we send ("X-Plinqx"): no
	// webhook may set one of those.
	HeaderPrefix string
	// MaxWebhooks is the most that a tenant may have; 0 is no limit.
	MaxWebhooks int
	Now         func() time.Time
	// Discard is called when a webhook's queue is to be discarded in the
	// background; the job is in the store already.
	Discard func(tenant id.Tenant, job id.Replay)
	// Shared says that other processes change webhooks in the same store: one that
	// is missing here may just have been made there.
	Shared bool
}

// Registry is safe for concurrent use.
type Registry struct {
	Options
	// pausing keeps two receivers' wishes from crossing on their way to the
	// store: of two pauses the later end must win.
	pausing sync.Mutex
	// creating is held by whoever counts a tenant's webhooks to make one more.
	creating chan struct{}
}

// New makes a registry.
func New(o Options) *Registry { return &Registry{Options: o, creating: make(chan struct{}, 1)} }

// Change is what a caller wants of a webhook: a nil field is left as it is.
type Change struct {
	Name   *string
	URL    *string
	Events *[]string
	Secret *string
	// Signatures are the versions in webhook-signature; a new webhook has "v1".
	Signatures  *[]string
	Headers     *map[string]string
	TimeoutMS   *int64
	Description *string
	Enabled     *bool
	// PausedUntil is a time, or the zero time to go on.
	PausedUntil *time.Time
}

// Created is a webhook and the secret that was made for it now. Secret is empty if
// the caller gave one.
type Created struct {
	Webhook *hook.Webhook
	Secret  string
}

// List lists a tenant's webhooks, oldest first. It must not be changed.
func (r *Registry) List(ctx context.Context, tenant id.Tenant) ([]*hook.Webhook, error) {
	s, err := r.Catalog.Tenant(ctx, tenant)
	if err != nil {
		return nil, err
	}
	return s.Webhooks(), nil
}

// Get answers one webhook. It must not be changed.
func (r *Registry) Get(ctx context.Context, tenant id.Tenant, webhook id.Webhook) (*hook.Webhook, error) {
	_, w, err := r.find(ctx, tenant, webhook)
	return w, err
}

// find answers a webhook, and the configuration that it was found in.
func (r *Registry) find(ctx context.Context, tenant id.Tenant, webhook id.Webhook) (*catalog.Snapshot, *hook.Webhook, error) {
	snap, err := r.Catalog.Tenant(ctx, tenant)
	if err != nil {
		return nil, nil, err
	}
	w, ok := snap.Webhook(webhook)
	if !ok && r.Shared {
		if snap, err = r.Catalog.Recheck(ctx, tenant); err != nil {
			return nil, nil, err
		}
		w, ok = snap.Webhook(webhook)
	}
	if !ok {
		return nil, nil, hook.NotFound("Webhook")
	}
	return snap, w, nil
}

// Create registers a webhook. Name, URL and Events are required.
func (r *Registry) Create(ctx context.Context, tenant id.Tenant, c Change) (*Created, error) {
	now := r.now()
	w := &hook.Webhook{Tenant: tenant, Revision: 1, Enabled: true, Timeout: DefaultTimeout, CreatedAt: now, UpdatedAt: now,
		Signatures: []hook.SignatureVersion{hook.SignatureV1}}
	var problems []hook.Detail
	for path, missing := range map[string]bool{"name": c.Name == nil, "url": c.URL == nil, "events": c.Events == nil} {
		if missing {
			problems = append(problems, hook.Detail{Path: path, Message: "is required"})
		}
	}
	var made string
	var err error
	if c.Secret == nil {
		if made, err = signature.NewSecret(); err != nil {
			return nil, err
		}
		c.Secret = &made
	}
	known, err := r.vaultFor(ctx, tenant, c)
	if err != nil {
		return nil, err
	}
	if problems = append(problems, r.apply(w, known, c)...); len(problems) > 0 {
		return nil, invalid(problems)
	}
	if err := giveKeys(w, now); err != nil {
		return nil, err
	}
	// One after another, so that all together do not pass the limit. They wait for
	// the store's one writer anyway.
	select {
	case r.creating <- struct{}{}:
		defer func() { <-r.creating }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	snap, err := r.Catalog.Tenant(ctx, tenant)
	if err != nil {
		return nil, err
	}
	if n := len(snap.Webhooks()); r.MaxWebhooks > 0 && n >= r.MaxWebhooks {
		return nil, hook.Conflict("This tenant has %d webhooks, which is the most it may have; delete one first", n)
	}
	if w.ID, err = id.NewWebhook(); err != nil {
		return nil, err
	}
	row, err := r.Catalog.Seal(w)
	if err != nil {
		return nil, err
	}
	for {
		version, err := r.Store.InsertWebhook(noteCreated(ctx, w, made != ""), row)
		if errors.Is(err, store.ErrConfigMoved) {
			// A vault secret that a header refers to was deleted since.
			if snap, err = r.Catalog.Refresh(ctx, tenant, snap.Version); err != nil {
				return nil, err
			}
			if problems := vault.CheckHeaders(snap.Vault(), w.Headers); len(problems) > 0 {
				return nil, invalid(problems)
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		r.Catalog.PutWebhook(version, w)
		return &Created{Webhook: w, Secret: made}, nil
	}
}

// vaultFor answers the vault that a change's headers are judged by.
func (r *Registry) vaultFor(ctx context.Context, tenant id.Tenant, c Change) (*catalog.Vault, error) {
	snap, err := r.Catalog.Tenant(ctx, tenant)
	if err == nil && r.Shared && c.Headers != nil && slices.ContainsFunc(hook.VaultNames(*c.Headers), func(name string) bool {
		_, known := snap.Vault().Value(name)
		return !known
	}) {
		snap, err = r.Catalog.Recheck(ctx, tenant)
	}
	if err != nil {
		return nil, err
	}
	return snap.Vault(), nil
}

// Check lists what is wrong with a change of a webhook, or with a new one where
// held is nil. Create and Update refuse the same; it is for a caller that has
// more to say about the request, so that all problems are told at once.
func (r *Registry) Check(ctx context.Context, tenant id.Tenant, held *hook.Webhook, c Change) []hook.Detail {
	var w hook.Webhook
	if held != nil {
		w = *held
	}
	known, err := r.vaultFor(ctx, tenant, c)
	if err != nil {
		known = nil // Create and Update will say so
	}
	return r.apply(&w, known, c)
}

// Update changes a webhook. An empty change answers the webhook as it is.
func (r *Registry) Update(ctx context.Context, tenant id.Tenant, webhook id.Webhook, c Change) (*hook.Webhook, error) {
	pause := c.PausedUntil
	if pause != nil && pause.After(r.now()) {
		// Before the rest: a webhook that is enabled and paused in one breath
		// must not send in between.
		held, err := r.Get(ctx, tenant, webhook)
		if err != nil {
			return nil, err
		}
		if problems := r.Check(ctx, tenant, held, c); len(problems) > 0 {
			return nil, invalid(problems)
		}
		if _, err := r.pause(ctx, held, *pause); err != nil {
			return nil, err
		}
		pause = nil
	}
	w, err := r.edit(ctx, tenant, webhook, edit{action: hook.AuditWebhookUpdated}, func(w *hook.Webhook) error {
		known, err := r.vaultFor(ctx, tenant, c)
		if err != nil {
			return err
		}
		if problems := r.apply(w, known, c); len(problems) > 0 {
			return invalid(problems)
		}
		return giveKeys(w, r.now())
	})
	if err == nil && pause != nil {
		return r.pause(ctx, w, *pause)
	}
	return w, err
}

// Disable switches a webhook off for a reason, unless it is off already.
func (r *Registry) Disable(ctx context.Context, tenant id.Tenant, webhook id.Webhook, reason hook.DisabledReason) error {
	_, err := r.edit(ctx, tenant, webhook, edit{action: hook.AuditWebhookDisabled}, func(w *hook.Webhook) error {
		if w.Enabled {
			w.Enabled, w.DisabledReason = false, reason
		}
		return nil
	})
	return err
}

// Resume ends a webhook's pause.
func (r *Registry) Resume(ctx context.Context, tenant id.Tenant, webhook id.Webhook) (*hook.Webhook, error) {
	w, err := r.Get(ctx, tenant, webhook)
	if err != nil {
		return nil, err
	}
	return r.pause(ctx, w, time.Time{})
}

// Pause holds a webhook back until a time, if that is later than the pause it
// has. It is for receivers, who may ask for it with every answer: the audit log is
// not told, the attempt is on record.
func (r *Registry) Pause(ctx context.Context, tenant id.Tenant, webhook id.Webhook, until time.Time) error {
	r.pausing.Lock()
	defer r.pausing.Unlock()
	w, err := r.Get(ctx, tenant, webhook)
	if err != nil || !until.After(w.PausedUntil) {
		return err
	}
	_, err = r.setPause(ctx, w, until)
	return err
}

func (r *Registry) pause(ctx context.Context, w *hook.Webhook, until time.Time) (*hook.Webhook, error) {
	r.pausing.Lock()
	defer r.pausing.Unlock()
	return r.setPause(r.notePause(ctx, w, until), w, until)
}

// setPause writes a pause. r.pausing is held.
func (r *Registry) setPause(ctx context.Context, w *hook.Webhook, until time.Time) (*hook.Webhook, error) {
	until = until.Truncate(time.Millisecond)
	if err := r.Store.SetPause(ctx, w.Tenant, w.ID, until); err != nil {
		return nil, err
	}
	r.Catalog.Pause(w.Tenant, w.ID, until)
	return r.Get(ctx, w.Tenant, w.ID)
}

// Delete removes a webhook. Its queue is discarded in the background; what was
// delivered stays readable.
func (r *Registry) Delete(ctx context.Context, tenant id.Tenant, webhook id.Webhook) error {
	job, err := id.NewReplay()
	if err != nil {
		return err
	}
	version, err := r.Store.DeleteWebhook(r.noteDeleted(ctx, tenant, webhook), store.DeleteWebhookParams{Tenant: tenant, Webhook: webhook, Job: job, Now: r.now()})
	if err != nil {
		return err
	}
	r.Catalog.DeleteWebhook(version, tenant, webhook)
	r.Discard(tenant, job)
	return nil
}

// edit reads, changes and writes a webhook, again if somebody else changed it
// meanwhile. Nothing is written if the edit changed nothing. Secrets and keys that
// are at their end are left out of what is written.
func (r *Registry) edit(ctx context.Context, tenant id.Tenant, webhook id.Webhook, e edit, change func(*hook.Webhook) error) (*hook.Webhook, error) {
	for {
		snap, held, err := r.find(ctx, tenant, webhook)
		if err != nil {
			return nil, err
		}
		w := *held
		if err := change(&w); err != nil {
			return nil, err
		}
		if same(held, &w) {
			return held, nil
		}
		w.Revision++
		w.UpdatedAt = r.now()
		w.Secrets, w.SigningKeys = inForce(w.Secrets, w.UpdatedAt), keysInForce(w.SigningKeys, w.UpdatedAt)
		row, err := r.Catalog.Seal(&w)
		if err != nil {
			return nil, err
		}
		version, err := r.Store.UpdateWebhook(noteEdited(ctx, e, held, &w), row)
		if errors.Is(err, store.ErrConfigMoved) {
			if _, err = r.Catalog.Refresh(ctx, tenant, snap.Version); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		r.Catalog.PutWebhook(version, &w)
		return &w, nil
	}
}

func (r *Registry) now() time.Time { return r.Now().UTC().Truncate(time.Millisecond) }

// Masked is what stands in an answer for the value of a header that looks like
// a credential.
const Masked = "****"

// MaskHeaders is a webhook's headers as an answer shows them. A value that is a
// reference to vault secrets and nothing else is shown: it is no secret.
func MaskHeaders(headers map[string]string) map[string]string {
	shown := make(map[string]string, len(headers))
	for name, value := range headers {
		if egress.Credential(name) && !onlyReferences(value) {
			value = Masked
		}
		shown[name] = value
	}
	return shown
}

// onlyReferences reports whether a value is made of references to vault secrets,
// with no more before them than the scheme of a credential (RFC 9110, 11.4).
func onlyReferences(value string) bool {
	t, err := hook.ParseTemplate(value)
	if err != nil || len(t.Names()) == 0 {
		return false
	}
	scheme, rest, _ := strings.Cut(t.Literal(), " ")
	return rest == "" && slices.Contains([]string{"", "basic", "bearer", "token", "apikey"}, strings.ToLower(scheme))
}

func invalid(problems []hook.Detail) error {
	return hook.Invalid(sorted(problems)...)
}

// unmask puts the values back that an answer masked, where a caller sends the
// headers as it read them. A mask that stands for nothing stays, to be refused.
func unmask(given, held map[string]string) map[string]string {
	out := make(map[string]string, len(given))
	for name, value := range given {
		if value == Masked && egress.Credential(name) {
			for old, secret := range held {
				if strings.EqualFold(old, name) {
					value = secret
				}
			}
		}
		out[name] = value
	}
	return out
}
