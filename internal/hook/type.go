package hook

import "strings"

// MaxTypeLength is the longest event type, in characters.
const MaxTypeLength = 128

// ValidType reports whether s is an event type: dot-separated segments of
// [A-Za-z0-9_-]+, 128 characters at most.
func ValidType(s string) bool {
	if s == "" || len(s) > MaxTypeLength {
		return false
	}
	segment := 0
	for i := range len(s) {
		switch c := s[i]; {
		case c == '.':
			if segment == 0 {
				return false
			}
			segment = 0
		case validIDByte(c):
			segment++
		default:
			return false
		}
	}
	return segment > 0
}

// ValidSubscription reports whether s may stand in a webhook's events: an event
// type, a type and ".*", or "*".
func ValidSubscription(s string) bool {
	if s == "*" {
		return true
	}
	if prefix, ok := strings.CutSuffix(s, ".*"); ok {
		return len(s) <= MaxTypeLength && ValidType(prefix)
	}
	return ValidType(s)
}

// ValidPublisherID reports whether s may be an event's id or an idempotency
// key: 1 to 128 of [A-Za-z0-9_-]. A dot is refused: it would make the signed
// text "<id>.<timestamp>.<body>" ambiguous.
func ValidPublisherID(s string) bool {
	if s == "" || len(s) > 128 {
		return false
	}
	for i := range len(s) {
		if !validIDByte(s[i]) {
			return false
		}
	}
	return true
}

func validIDByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-'
}
