package signature_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/plinqx/hypha/signature"
)

// signerOf makes a signer of secrets and whsk_ keys.
func signerOf(t testing.TB, secrets, signing []string, noV1 bool) *signature.Signer {
	t.Helper()
	keys := signature.Keys{NoV1: noV1}
	for _, text := range secrets {
		secret, err := signature.ParseSecret(text)
		if err != nil {
			t.Fatal(err)
		}
		keys.Secrets = append(keys.Secrets, secret)
	}
	for _, text := range signing {
		keys.Signing = append(keys.Signing, signingKey(t, text))
	}
	signer, err := keys.Signer(signature.Prefix{})
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

func signingKey(t testing.TB, text string) signature.SigningKey {
	t.Helper()
	key, err := signature.ParseSigningKey(text)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// The key pairs of RFC 8032, section 7.1, tests 1 and 2: seeds in base64.
const (
	keyA = "whsk_nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A="
	keyB = "whsk_TM0Imyj/ltqdtsNG7BFOD1uKMZ81q6Yk2oz27U+4pvs="
)

// entryOf signs with one key, apart from a Signer.
func entryOf(t testing.TB, key string) string {
	t.Helper()
	entry, err := signingKey(t, key).Sign("evt_1", attempt, body)
	if err != nil {
		t.Fatal(err)
	}
	return entry
}

func TestSignAsymmetric(t *testing.T) {
	a, b := entryOf(t, keyA), entryOf(t, keyB)
	for _, tt := range []struct {
		name             string
		secrets, signing []string
		noV1             bool
		want             string // webhook-signature
	}{
		{"both versions", []string{plain}, []string{keyA}, false, plainV1 + " " + a},
		{"both in rotation: v1 before v1a, newest first in each", []string{secret32, plain}, []string{keyB, keyA}, false, secret32V1 + " " + plainV1 + " " + b + " " + a},
		{"v1a alone", []string{plain}, []string{keyA}, true, a},
		{"v1a alone, in rotation", []string{secret32, plain}, []string{keyA, keyB}, true, a + " " + b},
		{"no key", []string{plain}, nil, false, plainV1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// The prefixed pair knows nothing of keys.
			want := sign(t, newSigner(t, tt.secrets...), "evt_1", attempt, body)
			want.Set(signature.HeaderSignature, tt.want)
			signer := signerOf(t, tt.secrets, tt.signing, tt.noV1)
			for _, round := range []string{"first", "with reused state"} {
				if diff := cmp.Diff(want, sign(t, signer, "evt_1", attempt, body)); diff != "" {
					t.Errorf("%s (-want +got):\n%s", round, diff)
				}
			}
		})
	}
}

func TestVectorsSignerWithKeys(t *testing.T) {
	for _, v := range loadVectors(t).Vectors {
		if !v.asymmetric() {
			continue
		}
		t.Run(v.Name, func(t *testing.T) {
			h := sign(t, signerOf(t, []string{plain}, v.Secrets, true), v.ID, time.Unix(v.Timestamp, 0), []byte(v.Payload))
			if got := h.Get(signature.HeaderSignature); got != v.Expected {
				t.Errorf("webhook-signature = %q\nwant %q", got, v.Expected)
			}
		})
	}
}

// A receiver checks with whichever keys it has, old or new, of either kind; and
// with none that are not the sender's.
func TestVerifyAsymmetric(t *testing.T) {
	a, b := signingKey(t, keyA).Public().String(), signingKey(t, keyB).Public().String()
	both := sign(t, signerOf(t, []string{secret32, plain}, []string{keyB, keyA}, false), "evt_1", attempt, body)
	alone := sign(t, signerOf(t, []string{secret32}, []string{keyB}, true), "evt_1", attempt, body)
	other := both.Clone()
	other.Set(signature.HeaderID, "evt_2")
	later := both.Clone()
	later.Set(signature.HeaderTimestamp, "1700000001")
	for _, tt := range []struct {
		name    string
		headers http.Header
		body    string
		keys    []string
		want    error
	}{
		{"the new key", both, string(body), []string{b}, nil},
		{"the old key", both, string(body), []string{a}, nil},
		{"both keys", both, string(body), []string{a, b}, nil},
		{"the new secret", both, string(body), []string{secret32}, nil},
		{"the old secret", both, string(body), []string{plain}, nil},
		{"a key among strangers'", both, string(body), []string{"whsec_" + strings.Repeat("AAAA", 8), a}, nil},
		{"after the grace, the new key", alone, string(body), []string{b}, nil},
		{"after the grace, the old key", alone, string(body), []string{a}, signature.ErrMismatch},
		{"v1a alone, and a secret", alone, string(body), []string{secret32}, signature.ErrNoSignature},
		{"another body", both, `{"a":2}`, []string{a, b}, signature.ErrMismatch},
		{"another id", other, string(body), []string{a, b}, signature.ErrMismatch},
		{"another time", later, string(body), []string{a, b}, signature.ErrMismatch},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := verifierAt(t, attempt, tt.keys...).Verify(tt.headers, []byte(tt.body)); !errors.Is(err, tt.want) {
				t.Errorf("Verify = %v, want %v", err, tt.want)
			}
		})
	}
}

