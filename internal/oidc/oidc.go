// Package oidc signs people in through a provider of OpenID Connect (Core 1.0): the
// authorization code flow with PKCE (RFC 7636), a state and a nonce.
//
// It promises:
//
//   - A sign-in ends in the browser that began it, within ten minutes, whichever
//     server of several is asked: what one must know of it is in a sealed cookie.
//   - Only an email address that the provider has verified names anybody, and only
//     a token that the provider signed for this server, for this very sign-in.
//   - A provider that is away keeps nobody from starting: it is looked for when it
//     is needed. What it says is for the log alone.
//
// It must not know users, nor what the answer is used for.
package oidc

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/plinqx/hypha/internal/hook"
)

// MaxAge is how long a sign-in may take, from its begin to its end.
const MaxAge = 10 * time.Minute

const (
	// patience is how long the provider may take for an answer.
	patience = 10 * time.Second
	// retryAfter is how long a provider that was away is not asked again.
	retryAfter = 5 * time.Second
	maxReturn  = 2048 // bytes of a path to return to
)

// owner is what cookies are sealed for.
const owner = "a sign-in at an OpenID provider"

// Box seals what a browser carries (package seal).
type Box interface {
	Seal(plain, owner []byte) ([]byte, error)
	Open(sealed, owner []byte) ([]byte, error)
}

// Options are what a Provider needs; all but ClientSecret are required.
type Options struct {
	// Issuer is the provider's address, under which its configuration is found.
	Issuer string
	// ClientID and ClientSecret are what the provider knows this server by. A
	// client without a secret is a public one.
	ClientID, ClientSecret string
	// RedirectURL is where the provider sends browsers back to.
	RedirectURL string
	Box         Box
	Now         func() time.Time
}

// Provider is an OpenID provider. It is safe for concurrent use.
type Provider struct {
	o      Options
	client *http.Client

	// turn is held while found, failed and err are looked at or changed.
	turn   chan struct{}
	found  *oidc.Provider
	failed time.Time
	err    error
}

// New makes a Provider. Nobody is asked yet.
func New(o Options) *Provider {
	return &Provider{
		o: o,
		// The operator names the provider, so it may stand where webhooks may not
		// reach, and behind the operator's proxy.
		client: &http.Client{Timeout: patience, Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, MaxResponseHeaderBytes: 64 << 10, MaxIdleConns: 4, IdleConnTimeout: time.Minute,
			TLSHandshakeTimeout: patience, ForceAttemptHTTP2: true,
		}},
		turn: make(chan struct{}, 1),
	}
}

// Wish is what a browser wants of a sign-in.
type Wish struct {
	// ReturnTo is the path to go to in the end; see CheckReturnTo.
	ReturnTo string `json:"returnTo"`
	// Tenant is the tenant to sign in to, "" for whichever it is.
	Tenant string `json:"tenant"`
}

// begun is a sign-in that has begun. It is in the browser's cookie.
type begun struct {
	Wish
	State    string    `json:"state"`
	Nonce    string    `json:"nonce"`
	Verifier string    `json:"verifier"`
	Until    time.Time `json:"until"`
}

// Identity is who signed in.
type Identity struct {
	Wish
	Email string // verified by the provider
}

