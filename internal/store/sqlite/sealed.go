package sqlite

import (
	"bytes"
	"context"
	"fmt"

	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// sealedTable says where what is sealed of a kind is, and by what its rows are known.
type sealedTable struct {
	name, id, revision, label string
	order                     string // of SealedPosition
}

func sealedTableOf(kind store.SealedKind) (sealedTable, error) {
	switch kind {
	case store.SealedWebhook:
		return sealedTable{name: "webhooks", order: "tenant_id, id", id: "id", revision: "0", label: "''"}, nil
	case store.SealedRevision:
		return sealedTable{name: "webhook_revisions", order: "tenant_id, webhook_id, revision", id: "webhook_id", revision: "revision", label: "''"}, nil
	case store.SealedVault:
		return sealedTable{name: "vault", order: "tenant_id, id", id: "id", revision: "0", label: "name"}, nil
	default:
		return sealedTable{}, fmt.Errorf("there is nothing sealed of kind %q", kind)
	}
}

// SealedHeads goes from one to the next, down the index.
func (s *Store) SealedHeads(ctx context.Context, kind store.SealedKind) ([][store.SealedHead]byte, error) {
	table, err := sealedTableOf(kind)
	if err != nil {
		return nil, err
	}
	text := fmt.Sprintf("SELECT substr(sealed, 1, 5) AS head FROM %[1]s INDEXED BY %[1]s_sealed WHERE head > ? ORDER BY head LIMIT 1", table.name)
	var heads [][store.SealedHead]byte
	err = s.snapshot(ctx, func(c *conn) error {
		for last := []byte{}; ; {
			found, err := c.one(text, func(r row) { last = bytes.Clone(r.blob(0)) }, last)
			if err != nil || !found {
				return err
			}
			heads = append(heads, sealedHead(last))
		}
	})
	return heads, err
}

func sealedHead(begins []byte) (head [store.SealedHead]byte) {
	copy(head[:], begins)
	return head
}

// SealedCounts counts what is sealed.
func (s *Store) SealedCounts(ctx context.Context, kind store.SealedKind) ([]store.SealedCount, error) {
	table, err := sealedTableOf(kind)
	if err != nil {
		return nil, err
	}
	text := fmt.Sprintf("SELECT substr(sealed, 1, 5) AS head, count(*) FROM %[1]s INDEXED BY %[1]s_sealed WHERE head IS NOT NULL GROUP BY head", table.name)
	var out []store.SealedCount
	err = s.snapshot(ctx, func(c *conn) error {
		return c.scan(text, func(r row) {
			out = append(out, store.SealedCount{Head: sealedHead(r.blob(0)), Rows: r.int(1)})
		})
	})
	return out, err
}

// SealedRows lists what is sealed under a key.
func (s *Store) SealedRows(ctx context.Context, q store.SealedQuery) ([]store.SealedRow, error) {
	table, err := sealedTableOf(q.Kind)
	if err != nil {
		return nil, err
	}
	var out []store.SealedRow
	text := fmt.Sprintf(`SELECT tenant_id, %[2]s, %[3]s, %[4]s, sealed FROM %[1]s INDEXED BY %[1]s_sealed
		WHERE substr(sealed, 1, 5) = ? AND (tenant_id, %[2]s, %[3]s) > (?, ?, ?) ORDER BY %[5]s LIMIT ?`,
		table.name, table.id, table.revision, table.label, table.order)
	err = s.snapshot(ctx, func(c *conn) error {
		return c.scan(text, func(r row) {
			v := store.SealedRow{Kind: q.Kind, Name: r.text(3), Sealed: r.blob(4)}
			v.Tenant, v.ID, v.Revision = readID[id.Tenant](r, 0), readID[[16]byte](r, 1), r.int(2)
			out = append(out, v)
		}, q.Head[:], q.After.Tenant[:], q.After.ID[:], q.After.Revision, q.Limit)
	})
	return out, err
}

// Reseal replaces sealed bytes that nobody has changed.
func (s *Store) Reseal(ctx context.Context, rows []store.Resealed) (replaced int64, err error) {
	err = s.write(ctx, func(t *tx) error {
		replaced = 0
		for i := range rows {
			r := &rows[i]
			table, err := sealedTableOf(r.Kind)
			if err != nil {
				return err
			}
			text := fmt.Sprintf("UPDATE %s SET sealed = ? WHERE tenant_id = ? AND %s = ? AND sealed = ?", table.name, table.id)
			args := []any{r.New, r.Tenant[:], r.ID[:], r.Sealed}
			if r.Kind == store.SealedRevision {
				text, args = text+" AND revision = ?", append(args, r.Revision)
			}
			n, err := t.exec(text, args...)
			if err != nil {
				return err
			}
			replaced += n
		}
		return nil
	})
	return replaced, err
}
