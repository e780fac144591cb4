package registry_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/plinqx/hypha/internal/catalog"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/registry"
	"github.com/plinqx/hypha/signature"
)

// rotating is a rig whose clock the test moves.
type rotating struct {
	*rig
	t   *testing.T
	now time.Time
	id  id.Webhook
}

func newRotating(t *testing.T, c registry.Change) *rotating {
	r := &rotating{rig: newRig(), t: t, now: start}
	r.Registry = r.on(r.catalog)
	if c.Secret == nil {
		c.Secret = new("the-secret-number-0")
	}
	r.id = r.create(t, c).Webhook.ID
	return r
}

// on is a registry over the rig's store with the test's clock.
func (r *rotating) on(c *catalog.Catalog) *registry.Registry {
	o := r.another(c).Options
	o.Now = func() time.Time { return r.now }
	return registry.New(o)
}

func (r *rotating) rotate(rotation registry.Rotation) *registry.Created {
	r.t.Helper()
	made, err := r.Rotate(r.t.Context(), tenant, r.id, rotation)
	if err != nil {
		r.t.Fatal(err)
	}
	return made
}

// to rotates to a numbered secret.
func (r *rotating) to(n int, grace time.Duration) *registry.Created {
	r.t.Helper()
	return r.rotate(registry.Rotation{Secret: numbered(n), GraceSeconds: new(int64(grace / time.Second))})
}

func numbered(n int) *string { return new(fmt.Sprintf("the-secret-number-%d", n)) }

// secrets are those of a webhook, in short: their numbers, and when they end.
func secrets(w *hook.Webhook) []string {
	var out []string
	for _, s := range w.Secrets {
		text := strings.TrimPrefix(s.Value, "the-secret-number-")
		if !s.Until.IsZero() {
			text += " until " + s.Until.Format("15:04:05")
		}
		out = append(out, text)
	}
	return out
}

