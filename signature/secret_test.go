package signature_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/plinqx/hypha/signature"
)

const (
	secret32 = "whsec_ZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXp7fH1+f4CBgoM="
	secret24 = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX"
	plain    = "your-webhook-secret-1"

	private = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg=="
	public  = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="
)

func TestParseSecretAccepts(t *testing.T) {
	for name, s := range map[string]string{
		"16 characters":             "0123456789abcdef",
		"256 characters":            strings.Repeat("ab", 128),
		"every printable character": allPrintable(),
		"the documentation's own":   "your-webhook-secret",
		"three asterisks in text":   "half***of***this*is*real",
		"prefix later on":           "my-whsec_0123456789",
		"other word before _":       "whsecret_0123456789",
		"24 bytes":                  secret24,
		"32 bytes":                  secret32,
	} {
		t.Run(name, func(t *testing.T) {
			got, err := signature.ParseSecret(s)
			if err != nil {
				t.Fatal(err)
			}
			if got.Reveal() != s {
				t.Errorf("Reveal = %q, want %q", got.Reveal(), s)
			}
		})
	}
}

func allPrintable() string {
	var b strings.Builder
	for c := byte(0x7E); c >= 0x21; c-- {
		b.WriteByte(c)
		if c == 'a' {
			b.WriteByte(' ')
		}
	}
	return b.String()
}

func TestParseSecretRefuses(t *testing.T) {
	for _, tt := range []struct{ name, secret, says string }{
		{"empty", "", "empty"},
		{"15 characters", "0123456789abcde", "16 to 256 characters, this one has 15"},
		{"257 characters", strings.Repeat("a", 257), "this one has 257"},
		{"space before", " 0123456789abcdef", "begins or ends with a space"},
		{"space after", "0123456789abcdef ", "begins or ends with a space"},
		{"spaces alone", strings.Repeat(" ", 20), "begins or ends with a space"},
		{"tab", "0123456789abcdef\t", "character 17 is not a printable"},
		{"newline at the end", plain + "\n", "line break"},
		{"carriage return", plain + "\r", "line break"},
		{"NUL", "0123456789\x00abcdef", "character 11 is not a printable"},
		{"DEL", "0123456789abcdef\x7f", "character 17 is not a printable"},
		{"not ASCII", "pässword-0123456789", "character 2 is not a printable"},
		{"not UTF-8", "0123456789abcdef\xff", "character 17 is not a printable"},

		{"prefix alone", "whsec_", "holds 24 to 64 bytes, this one 0"},
		{"23 bytes", "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "this one 23"},
		{"no padding", strings.TrimRight(secret32, "="), "padding"},
		{"URL-safe base64", strings.Replace(secret32, "+", "-", 1), "standard base64"},
		{"stray trailing bits", strings.Replace(secret32, "oM=", "oN=", 1), "standard base64"},
		{"text after the padding", secret32 + "A", "standard base64"},

		{"prefix in capitals", strings.Replace(secret24, "whsec_", "WHSEC_", 1), "lower case"},
		{"prefix half in capitals", strings.Replace(secret24, "whsec_", "WhSec_", 1), "lower case"},
		{"private prefix in capitals", strings.Replace(private, "whsk_", "Whsk_", 1), "lower case"},
		{"private key", private, "private key"},
		{"public key", public, "public key"},

		{"masked whsec_", signature.Mask(secret32), "masked"},
		{"masked plain", signature.Mask(plain), "masked"},
		{"three asterisks after the prefix", "whsec_***", "masked"},
		{"asterisks alone", "****************", "masked"},
		{"bullets alone", "••••••••••••••••", "masked"},
		{"bullets after the prefix", "whsec_••", "masked"},
		{"four asterisks inside", "your-web****-secret", "masked"},
		{"four bullets inside", "your-web••••-secret", "masked"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := signature.ParseSecret(tt.secret)
			if !errors.Is(err, signature.ErrSecret) || !got.IsZero() {
				t.Fatalf("ParseSecret = %v, %v, want ErrSecret", got, err)
			}
			if !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %q does not say %q", err, tt.says)
			}
			if len(tt.secret) > 6 && strings.Contains(err.Error(), tt.secret) {
				t.Errorf("the error quotes the secret: %v", err)
			}
		})
	}
}

func TestNewSecretIsParsedAndNew(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		s, err := signature.NewSecret()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := signature.ParseSecret(s); err != nil {
			t.Fatal(err)
		}
		key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(s, "whsec_"))
		if err != nil || len(key) != 32 || !strings.HasPrefix(s, "whsec_") {
			t.Fatalf("NewSecret gave %d bytes, %v, want 32 after whsec_", len(key), err)
		}
		if seen[s] {
			t.Fatal("the same secret twice")
		}
		seen[s] = true
	}
}

