package signature_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/plinqx/hypha/signature"
)

// vectors is testdata/stdwh_vectors.json: published and computed examples of
// Standard Webhooks 1.0, confirmed there by other people's libraries.
type vectors struct {
	Vectors        []vector   `json:"vectors"`
	MustNotVerify  []negative `json:"must_not_verify"`
	InvalidSecrets []struct {
		Secret string `json:"secret"`
		Why    string `json:"why"`
	} `json:"invalid_secrets"`
	CollisionDemo []negative `json:"collision_demo"`
}

type vector struct {
	Name      string     `json:"name"`
	ID        string     `json:"id"`
	Timestamp int64      `json:"timestamp"`
	Payload   string     `json:"payload"`
	Secrets   secretList `json:"secret"`
	Expected  string     `json:"expected"`
	PublicKey string     `json:"public_key"` // ed25519 only
	Seed      string     `json:"secret_32B_seed_form"`
}

type negative struct {
	Name      string `json:"name"`
	ID        string `json:"id"`
	Timestamp string `json:"timestamp"`
	Payload   string `json:"payload"`
	Secret    string `json:"secret"`
	Signature string `json:"signature"`
}

// secretList reads one secret or a list of them.
type secretList []string

func (l *secretList) UnmarshalJSON(b []byte) error {
	if b[0] == '"' {
		*l = make(secretList, 1)
		return json.Unmarshal(b, &(*l)[0])
	}
	return json.Unmarshal(b, (*[]string)(l))
}

func loadVectors(t testing.TB) vectors {
	t.Helper()
	text, err := os.ReadFile("testdata/stdwh_vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	if len(v.Vectors) == 0 || len(v.MustNotVerify) == 0 || len(v.InvalidSecrets) == 0 || len(v.CollisionDemo) == 0 {
		t.Fatalf("the vectors file lacks a section: %d, %d, %d, %d", len(v.Vectors), len(v.MustNotVerify), len(v.InvalidSecrets), len(v.CollisionDemo))
	}
	return v
}

func (v vector) asymmetric() bool { return v.PublicKey != "" }

func (n negative) headers() http.Header {
	return standardHeaders(n.ID, n.Timestamp, n.Signature)
}

// at gives the second the request says it was signed in; one that says nothing
// readable is judged in 1970.
func (n negative) at() time.Time {
	seconds, _ := strconv.ParseInt(n.Timestamp, 10, 64)
	return time.Unix(seconds, 0)
}

func standardHeaders(id, timestamp, sig string) http.Header {
	h := http.Header{}
	h.Set("webhook-id", id)
	h.Set("webhook-timestamp", timestamp)
	h.Set("webhook-signature", sig)
	return h
}

func newSigner(t testing.TB, secrets ...string) *signature.Signer {
	t.Helper()
	parsed := make([]signature.Secret, len(secrets))
	for i, s := range secrets {
		var err error
		if parsed[i], err = signature.ParseSecret(s); err != nil {
			t.Fatalf("secret %d: %v", i, err)
		}
	}
	signer, err := signature.NewSigner(signature.Prefix{}, parsed...)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

// sign signs into new headers.
func sign(t testing.TB, s *signature.Signer, id string, at time.Time, body []byte) http.Header {
	t.Helper()
	h := http.Header{}
	if err := s.Sign(h, id, at, body); err != nil {
		t.Fatal(err)
	}
	return h
}

// verifierAt judges timestamps as if it were now.
func verifierAt(t testing.TB, now time.Time, keys ...string) *signature.Verifier {
	t.Helper()
	v, err := signature.NewVerifier(keys, signature.WithClock(func() time.Time { return now }))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestVectorsSign(t *testing.T) {
	for _, v := range loadVectors(t).Vectors {
		t.Run(v.Name, func(t *testing.T) {
			if v.asymmetric() {
				for _, text := range []string{v.Secrets[0], v.Seed} {
					if text == "" {
						continue
					}
					key, err := signature.ParseSigningKey(text)
					if err != nil {
						t.Fatal(err)
					}
					if got, err := key.Sign(v.ID, time.Unix(v.Timestamp, 0), []byte(v.Payload)); err != nil || got != v.Expected {
						t.Errorf("signature = %q, %v\nwant %q", got, err, v.Expected)
					}
					if got := key.Public().String(); got != v.PublicKey {
						t.Errorf("public key = %q, want %q", got, v.PublicKey)
					}
				}
				return
			}
			h := sign(t, newSigner(t, v.Secrets...), v.ID, time.Unix(v.Timestamp, 0), []byte(v.Payload))
			if got := h.Get("webhook-signature"); got != v.Expected {
				t.Errorf("webhook-signature = %q\nwant %q", got, v.Expected)
			}
			if got := h.Get("webhook-id"); got != v.ID {
				t.Errorf("webhook-id = %q, want %q", got, v.ID)
			}
			if got, want := h.Get("webhook-timestamp"), strconv.FormatInt(v.Timestamp, 10); got != want {
				t.Errorf("webhook-timestamp = %q, want %q", got, want)
			}
		})
	}
}

func TestVectorsVerify(t *testing.T) {
	for _, v := range loadVectors(t).Vectors {
		t.Run(v.Name, func(t *testing.T) {
			keys := v.Secrets
			if v.asymmetric() {
				keys = secretList{v.PublicKey}
			}
			h := standardHeaders(v.ID, strconv.FormatInt(v.Timestamp, 10), v.Expected)
			for _, key := range keys {
				verifier := verifierAt(t, time.Unix(v.Timestamp, 0), key)
				if err := verifier.Verify(h, []byte(v.Payload)); err != nil {
					t.Errorf("Verify: %v", err)
				}
				if err := verifier.Verify(h, []byte(v.Payload+" ")); !errors.Is(err, signature.ErrMismatch) {
					t.Errorf("Verify of another body = %v, want ErrMismatch", err)
				}
			}
		})
	}
}

func TestVectorsMustNotVerify(t *testing.T) {
	file := loadVectors(t)
	for _, n := range append(file.MustNotVerify, file.CollisionDemo...) {
		t.Run(n.Name, func(t *testing.T) {
			err := verifierAt(t, n.at(), n.Secret).Verify(n.headers(), []byte(n.Payload))
			if err == nil {
				t.Fatal("it verified")
			}
			if strings.Contains(err.Error(), n.Secret) {
				t.Errorf("the error shows the secret: %v", err)
			}
		})
	}
}

func TestVectorsInvalidSecrets(t *testing.T) {
	for _, s := range loadVectors(t).InvalidSecrets {
		t.Run(s.Why, func(t *testing.T) {
			if got, err := signature.ParseSecret(s.Secret); !errors.Is(err, signature.ErrSecret) || !got.IsZero() {
				t.Errorf("ParseSecret = %v, %v, want ErrSecret", got, err)
			}
			if strings.HasPrefix(s.Secret, "whsk_") {
				if _, err := signature.ParseSigningKey(s.Secret); !errors.Is(err, signature.ErrSecret) {
					t.Errorf("ParseSigningKey = %v, want ErrSecret", err)
				}
			}
		})
	}
}
