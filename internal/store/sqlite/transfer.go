package sqlite

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/plinqx/hypha/internal/store/transfer"
)

// source says where a part's rows are: the table, what besides its columns differs,
// and the key in whose order they are read.
type source struct {
	table string
	where string
	key   []string
	// as are expressions for columns that have another name or none here.
	as map[string]string
}

func sourceOf(part string) (source, bool) {
	s, ok := map[string]source{
		"tenants":           {table: "tenants", key: []string{"id"}, as: map[string]string{"era": "(SELECT value FROM settings WHERE name = 'era')"}},
		"webhooks":          {table: "webhooks", key: []string{"tenant_id", "id"}},
		"webhook_revisions": {table: "webhook_revisions", key: []string{"tenant_id", "webhook_id", "revision"}},
		"lanes":             {table: "lanes", key: []string{"tenant_id", "webhook_id"}},
		"vault":             {table: "vault", key: []string{"tenant_id", "id"}},
		"vault_references":  {table: "vault_references", key: []string{"tenant_id", "name", "webhook_id"}},
		"api_keys":          {table: "keys", key: []string{"tenant_id", "id"}},
		"users":             {table: "users", key: []string{"tenant_id", "id"}},
		"sessions":          {table: "sessions", key: []string{"tenant_id", "id"}},
		"event_keys":        {table: "event_keys", key: []string{"tenant_id", "kind", "key"}},
		"events":            {table: "events INDEXED BY events_id", key: []string{"tenant_id", "id"}, as: map[string]string{"body": "coalesce(body, x'')"}},
		"queue":             {table: "deliveries", where: "due_at IS NOT NULL", key: []string{"tenant_id", "id"}},
		"deliveries":        {table: "deliveries", where: "due_at IS NULL", key: []string{"tenant_id", "id"}},
		"attempts":          {table: "attempts", key: []string{"tenant_id", "delivery_id", "number"}},
		// How far a job is means something to its own store alone: it begins anew, and
		// finds what it has done already done.
		"jobs":     {table: "jobs", key: []string{"tenant_id", "id"}, as: map[string]string{"cursor_id": "zeroblob(16)", "passed": "0"}},
		"gauges":   {table: "gauges", key: []string{"tenant_id", "webhook_id"}},
		"audit":    {table: "audit", key: []string{"tenant_id", "id"}},
		"counters": {table: "counters", key: []string{"tenant_id", "webhook_id", "level", "bucket"}},
	}[part]
	// What a removed tenant left is not taken along: it is on its way out.
	if part != "tenants" {
		if s.where != "" {
			s.where += " AND "
		}
		s.where += "tenant_id NOT IN (SELECT id FROM removed_tenants)"
	}
	if s.where == "" {
		s.where = "1"
	}
	return s, ok
}

// ReadPart implements transfer.Source. A cursor is the key of a row.
func (s *Store) ReadPart(ctx context.Context, p transfer.Part, after []byte, limit int) (*transfer.Page, error) {
	from, ok := sourceOf(p.Name)
	if !ok {
		return nil, fmt.Errorf("this store has no %s", p.Name)
	}
	var columns []string
	at := map[string]int{}
	for i, c := range p.Columns {
		at[c.Name] = i
		if as := from.as[c.Name]; as != "" {
			columns = append(columns, as)
		} else {
			columns = append(columns, c.Name)
		}
	}
	key := strings.Join(from.key, ", ")
	text := "SELECT " + strings.Join(columns, ", ") + " FROM " + from.table + " WHERE " + from.where
	var args []any
	if after != nil {
		text += " AND (" + key + ") > (" + strings.TrimSuffix(strings.Repeat("?, ", len(from.key)), ", ") + ")"
		for i := range from.key {
			v, rest, err := readKeyPart(p.Columns[at[from.key[i]]].Type, after)
			if err != nil {
				return nil, err
			}
			args, after = append(args, v), rest
		}
	}
	text += " ORDER BY " + key + " LIMIT ?"
	page := &transfer.Page{}
	err := s.snapshot(ctx, func(c *conn) error {
		return c.query(text, func(r row) (bool, error) {
			values, err := transferRow(p, r)
			page.Rows = append(page.Rows, values)
			return true, err
		}, append(args, limit)...)
	})
	if err != nil {
		return nil, err
	}
	if len(page.Rows) == limit {
		last := page.Rows[limit-1]
		for _, name := range from.key {
			page.Next = appendKeyPart(page.Next, last[at[name]])
		}
	}
	return page, nil
}

func transferRow(p transfer.Part, r row) (transfer.Row, error) {
	out := make(transfer.Row, len(p.Columns))
	for i, c := range p.Columns {
		if r.null(i) {
			continue
		}
		switch c.Type {
		case transfer.ID:
			b := r.blob(i)
			if len(b) != 16 {
				return nil, fmt.Errorf("%s.%s is no id", p.Name, c.Name)
			}
			out[i] = [16]byte(b)
		case transfer.Integer:
			out[i] = r.int(i)
		case transfer.Text:
			out[i] = r.text(i)
		case transfer.Bytes:
			out[i] = r.blob(i)
		case transfer.Boolean:
			out[i] = r.bool(i)
		}
	}
	return out, nil
}

func appendKeyPart(b []byte, v any) []byte {
	switch v := v.(type) {
	case [16]byte:
		return append(b, v[:]...)
	case int64:
		return binary.AppendVarint(b, v)
	case string:
		return append(binary.AppendUvarint(b, uint64(len(v))), v...)
	default:
		return b
	}
}

func readKeyPart(t transfer.Type, b []byte) (v any, rest []byte, err error) {
	bad := fmt.Errorf("the place where the copy was broken off can't be read")
	switch t {
	case transfer.ID:
		if len(b) < 16 {
			return nil, nil, bad
		}
		return b[:16:16], b[16:], nil
	case transfer.Integer:
		n, size := binary.Varint(b)
		if size <= 0 {
			return nil, nil, bad
		}
		return n, b[size:], nil
	default:
		n, size := binary.Uvarint(b)
		if size <= 0 || uint64(len(b)-size) < n {
			return nil, nil, bad
		}
		return string(b[size : size+int(n)]), b[size+int(n):], nil
	}
}

// CountPart implements transfer.Source.
func (s *Store) CountPart(ctx context.Context, p transfer.Part) (n int64, err error) {
	from, ok := sourceOf(p.Name)
	if !ok {
		return 0, fmt.Errorf("this store has no %s", p.Name)
	}
	table, _, _ := strings.Cut(from.table, " INDEXED")
	err = s.snapshot(ctx, func(c *conn) error {
		return c.scan("SELECT count(*) FROM "+table+" WHERE "+from.where, func(r row) { n = r.int(0) })
	})
	return n, err
}
