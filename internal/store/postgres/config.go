package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/internal/store/codec"
)

const (
	sqlTenantConfig = `SELECT id, name, created_at, updated_at, config_version FROM tenants WHERE id = $1 AND NOT removed`
	sqlWebhooks     = `SELECT w.id, w.revision, w.data, w.sealed, nullif(l.paused_until, 0)
		FROM webhooks w LEFT JOIN lanes l ON l.tenant_id = w.tenant_id AND l.webhook_id = w.id
		WHERE w.tenant_id = $1 ORDER BY w.id`
	sqlRevision = `SELECT webhook_id, revision, data, sealed, NULL::bigint FROM webhook_revisions
		WHERE tenant_id = $1 AND webhook_id = $2 AND revision = $3`
	// sqlMoved notes that a tenant's configuration moved, in its own time for those
	// who ask what changed lately.
	sqlMoved  = `UPDATE tenants SET config_version = $2, changed_at = clock_timestamp() WHERE id = $1`
	sqlNotify = `SELECT pg_notify('` + channel + `', $1)`

	sqlInsertWebhook   = `INSERT INTO webhooks (tenant_id, id, revision, data, sealed) VALUES ($1, $2, $3, $4, $5)`
	sqlWebhookRevision = `SELECT revision FROM webhooks WHERE tenant_id = $1 AND id = $2`
	sqlUpdateWebhook   = `UPDATE webhooks SET revision = $3, data = $4, sealed = $5 WHERE tenant_id = $1 AND id = $2`
	sqlDeleteWebhook   = `DELETE FROM webhooks WHERE tenant_id = $1 AND id = $2`
	sqlDeleteLane      = `DELETE FROM lanes WHERE tenant_id = $1 AND webhook_id = $2`
	sqlEndJobs         = `UPDATE jobs SET done = true WHERE tenant_id = $1 AND webhook_id = $2 AND NOT done`
	sqlForgetRevisions = `DELETE FROM webhook_revisions WHERE tenant_id = $1 AND webhook_id = $2 AND revision <= $3`
	sqlInsertRevision  = `INSERT INTO webhook_revisions (tenant_id, webhook_id, revision, data, sealed) VALUES ($1, $2, $3, $4, $5)`
	sqlPausedUntil     = `SELECT paused_until FROM lanes WHERE tenant_id = $1 AND webhook_id = $2 FOR UPDATE`
	sqlPause           = `INSERT INTO lanes (tenant_id, webhook_id, paused_until) VALUES ($1, $2, $3)
		ON CONFLICT (tenant_id, webhook_id) DO UPDATE SET paused_until = excluded.paused_until, changed_at = clock_timestamp()`

	apiKeyColumns    = `k.tenant_id, k.id, k.hash, k.name, k.hint, k.scopes, k.created_at, k.expires_at, k.last_used_at` //nolint:gosec // a statement
	sqlAPIKeys       = `SELECT ` + apiKeyColumns + ` FROM api_keys k WHERE k.tenant_id = $1 ORDER BY k.id`
	sqlInsertAPIKey  = `INSERT INTO api_keys (tenant_id, id, hash, name, hint, scopes, created_at, expires_at, last_used_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)` //nolint:gosec // a statement
	sqlAPIKeyHash    = `SELECT hash FROM api_keys WHERE tenant_id = $1 AND id = $2 FOR UPDATE`
	sqlUpdateAPIKey  = `UPDATE api_keys SET hash = $3, name = $4, hint = $5, scopes = $6, expires_at = $7 WHERE tenant_id = $1 AND id = $2` //nolint:gosec // a statement
	sqlDeleteAPIKey  = `DELETE FROM api_keys WHERE tenant_id = $1 AND id = $2`                                                              //nolint:gosec // a statement
	sqlInsertSecret  = `INSERT INTO credentials (hash, kind, tenant_id, id) VALUES ($1, $2, $3, $4)`
	sqlReplaceSecret = `UPDATE credentials SET hash = $2 WHERE hash = $1` //nolint:gosec // a statement
	sqlDeleteSecret  = `DELETE FROM credentials WHERE hash = $1`
)

// What a credential is, in credentials.kind.
const (
	kindAPIKey  int16 = 0
	kindSession int16 = 1
)

