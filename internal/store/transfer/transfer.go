// Package transfer takes a whole embedded store across to a shared one, part by
// part and page by page: whatever ends it in the middle, it goes on where it was.
// In the end both sides are counted.
//
// It knows what the parts are called and of what their rows are made. How a part is
// read and written is the drivers' matter.
package transfer

import (
	"context"
	"fmt"
	"time"
)

// Type is what stands in a column.
type Type int

// The types. A nil stands for NULL.
const (
	ID      Type = iota // [16]byte
	Integer             // int64
	Text                // string
	Bytes               // []byte
	Boolean             // bool
)

// Column is a column of a part.
type Column struct {
	Name string
	Type Type
}

// Part is a set of rows of one kind.
type Part struct {
	Name    string
	Columns []Column
}

// Row is a row of a part, a value per column.
type Row []any

// Page is a page of a part's rows. Next is where to go on; nil at the end.
type Page struct {
	Rows []Row
	Next []byte
}

// Parts are all that a store is made of, in the order in which they go: what others
// refer to comes first.
func Parts() []Part {
	id := func(names ...string) (c []Column) { return typed(ID, names) }
	num := func(names ...string) (c []Column) { return typed(Integer, names) }
	txt := func(names ...string) (c []Column) { return typed(Text, names) }
	raw := func(names ...string) (c []Column) { return typed(Bytes, names) }
	flag := func(names ...string) (c []Column) { return typed(Boolean, names) }
	part := func(name string, columns ...[]Column) Part {
		p := Part{Name: name}
		for _, c := range columns {
			p.Columns = append(p.Columns, c...)
		}
		return p
	}
	delivery := [][]Column{
		id("tenant_id", "id", "webhook_id", "event_id"), num("era", "expires_at", "attempts", "try", "status"),
		txt("given_id", "event_type", "trigger"), id("replay_id"), num("last_at", "last_status", "last_us"),
		txt("last_kind", "last_message"), raw("detail"),
	}
	return []Part{
		part("tenants", id("id"), txt("name"), num("created_at", "updated_at", "config_version", "era")),
		part("webhooks", id("tenant_id", "id"), num("revision"), txt("data"), raw("sealed")),
		part("webhook_revisions", id("tenant_id", "webhook_id"), num("revision"), txt("data"), raw("sealed")),
		part("vault", id("tenant_id", "id"), txt("name"), num("revision"), txt("description"), raw("sealed"), num("created_at", "updated_at")),
		part("vault_references", id("tenant_id"), txt("name"), id("webhook_id")),
		part("lanes", id("tenant_id", "webhook_id"), num("paused_until")),
		part("api_keys", id("tenant_id", "id"), raw("hash"), txt("name", "hint", "scopes"), num("created_at", "expires_at", "last_used_at")),
		part("users", id("tenant_id", "id"), txt("email", "role", "password_hash"), num("created_at", "updated_at", "last_login_at")),
		part("sessions", id("tenant_id", "id"), raw("hash"), id("user_id"), num("created_at", "expires_at", "last_used_at")),
		part("event_keys", id("tenant_id"), num("kind"), txt("key"), raw("hash"), num("expires_at"), id("event_id"), raw("answer")),
		part("events", id("tenant_id", "id"), num("ts"), txt("type", "given_id"), raw("deliveries", "body")),
		part("queue", append(delivery, num("due_at"))...),
		part("deliveries", append(delivery, num("completed_at"), txt("fail_kind", "fail_message"))...),
		part("attempts", id("tenant_id", "delivery_id"), num("number"), raw("data")),
		part("jobs", id("tenant_id", "id", "webhook_id"), txt("kind"), num("era", "created_at", "total", "moved"), flag("done"),
			id("cursor_id"), flag("passed")),
		part("gauges", id("tenant_id", "webhook_id"), num("pending", "failed", "total")),
		part("counters", id("tenant_id", "webhook_id"), num("level", "bucket", "succeeded", "failed"), raw("latency")),
		part("audit", id("tenant_id", "id"), txt("action", "actor", "object", "data")),
	}
}

func typed(t Type, names []string) (columns []Column) {
	for _, name := range names {
		columns = append(columns, Column{name, t})
	}
	return columns
}

// Source is the store that is read. Nobody may write to it meanwhile.
type Source interface {
	// ReadPart reads rows that follow a cursor (nil: from the first), at most limit.
	ReadPart(ctx context.Context, p Part, after []byte, limit int) (*Page, error)
	// CountPart counts a part's rows.
	CountPart(ctx context.Context, p Part) (int64, error)
}

// Target is the store that is written.
type Target interface {
	// BeginTransfer makes ready for rows of a source. It is an error if there is
	// something that did not come from a transfer.
	BeginTransfer(ctx context.Context) error
	// Transferred says how far a part is.
	Transferred(ctx context.Context, p Part) (Progress, error)
	// WritePart writes a page, and how far the part is then, in one transaction.
	WritePart(ctx context.Context, p Part, rows []Row, now Progress) error
	// CountPart counts a part's rows.
	CountPart(ctx context.Context, p Part) (int64, error)
	// EndTransfer forgets how far the parts were: the store is like any other.
	EndTransfer(ctx context.Context) error
}

// Progress is how far a part is.
type Progress struct {
	Cursor []byte
	Rows   int64
	Done   bool
}

// Options say how to go about it.
type Options struct {
	// Rows are those of a page; default 1,000.
	Rows int
	// Report is told of each part that is done, and of a long one every few
	// seconds. Default: nobody is.
	Report func(part string, rows, total int64, done bool)
}

// reportEach is how often a long part is reported.
const reportEach = 5 * time.Second

// Run takes everything across. Called again after it was broken off, it goes on.
func Run(ctx context.Context, from Source, to Target, o Options) error {
	if o.Rows == 0 {
		o.Rows = 1000
	}
	if o.Report == nil {
		o.Report = func(string, int64, int64, bool) {}
	}
	if err := to.BeginTransfer(ctx); err != nil {
		return err
	}
	for _, p := range Parts() {
		if err := run(ctx, from, to, p, o); err != nil {
			return fmt.Errorf("copy %s: %w", p.Name, err)
		}
	}
	return to.EndTransfer(ctx)
}

func run(ctx context.Context, from Source, to Target, p Part, o Options) error {
	total, err := from.CountPart(ctx, p)
	if err != nil {
		return err
	}
	at, err := to.Transferred(ctx, p)
	if err != nil {
		return err
	}
	for reported := time.Now(); !at.Done; {
		page, err := from.ReadPart(ctx, p, at.Cursor, o.Rows)
		if err != nil {
			return err
		}
		at = Progress{Cursor: page.Next, Rows: at.Rows + int64(len(page.Rows)), Done: page.Next == nil}
		if err := to.WritePart(ctx, p, page.Rows, at); err != nil {
			return err
		}
		if !at.Done && time.Since(reported) > reportEach {
			reported = time.Now()
			o.Report(p.Name, at.Rows, total, false)
		}
	}
	// What was written is counted, not what was meant to be.
	there, err := to.CountPart(ctx, p)
	if err != nil {
		return err
	}
	if there != total {
		return fmt.Errorf("the source has %d rows and the target %d: has one of them been written to since the copy began? Begin again with an empty database", total, there)
	}
	o.Report(p.Name, there, total, true)
	return nil
}
