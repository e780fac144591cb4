package auth

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/argon2"

	"github.com/plinqx/hypha/internal/hook"
)

// The cost of a password's hash: the second recommended option of RFC 9106
// scaled down to what OWASP gives as its first for argon2id, so that two at
// once take 38 MiB.
const (
	argonMemory  = 19 << 10 // KiB
	argonTime    = 2
	argonThreads = 1
	saltBytes    = 16
	hashBytes    = 32

	// The most that a stored hash may ask for: it comes from the database, and
	// must not be able to take the machine.
	maxArgonMemory = 256 << 10
	maxArgonTime   = 16

	argonAtOnce  = 2
	argonWaiting = 64
)

// MinPassword and MaxPassword bound a password's length in bytes. The longest is
// far beyond any passphrase; without a bound, hashing is work for free.
const (
	MinPassword = 8
	MaxPassword = 1024
)

// passwords hashes and verifies, a few at a time: each takes 19 MiB and a core.
type passwords struct {
	running chan struct{}
	waiting chan struct{}
	// dummy is the hash of nobody's password: what an unknown user's is
	// compared with.
	dummy string
}

func newPasswords() (*passwords, error) {
	p := &passwords{
		running: make(chan struct{}, argonAtOnce),
		waiting: make(chan struct{}, argonWaiting),
	}
	nobody, err := newToken("")
	if err != nil {
		return nil, err
	}
	p.dummy, err = encodePassword(nobody)
	return p, err
}

// turn waits for one's turn to hash. The queue is bounded: who comes when it is
// full is told to come again.
func (p *passwords) turn(ctx context.Context) (done func(), err error) {
	select {
	case p.waiting <- struct{}{}:
	default:
		return nil, hook.Unavailable(time.Second, nil, "Too many sign-ins at once; try again")
	}
	defer func() { <-p.waiting }()
	select {
	case p.running <- struct{}{}:
		return func() { <-p.running }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// hash makes the PHC string of a password.
func (p *passwords) hash(ctx context.Context, password string) (string, error) {
	done, err := p.turn(ctx)
	if err != nil {
		return "", err
	}
	defer done()
	return encodePassword(password)
}

var errPasswordHash = errors.New("a stored password hash is not an argon2id PHC string within bounds")

// encodePassword makes $argon2id$v=19$m=19456,t=2,p=1$<salt>$<hash>.
func encodePassword(password string) (string, error) {
	salt := make([]byte, saltBytes)
	if _, err := rand.Read(salt); err != nil {
		return "", fmt.Errorf("hash a password: %w", err)
	}
	sum := argon2.IDKey([]byte(password), salt, argonTime, argonMemory, argonThreads, hashBytes)
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, argonMemory, argonTime, argonThreads,
		b64.EncodeToString(salt), b64.EncodeToString(sum)), nil
}

// verifyPassword compares a password with a PHC string, with the cost that is
// written in it.
func verifyPassword(phc, password string) (bool, error) {
	parts := strings.Split(phc, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return false, errPasswordHash
	}
	var memory, time uint32
	var threads uint8
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &memory, &time, &threads); err != nil {
		return false, errPasswordHash
	}
	if memory > maxArgonMemory || time == 0 || time > maxArgonTime || threads == 0 {
		return false, errPasswordHash
	}
	salt, err := base64.RawStdEncoding.DecodeString(parts[4])
	if err != nil {
		return false, errPasswordHash
	}
	want, err := base64.RawStdEncoding.DecodeString(parts[5])
	if err != nil || len(want) < 16 {
		return false, errPasswordHash
	}
	got := argon2.IDKey([]byte(password), salt, time, memory, threads, uint32(len(want)))
	return subtle.ConstantTimeCompare(got, want) == 1, nil
}
