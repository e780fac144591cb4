package auth

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
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

// network is what one party can be assumed to have: an IPv4 address, a /64 of
// IPv6.
func network(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	p, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // no address: all of those share one limit
	}
	return p
}

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
	mu       sync.Mutex
	guesses  failures[guessKey]
	networks failures[netip.Prefix]
	emails   failures[string]
	familiar map[familiarKey]time.Time
}

func newLoginLimits() *loginLimits {
	return &loginLimits{
		guesses:  newFailures[guessKey](guessesAtOnce, guessInterval),
		networks: newFailures[netip.Prefix](networkAtOnce, networkInterval),
		emails:   newFailures[string](emailAtOnce, emailInterval),
		familiar: make(map[familiarKey]time.Time),
	}
}

// checkGuess refuses who has no guess left.
func (l *loginLimits) checkGuess(k guessKey, now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return tooMany(l.guesses.wait(k, now))
}

// check answers which of the users may be tried, and refuses if none may: once the
// network or the address has failed too often, those who are familiar.
func (l *loginLimits) check(k guessKey, users []hook.User, now time.Time) ([]hook.User, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := tooMany(l.guesses.wait(k, now)); err != nil {
		return nil, err
	}
	wait := max(l.networks.wait(k.network, now), l.emails.wait(k.email, now))
	if wait <= 0 {
		return users, nil
	}
	var familiar []hook.User
	for i := range users {
		if _, ok := l.familiar[familiarKey{k.network, users[i].ID}]; ok {
			familiar = append(familiar, users[i])
		}
	}
	if len(familiar) == 0 {
		return nil, tooMany(wait)
	}
	return familiar, nil
}

func tooMany(wait time.Duration) error {
	if wait <= 0 {
		return nil
	}
	return &hook.Error{Code: hook.CodeRateLimited, Message: "Too many failed sign-ins; try again later", RetryAfter: wait}
}

func (l *loginLimits) failed(k guessKey, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.guesses.add(k, now)
	l.networks.add(k.network, now)
	l.emails.add(k.email, now)
}

func (l *loginLimits) succeeded(from netip.Prefix, user id.User, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := familiarKey{from, user}
	if _, ok := l.familiar[k]; !ok && len(l.familiar) >= maxFamiliar {
		var oldest familiarKey
		first := true
		for k, at := range l.familiar {
			if first || at.Before(l.familiar[oldest]) {
				oldest, first = k, false
			}
		}
		delete(l.familiar, oldest)
	}
	l.familiar[k] = now
}

// failures bounds the failures of each key.
type failures[K comparable] struct {
	atOnce   int
	interval time.Duration
	of       map[K]*failing
}

type failing struct {
	limiter *rate.Limiter
	last    time.Time
}

func newFailures[K comparable](atOnce int, interval time.Duration) failures[K] {
	return failures[K]{atOnce: atOnce, interval: interval, of: make(map[K]*failing)}
}

// wait is how long a key must wait for its next failure; not positive: it need not.
func (f *failures[K]) wait(k K, now time.Time) time.Duration {
	g, ok := f.of[k]
	if !ok {
		return 0
	}
	return time.Duration((1 - g.limiter.TokensAt(now)) * float64(f.interval))
}

func (f *failures[K]) add(k K, now time.Time) {
	g, ok := f.of[k]
	if !ok {
		if len(f.of) >= maxLimits {
			f.makeRoom(now)
		}
		g = &failing{limiter: rate.NewLimiter(rate.Every(f.interval), f.atOnce)}
		f.of[k] = g
	}
	g.last = now
	g.limiter.AllowN(now, 1)
}

// makeRoom drops what has recovered, or else what failed longest ago.
func (f *failures[K]) makeRoom(now time.Time) {
	var oldest K
	first := true
	for k, g := range f.of {
		if g.limiter.TokensAt(now) >= float64(f.atOnce) {
			delete(f.of, k)
			continue
		}
		if first || g.last.Before(f.of[oldest].last) {
			oldest, first = k, false
		}
	}
	if len(f.of) >= maxLimits {
		delete(f.of, oldest)
	}
}
