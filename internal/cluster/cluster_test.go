package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/plinqx/hypha/internal/cluster"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

var (
	tenant  = id.Tenant{1}
	webhook = id.Webhook{2}
	lane    = store.LaneKey{Tenant: tenant, Webhook: webhook}
)

// ahead is how far the database's clock is ahead of ours, at first.
const ahead = time.Hour

// world is the store and all parts of the program that are told.
type world struct {
	mu   sync.Mutex
	node int64
	// down makes the database refuse, slow is how long an answer takes (half of it
	// there, half back), gone says that our lease was ended.
	down, gone bool
	slow       time.Duration
	ahead      time.Duration
	beatAt     time.Time // our last one
	peers      map[int64]time.Time
	pulse      store.Pulse
	notices    chan struct{}

	joinFails, lookFails, movedFails int
	taken                            bool // TakeOver finds that somebody was faster
	marks                            uint64
	lines                            []string
}

func (w *world) do(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *world) say(format string, args ...any) {
	w.lines = append(w.lines, fmt.Sprintf(format, args...))
}

// told are the lines since it was asked before.
func (w *world) told() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	lines := w.lines
	w.lines = nil
	return lines
}

func (w *world) wait(ctx context.Context) error {
	w.mu.Lock()
	slow := w.slow
	w.mu.Unlock()
	if slow > 0 {
		select {
		case <-time.After(slow / 2):
		case <-ctx.Done():
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if ctx.Err() != nil {
		return hook.Unavailable(time.Second, ctx.Err(), "The database did not answer in time")
	}
	if w.down {
		return hook.Unavailable(time.Second, errors.New("refused"), "The database can't be reached")
	}
	return nil
}

func (w *world) Node() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.node
}

func (w *world) Beat(ctx context.Context) (*store.Pulse, error) {
	if err := w.wait(ctx); err != nil {
		return nil, err
	}
	w.mu.Lock()
	if w.gone {
		w.mu.Unlock()
		return nil, hook.Unavailable(time.Second, store.ErrFenced, "joining")
	}
	w.beatAt = time.Now()
	p := w.pulse
	p.Now = time.Now().Add(w.ahead).Round(0)
	for node, at := range w.peers {
		p.Peers = append(p.Peers, store.Peer{Node: node, Name: "other", Silent: time.Since(at)})
	}
	w.mu.Unlock()
	return &p, w.wait(ctx)
}

func (w *world) Join(ctx context.Context) error {
	if err := w.wait(ctx); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.joinFails > 0 {
		w.joinFails--
		return hook.Unavailable(time.Second, nil, "away")
	}
	w.node++
	w.gone = false
	w.say("join")
	return nil
}

func (w *world) Leave(context.Context) error { return nil }

func (w *world) TakeOver(ctx context.Context, node int64, silent time.Duration) (bool, error) {
	if err := w.wait(ctx); err != nil {
		return false, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if at, ok := w.peers[node]; !ok || time.Since(at) <= silent || w.taken {
		return false, nil
	}
	w.say("take over %d", node)
	delete(w.peers, node)
	return true, nil
}

func (w *world) Release(_ context.Context, _ id.Tenant, webhook id.Webhook, held func(id.Delivery) bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.say("release %d, held %t", webhook[0], held(id.Delivery{1}))
	return nil
}

func (w *world) SetBreaker(context.Context, id.Tenant, id.Webhook, time.Time) error { return nil }
func (w *world) Notices() <-chan struct{}                                           { return w.notices }

// The parts.

func (w *world) Do(f func(context.Context)) {
	go f(context.Background())
}

func (w *world) Pump()        { w.do(func() { w.say("pump") }) }
func (w *world) Fence()       { w.do(func() { w.say("fence") }) }
func (w *world) Mark() uint64 { w.mu.Lock(); defer w.mu.Unlock(); return w.marks }
func (w *world) Held(id.Tenant, id.Webhook) func(id.Delivery) bool {
	return func(d id.Delivery) bool { return d == id.Delivery{1} }
}

func (w *world) Look(context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lookFails > 0 {
		w.lookFails--
		return hook.Unavailable(time.Second, nil, "away")
	}
	w.say("look")
	return nil
}

func (w *world) Reconcile(context.Context) error { w.do(func() { w.say("reconcile") }); return nil }
func (w *world) TakeUp(context.Context) error    { w.do(func() { w.say("jobs") }); return nil }

func (w *world) Discards(all []store.LaneKey) []store.LaneKey {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.say("discards %d", len(all))
	return all
}

func (w *world) BreakerElsewhere(mark uint64, _ id.Tenant, webhook id.Webhook, until time.Time) {
	w.do(func() { w.say("breaker %d until %d, mark %d", webhook[0], until.Unix(), mark) })
}

func (w *world) PausedElsewhere(mark uint64, _ id.Tenant, webhook id.Webhook, until time.Time) {
	w.do(func() { w.say("pause %d until %d, mark %d", webhook[0], until.Unix(), mark) })
}

func (w *world) Moved(_ context.Context, tenant id.Tenant, version int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.movedFails > 0 {
		w.movedFails--
		return hook.Unavailable(time.Second, nil, "away")
	}
	w.say("moved %d to %d", tenant[0], version)
	return nil
}

func (w *world) Renew(context.Context) error { w.do(func() { w.say("renew") }); return nil }

// run makes a node in a bubble of fake time.
func run(t *testing.T, do func(t *testing.T, w *world, c *cluster.Cluster, clock *cluster.Clock)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{node: 1, ahead: ahead, peers: make(map[int64]time.Time), notices: make(chan struct{}, 1)}
		clock := cluster.NewClock(time.Now)
		c := cluster.New(cluster.Options{Nodes: w, Clock: clock, Logger: slog.New(slog.DiscardHandler)})
		if err := c.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		defer c.Stop()
		c.Attach(cluster.Parts{Committer: w, Lanes: w, Catalog: w, Jobs: w})
		synctest.Wait()
		w.told()
		do(t, w, c, clock)
	})
}

