package oidc_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/oidc"
	"github.com/plinqx/hypha/internal/oidc/oidctest"
	"github.com/plinqx/hypha/internal/seal"
)

// fixture is this server's side, and a provider.
type fixture struct {
	*oidc.Provider
	theirs *oidctest.Provider
	clock  time.Time
	box    *seal.Ring
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{theirs: oidctest.New(t), clock: time.Now()}
	box, err := seal.New(make([]byte, seal.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	f.box = box
	f.Provider = f.node()
	return f
}

// node is another server of the same key.
func (f *fixture) node() *oidc.Provider {
	return oidc.New(oidc.Options{
		Issuer: f.theirs.URL, ClientID: oidctest.ClientID, ClientSecret: oidctest.ClientSecret,
		RedirectURL: "https://hooks.example.com/callback", Box: f.box, Now: func() time.Time { return f.clock },
	})
}

// begin goes the browser's way, to where it comes back.
func (f *fixture) begin(t *testing.T, w oidc.Wish) (cookie string, answer url.Values) {
	t.Helper()
	location, cookie, err := f.Begin(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	return cookie, f.theirs.Consent(location)
}

func TestSignIn(t *testing.T) {
	f := newFixture(t)
	wish := oidc.Wish{ReturnTo: "/webhooks?a=b", Tenant: "ten_1"}
	cookie, answer := f.begin(t, wish)
	// Any server may be asked at the end.
	who, err := f.node().Finish(t.Context(), cookie, answer)
	if err != nil || who.Email != "alice@example.com" || who.Wish != wish {
		t.Fatalf("signed in as %+v, %v", who, err)
	}
	for _, secret := range []string{wish.ReturnTo, answer.Get("state")} {
		if raw, err := base64.RawURLEncoding.DecodeString(cookie); err != nil || strings.Contains(string(raw), secret) {
			t.Errorf("the cookie shows %s, %v", secret, err)
		}
	}
	if who, err := f.Finish(t.Context(), cookie, answer); hook.CodeOf(err) != hook.CodeUnauthorized {
		t.Errorf("the same answer again: %+v, %v", who, err)
	}
	if n := f.theirs.Asked(); n != 2 {
		t.Errorf("two servers asked for the configuration %d times", n)
	}
}

func TestRefused(t *testing.T) {
	stranger, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	unsigned := func(claims []byte) string {
		b64 := base64.RawURLEncoding
		return b64.EncodeToString([]byte(`{"alg":"none"}`)) + "." + b64.EncodeToString(claims) + "."
	}
	for _, tc := range []struct {
		name    string
		claims  map[string]any
		sign    func(*fixture) func([]byte) string
		change  func(f *fixture, cookie *string, answer url.Values)
		message string // begins the message; "" for the one about the provider's answer
	}{
		{name: "another nonce", claims: map[string]any{"nonce": "another"}},
		{name: "no nonce", claims: map[string]any{"nonce": nil}},
		{name: "an expired token", claims: map[string]any{"exp": time.Now().Add(-time.Minute).Unix()}},
		{name: "a token without an end", claims: map[string]any{"exp": nil}},
		{name: "another audience", claims: map[string]any{"aud": "another"}},
		{name: "another audience besides", claims: map[string]any{"aud": []string{oidctest.ClientID, "another"}}},
		{name: "another authorized party", claims: map[string]any{"azp": "another"}},
		{name: "another issuer", claims: map[string]any{"iss": "https://accounts.example.com"}},
		{name: "an unverified email", claims: map[string]any{"email_verified": false}, message: "The provider has not verified"},
		{name: "nothing said of verifying", claims: map[string]any{"email_verified": nil}, message: "The provider has not verified"},
		{name: "verified in words", claims: map[string]any{"email_verified": "true"}},
		{name: "no email", claims: map[string]any{"email": nil}, message: "The provider has not verified"},
		{name: "no signature", sign: func(*fixture) func([]byte) string { return unsigned }},
		{name: "another's signature", sign: func(*fixture) func([]byte) string {
			return func(claims []byte) string { return oidctest.Sign(t, stranger, claims) }
		}},
		{name: "signed with the public key for a secret", sign: func(f *fixture) func([]byte) string {
			return func(claims []byte) string {
				signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: x509.MarshalPKCS1PublicKey(f.theirs.PublicKey())}, nil)
				if err != nil {
					t.Fatal(err)
				}
				signed, err := signer.Sign(claims)
				if err != nil {
					t.Fatal(err)
				}
				token, err := signed.CompactSerialize()
				if err != nil {
					t.Fatal(err)
				}
				return token
			}
		}},
		{name: "no token", sign: func(*fixture) func([]byte) string { return func([]byte) string { return "" } }},

		{name: "another state", message: "This is the answer to another", change: func(_ *fixture, _ *string, answer url.Values) { answer.Set("state", "x") }},
		{name: "no state", message: "This is the answer to another", change: func(_ *fixture, _ *string, answer url.Values) { answer.Del("state") }},
		{name: "another sign-in's cookie", message: "This is the answer to another", change: func(f *fixture, cookie *string, _ url.Values) {
			*cookie, _ = f.begin(t, oidc.Wish{})
		}},
		{name: "no cookie", message: "This sign-in was not begun", change: func(_ *fixture, cookie *string, _ url.Values) { *cookie = "" }},
		{name: "a cookie that somebody made", message: "This sign-in was not begun", change: func(_ *fixture, cookie *string, _ url.Values) {
			*cookie = base64.RawURLEncoding.EncodeToString([]byte(`{"state":"x"}`))
		}},
		{name: "too late", message: "This sign-in was not begun", change: func(f *fixture, _ *string, _ url.Values) { f.clock = f.clock.Add(oidc.MaxAge) }},
		{name: "an answer of another provider", change: func(_ *fixture, _ *string, answer url.Values) { answer.Set("iss", "https://accounts.example.com") }},
		{name: "the provider refuses", message: "The provider did not sign you in", change: func(_ *fixture, _ *string, answer url.Values) {
			answer.Set("error", "access_denied")
			answer.Set("error_description", "alice is locked")
		}},
		{name: "a code that there is not", change: func(_ *fixture, _ *string, answer url.Values) { answer.Set("code", "x") }},
		{name: "another sign-in's code", change: func(f *fixture, _ *string, answer url.Values) {
			_, other := f.begin(t, oidc.Wish{})
			answer.Set("code", other.Get("code"))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFixture(t)
			f.theirs.SignsIn("alice@example.com", tc.claims)
			if tc.sign != nil {
				f.theirs.SignsWith(tc.sign(f))
			}
			cookie, answer := f.begin(t, oidc.Wish{})
			if tc.change != nil {
				tc.change(f, &cookie, answer)
			}
			who, err := f.Finish(t.Context(), cookie, answer)
			if hook.CodeOf(err) != hook.CodeUnauthorized {
				t.Fatalf("signed in as %+v, %v", who, err)
			}
			message := tc.message
			if message == "" {
				message = "The provider's answer could not be verified"
			}
			shown := shownOf(t, err)
			if !strings.HasPrefix(shown, message) {
				t.Errorf("the message is %q, want %q", shown, message)
			}
			if strings.Contains(shown, "alice") || strings.Contains(shown, f.theirs.URL) {
				t.Errorf("what the provider says is shown: %q", shown)
			}
		})
	}
}

func TestAwayAndBack(t *testing.T) {
	f := newFixture(t)
	f.theirs.Away(true)
	for range 3 {
		_, _, err := f.Begin(t.Context(), oidc.Wish{})
		if hook.CodeOf(err) != hook.CodeUnavailable || strings.Contains(shownOf(t, err), "10.1.2.3") {
			t.Fatalf("while the provider is away: %v", err)
		}
	}
	if n := f.theirs.Asked(); n != 1 {
		t.Errorf("within five seconds it was asked %d times", n)
	}
	f.theirs.Away(false)
	f.clock = f.clock.Add(5 * time.Second)
	cookie, answer := f.begin(t, oidc.Wish{})
	f.theirs.Away(true)
	if _, err := f.Finish(t.Context(), cookie, answer); hook.CodeOf(err) != hook.CodeUnavailable {
		t.Errorf("gone in the middle: %v", err)
	}
	f.theirs.Away(false)
	if _, err := f.Finish(t.Context(), cookie, answer); err != nil {
		t.Errorf("back: %v", err)
	}
}

func TestCheckReturnTo(t *testing.T) {
	for _, ok := range []string{"/", "/webhooks", "/webhooks?status=FAILED&a=https://example.com", "/a/b#c"} {
		if p := oidc.CheckReturnTo(ok); p != "" {
			t.Errorf("%q %s", ok, p)
		}
	}
	for _, bad := range []string{
		"", "webhooks", "https://evil.example", "//evil.example", "///evil.example", `/\evil.example`, `\\evil.example`, "/\t/evil.example",
		"/\n/evil.example", " /webhooks", "javascript:alert(1)", "/%zz", "/\u202e", "/" + strings.Repeat("a", 2048),
	} {
		if p := oidc.CheckReturnTo(bad); p == "" {
			t.Errorf("%.40q is let through", bad)
		}
	}
}

// shownOf is what a caller sees of an error.
func shownOf(t *testing.T, err error) string {
	t.Helper()
	e, ok := errors.AsType[*hook.Error](err)
	if !ok {
		t.Fatalf("%v is nothing to be shown", err)
	}
	return e.Message
}
