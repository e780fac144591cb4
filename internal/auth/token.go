package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
)

// What a token begins with says what it is.
const (
	keyPrefix     = "hypha_"
	sessionPrefix = "hyps_"

	tokenBytes  = 32
	minTokenLen = 20
	maxTokenLen = 512
	hintLen     = 4 // characters of a key beyond its prefix that may be shown
)

// newToken makes a token: a prefix and 43 characters of base64url, 256 random
// bits.
func newToken(prefix string) (string, error) {
	secret := make([]byte, tokenBytes)
	if _, err := rand.Read(secret); err != nil {
		return "", fmt.Errorf("make a token: %w", err)
	}
	return prefix + base64.RawURLEncoding.EncodeToString(secret), nil
}

func hashToken(token string) [32]byte { return sha256.Sum256([]byte(token)) }

// IsToken reports whether a text begins as the keys and sessions do that the server
// makes. A key that somebody chose may begin otherwise.
func IsToken(text string) bool { return strings.HasPrefix(text, keyPrefix) || isSessionToken(text) }

func isSessionToken(token string) bool { return strings.HasPrefix(token, sessionPrefix) }

// plausible reports whether a text may be a token at all: what is not costs no
// look-up.
func plausible(token string) bool {
	if len(token) < minTokenLen || len(token) > maxTokenLen {
		return false
	}
	for i := range len(token) {
		if token[i] <= ' ' || token[i] > '~' {
			return false
		}
	}
	return true
}

// hint is the beginning of a key, enough to tell it from others. Of a key that
// somebody chose it shows less: its characters may not be random.
func hint(key string) string {
	if rest, ok := strings.CutPrefix(key, keyPrefix); ok {
		return keyPrefix + rest[:min(hintLen, len(rest))]
	}
	return key[:min(hintLen, len(key))]
}
