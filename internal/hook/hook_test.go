package hook_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/hook"
)

// The table of states, in full: it must say what the drawing beside Next says.
func TestStatusTable(t *testing.T) {
	const none = "-"
	changes := []hook.Change{hook.Succeeded, hook.Postponed, hook.Exhausted, hook.Expired, hook.Canceled, hook.Asked}
	for _, row := range []struct {
		from  hook.Status
		tried bool
		to    []string
	}{
		{hook.StatusPending, false, []string{"SUCCESS", "RETRYING", "FAILED", "FAILED", "FAILED", "PENDING"}},
		{hook.StatusRetrying, true, []string{"SUCCESS", "RETRYING", "FAILED", "FAILED", "FAILED", "RETRYING"}},
		{hook.StatusSuccess, true, []string{none, none, none, none, none, "RETRYING"}},
		{hook.StatusFailed, true, []string{none, none, none, none, none, "RETRYING"}},
		{hook.StatusFailed, false, []string{none, none, none, none, none, "PENDING"}},
	} {
		for i, change := range changes {
			to, ok := row.from.Next(change, row.tried)
			got := to.String()
			if !ok {
				got = none
				if to != row.from {
					t.Errorf("%s, change %d: not allowed, and still %s", row.from, change, to)
				}
			}
			if got != row.to[i] {
				t.Errorf("%s (tried: %t), change %d: %s, want %s", row.from, row.tried, change, got, row.to[i])
			}
		}
	}
}

func TestStatusNames(t *testing.T) {
	for _, s := range []hook.Status{hook.StatusPending, hook.StatusRetrying, hook.StatusSuccess, hook.StatusFailed} {
		if got, ok := hook.ParseStatus(s.String()); !ok || got != s {
			t.Errorf("%s: %v, %t", s, got, ok)
		}
		if s.Done() != (s == hook.StatusSuccess || s == hook.StatusFailed) {
			t.Errorf("%s: done is %t", s, s.Done())
		}
	}
	for _, bad := range []string{"", "success", "UNKNOWN", "PENDING "} {
		if _, ok := hook.ParseStatus(bad); ok {
			t.Errorf("%q is a status", bad)
		}
	}
}

func TestEventTypes(t *testing.T) {
	longest := strings.Repeat("a", hook.MaxTypeLength)
	for _, s := range []string{"a", "invocation.completed", "connection.health_changed", "A-1.b_2.c", longest} {
		if !hook.ValidType(s) || !hook.ValidSubscription(s) {
			t.Errorf("%.40q is refused", s)
		}
	}
	for _, s := range []string{"", ".", "a.", ".a", "a..b", "a b", "a\r\nb", "é", "a*", "a/b", longest + "a", "a.*", "*"} {
		if hook.ValidType(s) {
			t.Errorf("%.40q is a type", s)
		}
	}
	for s, want := range map[string]bool{"*": true, "a.*": true, "a.b.*": true, ".*": false, "a*": false, "*.a": false, "a.*.b": false, "**": false, "a..*": false, longest + ".*": false} {
		if got := hook.ValidSubscription(s); got != want {
			t.Errorf("subscription %.40q: %t", s, got)
		}
	}
}

func TestPublisherIDs(t *testing.T) {
	for s, want := range map[string]bool{
		"a": true, "evt_0001": true, "A-z_9": true, strings.Repeat("k", 128): true,
		"": false, "a.b": false, "a b": false, strings.Repeat("k", 129): false, "a\n": false, "é": false,
	} {
		if got := hook.ValidPublisherID(s); got != want {
			t.Errorf("%.40q: %t", s, got)
		}
	}
}

func TestTexts(t *testing.T) {
	for s, want := range map[string]string{
		"My Webhook": "", "Zoë 日本 🚀": "", "<img src=x onerror=alert(1)>": "",
		"": "empty", "   ": "empty", strings.Repeat("é", 256): "at most 255 characters, and has 256",
		"a\x1b[31mred": "U+001B", "a\u202eb": "U+202E", "a\x00": "U+0000", "a\xff": "UTF-8", "two\nlines": "U+000A",
	} {
		got := hook.CheckText(s, 1, 255, "")
		if want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%.40q: %q, want %q", s, got, want)
		}
	}
	if got := hook.CheckText("two\nlines", 0, 255, "\n"); got != "" {
		t.Errorf("an allowed character: %q", got)
	}
}

func TestErrors(t *testing.T) {
	cause := errors.New("the cause")
	err := fmt.Errorf("wrapped: %w", hook.Unavailable(time.Second, cause, "Try again"))
	if hook.CodeOf(err) != hook.CodeUnavailable || !errors.Is(err, &hook.Error{Code: hook.CodeUnavailable}) || !errors.Is(err, cause) {
		t.Errorf("%v: %s", err, hook.CodeOf(err))
	}
	if errors.Is(err, &hook.Error{Code: hook.CodeConflict}) || hook.CodeOf(cause) != hook.CodeInternal {
		t.Error("codes are mixed up")
	}
	if text := err.Error(); !strings.Contains(text, "the cause") {
		t.Errorf("the log would not have the cause: %s", text)
	}
}

func TestScopes(t *testing.T) {
	for _, tc := range []struct {
		have []hook.Scope
		want hook.Scope
		ok   bool
	}{
		{[]hook.Scope{hook.ScopeAdmin}, hook.ScopeEventsWrite, true},
		{[]hook.Scope{hook.ScopeAdmin}, hook.ScopeOperator, false},
		{[]hook.Scope{hook.ScopeOperator}, hook.ScopeOperator, true},
		{[]hook.Scope{hook.ScopeOperator}, hook.ScopeWebhooksWrite, true},
		{hook.RoleViewer.Scopes(), hook.ScopeWebhooksRead, true},
		{hook.RoleViewer.Scopes(), hook.ScopeWebhooksWrite, false},
		{hook.RoleDeveloper.Scopes(), hook.ScopeDeliveriesWrite, true},
		{hook.RoleDeveloper.Scopes(), hook.ScopeAdmin, false},
		{hook.Role("Guest").Scopes(), hook.ScopeWebhooksRead, false},
		{nil, hook.ScopeWebhooksRead, false},
	} {
		if got := hook.Allows(tc.have, tc.want); got != tc.ok {
			t.Errorf("%v allows %s: %t", tc.have, tc.want, got)
		}
	}
}
