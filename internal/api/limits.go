package api

import (
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/plinqx/hypha/internal/auth"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/ratelimit"
)

// RateLimits are how much each party may ask for. What is zero is not limited.
// Operators are held by none of them: theirs is the platform's own program, which
// acts for all tenants.
type RateLimits struct {
	// Requests of one API key, or of one user, besides publishing.
	Requests ratelimit.Rate
	// Events that one API key or user publishes. Those of a batch count each.
	Events ratelimit.Rate
	// Changes of one tenant: each makes an entry in the audit log, which is kept
	// for longer than anything else.
	Changes ratelimit.Rate
	// Strangers are requests from one network (an IPv4 address, a /64 of IPv6)
	// that no credential in force came with.
	Strangers ratelimit.Rate
}

// Limit names what a request was refused by, for the metrics.
type Limit string

// The limits: those of RateLimits, and the one of failed sign-ins.
const (
	LimitRequests  Limit = "requests"
	LimitEvents    Limit = "events"
	LimitChanges   Limit = "changes"
	LimitStrangers Limit = "strangers"
	LimitSignIns   Limit = "sign_ins"
)

// Limits are all there are.
func Limits() []Limit {
	return []Limit{LimitRequests, LimitEvents, LimitChanges, LimitStrangers, LimitSignIns}
}

// maxParties is how many parties of each kind are remembered. As many must be
// active at once before one of them gets more than its rate.
const maxParties = 20_000

// publicReads is how many tenants a second are read from the store for a network
// without a credential, at most.
const publicReads = 20

// party is an API key or a user. Their ids are of one form, and never the same.
type party [16]byte

func partyOf(p *auth.Principal) party {
	if p.Session != nil {
		// Not the session: a user may begin as many as there is time for.
		return party(p.Session.User.ID)
	}
	return party(p.Key)
}

// limits holds everybody to the RateLimits.
type limits struct {
	requests, events *ratelimit.Limits[party]
	changes          *ratelimit.Limits[id.Tenant]
	// strangers, and among them those who have the store read something.
	strangers, reads *ratelimit.Limits[netip.Prefix]

	now     func() time.Time
	limited func(Limit)
}

func newLimits(o *Options) *limits {
	return &limits{
		requests:  ratelimit.New[party](o.RateLimits.Requests, maxParties),
		events:    ratelimit.New[party](o.RateLimits.Events, maxParties),
		changes:   ratelimit.New[id.Tenant](o.RateLimits.Changes, maxParties),
		strangers: ratelimit.New[netip.Prefix](o.RateLimits.Strangers, maxParties),
		reads:     ratelimit.New[netip.Prefix](ratelimit.Rate{PerSecond: publicReads, AtOnce: publicReads}, maxParties),
		now:       o.Now, limited: o.RateLimited,
	}
}

// stranger lets somebody in who needs no credential, or not.
func (l *limits) stranger(from netip.Prefix) error {
	return l.refuse(LimitStrangers, l.strangers.Allow(from, l.now()))
}

// mayGuess says whether a credential that nobody here knows may be looked up. Those
// that are known are not asked: a stranger who guesses keeps nobody out who works
// from the same network.
func (l *limits) mayGuess(from netip.Prefix) error {
	return l.refuse(LimitStrangers, l.strangers.Wait(from, l.now()))
}

// guessed notes that a credential was none.
func (l *limits) guessed(from netip.Prefix) { l.strangers.Take(from, 1, l.now()) }

// mayRead says whether the store may be read for somebody without a credential.
func (l *limits) mayRead(from netip.Prefix) error {
	return l.refuse(LimitStrangers, l.reads.Allow(from, l.now()))
}

// known lets somebody do what an endpoint does, or not.
func (l *limits) known(p *auth.Principal, e *endpoint) error {
	if p.Operator {
		return nil
	}
	if e.publishes() {
		// Each event counts. How many there are is known when they are read.
		return l.refuse(LimitEvents, l.events.Allow(partyOf(p), l.now()))
	}
	return l.refuse(LimitRequests, l.requests.Allow(partyOf(p), l.now()))
}

// batch counts the events of a request, of which the first has been.
func (l *limits) batch(p *auth.Principal, n int) {
	if !p.Operator {
		l.events.Take(partyOf(p), n-1, l.now())
	}
}

// change lets a tenant have something changed, or not.
func (l *limits) change(p *auth.Principal) error {
	if p.Operator {
		return nil
	}
	return l.refuse(LimitChanges, l.changes.Allow(p.Tenant, l.now()))
}

// refuse is the error of who must wait, nil if nobody must.
func (l *limits) refuse(by Limit, wait time.Duration) error {
	if wait == 0 {
		return nil
	}
	l.limited(by)
	message := "Too many requests"
	switch by {
	case LimitRequests:
		message = "Too many requests with this credential"
	case LimitEvents:
		message = "Too many events are published with this credential"
	case LimitChanges:
		message = "Too many changes in this tenant"
	case LimitStrangers:
		message = "Too many requests without a valid credential from your network"
	case LimitSignIns: // says so itself
	}
	return &hook.Error{Code: hook.CodeRateLimited, Message: message + "; wait as long as Retry-After says", RetryAfter: wait}
}

const headerForwardedFor = "X-Forwarded-For"

// clientAddress is where a request came from: the other end of the connection, or
// what that says if it is a proxy of ours. Proxies append whom they talk to, so the
// list is read from its end; what stands before the first that is no proxy of ours
// is hearsay. Not valid where the other end has no IP address.
func clientAddress(r *http.Request, proxies []netip.Prefix) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	client := plain(ap.Addr())
	if len(proxies) == 0 {
		return client
	}
	lines := r.Header[headerForwardedFor]
	for i := len(lines) - 1; i >= 0; i-- {
		for rest, more := lines[i], true; more; {
			var entry string
			if !contains(proxies, client) {
				return client
			}
			if at := strings.LastIndexByte(rest, ','); at >= 0 {
				rest, entry = rest[:at], rest[at+1:]
			} else {
				entry, more = rest, false
			}
			addr, ok := parseForwarded(strings.Trim(entry, " \t"))
			if !ok {
				return client
			}
			client = addr
		}
	}
	return client
}

// parseForwarded reads an address as proxies write it: some with a port.
func parseForwarded(s string) (netip.Addr, bool) {
	if addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")); err == nil {
		return plain(addr), true
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return plain(ap.Addr()), true
	}
	return netip.Addr{}, false
}

func plain(addr netip.Addr) netip.Addr { return addr.Unmap().WithZone("") }

func contains(networks []netip.Prefix, addr netip.Addr) bool {
	for _, n := range networks {
		if n.Contains(addr) {
			return true
		}
	}
	return false
}