// pass lets time go by.
func pass(d time.Duration) {
	time.Sleep(d) // of the fake clock
	synctest.Wait()
}

func TestAttemptsNeedAFreshBeat(t *testing.T) {
	for _, tc := range []struct {
		name string
		slow time.Duration
		// until is how long after the database has gone attempts may start.
		until time.Duration
	}{
		{"answers at once", 0, 3 * time.Second},
		// Half of a second passes before the beat is written, and as much after:
		// it counts from when it was sent.
		{"answers late", time.Second, 3 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			run(t, func(t *testing.T, w *world, c *cluster.Cluster, _ *cluster.Clock) {
				w.do(func() { w.slow = tc.slow })
				for range 100 {
					pass(100 * time.Millisecond)
					if !c.MaySend() {
						t.Fatal("attempts may not start although all is well")
					}
				}
				w.do(func() { w.down = true })
				gone := w.beatAt.Add(-tc.slow / 2) // when the last one was sent
				if tc.slow > 0 {
					gone = gone.Add(-time.Second) // what is on its way is lost
				}
				for c.MaySend() {
					pass(10 * time.Millisecond)
					if time.Since(gone) > tc.until+1100*time.Millisecond {
						t.Fatal("attempts may start without a lease")
					}
				}
				w.do(func() { w.down, w.slow = false, 0 })
				w.told()
				pass(2 * time.Second)
				if !c.MaySend() {
					t.Error("attempts may not start although the database is back")
				}
				if got := w.told(); len(got) == 0 || got[0] != "pump" {
					t.Errorf("it was told %v, want a pump first", got)
				}
			})
		})
	}
}

// The one promise that everything rests on: while this node may send, no other one
// that keeps the rules can have taken it over.
func TestNoAttemptAfterALease(t *testing.T) {
	run(t, func(t *testing.T, w *world, c *cluster.Cluster, _ *cluster.Clock) {
		for n := range 400 {
			w.do(func() {
				w.slow = time.Duration(n%9) * 700 * time.Millisecond
				w.down = n%7 == 3
			})
			pass(130 * time.Millisecond)
			w.mu.Lock()
			at := w.beatAt
			w.mu.Unlock()
			if c.MaySend() && time.Since(at) > cluster.Lease/2 {
				t.Fatalf("attempts may start %s after the last beat that was written", time.Since(at))
			}
		}
	})
}

