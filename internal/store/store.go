// Package store is the seam between the program and its database: what is
// asked of it, in whole and atomic steps, and the shapes of question and
// answer. The drivers are store/sqlite and store/postgres; store/storetest is
// the suite that each must pass.
//
// What every driver promises:
//
//   - A method is one transaction, or reads from one snapshot. No transaction
//     crosses the seam.
//   - Every question names its tenant. Another tenant's id is an unknown id:
//     hook.CodeNotFound.
//   - What returned nil is on disk, synced.
//   - Errors a caller may see are *hook.Error; a full disk, a lost or busy
//     database is hook.CodeUnavailable, with the cause inside.
//   - Times are kept to the millisecond, in UTC.
//   - An event and a delivery are created at the time that is in their id. So the
//     order of ids is that of time, and a range of time is a range of ids. Within
//     a process that time never goes back, even if the clock does.
//
// The package holds no rules: validation, authorization and policy live above
// it. It imports hook and id alone.
package store

import (
	"context"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
)

// Store is the whole of it. Its users declare the part they need.
type Store interface {
	Queue
	Jobs
	History
	Configuration
	Vault
	Sealed
	Directory
	Audit
	Users

	// Ping answers whether a write would be possible now: the store is there,
	// takes the writer's turn, and has room.
	Ping(ctx context.Context) error
	// Close finishes what runs and lets go of the store. Nothing may be called
	// after it.
	Close() error
}

// Queue is the way of events and deliveries. Its methods are called by one
// committer at a time, in an order that it knows: what Claim answers is
// consistent with every Apply that returned before it was called.
type Queue interface {
	// Apply writes a batch in one synced transaction. It sets each item's own
	// result (Accept.Err, Accept.Results, Outcome.Matched); an item that is
	// refused leaves no trace and does not hinder the others. The returned
	// error is of the whole batch: nothing of it was written, and item results
	// mean nothing.
	Apply(ctx context.Context, b *Batch) error
	// Claim takes due deliveries of one webhook for sending, oldest due first.
	Claim(ctx context.Context, p ClaimParams) (*Claimed, error)
	// Expire gives up the unfinished deliveries of a webhook whose ExpiresAt is
	// not after p.Now: FAILED, kind expired.
	Expire(ctx context.Context, p ExpireParams) (*ExpireResult, error)
	// Backlog lists the webhooks that have unfinished deliveries, of all
	// tenants, for the start of the server. Its cost grows with the number of
	// webhooks, not with that of deliveries.
	Backlog(ctx context.Context) ([]BacklogLane, error)
}

// Batch is what one transaction writes.
type Batch struct {
	Accepts  []*Accept
	Outcomes []*Outcome
}

// Accept is one request to take events in: all of them or none.
type Accept struct {
	Tenant id.Tenant
	// ConfigVersion is the tenant's version that the events were matched with.
	// If it has moved, Err is ErrConfigMoved.
	ConfigVersion int64
	// MaxQueued is the most unfinished deliveries the tenant may have; beyond
	// it, Err has hook.CodeRateLimited. 0 is no limit.
	MaxQueued int64
	// Key is the request's idempotency key, nil without one.
	Key    *IdempotencyKey
	Events []NewEvent

	// Results, one per event in order, and Err are set by Apply. Err may be
	// ErrConfigMoved, or a *hook.Error (CodeConflict names the event it was
	// about in Details: path "events[i].id", or "Idempotency-Key").
	Results []AcceptResult
	Err     error
}

// IdempotencyKey marks a request that may come again.
type IdempotencyKey struct {
	Key  string
	Hash [32]byte // of what the request asks; the same key with another is a conflict
	// ExpiresAt is when the key may be used anew.
	ExpiresAt time.Time
}

// NewEvent is an event to be written with its deliveries.
type NewEvent struct {
	ID id.Event
	// GivenID is the id that the publisher chose; "" without one. Hash then
	// tells whether a second event of that id is the same.
	GivenID   string
	Hash      [32]byte
	Type      string
	Timestamp time.Time
	Body      []byte
	// Due and ExpiresAt are its deliveries'. Due is when the event came, by the
	// clock that claims go by: after that was set back, the time in ID is ahead of
	// it.
	Due        time.Time
	ExpiresAt  time.Time
	Deliveries []NewDelivery
}

