// Package id makes and reads the identifiers of everything that has one.
//
// An identifier is a UUIDv7 (RFC 9562 §5.7): 16 bytes whose leading bits are
// the time it was made, so that ids of one process sort in the order of their
// making. Within a process that time never goes back, even if the clock does: until
// the clock has caught up, it stands nearly still.
//
// An id is shown in the text form of TypeID: a prefix that names the kind, an
// underscore, and 26 characters of Crockford's base32
// (wh_01jd6c3v7genxa5fhm2rj8wq4t).
//
// The kinds are different types: a webhook's id can't be passed where an
// event's is wanted. The package knows nothing of what the ids stand for.
package id

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Kind is what an id is the id of. The kinds are listed here and nowhere else.
type Kind interface{ prefix() string }

type (
	tenantKind   struct{}
	webhookKind  struct{}
	eventKind    struct{}
	deliveryKind struct{}
	replayKind   struct{}
	keyKind      struct{}
	userKind     struct{}
	sessionKind  struct{}
	auditKind    struct{}
	vaultKind    struct{}
)

func (tenantKind) prefix() string   { return "ten" }
func (webhookKind) prefix() string  { return "wh" }
func (eventKind) prefix() string    { return "evt" }
func (deliveryKind) prefix() string { return "dlv" }
func (replayKind) prefix() string   { return "rpl" }
func (keyKind) prefix() string      { return "key" }
func (userKind) prefix() string     { return "usr" }
func (sessionKind) prefix() string  { return "ses" }
func (auditKind) prefix() string    { return "aud" }
func (vaultKind) prefix() string    { return "vlt" }

// The kinds of id. The prefix of each is in its text form.
type (
	Tenant      = ID[tenantKind]   // ten_
	Webhook     = ID[webhookKind]  // wh_
	Event       = ID[eventKind]    // evt_
	Delivery    = ID[deliveryKind] // dlv_
	Replay      = ID[replayKind]   // rpl_
	Key         = ID[keyKind]      // key_
	User        = ID[userKind]     // usr_
	Session     = ID[sessionKind]  // ses_
	Audit       = ID[auditKind]    // aud_
	VaultSecret = ID[vaultKind]    // vlt_
)

// ID is one identifier. The zero value is no id; it is comparable, and orders
// by the time it was made.
type ID[K Kind] [16]byte

// ErrMalformed is what Parse returns for a text that is no id of the wanted kind.
var ErrMalformed = errors.New("malformed id")

// New makes an id of now. It fails only where the system has no randomness.
func New[K Kind]() (ID[K], error) {
	u, err := uuid.NewV7()
	if err != nil {
		return ID[K]{}, fmt.Errorf("make an id: %w", err)
	}
	return ID[K](u), nil
}

// Parse reads the text form. Only the canonical spelling is an id: the kind's
// own prefix and 26 lower-case characters.
func Parse[K Kind](s string) (ID[K], error) {
	var k K
	suffix, ok := strings.CutPrefix(s, k.prefix())
	if !ok || len(suffix) != 1+encodedLen || suffix[0] != '_' {
		return ID[K]{}, ErrMalformed
	}
	return decode[K](suffix[1:])
}

// The makers and readers of each kind.

func NewTenant() (Tenant, error)           { return New[tenantKind]() }   // NewTenant makes a tenant's id.
func NewWebhook() (Webhook, error)         { return New[webhookKind]() }  // NewWebhook makes a webhook's id.
func NewEvent() (Event, error)             { return New[eventKind]() }    // NewEvent makes an event's id.
func NewDelivery() (Delivery, error)       { return New[deliveryKind]() } // NewDelivery makes a delivery's id.
func NewReplay() (Replay, error)           { return New[replayKind]() }   // NewReplay makes a replay's id.
func NewKey() (Key, error)                 { return New[keyKind]() }      // NewKey makes an API key's id.
func NewUser() (User, error)               { return New[userKind]() }     // NewUser makes a user's id.
func NewSession() (Session, error)         { return New[sessionKind]() }  // NewSession makes a session's id.
func NewAudit() (Audit, error)             { return New[auditKind]() }    // NewAudit makes the id of an entry in the audit log.
func NewVaultSecret() (VaultSecret, error) { return New[vaultKind]() }    // NewVaultSecret makes a vault secret's id.