// webhookColumns is where a row of sqlWebhooks or sqlRevision goes.
type webhookColumns struct {
	row    store.WebhookRow
	data   string
	paused pgtype.Int8
}

func (c *webhookColumns) to() []any {
	return []any{(*[16]byte)(&c.row.ID), &c.row.Revision, &c.data, &c.row.Sealed, &c.paused}
}

func (c *webhookColumns) read(tenant id.Tenant) (store.WebhookRow, error) {
	w := store.WebhookRow{
		Webhook: hook.Webhook{ID: c.row.ID, Tenant: tenant, Revision: c.row.Revision, PausedUntil: fromMillis(c.paused)},
		Sealed:  c.row.Sealed,
	}
	return w, codec.DecodeWebhook(c.data, &w.Webhook)
}

// apiKeyRow is where apiKeyColumns go.
type apiKeyRow struct {
	store.KeyRow
	hash          []byte
	scopes        string
	created       int64
	expires, used pgtype.Int8
}

func (c *apiKeyRow) to() []any {
	return []any{(*[16]byte)(&c.Tenant), (*[16]byte)(&c.ID), &c.hash, &c.Name, &c.Hint, &c.scopes, &c.created, &c.expires, &c.used}
}

func (c *apiKeyRow) read() (store.KeyRow, error) {
	k := c.KeyRow
	if len(c.hash) != len(k.Hash) {
		return store.KeyRow{}, fmt.Errorf("read key %s: %w", k.ID, codec.ErrDamaged)
	}
	k.Hash, k.Scopes = [32]byte(c.hash), nil
	k.CreatedAt, k.ExpiresAt, k.LastUsedAt = atMillis(c.created), fromMillis(c.expires), fromMillis(c.used)
	if err := json.Unmarshal([]byte(c.scopes), &k.Scopes); err != nil {
		return store.KeyRow{}, fmt.Errorf("read the scopes of key %s: %w", k.ID, err)
	}
	return k, nil
}