// NewDelivery is a delivery to be written with its event.
type NewDelivery struct {
	ID      id.Delivery
	Webhook id.Webhook
	Trigger hook.Trigger
	// Held says that this process has a place for it and sends it itself; else
	// it waits for a claim. A store that a single process has to itself need
	// not write this down.
	Held bool
}

// AcceptResult is what became of one event.
type AcceptResult struct {
	PublicID   string
	Type       string
	Timestamp  time.Time
	Deliveries int
	Duplicate  bool // it was there already: nothing was written
}

// Outcome is what an attempt came to.
type Outcome struct {
	Tenant   id.Tenant
	Webhook  id.Webhook
	Delivery id.Delivery
	// Attempt is kept. Attempt.Number - 1 is the count that the delivery must
	// still have for the outcome to apply. A zero Number is no attempt: the
	// delivery is given up with Failure alone (expired, canceled).
	Attempt hook.Attempt
	Change  hook.Change
	Try     int       // of the schedule, after this attempt
	Due     time.Time // the next attempt, when Change is Postponed
	At      time.Time // when it ended
	Failure *hook.Failure

	// Matched is set by Apply: the delivery was unfinished and at the expected
	// count. When it was not, the attempt is kept and counted all the same if its
	// number is new, and nothing else changes. Of a store that several processes
	// share, what another one has taken over does not match, and nothing is kept.
	Matched bool
}

// ClaimParams asks for work.
type ClaimParams struct {
	Tenant   id.Tenant
	Webhook  id.Webhook
	Now      time.Time
	Limit    int // rows
	MaxBytes int // of bodies; one row is given however large
	// Held reports the deliveries that this process has already; they are
	// passed over.
	Held func(id.Delivery) bool
}

// Claimed is the answer to a claim.
type Claimed struct {
	Deliveries []Queued
	// More says that something else is due already.
	More bool
	// NextDue is when the next one that is not due yet will be; zero if there
	// is none.
	NextDue time.Time
}

// Queued is a delivery with all that is needed to send it.
type Queued struct {
	ID            id.Delivery
	Event         id.Event
	PublicEventID string
	EventType     string
	Body          []byte
	Attempts      int
	Try           int
	Trigger       hook.Trigger
	Due           time.Time
	ExpiresAt     time.Time
}

// ExpireParams asks to give up what is too old.
type ExpireParams struct {
	Tenant  id.Tenant
	Webhook id.Webhook
	Now     time.Time
	Limit   int
	Held    func(id.Delivery) bool // passed over: they are being sent
}

// ExpireResult says what was given up.
type ExpireResult struct {
	Expired int
	// Next is the earliest expiry of what is left (held ones included); zero if
	// nothing is left. More says that Limit ended the work, not its end.
	Next time.Time
	More bool
}

// BacklogLane is a webhook with unfinished deliveries.
type BacklogLane struct {
	Tenant  id.Tenant
	Webhook id.Webhook
	Due     time.Time // of the first
}

// Jobs are the things asked for once and done in chunks: they survive a crash.
type Jobs interface {
	// StartJob starts a job, or answers the running one of the same webhook and
	// kind (Existing). Total is the exact number of deliveries that it stands
	// for at this moment; a job of none is done at once.
	StartJob(ctx context.Context, p JobParams) (*Job, error)
	// StepJob does the next chunk. It is called by the committer (see Queue).
	StepJob(ctx context.Context, p JobStepParams) (*Job, error)
	// RunningJobs lists the unfinished jobs of all tenants, oldest first. Of a
	// store that several processes share it lists those that no other one works
	// off, which are this one's from now on.
	RunningJobs(ctx context.Context) ([]Job, error)
	// Job shows one.
	Job(ctx context.Context, tenant id.Tenant, job id.Replay) (*Job, error)

	// RetryDelivery puts one delivery at the start of its schedule, due now,
	// whatever its status.
	RetryDelivery(ctx context.Context, p RetryParams) (*hook.Delivery, error)
	// CancelDelivery gives up an unfinished delivery: FAILED, kind canceled. A
	// delivery that is done already is a conflict.
	CancelDelivery(ctx context.Context, tenant id.Tenant, delivery id.Delivery, now time.Time) (*hook.Delivery, error)
}

// JobKind is what a job does.
type JobKind string

