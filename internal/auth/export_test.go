package auth

import (
	"net/netip"

	"github.com/plinqx/hypha/internal/ratelimit"
)

// Guessed notes a failed guess without the work of one.
func (a *Auth) Guessed(from netip.Addr, email string) {
	a.limits.failed(guessKey{ratelimit.Network(from), email}, a.o.Now())
}
