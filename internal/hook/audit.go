package hook

import (
	"encoding/json"
	"slices"
	"strconv"
	"time"

	"github.com/plinqx/hypha/internal/id"
)

// AuditEntry is one line of the audit log: who did what to which object, from
// where. No secret is in it, whatever was done.
type AuditEntry struct {
	ID id.Audit
	// Tenant is whose log it is in; zero for the operators' own, where tenants and
	// operators' keys are made and deleted.
	Tenant id.Tenant
	At     time.Time // the time in ID
	Actor  AuditActor
	Action AuditAction
	Object AuditObject
	Origin AuditOrigin
	// SecretShown says that the answer showed a secret: a key, or a webhook's secret,
	// that the server had made.
	SecretShown bool
	// Changes are the fields that the action set, in the order of their names.
	Changes []AuditChange
}

// SetCount adds how many things the action is about, as whoever does it finds out.
// A nil entry takes no notice.
func (e *AuditEntry) SetCount(field string, n int64) {
	if e != nil {
		e.Changes = append(e.Changes, AuditChange{Field: field, To: strconv.AppendInt(nil, n, 10)})
	}
}

// AuditActor is who did it.
type AuditActor struct {
	Kind AuditActorKind
	// ID is that of the user or the key; "" for the others.
	ID string
	// Name is the user's e-mail address, the key's name, the machine's account.
	Name string
}

// Key is what the log is filtered by: the id, or the kind of who has none.
func (a AuditActor) Key() string {
	if a.ID == "" {
		return string(a.Kind)
	}
	return a.ID
}

// AuditActorKind is what kind of somebody did it.
type AuditActorKind string

// The kinds of actor.
const (
	ActorUser      AuditActorKind = "user"      // with a session
	ActorAPIKey    AuditActorKind = "apiKey"    // with a tenant's API key
	ActorOperator  AuditActorKind = "operator"  // with an operator's key
	ActorLocal     AuditActorKind = "local"     // on the machine itself, by the admin socket
	ActorSystem    AuditActorKind = "system"    // nobody asked for it
	ActorAnonymous AuditActorKind = "anonymous" // somebody who did not prove who they are
)

// AuditObject is what it was done to.
type AuditObject struct {
	Kind AuditObjectKind
	ID   string
	// Name is what the object was called then; "" for what has no name.
	Name string
}

// AuditObjectKind is what an action is about: the first half of its name.
type AuditObjectKind string

// The kinds of object.
const (
	ObjectWebhook     AuditObjectKind = "webhook"
	ObjectDelivery    AuditObjectKind = "delivery"
	ObjectAPIKey      AuditObjectKind = "apiKey"
	ObjectOperatorKey AuditObjectKind = "operatorKey"
	ObjectTenant      AuditObjectKind = "tenant"
	ObjectUser        AuditObjectKind = "user"
	ObjectSession     AuditObjectKind = "session"
	ObjectVaultSecret AuditObjectKind = "vaultSecret"
	ObjectSecretKey   AuditObjectKind = "secretKey"
)

// AuditOrigin is where a request came from. All is "" for what no request asked for.
type AuditOrigin struct {
	Address   string // the IP address at the other end of the connection
	RequestID string
	UserAgent string // at most MaxUserAgent characters of it
}

// The most characters that are kept of what a stranger can choose, and of a value.
const (
	MaxUserAgent  = 200
	MaxAuditValue = 512
)

// AuditChange is a field and what became of it. Both values are JSON; nil is no
// value. Both are nil where the value is a secret, or may be: then the field's name
// is all that is said.
type AuditChange struct {
	Field    string
	From, To json.RawMessage
}

// AuditAction is something that is done, as "object.verb".
type AuditAction string

// The actions, of which docs/audit.md tells more. This is the whole list: what is not in AuditActions can't be in
// the log.
const (
	AuditWebhookCreated   AuditAction = "webhook.created"
	AuditWebhookUpdated   AuditAction = "webhook.updated"
	AuditWebhookDeleted   AuditAction = "webhook.deleted"
	AuditWebhookPaused    AuditAction = "webhook.paused"
	AuditWebhookResumed   AuditAction = "webhook.resumed"
	AuditWebhookDisabled  AuditAction = "webhook.disabled" // by the system
	AuditSecretRotated    AuditAction = "webhook.secret_rotated"
	AuditQueueDiscarded   AuditAction = "webhook.queue_discarded"
	AuditFailedRetried    AuditAction = "webhook.failed_retried"
	AuditDeliveryRetried  AuditAction = "delivery.retried"
	AuditDeliveryCanceled AuditAction = "delivery.canceled"

	AuditAPIKeyCreated AuditAction = "apiKey.created"
	AuditAPIKeyUpdated AuditAction = "apiKey.updated"
	AuditAPIKeyDeleted AuditAction = "apiKey.deleted"

	AuditVaultSecretCreated AuditAction = "vaultSecret.created"
	AuditVaultSecretUpdated AuditAction = "vaultSecret.updated"
	AuditVaultSecretDeleted AuditAction = "vaultSecret.deleted"
	AuditSecretKeyCreated   AuditAction = "secretKey.created"
	AuditRekeyed            AuditAction = "secretKey.rekeyed"

	AuditUserCreated    AuditAction = "user.created"
	AuditUserUpdated    AuditAction = "user.updated"
	AuditUserDeleted    AuditAction = "user.deleted"
	AuditUserSignedOut  AuditAction = "user.signed_out"
	AuditUserFailed     AuditAction = "user.login_failed"
	AuditSessionStarted AuditAction = "session.started"
	AuditSessionEnded   AuditAction = "session.ended"

	AuditTenantCreated      AuditAction = "tenant.created"
	AuditTenantUpdated      AuditAction = "tenant.updated"
	AuditTenantDeleted      AuditAction = "tenant.deleted"
	AuditOperatorKeyCreated AuditAction = "operatorKey.created"
	AuditOperatorKeyUpdated AuditAction = "operatorKey.updated"
	AuditOperatorKeyDeleted AuditAction = "operatorKey.deleted"
)

// AuditActions are all actions that there are.
func AuditActions() []AuditAction {
	return []AuditAction{
		AuditWebhookCreated, AuditWebhookUpdated, AuditWebhookDeleted, AuditWebhookPaused, AuditWebhookResumed, AuditWebhookDisabled,
		AuditSecretRotated, AuditQueueDiscarded, AuditFailedRetried, AuditDeliveryRetried, AuditDeliveryCanceled,
		AuditAPIKeyCreated, AuditAPIKeyUpdated, AuditAPIKeyDeleted,
		AuditVaultSecretCreated, AuditVaultSecretUpdated, AuditVaultSecretDeleted, AuditSecretKeyCreated, AuditRekeyed,
		AuditUserCreated, AuditUserUpdated, AuditUserDeleted, AuditUserSignedOut, AuditUserFailed, AuditSessionStarted, AuditSessionEnded,
		AuditTenantCreated, AuditTenantUpdated, AuditTenantDeleted,
		AuditOperatorKeyCreated, AuditOperatorKeyUpdated, AuditOperatorKeyDeleted,
	}
}

// Valid reports whether there is such an action.
func (a AuditAction) Valid() bool { return slices.Contains(AuditActions(), a) }
