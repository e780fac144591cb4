package dispatch_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/send"
)

// What a webhook's headers refer to is filled in for each attempt anew: a secret that
// changes is in the next one, and what an attempt has is hidden in its answer.
func TestVaultSecretsAreFilledIn(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		var hidden []send.Redactor
		r.receive("to.test", func(ctx context.Context, q send.Request) *hook.Attempt {
			hidden = append(hidden, q.Redact)
			return answers(500)(ctx, q)
		})
		r.secret(1, "TOKEN", "first-value")
		r.secret(1, "OTHER", "other-value")
		webhook := r.webhook(1, "to.test")
		r.change(1, webhook, func(w *hook.Webhook) {
			w.Headers = map[string]string{"X-Tag": "a {{vault.TOKEN}} {{name}}", "X-Plain": "not-hidden"}
		})
		r.publish(1, "to.test", 1, 1)
		r.rest(time.Second)
		r.secret(1, "TOKEN", "second-value")
		r.rest(10 * time.Second)
		r.secret(1, "OTHER", "changed-value") // which it does not refer to
		r.rest(10 * time.Minute)
		if len(hidden) != 3 {
			t.Fatalf("%d attempts", len(hidden))
		}
		for i, value := range []string{"first-value", "second-value", "second-value"} {
			if !slices.Contains(hidden[i], value) || !slices.Contains(hidden[i], "a "+value+" {{name}}") {
				t.Errorf("attempt %d hides %q, without %q", i+1, hidden[i], value)
			}
			if slices.ContainsFunc(hidden[i], func(v string) bool {
				return strings.Contains(v, "not-hidden") || strings.Contains(v, "other-value")
			}) {
				t.Errorf("attempt %d hides %q", i+1, hidden[i])
			}
		}
	})
}

// What can't be filled in is not sent as it stands: the attempt fails, and says why.
func TestVaultSecretThatIsNotThere(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		webhook := r.webhook(1, "to.test")
		r.change(1, webhook, func(w *hook.Webhook) { w.Headers = map[string]string{"X-Tag": "{{vault.TOKEN}}"} })
		r.secret(2, "TOKEN", "of another tenant")
		r.publish(1, "to.test", 1, 1)
		r.rest(time.Second)
		if got := r.allTo("to.test"); len(got) > 0 {
			t.Fatalf("sent %v", got)
		}
		for _, row := range r.disk.rows {
			if len(row.attempts) != 1 {
				t.Fatalf("%d attempts", len(row.attempts))
			}
			f := row.attempts[0].Failure
			if f == nil || f.Kind != hook.FailureInternal || !strings.Contains(f.Message, "X-Tag") || !strings.Contains(f.Message, "vault secret TOKEN") {
				t.Errorf("it failed with %+v", f)
			}
		}
		r.secret(1, "TOKEN", strings.Repeat("v", 5000))
		r.change(1, webhook, func(w *hook.Webhook) { w.Headers = map[string]string{"X-Tag": "{{vault.TOKEN}}{{vault.TOKEN}}"} })
		r.rest(10 * time.Second)
		for _, row := range r.disk.rows {
			if f := row.attempts[len(row.attempts)-1].Failure; len(row.attempts) != 2 || f == nil || !strings.Contains(f.Message, "8192 bytes") {
				t.Errorf("too long: %d attempts, %+v", len(row.attempts), f)
			}
		}
		if got := r.allTo("to.test"); len(got) > 0 {
			t.Fatalf("sent %v", got)
		}
		r.secret(1, "TOKEN", "short")
		r.rest(10 * time.Minute)
		if got := r.allTo("to.test"); len(got) != 1 {
			t.Errorf("once it is there: %v", got)
		}
	})
}
