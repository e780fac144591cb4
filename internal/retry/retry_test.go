package retry_test

import (
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/retry"
)

var end = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func failed(status int, retryAfter string) *hook.Attempt {
	a := &hook.Attempt{StatusCode: status, Trigger: hook.TriggerAuto, Failure: &hook.Failure{Kind: hook.FailureStatus}, Header: http.Header{}}
	if retryAfter != "" {
		a.Header.Set("Retry-After", retryAfter)
	}
	return a
}

func TestDecide(t *testing.T) {
	schedule := retry.Schedule{5 * time.Second, 5 * time.Minute}
	const middle = 0.5 // no jitter
	for _, tc := range []struct {
		name    string
		attempt *hook.Attempt
		try     int
		want    retry.Decision
	}{
		{"2xx is success", &hook.Attempt{StatusCode: 204}, 1, retry.Decision{Change: hook.Succeeded}},
		{"first failure waits the first delay", failed(500, ""), 1, retry.Decision{Change: hook.Postponed, Due: end.Add(5 * time.Second)}},
		{"second failure waits the second", failed(0, ""), 2, retry.Decision{Change: hook.Postponed, Due: end.Add(5 * time.Minute)}},
		{"the try after the last delay gives up", failed(500, ""), 3, retry.Decision{Change: hook.Exhausted}},
		{"a redirect is a failure", failed(302, ""), 1, retry.Decision{Change: hook.Postponed, Due: end.Add(5 * time.Second)}},
		{"410 disables the webhook, and the delivery waits", failed(410, ""), 1, retry.Decision{Change: hook.Postponed, Due: end.Add(5 * time.Second), Gone: true}},
		{"Retry-After is never sooner than the schedule", failed(429, "1"), 1, retry.Decision{Change: hook.Postponed, Due: end.Add(5 * time.Second), PauseUntil: end.Add(time.Second)}},
		{"Retry-After later than the schedule is honoured", failed(503, "60"), 1, retry.Decision{Change: hook.Postponed, Due: end.Add(time.Minute), PauseUntil: end.Add(time.Minute)}},
		{"Retry-After as a date", failed(429, "Sun, 01 Mar 2026 12:02:00 GMT"), 1, retry.Decision{Change: hook.Postponed, Due: end.Add(2 * time.Minute), PauseUntil: end.Add(2 * time.Minute)}},
		{"Retry-After counts on 429 and 503 only", failed(500, "60"), 1, retry.Decision{Change: hook.Postponed, Due: end.Add(5 * time.Second)}},
		{"Retry-After holds at the last try too", failed(503, "60"), 3, retry.Decision{Change: hook.Exhausted, PauseUntil: end.Add(time.Minute)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, schedule.Decide(tc.attempt, tc.try, end, middle)); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("a test-send is tried once", func(t *testing.T) {
		a := failed(500, "")
		a.Trigger = hook.TriggerTest
		if got := schedule.Decide(a, 1, end, middle); got.Change != hook.Exhausted {
			t.Errorf("%+v", got)
		}
	})
}

func TestDelayIsWithinTheJitter(t *testing.T) {
	schedule := retry.DefaultSchedule()
	rapid.Check(t, func(t *rapid.T) {
		try := rapid.IntRange(1, len(schedule)).Draw(t, "try")
		chance := rapid.Float64Range(0, 0.999999).Draw(t, "chance")
		got := schedule.Decide(failed(500, ""), try, end, chance)
		delay, planned := got.Due.Sub(end).Seconds(), schedule[try-1].Seconds()
		if got.Change != hook.Postponed || delay < 0.8*planned-0.001 || delay > 1.2*planned+0.001 {
			t.Fatalf("try %d: %+v", try, got)
		}
	})
}

func TestHostileRetryAfter(t *testing.T) {
	for header, want := range map[string]time.Duration{
		"":                                0,
		"0":                               0,
		"5":                               5 * time.Second,
		" 7 ":                             7 * time.Second,
		"-5":                              0,
		"1.5":                             0,
		"1e99":                            0,
		"NaN":                             0,
		"5, 10":                           0,
		"86400":                           24 * time.Hour,
		"86401":                           24 * time.Hour,
		"99999999999999999999999999":      24 * time.Hour,
		"Wed, 21 Oct 2015 07:28:00 GMT":   0,
		"Fri, 31 Dec 9999 23:59:59 GMT":   24 * time.Hour,
		strings.Repeat("9", 100_000):      0,
		"Sun, 01 Mar 2026 12:00:30 GMT\r": 30 * time.Second,
	} {
		if got := retry.After(header, end); got != want {
			t.Errorf("After(%.40q) = %s, want %s", header, got, want)
		}
	}
}

// FuzzAfter holds that a wait is within its bounds, that the seconds it comes to
// mean the same, and that no receiver moves it by blanks.
func FuzzAfter(f *testing.F) {
	for _, header := range []string{
		"120", "0", "-1", "+1", "1.5", "1e99", "NaN", "5, 10", "99999999999999999999", "\u0661",
		"Sun, 01 Mar 2026 12:02:00 GMT", "Sunday, 01-Mar-26 12:02:00 GMT", "Sun Mar  1 12:02:00 2026", "Fri, 31 Dec 9999 23:59:59 GMT", "Sun, 01 Mar 0000 12:02:00 GMT",
	} {
		f.Add(header)
	}
	f.Fuzz(func(t *testing.T, header string) {
		got := retry.After(header, end)
		if got < 0 || got > retry.MaxRetryAfter {
			t.Errorf("After(%q) = %s", header, got)
		}
		if want := after(header); got != want {
			t.Errorf("After(%q) = %s, want %s", header, got, want)
		}
		whole := got.Truncate(time.Second)
		if again := retry.After(strconv.FormatInt(int64(whole/time.Second), 10), end); again != whole {
			t.Errorf("After(%q) = %s, whose seconds are %s", header, got, again)
		}
		if again := retry.After(" "+header+"\t", end); again != got {
			t.Errorf("After(%q) = %s, with blanks around it %s", header, got, again)
		}
	})
}

// after reads what RFC 9110 has two forms for (5.6.7, 10.2.3), in plain terms.
func after(header string) time.Duration {
	header = strings.TrimSpace(header)
	if len(header) > 64 {
		return 0
	}
	var wait float64 // seconds
	if strings.Trim(header, "0123456789") == "" {
		wait, _ = strconv.ParseFloat(header, 64) // too many digits are infinite, none are 0
	}
	for _, layout := range []string{http.TimeFormat, time.RFC850, time.ANSIC} {
		if at, err := time.Parse(layout, header); err == nil {
			wait = float64(at.Unix() - end.Unix())
			break
		}
	}
	return time.Duration(min(max(wait, 0), 86400)) * time.Second
}

func TestParseSchedule(t *testing.T) {
	const text = "5s,5m,30m,2h,5h,10h,10h"
	got, err := retry.ParseSchedule(text)
	if err != nil || !cmp.Equal(got, retry.DefaultSchedule()) {
		t.Fatalf("%v, %v", got, err)
	}
	again, err := retry.ParseSchedule(got.String())
	if err != nil || !cmp.Equal(again, got) {
		t.Fatalf("%v, %v", again, err)
	}
	if none, err := retry.ParseSchedule(""); err != nil || len(none) != 0 {
		t.Errorf("empty: %v, %v", none, err)
	}
	for _, bad := range []string{"x", "5", "5s,,5m", "-5s", "0s", "9000h", strings.Repeat("1s,", 50) + "1s"} {
		if got, err := retry.ParseSchedule(bad); err == nil {
			t.Errorf("%.30q: %v", bad, got)
		}
	}
}
