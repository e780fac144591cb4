package send

import (
	"slices"
	"sync"
	"time"

	"github.com/plinqx/hypha/internal/id"
)

// connectionLife is how long a connection is used at most, so that a name that
// moved to another address is followed.
const connectionLife = 5 * time.Minute

// What is kept of connections that nobody uses. Beyond it those go that were
// unused longest.
const (
	maxIdle       = 1024 // in all: as many as there are slots, unless an operator wants other
	maxIdleTenant = 512  // as many of those slots as a tenant alone may have
	idleLife      = 90 * time.Second
	sweepEvery    = 15 * time.Second
)

// host is whom a connection leads to, and whose it is: a tenant never uses
// another's.
type host struct {
	tenant id.Tenant
	secure bool
	name   string // with its port, as the URL has it
}

// pool keeps connections. One of HTTP/1.1 is in it between attempts; a host's are
// taken newest first, so that what a peak has left over grows old and goes. One of
// HTTP/2 is in it as long as attempts may share it.
type pool struct {
	now func() time.Time

	mu       sync.Mutex
	closed   bool
	all      order // the unused ones
	tenants  map[id.Tenant]*order
	hosts    map[host]*order  // without those of HTTP/2
	shared   map[host][]*conn // those of HTTP/2, unused or not, in the order in which they came
	timer    *time.Timer      // the next sweep; nil if nothing is unused
	sweeping sync.WaitGroup
}

func newPool(now func() time.Time) *pool {
	return &pool{
		now: now, all: order{list: ofAll},
		tenants: make(map[id.Tenant]*order), hosts: make(map[host]*order), shared: make(map[host][]*conn),
	}
}

// take hands out a connection that a request can be written on; nil if there is
// none. It is given back by put, or by leave if it is one of HTTP/2.
func (p *pool) take(h host, now time.Time) *conn {
	if h.secure {
		if c := p.join(h, now); c != nil {
			return c
		}
	}
	for {
		c := p.pop(h)
		if c == nil || !c.old(now) && time.Since(c.used) < idleLife && c.quiet() {
			return c
		}
		c.discard()
	}
}

func (p *pool) pop(h host) *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	of := p.hosts[h]
	if of == nil || of.last == nil {
		return nil
	}
	c := of.last
	p.unlist(c)
	return c
}

// put takes a connection over. It must be fit for another request.
func (p *pool) put(c *conn, now time.Time) {
	p.mu.Lock()
	victim := p.keep(c, now)
	p.mu.Unlock()
	victim.discard()
}

// join has an attempt use a connection of HTTP/2 that others may be using too: the
// first that has room. What asks the connection itself is done without p.mu: how
// long that may take is up to HTTP/2, and every tenant waits for p.mu.
func (p *pool) join(h host, now time.Time) *conn {
	for _, c := range p.sharing(h) {
		switch {
		case c.old(now) || !p.enter(c):
		case c.frames.ReserveNewRequest():
			c.tls.meter.enter()
			return c
		default:
			p.release(c, now, false) // full, or it has ended
		}
	}
	return nil
}

func (p *pool) sharing(h host) []*conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.shared[h])
}

// share lets others use a connection of HTTP/2 too. Of those that were made together
// one with room is enough: the rest retire.
func (p *pool) share(c *conn, now time.Time) {
	for _, other := range p.admit(c) {
		if !other.old(now) && other.frames.CanTakeNewRequest() {
			p.retire(c)
			return
		}
	}
}

// admit returns those that came before it. It does so once.
func (p *pool) admit(c *conn) []*conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.shared || c.retired {
		return nil
	}
	c.shared = true
	before := slices.Clone(p.shared[c.host])
	p.shared[c.host] = append(p.shared[c.host], c)
	return before
}

// own is for the attempt that has made a connection of HTTP/2, and has it alone.
func (p *pool) own(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.attempts = 1
	c.tls.meter.enter()
}

// enter reports whether an attempt may still begin to use the connection.
func (p *pool) enter(c *conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.retired {
		return false
	}
	if c.attempts == 0 {
		p.unlist(c)
	}
	c.attempts++
	return true
}

// leave is for when an attempt is done with a connection of HTTP/2. One that is not
// to be kept is closed once nobody else waits for anything there.
func (p *pool) leave(c *conn, now time.Time, keep bool) {
	c.tls.meter.leave()
	p.release(c, now, keep)
}

func (p *pool) release(c *conn, now time.Time, keep bool) {
	p.mu.Lock()
	var victim *conn
	if c.attempts--; c.attempts == 0 {
		if victim = c; keep && c.shared && !c.retired {
			victim = p.keep(c, now)
		}
		p.drop(victim)
	}
	p.mu.Unlock()
	victim.discard()
}

