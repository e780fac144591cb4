package auth

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// The bounds of what people name, and of how many keys a tenant has: each is in
// memory, and on the way of every request.
const (
	maxName = 255 // characters
	maxKeys = 1000
	// maxOperatorKeys is how many keys operators have: each answer holds all.
	maxOperatorKeys = 1000
)

// NewKey is what an API key is made of.
type NewKey struct {
	Name string
	// Scopes must be among the maker's; nil stands for all of them.
	Scopes []hook.Scope
	// ExpiresAt is in the future, or zero for never.
	ExpiresAt time.Time
}

// KeyChange is what is to be changed of a key: a nil field stays.
type KeyChange struct {
	Name *string
	// ExpiresAt is in the future, or the zero time for never.
	ExpiresAt *time.Time
}

// apply changes a key, and reports whether that made it another one.
func (c *KeyChange) apply(k *hook.APIKey) bool {
	held := *k
	if c.Name != nil {
		k.Name = *c.Name
	}
	if c.ExpiresAt != nil {
		k.ExpiresAt = time.Time{}
		if !c.ExpiresAt.IsZero() {
			k.ExpiresAt = c.ExpiresAt.UTC().Truncate(time.Millisecond)
		}
	}
	return k.Name != held.Name || !k.ExpiresAt.Equal(held.ExpiresAt)
}

// MadeKey is a new key. Secret is the key itself, which is nowhere else.
type MadeKey struct {
	hook.APIKey
	Secret string
}

// CheckKey lists what is wrong with a key that somebody wants to make.
func (a *Auth) CheckKey(maker *Principal, k NewKey) []hook.Detail {
	var problems []hook.Detail
	if p := hook.CheckText(k.Name, 1, maxName, ""); p != "" {
		problems = append(problems, hook.Detail{Path: "name", Message: p})
	}
	for i, s := range k.Scopes {
		path := fmt.Sprintf("scopes[%d]", i)
		switch {
		case !slices.Contains(hook.TenantScopes(), s):
			problems = append(problems, hook.Detail{Path: path, Message: "must be one of " + scopeList()})
		case slices.Contains(k.Scopes[:i], s):
			problems = append(problems, hook.Detail{Path: path, Message: "is named twice"})
		case !maker.Can(s):
			problems = append(problems, hook.Detail{Path: path, Message: "is more than you may do yourself"})
		}
	}
	if k.Scopes != nil && len(k.Scopes) == 0 {
		problems = append(problems, hook.Detail{Path: "scopes", Message: "must name at least one scope; leave it out to give the key all that you have"})
	}
	return append(problems, a.checkExpiry(k.ExpiresAt)...)
}

// CheckKeyChange lists what is wrong with a change.
func (a *Auth) CheckKeyChange(c KeyChange) []hook.Detail {
	var problems []hook.Detail
	if c.Name != nil {
		if p := hook.CheckText(*c.Name, 1, maxName, ""); p != "" {
			problems = append(problems, hook.Detail{Path: "name", Message: p})
		}
	}
	if c.ExpiresAt != nil {
		problems = append(problems, a.checkExpiry(*c.ExpiresAt)...)
	}
	return problems
}

func (a *Auth) checkExpiry(at time.Time) []hook.Detail {
	if expired(at, a.now()) {
		return []hook.Detail{{Path: "expiresAt", Message: "must be in the future"}}
	}
	return nil
}

func scopeList() string {
	var names []string
	for _, s := range hook.TenantScopes() {
		names = append(names, string(s))
	}
	return strings.Join(names, ", ")
}

// CreateKey makes a key for the maker's tenant.
func (a *Auth) CreateKey(ctx context.Context, maker *Principal, k NewKey) (*MadeKey, error) {
	if problems := a.CheckKey(maker, k); len(problems) > 0 {
		return nil, hook.Invalid(problems...)
	}
	if k.Scopes == nil {
		k.Scopes = tenantScopesOf(maker.Scopes)
	}
	snap, err := a.o.Catalog.Tenant(ctx, maker.Tenant)
	if err != nil {
		return nil, err
	}
	if n := len(snap.Keys()); n >= maxKeys {
		return nil, hook.Conflict("This tenant has %d API keys, which is the most it may have; delete one first", n)
	}
	secret, err := newToken(keyPrefix)
	if err != nil {
		return nil, err
	}
	return a.insertKey(ctx, maker.Tenant, secret, true, k)
}

// tenantScopesOf is what of a maker's scopes a tenant's key can have: an
// operator may do all in a tenant.
func tenantScopesOf(scopes []hook.Scope) []hook.Scope {
	if slices.Contains(scopes, hook.ScopeOperator) {
		return []hook.Scope{hook.ScopeAdmin}
	}
	return slices.Clone(scopes)
}

