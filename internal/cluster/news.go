package cluster

import (
	"context"
	"log/slog"
	"time"

	"github.com/plinqx/hypha/internal/contain"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// What a beat brings is applied by two goroutines, so that no beat waits for it: one
// for what is urgent and short, one for what may take long. What fails is tried again
// with the next beat.

// news is what other nodes did, or failed to do. The same is told several times, and
// the latest counts.
type news struct {
	dead    map[int64]store.Peer
	lanes   map[store.LaneKey]laneNews
	tenants map[id.Tenant]int64 // the version; 0: removed
}

type laneNews struct {
	marks
	store.LaneChange
}

func newNews() news {
	return news{dead: make(map[int64]store.Peer), lanes: make(map[store.LaneKey]laneNews), tenants: make(map[id.Tenant]int64)}
}

func (n *news) empty() bool { return len(n.dead)+len(n.lanes)+len(n.tenants) == 0 }

func (n *news) tenant(t store.TenantChange) {
	if version, ok := n.tenants[t.Tenant]; !ok || t.Version == 0 || version != 0 && version < t.Version {
		n.tenants[t.Tenant] = t.Version
	}
}

// whenever runs f each time that it is woken.
func (c *Cluster) whenever(wake chan struct{}, f func()) {
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-wake:
			f()
		}
	}
}

// tell applies the news. Dead nodes come first, also before each tenant, for whose
// configuration the store has to be asked.
func (c *Cluster) tell() {
	p := c.attached()
	c.bury()
	c.mu.Lock()
	lanes, tenants := c.news.lanes, c.news.tenants
	c.news.lanes, c.news.tenants = make(map[store.LaneKey]laneNews), make(map[id.Tenant]int64)
	c.mu.Unlock()
	for k, l := range lanes {
		p.Catalog.PausedElsewhere(l.marks.catalog, k.Tenant, k.Webhook, l.PausedUntil)
		p.Lanes.BreakerElsewhere(l.marks.lanes, k.Tenant, k.Webhook, l.BreakerUntil)
	}
	for tenant, version := range tenants {
		c.bury()
		err := c.o.Guard.Try(contain.Background, "reading what another node changed", func() error { return p.Catalog.Moved(c.ctx, tenant, version) })
		if err != nil {
			c.log().Warn("a tenant's configuration has changed and can't be read; trying again", "tenant", tenant, "err", err)
			c.mu.Lock()
			c.news.tenant(store.TenantChange{Tenant: tenant, Version: version})
			c.mu.Unlock()
		}
	}
}

// bury takes over the nodes that are dead.
func (c *Cluster) bury() {
	c.mu.Lock()
	dead := c.news.dead
	if len(dead) > 0 {
		c.news.dead = make(map[int64]store.Peer)
	}
	c.mu.Unlock()
	for _, d := range dead {
		c.mu.Lock()
		lived := c.lived()
		c.mu.Unlock()
		if !lived {
			return // the next beats say whether it still is
		}
		ctx, cancel := context.WithTimeout(c.ctx, takeOverTime)
		var took bool
		err := c.o.Guard.Try(contain.Background, "taking over a node", func() (err error) {
			took, err = c.o.Nodes.TakeOver(ctx, d.Node, Lease)
			return err
		})
		cancel()
		switch {
		case err != nil:
			c.log().Warn("a node is silent, and its work could not be taken over; trying again", "node", d.Node, "name", d.Name, "err", err)
		case took:
			c.takeovers.Add(1)
			c.o.Logger.Warn("a node was silent for too long; its work was taken over", "node", d.Node, "name", d.Name, "silent", d.Silent.Round(time.Millisecond))
			c.mu.Lock()
			c.took[d.Node] = struct{}{}
			c.mu.Unlock()
			c.ask(chores{look: true, jobs: true})
		}
	}
}

// chores are what takes long.
type chores struct {
	renew     bool // read the whole configuration
	look      bool // for all that waits
	reconcile bool // for what waits too long
	jobs      bool // that nobody works off
}

func (w chores) any() bool { return w.renew || w.look || w.reconcile || w.jobs }

// ask wants chores done, and those that failed before.
func (c *Cluster) ask(want chores) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.put(want)
	if c.chores.any() {
		kick(c.survey)
	}
}

// put adds chores. c.mu is held.
func (c *Cluster) put(want chores) {
	c.chores.renew = c.chores.renew || want.renew
	c.chores.look = c.chores.look || want.look
	c.chores.reconcile = c.chores.reconcile || want.reconcile
	c.chores.jobs = c.chores.jobs || want.jobs
}

// work does the chores. Jobs come first: what is to be discarded must not be sent.
func (c *Cluster) work() {
	c.mu.Lock()
	p, todo := c.parts, c.chores
	c.chores = chores{}
	c.mu.Unlock()
	var failed chores
	if todo.jobs {
		if err := c.try("taking up jobs", p.Jobs.TakeUp); err != nil {
			failed.jobs = true
			c.log().Warn("the jobs that nobody works off can't be read; trying again", "err", err)
		}
	}
	if todo.renew {
		if err := c.try("reading the configuration anew", p.Catalog.Renew); err != nil {
			failed.renew = true
			c.log().Warn("the configuration can't be read anew; trying again", "err", err)
		}
	}
	if todo.look || todo.reconcile {
		look := p.Lanes.Reconcile
		if todo.look {
			look = p.Lanes.Look
		}
		if err := c.try("looking for what waits", look); err != nil {
			failed.look, failed.reconcile = todo.look, todo.reconcile
			c.log().Warn("what waits can't be looked for; trying again", "err", err)
		}
	}
	c.mu.Lock()
	c.put(failed)
	c.mu.Unlock()
}

// try does a chore. One that panics has failed.
func (c *Cluster) try(what string, chore func(context.Context) error) error {
	return c.o.Guard.Try(contain.Background, what, func() error { return chore(c.ctx) })
}

// log is for what failed, unless it is known that the database is away.
func (c *Cluster) log() *slog.Logger {
	if c.MaySend() && c.ctx.Err() == nil {
		return c.o.Logger
	}
	return slog.New(slog.DiscardHandler)
}
