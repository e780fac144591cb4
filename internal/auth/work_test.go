package auth

import (
	"context"
	"errors"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/ratelimit"
)

// TestVerifyCostsTheSame: nobody, and somebody without a password, cost one hash,
// and no password is theirs, not even that of the dummy.
func TestVerifyCostsTheSame(t *testing.T) {
	p, err := newPasswords()
	if err != nil {
		t.Fatal(err)
	}
	if p.dummy, err = encodePassword("the dummy's password"); err != nil {
		t.Fatal(err)
	}
	a := &Auth{o: Options{Now: time.Now}, passwords: p, limits: newLoginLimits()}
	for name, users := range map[string][]hook.User{"nobody": nil, "no password": {{ID: id.User{1}}}} {
		if user, err := a.verify(t.Context(), guessKey{email: name}, users, "the dummy's password"); user != nil || err != nil {
			t.Errorf("%s: signed in as %+v, %v", name, user, err)
		}
	}
	// One that can't be read shows that it is looked at.
	p.dummy = "no hash"
	for name, tc := range map[string]struct {
		users    []hook.User
		password string
	}{
		"nobody":              {nil, "x"},
		"no password":         {[]hook.User{{ID: id.User{1}}}, "x"},
		"a password too long": {[]hook.User{{ID: id.User{1}, PasswordHash: "unused"}}, strings.Repeat("x", MaxPassword+1)},
	} {
		if _, err := a.verify(t.Context(), guessKey{email: name}, tc.users, tc.password); !errors.Is(err, errPasswordHash) {
			t.Errorf("%s: nothing was hashed: %v", name, err)
		}
	}
}

func TestLimitsAreBounded(t *testing.T) {
	l := newLoginLimits()
	now := time.Now()
	addr := netip.MustParseAddr("10.0.0.0")
	for i := range maxLimits + 100 {
		addr = addr.Next()
		now = now.Add(time.Millisecond)
		n := ratelimit.Network(addr)
		l.failed(guessKey{network: n, email: addr.String()}, now)
		l.succeeded(n, id.User{byte(i), byte(i >> 8), byte(i >> 16)})
	}
	for what, n := range map[string]int{"guesses": l.guesses.Len(), "networks": l.networks.Len(), "emails": l.emails.Len(), "familiar": l.familiar.Len()} {
		if n > maxLimits {
			t.Errorf("%d %s are remembered", n, what)
		}
	}
}

// However many sign in, two passwords are hashed at a time, and those who wait are
// bounded too.
func TestHashesAtOnce(t *testing.T) {
	p := &passwords{running: make(chan struct{}, argonAtOnce), waiting: make(chan struct{}, argonWaiting)}
	var ends []func()
	for range argonAtOnce {
		done, err := p.turn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, done)
	}
	ctx, leave := context.WithCancel(t.Context())
	waited := make(chan error)
	for range argonWaiting {
		go func() {
			_, err := p.turn(ctx)
			waited <- err
		}()
	}
	for len(p.waiting) < argonWaiting {
		runtime.Gosched()
	}
	if _, err := p.turn(t.Context()); hook.CodeOf(err) != hook.CodeUnavailable {
		t.Errorf("one more than may wait: %v", err)
	}
	leave()
	for range argonWaiting {
		if err := <-waited; !errors.Is(err, context.Canceled) {
			t.Errorf("one who waited: %v", err)
		}
	}
	ends[0]()
	if _, err := p.turn(t.Context()); err != nil {
		t.Errorf("when one is done: %v", err)
	}
	if argonAtOnce*argonMemory > 38<<10 {
		t.Errorf("hashing may take %d KiB", argonAtOnce*argonMemory)
	}
}
