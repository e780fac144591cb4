package auth

import (
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/ratelimit"
)

// Failed sign-ins: so many at once, then one per interval. A guess is of one
// address, from one network. At most maxLimits of each kind are remembered.
//
// The limits are of this process: nodes that share a database have their own.
const (
	guessesAtOnce   = 10
	guessInterval   = 30 * time.Second
	networkAtOnce   = 100 // whatever the addresses: an office behind one network has typing errors too
	networkInterval = 5 * time.Second
	emailAtOnce     = 50 // from whatever networks
	emailInterval   = 30 * time.Second
	maxLimits       = 10_000
	maxFamiliar     = 10_000
)

type guessKey struct {
	network netip.Prefix
	email   string
}

// familiarKey is a network that a user has signed in from.
type familiarKey struct {
	network netip.Prefix
	user    id.User
}

// loginLimits bounds failed log-ins: those of a guess, of a network, and of an
// e-mail address.
//
// The limits of a network and of an address could be used to lock others out. So a
// user who has signed in from a network before is held by neither there, only by
// that of the guess. A success gives nothing back: whoever has a user of the same
// address in a tenant of their own could guess without end.
//
// Only failures and successes are remembered, so filling the tables costs as much
// hashing as they have rows.
type loginLimits struct {
	guesses  *ratelimit.Limits[guessKey]
	networks *ratelimit.Limits[netip.Prefix]
	emails   *ratelimit.Limits[string]

	mu       sync.Mutex
	familiar *simplelru.LRU[familiarKey, struct{}]
}

func newLoginLimits() *loginLimits {
	familiar, _ := simplelru.NewLRU[familiarKey, struct{}](maxFamiliar, nil) // its one error is of a size below one
	return &loginLimits{
		guesses:  ratelimit.New[guessKey](ratelimit.Every(guessInterval, guessesAtOnce), maxLimits),
		networks: ratelimit.New[netip.Prefix](ratelimit.Every(networkInterval, networkAtOnce), maxLimits),
		emails:   ratelimit.New[string](ratelimit.Every(emailInterval, emailAtOnce), maxLimits),
		familiar: familiar,
	}
}

// checkGuess refuses who has no guess left.
func (l *loginLimits) checkGuess(k guessKey, now time.Time) error {
	return tooMany(l.guesses.Wait(k, now))
}

// isFamiliar reports whether a user has signed in from a network before.
func (l *loginLimits) isFamiliar(from netip.Prefix, user id.User) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.familiar.Contains(familiarKey{from, user})
}

// check answers which of the users may be tried, and refuses if none may: once the
// network or the address has failed too often, those who are familiar.
func (l *loginLimits) check(k guessKey, users []hook.User, now time.Time) ([]hook.User, error) {
	if err := tooMany(l.guesses.Wait(k, now)); err != nil {
		return nil, err
	}
	wait := max(l.networks.Wait(k.network, now), l.emails.Wait(k.email, now))
	if wait == 0 {
		return users, nil
	}
	var familiar []hook.User
	for i := range users {
		if l.isFamiliar(k.network, users[i].ID) {
			familiar = append(familiar, users[i])
		}
	}
	if len(familiar) == 0 {
		return nil, tooMany(wait)
	}
	return familiar, nil
}

func tooMany(wait time.Duration) error {
	if wait == 0 {
		return nil
	}
	return &hook.Error{Code: hook.CodeRateLimited, Message: "Too many failed sign-ins; try again later", RetryAfter: wait}
}

func (l *loginLimits) failed(k guessKey, now time.Time) {
	l.guesses.Take(k, 1, now)
	l.networks.Take(k.network, 1, now)
	l.emails.Take(k.email, 1, now)
}

func (l *loginLimits) succeeded(from netip.Prefix, user id.User) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.familiar.Add(familiarKey{from, user}, struct{}{})
}
