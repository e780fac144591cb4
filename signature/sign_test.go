package signature_test

import (
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/plinqx/hypha/signature"
)

// The signatures of event evt_1 with body {"a":1} at 1700000000, computed with
// the openssl command line.
const (
	plainHex    = "14ca8a531ece342f078790e2328d0bd76b227a283eb68973fd79699e460f8957"
	plainV1     = "v1,xpo4ByfeBI3IT7DCq0x1QRdLD6/wtr0/tV4frjhjkM0="
	secret32Hex = "e22ae829d339f97f3ea4da2c624545bcecb6760f843c3f4daa345110ec6873d8"
	secret32V1  = "v1,ODQ4J8a/8EvCnk7+gm6yX7jXLvdSN6Zbu9RxPL6lbDU="
)

var (
	attempt = time.Unix(1700000000, 0)
	body    = []byte(`{"a":1}`)
)

func TestSign(t *testing.T) {
	for _, tt := range []struct {
		name    string
		secrets []string
		want    http.Header
	}{
		{
			"plain secret", []string{plain},
			http.Header{
				"X-Plinqx-Timestamp": {"1700000000"},
				"X-Plinqx-Signature": {plainHex},
				"Webhook-Id":         {"evt_1"},
				"Webhook-Timestamp":  {"1700000000"},
				"Webhook-Signature":  {plainV1},
			},
		},
		{
			"whsec_ secret: its characters key one, its bytes the other", []string{secret32},
			http.Header{
				"X-Plinqx-Timestamp": {"1700000000"},
				"X-Plinqx-Signature": {secret32Hex},
				"Webhook-Id":         {"evt_1"},
				"Webhook-Timestamp":  {"1700000000"},
				"Webhook-Signature":  {secret32V1},
			},
		},
		{
			"rotation: newest first, the one before as previous", []string{secret32, plain},
			http.Header{
				"X-Plinqx-Timestamp":          {"1700000000"},
				"X-Plinqx-Signature":          {secret32Hex},
				"X-Plinqx-Signature-Previous": {plainHex},
				"Webhook-Id":                  {"evt_1"},
				"Webhook-Timestamp":           {"1700000000"},
				"Webhook-Signature":           {secret32V1 + " " + plainV1},
			},
		},
		{
			"two rotations in grace: the pair has one previous only", []string{secret32, plain, secret32},
			http.Header{
				"X-Plinqx-Timestamp":          {"1700000000"},
				"X-Plinqx-Signature":          {secret32Hex},
				"X-Plinqx-Signature-Previous": {plainHex},
				"Webhook-Id":                  {"evt_1"},
				"Webhook-Timestamp":           {"1700000000"},
				"Webhook-Signature":           {secret32V1 + " " + plainV1 + " " + secret32V1},
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			signer := newSigner(t, tt.secrets...)
			for _, round := range []string{"first", "with reused state"} {
				if diff := cmp.Diff(tt.want, sign(t, signer, "evt_1", attempt, body)); diff != "" {
					t.Errorf("%s (-want +got):\n%s", round, diff)
				}
			}
		})
	}
}

func TestSignCountsWholeSecondsInUTC(t *testing.T) {
	at := time.Date(2023, 11, 14, 23, 13, 20, 999_999_999, time.FixedZone("", 3600))
	if got := sign(t, newSigner(t, plain), "evt_1", at, body).Get("webhook-timestamp"); got != "1700000000" {
		t.Errorf("webhook-timestamp = %s, want 1700000000", got)
	}
}

// What was in the headers before must not be taken for ours.
func TestSignReplacesWhatIsThere(t *testing.T) {
	h := http.Header{"Accept": {"*/*"}}
	for _, name := range []string{"webhook-id", "webhook-timestamp", "webhook-signature", "X-Plinqx-Timestamp", "X-Plinqx-Signature", "X-Plinqx-Signature-Previous"} {
		h.Add(name, "forged")
		h.Add(name, "twice")
	}
	if err := newSigner(t, plain).Sign(h, "evt_1", attempt, body); err != nil {
		t.Fatal(err)
	}
	want := sign(t, newSigner(t, plain), "evt_1", attempt, body)
	want.Set("Accept", "*/*")
	if diff := cmp.Diff(want, h); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Header values share their memory; adding to one must not change another.
func TestSignedValuesStandApart(t *testing.T) {
	h := sign(t, newSigner(t, secret32, plain), "evt_1", attempt, body)
	want := maps.Collect(maps.All(h.Clone()))
	for name := range h {
		h.Add(name, "added")
	}
	for name, values := range want {
		if diff := cmp.Diff(append(values, "added"), h[name]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestSignRefusesWhatHasTwoReadings(t *testing.T) {
	for _, tt := range []struct {
		name, id string
		at       time.Time
		says     string
	}{
		{"dot in the id", "evt_1.1700000000", attempt, "character 6"},
		{"empty id", "", attempt, "1 to 128 characters"},
		{"id of 129", strings.Repeat("a", 129), attempt, "this one 129"},
		{"space in the id", "evt 1", attempt, "character 4"},
		{"line break in the id", "evt_1\r\nX-Forged: 1", attempt, "character 6"},
		{"the zero time", "evt_1", time.Time{}, "between 0 and"},
		{"before 1970", "evt_1", time.Unix(-1, 0), "-1 in Unix seconds"},
		{"beyond any calendar", "evt_1", time.Unix(1_000_000_000_000, 0), "between 0 and"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := http.Header{}
			err := newSigner(t, plain).Sign(h, tt.id, tt.at, body)
			if !errors.Is(err, signature.ErrUnsignable) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("Sign = %v, want ErrUnsignable that says %q", err, tt.says)
			}
			if len(h) != 0 {
				t.Errorf("headers were set: %v", h)
			}
			key, err := signature.ParseSigningKey(private)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := key.Sign(tt.id, tt.at, body); !errors.Is(err, signature.ErrUnsignable) {
				t.Errorf("SigningKey.Sign = %v, want ErrUnsignable", err)
			}
		})
	}
}

func TestSignAcceptsEveryID(t *testing.T) {
	for _, id := range []string{"a", "-", "_", "0123456789", "evt_01HF3-Az", strings.Repeat("a", 128)} {
		h := sign(t, newSigner(t, secret32), id, attempt, body)
		if err := verifierAt(t, attempt, secret32).Verify(h, body); err != nil {
			t.Errorf("id %q: %v", id, err)
		}
	}
}

func TestNewSignerRefuses(t *testing.T) {
	one, err := signature.ParseSecret(plain)
	if err != nil {
		t.Fatal(err)
	}
	for name, secrets := range map[string][]signature.Secret{
		"none":       nil,
		"eleven":     slices.Repeat([]signature.Secret{one}, signature.MaxSecrets+1),
		"a zero one": {one, {}},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := signature.NewSigner(signature.Prefix{}, secrets...); !errors.Is(err, signature.ErrSecret) {
				t.Errorf("NewSigner = %v, want ErrSecret", err)
			}
		})
	}
	if _, err := signature.NewSigner(signature.Prefix{}, slices.Repeat([]signature.Secret{one}, signature.MaxSecrets)...); err != nil {
		t.Errorf("ten secrets: %v", err)
	}
	if _, err := (signature.SigningKey{}).Sign("evt_1", attempt, body); !errors.Is(err, signature.ErrSecret) {
		t.Errorf("the zero SigningKey signed: %v", err)
	}
}

