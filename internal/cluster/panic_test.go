package cluster_test

import (
	"context"
	"log/slog"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plinqx/hypha/internal/cluster"
	"github.com/plinqx/hypha/internal/contain"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// panicking is a world whose parts panic while they are told to.
type panicking struct {
	*world
	beat, moved, paused atomic.Bool
}

func (p *panicking) Beat(ctx context.Context) (*store.Pulse, error) {
	if p.beat.Load() {
		panic("whatever it is")
	}
	return p.world.Beat(ctx)
}

func (p *panicking) Moved(ctx context.Context, tenant id.Tenant, version int64) error {
	if p.moved.Load() {
		panic("whatever it is")
	}
	return p.world.Moved(ctx, tenant, version)
}

func (p *panicking) PausedElsewhere(mark uint64, tenant id.Tenant, webhook id.Webhook, until time.Time) {
	if p.paused.Load() {
		panic("whatever it is")
	}
	p.world.PausedElsewhere(mark, tenant, webhook, until)
}

// A beat that panics was missed, and a change that could not be read for a panic is
// read again; but a node that did not take in what it was told ends.
func TestPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var counted, ended atomic.Int32
		p := &panicking{world: &world{node: 1, peers: make(map[int64]time.Time), notices: make(chan struct{}, 1)}}
		c := cluster.New(cluster.Options{
			Nodes: p, Clock: cluster.NewClock(time.Now), Logger: slog.New(slog.DiscardHandler),
			Guard: contain.New(contain.Options{
				Logger: slog.New(slog.DiscardHandler), Counted: func(contain.Where) { counted.Add(1) }, End: func() { ended.Add(1); runtime.Goexit() },
			}),
		})
		if err := c.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		defer c.Stop()
		c.Attach(cluster.Parts{Committer: p, Lanes: p, Catalog: p, Jobs: p})
		p.beat.Store(true)
		pass(4 * time.Second)
		if c.MaySend() || counted.Load() < 3 {
			t.Errorf("may send: %t; counted %d", c.MaySend(), counted.Load())
		}
		p.beat.Store(false)
		pass(2 * time.Second)
		if !c.MaySend() {
			t.Error("it may not send again")
		}

		p.told()
		p.moved.Store(true)
		p.do(func() { p.pulse.Tenants = []store.TenantChange{{Tenant: tenant, Version: 7}} })
		pass(2 * time.Second)
		p.do(func() { p.pulse.Tenants = nil })
		p.moved.Store(false)
		counted.Store(0)
		pass(2 * time.Second)
		found := false
		for _, line := range p.told() {
			found = found || line == "moved 1 to 7"
		}
		if !found || ended.Load() != 0 {
			t.Errorf("read again: %t; ended %d", found, ended.Load())
		}

		p.paused.Store(true)
		p.do(func() { p.pulse.Lanes = []store.LaneChange{{LaneKey: lane, PausedUntil: time.Now()}} })
		pass(2 * time.Second)
		if ended.Load() != 1 {
			t.Errorf("ended %d times", ended.Load())
		}
	})
}
