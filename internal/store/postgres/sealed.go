package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

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
		return sealedTable{name: "webhooks", order: "tenant_id, id", id: "id", revision: "0::bigint", label: "''"}, nil
	case store.SealedRevision:
		return sealedTable{name: "webhook_revisions", order: "tenant_id, webhook_id, revision", id: "webhook_id", revision: "revision", label: "''"}, nil
	case store.SealedVault:
		return sealedTable{name: "vault", order: "tenant_id, id", id: "id", revision: "0::bigint", label: "name"}, nil
	default:
		return sealedTable{}, fmt.Errorf("there is nothing sealed of kind %q", kind)
	}
}

// head is how something sealed begins, as the tables' indexes have it.
const head = "substring(sealed FROM 1 FOR 5)"

// SealedHeads goes from one to the next, down the index.
func (s *Store) SealedHeads(ctx context.Context, kind store.SealedKind) ([][store.SealedHead]byte, error) {
	table, err := sealedTableOf(kind)
	if err != nil {
		return nil, err
	}
	text := fmt.Sprintf("SELECT %[1]s FROM %[2]s WHERE %[1]s > $1 ORDER BY %[1]s LIMIT 1", head, table.name)
	var heads [][store.SealedHead]byte
	err = s.look(ctx, func(ctx context.Context, q pgx.Tx) error {
		heads = nil
		for last := []byte{}; ; {
			found, err := one(ctx, q, text, []any{last}, &last)
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
	var out []store.SealedCount
	var begins []byte
	var rows int64
	text := fmt.Sprintf("SELECT %[1]s, count(*) FROM %[2]s WHERE sealed IS NOT NULL GROUP BY 1 ORDER BY 1", head, table.name)
	err = s.ask(ctx, text, nil, []any{&begins, &rows}, func() error {
		out = append(out, store.SealedCount{Head: sealedHead(begins), Rows: rows})
		return nil
	})
	return out, err
}

// SealedRows lists what is sealed under a key.
func (s *Store) SealedRows(ctx context.Context, q store.SealedQuery) ([]store.SealedRow, error) {
	table, err := sealedTableOf(q.Kind)
	if err != nil {
		return nil, err
	}
	text := fmt.Sprintf(`SELECT tenant_id, %[2]s, %[3]s, %[4]s, sealed FROM %[1]s
		WHERE `+head+` = $1 AND (tenant_id, %[2]s, %[3]s) > ($2, $3, $4::bigint) ORDER BY %[5]s LIMIT $5`,
		table.name, table.id, table.revision, table.label, table.order)
	var out []store.SealedRow
	r := store.SealedRow{Kind: q.Kind}
	to := []any{(*[16]byte)(&r.Tenant), &r.ID, &r.Revision, &r.Name, &r.Sealed}
	err = s.ask(ctx, text, []any{q.Head[:], uuid(q.After.Tenant), uuid(q.After.ID), q.After.Revision, int64(q.Limit)}, to, func() error {
		out = append(out, r)
		r.Sealed = nil
		return nil
	})
	return out, err
}

// Reseal replaces sealed bytes that nobody has changed. Who changes one of the rows at
// the same time is waited for, and what they wrote stays.
func (s *Store) Reseal(ctx context.Context, rows []store.Resealed) (replaced int64, err error) {
	err = s.write(ctx, nil, func(ctx context.Context, t *tx) error {
		replaced = 0
		for _, kind := range store.SealedKinds() {
			table, err := sealedTableOf(kind)
			if err != nil {
				return err
			}
			var tenants, ids []pgtype.UUID
			var revisions []int64
			var before, after [][]byte
			for i := range rows {
				if r := &rows[i]; r.Kind == kind {
					tenants, ids, revisions = append(tenants, uuid(r.Tenant)), append(ids, uuid(r.ID)), append(revisions, r.Revision)
					before, after = append(before, r.Sealed), append(after, r.New)
				}
			}
			if len(ids) == 0 {
				continue
			}
			n, err := t.exec(ctx, fmt.Sprintf(`UPDATE %[1]s x SET sealed = v.after
				FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::bytea[], $5::bytea[]) AS v(tenant_id, row_id, row_revision, before, after)
				WHERE x.tenant_id = v.tenant_id AND x.%[2]s = v.row_id AND %[3]s = v.row_revision AND x.sealed = v.before`, table.name, table.id, table.revision),
				tenants, ids, revisions, before, after)
			if err != nil {
				return err
			}
			replaced += n
		}
		return nil
	})
	return replaced, err
}

// NodeKeys are the fingerprints of the keys that a node has; the first one seals.
type NodeKeys struct {
	Node int64
	Name string
	Keys []int64
}

// KeysOfOthers reads which keys the other nodes have that live, as far as they said
// so.
func (s *Store) KeysOfOthers(ctx context.Context) ([]NodeKeys, error) {
	var out []NodeKeys
	var n NodeKeys
	err := s.ask(ctx, `SELECT id, name, secret_keys FROM nodes
		WHERE id <> $1 AND secret_keys IS NOT NULL AND beat_at > clock_timestamp() - interval '10 seconds' ORDER BY id`,
		[]any{s.node.Load()}, []any{&n.Node, &n.Name, &n.Keys}, func() error {
			out = append(out, n)
			n.Keys = nil
			return nil
		})
	return out, err
}
