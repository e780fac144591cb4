package sqlite

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/internal/store/codec"
)

const (
	sqlWebhooks = `SELECT w.id, w.revision, w.data, w.sealed, l.paused_until
		FROM webhooks w LEFT JOIN lanes l ON l.tenant_id = w.tenant_id AND l.webhook_id = w.id
		WHERE w.tenant_id = ? ORDER BY w.id`
	sqlRevision = `SELECT webhook_id, revision, data, sealed, NULL FROM webhook_revisions
		WHERE tenant_id = ? AND webhook_id = ? AND revision = ?`

	keyColumns = `tenant_id, id, hash, name, hint, scopes, created_at, expires_at, last_used_at`
)

func readWebhook(tenant id.Tenant, r row) (store.WebhookRow, error) {
	w := store.WebhookRow{
		Webhook: hook.Webhook{ID: readID[id.Webhook](r, 0), Tenant: tenant, Revision: r.int(1), PausedUntil: r.time(4)},
		Sealed:  r.blob(3),
	}
	return w, codec.DecodeWebhook(r.text(2), &w.Webhook)
}

// TenantConfig reads a tenant's configuration.
func (s *Store) TenantConfig(ctx context.Context, tenant id.Tenant) (*store.TenantConfig, error) {
	out := &store.TenantConfig{}
	err := s.snapshot(ctx, func(c *conn) error {
		found, err := c.one("SELECT id, name, created_at, updated_at, config_version FROM tenants WHERE id = ?",
			func(r row) { out.Tenant, out.Version = readTenant(r), r.int(4) }, tenant[:])
		if err != nil {
			return err
		}
		if !found {
			return hook.NotFound("Tenant")
		}
		err = c.query(sqlWebhooks, func(r row) (bool, error) {
			w, err := readWebhook(tenant, r)
			out.Webhooks = append(out.Webhooks, w)
			return true, err
		}, tenant[:])
		if err != nil {
			return err
		}
		err = c.query("SELECT "+keyColumns+" FROM keys WHERE tenant_id = ? ORDER BY id", func(r row) (bool, error) {
			k, err := readKey(r)
			out.Keys = append(out.Keys, k)
			return true, err
		}, tenant[:])
		if err != nil {
			return err
		}
		return c.scan(sqlVault, func(r row) { out.Vault = append(out.Vault, readVaultSecret(tenant, r)) }, tenant[:])
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// configure runs a change of a tenant's configuration and answers the version
// that it made.
func (s *Store) configure(ctx context.Context, tenant id.Tenant, change func(*tx) error) (version int64, err error) {
	err = s.write(ctx, func(t *tx) error {
		if version, err = t.bump(tenant); err != nil {
			return err
		}
		return change(t)
	})
	if err != nil {
		return 0, err
	}
	return version, nil
}

// InsertWebhook adds a webhook.
func (s *Store) InsertWebhook(ctx context.Context, w store.WebhookRow) (int64, error) {
	return s.configure(ctx, w.Tenant, func(t *tx) error {
		data, err := codec.EncodeWebhook(&w.Webhook)
		if err != nil {
			return err
		}
		_, err = t.exec("INSERT INTO webhooks (tenant_id, id, revision, data, sealed) VALUES (?, ?, ?, ?, ?)",
			w.Tenant[:], w.ID[:], w.Revision, data, w.Sealed)
		if err != nil {
			return exists(err, "the webhook")
		}
		if !w.PausedUntil.IsZero() {
			if err := t.pause(w.Tenant, w.ID, w.PausedUntil); err != nil {
				return err
			}
		}
		if err := t.refer(&w); err != nil {
			return err
		}
		return t.insertRevision(&w, data)
	})
}

// UpdateWebhook replaces a webhook.
func (s *Store) UpdateWebhook(ctx context.Context, w store.WebhookRow) (int64, error) {
	return s.configure(ctx, w.Tenant, func(t *tx) error {
		revision := int64(-1)
		_, err := t.one("SELECT revision FROM webhooks WHERE tenant_id = ? AND id = ?", func(r row) { revision = r.int(0) }, w.Tenant[:], w.ID[:])
		if err != nil {
			return err
		}
		if revision < 0 {
			return hook.NotFound("Webhook")
		}
		if revision != w.Revision-1 {
			return store.ErrConfigMoved
		}
		data, err := codec.EncodeWebhook(&w.Webhook)
		if err != nil {
			return err
		}
		_, err = t.exec("UPDATE webhooks SET revision = ?, data = ?, sealed = ? WHERE tenant_id = ? AND id = ?",
			w.Revision, data, w.Sealed, w.Tenant[:], w.ID[:])
		if err != nil {
			return err
		}
		if err := t.refer(&w); err != nil {
			return err
		}
		return t.insertRevision(&w, data)
	})
}

// keptRevisions is how many revisions of a webhook are kept. Attempts of older
// ones are shown without their request.
const keptRevisions = 100

func (t *tx) insertRevision(w *store.WebhookRow, data string) error {
	_, err := t.exec("DELETE FROM webhook_revisions WHERE tenant_id = ? AND webhook_id = ? AND revision <= ?", w.Tenant[:], w.ID[:], w.Revision-keptRevisions)
	if err != nil {
		return err
	}
	_, err = t.exec("INSERT INTO webhook_revisions (tenant_id, webhook_id, revision, data, sealed) VALUES (?, ?, ?, ?, ?)",
		w.Tenant[:], w.ID[:], w.Revision, data, w.Sealed)
	return exists(err, "this revision of the webhook")
}

// DeleteWebhook removes a webhook and starts the discard of its queue. A
// retry-all of it ends here: it would fill the queue again.
func (s *Store) DeleteWebhook(ctx context.Context, p store.DeleteWebhookParams) (int64, error) {
	return s.configure(ctx, p.Tenant, func(t *tx) error {
		n, err := t.exec("DELETE FROM webhooks WHERE tenant_id = ? AND id = ?", p.Tenant[:], p.Webhook[:])
		if err != nil {
			return err
		}
		if n == 0 {
			return hook.NotFound("Webhook")
		}
		for _, text := range [...]string{
			"DELETE FROM lanes WHERE tenant_id = ? AND webhook_id = ?",
			"DELETE FROM vault_references WHERE tenant_id = ? AND webhook_id = ?",
			// A discard that runs already may stand for less than there is now.
			"UPDATE jobs SET done = 1 WHERE tenant_id = ? AND webhook_id = ? AND done = 0",
		} {
			if _, err := t.exec(text, p.Tenant[:], p.Webhook[:]); err != nil {
				return err
			}
		}
		_, err = t.startJob(store.JobParams{ID: p.Job, Tenant: p.Tenant, Webhook: p.Webhook, Kind: store.JobDiscard, Now: p.Now})
		return err
	})
}

// WebhookRevision reads a webhook as it was.
func (s *Store) WebhookRevision(ctx context.Context, tenant id.Tenant, webhook id.Webhook, revision int64) (*store.WebhookRow, error) {
	var out store.WebhookRow
	err := s.read(ctx, tenant, func(c *conn) error {
		found := false
		err := c.query(sqlRevision, func(r row) (bool, error) {
			var err error
			found = true
			out, err = readWebhook(tenant, r)
			return false, err
		}, tenant[:], webhook[:], revision)
		if err == nil && !found {
			err = hook.NotFound("Webhook")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return &out, nil
}

// SetPause holds a webhook back.
func (s *Store) SetPause(ctx context.Context, tenant id.Tenant, webhook id.Webhook, until time.Time) error {
	return s.write(ctx, func(t *tx) error {
		if err := t.need(tenant); err != nil {
			return err
		}
		found, err := t.one("SELECT 1 FROM webhooks WHERE tenant_id = ? AND id = ?", func(row) {}, tenant[:], webhook[:])
		if err != nil {
			return err
		}
		if !found {
			return hook.NotFound("Webhook")
		}
		var before time.Time
		if _, err := t.one("SELECT paused_until FROM lanes WHERE tenant_id = ? AND webhook_id = ?", func(r row) { before = r.time(0) }, tenant[:], webhook[:]); err != nil {
			return err
		}
		if before.Equal(until) {
			t.unchanged()
			return nil
		}
		if until.IsZero() {
			_, err = t.exec("DELETE FROM lanes WHERE tenant_id = ? AND webhook_id = ?", tenant[:], webhook[:])
			return err
		}
		return t.pause(tenant, webhook, until)
	})
}

func (t *tx) pause(tenant id.Tenant, webhook id.Webhook, until time.Time) error {
	_, err := t.exec("INSERT OR REPLACE INTO lanes (tenant_id, webhook_id, paused_until) VALUES (?, ?, ?)", tenant[:], webhook[:], millis(until))
	return err
}

func readKey(r row) (store.KeyRow, error) {
	k := store.KeyRow{
		APIKey: hook.APIKey{
			Tenant: readID[id.Tenant](r, 0), ID: readID[id.Key](r, 1), Name: r.text(3), Hint: r.text(4),
			CreatedAt: r.time(6), ExpiresAt: r.time(7), LastUsedAt: r.time(8),
		},
		Hash: r.hash(2),
	}
	if err := json.Unmarshal([]byte(r.text(5)), &k.Scopes); err != nil {
		return store.KeyRow{}, fmt.Errorf("read the scopes of key %s: %w", k.ID, err)
	}
	return k, nil
}

func (t *tx) insertKey(k *store.KeyRow) error {
	scopes, err := json.Marshal(k.Scopes)
	if err != nil {
		return err
	}
	_, err = t.exec("INSERT INTO keys ("+keyColumns+") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
		k.Tenant[:], k.ID[:], k.Hash[:], k.Name, k.Hint, string(scopes), millis(k.CreatedAt), millisOrNull(k.ExpiresAt), millisOrNull(k.LastUsedAt))
	return exists(err, "the API key")
}

// InsertKey adds a tenant's key.
func (s *Store) InsertKey(ctx context.Context, k store.KeyRow) (int64, error) {
	return s.configure(ctx, k.Tenant, func(t *tx) error { return t.insertKey(&k) })
}

// UpdateKey replaces a key's name, hint, scopes, end and hash. When it was used
// is for TouchKeys to say.
func (s *Store) UpdateKey(ctx context.Context, k store.KeyRow) (int64, error) {
	return s.configure(ctx, k.Tenant, func(t *tx) error { return t.updateKey(&k) })
}

func (t *tx) updateKey(k *store.KeyRow) error {
	scopes, err := json.Marshal(k.Scopes)
	if err != nil {
		return err
	}
	n, err := t.exec("UPDATE keys SET hash = ?, name = ?, hint = ?, scopes = ?, expires_at = ? WHERE tenant_id = ? AND id = ?",
		k.Hash[:], k.Name, k.Hint, string(scopes), millisOrNull(k.ExpiresAt), k.Tenant[:], k.ID[:])
	if err == nil && n == 0 {
		return hook.NotFound("API key")
	}
	return exists(err, "an API key of this hash")
}

// DeleteKey removes a tenant's key.
func (s *Store) DeleteKey(ctx context.Context, tenant id.Tenant, key id.Key) (int64, error) {
	return s.configure(ctx, tenant, func(t *tx) error { return t.deleteKey(tenant, key) })
}

func (t *tx) deleteKey(tenant id.Tenant, key id.Key) error {
	n, err := t.exec("DELETE FROM keys WHERE tenant_id = ? AND id = ?", tenant[:], key[:])
	if err == nil && n == 0 {
		return hook.NotFound("API key")
	}
	return err
}
