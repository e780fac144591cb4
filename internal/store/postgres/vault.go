package postgres

import (
	"context"
	"slices"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

const (
	sqlVault             = `SELECT id, name, revision, description, sealed, created_at, updated_at FROM vault WHERE tenant_id = $1 ORDER BY id`
	sqlVaultSize         = `SELECT count(*) FROM vault WHERE tenant_id = $1`
	sqlInsertVaultSecret = `INSERT INTO vault (tenant_id, id, name, revision, description, sealed, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)` //nolint:gosec // a statement
	sqlVaultSecret       = `SELECT name, revision FROM vault WHERE tenant_id = $1 AND id = $2`                                                                      //nolint:gosec // a statement
	sqlUpdateVaultSecret = `UPDATE vault SET revision = $3, description = $4, sealed = $5, updated_at = $6 WHERE tenant_id = $1 AND id = $2`
	sqlDeleteVaultSecret = `DELETE FROM vault WHERE tenant_id = $1 AND id = $2` //nolint:gosec // a statement

	sqlReferTo          = `INSERT INTO vault_references (tenant_id, name, webhook_id) SELECT tenant_id, name, $2::uuid FROM vault WHERE tenant_id = $1 AND name = ANY($3)`
	sqlReferred         = `SELECT name FROM vault_references WHERE tenant_id = $1 AND webhook_id = $2`
	sqlReferring        = `SELECT webhook_id FROM vault_references WHERE tenant_id = $1 AND name = $2 ORDER BY webhook_id LIMIT $3`
	sqlReferNoMore      = `DELETE FROM vault_references WHERE tenant_id = $1 AND webhook_id = $2 AND NOT name = ANY($3)`
	sqlDeleteReferences = `DELETE FROM vault_references WHERE tenant_id = $1 AND webhook_id = $2`
)

// vaultColumns is where a row of sqlVault goes.
type vaultColumns struct {
	row              store.VaultRow
	created, updated int64
}

func (c *vaultColumns) to() []any {
	return []any{(*[16]byte)(&c.row.ID), &c.row.Name, &c.row.Revision, &c.row.Description, &c.row.Sealed, &c.created, &c.updated}
}

func (c *vaultColumns) read(tenant id.Tenant) store.VaultRow {
	v := c.row
	v.Tenant, v.CreatedAt, v.UpdatedAt = tenant, atMillis(c.created), atMillis(c.updated)
	return v
}

// InsertVaultSecret adds a secret.
func (s *Store) InsertVaultSecret(ctx context.Context, p store.NewVaultSecret) (int64, error) {
	return s.configure(ctx, p.Tenant, func(ctx context.Context, t *tx) error {
		var held int64
		if _, err := t.one(ctx, sqlVaultSize, []any{uuid(p.Tenant)}, &held); err != nil {
			return err
		}
		if p.Max > 0 && held >= int64(p.Max) {
			return store.VaultFull(held)
		}
		_, err := t.exec(ctx, sqlInsertVaultSecret, uuid(p.Tenant), uuid(p.ID), p.Name, p.Revision, p.Description, p.Sealed, millis(p.CreatedAt), millis(p.UpdatedAt))
		return exists(err, "A vault secret of this name")
	})
}

// vaultSecret reads the name and the revision of a secret that is there.
func (t *tx) vaultSecret(ctx context.Context, tenant id.Tenant, secret id.VaultSecret) (name string, revision int64, err error) {
	found, err := t.one(ctx, sqlVaultSecret, []any{uuid(tenant), uuid(secret)}, &name, &revision)
	if err == nil && !found {
		err = hook.NotFound("Vault secret")
	}
	return name, revision, err
}

// UpdateVaultSecret replaces a secret.
func (s *Store) UpdateVaultSecret(ctx context.Context, v store.VaultRow) (int64, error) {
	return s.configure(ctx, v.Tenant, func(ctx context.Context, t *tx) error {
		_, revision, err := t.vaultSecret(ctx, v.Tenant, v.ID)
		if err != nil {
			return err
		}
		if revision != v.Revision-1 {
			return store.ErrConfigMoved
		}
		_, err = t.exec(ctx, sqlUpdateVaultSecret, uuid(v.Tenant), uuid(v.ID), v.Revision, v.Description, v.Sealed, millis(v.UpdatedAt))
		return err
	})
}

// DeleteVaultSecret removes a secret that nobody refers to.
func (s *Store) DeleteVaultSecret(ctx context.Context, tenant id.Tenant, secret id.VaultSecret) (int64, error) {
	return s.configure(ctx, tenant, func(ctx context.Context, t *tx) error {
		name, _, err := t.vaultSecret(ctx, tenant, secret)
		if err != nil {
			return err
		}
		var webhook id.Webhook
		var used []id.Webhook
		err = t.each(ctx, sqlReferring, []any{uuid(tenant), name, int64(store.NamedWebhooks + 1)}, []any{(*[16]byte)(&webhook)}, func() error {
			used = append(used, webhook)
			return nil
		})
		if err != nil {
			return err
		}
		if len(used) > 0 {
			return store.VaultInUse(used)
		}
		_, err = t.exec(ctx, sqlDeleteVaultSecret, uuid(tenant), uuid(secret))
		return err
	})
}

// refer notes which secrets a webhook refers to. Those that it did not refer to
// before must be there.
func (t *tx) refer(ctx context.Context, w *store.WebhookRow) error {
	var name string
	var held []string
	err := t.each(ctx, sqlReferred, []any{uuid(w.Tenant), uuid(w.ID)}, []any{&name}, func() error {
		held = append(held, name)
		return nil
	})
	if err != nil {
		return err
	}
	isNamed := func(name string) bool { return slices.Contains(w.Vault, name) }
	if slices.ContainsFunc(held, func(name string) bool { return !isNamed(name) }) {
		named := append([]string{}, w.Vault...) // not NULL, which nothing is unequal to
		if _, err := t.exec(ctx, sqlReferNoMore, uuid(w.Tenant), uuid(w.ID), named); err != nil {
			return err
		}
	}
	added := slices.DeleteFunc(slices.Clone(w.Vault), func(name string) bool { return slices.Contains(held, name) })
	if len(added) == 0 {
		return nil
	}
	n, err := t.exec(ctx, sqlReferTo, uuid(w.Tenant), uuid(w.ID), added)
	if err == nil && n < int64(len(added)) {
		err = store.ErrConfigMoved // they were there when this was judged
	}
	return err
}