// The kinds of job.
const (
	// JobRetryFailed puts all that is FAILED at its start back in the queue.
	JobRetryFailed JobKind = "retry_failed"
	// JobDiscard gives up all that is unfinished at its start: FAILED, kind
	// canceled.
	JobDiscard JobKind = "discard"
)

// Job is a job and how far it is.
type Job struct {
	ID        id.Replay
	Tenant    id.Tenant
	Webhook   id.Webhook
	Kind      JobKind
	CreatedAt time.Time
	Total     int64 // at its start
	Moved     int64 // so far
	Done      bool
	Existing  bool // StartJob found it running
	Elsewhere bool // another node works it off
}

// JobParams starts a job.
type JobParams struct {
	ID      id.Replay
	Tenant  id.Tenant
	Webhook id.Webhook
	Kind    JobKind
	Now     time.Time
}

// JobStepParams asks for a chunk. A discard gives up no more than Limit; a
// retry sets Due to Now and ExpiresAt as given, and starts the schedule again.
type JobStepParams struct {
	Tenant    id.Tenant
	Job       id.Replay
	Limit     int
	Now       time.Time
	ExpiresAt time.Time
	Held      func(id.Delivery) bool // passed over by a discard
}

// RetryParams retries one delivery.
type RetryParams struct {
	Tenant    id.Tenant
	Delivery  id.Delivery
	Now       time.Time
	ExpiresAt time.Time
}

// History is what happened, for whoever asks.
type History interface {
	Event(ctx context.Context, tenant id.Tenant, publicID string) (*hook.Event, error)
	Events(ctx context.Context, q EventQuery) (*EventPage, error)
	Delivery(ctx context.Context, tenant id.Tenant, delivery id.Delivery) (*hook.Delivery, error)
	// Attempts lists a delivery's attempts, first to last.
	Attempts(ctx context.Context, tenant id.Tenant, delivery id.Delivery) ([]hook.Attempt, error)
	// Deliveries lists newest first.
	Deliveries(ctx context.Context, q DeliveryQuery) (*DeliveryPage, error)
	// CountDeliveries counts what q would list, up to max; More when it stopped
	// there. Without filters besides tenant, webhook and FAILED it is exact and
	// costs the same for any number.
	CountDeliveries(ctx context.Context, q DeliveryQuery, max int64) (n int64, more bool, err error)
	Stats(ctx context.Context, q StatsQuery) (*Stats, error)

	// Prune deletes what was created before p.Before and is finished, at most p.Limit
	// rows of each kind, used-up idempotency keys and sessions, and the entries of the
	// audit log that were made before p.AuditBefore.
	Prune(ctx context.Context, p PruneParams) (*PruneResult, error)
	// Size is what the history takes on disk, in bytes, without free pages.
	Size(ctx context.Context) (int64, error)
}

// EventQuery asks for events, newest first: those created at Since or later, and
// before Until. A zero time is open.
type EventQuery struct {
	Tenant       id.Tenant
	Type         string // "" for all
	Since, Until time.Time
	Before       id.Event // zero from the newest
	Limit        int
}

// EventPage is a page of events, without bodies. Next is where to go on: zero
// at the end. A page may be shorter than asked and still have a Next: the work
// for one page is bounded.
type EventPage struct {
	Events []hook.Event
	Next   id.Event
}

// DeliveryQuery asks for deliveries, newest first. Since and Until are as in
// EventQuery.
type DeliveryQuery struct {
	Tenant       id.Tenant
	Webhook      id.Webhook // zero for all
	Status       *hook.Status
	EventType    string
	EventID      string // public id
	Since, Until time.Time
	Before       id.Delivery // zero from the newest
	Offset       int
	Limit        int
}

// DeliveryPage is a page of deliveries; see EventPage.
type DeliveryPage struct {
	Deliveries []hook.Delivery
	Next       id.Delivery
}

// StatsQuery asks for counts of attempts. Since and Until round down to the
// minute; zero is open.
type StatsQuery struct {
	Tenant       id.Tenant
	Webhook      id.Webhook // zero for all
	Since, Until time.Time
}

// Stats are counts of finished attempts, how long they took, and the deliveries
// that wait now.
type Stats struct {
	Succeeded, Failed int64
	Pending           int64
	Latency           Latency
}

