package catalog

import (
	"context"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
)

// What follows is for a store that several processes share (package cluster): what
// is held must follow what the others change.

// Moved is told that a tenant's configuration is at a version, zero for a tenant
// that was removed. What is held is read anew if it is older, and the observers are
// told of each webhook that changed, appeared or went. A tenant that is not held is
// left alone. The error is the store's: what was told is to be told again.
func (c *Catalog) Moved(ctx context.Context, tenant id.Tenant, version int64) error {
	e := c.known(tenant)
	if e == nil {
		return nil
	}
	if version == 0 {
		e.mu.Lock()
		gone := differ(e.told, nil)
		c.forget(tenant)
		e.mu.Unlock()
		for _, webhook := range gone {
			c.notify(tenant, webhook)
		}
		return nil
	}
	e.mu.Lock()
	held := e.told != nil
	e.mu.Unlock()
	if !held {
		return nil
	}
	return c.again(ctx, tenant, func(held *Snapshot, _ time.Time) bool { return held != nil && held.Version >= version })
}

// Renew reads all anew that is held, because there was a time in which nobody told
// what others changed. Until a tenant has been read, who asks for it waits for that.
// The error is the store's: it is to be called again.
func (c *Catalog) Renew(ctx context.Context) error {
	c.mu.RLock()
	tenants := make([]id.Tenant, 0, len(c.tenants))
	for tenant := range c.tenants {
		tenants = append(tenants, tenant)
	}
	c.mu.RUnlock()
	for _, tenant := range tenants {
		if e := c.known(tenant); e != nil {
			e.mu.Lock()
			e.snap.Store(nil)
			e.mu.Unlock()
		}
	}
	for _, tenant := range tenants {
		if err := c.again(ctx, tenant, func(held *Snapshot, _ time.Time) bool { return held != nil }); err != nil {
			return err
		}
	}
	return nil
}

// again loads a tenant; that it is gone is no error.
func (c *Catalog) again(ctx context.Context, tenant id.Tenant, enough func(*Snapshot, time.Time) bool) error {
	_, err := c.load(ctx, tenant, enough)
	if hook.CodeOf(err) == hook.CodeNotFound {
		return nil
	}
	return err
}

// recheckEach is how often a tenant is read for want of something at most.
const recheckEach = time.Second

// Recheck answers a tenant's configuration as the store has it, or had it less than
// a second ago: for who misses something that another process may just have made.
func (c *Catalog) Recheck(ctx context.Context, tenant id.Tenant) (*Snapshot, error) {
	return c.load(ctx, tenant, func(held *Snapshot, read time.Time) bool {
		return held != nil && time.Since(read) < recheckEach
	})
}

// Mark is a moment in what this process does to webhooks. What was read from the
// store after a Mark tells nothing of a webhook that was paused here since;
// PausedElsewhere passes over it.
func (c *Catalog) Mark() uint64 { return c.marks.Load() }

// PausedElsewhere holds until when a webhook is held back, as it stands in the
// store, whoever wrote it. Mark is from before that was read. The same may be told
// many times; the observers are told once.
func (c *Catalog) PausedElsewhere(mark uint64, tenant id.Tenant, webhook id.Webhook, until time.Time) {
	e := c.known(tenant)
	if e == nil {
		return
	}
	if e.pausedElsewhere(mark, webhook, until) {
		c.notify(tenant, webhook)
	}
}

// pausedElsewhere reports whether it is news.
func (e *entry) pausedElsewhere(mark uint64, webhook id.Webhook, until time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	held := e.snap.Load()
	if held == nil {
		return false // it is read with the rest
	}
	w, ok := held.webhooks[webhook]
	if !ok || e.paused[webhook] > mark || w.PausedUntil.Equal(until) {
		return false
	}
	next := held.clone()
	pause(webhook, until)(next)
	next.build()
	e.snap.Store(next)
	e.told = next
	return true
}
