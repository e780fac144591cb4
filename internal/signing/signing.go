// Package signing says which of a webhook's secrets and keys sign at a moment,
// and makes the signer of them. Attempts are signed with it, and the log shows
// again with it what an attempt was signed with: both must come to the same. It
// must not know how either is done.
package signing

import (
	"slices"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/signature"
)

// Signer makes the signer of what is in force of a webhook at a time, and says
// until when that stays so: zero for as long as the webhook is not changed. The
// error wraps signature.ErrSecret, and tells nothing of the secrets.
func Signer(prefix signature.Prefix, w *hook.Webhook, at time.Time) (*signature.Signer, time.Time, error) {
	keys := signature.Keys{NoV1: len(w.Signatures) > 0 && !slices.Contains(w.Signatures, hook.SignatureV1)}
	var until time.Time
	ends := func(end time.Time) {
		if until.IsZero() || !end.IsZero() && end.Before(until) {
			until = end
		}
	}
	for i := range w.Secrets {
		s := &w.Secrets[i]
		if !s.SignsAt(at) {
			continue
		}
		ends(s.Until)
		parsed, err := signature.ParseSecret(s.Value)
		if err != nil {
			return nil, time.Time{}, err
		}
		keys.Secrets = append(keys.Secrets, parsed)
	}
	for i := range w.SigningKeys {
		k := &w.SigningKeys[i]
		if !k.SignsAt(at) {
			continue
		}
		ends(k.Until)
		parsed, err := signature.ParseSigningKey(k.Private)
		if err != nil {
			return nil, time.Time{}, err
		}
		keys.Signing = append(keys.Signing, parsed)
	}
	signer, err := keys.Signer(prefix)
	return signer, until, err
}
