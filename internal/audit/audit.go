// Package audit is how an entry of the audit log comes about. Whoever lets a
// request in says who asks (By); whoever makes a change says what it is (Note),
// right before the call of the store that makes it; and the store writes the
// entry in the transaction of the change.
//
// It promises that no change is without its entry, nor an entry without its
// change, whatever ends the process in between; and that what is said here is
// bounded in size.
//
// It must not know what the changes mean, nor what is a secret: whoever notes a
// change says so with Secret.
package audit

import (
	"context"
	"encoding/json"
	"reflect"
	"time"
	"unicode/utf8"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/store"
)

type byKey struct{}

type by struct {
	actor  hook.AuditActor
	origin hook.AuditOrigin
}

// By says who asks for what is done with the context, and from where. Where nobody
// has said so, it is the system.
func By(ctx context.Context, actor hook.AuditActor, origin hook.AuditOrigin) context.Context {
	return context.WithValue(ctx, byKey{}, by{actor, origin})
}

// Note says what the next change is that the store makes with the context. Who
// asks, and from where, is taken from the context, unless the entry says it. The
// context is for that one call: each change has an entry of its own.
func Note(ctx context.Context, e hook.AuditEntry) context.Context {
	asked, ok := ctx.Value(byKey{}).(by)
	if !ok {
		asked.actor.Kind = hook.ActorSystem
	}
	if e.Actor.Kind == "" {
		e.Actor = asked.actor
	}
	if e.Origin == (hook.AuditOrigin{}) {
		e.Origin = asked.origin
	}
	return store.WithAudit(ctx, e)
}

// Carry takes what was noted in one context over to another, where a change is made
// on behalf of the first.
func Carry(to, from context.Context) context.Context {
	if e := store.AuditOf(from); e != nil {
		return store.WithAudit(to, *e)
	}
	return to
}

// Diff collects the fields that a change touches.
type Diff []hook.AuditChange

// Set notes a field that had no value before.
func (d *Diff) Set(field string, to any) {
	*d = append(*d, hook.AuditChange{Field: field, To: value(to)})
}

// Changed notes a field with its old and its new value, if they differ. Both are of
// one type, or nil.
func (d *Diff) Changed(field string, from, to any) {
	if !reflect.DeepEqual(from, to) {
		*d = append(*d, hook.AuditChange{Field: field, From: value(from), To: value(to)})
	}
}

// Secret notes that a field was changed whose value must be nowhere.
func (d *Diff) Secret(field string) { *d = append(*d, hook.AuditChange{Field: field}) }

// value is what the log has of a value: a text, or a list of texts, no longer than
// hook.MaxAuditValue, a time as the API writes it, null for one that is open.
func value(v any) json.RawMessage {
	switch x := v.(type) {
	case string:
		v = shorten(x)
	case []string:
		v = shortenList(x)
	case time.Time:
		v = nil
		if !x.IsZero() {
			v = x.UTC().Format("2006-01-02T15:04:05.000Z07:00")
		}
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return nil // it is of a type that has no JSON: the name must do
	}
	return raw
}

// cut stands where something was left out.
const cut = "…"

func shorten(s string) string {
	if utf8.RuneCountInString(s) <= hook.MaxAuditValue {
		return s
	}
	return string([]rune(s)[:hook.MaxAuditValue]) + cut
}

func shortenList(list []string) []string {
	out := make([]string, 0, len(list))
	for room, i := hook.MaxAuditValue, 0; i < len(list); i++ {
		if room -= utf8.RuneCountInString(list[i]); room < 0 {
			return append(out, cut)
		}
		out = append(out, list[i])
	}
	return out
}