func TestRotate(t *testing.T) {
	r := newRotating(t, valid())
	before, err := r.Get(t.Context(), tenant, r.id)
	if err != nil {
		t.Fatal(err)
	}
	made := r.to(1, time.Hour)
	if made.Secret != "" {
		t.Error("the secret that was given is told again")
	}
	row := r.disk.rows[r.id]
	stored, err := r.catalog.Open(&row)
	if err != nil {
		t.Fatal(err)
	}
	for what, w := range map[string]*hook.Webhook{"answered": made.Webhook, "stored": stored} {
		if diff := cmp.Diff([]string{"1", "0 until 13:00:00"}, secrets(w)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	// Whoever reads a snapshot at that time must not see it change.
	if diff := cmp.Diff([]string{"0"}, secrets(before)); diff != "" {
		t.Errorf("the state before has changed (-want +got):\n%s", diff)
	}
}

func TestRotations(t *testing.T) {
	for _, tc := range []struct {
		name string
		run  func(r *rotating) *hook.Webhook
		want []string
	}{
		{"the one before signs until the grace ends", func(r *rotating) *hook.Webhook {
			return r.to(1, time.Hour).Webhook
		}, []string{"1", "0 until 13:00:00"}},
		{"what was replaced before keeps its end, later or sooner", func(r *rotating) *hook.Webhook {
			r.to(1, time.Hour)
			r.to(2, time.Minute)
			return r.to(3, 2*time.Hour).Webhook
		}, []string{"3", "2 until 14:00:00", "1 until 12:01:00", "0 until 13:00:00"}},
		{"no grace: all that is older ends at once", func(r *rotating) *hook.Webhook {
			r.to(1, time.Hour)
			r.to(2, time.Hour)
			return r.to(3, 0).Webhook
		}, []string{"3"}},
		{"those at their end go with the next rotation", func(r *rotating) *hook.Webhook {
			r.to(1, time.Hour)
			r.now = r.now.Add(time.Hour)
			return r.to(2, time.Hour).Webhook
		}, []string{"2", "1 until 14:00:00"}},
		{"or with any other change", func(r *rotating) *hook.Webhook {
			r.to(1, time.Hour)
			r.now = r.now.Add(time.Hour)
			w, err := r.Update(r.t.Context(), tenant, r.id, registry.Change{Name: new("two")})
			if err != nil {
				r.t.Fatal(err)
			}
			return w
		}, []string{"1"}},
		{"a moment sooner they stay", func(r *rotating) *hook.Webhook {
			r.to(1, time.Hour)
			r.now = r.now.Add(time.Hour - time.Millisecond)
			w, err := r.Update(r.t.Context(), tenant, r.id, registry.Change{Name: new("two")})
			if err != nil {
				r.t.Fatal(err)
			}
			return w
		}, []string{"1", "0 until 13:00:00"}},
		{"a secret in a PATCH replaces all at once", func(r *rotating) *hook.Webhook {
			r.to(1, time.Hour)
			w, err := r.Update(r.t.Context(), tenant, r.id, registry.Change{Secret: numbered(2)})
			if err != nil {
				r.t.Fatal(err)
			}
			return w
		}, []string{"2"}},
		{"one that is at its end may come again", func(r *rotating) *hook.Webhook {
			r.to(1, time.Hour)
			r.now = r.now.Add(time.Hour)
			return r.to(0, time.Hour).Webhook
		}, []string{"0", "1 until 14:00:00"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, secrets(tc.run(newRotating(t, valid())))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestRotateMakesTheSecret(t *testing.T) {
	r := newRotating(t, valid())
	made := r.rotate(registry.Rotation{})
	w := made.Webhook
	if !strings.HasPrefix(made.Secret, "whsec_") || w.Secrets[0].Value != made.Secret || !w.Secrets[0].CreatedAt.Equal(start) {
		t.Errorf("made %q, holds %d secrets", made.Secret, len(w.Secrets))
	}
	if len(w.Secrets) != 2 || !w.Secrets[1].Until.Equal(start.Add(24*time.Hour)) {
		t.Errorf("the one before signs until %v, want a day", w.Secrets[1].Until)
	}
	if len(w.SigningKeys) != 0 {
		t.Error("it has a signing key that it did not ask for")
	}
}

func TestRotateRefuses(t *testing.T) {
	for _, tc := range []struct {
		name     string
		rotation registry.Rotation
		wrong    []string
	}{
		{"the secret in force", registry.Rotation{Secret: numbered(1)}, []string{"secret"}},
		{"one that is in grace", registry.Rotation{Secret: numbered(0)}, []string{"secret"}},
		{"one in grace, though there is to be none", registry.Rotation{Secret: numbered(0), GraceSeconds: new(int64(0))}, []string{"secret"}},
		{"too short", registry.Rotation{Secret: new("short")}, []string{"secret"}},
		{"a private key", registry.Rotation{Secret: new("whsk_" + strings.Repeat("AAAA", 8))}, []string{"secret"}},
		{"a public key", registry.Rotation{Secret: new("whpk_" + strings.Repeat("AAAA", 8))}, []string{"secret"}},
		{"a mask", registry.Rotation{Secret: new("whsec_****")}, []string{"secret"}},
		{"a grace below zero", registry.Rotation{GraceSeconds: new(int64(-1))}, []string{"graceSeconds"}},
		{"a grace of more than a week", registry.Rotation{GraceSeconds: new(int64(604801))}, []string{"graceSeconds"}},
		{"both", registry.Rotation{Secret: new(""), GraceSeconds: new(int64(1 << 62))}, []string{"graceSeconds", "secret"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRotating(t, valid())
			r.to(1, time.Hour)
			writes := r.disk.writes
			_, err := r.Rotate(t.Context(), tenant, r.id, tc.rotation)
			if diff := cmp.Diff(tc.wrong, paths(err)); diff != "" {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
			if tc.rotation.Secret != nil && *tc.rotation.Secret != "" && strings.Contains(err.Error(), *tc.rotation.Secret) {
				t.Errorf("the error shows the secret: %v", err)
			}
			if r.disk.writes != writes {
				t.Error("it was written")
			}
		})
	}
	r := newRotating(t, valid())
	for _, grace := range []int64{0, 604800} {
		r.rotate(registry.Rotation{GraceSeconds: new(grace)})
	}
	if _, err := r.Rotate(t.Context(), tenant, id.Webhook{9}, registry.Rotation{}); hook.CodeOf(err) != hook.CodeNotFound {
		t.Errorf("a webhook that is not there: %v", err)
	}
}

func TestTenSecretsAtMost(t *testing.T) {
	c := valid()
	c.Signatures = &[]string{"v1", "v1a"}
	r := newRotating(t, c)
	for n := 1; n < signature.MaxSecrets; n++ {
		r.to(n, time.Duration(10-n)*time.Hour) // the last one's grace ends first
	}
	_, err := r.Rotate(t.Context(), tenant, r.id, registry.Rotation{})
	if hook.CodeOf(err) != hook.CodeConflict || !strings.Contains(err.Error(), "2026-03-01T13:00:00.000Z") || !strings.Contains(err.Error(), "graceSeconds 0") {
		t.Errorf("an eleventh: %v", err)
	}
	r.now = r.now.Add(time.Hour)
	if w := r.rotate(registry.Rotation{}).Webhook; len(w.Secrets) != 10 || len(w.SigningKeys) != 10 {
		t.Errorf("once one has ended: %d secrets, %d keys", len(w.Secrets), len(w.SigningKeys))
	}
	if w := r.rotate(registry.Rotation{GraceSeconds: new(int64(0))}).Webhook; len(w.Secrets) != 1 || len(w.SigningKeys) != 1 {
		t.Errorf("without grace: %d secrets, %d keys", len(w.Secrets), len(w.SigningKeys))
	}
}

// Somebody else rotates on another node between our reading and our writing: the
// secrets of both sign.
func TestRotationsOnTwoNodes(t *testing.T) {
	r := newRotating(t, valid())
	other := r.on(catalog.New(r.disk, open{}))
	r.disk.before = func() {
		if _, err := other.Rotate(t.Context(), tenant, r.id, registry.Rotation{Secret: numbered(1), GraceSeconds: new(int64(60))}); err != nil {
			t.Error(err)
		}
	}
	w := r.to(2, time.Hour).Webhook
	if diff := cmp.Diff([]string{"2", "1 until 13:00:00", "0 until 12:01:00"}, secrets(w)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// To the same secret, one of them comes too late.
	r.disk.before = func() {
		if _, err := other.Rotate(t.Context(), tenant, r.id, registry.Rotation{Secret: numbered(3)}); err != nil {
			t.Error(err)
		}
	}
	if _, err := r.Rotate(t.Context(), tenant, r.id, registry.Rotation{Secret: numbered(3)}); !slices.Equal(paths(err), []string{"secret"}) {
		t.Errorf("to the same secret: %v", err)
	}
}

func TestSigningKeys(t *testing.T) {
	r := newRotating(t, valid())
	patch := func(versions ...string) *hook.Webhook {
		t.Helper()
		w, err := r.Update(t.Context(), tenant, r.id, registry.Change{Signatures: &versions})
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	w := patch("v1a", "v1")
	if !slices.Equal(w.Signatures, []hook.SignatureVersion{"v1", "v1a"}) || len(w.SigningKeys) != 1 {
		t.Fatalf("asked for v1a: %v, %d keys", w.Signatures, len(w.SigningKeys))
	}
	first := w.SigningKeys[0]
	private, err := signature.ParseSigningKey(first.Private)
	if err != nil {
		t.Fatal(err)
	}
	if first.Public != private.Public().String() || first.ID != private.Public().Thumbprint() || !first.CreatedAt.Equal(start) || !first.Until.IsZero() {
		t.Errorf("the key's parts don't belong together: %s %s", first.ID, first.Public)
	}
	if again := patch("v1", "v1a"); again.Revision != w.Revision {
		t.Error("the same in another order is a change")
	}
	if alone := patch("v1a"); !slices.Equal(alone.SigningKeys, w.SigningKeys) || len(alone.Secrets) != 1 {
		t.Error("v1a alone has another key, or no secret")
	}
	w, err = r.Update(t.Context(), tenant, r.id, registry.Change{Secret: numbered(1)})
	if err != nil || w.SigningKeys[0] != first {
		t.Errorf("a secret in a PATCH changed the key too, %v", err)
	}
	w = r.to(2, time.Hour).Webhook
	if len(w.SigningKeys) != 2 || w.SigningKeys[0].ID == first.ID || w.SigningKeys[1].ID != first.ID || !w.SigningKeys[1].Until.Equal(start.Add(time.Hour)) {
		t.Errorf("rotated: %d keys", len(w.SigningKeys))
	}
	second := w.SigningKeys[0]
	r.now = r.now.Add(time.Hour)
	if w, err = r.Update(t.Context(), tenant, r.id, registry.Change{Name: new("two")}); err != nil || len(w.SigningKeys) != 1 || w.SigningKeys[0] != second {
		t.Errorf("after the grace: %d keys, %v", len(w.SigningKeys), err)
	}
	if w = patch("v1"); len(w.SigningKeys) != 0 {
		t.Error("the key is kept though nobody asks for it")
	}
	if w = patch("v1", "v1a"); w.SigningKeys[0].ID == second.ID {
		t.Error("the key that was dropped is back")
	}

	c := valid()
	c.Signatures = &[]string{"v1a"}
	if other := r.create(t, c).Webhook; len(other.SigningKeys) != 1 || other.SigningKeys[0].ID == w.SigningKeys[0].ID {
		t.Error("two webhooks share a key")
	}
	if plain := r.create(t, valid()).Webhook; !slices.Equal(plain.Signatures, []hook.SignatureVersion{"v1"}) || plain.SigningKeys != nil {
		t.Errorf("without a word: %v", plain.Signatures)
	}
}
