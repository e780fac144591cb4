package sqlite

import (
	"context"
	"fmt"

	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/internal/store/codec"
)

// The audit log is written by whoever changes something, at the end of its
// transaction (tx.record). There is no statement that changes an entry.

const (
	sqlInsertAudit = `INSERT INTO audit (tenant_id, id, action, actor, object, data) VALUES (?, ?, ?, ?, ?, ?)`
	sqlAudit       = `SELECT id, action, actor, object,
			CASE WHEN (? = '' OR action = ?) AND (? = '' OR actor = ?) AND (? = '' OR object = ?) THEN data END
		FROM audit WHERE tenant_id = ? AND id >= ? AND id < ? ORDER BY id`
	sqlAuditOldest = sqlAudit + ` LIMIT ?`
	sqlAuditNewest = sqlAudit + ` DESC LIMIT ?`
	sqlOldAudit    = `DELETE FROM audit WHERE (tenant_id, id) IN (SELECT tenant_id, id FROM audit INDEXED BY audit_age WHERE id < ? ORDER BY id LIMIT ?)`
)

// record writes the entry of what the transaction did, if anybody said what that is.
func (t *tx) record() error {
	if t.audit == nil {
		return nil
	}
	r, err := codec.EncodeAudit(t.audit)
	if err != nil {
		return err
	}
	if _, err := t.exec(sqlInsertAudit, r.Tenant[:], r.ID[:], r.Action, r.Actor, r.Object, r.Data); err != nil {
		return fmt.Errorf("write the audit log: %w", err)
	}
	return nil
}

// RecordAudit writes an entry of what changed nothing here.
func (s *Store) RecordAudit(ctx context.Context) error {
	return s.write(ctx, func(t *tx) error {
		if t.audit == nil || t.audit.Tenant.IsZero() {
			return nil
		}
		return t.need(t.audit.Tenant)
	})
}

// AuditEntries lists entries.
func (s *Store) AuditEntries(ctx context.Context, q store.AuditQuery) (*store.AuditPage, error) {
	q.Limit = min(max(1, q.Limit), pageLimit)
	page := &store.AuditPage{}
	look := func(c *conn) error {
		text, looks, more := sqlAuditNewest, 0, false
		if q.Oldest {
			text = sqlAuditOldest
		}
		first, end := q.Range()
		var last id.Audit
		err := c.query(text, func(r row) (bool, error) {
			looks++
			if r.null(4) {
				last = readID[id.Audit](r, 0)
				return true, nil
			}
			if more = len(page.Entries) == q.Limit; more {
				return false, nil
			}
			last = readID[id.Audit](r, 0)
			e, err := codec.DecodeAudit(&codec.AuditRow{Tenant: q.Tenant, ID: last, Action: r.text(1), Actor: r.text(2), Object: r.text(3), Data: r.text(4)})
			page.Entries = append(page.Entries, e)
			return true, err
		}, string(q.Action), string(q.Action), q.Actor, q.Actor, q.Object, q.Object, q.Tenant[:], first[:], end[:], lookChunk)
		if err == nil && (more || looks == lookChunk) {
			page.Next = last
		}
		return err
	}
	var err error
	if q.Tenant.IsZero() {
		err = s.snapshot(ctx, look)
	} else {
		err = s.read(ctx, q.Tenant, look)
	}
	if err != nil {
		return nil, fmt.Errorf("list the audit log: %w", err)
	}
	return page, nil
}

// unchanged says that the transaction changes nothing that is worth an entry.
func (t *tx) unchanged() { t.audit = nil }

// oldAudit deletes entries that are old.
func (p *pruner) oldAudit() error {
	if p.p.AuditBefore.IsZero() {
		return nil
	}
	end := id.First(p.p.AuditBefore)
	n, err := p.t.exec(sqlOldAudit, end[:], p.p.Limit)
	if err != nil {
		return fmt.Errorf("delete old entries of the audit log: %w", err)
	}
	p.out.AuditEntries = int(n)
	p.out.More = p.out.More || n == int64(p.p.Limit)
	return nil
}
