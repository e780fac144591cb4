package signature_test

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plinqx/hypha/signature"
)

func TestVerifyHeaders(t *testing.T) {
	const right = secret32V1
	set := func(name, value string) func(http.Header) {
		return func(h http.Header) { h.Set(name, value) }
	}
	del := func(name string) func(http.Header) { return func(h http.Header) { h.Del(name) } }
	add := func(name, value string) func(http.Header) {
		return func(h http.Header) { h.Add(name, value) }
	}
	for _, tt := range []struct {
		name   string
		change func(http.Header)
		want   error // nil: it verifies
		says   string
	}{
		{"as signed", func(http.Header) {}, nil, ""},
		{"right one last of several", set("webhook-signature", "v1,AAAA "+right), nil, ""},
		{"right one first of several", set("webhook-signature", right+" v1,AAAA"), nil, ""},
		{"unknown versions beside it", set("webhook-signature", "v2,x v1a,y nonsense "+right), nil, ""},
		{"several spaces", set("webhook-signature", " "+right+"  v9,z "), nil, ""},
		{"32 signatures", set("webhook-signature", strings.Repeat("v2,x ", 31)+right), nil, ""},

		{"no signature", del("webhook-signature"), signature.ErrNoSignature, "Webhook-Signature is missing"},
		{"empty signature", set("webhook-signature", ""), signature.ErrNoSignature, "Webhook-Signature is missing"},
		{"no id", del("webhook-id"), signature.ErrNoSignature, "Webhook-Id is missing"},
		{"no timestamp", del("webhook-timestamp"), signature.ErrNoSignature, "Webhook-Timestamp is missing"},
		{"unknown versions alone", set("webhook-signature", strings.Replace(right, "v1", "v2", 1)), signature.ErrNoSignature, "no signature that the given keys can check"},
		{"public-key signatures alone", set("webhook-signature", "v1a,AAAA"), signature.ErrNoSignature, "v1a a whpk_ key"},
		{"version without signature", set("webhook-signature", "v1"), signature.ErrMismatch, ""},
		{"signature without version", set("webhook-signature", right[3:]), signature.ErrNoSignature, ""},
		{"version in capitals", set("webhook-signature", strings.Replace(right, "v1", "V1", 1)), signature.ErrNoSignature, ""},
		{"comma in place of a space", set("webhook-signature", right+",v1,AAAA"), signature.ErrMismatch, ""},

		{"two ids", add("webhook-id", "evt_2"), signature.ErrMalformed, "Webhook-Id was sent 2 times"},
		{"two timestamps", add("webhook-timestamp", "1700000000"), signature.ErrMalformed, "Webhook-Timestamp was sent 2 times"},
		{"two signature headers", add("webhook-signature", right), signature.ErrMalformed, "Webhook-Signature was sent 2 times"},
		{"dot in the id", set("webhook-id", "evt_1.5"), signature.ErrMalformed, "Webhook-Id"},
		{"33 signatures", set("webhook-signature", strings.Repeat("v2,x ", 32)+right), signature.ErrMalformed, "more than 32"},
		{"timestamp with a sign", set("webhook-timestamp", "+1700000000"), signature.ErrMalformed, "plain number"},
		{"timestamp with a zero before", set("webhook-timestamp", "01700000000"), signature.ErrMalformed, "plain number"},
		{"timestamp with a fraction", set("webhook-timestamp", "1700000000.0"), signature.ErrMalformed, "plain number"},
		{"timestamp with a space", set("webhook-timestamp", " 1700000000"), signature.ErrMalformed, "plain number"},
		{"negative timestamp", set("webhook-timestamp", "-1"), signature.ErrMalformed, "plain number"},
		{"timestamp beyond 64 bits", set("webhook-timestamp", "99999999999999999999"), signature.ErrMalformed, "plain number"},
		{"timestamp as a date", set("webhook-timestamp", "2023-11-14T22:13:20Z"), signature.ErrMalformed, "plain number"},

		{"another id", set("webhook-id", "evt_2"), signature.ErrMismatch, "Webhook-Signature"},
		{"another second", set("webhook-timestamp", "1700000001"), signature.ErrMismatch, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := standardHeaders("evt_1", "1700000000", right)
			tt.change(h)
			err := verifierAt(t, attempt, secret32).Verify(h, body)
			if !errors.Is(err, tt.want) {
				t.Fatalf("Verify = %v, want %v", err, tt.want)
			}
			if err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %q does not say %q", err, tt.says)
			}
			if err != nil && strings.Contains(err.Error(), right[3:]) {
				t.Errorf("the error holds the right signature: %v", err)
			}
		})
	}
}

