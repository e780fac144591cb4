package store

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
)

// Audit is the record of who changed what.
//
// An entry is written in the transaction of the change that it tells of: whatever
// method makes the change writes the entry that its context carries (WithAudit),
// once, if it changes anything, and not at all if it fails. An entry that is
// written is never changed, and nothing but its age, or the end of its tenant,
// deletes it.
type Audit interface {
	// RecordAudit writes the entry that the context carries, of something that
	// changed nothing here.
	RecordAudit(ctx context.Context) error
	// AuditEntries lists entries of a tenant, or of the operators.
	AuditEntries(ctx context.Context, q AuditQuery) (*AuditPage, error)
}

// AuditQuery asks for entries: those made at Since or later, and before Until. A
// zero time, and "", is open.
type AuditQuery struct {
	Tenant       id.Tenant // zero: the operators' own log
	Action       hook.AuditAction
	Actor        string // AuditActor.Key
	Object       string // AuditObject.ID
	Since, Until time.Time
	// Oldest says that the oldest come first; else the newest do.
	Oldest bool
	// After is the entry after which to go on, in the order of the list; zero from
	// its beginning.
	After id.Audit
	Limit int
}

// AuditPage is a page of entries; see EventPage.
type AuditPage struct {
	Entries []hook.AuditEntry
	Next    id.Audit
}

type auditKey struct{}

// WithAudit hands an entry to the next method of a Store that changes something.
// Its ID and At are the store's to say, unless they are given.
func WithAudit(ctx context.Context, e hook.AuditEntry) context.Context {
	return context.WithValue(ctx, auditKey{}, &e)
}

// AuditOf is a copy of the entry that a context carries, for the transaction that
// writes it; nil if there is none.
func AuditOf(ctx context.Context) *hook.AuditEntry {
	e, ok := ctx.Value(auditKey{}).(*hook.AuditEntry)
	if !ok {
		return nil
	}
	own := *e
	own.Changes = slices.Clone(e.Changes)
	return &own
}

// Range are the bounds of the ids that q asks for, in the order of ids: the first
// is included and the end is not.
func (q *AuditQuery) Range() (first, end [16]byte) {
	end = [16]byte(bytes.Repeat([]byte{0xff}, len(end))) // no UUIDv7
	if !q.Since.IsZero() {
		first = id.First(q.Since)
	}
	if !q.Until.IsZero() {
		end = id.First(q.Until)
	}
	switch {
	case q.After.IsZero():
	case q.Oldest:
		next := q.After
		for i := len(next) - 1; i >= 0; i-- {
			if next[i]++; next[i] != 0 {
				break
			}
		}
		if bytes.Compare(next[:], first[:]) > 0 {
			first = next
		}
	case bytes.Compare(q.After[:], end[:]) < 0:
		end = q.After
	}
	return first, end
}

// Filtered reports whether rows in the range must be looked at.
func (q *AuditQuery) Filtered() bool { return q.Action != "" || q.Actor != "" || q.Object != "" }
