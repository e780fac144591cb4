package codec

import (
	"encoding/json"
	"fmt"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
)

// AuditRow is an entry of the audit log as it is stored. Action, Actor and Object
// are what is looked for; Data is the rest.
type AuditRow struct {
	Tenant                id.Tenant
	ID                    id.Audit
	Action, Actor, Object string
	Data                  string
}

// auditData is AuditRow.Data, JSON.
type auditData struct {
	ActorKind   hook.AuditActorKind  `json:"actorKind"`
	ActorID     string               `json:"actorId,omitempty"`
	ActorName   string               `json:"actorName,omitempty"`
	ObjectKind  hook.AuditObjectKind `json:"objectKind"`
	ObjectName  string               `json:"objectName,omitempty"`
	Address     string               `json:"address,omitempty"`
	RequestID   string               `json:"requestId,omitempty"`
	UserAgent   string               `json:"userAgent,omitempty"`
	SecretShown bool                 `json:"secretShown,omitempty"`
	Changes     []auditChange        `json:"changes,omitempty"`
}

type auditChange struct {
	Field string          `json:"field"`
	From  json.RawMessage `json:"from,omitempty"`
	To    json.RawMessage `json:"to,omitempty"`
}

// EncodeAudit makes a row of an entry. One without an id gets one of now: whoever
// asks in its turn to write has the entries in the order of the changes.
func EncodeAudit(e *hook.AuditEntry) (AuditRow, error) {
	key := e.ID
	if key.IsZero() {
		var err error
		if key, err = id.NewAudit(); err != nil {
			return AuditRow{}, err
		}
	}
	d := auditData{
		ActorKind: e.Actor.Kind, ActorID: e.Actor.ID, ActorName: e.Actor.Name, ObjectKind: e.Object.Kind, ObjectName: e.Object.Name,
		Address: e.Origin.Address, RequestID: e.Origin.RequestID, UserAgent: e.Origin.UserAgent, SecretShown: e.SecretShown,
	}
	for _, c := range e.Changes {
		d.Changes = append(d.Changes, auditChange(c))
	}
	data, err := json.Marshal(d)
	if err != nil {
		return AuditRow{}, fmt.Errorf("write an entry of the audit log: %w", err)
	}
	return AuditRow{Tenant: e.Tenant, ID: key, Action: string(e.Action), Actor: e.Actor.Key(), Object: e.Object.ID, Data: string(data)}, nil
}

// DecodeAudit reads a row.
func DecodeAudit(r *AuditRow) (hook.AuditEntry, error) {
	var d auditData
	if err := json.Unmarshal([]byte(r.Data), &d); err != nil {
		return hook.AuditEntry{}, fmt.Errorf("read entry %s of the audit log: %w: %w", r.ID, ErrDamaged, err)
	}
	e := hook.AuditEntry{
		ID: r.ID, Tenant: r.Tenant, At: r.ID.Time(), Action: hook.AuditAction(r.Action),
		Actor:  hook.AuditActor{Kind: d.ActorKind, ID: d.ActorID, Name: d.ActorName},
		Object: hook.AuditObject{Kind: d.ObjectKind, ID: r.Object, Name: d.ObjectName},
		Origin: hook.AuditOrigin{Address: d.Address, RequestID: d.RequestID, UserAgent: d.UserAgent}, SecretShown: d.SecretShown,
	}
	for _, c := range d.Changes {
		e.Changes = append(e.Changes, hook.AuditChange(c))
	}
	return e, nil
}
