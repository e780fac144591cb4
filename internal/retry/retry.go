// Package retry decides what follows an attempt: done, again at a time, or
// given up. It is pure: the same outcome, schedule and chance give the same
// decision. It must not know how an attempt is made or where it is recorded.
package retry

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/plinqx/hypha/internal/hook"
)

// Jitter is how far a delay may stray from the schedule, as a share of it:
// deliveries that failed together must not come back together.
const Jitter = 0.2

// MaxRetryAfter is the most that a receiver's Retry-After is followed.
const MaxRetryAfter = 24 * time.Hour

// Schedule is the delay after each failed try. A delivery gets one try more
// than the schedule has delays.
type Schedule []time.Duration

// DefaultSchedule is 8 tries over about 28 hours.
func DefaultSchedule() Schedule {
	return Schedule{5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour, 10 * time.Hour, 10 * time.Hour}
}

// The bounds of a schedule that ParseSchedule takes.
const (
	MaxDelays = 50
	MinDelay  = 100 * time.Millisecond
	MaxDelay  = 7 * 24 * time.Hour
)

// ParseSchedule reads delays as "5s,5m,30m". The empty text is no retry at all.
func ParseSchedule(text string) (Schedule, error) {
	s := Schedule{}
	if strings.TrimSpace(text) == "" {
		return s, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		d, err := time.ParseDuration(strings.TrimSpace(part))
		if err != nil {
			return nil, fmt.Errorf("retry schedule: %q is not a duration such as 5s, 30m or 2h", part)
		}
		if d < MinDelay || d > MaxDelay {
			return nil, fmt.Errorf("retry schedule: %s is not between %s and %s", d, MinDelay, MaxDelay)
		}
		s = append(s, d)
	}
	if len(s) > MaxDelays {
		return nil, errors.New("retry schedule: more than 50 delays")
	}
	return s, nil
}

// String is the text that ParseSchedule reads.
func (s Schedule) String() string {
	parts := make([]string, len(s))
	for i, d := range s {
		parts[i] = d.String()
	}
	return strings.Join(parts, ",")
}

// UnmarshalText is ParseSchedule, for flags and settings files.
func (s *Schedule) UnmarshalText(b []byte) error {
	v, err := ParseSchedule(string(b))
	if err == nil {
		*s = v
	}
	return err
}

// Decision is what follows an attempt.
type Decision struct {
	Change hook.Change
	Due    time.Time // of the next try, when Change is Postponed
	// PauseUntil is until when the receiver asked to be left alone; zero if it
	// did not. It is meant for the webhook as a whole.
	PauseUntil time.Time
	// Gone says that the receiver wants no more: the webhook is to be disabled.
	Gone bool
}

// Decide judges an attempt that ended at end. Try counts the tries of the
// schedule with this one; chance is uniform in [0, 1) and spreads the delay. A
// test-send is tried once, whatever the schedule.
func (s Schedule) Decide(a *hook.Attempt, try int, end time.Time, chance float64) Decision {
	if a.Failure == nil {
		return Decision{Change: hook.Succeeded}
	}
	d := Decision{Change: hook.Exhausted, Gone: a.StatusCode == http.StatusGone}
	wait := time.Duration(0)
	if a.StatusCode == http.StatusTooManyRequests || a.StatusCode == http.StatusServiceUnavailable {
		if wait = After(a.Header.Get("Retry-After"), end); wait > 0 {
			d.PauseUntil = end.Add(wait)
		}
	}
	if a.Trigger == hook.TriggerTest || try > len(s) {
		return d
	}
	d.Change = hook.Postponed
	delay := float64(s[max(try, 1)-1])
	delay *= 1 - Jitter + 2*Jitter*chance
	d.Due = end.Add(max(time.Duration(delay), wait))
	return d
}

// After reads a Retry-After header (RFC 9110 §10.2.3): seconds or an HTTP date.
// What is neither, or lies in the past, is 0; what is longer than MaxRetryAfter
// is cut to it.
func After(header string, now time.Time) time.Duration {
	header = strings.TrimSpace(header)
	if header == "" || len(header) > 64 {
		return 0
	}
	if allDigits(header) {
		seconds, err := strconv.ParseInt(header, 10, 64)
		if err != nil || seconds > int64(MaxRetryAfter/time.Second) {
			return MaxRetryAfter
		}
		return time.Duration(seconds) * time.Second
	}
	at, err := http.ParseTime(header)
	if err != nil {
		return 0
	}
	return min(max(at.Sub(now), 0), MaxRetryAfter)
}

func allDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}