func TestVerifyTolerance(t *testing.T) {
	h := sign(t, newSigner(t, secret32), "evt_1", attempt, body)
	for _, tt := range []struct {
		name      string
		tolerance time.Duration // 0: the default
		age       time.Duration
		want      error
	}{
		{"5 minutes old", 0, 300 * time.Second, nil},
		{"more than 5 minutes old", 0, 300*time.Second + 1, signature.ErrTooOld},
		{"5 minutes ahead", 0, -300 * time.Second, nil},
		{"more than 5 minutes ahead", 0, -300*time.Second - 1, signature.ErrTooNew},
		{"a century old", 0, 100 * 365 * 24 * time.Hour, signature.ErrTooOld},
		{"within a narrower one", time.Second, time.Second, nil},
		{"outside of a narrower one", time.Second, 2 * time.Second, signature.ErrTooOld},
		{"within a wider one", time.Hour, -time.Hour, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			options := []signature.Option{signature.WithClock(func() time.Time { return attempt.Add(tt.age) })}
			if tt.tolerance != 0 {
				options = append(options, signature.WithTolerance(tt.tolerance))
			}
			v, err := signature.NewVerifier([]string{secret32}, options...)
			if err != nil {
				t.Fatal(err)
			}
			if err := v.Verify(h, body); !errors.Is(err, tt.want) {
				t.Errorf("Verify = %v, want %v", err, tt.want)
			}
			if err := v.VerifyPrefixed(h, body); !errors.Is(err, tt.want) {
				t.Errorf("VerifyPrefixed = %v, want %v", err, tt.want)
			}
		})
	}
}

// While a secret is rotated, receivers that hold the old one, the new one or
// both must all go on.
func TestVerifyDuringRotation(t *testing.T) {
	const other = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
	h := sign(t, newSigner(t, secret32, plain), "evt_1", attempt, body)
	for _, tt := range []struct {
		name string
		keys []string
		want error
	}{
		{"the new one", []string{secret32}, nil},
		{"the old one", []string{plain}, nil},
		{"both", []string{plain, secret32}, nil},
		{"one of them beside a stranger", []string{other, plain}, nil},
		{"a stranger", []string{other}, signature.ErrMismatch},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := verifierAt(t, attempt, tt.keys...)
			if err := v.Verify(h, body); !errors.Is(err, tt.want) {
				t.Errorf("Verify = %v, want %v", err, tt.want)
			}
			if err := v.VerifyPrefixed(h, body); !errors.Is(err, tt.want) {
				t.Errorf("VerifyPrefixed = %v, want %v", err, tt.want)
			}
		})
	}
}

func TestVerifyPrefixed(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(http.Header)
		want   error
		says   string
	}{
		{"as signed", func(http.Header) {}, nil, ""},
		{"without the Standard Webhooks headers", func(h http.Header) {
			h.Del("webhook-id")
			h.Del("webhook-timestamp")
			h.Del("webhook-signature")
		}, nil, ""},
		{"in capitals", func(h http.Header) { h.Set("X-Plinqx-Signature", strings.ToUpper(plainHex)) }, signature.ErrMismatch, "X-Plinqx-Signature"},
		{"cut short", func(h http.Header) { h.Set("X-Plinqx-Signature", plainHex[:63]) }, signature.ErrMismatch, ""},
		{"another second", func(h http.Header) { h.Set("X-Plinqx-Timestamp", "1700000001") }, signature.ErrMismatch, ""},
		{"no signature", func(h http.Header) { h.Del("X-Plinqx-Signature") }, signature.ErrNoSignature, "X-Plinqx-Signature is missing"},
		{"no timestamp", func(h http.Header) { h.Del("X-Plinqx-Timestamp") }, signature.ErrNoSignature, "X-Plinqx-Timestamp is missing"},
		{"two signatures", func(h http.Header) { h.Add("X-Plinqx-Signature", plainHex) }, signature.ErrMalformed, "2 times"},
		{"two previous ones", func(h http.Header) {
			h.Add("X-Plinqx-Signature-Previous", plainHex)
			h.Add("X-Plinqx-Signature-Previous", plainHex)
		}, signature.ErrMalformed, "2 times"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := sign(t, newSigner(t, plain), "evt_1", attempt, body)
			tt.change(h)
			err := verifierAt(t, attempt, plain).VerifyPrefixed(h, body)
			if !errors.Is(err, tt.want) {
				t.Fatalf("VerifyPrefixed = %v, want %v", err, tt.want)
			}
			if err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %q does not say %q", err, tt.says)
			}
		})
	}

	h := sign(t, newSigner(t, plain), "evt_1", attempt, body)
	if err := verifierAt(t, attempt, plain).VerifyPrefixed(h, []byte(`{"a":2}`)); !errors.Is(err, signature.ErrMismatch) {
		t.Errorf("another body: %v, want ErrMismatch", err)
	}
	if err := verifierAt(t, attempt, public).VerifyPrefixed(h, body); !errors.Is(err, signature.ErrNoSignature) {
		t.Errorf("with a public key alone: %v, want ErrNoSignature", err)
	}
}

