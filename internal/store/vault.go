package store

import (
	"context"
	"fmt"
	"strings"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
)

// Vault is where a tenant's vault secrets are written. They are part of its
// configuration: each change raises the tenant's version and answers the new one,
// and TenantConfig reads them.
//
// A webhook that is written with names in WebhookRow.Vault refers to the secrets of
// those names. Every one that it did not refer to before must be there, otherwise
// ErrConfigMoved; and a secret that a webhook refers to is not deleted. Both are
// judged in the transaction that writes, so that no webhook refers to nothing.
type Vault interface {
	// InsertVaultSecret adds a secret; hook.CodeConflict if there is one of its
	// name, or p.Max already.
	InsertVaultSecret(ctx context.Context, p NewVaultSecret) (version int64, err error)
	// UpdateVaultSecret replaces a secret whose revision is still s.Revision - 1;
	// otherwise ErrConfigMoved. Its name stays.
	UpdateVaultSecret(ctx context.Context, s VaultRow) (version int64, err error)
	// DeleteVaultSecret removes a secret; hook.CodeConflict, naming them, if
	// webhooks refer to it.
	DeleteVaultSecret(ctx context.Context, tenant id.Tenant, secret id.VaultSecret) (version int64, err error)
}

// VaultRow is a vault secret as it is stored: Value is empty, and Sealed holds it
// under the server's key.
type VaultRow struct {
	hook.VaultSecret
	Sealed []byte
}

// NewVaultSecret adds a secret to a tenant's vault. Max is the most that the tenant
// may have; 0 is no limit.
type NewVaultSecret struct {
	VaultRow
	Max int
}

// NamedWebhooks is how many webhooks an answer names at most.
const NamedWebhooks = 10

// VaultInUse is why a vault secret is not deleted. Of the webhooks that refer to it,
// the first NamedWebhooks are named.
func VaultInUse(webhooks []id.Webhook) error {
	more := ""
	if len(webhooks) > NamedWebhooks {
		webhooks, more = webhooks[:NamedWebhooks], " and others"
	}
	names := make([]string, len(webhooks))
	for i, w := range webhooks {
		names[i] = w.String()
	}
	return hook.Conflict("Headers of webhooks refer to this secret: %s; change those first", strings.Join(names, ", ")+more)
}

// VaultFull is why no vault secret is added.
func VaultFull(n int64) error {
	return hook.Conflict("This tenant's vault has %d secrets, which is the most it may have; delete one first", n)
}

// SealedHead is by how many of its first bytes it is known which key something was
// sealed under (package seal).
const SealedHead = 5

// Sealed is everything that is sealed under the server's keys, of all tenants, for
// whoever changes those keys.
type Sealed interface {
	// SealedHeads says how what is sealed of a kind begins, each once. It costs next to
	// nothing, however much there is.
	SealedHeads(ctx context.Context, kind SealedKind) ([][SealedHead]byte, error)
	// SealedCounts counts what is sealed of a kind, by how it begins. It goes over all
	// of it.
	SealedCounts(ctx context.Context, kind SealedKind) ([]SealedCount, error)
	// SealedRows lists what is sealed and begins with q.Head, in the order of
	// SealedPosition.
	SealedRows(ctx context.Context, q SealedQuery) ([]SealedRow, error)
	// Reseal puts other sealed bytes in the place of those that are still what was
	// read, and answers how many were. It is no change of a configuration: what is
	// inside is the same.
	Reseal(ctx context.Context, rows []Resealed) (int64, error)
}

// SealedKind is what a sealed row belongs to.
type SealedKind string

// The kinds.
const (
	SealedWebhook  SealedKind = "webhook"
	SealedRevision SealedKind = "webhook revision" // a webhook as it was
	SealedVault    SealedKind = "vault secret"
)

// SealedKinds lists them.
func SealedKinds() []SealedKind { return []SealedKind{SealedWebhook, SealedRevision, SealedVault} }

// SealedCount says how many sealed rows begin with Head.
type SealedCount struct {
	Head [SealedHead]byte
	Rows int64
}

// SealedPosition is a row's place among those of its kind: they are ordered by
// tenant, id and revision.
type SealedPosition struct {
	Tenant   id.Tenant
	ID       [16]byte // of a webhook, or of a vault secret
	Revision int64    // of a SealedRevision
}

// String is for the log.
func (p SealedPosition) String() string {
	return fmt.Sprintf("%s/%x/%d", p.Tenant, p.ID, p.Revision)
}

// SealedQuery asks for sealed rows of a kind.
type SealedQuery struct {
	Kind  SealedKind
	Head  [SealedHead]byte
	After SealedPosition // the zero one: from the first
	Limit int
}

// SealedRow is something sealed.
type SealedRow struct {
	SealedPosition
	Kind   SealedKind
	Name   string // of a vault secret
	Sealed []byte
}

// Resealed is a row with what is to stand in the place of its sealed bytes.
type Resealed struct {
	SealedRow
	New []byte
}
