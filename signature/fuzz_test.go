package signature_test

import (
	"encoding/base64"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/plinqx/hypha/signature"
)

// FuzzVerify holds two things against each other: whatever this package
// verifies, the foreign library verifies too; and what this package signs, it
// verifies, unless it said that it cannot be signed.
func FuzzVerify(f *testing.F) {
	f.Add("evt_1", "1700000000", secret32V1, body)
	f.Add("evt_1", "1700000000", "v1a,AAAA v2,x "+secret32V1, body)
	f.Add("evt_1.1700000000", "5", secret32V1, body)
	f.Add("", "", "", []byte(nil))
	foreign, err := standardwebhooks.NewWebhook(secret32)
	if err != nil {
		f.Fatal(err)
	}
	signer := newSigner(f, secret32)
	f.Fuzz(func(t *testing.T, id, timestamp, sig string, body []byte) {
		seconds, _ := strconv.ParseInt(timestamp, 10, 64)
		at := time.Unix(seconds, 0)
		v := verifierAt(t, at, secret32, public)
		h := standardHeaders(id, timestamp, sig)
		if err := v.Verify(h, body); err == nil {
			if err := foreign.VerifyIgnoringTimestamp(body, h); err != nil {
				t.Errorf("verified, but the foreign library says: %v", err)
			}
		} else if !isVerifyError(err) {
			t.Errorf("error of no known kind: %v", err)
		}

		signed := http.Header{}
		if err := signer.Sign(signed, id, at, body); err != nil {
			if !errors.Is(err, signature.ErrUnsignable) {
				t.Errorf("Sign: %v", err)
			}
			return
		}
		if err := v.Verify(signed, body); err != nil {
			t.Errorf("our own signature: %v", err)
		}
		if err := v.VerifyPrefixed(signed, body); err != nil {
			t.Errorf("our own pair: %v", err)
		}
		if err := v.Verify(signed, append(body[:len(body):len(body)], 0)); !errors.Is(err, signature.ErrMismatch) {
			t.Errorf("another body: %v, want ErrMismatch", err)
		}
	})
}

func isVerifyError(err error) bool {
	for _, kind := range []error{signature.ErrNoSignature, signature.ErrMalformed, signature.ErrTooOld, signature.ErrTooNew, signature.ErrMismatch} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// FuzzParseSecret states the rules a second time, in other words.
func FuzzParseSecret(f *testing.F) {
	for _, s := range []string{secret24, secret32, plain, private, public, "", "whsec_", "WHSEC_0123456789abcdef", "whsec_***", "your-web****-secret", "0123456789abcde\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := signature.ParseSecret(signature.Mask(s)); err == nil {
			t.Error("the masked form was accepted")
		}
		secret, err := signature.ParseSecret(s)
		if err != nil {
			if !errors.Is(err, signature.ErrSecret) {
				t.Errorf("error of no known kind: %v", err)
			}
			if len(s) >= 16 && strings.Contains(err.Error(), s) {
				t.Errorf("the error quotes the secret: %v", err)
			}
			return
		}
		if secret.Reveal() != s {
			t.Error("Reveal gives other characters")
		}
		if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) || strings.Trim(s, " ") != s {
			t.Errorf("accepted with an unprintable character: %q", s)
		}
		switch lower := strings.ToLower(s); {
		case strings.HasPrefix(lower, "whsk_"), strings.HasPrefix(lower, "whpk_"), strings.Contains(s, "****"):
			t.Errorf("accepted: %q", s)
		case strings.HasPrefix(lower, "whsec_"):
			key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(s, "whsec_"))
			if err != nil || len(key) < 24 || len(key) > 64 || s[:6] != "whsec_" {
				t.Errorf("accepted: %q", s)
			}
		case len(s) < 16 || len(s) > 256:
			t.Errorf("accepted with %d characters", len(s))
		}
	})
}