// insertKey keeps a new key. shown says that whoever asks is shown the secret.
func (a *Auth) insertKey(ctx context.Context, tenant id.Tenant, secret string, shown bool, k NewKey) (*MadeKey, error) {
	row, err := a.newRow(tenant, secret, k)
	if err != nil {
		return nil, err
	}
	version, err := a.o.Store.InsertKey(noteNewKey(ctx, hook.AuditAPIKeyCreated, &row.APIKey, shown), row)
	if err != nil {
		return nil, err
	}
	a.o.Catalog.PutKey(version, row)
	return &MadeKey{APIKey: row.APIKey, Secret: secret}, nil
}

func (a *Auth) newRow(tenant id.Tenant, secret string, k NewKey) (store.KeyRow, error) {
	keyID, err := id.NewKey()
	if err != nil {
		return store.KeyRow{}, err
	}
	row := store.KeyRow{Hash: hashToken(secret), APIKey: hook.APIKey{
		ID: keyID, Tenant: tenant, Name: k.Name, Hint: hint(secret), Scopes: k.Scopes, CreatedAt: a.now(),
	}}
	if !k.ExpiresAt.IsZero() {
		row.ExpiresAt = k.ExpiresAt.UTC().Truncate(time.Millisecond)
	}
	return row, nil
}

// Keys lists a tenant's keys, oldest first, with their last uses.
func (a *Auth) Keys(ctx context.Context, tenant id.Tenant) ([]hook.APIKey, error) {
	// From the store: the catalogue does not follow the last uses.
	config, err := a.o.Store.TenantConfig(ctx, tenant)
	if err != nil {
		return nil, err
	}
	return a.withUses(config.Keys), nil
}

// withUses are keys, oldest first, with the uses that are not written yet.
func (a *Auth) withUses(rows []store.KeyRow) []hook.APIKey {
	keys := make([]hook.APIKey, len(rows))
	a.usesMu.Lock()
	defer a.usesMu.Unlock()
	for i, row := range rows {
		keys[i] = row.APIKey
		if u, ok := a.uses[row.ID]; ok && u.At.After(row.LastUsedAt) {
			keys[i].LastUsedAt = u.At
		}
	}
	slices.SortFunc(keys, func(x, y hook.APIKey) int { return x.ID.Compare(y.ID) })
	return keys
}

// Key shows one key: hook.CodeNotFound if the tenant has none of that id.
func (a *Auth) Key(ctx context.Context, tenant id.Tenant, key id.Key) (*hook.APIKey, error) {
	keys, err := a.Keys(ctx, tenant)
	if err != nil {
		return nil, err
	}
	for i := range keys {
		if keys[i].ID == key {
			return &keys[i], nil
		}
	}
	return nil, errNoKey()
}

func errNoKey() error { return hook.NotFound("API key") }

// UpdateKey changes a key's name or expiry. A change that is none writes nothing.
func (a *Auth) UpdateKey(ctx context.Context, tenant id.Tenant, key id.Key, c KeyChange) (*hook.APIKey, error) {
	a.editing.Lock()
	defer a.editing.Unlock()
	shown, err := a.Key(ctx, tenant, key)
	if err != nil {
		return nil, err
	}
	if problems := a.CheckKeyChange(c); len(problems) > 0 {
		return nil, hook.Invalid(problems...)
	}
	snap, err := a.o.Catalog.Tenant(ctx, tenant)
	if err != nil {
		return nil, err
	}
	row, ok := snap.Key(key)
	if !ok {
		if snap, err = a.o.Catalog.Refresh(ctx, tenant, snap.Version); err != nil {
			return nil, err
		}
		if row, ok = snap.Key(key); !ok {
			return nil, errNoKey()
		}
	}
	row.LastUsedAt = shown.LastUsedAt
	held := row.APIKey
	if !c.apply(&row.APIKey) {
		return &row.APIKey, nil
	}
	version, err := a.o.Store.UpdateKey(noteKey(ctx, hook.AuditAPIKeyUpdated, &held, &row.APIKey), row)
	if err != nil {
		return nil, err
	}
	a.o.Catalog.PutKey(version, row)
	return &row.APIKey, nil
}

// DeleteKey revokes a key: it is refused from now on.
func (a *Auth) DeleteKey(ctx context.Context, tenant id.Tenant, key id.Key) error {
	version, err := a.o.Store.DeleteKey(a.noteDeletedKey(ctx, tenant, key), tenant, key)
	if err != nil {
		return err
	}
	a.o.Catalog.DeleteKey(version, tenant, key)
	a.forgetUse(key)
	return nil
}

func (a *Auth) forgetUse(key id.Key) {
	a.usesMu.Lock()
	defer a.usesMu.Unlock()
	delete(a.uses, key)
}
