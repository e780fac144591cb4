package api

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/plinqx/hypha/internal/audit"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// AuditLog is who changed what (package store).
type AuditLog interface {
	AuditEntries(ctx context.Context, q store.AuditQuery) (*store.AuditPage, error)
}

// audited reports whether an endpoint changes what the audit log is told of. It is
// not told of events: there are too many, and they are on record themselves.
func (e *endpoint) audited() bool { return e.method != http.MethodGet && !e.publishes() }

// attribute says in the call's context who asks, and from where.
func (c *call) attribute() {
	actor := hook.AuditActor{Kind: hook.ActorAnonymous}
	if c.principal != nil {
		actor = c.principal.Actor()
	}
	origin := hook.AuditOrigin{UserAgent: printable(c.UserAgent(), hook.MaxUserAgent)}
	if c.client.IsValid() {
		origin.Address = c.client.String()
	}
	if ids := c.w.Header()[headerRequestID]; len(ids) > 0 {
		origin.RequestID = ids[0]
	}
	c.ctx = audit.By(c.ctx, actor, origin)
}

// printable is the beginning of a text of a stranger's, without what does not show.
func printable(s string, most int) string {
	var b strings.Builder
	n := 0
	for _, r := range s {
		if n == most {
			break
		}
		if r != unicode.ReplacementChar && unicode.IsPrint(r) {
			b.WriteRune(r)
			n++
		}
	}
	return b.String()
}

type auditView struct {
	ID          id.Audit          `json:"id"`
	TenantID    *id.Tenant        `json:"tenantId"`
	At          instant           `json:"at"`
	Actor       auditActorView    `json:"actor"`
	Action      hook.AuditAction  `json:"action"`
	Object      auditObjectView   `json:"object"`
	Address     *string           `json:"address"`
	RequestID   *string           `json:"requestId"`
	UserAgent   *string           `json:"userAgent"`
	SecretShown bool              `json:"secretShown"`
	Changes     []auditChangeView `json:"changes"`
}

type auditActorView struct {
	Kind hook.AuditActorKind `json:"kind"`
	ID   *string             `json:"id"`
	Name *string             `json:"name"`
}

type auditObjectView struct {
	Kind hook.AuditObjectKind `json:"kind"`
	ID   string               `json:"id"`
	Name *string              `json:"name"`
}

type auditChangeView struct {
	Field string         `json:"field"`
	From  jsontext.Value `json:"from,omitzero"`
	To    jsontext.Value `json:"to,omitzero"`
}

func textOrNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// viewAudit shows an entry. A tenant's own people don't see from where its operators
// work, nor the accounts of the machine.
func viewAudit(e *hook.AuditEntry, operator bool) auditView {
	v := auditView{
		ID: e.ID, At: instant(e.At), Action: e.Action, SecretShown: e.SecretShown, Changes: make([]auditChangeView, len(e.Changes)),
		Actor:  auditActorView{Kind: e.Actor.Kind, ID: textOrNull(e.Actor.ID), Name: textOrNull(e.Actor.Name)},
		Object: auditObjectView{Kind: e.Object.Kind, ID: e.Object.ID, Name: textOrNull(e.Object.Name)},
	}
	if !e.Tenant.IsZero() {
		v.TenantID = &e.Tenant
	}
	v.RequestID = textOrNull(e.Origin.RequestID)
	if !operator && e.Actor.Kind == hook.ActorLocal {
		v.Actor.Name = nil
	}
	if operator || e.Actor.Kind != hook.ActorOperator && e.Actor.Kind != hook.ActorLocal {
		v.Address, v.UserAgent = textOrNull(e.Origin.Address), textOrNull(e.Origin.UserAgent)
	}
	for i, c := range e.Changes {
		v.Changes[i] = auditChangeView{Field: c.Field, From: jsontext.Value(c.From), To: jsontext.Value(c.To)}
	}
	return v
}

// auditID reads the id of an actor or an object, of whatever kind.
func (q *query) auditID(name string) string {
	s, ok := q.text(name)
	if ok && !hook.ValidPublisherID(s) {
		q.problems.add(name, "must be an id")
	}
	return s
}

func (q *query) auditAction() hook.AuditAction {
	s, ok := q.text("action")
	if action := hook.AuditAction(s); !ok || action.Valid() {
		return action
	}
	q.problems.add("action", "is no action that there is, such as webhook.updated")
	return ""
}

func (a *api) listAudit(c *call) (reply, error) {
	q := newQuery(c)
	ask := store.AuditQuery{
		Tenant: c.tenant(), Action: q.auditAction(), Actor: q.auditID("actor"), Object: q.auditID("object"),
		Limit: q.limit(), After: q.cursor(),
	}
	ask.Since, ask.Until = q.span()
	if err := q.err(); err != nil {
		return reply{}, err
	}
	p, err := a.o.Audit.AuditEntries(c.Context(), ask)
	if err != nil {
		return reply{}, err
	}
	out := page[auditView]{Data: make([]auditView, len(p.Entries)), NextCursor: q.next(p.Next)}
	for i := range p.Entries {
		out.Data[i] = viewAudit(&p.Entries[i], c.principal.Operator)
	}
	return reply{status: http.StatusOK, value: out}, nil
}

// exportPage is how many entries of an export are in memory at a time.
const exportPage = 500

// exportAudit answers all entries of a time, one on each line. It reads page by
// page, so that it holds neither the entries in memory nor a snapshot of the store;
// and each page has a time limit of its own, not the whole.
func (a *api) exportAudit(c *call) (reply, error) {
	q := newQuery(c)
	ask := store.AuditQuery{Tenant: c.tenant(), Oldest: true, Limit: exportPage}
	ask.Since, ask.Until = q.span()
	if err := q.err(); err != nil {
		return reply{}, err
	}
	// The first page is read before the answer begins: what is wrong can be said.
	first, err := a.o.Audit.AuditEntries(c.Context(), ask)
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusOK, contentType: "application/x-ndjson", stream: func(w http.ResponseWriter) error {
		var lines bytes.Buffer
		for p, out := first, http.NewResponseController(w); ; {
			lines.Reset()
			for i := range p.Entries {
				line, err := marshal(viewAudit(&p.Entries[i], c.principal.Operator))
				if err != nil {
					return fmt.Errorf("write an entry: %w", err)
				}
				lines.Write(line)
				lines.WriteByte('\n')
			}
			limit := time.Now().Add(a.o.Timeout)
			// Of the reading too: a connection whose time to read is over counts as
			// one that the client has left. Who can't set them has none.
			_, _ = out.SetWriteDeadline(limit), out.SetReadDeadline(limit)
			if _, err := w.Write(lines.Bytes()); err != nil {
				return fmt.Errorf("%w: %w", errClientLeft, err)
			}
			if err := out.Flush(); err != nil {
				return fmt.Errorf("%w: %w", errClientLeft, err)
			}
			if p.Next.IsZero() {
				return nil
			}
			ask.After = p.Next
			ctx, cancel := context.WithTimeout(c.Request.Context(), a.o.Timeout)
			next, err := a.o.Audit.AuditEntries(ctx, ask)
			cancel()
			if err != nil {
				return err
			}
			p = next
		}
	}}, nil
}