// CheckReturnTo says what is wrong with a path to return to, "" if nothing is: it
// must stay on this server, however a browser reads it.
func CheckReturnTo(path string) string {
	u, err := url.Parse(path)
	switch {
	case len(path) > maxReturn:
		return fmt.Sprintf("must have at most %d bytes", maxReturn)
	case err != nil || u.Scheme != "" || u.Host != "" || u.Opaque != "" || !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "//"),
		strings.Contains(path, `\`), strings.ContainsFunc(path, func(c rune) bool { return c <= ' ' || c > '~' }):
		return "must be a path on this server, such as /webhooks"
	default:
		return ""
	}
}

// Begin answers where the provider is to be asked, and the cookie that Finish needs.
func (p *Provider) Begin(ctx context.Context, w Wish) (location, cookie string, err error) {
	found, err := p.provider(ctx)
	if err != nil {
		return "", "", err
	}
	b := begun{Wish: w, State: rand.Text(), Nonce: rand.Text(), Verifier: oauth2.GenerateVerifier(), Until: p.o.Now().Add(MaxAge)}
	plain, err := json.Marshal(b)
	if err != nil {
		return "", "", err
	}
	sealed, err := p.o.Box.Seal(plain, []byte(owner))
	if err != nil {
		return "", "", err
	}
	location = p.config(found).AuthCodeURL(b.State, oidc.Nonce(b.Nonce), oauth2.S256ChallengeOption(b.Verifier))
	return location, base64.RawURLEncoding.EncodeToString(sealed), nil
}

// Finish answers who signed in, by the cookie of Begin and the query that the
// provider sent the browser back with. Errors: hook.CodeUnauthorized,
// hook.CodeUnavailable if the provider is away.
func (p *Provider) Finish(ctx context.Context, cookie string, answer url.Values) (*Identity, error) {
	b, err := p.open(cookie)
	if err != nil {
		return nil, refused("This sign-in was not begun in this browser, or took too long; begin again", err)
	}
	if subtle.ConstantTimeCompare([]byte(answer.Get("state")), []byte(b.State)) != 1 {
		return nil, refused("This is the answer to another sign-in; begin again", errors.New("the state is another"))
	}
	// RFC 9207: an answer of another provider is none of ours.
	if iss := answer.Get("iss"); iss != "" && iss != p.o.Issuer {
		return nil, unverified(fmt.Errorf("the answer comes from %q", iss))
	}
	if refusal := answer.Get("error"); refusal != "" || answer.Get("code") == "" {
		return nil, refused("The provider did not sign you in", fmt.Errorf("the provider's error is %.100q: %.200q", refusal, answer.Get("error_description")))
	}
	found, err := p.provider(ctx)
	if err != nil {
		return nil, err
	}
	ctx = oidc.ClientContext(ctx, p.client)
	token, err := p.config(found).Exchange(ctx, answer.Get("code"), oauth2.VerifierOption(b.Verifier))
	if err != nil {
		var said *oauth2.RetrieveError
		if errors.As(err, &said) && said.Response != nil && said.Response.StatusCode < http.StatusInternalServerError {
			return nil, unverified(fmt.Errorf("exchange the code: %w", err))
		}
		return nil, away(err)
	}
	email, err := p.email(ctx, found, token, b.Nonce)
	if err != nil {
		return nil, err
	}
	return &Identity{Wish: b.Wish, Email: email}, nil
}

func (p *Provider) open(cookie string) (*begun, error) {
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(cookie)
	if err != nil {
		return nil, fmt.Errorf("the cookie: %w", err)
	}
	plain, err := p.o.Box.Open(sealed, []byte(owner))
	if err != nil {
		return nil, fmt.Errorf("the cookie: %w", err)
	}
	var b begun
	if err := json.Unmarshal(plain, &b); err != nil {
		return nil, fmt.Errorf("the cookie: %w", err)
	}
	if !p.o.Now().Before(b.Until) {
		return nil, errors.New("the cookie is too old")
	}
	return &b, nil
}

// email is the verified address in the token (OpenID Connect Core 1.0, 3.1.3.7).
func (p *Provider) email(ctx context.Context, found *oidc.Provider, token *oauth2.Token, nonce string) (string, error) {
	raw, ok := token.Extra("id_token").(string)
	if !ok {
		return "", unverified(errors.New("there is no ID token"))
	}
	t, err := found.Verifier(&oidc.Config{ClientID: p.o.ClientID, Now: p.o.Now}).Verify(ctx, raw)
	if err != nil {
		return "", unverified(err)
	}
	var claims struct {
		Email    string `json:"email"`
		Verified bool   `json:"email_verified"`
		Party    string `json:"azp"`
	}
	if err := t.Claims(&claims); err != nil {
		return "", unverified(err)
	}
	switch {
	case subtle.ConstantTimeCompare([]byte(t.Nonce), []byte(nonce)) != 1:
		return "", unverified(errors.New("the nonce is another"))
	case claims.Party != "" && claims.Party != p.o.ClientID, claims.Party == "" && len(t.Audience) > 1:
		return "", unverified(errors.New("the token was made for another client"))
	case claims.Email == "" || !claims.Verified:
		return "", refused("The provider has not verified your email", errors.New("email_verified is not true"))
	default:
		return claims.Email, nil
	}
}

func (p *Provider) config(found *oidc.Provider) *oauth2.Config {
	return &oauth2.Config{
		ClientID: p.o.ClientID, ClientSecret: p.o.ClientSecret, Endpoint: found.Endpoint(), RedirectURL: p.o.RedirectURL,
		Scopes: []string{oidc.ScopeOpenID, "email"},
	}
}

// provider answers the provider, which is looked for once.
func (p *Provider) provider(ctx context.Context) (*oidc.Provider, error) {
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-p.turn }()
	if p.found != nil {
		return p.found, nil
	}
	if p.err != nil && p.o.Now().Sub(p.failed).Abs() < retryAfter {
		return nil, away(p.err)
	}
	found, err := oidc.NewProvider(oidc.ClientContext(ctx, p.client), p.o.Issuer)
	if err != nil {
		if ctx.Err() == nil { // else it was the browser that went
			p.failed, p.err = p.o.Now(), err
		}
		return nil, away(err)
	}
	p.found, p.err = found, nil
	return found, nil
}

func away(err error) error {
	return hook.Unavailable(retryAfter, fmt.Errorf("ask the OpenID provider: %w", err), "The sign-in provider can't be reached; try again")
}

func unverified(err error) error {
	return refused("The provider's answer could not be verified; begin again", err)
}

func refused(message string, cause error) error {
	return &hook.Error{Code: hook.CodeUnauthorized, Message: message, Cause: fmt.Errorf("sign in through the OpenID provider: %w", cause)}
}
