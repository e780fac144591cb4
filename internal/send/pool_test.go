package send

import (
	"errors"
	"io"
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

// TestPoolModel holds the lists to what a plain slice says: the newest is taken,
// the longest unused goes, and a host's connections are nobody else's.
func TestPoolModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Now()
		p := newPool(func() time.Time { return now })
		defer p.close()
		hosts := []host{{tenant: id.Tenant{1}, name: "a"}, {tenant: id.Tenant{1}, name: "b"}, {tenant: id.Tenant{1}, name: "a", secure: true}, {tenant: id.Tenant{2}, name: "a"}}
		var kept []*conn // the longest unused first
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			h := rapid.SampledFrom(hosts).Draw(t, "host")
			if rapid.Bool().Draw(t, "put") {
				c, _ := unused(h, now)
				p.put(c, now)
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
			if got := p.take(h, now); got != want {
				t.Fatalf("took %p, want %p", got, want)
			}
		}
		var got []*conn
		for c := p.all.first; c != nil; c = c.at[ofAll].next {
			got = append(got, c)
		}
		if !slices.Equal(got, kept) || p.all.n != len(kept) {
			t.Fatalf("%d are kept, want %d", p.all.n, len(kept))
		}
	})
}

// TestPoolBounds: a tenant keeps so many, and all of them so many.
func TestPoolBounds(t *testing.T) {
	now := time.Now()
	p := newPool(func() time.Time { return now })
	defer p.close()
	var all []*silent
	for n := range 4 * maxIdleTenant {
		// The first two tenants and then a third, each with many hosts.
		tenant := id.Tenant{byte(min(n/maxIdleTenant, 2))}
		c, s := unused(host{tenant: tenant, name: string(rune('a' + n%7))}, now)
		p.put(c, now)
		all = append(all, s)
		if p.all.n > maxIdle || p.tenants[tenant].n > maxIdleTenant {
			t.Fatalf("%d are kept, %d of one tenant", p.all.n, p.tenants[tenant].n)
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

// TestPoolLife: what nobody comes to take is closed, and nothing is left that
// would have to be.
func TestPoolLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(time.Now)
		h := host{name: "a"}
		c, s := unused(h, time.Now())
		p.put(c, time.Now())
		time.Sleep(idleLife - time.Second)
		if s.closed.Load() {
			t.Error("it was closed before its time")
		}
		time.Sleep(sweepEvery + time.Second)
		synctest.Wait()
		if !s.closed.Load() || p.all.n != 0 || len(p.hosts) != 0 || len(p.tenants) != 0 {
			t.Error("it is still there")
		}
		// A sweep need not have come.
		c, s = unused(h, time.Now())
		p.put(c, time.Now())
		p.mu.Lock()
		c.used = c.used.Add(-idleLife)
		p.mu.Unlock()
		if p.take(h, time.Now()) != nil || !s.closed.Load() {
			t.Error("it was used after its time")
		}
		// Neither is one in use that is too old when it comes back.
		c, s = unused(h, time.Now())
		time.Sleep(connectionLife + time.Second)
		p.put(c, time.Now())
		if p.take(h, time.Now()) != nil || !s.closed.Load() {
			t.Error("it outlived what a connection may")
		}
		p.close()
	})
}

// TestPoolClose: closing ends all, also what comes back later, and waits for a
// sweep.
func TestPoolClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 100 {
			p := newPool(time.Now)
			var all []*silent
			var putting sync.WaitGroup
			for range 10 {
				c, s := unused(host{name: "a"}, time.Now())
				all = append(all, s)
				putting.Go(func() { p.put(c, time.Now()) })
			}
			p.close()
			putting.Wait()
			for _, s := range all {
				if !s.closed.Load() {
					t.Fatal("one is open")
				}
			}
		}
	})
}

