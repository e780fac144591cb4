package auth

import (
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/audit"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
)

// However often somebody guesses, the audit log gets few entries, and they say how
// often.
func TestFailedLoginsAreBounded(t *testing.T) {
	l := newLoginFailures()
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	ctx := audit.By(t.Context(), hook.AuditActor{Kind: hook.ActorAnonymous}, hook.AuditOrigin{Address: "192.0.2.1"})
	user := func(n byte) []hook.User {
		return []hook.User{{ID: id.User{n}, Tenant: id.Tenant{1}, Email: "a@example.com"}}
	}
	want := func(what string, all bool, counts ...string) {
		t.Helper()
		due := l.due(now, all)
		if len(due) != len(counts) {
			t.Fatalf("%s: %d entries, want %d", what, len(due), len(counts))
		}
		for i, e := range due {
			if got := string(e.Changes[0].To); got != counts[i] {
				t.Errorf("%s: entry %d is of %s failures, want %s", what, i, got, counts[i])
			}
			if e.Tenant != (id.Tenant{1}) || e.Action != hook.AuditUserFailed || e.Actor.Kind != hook.ActorAnonymous || e.Origin.Address != "192.0.2.1" || e.Object.Name != "a@example.com" {
				t.Errorf("%s: %+v", what, e)
			}
		}
	}
	want("nothing has failed", true)
	for range 5 {
		l.note(ctx, user(1))
	}
	want("the first ones, at once", false, "5")
	for range 1000 {
		l.note(ctx, user(1))
	}
	now = now.Add(failedLoginsEvery - time.Second)
	want("not again so soon", false)
	now = now.Add(time.Second)
	want("after the interval", false, "1000")
	l.note(ctx, user(1))
	want("at the end, whatever is there", true, "1")
	now = now.Add(failedLoginsEvery)
	want("nothing is left", false)
	if len(l.users) != 0 {
		t.Errorf("%d users are remembered", len(l.users))
	}
	for n := range byte(maxFailedUsers + 50) {
		l.note(ctx, user(n+1))
	}
	if n := len(l.due(now, false)); n != maxFailedUsers {
		t.Errorf("%d entries at once, want %d", n, maxFailedUsers)
	}
}
