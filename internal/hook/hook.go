// Package hook is the vocabulary of the program: tenants, webhooks, events,
// deliveries and attempts, the states that a delivery goes through, and the
// errors that reach a caller. Everything speaks it; it knows nobody: besides
// the standard library it imports only the ids.
package hook

import (
	"net/http"
	"time"

	"github.com/plinqx/hypha/internal/id"
)

// Tenant is one customer of the platform. Everything below belongs to one.
type Tenant struct {
	ID        id.Tenant
	Name      string
	CreatedAt time.Time
	UpdatedAt time.Time
}

// Webhook is an endpoint that a tenant registered, and what it subscribed to.
type Webhook struct {
	ID     id.Webhook
	Tenant id.Tenant
	// Revision counts the changes of this webhook, from 1. An attempt notes the
	// revision it was made with.
	Revision int64
	Name     string
	URL      string
	Events   []string // exact types, "prefix.*", or "*"
	Enabled  bool
	Headers  map[string]string
	Secrets  []Secret // newest first; the first one has no end
	// Signatures are the versions in webhook-signature, in the order of their
	// constants; none is SignatureV1.
	Signatures []SignatureVersion
	// SigningKeys are for SignatureV1a, newest first; the first one has no end.
	// There are some exactly if that version is asked for.
	SigningKeys []SigningKey
	Timeout     time.Duration
	Description string
	// DisabledReason says why Enabled is false; "" while it is true.
	DisabledReason DisabledReason
	// PausedUntil is when sending goes on; zero when it is not paused.
	PausedUntil time.Time
	CreatedAt   time.Time
	UpdatedAt   time.Time
}

// Secret signs what a webhook is sent.
type Secret struct {
	Value string
	// CreatedAt is when it began to sign; zero if that is not known.
	CreatedAt time.Time
	// Until is when a replaced secret stops signing; zero for the newest.
	Until time.Time
}

// SignsAt reports whether the secret is in force at a time, if it was made
// before.
func (s *Secret) SignsAt(at time.Time) bool { return s.Until.IsZero() || at.Before(s.Until) }

// SignatureVersion is a scheme of Standard Webhooks, as it stands in front of a
// signature.
type SignatureVersion string

// The versions.
const (
	SignatureV1  SignatureVersion = "v1"  // HMAC-SHA256, with the secrets
	SignatureV1a SignatureVersion = "v1a" // ed25519, with the signing keys
)

// SigningKey is an ed25519 key pair of one webhook. It is nobody else's: with a
// key that is shared, a receiver could pass on what it got to another webhook's
// receiver.
type SigningKey struct {
	ID      string // its name in public: the thumbprint of RFC 7638
	Public  string // whpk_…
	Private string // whsk_…; never shown
	// CreatedAt and Until are those of a Secret.
	CreatedAt, Until time.Time
}

// SignsAt reports whether the key is in force at a time, if it was made before.
func (k *SigningKey) SignsAt(at time.Time) bool { return k.Until.IsZero() || at.Before(k.Until) }

// DisabledReason is why a webhook is disabled.
type DisabledReason string

// The reasons.
const (
	DisabledManual  DisabledReason = "manual"  // somebody did it
	DisabledGone    DisabledReason = "gone"    // the receiver answered 410
	DisabledFailing DisabledReason = "failing" // nothing succeeded for too long
)

// Event is what a platform published.
type Event struct {
	ID     id.Event
	Tenant id.Tenant
	// PublicID is the id that the world sees: the publisher's own, or ID's text.
	PublicID  string
	Type      string
	Timestamp time.Time
	// Body is the envelope as every receiver gets it, byte for byte.
	Body      []byte
	CreatedAt time.Time // the time in ID
	// Deliveries are the ids of all deliveries made of the event so far.
	Deliveries []id.Delivery
}

// Delivery is one event on its way to one webhook.
type Delivery struct {
	ID            id.Delivery
	Tenant        id.Tenant
	Webhook       id.Webhook
	Event         id.Event
	PublicEventID string
	EventType     string
	Status        Status
	// Attempts counts all that were ever made. Try counts those since the retry
	// schedule was last started.
	Attempts int
	Try      int
	// Trigger is what the next attempt is made for.
	Trigger Trigger
	// Due is when the next attempt may be made; zero once the delivery is done.
	Due       time.Time
	CreatedAt time.Time // the time in ID
	// ExpiresAt is when it is given up, tried or not.
	ExpiresAt   time.Time
	CompletedAt time.Time // zero until done
	// Replay is the retry-all that put it back in the queue, if one did.
	Replay id.Replay
	// Last is the latest attempt in short; nil before the first. Failure tells
	// why a delivery failed that no attempt ended: expired, canceled.
	Last    *LastAttempt
	Failure *Failure
}

// LastAttempt is the latest attempt of a delivery in short.
type LastAttempt struct {
	At         time.Time
	StatusCode int // 0 when no answer came
	Duration   time.Duration
	Failure    *Failure // nil when it succeeded
}

// Attempt is one HTTP exchange, or the try at one.
type Attempt struct {
	Number    int // from 1, across retries and replays
	Trigger   Trigger
	StartedAt time.Time
	Duration  time.Duration
	Timings   Timings
	// Revision is the webhook's revision that the request was made with: its
	// URL, headers and secrets. With it the request can be shown again exactly.
	Revision   int64
	StatusCode int // 0 when no answer came
	// Header and Body are the receiver's answer, Body at most MaxKeptBody bytes
	// of it.
	Header  http.Header
	Body    []byte
	Failure *Failure // nil when it succeeded
}

// MaxKeptBody is how much of a receiver's answer is kept, in bytes.
const MaxKeptBody = 16 << 10

// Timings are the parts of an attempt's duration; zero for a part that did not
// happen, as on a connection that was kept alive.
type Timings struct {
	DNS, Connect, TLS time.Duration
	// FirstByte is from the request's last byte to the answer's first.
	FirstByte time.Duration
}

// Trigger is what an attempt was made for.
type Trigger string

// The triggers.
const (
	TriggerAuto   Trigger = "auto"   // the event, and the retry schedule
	TriggerManual Trigger = "manual" // somebody asked for this delivery
	TriggerReplay Trigger = "replay" // retry-all-failed
	TriggerTest   Trigger = "test"   // a test-send
)

// Failure says why an attempt, or a whole delivery, did not succeed.
type Failure struct {
	Kind    FailureKind
	Message string // for people; names no address inside the network
	// Cause is for the operator's log alone: it is neither stored nor shown. It is
	// nil where the message says all, and where it would quote what a receiver wrote.
	Cause error
}

// FailureKind sorts failures. The set is closed: it labels metrics.
type FailureKind string

// The kinds of failure.
const (
	FailureStatus   FailureKind = "status"   // an answer that is not 2xx
	FailureTimeout  FailureKind = "timeout"  // no complete answer in time
	FailureDNS      FailureKind = "dns"      // the name did not resolve
	FailureConnect  FailureKind = "connect"  // refused, reset, unreachable
	FailureTLS      FailureKind = "tls"      // handshake or certificate
	FailureProtocol FailureKind = "protocol" // the answer is not HTTP
	FailureBlocked  FailureKind = "blocked"  // the address may not be called
	FailureProxy    FailureKind = "proxy"    // the operator's proxy made no connection
	FailureExpired  FailureKind = "expired"  // too old, tried or not
	FailureCanceled FailureKind = "canceled" // by a person, or its webhook was deleted
	FailureInternal FailureKind = "internal" // ours; the log has it
)
