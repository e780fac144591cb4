// Package catalog holds each tenant's configuration in memory, ready for the
// hot path: its webhooks with their secrets open, an index of who wants what,
// and the credentials that are in force. A tenant is read from the store when
// it is first asked for, and every change through this process is applied to
// what is held, so that nothing on the way of an event asks the store.
//
// A Snapshot never changes. Its Version is what an accept is checked against
// in the store: when it has moved on, Refresh and try again.
package catalog

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/plinqx/hypha/internal/contain"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/match"
	"github.com/plinqx/hypha/internal/store"
)

// Source is where configurations are read from.
type Source interface {
	TenantConfig(ctx context.Context, tenant id.Tenant) (*store.TenantConfig, error)
}

// Box seals secrets at rest and opens them (package seal).
type Box interface {
	Seal(plain, owner []byte) ([]byte, error)
	Open(sealed, owner []byte) ([]byte, error)
}

// Observer is told of every change to a webhook: created, changed, paused or
// deleted. It is called after the snapshot holds the change, and must not wait.
type Observer interface {
	WebhookChanged(tenant id.Tenant, webhook id.Webhook)
}

// Catalog is safe for concurrent use.
type Catalog struct {
	source    Source
	box       Box
	observers []Observer
	guard     *contain.Guard

	marks atomic.Uint64

	mu      sync.RWMutex
	tenants map[id.Tenant]*entry
}

// entry is one tenant's place. Its mutex orders loads and changes, so that a
// load that read before a change can't be stored after it.
type entry struct {
	snap atomic.Pointer[Snapshot]

	mu sync.Mutex
	// told is what the observers know: the last snapshot that there was.
	told *Snapshot
	// read is when the store was last asked.
	read time.Time
	// paused is when this process last paused a webhook, by the count of Mark.
	paused map[id.Webhook]uint64
}

// New makes an empty catalogue.
func New(source Source, box Box) *Catalog {
	return &Catalog{source: source, box: box, tenants: make(map[id.Tenant]*entry)}
}

// Observe adds an observer. It must be called before the catalogue is used.
func (c *Catalog) Observe(o Observer) { c.observers = append(c.observers, o) }

// Tenant answers a tenant's configuration as this process knows it.
func (c *Catalog) Tenant(ctx context.Context, tenant id.Tenant) (*Snapshot, error) {
	if e := c.known(tenant); e != nil {
		if s := e.snap.Load(); s != nil {
			return s, nil
		}
	}
	return c.load(ctx, tenant, func(held *Snapshot, _ time.Time) bool { return held != nil })
}

// Refresh answers a configuration newer than the given version, or the newest
// there is.
func (c *Catalog) Refresh(ctx context.Context, tenant id.Tenant, than int64) (*Snapshot, error) {
	return c.load(ctx, tenant, func(held *Snapshot, _ time.Time) bool { return held != nil && held.Version > than })
}

// Webhook answers one webhook of a tenant: hook.CodeNotFound if it has none of
// that id.
func (c *Catalog) Webhook(ctx context.Context, tenant id.Tenant, webhook id.Webhook) (*hook.Webhook, error) {
	s, err := c.Tenant(ctx, tenant)
	if err != nil {
		return nil, err
	}
	w, ok := s.Webhook(webhook)
	if !ok {
		return nil, hook.NotFound("Webhook")
	}
	return w, nil
}

// Held answers a webhook as it is in memory now, nil if the tenant has none of
// that id, and asks nobody: ok is false while the tenant is not in memory.
func (c *Catalog) Held(tenant id.Tenant, webhook id.Webhook) (w *hook.Webhook, ok bool) {
	s, ok := c.HeldTenant(tenant)
	if !ok {
		return nil, false
	}
	w, _ = s.Webhook(webhook)
	return w, true
}

// HeldTenant answers a tenant's configuration if it is in memory, and asks
// nobody.
func (c *Catalog) HeldTenant(tenant id.Tenant) (*Snapshot, bool) {
	e := c.known(tenant)
	if e == nil {
		return nil, false
	}
	s := e.snap.Load()
	return s, s != nil
}

func (c *Catalog) known(tenant id.Tenant) *entry {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.tenants[tenant]
}

// load reads a tenant, unless what is held, and when it was read, is enough. If
// others changed it meanwhile, the observers are told.
func (c *Catalog) load(ctx context.Context, tenant id.Tenant, enough func(held *Snapshot, read time.Time) bool) (*Snapshot, error) {
	s, changed, err := c.loadQuietly(ctx, tenant, enough)
	for _, webhook := range changed {
		c.notify(tenant, webhook)
	}
	return s, err
}