// PruneParams bounds what one call deletes.
type PruneParams struct {
	Before time.Time
	// AuditBefore is Before for the audit log; zero: nothing of it goes.
	AuditBefore time.Time
	Now         time.Time
	Limit       int
}

// PruneResult says what was deleted.
type PruneResult struct {
	Events, Deliveries int
	AuditEntries       int
	More               bool
}

// Configuration is what a tenant set up. Each change raises the tenant's
// version by one and answers the new one.
type Configuration interface {
	// TenantConfig reads it all, at one version.
	TenantConfig(ctx context.Context, tenant id.Tenant) (*TenantConfig, error)
	InsertWebhook(ctx context.Context, w WebhookRow) (version int64, err error)
	// UpdateWebhook replaces a webhook whose revision is still w.Revision - 1;
	// otherwise ErrConfigMoved. The revision before is kept.
	UpdateWebhook(ctx context.Context, w WebhookRow) (version int64, err error)
	// DeleteWebhook removes it and starts the job that discards its queue.
	DeleteWebhook(ctx context.Context, p DeleteWebhookParams) (version int64, err error)
	// WebhookRevision reads a webhook as it was at a revision, deleted or not.
	WebhookRevision(ctx context.Context, tenant id.Tenant, webhook id.Webhook, revision int64) (*WebhookRow, error)
	// SetPause holds a webhook back until a time (zero: goes on). It is no
	// change of the configuration: the version stays.
	SetPause(ctx context.Context, tenant id.Tenant, webhook id.Webhook, until time.Time) error

	InsertKey(ctx context.Context, k KeyRow) (version int64, err error)
	UpdateKey(ctx context.Context, k KeyRow) (version int64, err error)
	DeleteKey(ctx context.Context, tenant id.Tenant, key id.Key) (version int64, err error)
}

// TenantConfig is a tenant's configuration at one version.
type TenantConfig struct {
	Tenant   hook.Tenant
	Version  int64
	Webhooks []WebhookRow
	Keys     []KeyRow
	Vault    []VaultRow // oldest first
}

// WebhookRow is a webhook as it is stored: Webhook.Headers and Webhook.Secrets
// are empty, and Sealed holds them under the server's key.
type WebhookRow struct {
	hook.Webhook
	Sealed []byte
	// Vault names the vault secrets that the headers refer to, each once (see
	// Vault). It is written, and not read again: the headers say it too.
	Vault []string
}

// DeleteWebhookParams deletes a webhook; Job is the id for the discard.
type DeleteWebhookParams struct {
	Tenant  id.Tenant
	Webhook id.Webhook
	Job     id.Replay
	Now     time.Time
}

// KeyRow is an API key as it is stored.
type KeyRow struct {
	hook.APIKey
	Hash [32]byte // SHA-256 of the key
}

// Directory is the small part that spans tenants.
type Directory interface {
	InsertTenant(ctx context.Context, t hook.Tenant) error
	UpdateTenant(ctx context.Context, t hook.Tenant) error
	// DeleteTenant removes a tenant and everything of it. What is large goes in
	// chunks behind the call (Prune); none of it can be reached any more.
	DeleteTenant(ctx context.Context, tenant id.Tenant) error
	Tenant(ctx context.Context, tenant id.Tenant) (*hook.Tenant, error)
	// Tenants lists oldest first, after a tenant (zero: from the first).
	Tenants(ctx context.Context, after id.Tenant, limit int) ([]hook.Tenant, error)

	// KeyByHash finds whose key it is. An operator's key has a zero tenant.
	KeyByHash(ctx context.Context, hash [32]byte) (*KeyRow, error)

	// Operators' keys have a zero tenant, and are in no configuration.
	// OperatorKeys lists all of them, oldest first.
	OperatorKeys(ctx context.Context) ([]KeyRow, error)
	InsertOperatorKey(ctx context.Context, k KeyRow) error
	// UpdateOperatorKey replaces a key's name and end.
	UpdateOperatorKey(ctx context.Context, k KeyRow) error
	DeleteOperatorKey(ctx context.Context, key id.Key) error

	// TouchKeys notes when keys were last used.
	TouchKeys(ctx context.Context, used []KeyUse) error
}

// KeyUse is the use of a key.
type KeyUse struct {
	Tenant id.Tenant
	Key    id.Key
	At     time.Time
}
