package api

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
)

// The pages of a list.
const (
	defaultLimit = 50
	maxLimit     = 1000
	maxOffset    = 1<<31 - 1
)

// query reads the parameters of a URL. Each is given once or not at all; one
// that nobody asks for is refused, so that a typing error is not an unfiltered
// list.
type query struct {
	values   url.Values
	asked    map[string]bool
	problems problems
	// cursors are bound to what they page through: the route, the tenant and
	// the filters.
	bound string
}

func newQuery(c *call) *query {
	values, err := url.ParseQuery(c.URL.RawQuery)
	q := &query{values: values, asked: map[string]bool{}}
	if err != nil {
		q.problems.add("", "The query can't be read: write it as name=value&name=value, percent-encoded")
	}
	var b strings.Builder
	b.WriteString(c.URL.Path)
	if c.principal != nil {
		b.WriteString("\x00" + c.principal.Tenant.String())
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if name != "cursor" && name != "limit" && name != "offset" {
			fmt.Fprintf(&b, "\x00%s\x00%q", name, values[name])
		}
	}
	q.bound = b.String()
	return q
}

// err is all that was wrong, once all parameters have been asked for.
func (q *query) err() error {
	for _, name := range slices.Sorted(maps.Keys(q.values)) {
		if !q.asked[name] {
			q.problems.add(shorten(name), "is not a parameter of this request")
		}
	}
	return q.problems.err()
}

// text answers a parameter, and whether it was given.
func (q *query) text(name string) (string, bool) {
	q.asked[name] = true
	switch given := q.values[name]; {
	case len(given) == 0:
		return "", false
	case len(given) > 1:
		q.problems.add(name, "is given %d times", len(given))
		return "", false
	case given[0] == "":
		q.problems.add(name, "is empty")
		return "", false
	default:
		return given[0], true
	}
}

// integer reads digits, nothing else.
func (q *query) integer(name string, lowest, highest, fallback int64) int64 {
	s, ok := q.text(name)
	if !ok {
		return fallback
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || strings.Trim(s, "0123456789") != "" || n < lowest || n > highest {
		q.problems.add(name, "must be an integer from %d to %d", lowest, highest)
		return fallback
	}
	return n
}

func (q *query) limit() int { return int(q.integer("limit", 1, maxLimit, defaultLimit)) }

func (q *query) offset() int { return int(q.integer("offset", 0, maxOffset, 0)) }

func (q *query) time(name string) time.Time {
	s, ok := q.text(name)
	if !ok {
		return time.Time{}
	}
	t, ok := parseTime(s)
	if !ok {
		q.problems.add(name, "must be a time as in RFC 3339, such as 2026-01-31T12:00:00Z")
	}
	return t
}

// span reads since and until.
func (q *query) span() (since, until time.Time) {
	since, until = q.time("since"), q.time("until")
	if !since.IsZero() && !until.IsZero() && until.Before(since) {
		q.problems.add("until", "must not be before since")
	}
	return since, until
}

func (q *query) webhook() id.Webhook {
	s, ok := q.text("webhookId")
	if !ok {
		return id.Webhook{}
	}
	w, err := id.ParseWebhook(s)
	if err != nil {
		q.problems.add("webhookId", "must be a webhook's id")
	}
	return w
}

func (q *query) eventType(name string) string {
	s, ok := q.text(name)
	if ok && !hook.ValidType(s) {
		q.problems.add(name, "must be an event type")
	}
	return s
}

func (q *query) eventID() string {
	s, ok := q.text("eventId")
	if ok && !hook.ValidPublisherID(s) {
		q.problems.add("eventId", "must be an event's id")
	}
	return s
}

func (q *query) status() *hook.Status {
	s, ok := q.text("status")
	if !ok {
		return nil
	}
	status, ok := hook.ParseStatus(s)
	if !ok {
		q.problems.add("status", "must be PENDING, RETRYING, SUCCESS or FAILED")
		return nil
	}
	return &status
}

// A cursor is a version, eight bytes that bind it to its list, and the id of the
// last row that was given.
const (
	cursorVersion = 1
	cursorBound   = 8
	cursorSize    = 1 + cursorBound + 16
)

// cursor answers the position to go on from, zero from the start.
func (q *query) cursor() (position [16]byte) {
	s, ok := q.text("cursor")
	if !ok {
		return position
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(raw) != cursorSize || raw[0] != cursorVersion {
		q.problems.add("cursor", "is not a cursor that was given out")
		return position
	}
	if sum := q.sum(); !bytes.Equal(raw[1:1+cursorBound], sum[:cursorBound]) {
		q.problems.add("cursor", "belongs to another list: use it with the path and the filters that it was given for")
		return position
	}
	return [16]byte(raw[1+cursorBound:])
}

func (q *query) sum() [32]byte { return sha256.Sum256([]byte(q.bound)) }

// next is the cursor that goes on after a position; nil at the end.
func (q *query) next(position [16]byte) *string {
	if position == [16]byte{} {
		return nil
	}
	sum := q.sum()
	raw := append(append([]byte{cursorVersion}, sum[:cursorBound]...), position[:]...)
	s := base64.RawURLEncoding.EncodeToString(raw)
	return &s
}

// cursorOrOffset reads both, of which one may be given.
func (q *query) cursorOrOffset() (position [16]byte, offset int) {
	position, offset = q.cursor(), q.offset()
	if q.values.Has("cursor") && q.values.Has("offset") {
		q.problems.add("offset", "can't be given with a cursor")
	}
	return position, offset
}