func TestMask(t *testing.T) {
	for in, want := range map[string]string{
		secret32:      "whsec_****",
		private:       "whsk_****",
		public:        "whpk_****",
		plain:         "****",
		"WHSEC_AAAA":  "****",
		"":            "",
		"whsec_****":  "whsec_****",
		"short":       "****",
		"\x00control": "****",
	} {
		if got := signature.Mask(in); got != want {
			t.Errorf("Mask(%q) = %q, want %q", in, got, want)
		}
	}
}

// A secret must not come out of anything that prints, wherever it sits.
func TestSecretsPrintMasked(t *testing.T) {
	secret, err := signature.ParseSecret(secret32)
	if err != nil {
		t.Fatal(err)
	}
	key, err := signature.ParseSigningKey(private)
	if err != nil {
		t.Fatal(err)
	}
	type holder struct {
		Exported signature.Secret
		inner    signature.Secret
		ExpKey   signature.SigningKey
		key      signature.SigningKey
	}
	h := holder{secret, secret, key, key}
	if !h.inner.Equal(secret) || h.key.Public().String() != public {
		t.Fatal("the holder does not hold the secrets")
	}
	values := map[string]any{
		"secret": secret, "pointer": &secret, "slice": []signature.Secret{secret},
		"verifier": verifierAt(t, attempt, secret32), "nested": struct{ in []holder }{[]holder{h}},
		"key": key, "struct": h, "pointer to struct": &h, "signer": newSigner(t, secret32),
	}

	var out bytes.Buffer
	text := slog.New(slog.NewTextHandler(&out, nil))
	structured := slog.New(slog.NewJSONHandler(&out, nil))
	for name, v := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%t"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		text.Info(name, "v", v)
		structured.Info(name, "v", v)
		encoded, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(encoded)
	}
	for _, s := range []string{secret32, private} {
		encoded := s[strings.Index(s, "_")+1:]
		for _, form := range []string{
			encoded,
			fmt.Sprintf("%x", encoded), fmt.Sprintf("%X", encoded),
			strings.Trim(fmt.Sprintf("%d", []byte(encoded)), "[]"),
		} {
			if strings.Contains(out.String(), form) {
				t.Errorf("printed: %s", form)
			}
		}
	}
	for _, want := range []string{"whsec_****", "whsk_****"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s was never printed", want)
		}
	}
	for _, verb := range []string{"%v", "%s", "%q", "%x", "%d", "%#v"} {
		if got, want := fmt.Sprintf(verb+" "+verb, secret, key), "whsec_**** whsk_****"; got != want {
			t.Errorf("%s prints %q, want %q", verb, got, want)
		}
	}
}

func TestSecretEqual(t *testing.T) {
	parse := func(s string) signature.Secret {
		secret, err := signature.ParseSecret(s)
		if err != nil {
			t.Fatal(err)
		}
		return secret
	}
	if !parse(plain).Equal(parse(plain)) {
		t.Error("a secret does not equal itself parsed again")
	}
	if parse(plain).Equal(parse(secret32)) || parse(plain).Equal(signature.Secret{}) {
		t.Error("different secrets are equal")
	}
}

func TestParseKeysRefuse(t *testing.T) {
	parsePrivate := func(s string) error { _, err := signature.ParseSigningKey(s); return err }
	parsePublic := func(s string) error { _, err := signature.ParsePublicKey(s); return err }
	for _, tt := range []struct {
		name, key, says string
		parse           func(string) error
	}{
		{"empty private", "", "starts with whsk_", parsePrivate},
		{"shared secret as private", secret32, "starts with whsk_", parsePrivate},
		{"public as private", public, "starts with whsk_", parsePrivate},
		{"private in capitals", strings.Replace(private, "whsk_", "WHSK_", 1), "starts with whsk_", parsePrivate},
		{"private of 24 bytes", "whsk_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX", "32 or 64 bytes, this one 24", parsePrivate},
		{"halves apart", "whsk_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==", "do not belong together", parsePrivate},
		{"masked private", "whsk_****", "masked", parsePrivate},
		{"newline after private", private + "\n", "line break", parsePrivate},
		{"private as public", private, "starts with whpk_", parsePublic},
		{"public of 24 bytes", "whpk_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX", "32 bytes, this one 24", parsePublic},
		{"public not base64", "whpk_%%%", "standard base64", parsePublic},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.parse(tt.key)
			if !errors.Is(err, signature.ErrSecret) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error = %v, want ErrSecret that says %q", err, tt.says)
			}
		})
	}
}

func TestNewSigningKeySurvivesItsText(t *testing.T) {
	key, err := signature.NewSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	again, err := signature.ParseSigningKey(key.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	if key.Public().String() != again.Public().String() {
		t.Error("the key read again has another public half")
	}
}
