package api

import (
	"sync"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
)

// bodies is the account of the memory that bodies take. A tenant may take half
// of what the others leave, so that one that sends a lot, or sends slowly,
// leaves room for everybody else.
type bodies struct {
	allowed int64

	mu      sync.Mutex
	taken   int64
	tenants map[id.Tenant]int64
}

func newBodies(allowed int64) *bodies {
	return &bodies{allowed: allowed, tenants: make(map[id.Tenant]int64)}
}

// hold takes memory for a tenant, or says why it may not.
func (b *bodies) hold(tenant id.Tenant, n int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	mine := b.tenants[tenant]
	switch {
	case b.taken+n > b.allowed:
		return hook.Unavailable(time.Second, nil, "Too much is being sent at once; try again")
	// A lone request that is within its own bounds is not what fills the memory.
	case mine > 0 && mine+n > (b.allowed-b.taken+mine)/2:
		return &hook.Error{Code: hook.CodeRateLimited, RetryAfter: time.Second, Message: "This tenant is sending too much at once; try again"}
	}
	b.taken += n
	b.tenants[tenant] = mine + n
	return nil
}

// release gives back what hold took.
func (b *bodies) release(tenant id.Tenant, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.taken -= n
	if left := b.tenants[tenant] - n; left > 0 {
		b.tenants[tenant] = left
	} else {
		delete(b.tenants, tenant)
	}
}