func TestPrefix(t *testing.T) {
	secret, err := signature.ParseSecret(plain)
	if err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{
		"":         "X-Plinqx",
		"x-acme":   "X-Acme",
		"ACME":     "Acme",
		"X-Acme-2": "X-Acme-2",
	} {
		p, err := signature.ParsePrefix(in)
		if err != nil {
			t.Fatalf("%q: %v", in, err)
		}
		if p.String() != want {
			t.Errorf("ParsePrefix(%q) = %s, want %s", in, p, want)
		}
		signer, err := signature.NewSigner(p, secret, secret)
		if err != nil {
			t.Fatal(err)
		}
		h := sign(t, signer, "evt_1", attempt, body)
		for _, name := range []string{p.Timestamp(), p.Signature(), p.Previous()} {
			if !strings.HasPrefix(name, want+"-") || h.Get(name) == "" {
				t.Errorf("prefix %q: header %s = %q", in, name, h.Get(name))
			}
		}
		v, err := signature.NewVerifier([]string{plain}, signature.WithPrefix(p), signature.WithClock(func() time.Time { return attempt }))
		if err != nil {
			t.Fatal(err)
		}
		if err := v.VerifyPrefixed(h, body); err != nil {
			t.Errorf("prefix %q: %v", in, err)
		}
	}
	for in, says := range map[string]string{
		"X-":                    "end with a hyphen",
		"-X":                    "character 1",
		"9x":                    "character 1",
		"X Acme":                "character 2",
		"X:":                    "character 2",
		"X\r\n":                 "character 2",
		"Ä":                     "character 1",
		"webhook":               "Standard Webhooks",
		"Webhook":               "Standard Webhooks",
		strings.Repeat("x", 65): "at most 64",
	} {
		if _, err := signature.ParsePrefix(in); !errors.Is(err, signature.ErrPrefix) || !strings.Contains(err.Error(), says) {
			t.Errorf("ParsePrefix(%q) = %v, want ErrPrefix that says %q", in, err, says)
		}
	}
}

func TestSignerIsSafeForConcurrentUse(t *testing.T) {
	signer := newSigner(t, secret32, plain)
	want := sign(t, signer, "evt_1", attempt, body)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			h := http.Header{}
			for range 200 {
				if err := signer.Sign(h, "evt_1", attempt, body); err != nil {
					t.Error(err)
					return
				}
				if diff := cmp.Diff(want, h); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
					return
				}
			}
		})
	}
	wg.Wait()
}

// Every attempt signs. Two allocations hold the values, none grows with the
// body or with the number of secrets.
func TestSignAllocations(t *testing.T) {
	for _, n := range []int{1, 2, signature.MaxSecrets} {
		signer := newSigner(t, slices.Repeat([]string{secret32}, n)...)
		h := http.Header{}
		large := make([]byte, 64<<10)
		got := testing.AllocsPerRun(100, func() {
			if err := signer.Sign(h, "evt_01hf3z5c9kf0g8y2w7", attempt, large); err != nil {
				t.Fatal(err)
			}
		})
		if got > 2 {
			t.Errorf("%d secrets: %v allocations, at most 2 are promised", n, got)
		}
	}
}

func BenchmarkSign(b *testing.B) {
	signer := newSigner(b, secret32)
	payload := make([]byte, 1024)
	h := http.Header{}
	b.ReportAllocs()
	for b.Loop() {
		if err := signer.Sign(h, "evt_01hf3z5c9kf0g8y2w7", attempt, payload); err != nil {
			b.Fatal(err)
		}
	}
}
