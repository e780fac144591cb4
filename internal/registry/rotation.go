package registry

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/signature"
)

// The grace of a rotation: for how long what was replaced goes on signing, beside
// what replaced it.
const (
	DefaultGrace = 24 * time.Hour
	MaxGrace     = 7 * 24 * time.Hour
)

// Rotation is how a caller wants a webhook's secret replaced.
type Rotation struct {
	// Secret is the new one; nil has one made.
	Secret *string
	// GraceSeconds is the grace; nil is DefaultGrace, zero ends all that is
	// older at once.
	GraceSeconds *int64
}

func (r *Rotation) grace() time.Duration {
	if r.GraceSeconds == nil {
		return DefaultGrace
	}
	return time.Duration(*r.GraceSeconds) * time.Second
}

// CheckRotation lists what is wrong with a rotation of a webhook. Rotate refuses
// the same.
func (r *Registry) CheckRotation(held *hook.Webhook, rotation Rotation) []hook.Detail {
	var problems []hook.Detail
	if s := rotation.GraceSeconds; s != nil && (*s < 0 || *s > int64(MaxGrace/time.Second)) {
		problems = append(problems, hook.Detail{Path: "graceSeconds", Message: fmt.Sprintf("must be from 0 to %d", int64(MaxGrace/time.Second))})
	}
	if rotation.Secret != nil {
		if _, err := signature.ParseSecret(*rotation.Secret); err != nil {
			problems = append(problems, hook.Detail{Path: "secret", Message: err.Error()})
		} else if slices.ContainsFunc(inForce(held.Secrets, r.now()), func(s hook.Secret) bool { return s.Value == *rotation.Secret }) {
			problems = append(problems, hook.Detail{Path: "secret", Message: "is in force already; give another, or none to have one made"})
		}
	}
	return problems
}

// Rotate gives a webhook a new secret, and a new signing key if it has one. What
// they replace goes on signing until the end of the grace; what was replaced
// before keeps the end that it has. It is a hook.CodeConflict where too many are
// in force.
func (r *Registry) Rotate(ctx context.Context, tenant id.Tenant, webhook id.Webhook, rotation Rotation) (*Created, error) {
	made := ""
	if rotation.Secret == nil {
		var err error
		if made, err = signature.NewSecret(); err != nil {
			return nil, err
		}
	}
	w, err := r.edit(ctx, tenant, webhook, edit{action: hook.AuditSecretRotated, secretShown: made != ""}, func(w *hook.Webhook) error {
		if problems := r.CheckRotation(w, rotation); len(problems) > 0 {
			return invalid(problems)
		}
		now := r.now()
		value := made
		if rotation.Secret != nil {
			value = *rotation.Secret
		}
		until := now.Add(rotation.grace())
		secrets, keys := inForce(w.Secrets, now), keysInForce(w.SigningKeys, now)
		if until.Equal(now) {
			secrets, keys = nil, nil
		}
		if len(secrets) >= signature.MaxSecrets || len(keys) >= signature.MaxSecrets {
			return hook.Conflict("%d secrets are in force, which is the most a webhook may have; the next one ends at %s. To rotate now, end all of them with graceSeconds 0",
				signature.MaxSecrets, firstEnd(secrets, keys).UTC().Format("2006-01-02T15:04:05.000Z"))
		}
		if len(secrets) > 0 {
			secrets[0].Until = until
		}
		w.Secrets = append([]hook.Secret{{Value: value, CreatedAt: now}}, secrets...)
		if !slices.Contains(w.Signatures, hook.SignatureV1a) {
			return nil
		}
		key, err := newSigningKey(now)
		if err != nil {
			return err
		}
		if len(keys) > 0 {
			keys[0].Until = until
		}
		w.SigningKeys = append([]hook.SigningKey{key}, keys...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &Created{Webhook: w, Secret: made}, nil
}

// giveKeys makes a webhook's first signing key when v1a is asked for, and drops
// all when it is not any more: who asks for it again gets another.
func giveKeys(w *hook.Webhook, now time.Time) error {
	if !slices.Contains(w.Signatures, hook.SignatureV1a) {
		w.SigningKeys = nil
		return nil
	}
	if len(w.SigningKeys) > 0 {
		return nil
	}
	key, err := newSigningKey(now)
	w.SigningKeys = []hook.SigningKey{key}
	return err
}

func newSigningKey(now time.Time) (hook.SigningKey, error) {
	key, err := signature.NewSigningKey()
	if err != nil {
		return hook.SigningKey{}, err
	}
	public := key.Public()
	return hook.SigningKey{ID: public.Thumbprint(), Public: public.String(), Private: key.Reveal(), CreatedAt: now}, nil
}

// inForce lists the secrets that sign at a time, in a list of its own.
func inForce(secrets []hook.Secret, at time.Time) []hook.Secret {
	return slices.DeleteFunc(slices.Clone(secrets), func(s hook.Secret) bool { return !s.SignsAt(at) })
}

func keysInForce(keys []hook.SigningKey, at time.Time) []hook.SigningKey {
	return slices.DeleteFunc(slices.Clone(keys), func(k hook.SigningKey) bool { return !k.SignsAt(at) })
}

// firstEnd is when the first of these stops signing; zero if none does. A full
// list has one that does: the newest alone has no end.
func firstEnd(secrets []hook.Secret, keys []hook.SigningKey) time.Time {
	var first time.Time
	note := func(end time.Time) {
		if !end.IsZero() && (first.IsZero() || end.Before(first)) {
			first = end
		}
	}
	for _, s := range secrets {
		note(s.Until)
	}
	for _, k := range keys {
		note(k.Until)
	}
	return first
}
