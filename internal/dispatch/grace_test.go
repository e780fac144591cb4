package dispatch_test

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/send"
	"github.com/plinqx/hypha/signature"
)

// The grace of a rotation ends by the clock, with nobody who changes the webhook:
// from that moment on its attempts are signed with what is left.
func TestGraceEnds(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		newKey, oldKey := signingKey(t), signingKey(t)
		oldKey.Until = time.Now().Add(2 * time.Hour)
		w := r.webhook(1, "a.test")
		r.change(1, w, func(w *hook.Webhook) {
			w.Secrets = []hook.Secret{{Value: "the-newest-of-secrets"}, {Value: "the-secret-before-it", Until: time.Now().Add(time.Hour)}}
			w.Signatures = []hook.SignatureVersion{hook.SignatureV1, hook.SignatureV1a}
			w.SigningKeys = []hook.SigningKey{newKey, oldKey}
		})
		var got []http.Header
		r.receive("a.test", func(ctx context.Context, q send.Request) *hook.Attempt {
			v, err := signature.NewVerifier([]string{"the-newest-of-secrets"}, signature.WithClock(time.Now))
			if err != nil {
				t.Fatal(err)
			}
			if err := v.Verify(q.Header, q.Body); err != nil {
				t.Error(err)
			}
			got = append(got, q.Header.Clone())
			return answers(200)(ctx, q)
		})
		for i, tc := range []struct {
			at       time.Duration // since the rotation
			v1, v1a  int
			previous bool
		}{
			{0, 2, 2, true},
			{time.Hour - time.Nanosecond, 2, 2, true},
			{time.Hour, 1, 2, false},
			{2*time.Hour - time.Nanosecond, 1, 2, false},
			{2 * time.Hour, 1, 1, false},
			{30 * time.Hour, 1, 1, false},
		} {
			r.rest(tc.at - time.Since(r.begin))
			r.publish(1, "a.test", i, 1)
			r.rest(0)
			if len(got) != i+1 {
				t.Fatalf("after %v: %d attempts, want %d", tc.at, len(got), i+1)
			}
			h := got[i]
			entries := h.Get(signature.HeaderSignature)
			if v1, v1a := strings.Count(entries, "v1,"), strings.Count(entries, "v1a,"); v1 != tc.v1 || v1a != tc.v1a {
				t.Errorf("after %v: %d of v1 and %d of v1a, want %d and %d", tc.at, v1, v1a, tc.v1, tc.v1a)
			}
			if previous := h.Get("X-Plinqx-Signature-Previous") != ""; previous != tc.previous {
				t.Errorf("after %v: previous %t, want %t", tc.at, previous, tc.previous)
			}
		}
	})
}

func signingKey(t *testing.T) hook.SigningKey {
	t.Helper()
	k, err := signature.NewSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	return hook.SigningKey{ID: k.Public().Thumbprint(), Public: k.Public().String(), Private: k.Reveal()}
}