func TestKeysRefuse(t *testing.T) {
	secret, err := signature.ParseSecret(plain)
	if err != nil {
		t.Fatal(err)
	}
	key := signingKey(t, keyA)
	one := []signature.Secret{secret}
	for name, keys := range map[string]signature.Keys{
		"no secret":           {Signing: []signature.SigningKey{key}},
		"eleven signing keys": {Secrets: one, Signing: slices.Repeat([]signature.SigningKey{key}, signature.MaxSecrets+1)},
		"a zero signing key":  {Secrets: one, Signing: []signature.SigningKey{key, {}}},
		"nothing to send":     {Secrets: one, NoV1: true},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := keys.Signer(signature.Prefix{}); !errors.Is(err, signature.ErrSecret) {
				t.Errorf("Signer = %v, want ErrSecret", err)
			}
		})
	}
}

// All that can be in force at once is within what a Verifier looks at.
func TestVerifyAllInForce(t *testing.T) {
	signer := signerOf(t, slices.Repeat([]string{secret32}, signature.MaxSecrets), append(slices.Repeat([]string{keyB}, signature.MaxSecrets-1), keyA), false)
	h := sign(t, signer, "evt_1", attempt, body)
	if err := verifierAt(t, attempt, signingKey(t, keyA).Public().String()).Verify(h, body); err != nil {
		t.Error(err)
	}
}

// The example of RFC 8037, appendix A.3.
func TestThumbprint(t *testing.T) {
	key, err := signature.ParsePublicKey("whpk_11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=")
	if err != nil {
		t.Fatal(err)
	}
	if got := key.X(); got != "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" {
		t.Errorf("x = %s", got)
	}
	if got := key.Thumbprint(); got != "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k" {
		t.Errorf("thumbprint = %s", got)
	}
}

// asymmetricCase is a request for testdata/foreign/v1a.mjs, with the key as both
// forms in which a receiver may get it.
type asymmetricCase struct {
	ID        string `json:"id"`
	Timestamp string `json:"timestamp"`
	Signature string `json:"signature"`
	Body      string `json:"body"`
	Whpk      string `json:"whpk"`
	X         string `json:"x"`

	name string
	ok   bool
}

// TestNodeCrypto has the crypto of Node judge what a Signer signs. The libraries
// of Standard Webhooks for Go and JavaScript know no v1a; they pass it over,
// which foreignCases shows. It needs node.
func TestNodeCrypto(t *testing.T) {
	fresh, err := signature.NewSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	publicA, publicB, public := signingKey(t, keyA).Public(), signingKey(t, keyB).Public(), fresh.Public()
	var cases []asymmetricCase
	add := func(name string, h http.Header, payload string, key signature.PublicKey, ok bool) {
		cases = append(cases, asymmetricCase{
			ID: h.Get("webhook-id"), Timestamp: h.Get("webhook-timestamp"), Signature: h.Get("webhook-signature"),
			Body: payload, Whpk: key.String(), X: key.X(), name: name, ok: ok,
		})
	}
	for name, payload := range payloads() {
		h := sign(t, signerOf(t, []string{plain}, []string{fresh.Reveal(), keyA}, false), "evt_01hf3z5c9k", attempt, []byte(payload))
		add(name+", the new key", h, payload, public, true)
		add(name+", the old key", h, payload, publicA, true)
		add(name+", a stranger's key", h, payload, publicB, false)
		add(name+", another body", h, payload+" ", public, false)
	}
	for _, v := range loadVectors(t).Vectors {
		if v.asymmetric() {
			key, err := signature.ParsePublicKey(v.PublicKey)
			if err != nil {
				t.Fatal(err)
			}
			add("vector "+v.Name, standardHeaders(v.ID, strconv.FormatInt(v.Timestamp, 10), v.Expected), v.Payload, key, true)
		}
	}
	var in, stdout, stderr bytes.Buffer
	lines := json.NewEncoder(&in)
	lines.SetEscapeHTML(false)
	for _, c := range cases {
		if err := lines.Encode(c); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "node", filepath.Join("testdata", "foreign", "v1a.mjs"))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = &in, &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v (node must be installed)\n%s%s", cmd, err, &stdout, &stderr)
	}
	verdicts := json.NewDecoder(&stdout)
	for i, c := range cases {
		var verdict struct{ Whpk, Jwk bool }
		if err := verdicts.Decode(&verdict); err != nil {
			t.Fatalf("verdict %d of %d: %v", i+1, len(cases), err)
		}
		if verdict.Whpk != c.ok || verdict.Jwk != c.ok {
			t.Errorf("%s: node says %+v, want %v", c.name, verdict, c.ok)
		}
	}
	if verdicts.More() {
		t.Error("there are more verdicts than cases")
	}
}

func BenchmarkSignAsymmetric(b *testing.B) {
	signer := signerOf(b, []string{secret32}, []string{keyA}, false)
	payload := make([]byte, 1024)
	h := http.Header{}
	b.ReportAllocs()
	for b.Loop() {
		if err := signer.Sign(h, "evt_01hf3z5c9kf0g8y2w7", attempt, payload); err != nil {
			b.Fatal(err)
		}
	}
}
