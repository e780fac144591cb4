package send

import (
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

// idle keeps connections between attempts. A host's are taken newest first, so
// that what a peak has left over grows old and goes.
type idle struct {
	now func() time.Time

	mu       sync.Mutex
	closed   bool
	all      order
	tenants  map[id.Tenant]*order
	hosts    map[host]*order
	timer    *time.Timer // the next sweep; nil if nothing is kept
	sweeping sync.WaitGroup
}

func newIdle(now func() time.Time) *idle {
	return &idle{now: now, all: order{list: ofAll}, tenants: make(map[id.Tenant]*order), hosts: make(map[host]*order)}
}

// take hands out a connection that a request can be written on; nil if there is
// none.
func (i *idle) take(h host, now time.Time) *conn {
	for {
		c := i.pop(h)
		if c == nil || !c.old(now) && time.Since(c.used) < idleLife && c.quiet() {
			return c
		}
		c.discard()
	}
}

func (i *idle) pop(h host) *conn {
	i.mu.Lock()
	defer i.mu.Unlock()
	of := i.hosts[h]
	if of == nil || of.last == nil {
		return nil
	}
	c := of.last
	i.remove(c)
	return c
}

// put takes a connection over. It must be fit for another request.
func (i *idle) put(c *conn, now time.Time) {
	c.used = time.Now()
	if !c.old(now) {
		c = i.push(c)
	}
	c.discard()
}

// push returns the connection that has to go, if one has to.
func (i *idle) push(c *conn) *conn {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		return c
	}
	tenant, h := i.tenants[c.host.tenant], i.hosts[c.host]
	if tenant == nil {
		tenant = &order{list: ofTenant}
		i.tenants[c.host.tenant] = tenant
	}
	if h == nil {
		h = &order{list: ofHost}
		i.hosts[c.host] = h
	}
	i.all.push(c)
	tenant.push(c)
	h.push(c)
	if i.timer == nil {
		i.arm()
	}
	var victim *conn
	switch {
	case tenant.n > maxIdleTenant:
		victim = tenant.first
	case i.all.n > maxIdle:
		victim = i.all.first
	default:
		return nil
	}
	i.remove(victim)
	return victim
}

// remove takes a connection out of its lists. i.mu is held. Empty ones stay until a sweep:
// whoever has one connection would need new ones for each attempt.
func (i *idle) remove(c *conn) {
	i.all.remove(c)
	i.tenants[c.host.tenant].remove(c)
	i.hosts[c.host].remove(c)
}

// arm sees to the next sweep. i.mu is held.
func (i *idle) arm() {
	i.sweeping.Add(1)
	i.timer = time.AfterFunc(sweepEvery, func() {
		defer i.sweeping.Done()
		i.sweep()
	})
}

// sweep closes what has become too old to be used, since nobody may come to
// take it.
func (i *idle) sweep() {
	for _, c := range i.outdated(i.now()) {
		c.discard()
	}
}

func (i *idle) outdated(now time.Time) []*conn {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		return nil
	}
	var old []*conn
	for c := i.all.first; c != nil; c = c.at[ofAll].next {
		if c.old(now) || time.Since(c.used) >= idleLife {
			old = append(old, c)
		}
	}
	for _, c := range old {
		i.remove(c)
	}
	for h, of := range i.hosts {
		if of.n == 0 {
			delete(i.hosts, h)
		}
	}
	for t, of := range i.tenants {
		if of.n == 0 {
			delete(i.tenants, t)
		}
	}
	if i.timer = nil; i.all.n > 0 {
		i.arm()
	}
	return old
}

// close closes what is kept, and keeps nothing from now on.
func (i *idle) close() {
	i.mu.Lock()
	i.closed = true
	kept := i.empty()
	if i.timer != nil && i.timer.Stop() {
		i.sweeping.Done() // it never runs
	}
	i.timer = nil
	i.mu.Unlock()
	i.sweeping.Wait()
	for _, c := range kept {
		c.discard()
	}
}

// empty takes all out. i.mu is held.
func (i *idle) empty() []*conn {
	var kept []*conn
	for c := i.all.first; c != nil; c = i.all.first {
		i.remove(c)
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
