package sqlite

import (
	"context"
	"slices"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

const (
	sqlVault = `SELECT id, name, revision, description, sealed, created_at, updated_at FROM vault WHERE tenant_id = ? ORDER BY id`

	sqlReferTo   = `INSERT INTO vault_references (tenant_id, name, webhook_id) SELECT tenant_id, name, ? FROM vault WHERE tenant_id = ? AND name = ?`
	sqlReferred  = `SELECT name FROM vault_references WHERE tenant_id = ? AND webhook_id = ?`
	sqlReferring = `SELECT webhook_id FROM vault_references WHERE tenant_id = ? AND name = ? ORDER BY webhook_id LIMIT ?`
)

func readVaultSecret(tenant id.Tenant, r row) store.VaultRow {
	return store.VaultRow{
		VaultSecret: hook.VaultSecret{
			ID: readID[id.VaultSecret](r, 0), Tenant: tenant, Name: r.text(1), Revision: r.int(2), Description: r.text(3),
			CreatedAt: r.time(5), UpdatedAt: r.time(6),
		},
		Sealed: r.blob(4),
	}
}

// InsertVaultSecret adds a secret.
func (s *Store) InsertVaultSecret(ctx context.Context, p store.NewVaultSecret) (int64, error) {
	return s.configure(ctx, p.Tenant, func(t *tx) error {
		var held int64
		if _, err := t.one("SELECT count(*) FROM vault WHERE tenant_id = ?", func(r row) { held = r.int(0) }, p.Tenant[:]); err != nil {
			return err
		}
		if p.Max > 0 && held >= int64(p.Max) {
			return store.VaultFull(held)
		}
		_, err := t.exec("INSERT INTO vault (tenant_id, id, name, revision, description, sealed, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
			p.Tenant[:], p.ID[:], p.Name, p.Revision, p.Description, p.Sealed, millis(p.CreatedAt), millis(p.UpdatedAt))
		return exists(err, "A vault secret of this name")
	})
}

// UpdateVaultSecret replaces a secret.
func (s *Store) UpdateVaultSecret(ctx context.Context, v store.VaultRow) (int64, error) {
	return s.configure(ctx, v.Tenant, func(t *tx) error {
		var revision int64
		found, err := t.one("SELECT revision FROM vault WHERE tenant_id = ? AND id = ?", func(r row) { revision = r.int(0) }, v.Tenant[:], v.ID[:])
		if err != nil {
			return err
		}
		if !found {
			return hook.NotFound("Vault secret")
		}
		if revision != v.Revision-1 {
			return store.ErrConfigMoved
		}
		_, err = t.exec("UPDATE vault SET revision = ?, description = ?, sealed = ?, updated_at = ? WHERE tenant_id = ? AND id = ?",
			v.Revision, v.Description, v.Sealed, millis(v.UpdatedAt), v.Tenant[:], v.ID[:])
		return err
	})
}

// DeleteVaultSecret removes a secret that nobody refers to.
func (s *Store) DeleteVaultSecret(ctx context.Context, tenant id.Tenant, secret id.VaultSecret) (int64, error) {
	return s.configure(ctx, tenant, func(t *tx) error {
		var name string
		found, err := t.one("SELECT name FROM vault WHERE tenant_id = ? AND id = ?", func(r row) { name = r.text(0) }, tenant[:], secret[:])
		if err != nil {
			return err
		}
		if !found {
			return hook.NotFound("Vault secret")
		}
		var used []id.Webhook
		err = t.scan(sqlReferring, func(r row) { used = append(used, readID[id.Webhook](r, 0)) }, tenant[:], name, store.NamedWebhooks+1)
		if err != nil {
			return err
		}
		if len(used) > 0 {
			return store.VaultInUse(used)
		}
		_, err = t.exec("DELETE FROM vault WHERE tenant_id = ? AND id = ?", tenant[:], secret[:])
		return err
	})
}

// refer notes which secrets a webhook refers to. Those that it did not refer to
// before must be there.
func (t *tx) refer(w *store.WebhookRow) error {
	var held []string
	if err := t.scan(sqlReferred, func(r row) { held = append(held, r.text(0)) }, w.Tenant[:], w.ID[:]); err != nil {
		return err
	}
	for _, name := range held {
		if slices.Contains(w.Vault, name) {
			continue
		}
		_, err := t.exec("DELETE FROM vault_references WHERE tenant_id = ? AND name = ? AND webhook_id = ?", w.Tenant[:], name, w.ID[:])
		if err != nil {
			return err
		}
	}
	for _, name := range w.Vault {
		if slices.Contains(held, name) {
			continue
		}
		n, err := t.exec(sqlReferTo, w.ID[:], w.Tenant[:], name)
		if err != nil {
			return err
		}
		if n == 0 {
			return store.ErrConfigMoved // it was there when this was judged
		}
	}
	return nil
}
