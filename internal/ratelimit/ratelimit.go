// Package ratelimit bounds how much each of many parties may do in a time.
//
// It promises:
//
//   - A party has so many at once, and gets one back per interval (a token bucket).
//   - However many parties there are, memory is bounded: those that were seen
//     longest ago are forgotten, and start anew.
//   - Nothing here starts a goroutine or reads a clock.
//
// Limits are of this process: nodes that share a database have their own.
//
// It must not know who the parties are, nor what they do.
package ratelimit

import (
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"
)

// Rate is how much a party may do. The zero Rate is no limit.
type Rate struct {
	PerSecond float64
	AtOnce    int // how many may come together after a rest; one at least
}

// Every is a rate of one per interval.
func Every(interval time.Duration, atOnce int) Rate {
	return Rate{PerSecond: 1 / interval.Seconds(), AtOnce: atOnce}
}

// Unlimited reports whether there is no limit.
func (r Rate) Unlimited() bool { return r.PerSecond <= 0 }

// Limits holds each party, a K, to a rate of its own. It is safe for concurrent
// use.
type Limits[K comparable] struct {
	rate Rate

	mu sync.Mutex
	of *simplelru.LRU[K, *rate.Limiter] // nil without a limit
}

// New makes limits for the latest parties, as many as remembered says, one at
// least.
func New[K comparable](r Rate, remembered int) *Limits[K] {
	r.AtOnce = max(1, r.AtOnce)
	l := &Limits[K]{rate: r}
	if !r.Unlimited() {
		l.of, _ = simplelru.NewLRU[K, *rate.Limiter](max(1, remembered), nil) // its one error is of a size below one
	}
	return l
}

// Allow lets a party do something now, which counts, or answers how long it must
// wait, which doesn't.
func (l *Limits[K]) Allow(k K, now time.Time) (wait time.Duration) {
	if l.of == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	limiter := l.limiter(k)
	if wait = l.wait(limiter, now); wait == 0 {
		limiter.AllowN(now, 1)
	}
	return wait
}

// Wait answers how long a party must wait for its next; 0: it need not.
func (l *Limits[K]) Wait(k K, now time.Time) time.Duration {
	if l.of == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	limiter, ok := l.of.Get(k)
	if !ok {
		return 0
	}
	return l.wait(limiter, now)
}

// Take counts n things that a party has done. Those that it had no right to are
// a debt, which it has to wait for.
func (l *Limits[K]) Take(k K, n int, now time.Time) {
	if l.of == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	limiter := l.limiter(k)
	for n > 0 {
		// A reservation may be of as many as come at once, and of no more.
		step := min(n, l.rate.AtOnce)
		limiter.ReserveN(now, step)
		n -= step
	}
}

// Len is how many parties are remembered.
func (l *Limits[K]) Len() int {
	if l.of == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.of.Len()
}

func (l *Limits[K]) limiter(k K) *rate.Limiter {
	limiter, ok := l.of.Get(k)
	if !ok {
		limiter = rate.NewLimiter(rate.Limit(l.rate.PerSecond), l.rate.AtOnce)
		l.of.Add(k, limiter)
	}
	return limiter
}

// wait is how long it takes until a limiter has one.
func (l *Limits[K]) wait(limiter *rate.Limiter, now time.Time) time.Duration {
	missing := 1 - limiter.TokensAt(now)
	if missing <= 0 {
		return 0
	}
	// What rounds to nothing is a wait all the same.
	return max(1, time.Duration(missing/l.rate.PerSecond*float64(time.Second)))
}

// Network is what one party can be assumed to have: an IPv4 address, a /64 of IPv6.
// All that are no address have one network.
func Network(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	p, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
