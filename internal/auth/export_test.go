package auth

import "net/netip"

// Guessed notes a failed guess without the work of one.
func (a *Auth) Guessed(from netip.Addr, email string) {
	a.limits.failed(guessKey{network(from), email}, a.o.Now())
}
