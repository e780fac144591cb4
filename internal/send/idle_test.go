package send

import (
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/plinqx/hypha/internal/id"
)

// silent is a connection on which nothing comes.
type silent struct {
	net.Conn
	closed atomic.Bool
}

func (s *silent) Close() error { s.closed.Store(true); return nil }

func (s *silent) SetReadDeadline(time.Time) error { return nil }

func (s *silent) Read([]byte) (int, error) { return 0, os.ErrDeadlineExceeded }

func unused(h host, born time.Time) (*conn, *silent) {
	s := &silent{}
	c := newConn(s)
	c.host, c.born = h, born
	return c, s
}

// TestIdleModel holds the lists to what a plain slice says: the newest is taken,
// the longest unused goes, and a host's connections are nobody else's.
func TestIdleModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Now()
		i := newIdle(func() time.Time { return now })
		defer i.close()
		hosts := []host{{tenant: id.Tenant{1}, name: "a"}, {tenant: id.Tenant{1}, name: "b"}, {tenant: id.Tenant{1}, name: "a", secure: true}, {tenant: id.Tenant{2}, name: "a"}}
		var kept []*conn // the longest unused first
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			h := rapid.SampledFrom(hosts).Draw(t, "host")
			if rapid.Bool().Draw(t, "put") {
				c, _ := unused(h, now)
				i.put(c, now)
				kept = append(kept, c)
				continue
			}
			var want *conn
			for at := len(kept) - 1; at >= 0; at-- {
				if kept[at].host == h {
					want = kept[at]
					kept = slices.Delete(kept, at, at+1)
					break
				}
			}
			if got := i.take(h, now); got != want {
				t.Fatalf("took %p, want %p", got, want)
			}
		}
		var got []*conn
		for c := i.all.first; c != nil; c = c.at[ofAll].next {
			got = append(got, c)
		}
		if !slices.Equal(got, kept) || i.all.n != len(kept) {
			t.Fatalf("%d are kept, want %d", i.all.n, len(kept))
		}
	})
}

// TestIdleBounds: a tenant keeps so many, and all of them so many.
func TestIdleBounds(t *testing.T) {
	now := time.Now()
	i := newIdle(func() time.Time { return now })
	defer i.close()
	var all []*silent
	for n := range 4 * maxIdleTenant {
		// The first two tenants and then a third, each with many hosts.
		tenant := id.Tenant{byte(min(n/maxIdleTenant, 2))}
		c, s := unused(host{tenant: tenant, name: string(rune('a' + n%7))}, now)
		i.put(c, now)
		all = append(all, s)
		if i.all.n > maxIdle || i.tenants[tenant].n > maxIdleTenant {
			t.Fatalf("%d are kept, %d of one tenant", i.all.n, i.tenants[tenant].n)
		}
	}
	// The third took the place of the first, and then of its own.
	for n, s := range all {
		tenant := n / maxIdleTenant
		if want := tenant == 0 || tenant == 2; s.closed.Load() != want {
			t.Fatalf("number %d is closed: %t, want %t", n, !want, want)
		}
	}
}

// TestIdleLife: what nobody comes to take is closed, and nothing is left that
// would have to be.
func TestIdleLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdle(time.Now)
		h := host{name: "a"}
		c, s := unused(h, time.Now())
		i.put(c, time.Now())
		time.Sleep(idleLife - time.Second)
		if s.closed.Load() {
			t.Error("it was closed before its time")
		}
		time.Sleep(sweepEvery + time.Second)
		synctest.Wait()
		if !s.closed.Load() || i.all.n != 0 || len(i.hosts) != 0 || len(i.tenants) != 0 {
			t.Error("it is still there")
		}
		// A sweep need not have come.
		c, s = unused(h, time.Now())
		i.put(c, time.Now())
		i.mu.Lock()
		c.used = c.used.Add(-idleLife)
		i.mu.Unlock()
		if i.take(h, time.Now()) != nil || !s.closed.Load() {
			t.Error("it was used after its time")
		}
		// Neither is one in use that is too old when it comes back.
		c, s = unused(h, time.Now())
		time.Sleep(connectionLife + time.Second)
		i.put(c, time.Now())
		if i.take(h, time.Now()) != nil || !s.closed.Load() {
			t.Error("it outlived what a connection may")
		}
		i.close()
	})
}

// TestIdleClose: closing ends all, also what comes back later, and waits for a
// sweep.
func TestIdleClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 100 {
			i := newIdle(time.Now)
			var all []*silent
			var putting sync.WaitGroup
			for range 10 {
				c, s := unused(host{name: "a"}, time.Now())
				all = append(all, s)
				putting.Go(func() { i.put(c, time.Now()) })
			}
			i.close()
			putting.Wait()
			for _, s := range all {
				if !s.closed.Load() {
					t.Fatal("one is open")
				}
			}
		}
	})
}
