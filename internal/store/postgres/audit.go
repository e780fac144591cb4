package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/internal/store/codec"
)

// The audit log is written by whoever changes something, with the commit of its
// transaction (tx.record). There is no statement that changes an entry.

const (
	auditColumns   = `id, action, actor, object, data`
	sqlInsertAudit = `INSERT INTO audit (tenant_id, ` + auditColumns + `) VALUES ($1, $2, $3, $4, $5, $6)`
	sqlAuditRange  = ` FROM audit WHERE tenant_id = $1 AND id >= $2 AND id < $3 ORDER BY id `
	sqlOldAudit    = `DELETE FROM audit WHERE (tenant_id, id) IN (SELECT tenant_id, id FROM audit WHERE id < $1 ORDER BY id LIMIT $2)`
)

// record writes the entry of what the transaction did, if anybody said what that is,
// together with its commit.
func (t *tx) record() error {
	if t.audit == nil {
		return nil
	}
	r, err := codec.EncodeAudit(t.audit)
	if err != nil {
		return err
	}
	t.last.Queue(sqlInsertAudit, uuid(r.Tenant), uuid(r.ID), r.Action, r.Actor, r.Object, r.Data)
	return nil
}

// unchanged says that the transaction changes nothing that is worth an entry.
func (t *tx) unchanged() { t.audit = nil }

// RecordAudit writes an entry of what changed nothing here.
func (s *Store) RecordAudit(ctx context.Context) error {
	e := store.AuditOf(ctx)
	if e == nil {
		return nil
	}
	if e.Tenant.IsZero() {
		return s.write(ctx, nil, func(context.Context, *tx) error { return nil })
	}
	return s.write(ctx, []id.Tenant{e.Tenant}, func(_ context.Context, t *tx) error { return t.need(e.Tenant) })
}

// AuditEntries lists entries.
func (s *Store) AuditEntries(ctx context.Context, q store.AuditQuery) (*store.AuditPage, error) {
	if !storable(q.Actor) || !storable(q.Object) || !storable(string(q.Action)) {
		return &store.AuditPage{}, nil
	}
	q.Limit = min(max(1, q.Limit), pageLimit)
	var page *store.AuditPage
	look := func(ctx context.Context, c pgx.Tx) (err error) {
		page, err = auditPage(ctx, c, &q)
		return err
	}
	var err error
	if q.Tenant.IsZero() {
		err = s.look(ctx, look)
	} else {
		err = s.browse(ctx, q.Tenant, look)
	}
	if err != nil {
		return nil, fmt.Errorf("list the audit log: %w", err)
	}
	return page, nil
}

func auditPage(ctx context.Context, c pgx.Tx, q *store.AuditQuery) (*store.AuditPage, error) {
	order := "DESC"
	if q.Oldest {
		order = "ASC"
	}
	first, end := q.Range()
	args := []any{uuid(q.Tenant), uuid(first), uuid(end)}
	text := fmt.Sprintf("SELECT %s%s%s LIMIT %d", auditColumns, sqlAuditRange, order, q.Limit+1)
	filters := args
	if q.Filtered() {
		text = fmt.Sprintf(`SELECT %s FROM (SELECT *%s%s LIMIT %d) AS looked
			WHERE ($4 = '' OR action = $4) AND ($5 = '' OR actor = $5) AND ($6 = '' OR object = $6) ORDER BY id %s LIMIT %d`,
			auditColumns, sqlAuditRange, order, lookChunk, order, q.Limit+1)
		filters = append(filters, string(q.Action), q.Actor, q.Object)
	}
	page, row := &store.AuditPage{}, codec.AuditRow{Tenant: q.Tenant}
	err := each(ctx, c, text, filters, []any{(*[16]byte)(&row.ID), &row.Action, &row.Actor, &row.Object, &row.Data}, func() error {
		e, err := codec.DecodeAudit(&row)
		page.Entries = append(page.Entries, e)
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(page.Entries) > q.Limit {
		page.Entries = page.Entries[:q.Limit]
		page.Next = page.Entries[q.Limit-1].ID
		return page, nil
	}
	if q.Filtered() {
		// There is more to look at if so many rows were looked at.
		_, err = one(ctx, c, fmt.Sprintf("SELECT id%s%s LIMIT 1 OFFSET %d", sqlAuditRange, order, lookChunk-1), args, (*[16]byte)(&page.Next))
	}
	return page, err
}
