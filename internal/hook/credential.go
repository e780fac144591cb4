package hook

import (
	"slices"
	"time"

	"github.com/plinqx/hypha/internal/id"
)

// Scope is something that a credential allows.
type Scope string

// The scopes. ScopeAdmin includes all of a tenant's; ScopeOperator manages
// tenants and acts for any of them.
const (
	ScopeWebhooksRead    Scope = "webhooks:read"
	ScopeWebhooksWrite   Scope = "webhooks:write"
	ScopeEventsWrite     Scope = "events:write"
	ScopeDeliveriesRead  Scope = "deliveries:read"
	ScopeDeliveriesWrite Scope = "deliveries:write"
	ScopeAdmin           Scope = "admin"
	ScopeOperator        Scope = "operator"
)

// TenantScopes are the scopes that a tenant's credential may have.
func TenantScopes() []Scope {
	return []Scope{ScopeWebhooksRead, ScopeWebhooksWrite, ScopeEventsWrite, ScopeDeliveriesRead, ScopeDeliveriesWrite, ScopeAdmin}
}

// Allows reports whether a credential with these scopes may do what needs want.
func Allows(have []Scope, want Scope) bool {
	if want != ScopeOperator && (slices.Contains(have, ScopeAdmin) || slices.Contains(have, ScopeOperator)) {
		return true
	}
	return slices.Contains(have, want)
}

// Role is what a user may do, as the product's profiles name it.
type Role string

// The roles.
const (
	RoleAdministrator Role = "Administrator" // everything
	RoleDeveloper     Role = "Developer"     // webhooks, events, deliveries
	RoleViewer        Role = "Viewer"        // read only
)

// Roles are all that there are.
func Roles() []Role { return []Role{RoleAdministrator, RoleDeveloper, RoleViewer} }

// Scopes is what a role allows.
func (r Role) Scopes() []Scope {
	switch r {
	case RoleAdministrator:
		return []Scope{ScopeAdmin}
	case RoleDeveloper:
		return []Scope{ScopeWebhooksRead, ScopeWebhooksWrite, ScopeEventsWrite, ScopeDeliveriesRead, ScopeDeliveriesWrite}
	case RoleViewer:
		return []Scope{ScopeWebhooksRead, ScopeDeliveriesRead}
	default:
		return nil
	}
}

// APIKey is a machine's credential. The key itself is nowhere: only its hash.
type APIKey struct {
	ID     id.Key
	Tenant id.Tenant // zero for an operator's
	Name   string
	// Hint is the first characters of the key, to tell keys apart.
	Hint       string
	Scopes     []Scope
	CreatedAt  time.Time
	ExpiresAt  time.Time // zero: never
	LastUsedAt time.Time // zero: never yet; to the minute
}

// User is a person of a tenant.
type User struct {
	ID     id.User
	Tenant id.Tenant
	Email  string // lower case
	Role   Role
	// PasswordHash is argon2id's, as a PHC string; "" for who has no password.
	PasswordHash string
	CreatedAt    time.Time
	UpdatedAt    time.Time // zero: not since
	LastLoginAt  time.Time // zero: never yet
}

// Session is a user's sign-in.
type Session struct {
	ID         id.Session
	Tenant     id.Tenant
	User       User
	CreatedAt  time.Time
	ExpiresAt  time.Time // used or not
	LastUsedAt time.Time // zero: not since; to the minute
}