func (c *Catalog) loadQuietly(ctx context.Context, tenant id.Tenant, enough func(held *Snapshot, read time.Time) bool) (s *Snapshot, changed []id.Webhook, err error) {
	e := c.known(tenant)
	if e == nil {
		c.mu.Lock()
		if e = c.tenants[tenant]; e == nil {
			e = new(entry)
			c.tenants[tenant] = e
		}
		c.mu.Unlock()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if s := e.snap.Load(); enough(s, e.read) {
		return s, nil, nil
	}
	began := time.Now()
	config, err := c.source.TenantConfig(ctx, tenant)
	if err != nil {
		if hook.CodeOf(err) == hook.CodeNotFound {
			c.forget(tenant)
			changed = differ(e.told, nil)
		}
		return nil, changed, err
	}
	if s, err = c.open(config); err != nil {
		return nil, nil, err
	}
	if e.told != nil && e.told.vault.same(s.vault) {
		s.vault = e.told.vault // what was worked out with it stands
	}
	changed = differ(e.told, s)
	e.told, e.read = s, began
	e.snap.Store(s)
	return s, changed, nil
}

// differ lists the webhooks that are not the same in two snapshots of a tenant;
// one that is nil has none. Whoever sees a tenant for the first time has nobody to
// tell: old is nil.
func differ(old, s *Snapshot) []id.Webhook {
	if old == nil {
		return nil
	}
	var changed []id.Webhook
	for webhook, was := range old.webhooks {
		var is *hook.Webhook
		if s != nil {
			is = s.webhooks[webhook]
		}
		if is == nil || is.Revision != was.Revision || !is.PausedUntil.Equal(was.PausedUntil) {
			changed = append(changed, webhook)
		}
	}
	if s != nil {
		for webhook := range s.webhooks {
			if old.webhooks[webhook] == nil {
				changed = append(changed, webhook)
			}
		}
	}
	return changed
}

func (c *Catalog) forget(tenant id.Tenant) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.tenants, tenant)
}

func (c *Catalog) open(config *store.TenantConfig) (*Snapshot, error) {
	s := &Snapshot{
		Tenant:   config.Tenant,
		Version:  config.Version,
		webhooks: make(map[id.Webhook]*hook.Webhook, len(config.Webhooks)),
		keys:     make(map[id.Key]store.KeyRow, len(config.Keys)),
		vault:    newVault(nil),
	}
	for i := range config.Vault {
		v, err := c.OpenVault(&config.Vault[i])
		if err != nil {
			return nil, err
		}
		s.vault.byName[v.Name] = v
	}
	for i := range config.Webhooks {
		w, err := c.Open(&config.Webhooks[i])
		if err != nil {
			return nil, err
		}
		s.webhooks[w.ID] = w
	}
	for _, k := range config.Keys {
		s.keys[k.ID] = k
	}
	s.build()
	return s, nil
}

// The changes. Each is called after the store took it, with the version that
// the store answered; a version that does not follow the one held makes the
// tenant be read anew.

// PutWebhook holds a webhook that was created or changed.
func (c *Catalog) PutWebhook(version int64, w *hook.Webhook) {
	c.change(w.Tenant, version, func(s *Snapshot) {
		// A pause that came while the change was on its way stands.
		if old, ok := s.webhooks[w.ID]; ok && !old.PausedUntil.Equal(w.PausedUntil) {
			changed := *w
			changed.PausedUntil = old.PausedUntil
			w = &changed
		}
		s.webhooks = maps.Clone(s.webhooks)
		s.webhooks[w.ID] = w
	})
	c.notify(w.Tenant, w.ID)
}

// DeleteWebhook forgets a webhook.
func (c *Catalog) DeleteWebhook(version int64, tenant id.Tenant, webhook id.Webhook) {
	c.change(tenant, version, func(s *Snapshot) {
		s.webhooks = maps.Clone(s.webhooks)
		delete(s.webhooks, webhook)
	})
	c.notify(tenant, webhook)
}

// PutKey holds a key that was made or changed.
func (c *Catalog) PutKey(version int64, k store.KeyRow) {
	c.change(k.Tenant, version, func(s *Snapshot) {
		s.keys = maps.Clone(s.keys)
		s.keys[k.ID] = k
	})
}

// DeleteKey forgets a key: it is refused from now on.
func (c *Catalog) DeleteKey(version int64, tenant id.Tenant, key id.Key) {
	c.change(tenant, version, func(s *Snapshot) {
		s.keys = maps.Clone(s.keys)
		delete(s.keys, key)
	})
}