// retire lets nobody begin to use a connection of HTTP/2 any more.
func (p *pool) retire(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drop(c)
}

// keep lists a connection as unused, and returns the one that has to go, if one
// has to. p.mu is held.
func (p *pool) keep(c *conn, now time.Time) *conn {
	c.used = time.Now()
	if p.closed || c.old(now) {
		return c
	}
	tenant := p.tenants[c.host.tenant]
	if tenant == nil {
		tenant = &order{list: ofTenant}
		p.tenants[c.host.tenant] = tenant
	}
	p.all.push(c)
	tenant.push(c)
	if !c.http2 {
		h := p.hosts[c.host]
		if h == nil {
			h = &order{list: ofHost}
			p.hosts[c.host] = h
		}
		h.push(c)
	}
	if p.timer == nil {
		p.arm()
	}
	var victim *conn
	switch {
	case tenant.n > maxIdleTenant:
		victim = tenant.first
	case p.all.n > maxIdle:
		victim = p.all.first
	default:
		return nil
	}
	p.unlist(victim)
	p.drop(victim)
	return victim
}

// unlist takes a connection out of the lists of unused ones. p.mu is held. Empty ones
// stay until a sweep: whoever has one connection would need new ones for each
// attempt.
func (p *pool) unlist(c *conn) {
	p.all.remove(c)
	p.tenants[c.host.tenant].remove(c)
	if !c.http2 {
		p.hosts[c.host].remove(c)
	}
}

// drop takes a connection, if it is one of HTTP/2, from those that are shared. p.mu
// is held.
func (p *pool) drop(c *conn) {
	if c == nil || !c.http2 || c.retired {
		return
	}
	c.retired = true
	rest := slices.DeleteFunc(p.shared[c.host], func(other *conn) bool { return other == c })
	if p.shared[c.host] = rest; len(rest) == 0 {
		delete(p.shared, c.host)
	}
}

// arm sees to the next sweep. p.mu is held.
func (p *pool) arm() {
	p.sweeping.Add(1)
	p.timer = time.AfterFunc(sweepEvery, func() {
		defer p.sweeping.Done()
		p.sweep()
	})
}

// sweep closes what has become too old to be used, since nobody may come to
// take it.
func (p *pool) sweep() {
	for _, c := range p.outdated(p.now()) {
		c.discard()
	}
}

func (p *pool) outdated(now time.Time) []*conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	var old []*conn
	for c := p.all.first; c != nil; c = c.at[ofAll].next {
		if c.old(now) || time.Since(c.used) >= idleLife {
			old = append(old, c)
		}
	}
	for _, c := range old {
		p.unlist(c)
		p.drop(c)
	}
	for h, of := range p.hosts {
		if of.n == 0 {
			delete(p.hosts, h)
		}
	}
	for t, of := range p.tenants {
		if of.n == 0 {
			delete(p.tenants, t)
		}
	}
	if p.timer = nil; p.all.n > 0 {
		p.arm()
	}
	return old
}

// close closes what is unused, and keeps nothing from now on.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	kept := p.empty()
	if p.timer != nil && p.timer.Stop() {
		p.sweeping.Done() // it never runs
	}
	p.timer = nil
	p.mu.Unlock()
	p.sweeping.Wait()
	for _, c := range kept {
		c.discard()
	}
}

// empty takes all out. p.mu is held.
func (p *pool) empty() []*conn {
	var kept []*conn
	for c := p.all.first; c != nil; c = p.all.first {
		p.unlist(c)
		p.drop(c)
		kept = append(kept, c)
	}
	return kept
}

// The lists that a connection stands in while it is unused.
const (
	ofAll = iota
	ofTenant
	ofHost
	lists
)

// place is a connection's in one of the lists.
type place struct{ before, next *conn }

// order is a list of connections, the longest unused first.
type order struct {
	list        int
	first, last *conn
	n           int
}

func (o *order) push(c *conn) {
	c.at[o.list] = place{before: o.last}
	if o.last == nil {
		o.first = c
	} else {
		o.last.at[o.list].next = c
	}
	o.last = c
	o.n++
}

func (o *order) remove(c *conn) {
	at := c.at[o.list]
	if at.before == nil {
		o.first = at.next
	} else {
		at.before.at[o.list].next = at.next
	}
	if at.next == nil {
		o.last = at.before
	} else {
		at.next.at[o.list].before = at.before
	}
	c.at[o.list] = place{}
	o.n--
}
