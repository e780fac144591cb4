// Package oidctest plays an OpenID provider, for tests: with keys of its own, codes
// that work once, and PKCE. What it says of people, and how, a test decides.
package oidctest

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// What the provider knows the server by.
const (
	ClientID     = "hypha"
	ClientSecret = "a secret of the client's"
)

// Provider is a provider that runs until its test ends.
type Provider struct {
	*httptest.Server
	t   testing.TB
	key *rsa.PrivateKey

	mu     sync.Mutex
	codes  map[string]url.Values // what was asked for
	asked  int                   // for the configuration
	away   bool
	Now    func() time.Time
	claims map[string]any
	sign   func(claims []byte) string
}

// New starts a provider that signs in alice@example.com.
func New(t testing.TB) *Provider {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p := &Provider{t: t, key: key, codes: map[string]url.Values{}, Now: time.Now}
	p.SignsIn("alice@example.com", nil)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", p.configuration)
	mux.HandleFunc("GET /authorize", p.authorize)
	mux.HandleFunc("POST /token", p.token)
	mux.HandleFunc("GET /keys", p.keys)
	p.Server = httptest.NewServer(mux)
	t.Cleanup(p.Close)
	return p
}

// SignsIn is who is signed in from now on: their verified address, and claims that
// differ; a nil one is left out.
func (p *Provider) SignsIn(email string, claims map[string]any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.claims = map[string]any{"email": email, "email_verified": true}
	maps.Copy(p.claims, claims)
	p.sign = p.signed
}

// SignsWith lets f make the ID tokens.
func (p *Provider) SignsWith(f func(claims []byte) string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sign = f
}

// Away lets the provider answer nothing but errors, or be back.
func (p *Provider) Away(away bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.away = away
}

// Asked is how often the configuration was asked for.
func (p *Provider) Asked() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked
}

// Consent follows a browser's way: to the provider, where somebody signs in, and
// back. It answers the query that the server gets.
func (p *Provider) Consent(location string) url.Values {
	p.t.Helper()
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Get(location)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	back, err := resp.Location()
	if err != nil {
		p.t.Fatalf("the provider answered %s", resp.Status)
	}
	return back.Query()
}

func (p *Provider) configuration(w http.ResponseWriter, _ *http.Request) {
	p.mu.Lock()
	p.asked++
	away := p.away
	p.mu.Unlock()
	if away {
		http.Error(w, "away: 10.1.2.3 is down", http.StatusBadGateway)
		return
	}
	answer(w, map[string]any{
		"issuer": p.URL, "authorization_endpoint": p.URL + "/authorize", "token_endpoint": p.URL + "/token", "jwks_uri": p.URL + "/keys",
		"response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"},
		"id_token_signing_alg_values_supported": []string{"RS256"},
	})
}

func (p *Provider) authorize(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if q.Get("client_id") != ClientID || q.Get("response_type") != "code" || q.Get("code_challenge_method") != "S256" || q.Get("state") == "" || q.Get("nonce") == "" {
		http.Error(w, "not as it should be: "+r.URL.RawQuery, http.StatusBadRequest)
		return
	}
	code := rand.Text()
	p.mu.Lock()
	p.codes[code] = q
	p.mu.Unlock()
	// Providers say more than they are asked for.
	back := url.Values{"code": {code}, "state": {q.Get("state")}, "iss": {p.URL}, "session_state": {"x"}}
	http.Redirect(w, r, q.Get("redirect_uri")+"?"+back.Encode(), http.StatusFound)
}

func (p *Provider) token(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.away {
		http.Error(w, "away", http.StatusBadGateway)
		return
	}
	id, secret, _ := r.BasicAuth()
	if unescaped, err := url.QueryUnescape(secret); id != ClientID || err != nil || unescaped != ClientSecret {
		http.Error(w, `{"error":"invalid_client"}`, http.StatusUnauthorized)
		return
	}
	code := r.PostFormValue("code")
	q, ok := p.codes[code]
	delete(p.codes, code) // it works once (RFC 6749, 4.1.2)
	challenge := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
	if !ok || q.Get("redirect_uri") != r.PostFormValue("redirect_uri") || q.Get("code_challenge") != base64.RawURLEncoding.EncodeToString(challenge[:]) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		answerBody(w, map[string]any{"error": "invalid_grant"})
		return
	}
	claims := map[string]any{
		"iss": p.URL, "aud": ClientID, "sub": "42", "nonce": q.Get("nonce"),
		"iat": p.Now().Unix(), "exp": p.Now().Add(time.Hour).Unix(),
	}
	maps.Copy(claims, p.claims)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	raw, err := json.Marshal(claims)
	if err != nil {
		p.t.Error(err)
	}
	answer(w, map[string]any{"access_token": "unused", "token_type": "Bearer", "id_token": p.sign(raw)})
}

func (p *Provider) signed(claims []byte) string { return Sign(p.t, p.key, claims) }

// Sign makes an ID token with a key.
func Sign(t testing.TB, key *rsa.PrivateKey, claims []byte) string {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: key, KeyID: "1"}}, nil)
	if err != nil {
		t.Error(err)
		return ""
	}
	signed, err := signer.Sign(claims)
	if err != nil {
		t.Error(err)
		return ""
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		t.Error(err)
	}
	return token
}

// PublicKey is the provider's, which anybody can read.
func (p *Provider) PublicKey() *rsa.PublicKey { return &p.key.PublicKey }

func (p *Provider) keys(w http.ResponseWriter, _ *http.Request) {
	answer(w, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: p.PublicKey(), KeyID: "1", Algorithm: string(jose.RS256), Use: "sig"}}})
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	answerBody(w, v)
}

func answerBody(w http.ResponseWriter, v any) {
	_ = json.NewEncoder(w).Encode(v) // whoever asked sees that it is cut
}
