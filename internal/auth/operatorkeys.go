package auth

import (
	"context"
	"slices"

	"github.com/plinqx/hypha/internal/audit"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// Operators' keys belong to no tenant, so no snapshot holds them: what is known of
// one is read again each second, and after each change that is made here.

func errNoOperatorKey() error { return hook.NotFound("operator key") }

// operatorKeyError says of what kind a key is that is not there.
func operatorKeyError(err error) error {
	if hook.CodeOf(err) == hook.CodeNotFound {
		return errNoOperatorKey()
	}
	return err
}

// CheckOperatorKey lists what is wrong with an operator's key that somebody wants to
// make. It has no scopes to choose.
func (a *Auth) CheckOperatorKey(k NewKey) []hook.Detail {
	return a.CheckKeyChange(KeyChange{Name: &k.Name, ExpiresAt: &k.ExpiresAt})
}

// OperatorKeys lists the operators' keys, oldest first, with their last uses.
func (a *Auth) OperatorKeys(ctx context.Context) ([]hook.APIKey, error) {
	rows, err := a.o.Store.OperatorKeys(ctx)
	if err != nil {
		return nil, err
	}
	return a.withUses(rows), nil
}

// OperatorKey shows one: hook.CodeNotFound if there is none of that id.
func (a *Auth) OperatorKey(ctx context.Context, key id.Key) (*hook.APIKey, error) {
	keys, err := a.OperatorKeys(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(keys, func(k hook.APIKey) bool { return k.ID == key })
	if i < 0 {
		return nil, errNoOperatorKey()
	}
	return &keys[i], nil
}

// CreateOperatorKey makes a key that manages tenants and acts for any of them.
func (a *Auth) CreateOperatorKey(ctx context.Context, k NewKey) (*MadeKey, error) {
	if problems := a.CheckOperatorKey(k); len(problems) > 0 {
		return nil, hook.Invalid(problems...)
	}
	a.editing.Lock()
	defer a.editing.Unlock()
	rows, err := a.o.Store.OperatorKeys(ctx)
	if err != nil {
		return nil, err
	}
	if n := len(rows); n >= maxOperatorKeys {
		return nil, hook.Conflict("There are %d operator keys, which is the most there may be; delete one first", n)
	}
	secret, err := newToken(keyPrefix)
	if err != nil {
		return nil, err
	}
	k.Scopes = []hook.Scope{hook.ScopeOperator}
	row, err := a.newRow(id.Tenant{}, secret, k)
	if err != nil {
		return nil, err
	}
	if err := a.o.Store.InsertOperatorKey(noteNewKey(ctx, hook.AuditOperatorKeyCreated, &row.APIKey, true), row); err != nil {
		return nil, err
	}
	return &MadeKey{APIKey: row.APIKey, Secret: secret}, nil
}

// UpdateOperatorKey changes a key's name or expiry. A change that is none writes
// nothing.
func (a *Auth) UpdateOperatorKey(ctx context.Context, key id.Key, c KeyChange) (*hook.APIKey, error) {
	a.editing.Lock()
	defer a.editing.Unlock()
	row, err := a.operatorRow(ctx, key)
	if err != nil {
		return nil, err
	}
	if problems := a.CheckKeyChange(c); len(problems) > 0 {
		return nil, hook.Invalid(problems...)
	}
	held := row.APIKey
	if c.apply(&row.APIKey) {
		if err := a.o.Store.UpdateOperatorKey(noteKey(ctx, hook.AuditOperatorKeyUpdated, &held, &row.APIKey), *row); err != nil {
			return nil, operatorKeyError(err)
		}
		a.forgetOperatorKey(key)
	}
	return &a.withUses([]store.KeyRow{*row})[0], nil
}

func (a *Auth) operatorRow(ctx context.Context, key id.Key) (*store.KeyRow, error) {
	rows, err := a.o.Store.OperatorKeys(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(rows, func(row store.KeyRow) bool { return row.ID == key })
	if i < 0 {
		return nil, errNoOperatorKey()
	}
	return &rows[i], nil
}

// DeleteOperatorKey revokes a key: it is refused from now on. One that would delete
// itself is not (hook.CodeConflict): that is the slip by which operators lock
// themselves out, and it keeps a key in force for whoever deletes others. Who comes by
// the admin socket has none, and may delete the last: the socket is the way back in.
func (a *Auth) DeleteOperatorKey(ctx context.Context, p *Principal, key id.Key) error {
	row, err := a.operatorRow(ctx, key)
	if err != nil {
		return err
	}
	if p.Key == key {
		return hook.Conflict("This is the key that you ask with; delete it with another one, so that you don't lock yourself out")
	}
	if err := a.o.Store.DeleteOperatorKey(audit.Note(ctx, keyEntry(hook.AuditOperatorKeyDeleted, &row.APIKey, nil)), key); err != nil {
		return operatorKeyError(err)
	}
	a.forgetOperatorKey(key)
	a.forgetUse(key)
	return nil
}

// forgetOperatorKey lets go of what is known of a key, also of what is being read.
func (a *Auth) forgetOperatorKey(key id.Key) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ended++
	for hash, k := range a.keys {
		if k.key == key {
			delete(a.keys, hash)
		}
	}
}
