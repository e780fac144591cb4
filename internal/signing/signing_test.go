package signing_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/signing"
	"github.com/plinqx/hypha/signature"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func key(t *testing.T, until time.Time) hook.SigningKey {
	t.Helper()
	k, err := signature.NewSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	return hook.SigningKey{ID: k.Public().Thumbprint(), Public: k.Public().String(), Private: k.Reveal(), Until: until}
}

func TestSigner(t *testing.T) {
	const newest, before, oldest = "the-newest-of-secrets", "the-secret-before-it", "the-oldest-of-secrets"
	newKey, oldKey := key(t, time.Time{}), key(t, noon.Add(30*time.Minute))
	// The second rotation had a shorter grace than the first: ends need not be in
	// the order of making.
	secrets := []hook.Secret{{Value: newest}, {Value: before, Until: noon.Add(time.Hour)}, {Value: oldest, Until: noon.Add(2 * time.Hour)}}
	keys := []hook.SigningKey{newKey, oldKey}
	for _, tc := range []struct {
		name     string
		versions []hook.SignatureVersion
		keys     []hook.SigningKey
		at       time.Time
		until    time.Time
		signs    []string // the keys that verify, in the order of their signatures
		previous string   // what X-Plinqx-Signature-Previous is made with
	}{
		{"all in force", nil, nil, noon, noon.Add(time.Hour), []string{newest, before, oldest}, before},
		{"the last moment of one", nil, nil, noon.Add(time.Hour - time.Nanosecond), noon.Add(time.Hour), []string{newest, before, oldest}, before},
		{"its end", nil, nil, noon.Add(time.Hour), noon.Add(2 * time.Hour), []string{newest, oldest}, oldest},
		{"all at their end", nil, nil, noon.Add(2 * time.Hour), time.Time{}, []string{newest}, ""},
		{"both versions: the key ends first", []hook.SignatureVersion{"v1", "v1a"}, keys, noon, noon.Add(30 * time.Minute), []string{newest, before, oldest, newKey.Public, oldKey.Public}, before},
		{"its end too", []hook.SignatureVersion{"v1", "v1a"}, keys, noon.Add(30 * time.Minute), noon.Add(time.Hour), []string{newest, before, oldest, newKey.Public}, before},
		{"v1a alone", []hook.SignatureVersion{"v1a"}, keys, noon, noon.Add(30 * time.Minute), []string{newKey.Public, oldKey.Public}, before},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := &hook.Webhook{Secrets: secrets, Signatures: tc.versions, SigningKeys: tc.keys}
			signer, until, err := signing.Signer(signature.Prefix{}, w, tc.at)
			if err != nil {
				t.Fatal(err)
			}
			if !until.Equal(tc.until) {
				t.Errorf("until %v, want %v", until, tc.until)
			}
			h := http.Header{}
			if err := signer.Sign(h, "evt_1", tc.at, []byte("{}")); err != nil {
				t.Fatal(err)
			}
			entries := strings.Fields(h.Get(signature.HeaderSignature))
			if len(entries) != len(tc.signs) {
				t.Fatalf("%d signatures, want %d: %v", len(entries), len(tc.signs), entries)
			}
			clock := signature.WithClock(func() time.Time { return tc.at })
			for i, entry := range entries {
				one := h.Clone()
				one.Set(signature.HeaderSignature, entry)
				v, err := signature.NewVerifier([]string{tc.signs[i]}, clock)
				if err != nil {
					t.Fatal(err)
				}
				if err := v.Verify(one, []byte("{}")); err != nil {
					t.Errorf("signature %d is not of the %d. key: %v", i, i, err)
				}
			}
			v, err := signature.NewVerifier([]string{newest}, clock)
			if err != nil {
				t.Fatal(err)
			}
			if err := v.VerifyPrefixed(h, []byte("{}")); err != nil {
				t.Errorf("the prefixed pair: %v", err)
			}
			p := signature.Prefix{}
			if got := h.Get(p.Previous()); (got != "") != (tc.previous != "") {
				t.Fatalf("previous %q, want one of %q", got, tc.previous)
			}
			if tc.previous != "" {
				if v, err = signature.NewVerifier([]string{tc.previous}, clock); err != nil {
					t.Fatal(err)
				}
				if err := v.VerifyPrefixed(h, []byte("{}")); err != nil {
					t.Errorf("the previous signature: %v", err)
				}
			}
		})
	}
}

func TestSignerRefuses(t *testing.T) {
	good := []hook.Secret{{Value: "a-secret-of-sixteen"}}
	for name, w := range map[string]*hook.Webhook{
		"no secret":        {},
		"no secret in use": {Secrets: []hook.Secret{{Value: "a-secret-of-sixteen", Until: noon}}},
		"a bad secret":     {Secrets: []hook.Secret{{Value: "bad"}}},
		"a bad key":        {Secrets: good, SigningKeys: []hook.SigningKey{{Private: "bad"}}},
		"v1a and no key":   {Secrets: good, Signatures: []hook.SignatureVersion{hook.SignatureV1a}},
	} {
		if _, _, err := signing.Signer(signature.Prefix{}, w, noon); !errors.Is(err, signature.ErrSecret) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