func TestReadyWhileThereIsALease(t *testing.T) {
	run(t, func(t *testing.T, w *world, c *cluster.Cluster, _ *cluster.Clock) {
		pass(time.Minute)
		if err := c.Ready(); err != nil {
			t.Fatal(err)
		}
		w.do(func() { w.down = true })
		gone := time.Now()
		pass(4 * time.Second)
		if err := c.Ready(); err != nil {
			t.Errorf("not ready after 4 s, which a database takes to fail over: %v", err)
		}
		pass(3 * time.Second)
		err := c.Ready()
		if hook.CodeOf(err) != hook.CodeUnavailable || !strings.Contains(err.Error(), "since "+gone.Add(time.Second).UTC().Format(time.RFC3339)) && !strings.Contains(err.Error(), "since "+gone.UTC().Format(time.RFC3339)) {
			t.Errorf("after 7 s: %v", err)
		}
		w.do(func() { w.down = false })
		pass(time.Second)
		if err := c.Ready(); err != nil {
			t.Error(err)
		}
		// One that hangs is no better than one that refuses.
		w.do(func() { w.slow = time.Hour })
		pass(7500 * time.Millisecond)
		if err := c.Ready(); err == nil {
			t.Error("ready although the database hangs")
		}
	})
}

func TestSilentPeerIsTakenOver(t *testing.T) {
	run(t, func(t *testing.T, w *world, c *cluster.Cluster, _ *cluster.Clock) {
		pass(time.Minute)
		w.do(func() { w.peers[7] = time.Now() })
		died := time.Now()
		pass(5500 * time.Millisecond)
		if got := w.told(); slices.Contains(got, "take over 7") {
			t.Fatalf("taken over after 5.5 s: %v", got)
		}
		for !slices.Contains(w.told(), "take over 7") {
			if time.Since(died) > 10*time.Second {
				t.Fatal("not taken over within 10 s")
			}
			pass(10 * time.Millisecond)
		}
		if c.State().Takeovers != 1 {
			t.Errorf("%+v", c.State())
		}
	})
}

func TestWhatADeadNodeHadIsLookedFor(t *testing.T) {
	for name, tc := range map[string]struct {
		happens func(w *world)
		want    []string
	}{
		"taken over here":       {func(w *world) { w.peers[7] = time.Now().Add(-time.Minute) }, []string{"take over 7", "jobs", "look"}},
		"taken over by another": {func(w *world) { delete(w.peers, 8) }, []string{"jobs", "look"}},
		"another is faster":     {func(w *world) { w.peers[8], w.taken = time.Now().Add(-time.Minute), true }, nil},
		"orphans":               {func(w *world) { w.pulse.Orphans = 1 }, []string{"jobs", "jobs", "jobs"}},
		"a new node":            {func(w *world) { w.peers[9] = time.Now() }, nil},
		"looking fails":         {func(w *world) { delete(w.peers, 8); w.lookFails = 2 }, []string{"jobs", "look"}},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, w *world, _ *cluster.Cluster, _ *cluster.Clock) {
				alive := func() {
					if at, ok := w.peers[8]; ok && time.Since(at) < 2*time.Second {
						w.peers[8] = time.Now()
					}
				}
				w.do(func() { w.peers[8] = time.Now() })
				for range 10 {
					pass(time.Second)
					w.do(alive)
				}
				w.told()
				w.do(func() { tc.happens(w) })
				for range 3 {
					pass(time.Second)
					w.do(alive)
				}
				if diff := cmp.Diff(tc.want, w.told()); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			})
		})
	}
}