func ParseTenant(s string) (Tenant, error)           { return Parse[tenantKind](s) }   // ParseTenant reads ten_…
func ParseWebhook(s string) (Webhook, error)         { return Parse[webhookKind](s) }  // ParseWebhook reads wh_…
func ParseEvent(s string) (Event, error)             { return Parse[eventKind](s) }    // ParseEvent reads evt_…
func ParseDelivery(s string) (Delivery, error)       { return Parse[deliveryKind](s) } // ParseDelivery reads dlv_…
func ParseKey(s string) (Key, error)                 { return Parse[keyKind](s) }      // ParseKey reads key_…
func ParseVaultSecret(s string) (VaultSecret, error) { return Parse[vaultKind](s) }    // ParseVaultSecret reads vlt_…
func ParseUser(s string) (User, error)               { return Parse[userKind](s) }     // ParseUser reads usr_…

// IsZero reports whether this is no id.
func (i ID[K]) IsZero() bool { return i == ID[K]{} }

// Compare orders ids by the time they were made: -1, 0 or +1.
func (i ID[K]) Compare(j ID[K]) int { return strings.Compare(string(i[:]), string(j[:])) }

// Time is when the id was made, in UTC, to the millisecond.
func (i ID[K]) Time() time.Time {
	var ms [8]byte
	copy(ms[2:], i[:timeLen])
	return time.UnixMilli(int64(binary.BigEndian.Uint64(ms[:]))).UTC()
}

// timeLen is how many leading bytes are the time (RFC 9562 §5.7).
const timeLen = 6

// First is the bound between the ids that were made before t and those that were
// made at t or later, of any kind: the Time of those below it is before t, and
// that of it and the others is not. A t that no id can have, before 1970 or after
// 10889, counts as the nearest that one can.
func First(t time.Time) (bound [16]byte) {
	ms := t.UnixMilli()
	if t.Nanosecond()%int(time.Millisecond) != 0 {
		ms++ // ids of the millisecond that t is in have its beginning for their time
	}
	var wide [8]byte
	binary.BigEndian.PutUint64(wide[:], uint64(min(max(0, ms), 1<<48-1))<<16)
	copy(bound[:timeLen], wide[:])
	return bound
}

// String is the text form.
func (i ID[K]) String() string {
	var k K
	return string(i.appendText(make([]byte, 0, 32), k.prefix()))
}

// AppendText appends the text form, for those who build larger texts.
func (i ID[K]) AppendText(b []byte) ([]byte, error) {
	var k K
	return i.appendText(b, k.prefix()), nil
}

// MarshalText is String, for JSON and the log.
func (i ID[K]) MarshalText() ([]byte, error) { return i.AppendText(nil) }

// UnmarshalText is Parse.
func (i *ID[K]) UnmarshalText(b []byte) error {
	v, err := Parse[K](string(b))
	if err != nil {
		return err
	}
	*i = v
	return nil
}

// Crockford's base32, as TypeID uses it: 26 characters hold 130 bits, of which
// the first two are zero, so the first character is 0 to 7.
const (
	alphabet   = "0123456789abcdefghjkmnpqrstvwxyz"
	encodedLen = 26
)

func (i ID[K]) appendText(b []byte, prefix string) []byte {
	b = append(b, prefix...)
	b = append(b, '_')
	var acc uint
	bits := 2 // two zero bits lead
	for _, c := range i {
		acc = acc<<8 | uint(c)
		bits += 8
		for bits >= 5 {
			bits -= 5
			b = append(b, alphabet[acc>>bits&31])
		}
	}
	return b
}

func decode[K Kind](s string) (ID[K], error) {
	var out ID[K]
	if s[0] > '7' {
		return ID[K]{}, ErrMalformed
	}
	var acc uint
	bits, n := -2, 0
	for j := range len(s) {
		v := strings.IndexByte(alphabet, s[j])
		if v < 0 {
			return ID[K]{}, ErrMalformed
		}
		acc = acc<<5 | uint(v)
		bits += 5
		if bits >= 8 {
			bits -= 8
			out[n] = byte(acc >> bits)
			n++
		}
	}
	return out, nil
}