// TenantConfig reads a tenant's configuration.
func (s *Store) TenantConfig(ctx context.Context, tenant id.Tenant) (*store.TenantConfig, error) {
	out := &store.TenantConfig{}
	err := s.snapshot(ctx, func(ctx context.Context, q pgx.Tx) error {
		var v tenantRow
		found, err := one(ctx, q, sqlTenantConfig, []any{uuid(tenant)}, append(v.to(), &out.Version)...)
		if err != nil {
			return err
		}
		if !found {
			return hook.NotFound("Tenant")
		}
		out.Tenant = v.read()
		var w webhookColumns
		err = each(ctx, q, sqlWebhooks, []any{uuid(tenant)}, w.to(), func() error {
			row, err := w.read(tenant)
			out.Webhooks = append(out.Webhooks, row)
			return err
		})
		if err != nil {
			return err
		}
		var k apiKeyRow
		err = each(ctx, q, sqlAPIKeys, []any{uuid(tenant)}, k.to(), func() error {
			row, err := k.read()
			out.Keys = append(out.Keys, row)
			return err
		})
		if err != nil {
			return err
		}
		var secret vaultColumns
		return each(ctx, q, sqlVault, []any{uuid(tenant)}, secret.to(), func() error {
			out.Vault = append(out.Vault, secret.read(tenant))
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// configure runs a change of a tenant's configuration and answers the version that
// it made. Nothing else of the tenant is written meanwhile.
func (s *Store) configure(ctx context.Context, tenant id.Tenant, change func(context.Context, *tx) error) (version int64, err error) {
	err = s.writeAlone(ctx, tenant, func(ctx context.Context, t *tx) error {
		if err := t.need(tenant); err != nil {
			return err
		}
		version = t.tenants[tenant].version + 1
		t.last.Queue(sqlMoved, uuid(tenant), version)
		t.notify()
		return change(ctx, t)
	})
	if err != nil {
		return 0, err
	}
	return version, nil
}

// notify tells the other nodes, when the transaction commits, that there is
// something to look at.
func (t *tx) notify() { t.last.Queue(sqlNotify, noticeOf(t.node)) }

// InsertWebhook adds a webhook.
func (s *Store) InsertWebhook(ctx context.Context, w store.WebhookRow) (int64, error) {
	return s.configure(ctx, w.Tenant, func(ctx context.Context, t *tx) error {
		data, err := codec.EncodeWebhook(&w.Webhook)
		if err != nil {
			return err
		}
		if _, err := t.exec(ctx, sqlInsertWebhook, uuid(w.Tenant), uuid(w.ID), w.Revision, data, w.Sealed); err != nil {
			return exists(err, "the webhook")
		}
		if !w.PausedUntil.IsZero() {
			if err := t.pause(ctx, w.Tenant, w.ID, w.PausedUntil); err != nil {
				return err
			}
		}
		if err := t.refer(ctx, &w); err != nil {
			return err
		}
		return t.insertRevision(ctx, &w, data)
	})
}

// UpdateWebhook replaces a webhook.
func (s *Store) UpdateWebhook(ctx context.Context, w store.WebhookRow) (int64, error) {
	return s.configure(ctx, w.Tenant, func(ctx context.Context, t *tx) error {
		var revision int64
		found, err := t.one(ctx, sqlWebhookRevision, []any{uuid(w.Tenant), uuid(w.ID)}, &revision)
		if err != nil {
			return err
		}
		if !found {
			return hook.NotFound("Webhook")
		}
		if revision != w.Revision-1 {
			return store.ErrConfigMoved
		}
		data, err := codec.EncodeWebhook(&w.Webhook)
		if err != nil {
			return err
		}
		if _, err := t.exec(ctx, sqlUpdateWebhook, uuid(w.Tenant), uuid(w.ID), w.Revision, data, w.Sealed); err != nil {
			return err
		}
		if err := t.refer(ctx, &w); err != nil {
			return err
		}
		return t.insertRevision(ctx, &w, data)
	})
}

// keptRevisions is how many revisions of a webhook are kept. Attempts of older
// ones are shown without their request.
const keptRevisions = 100

func (t *tx) insertRevision(ctx context.Context, w *store.WebhookRow, data string) error {
	if _, err := t.exec(ctx, sqlForgetRevisions, uuid(w.Tenant), uuid(w.ID), w.Revision-keptRevisions); err != nil {
		return err
	}
	_, err := t.exec(ctx, sqlInsertRevision, uuid(w.Tenant), uuid(w.ID), w.Revision, data, w.Sealed)
	return exists(err, "this revision of the webhook")
}

// DeleteWebhook removes a webhook and starts the discard of its queue. A
// retry-all of it ends here: it would fill the queue again.
func (s *Store) DeleteWebhook(ctx context.Context, p store.DeleteWebhookParams) (int64, error) {
	return s.configure(ctx, p.Tenant, func(ctx context.Context, t *tx) error {
		n, err := t.exec(ctx, sqlDeleteWebhook, uuid(p.Tenant), uuid(p.Webhook))
		if err != nil {
			return err
		}
		if n == 0 {
			return hook.NotFound("Webhook")
		}
		// A discard that runs already may stand for less than there is now.
		for _, text := range [...]string{sqlDeleteLane, sqlDeleteReferences, sqlEndJobs} {
			if _, err := t.exec(ctx, text, uuid(p.Tenant), uuid(p.Webhook)); err != nil {
				return err
			}
		}
		_, err = t.startJob(ctx, store.JobParams{ID: p.Job, Tenant: p.Tenant, Webhook: p.Webhook, Kind: store.JobDiscard, Now: p.Now})
		return err
	})
}

// WebhookRevision reads a webhook as it was.
func (s *Store) WebhookRevision(ctx context.Context, tenant id.Tenant, webhook id.Webhook, revision int64) (*store.WebhookRow, error) {
	var out store.WebhookRow
	err := s.read(ctx, tenant, func(ctx context.Context, q pgx.Tx) error {
		var w webhookColumns
		found, err := one(ctx, q, sqlRevision, []any{uuid(tenant), uuid(webhook), revision}, w.to()...)
		if err != nil {
			return err
		}
		if !found {
			return hook.NotFound("Webhook")
		}
		out, err = w.read(tenant)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &out, nil
}

// SetPause holds a webhook back. Its row stays when it goes on, so that all nodes
// learn of it.
func (s *Store) SetPause(ctx context.Context, tenant id.Tenant, webhook id.Webhook, until time.Time) error {
	return s.write(ctx, []id.Tenant{tenant}, func(ctx context.Context, t *tx) error {
		if err := t.need(tenant); err != nil {
			return err
		}
		found, err := t.one(ctx, sqlWebhook, []any{uuid(tenant), uuid(webhook)}, new(int))
		if err != nil {
			return err
		}
		if !found {
			return hook.NotFound("Webhook")
		}
		var before int64
		if _, err := t.one(ctx, sqlPausedUntil, []any{uuid(tenant), uuid(webhook)}, &before); err != nil {
			return err
		}
		if before == millis(until) || before <= 0 && until.IsZero() {
			t.unchanged()
			return nil
		}
		t.notify()
		return t.pause(ctx, tenant, webhook, until)
	})
}

func (t *tx) pause(ctx context.Context, tenant id.Tenant, webhook id.Webhook, until time.Time) error {
	_, err := t.exec(ctx, sqlPause, uuid(tenant), uuid(webhook), millisOrNull(until).Int64)
	return err
}

func (t *tx) insertKey(ctx context.Context, k *store.KeyRow) error {
	scopes, err := json.Marshal(k.Scopes)
	if err != nil {
		return err
	}
	_, err = t.exec(ctx, sqlInsertAPIKey, uuid(k.Tenant), uuid(k.ID), k.Hash[:], k.Name, k.Hint, string(scopes),
		millis(k.CreatedAt), millisOrNull(k.ExpiresAt), millisOrNull(k.LastUsedAt))
	if err == nil {
		_, err = t.exec(ctx, sqlInsertSecret, k.Hash[:], kindAPIKey, uuid(k.Tenant), uuid(k.ID))
	}
	return exists(err, "the API key")
}

// InsertKey adds a tenant's key.
func (s *Store) InsertKey(ctx context.Context, k store.KeyRow) (int64, error) {
	return s.configure(ctx, k.Tenant, func(ctx context.Context, t *tx) error { return t.insertKey(ctx, &k) })
}

// keyHash is the hash of a key that is there.
func (t *tx) keyHash(ctx context.Context, tenant id.Tenant, key id.Key) ([]byte, error) {
	var hash []byte
	found, err := t.one(ctx, sqlAPIKeyHash, []any{uuid(tenant), uuid(key)}, &hash)
	if err == nil && !found {
		err = hook.NotFound("API key")
	}
	return hash, err
}

// UpdateKey replaces a key's name, hint, scopes, end and hash. When it was used
// is for TouchKeys to say.
func (s *Store) UpdateKey(ctx context.Context, k store.KeyRow) (int64, error) {
	return s.configure(ctx, k.Tenant, func(ctx context.Context, t *tx) error { return t.updateKey(ctx, &k) })
}

func (t *tx) updateKey(ctx context.Context, k *store.KeyRow) error {
	scopes, err := json.Marshal(k.Scopes)
	if err != nil {
		return err
	}
	before, err := t.keyHash(ctx, k.Tenant, k.ID)
	if err != nil {
		return err
	}
	_, err = t.exec(ctx, sqlUpdateAPIKey, uuid(k.Tenant), uuid(k.ID), k.Hash[:], k.Name, k.Hint, string(scopes), millisOrNull(k.ExpiresAt))
	if err == nil {
		_, err = t.exec(ctx, sqlReplaceSecret, before, k.Hash[:])
	}
	return exists(err, "an API key of this hash")
}

// DeleteKey removes a tenant's key.
func (s *Store) DeleteKey(ctx context.Context, tenant id.Tenant, key id.Key) (int64, error) {
	return s.configure(ctx, tenant, func(ctx context.Context, t *tx) error { return t.deleteKey(ctx, tenant, key) })
}

func (t *tx) deleteKey(ctx context.Context, tenant id.Tenant, key id.Key) error {
	hash, err := t.keyHash(ctx, tenant, key)
	if err != nil {
		return err
	}
	if _, err := t.exec(ctx, sqlDeleteAPIKey, uuid(tenant), uuid(key)); err != nil {
		return err
	}
	_, err = t.exec(ctx, sqlDeleteSecret, hash)
	return err
}