// DeleteTenant forgets a tenant.
func (c *Catalog) DeleteTenant(tenant id.Tenant) {
	c.forget(tenant)
}

// PutTenant holds a tenant's new name.
func (c *Catalog) PutTenant(t hook.Tenant) {
	c.amend(t.ID, func(s *Snapshot) { s.Tenant = t })
}

// Pause holds until when a webhook is held back; zero when it goes on.
func (c *Catalog) Pause(tenant id.Tenant, webhook id.Webhook, until time.Time) {
	if e := c.known(tenant); e != nil {
		e.mu.Lock()
		if e.paused == nil {
			e.paused = make(map[id.Webhook]uint64)
		}
		e.paused[webhook] = c.marks.Add(1)
		e.mu.Unlock()
	}
	c.amend(tenant, pause(webhook, until))
	c.notify(tenant, webhook)
}

func pause(webhook id.Webhook, until time.Time) func(*Snapshot) {
	return func(s *Snapshot) {
		if w, ok := s.webhooks[webhook]; ok {
			paused := *w
			paused.PausedUntil = until
			s.webhooks = maps.Clone(s.webhooks)
			s.webhooks[webhook] = &paused
		}
	}
}

func (c *Catalog) change(tenant id.Tenant, version int64, edit func(*Snapshot)) {
	c.swap(tenant, func(held *Snapshot) *Snapshot {
		switch {
		case held.Version >= version:
			return held
		case held.Version+1 < version:
			return nil
		}
		next := held.clone()
		next.Version = version
		edit(next)
		next.build()
		return next
	})
}

// amend changes what is no part of the configuration's version.
func (c *Catalog) amend(tenant id.Tenant, edit func(*Snapshot)) {
	c.swap(tenant, func(held *Snapshot) *Snapshot {
		next := held.clone()
		edit(next)
		next.build()
		return next
	})
}

func (c *Catalog) swap(tenant id.Tenant, next func(held *Snapshot) *Snapshot) {
	e := c.known(tenant)
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if held := e.snap.Load(); held != nil {
		s := next(held)
		if e.snap.Store(s); s != nil {
			e.told = s
		}
	}
}

// Contain has a guard keep the panics of observers from those who change something:
// the change is made by then, and the other observers are to hear of it too. Whoever
// missed it asks again before it goes by it. It is to be called before the catalogue
// is used.
func (c *Catalog) Contain(guard *contain.Guard) { c.guard = guard }

func (c *Catalog) notify(tenant id.Tenant, webhook id.Webhook) {
	for _, o := range c.observers {
		c.tell(o, tenant, webhook)
	}
}

func (c *Catalog) tell(o Observer, tenant id.Tenant, webhook id.Webhook) {
	defer func() {
		if p := recover(); p != nil {
			_ = c.guard.Caught(contain.Background, "an observer of the configuration", p, "tenant", tenant, "webhook", webhook) // logged, and that is all
		}
	}()
	o.WebhookChanged(tenant, webhook)
}

// Snapshot is a tenant's configuration at one version.
type Snapshot struct {
	Tenant  hook.Tenant
	Version int64

	webhooks map[id.Webhook]*hook.Webhook
	keys     map[id.Key]store.KeyRow
	vault    *Vault
	// Made when first asked for: a burst of changes need not pay for each.
	ordered func() []*hook.Webhook
	index   func() *match.Index
	signing func() []*hook.SigningKey
}

func (s *Snapshot) clone() *Snapshot {
	return &Snapshot{Tenant: s.Tenant, Version: s.Version, webhooks: s.webhooks, keys: s.keys, vault: s.vault}
}

func (s *Snapshot) build() {
	s.ordered = sync.OnceValue(func() []*hook.Webhook {
		return slices.SortedFunc(maps.Values(s.webhooks), func(a, b *hook.Webhook) int { return a.ID.Compare(b.ID) })
	})
	s.index = sync.OnceValue(func() *match.Index { return match.New(s.ordered()) })
	s.signing = sync.OnceValue(func() []*hook.SigningKey {
		var all []*hook.SigningKey
		for _, w := range s.webhooks {
			for i := range w.SigningKeys {
				all = append(all, &w.SigningKeys[i])
			}
		}
		slices.SortFunc(all, func(a, b *hook.SigningKey) int { return strings.Compare(a.ID, b.ID) })
		return all
	})
}