// All nodes lose the database at the same time, and none of them has anything of
// the others'.
func TestOutageOfTheDatabaseKillsNobody(t *testing.T) {
	for _, outage := range []time.Duration{4 * time.Second, 7 * time.Second, time.Minute} {
		t.Run(outage.String(), func(t *testing.T) {
			run(t, func(t *testing.T, w *world, c *cluster.Cluster, _ *cluster.Clock) {
				w.do(func() { w.peers[7] = time.Now() })
				for range 20 {
					pass(time.Second)
					w.do(func() { w.peers[7] = time.Now() })
				}
				w.do(func() { w.down = true })
				pass(outage)
				w.do(func() { w.down = false })
				// The other one is a little later than we are.
				pass(4 * time.Second)
				w.do(func() { w.peers[7] = time.Now() })
				for range 20 {
					pass(time.Second)
					w.do(func() { w.peers[7] = time.Now() })
				}
				if got := w.told(); slices.Contains(got, "take over 7") || !slices.Contains(got, "renew") && outage > 4*time.Second {
					t.Errorf("%v; want nobody taken over, and all read anew", got)
				}
				if s := c.State(); s.Takeovers != 0 || s.Fences != 0 {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

func TestFencedNodeJoinsAnew(t *testing.T) {
	run(t, func(t *testing.T, w *world, c *cluster.Cluster, _ *cluster.Clock) {
		pass(10 * time.Second)
		w.told()
		w.do(func() { w.gone, w.joinFails = true, 2 })
		pass(1100 * time.Millisecond)
		if c.MaySend() || c.Ready() == nil || !strings.Contains(c.Ready().Error(), "declared this one dead") {
			t.Errorf("it may send: %t, ready: %v", c.MaySend(), c.Ready())
		}
		pass(2 * time.Second)
		// All that it has is given up before it joins, each time.
		want := []string{"fence", "fence", "fence", "join", "pump", "jobs", "renew", "look"}
		if diff := cmp.Diff(want, w.told()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if s := c.State(); !c.MaySend() || c.Ready() != nil || s.Fences != 1 || s.Node != 2 {
			t.Errorf("may send: %t, ready: %v, %+v", c.MaySend(), c.Ready(), s)
		}
		// It knows nothing of the time before: it takes nobody over for a lease.
		w.do(func() { w.peers[7] = time.Now().Add(-time.Minute) })
		pass(4500 * time.Millisecond)
		if got := w.told(); slices.Contains(got, "take over 7") {
			t.Errorf("%v", got)
		}
		pass(4 * time.Second)
		if got := w.told(); !slices.Contains(got, "take over 7") {
			t.Errorf("%v", got)
		}
	})
}

func TestChangesElsewhereAreTold(t *testing.T) {
	run(t, func(t *testing.T, w *world, _ *cluster.Cluster, _ *cluster.Clock) {
		until := time.Unix(2_000_000_000, 0)
		w.do(func() {
			w.marks = 5
			w.pulse.Tenants = []store.TenantChange{{Tenant: tenant, Version: 3}, {Tenant: tenant, Version: 4}}
			w.pulse.Lanes = []store.LaneChange{{LaneKey: lane, PausedUntil: until, BreakerUntil: until.Add(time.Second)}}
		})
		pass(time.Second)
		if diff := cmp.Diff([]string{"pause 2 until 2000000000, mark 5", "breaker 2 until 2000000001, mark 5", "moved 1 to 4"}, w.told()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		// What can't be read is told again, also when the store tells no more.
		w.do(func() {
			w.pulse.Tenants, w.pulse.Lanes = []store.TenantChange{{Tenant: tenant, Version: 0}, {Tenant: tenant, Version: 5}}, nil
			w.movedFails = 1
		})
		pass(time.Second)
		w.do(func() { w.pulse.Tenants = nil })
		pass(2 * time.Second)
		if diff := cmp.Diff([]string{"moved 1 to 0"}, w.told()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func TestNoticesHurryTheBeat(t *testing.T) {
	run(t, func(t *testing.T, w *world, _ *cluster.Cluster, _ *cluster.Clock) {
		pass(500 * time.Millisecond)
		w.do(func() { w.pulse.Tenants = []store.TenantChange{{Tenant: tenant, Version: 3}} })
		w.notices <- struct{}{}
		synctest.Wait()
		if diff := cmp.Diff([]string{"moved 1 to 3"}, w.told()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		// A flood of them is read together.
		for range 1000 {
			w.notices <- struct{}{}
			pass(time.Millisecond)
		}
		if got := len(w.told()); got < 5 || got > 11 {
			t.Errorf("%d beats in a second of notices", got)
		}
		close(w.notices) // the store is closing
		pass(3 * time.Second)
		if got := len(w.told()); got < 2 || got > 4 {
			t.Errorf("%d beats in three seconds", got)
		}
	})
}

func TestDiscardsElsewhere(t *testing.T) {
	run(t, func(t *testing.T, w *world, _ *cluster.Cluster, _ *cluster.Clock) {
		pass(2500 * time.Millisecond)
		if got := w.told(); len(got) != 0 {
			t.Fatalf("%v", got)
		}
		w.do(func() { w.pulse.Discards = []store.LaneKey{lane} })
		pass(5 * time.Second)
		w.do(func() { w.pulse.Discards = nil })
		pass(5 * time.Second)
		// What comes back to the disk meanwhile is released too, now and then.
		want := []string{"discards 1", "release 2, held true", "discards 1", "discards 1", "discards 1", "release 2, held true", "discards 1", "discards 0"}
		if diff := cmp.Diff(want, w.told()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func TestReconcilesNowAndThen(t *testing.T) {
	run(t, func(t *testing.T, w *world, _ *cluster.Cluster, _ *cluster.Clock) {
		pass(5 * time.Minute)
		got := w.told()
		n := 0
		for _, line := range got {
			if line == "reconcile" {
				n++
			}
		}
		if n < 9 || n > 10 || len(got) != 2*n {
			t.Errorf("%v", got)
		}
	})
}

func TestClock(t *testing.T) {
	run(t, func(t *testing.T, w *world, c *cluster.Cluster, clock *cluster.Clock) {
		off := func() time.Duration { return clock.Now().Sub(time.Now().Add(ahead)).Abs() }
		if off() > 0 || c.State().ClockOffset != ahead {
			t.Errorf("off by %s, %+v", off(), c.State())
		}
		// Answers that are slow tell little, and change nothing that fits them.
		w.do(func() { w.slow = 1500 * time.Millisecond })
		last := clock.Now()
		for range 200 {
			pass(130 * time.Millisecond)
			if now := clock.Now(); now.Sub(last) != 130*time.Millisecond {
				t.Fatalf("it went on by %s in 130 ms", now.Sub(last))
			} else {
				last = now
			}
		}
		w.do(func() { w.down = true })
		pass(time.Hour)
		if off() > 0 {
			t.Errorf("off by %s after an hour without the database", off())
		}
		// Another machine is the database now, and its clock is right, or nearly.
		for _, o := range []struct{ ahead, want time.Duration }{
			{-time.Minute, -time.Minute},
			{-80 * time.Millisecond, -80 * time.Millisecond},
			{-30 * time.Millisecond, 0}, // ours is as good
			{80 * time.Millisecond, 0},
			{120 * time.Millisecond, 120 * time.Millisecond},
		} {
			w.do(func() { w.down, w.slow, w.ahead = false, 0, o.ahead })
			pass(2 * time.Second)
			if got := c.State().ClockOffset; got != o.want {
				t.Errorf("%s ahead: the offset is %s, want %s", o.ahead, got, o.want)
			}
		}
	})
}

func TestStartWithoutDatabase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{down: true}
		c := cluster.New(cluster.Options{Nodes: w, Clock: cluster.NewClock(time.Now)})
		if err := c.Start(t.Context()); err == nil || c.MaySend() || c.Ready() == nil {
			t.Errorf("%v, may send: %t, ready: %v", err, c.MaySend(), c.Ready())
		}
		c.Stop()
	})
}

// Who stops does not wait for a committer that hangs.
func TestStopWhileJoining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{node: 1}
		c := cluster.New(cluster.Options{Nodes: w, Clock: cluster.NewClock(time.Now)})
		if err := c.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.Attach(cluster.Parts{Committer: lazy{}, Lanes: w, Catalog: w, Jobs: w})
		w.do(func() { w.gone = true })
		pass(3 * time.Second)
		c.Stop()
	})
}

// lazy is a committer that has been closed.
type lazy struct{}

func (lazy) Do(func(context.Context)) {}
