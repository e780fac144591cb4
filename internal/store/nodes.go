package store

import (
	"context"
	"time"

	"github.com/plinqx/hypha/internal/id"
)

// Nodes is what a store that several processes share has besides. Each process is
// a node: what it has in memory is marked with its incarnation, and nobody else
// sends it while its lease lasts.
type Nodes interface {
	// Node is this process's incarnation, for people and for the log.
	Node() int64
	// Beat renews this node's lease and reads what has happened meanwhile. It is
	// ErrFenced if the lease was ended by others: the node must give up all that
	// it has in memory and Join.
	Beat(ctx context.Context) (*Pulse, error)
	// Join makes this process a node of a new incarnation.
	Join(ctx context.Context) error
	// Leave ends the lease and frees what this node holds.
	Leave(ctx context.Context) error
	// TakeOver ends the lease of a node and frees what it held, if its last beat
	// is older than a time by the database's clock. It reports false if it is
	// not, or if somebody else was faster.
	TakeOver(ctx context.Context, node int64, silent time.Duration) (bool, error)
	// Release frees what is marked as this node's of a webhook and is not held:
	// it was given back to the disk. It is called by the committer (see Queue).
	Release(ctx context.Context, tenant id.Tenant, webhook id.Webhook, held func(id.Delivery) bool) error
	// SetBreaker tells the other nodes until when the breaker of a webhook is
	// open; zero: it is closed.
	SetBreaker(ctx context.Context, tenant id.Tenant, webhook id.Webhook, until time.Time) error
	// Notices sends a value soon after another node changed something that Beat
	// would tell of. It is a courtesy: whoever beats once a second misses
	// nothing without it. It is closed when the store is.
	Notices() <-chan struct{}
}

// Pulse is what a node learns with its beat.
type Pulse struct {
	// Now is the database's clock, when the beat was written.
	Now time.Time
	// Peers are the other nodes that have a lease.
	Peers []Peer
	// Tenants whose configuration changed, and lanes that did, in a time that
	// overlaps with that of the beat before: the same change is told several
	// times, and none is missed.
	Tenants []TenantChange
	Lanes   []LaneChange
	// Discards are all webhooks whose queue is being discarded, by any node.
	Discards []LaneKey
	// Orphans is how many jobs nobody works off: RunningJobs takes them.
	Orphans int
}

// Peer is another node.
type Peer struct {
	Node   int64
	Name   string
	Silent time.Duration // since its last beat, by the database's clock
}

// TenantChange says at which version a tenant's configuration is now; 0 for a
// tenant that was removed.
type TenantChange struct {
	Tenant  id.Tenant
	Version int64
}

// LaneKey names a lane.
type LaneKey struct {
	Tenant  id.Tenant
	Webhook id.Webhook
}

// LaneChange says what holds a lane back, on whichever node; zero times for
// nothing.
type LaneChange struct {
	LaneKey
	PausedUntil, BreakerUntil time.Time
}