// overPipe is a connection over which HTTP/2 has begun, to a receiver that says
// nothing.
func overPipe(t *testing.T, h host, born time.Time) *conn {
	t.Helper()
	ours, theirs := net.Pipe()
	var reading sync.WaitGroup
	reading.Go(func() { _, _ = io.Copy(io.Discard, theirs) })
	t.Cleanup(func() {
		_ = ours.Close()
		reading.Wait()
	})
	transport, err := newTransport()
	if err != nil {
		t.Fatal(err)
	}
	c := newConn(ours)
	c.host, c.born, c.http2, c.tls = h, born, true, &records{Conn: ours, meter: newMeter()}
	if c.frames, err = transport.NewClientConn(c.Conn); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestPoolShares: one of HTTP/2 is had by many, belongs to the unused ones when
// nobody has it, and is nobody's any more once it is closed, for whatever reason.
func TestPoolShares(t *testing.T) {
	h := host{secure: true, name: "a"}
	counts := func(p *pool) (unused, shared int) {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.all.n, len(p.shared)
	}
	gone := func(t *testing.T, p *pool, c *conn) {
		t.Helper()
		if _, err := c.Write(nil); !errors.Is(err, io.ErrClosedPipe) {
			t.Error("it is open")
		}
		if p.take(h, time.Now()) != nil {
			t.Error("it is had again")
		}
		if unused, shared := counts(p); unused != 0 || shared != 0 {
			t.Errorf("it is still there: %d unused, %d shared", unused, shared)
		}
	}
	for name, test := range map[string]func(t *testing.T, p *pool, c *conn){
		"nobody has it for long": func(t *testing.T, _ *pool, _ *conn) {
			t.Helper()
			time.Sleep(idleLife + sweepEvery + time.Second)
			synctest.Wait()
		},
		"it is old when it is given back": func(t *testing.T, p *pool, c *conn) {
			t.Helper()
			if p.take(h, time.Now()) != c {
				t.Fatal("it can't be had")
			}
			later := time.Now().Add(connectionLife + time.Second)
			if p.take(h, later) != nil {
				t.Error("it is had again though it is old")
			}
			p.leave(c, later, true)
		},
		"it is not fit": func(t *testing.T, p *pool, c *conn) {
			t.Helper()
			if p.take(h, time.Now()) != c {
				t.Fatal("it can't be had")
			}
			p.leave(c, time.Now(), false)
		},
		"it is retired": func(t *testing.T, p *pool, c *conn) {
			t.Helper()
			if p.take(h, time.Now()) != c {
				t.Fatal("it can't be had")
			}
			p.retire(c)
			if p.take(h, time.Now()) != nil || p.enter(c) {
				t.Error("it is had again though it is retired")
			}
			p.leave(c, time.Now(), true)
		},
		"there are too many": func(_ *testing.T, p *pool, _ *conn) {
			for range maxIdleTenant {
				other, _ := unused(host{name: "b"}, time.Now())
				p.put(other, time.Now())
			}
			for p.take(host{name: "b"}, time.Now()) != nil {
			}
		},
		"the pool is closed": func(_ *testing.T, p *pool, _ *conn) { p.close() },
		"the pool is closed while it is in use": func(t *testing.T, p *pool, c *conn) {
			t.Helper()
			if p.take(h, time.Now()) != c {
				t.Fatal("it can't be had")
			}
			p.close()
			p.leave(c, time.Now(), true)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPool(time.Now)
				defer p.close()
				c := overPipe(t, h, time.Now())
				p.own(c)
				if p.take(h, time.Now()) != nil {
					t.Error("it is had by another before it is shared")
				}
				p.share(c, time.Now())
				p.share(c, time.Now()) // which is no more
				if unused, _ := counts(p); unused != 0 || p.take(host{secure: true, name: "b"}, time.Now()) != nil {
					t.Error("it is unused, or had for another host")
				}
				if p.take(h, time.Now()) != c || c.attempts != 2 {
					t.Fatal("it can't be had by two")
				}
				p.leave(c, time.Now(), false)
				p.leave(c, time.Now(), true)
				if unused, _ := counts(p); unused != 1 {
					t.Fatalf("%d are unused", unused)
				}
				test(t, p, c)
				gone(t, p, c)
			})
		})
	}
}