// Webhook answers one webhook. It must not be changed.
func (s *Snapshot) Webhook(webhook id.Webhook) (*hook.Webhook, bool) {
	w, ok := s.webhooks[webhook]
	return w, ok
}

// Webhooks lists all, oldest first. The list must not be changed.
func (s *Snapshot) Webhooks() []*hook.Webhook { return s.ordered() }

// SigningKeys lists those of all webhooks by their ids, those at their end too:
// an order that tells nothing of the webhooks. Neither the list nor the keys must
// be changed.
func (s *Snapshot) SigningKeys() []*hook.SigningKey { return s.signing() }

// Match lists the webhooks that want an event of this type, oldest first.
func (s *Snapshot) Match(eventType string) []*hook.Webhook { return s.index().Match(eventType) }

// Key answers an API key that is in force or has expired; a revoked one is not
// there.
func (s *Snapshot) Key(key id.Key) (store.KeyRow, bool) {
	k, ok := s.keys[key]
	return k, ok
}

// Keys lists the API keys, oldest first.
func (s *Snapshot) Keys() []store.KeyRow {
	return slices.SortedFunc(maps.Values(s.keys), func(a, b store.KeyRow) int { return a.ID.Compare(b.ID) })
}

// secrets is what is sealed of a webhook. The versions of its signatures stand
// here for their keys' sake: neither is of use without the other.
type secrets struct {
	Headers     map[string]string       `json:"headers,omitempty"`
	Secrets     []sealedSecret          `json:"secrets"`
	Signatures  []hook.SignatureVersion `json:"signatures,omitempty"`
	SigningKeys []sealedKey             `json:"signingKeys,omitempty"`
}

type sealedSecret struct {
	Value     string    `json:"value"`
	CreatedAt time.Time `json:"createdAt,omitzero"`
	Until     time.Time `json:"until,omitzero"`
}

type sealedKey struct {
	ID        string    `json:"id"`
	Public    string    `json:"public"`
	Private   string    `json:"private"`
	CreatedAt time.Time `json:"createdAt,omitzero"`
	Until     time.Time `json:"until,omitzero"`
}

// Seal makes the row that is stored of a webhook.
func (c *Catalog) Seal(w *hook.Webhook) (store.WebhookRow, error) {
	inner := secrets{Headers: w.Headers, Signatures: w.Signatures}
	for _, s := range w.Secrets {
		inner.Secrets = append(inner.Secrets, sealedSecret(s))
	}
	for _, k := range w.SigningKeys {
		inner.SigningKeys = append(inner.SigningKeys, sealedKey(k))
	}
	plain, err := json.Marshal(inner)
	if err != nil {
		return store.WebhookRow{}, fmt.Errorf("seal webhook %s: %w", w.ID, err)
	}
	sealed, err := c.box.Seal(plain, WebhookOwner(w.Tenant, w.ID))
	if err != nil {
		return store.WebhookRow{}, fmt.Errorf("seal webhook %s: %w", w.ID, err)
	}
	row := store.WebhookRow{Webhook: *w, Sealed: sealed, Vault: hook.VaultNames(w.Headers)}
	row.Headers, row.Secrets, row.Signatures, row.SigningKeys = nil, nil, nil, nil
	return row, nil
}

// Open makes the webhook of a stored row.
func (c *Catalog) Open(row *store.WebhookRow) (*hook.Webhook, error) {
	w := row.Webhook
	plain, err := c.box.Open(row.Sealed, WebhookOwner(w.Tenant, w.ID))
	if err != nil {
		return nil, fmt.Errorf("secrets of webhook %s: %w (does the server have all keys that it had before?)", w.ID, err)
	}
	var inner secrets
	if err := json.Unmarshal(plain, &inner); err != nil {
		return nil, fmt.Errorf("secrets of webhook %s: %w", w.ID, err)
	}
	w.Headers = inner.Headers
	w.Secrets = make([]hook.Secret, len(inner.Secrets))
	for i, s := range inner.Secrets {
		w.Secrets[i] = hook.Secret(s)
	}
	w.Signatures = inner.Signatures
	for _, k := range inner.SigningKeys {
		w.SigningKeys = append(w.SigningKeys, hook.SigningKey(k))
	}
	return &w, nil
}

// WebhookOwner binds what is sealed of a webhook to it, so that one tenant's secret
// can't be opened in another's row.
func WebhookOwner(tenant id.Tenant, webhook id.Webhook) []byte {
	return append(append(make([]byte, 0, 32), tenant[:]...), webhook[:]...)
}