// The two schemes must not stand in for each other: a public key is known to
// all, so an HMAC keyed with it proves nothing.
func TestVerifyKeepsTheSchemesApart(t *testing.T) {
	key, err := signature.ParseSigningKey(private)
	if err != nil {
		t.Fatal(err)
	}
	asymmetric, err := key.Sign("evt_1", attempt, body)
	if err != nil {
		t.Fatal(err)
	}
	tampered := "v1a," + strings.Repeat("A", 86) + "=="
	for _, tt := range []struct {
		name, header string
		keys         []string
		want         error
	}{
		{"public key", asymmetric, []string{public}, nil},
		{"both kinds sent, public key held", secret32V1 + " " + asymmetric, []string{public}, nil},
		{"both kinds sent, secret held", secret32V1 + " " + asymmetric, []string{secret32}, nil},
		{"both kinds held, one is right", tampered + " " + secret32V1, []string{public, secret32}, nil},
		{"tampered", tampered, []string{public}, signature.ErrMismatch},
		{"not base64", "v1a,%%%", []string{public}, signature.ErrMismatch},
		{"too short", "v1a,AAAA", []string{public}, signature.ErrMismatch},
		{"shared signature, public key", secret32V1, []string{public}, signature.ErrNoSignature},
		{"public-key signature under the other label", "v1" + asymmetric[3:], []string{public, secret32}, signature.ErrMismatch},
		{"shared signature under the other label", "v1a" + secret32V1[2:], []string{public, secret32}, signature.ErrMismatch},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := standardHeaders("evt_1", "1700000000", tt.header)
			if err := verifierAt(t, attempt, tt.keys...).Verify(h, body); !errors.Is(err, tt.want) {
				t.Errorf("Verify = %v, want %v", err, tt.want)
			}
		})
	}
}

func TestVerifyAtThisMoment(t *testing.T) {
	h := sign(t, newSigner(t, secret32), "evt_1", time.Now(), body)
	if err := signature.Verify(h, body, plain, secret32); err != nil {
		t.Error(err)
	}
	h = sign(t, newSigner(t, secret32), "evt_1", time.Now().Add(-time.Hour), body)
	if err := signature.Verify(h, body, secret32); !errors.Is(err, signature.ErrTooOld) {
		t.Errorf("an hour later: %v, want ErrTooOld", err)
	}
}

func TestNewVerifierRefuses(t *testing.T) {
	for _, tt := range []struct {
		name    string
		keys    []string
		options []signature.Option
		says    string
	}{
		{"no key", nil, nil, "1 to 10 secrets, not 0"},
		{"eleven", slices.Repeat([]string{plain}, 11), nil, "not 11"},
		{"a bad second one", []string{plain, plain + "\n"}, nil, "secret 2 of 2"},
		{"a private key", []string{private}, nil, "private key"},
		{"a bad public key", []string{"whpk_AAAA"}, nil, "this one 3"},
		{"public key in capitals", []string{strings.Replace(public, "whpk_", "WHPK_", 1)}, nil, "lower case"},
		{"no tolerance", []string{plain}, []signature.Option{signature.WithTolerance(0)}, "must be positive"},
		{"no clock", []string{plain}, []signature.Option{signature.WithClock(nil)}, "clock is nil"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := signature.NewVerifier(tt.keys, tt.options...)
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("NewVerifier = %v, want an error that says %q", err, tt.says)
			}
		})
	}
	if err := signature.Verify(http.Header{}, nil); !errors.Is(err, signature.ErrSecret) {
		t.Errorf("Verify without secrets = %v, want ErrSecret", err)
	}
}
