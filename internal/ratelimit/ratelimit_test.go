package ratelimit_test

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/plinqx/hypha/internal/ratelimit"
)

var start = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func TestAllow(t *testing.T) {
	l := ratelimit.New[string](ratelimit.Rate{PerSecond: 2, AtOnce: 3}, 10)
	for i := range 3 {
		if wait := l.Allow("a", start); wait != 0 {
			t.Fatalf("%d of 3 at once waits %s", i+1, wait)
		}
	}
	for range 100 {
		if wait := l.Allow("a", start); wait != time.Second/2 {
			t.Fatalf("the fourth waits %s, want half a second: asking costs nothing", wait)
		}
	}
	if wait := l.Allow("b", start); wait != 0 {
		t.Errorf("another party waits %s", wait)
	}
	if wait := l.Allow("a", start.Add(time.Second/2)); wait != 0 {
		t.Errorf("after half a second there is still a wait of %s", wait)
	}
	if wait := l.Allow("a", start.Add(time.Second/2)); wait == 0 {
		t.Error("half a second gave back more than one")
	}
	for i := range 3 {
		if wait := l.Allow("a", start.Add(time.Hour)); wait != 0 {
			t.Errorf("after a rest, %d of 3 waits %s", i+1, wait)
		}
	}
	if wait := l.Allow("a", start.Add(time.Hour)); wait == 0 {
		t.Error("a long rest gave back more than may come at once")
	}
}

func TestTake(t *testing.T) {
	l := ratelimit.New[string](ratelimit.Rate{PerSecond: 10, AtOnce: 20}, 10)
	if wait := l.Wait("a", start); wait != 0 {
		t.Errorf("who has done nothing waits %s", wait)
	}
	l.Take("a", 19, start)
	if wait := l.Wait("a", start); wait != 0 {
		t.Errorf("with one left, the wait is %s", wait)
	}
	l.Take("a", 101, start) // one of them is its own
	if wait := l.Wait("a", start); wait.Round(time.Millisecond) != 10100*time.Millisecond {
		t.Errorf("a debt of 100 is a wait of %s, want 10.1s", wait)
	}
	if wait := l.Wait("a", start.Add(11*time.Second)); wait != 0 {
		t.Errorf("after it, %s", wait)
	}
}

func TestNoLimit(t *testing.T) {
	l := ratelimit.New[string](ratelimit.Rate{}, 10)
	l.Take("a", 1_000_000, start)
	if l.Allow("a", start) != 0 || l.Wait("a", start) != 0 || l.Len() != 0 {
		t.Error("there is a limit, or a memory of one")
	}
}

func TestEvery(t *testing.T) {
	l := ratelimit.New[string](ratelimit.Every(30*time.Second, 1), 10)
	l.Take("a", 1, start)
	if wait := l.Wait("a", start.Add(10*time.Second)); wait.Round(time.Millisecond) != 20*time.Second {
		t.Errorf("the wait is %s, want 20s", wait)
	}
}

func TestTheLongestUnseenAreForgotten(t *testing.T) {
	l := ratelimit.New[int](ratelimit.Rate{PerSecond: 1, AtOnce: 1}, 3)
	for k := range 3 {
		l.Take(k, 1, start)
	}
	l.Wait(0, start) // seen again
	l.Take(3, 1, start)
	if n := l.Len(); n != 3 {
		t.Errorf("%d are remembered, want 3", n)
	}
	for k, forgotten := range []bool{false, true, false, false} {
		if got := l.Wait(k, start) == 0; got != forgotten {
			t.Errorf("%d: forgotten is %t, want %t", k, got, forgotten)
		}
	}
}

// Nobody gets more than came at once and what the time gave.
func TestNeverMoreThanTheRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		perSecond, atOnce := rapid.IntRange(1, 50).Draw(t, "rate"), rapid.IntRange(1, 50).Draw(t, "at once")
		l := ratelimit.New[int](ratelimit.Rate{PerSecond: float64(perSecond), AtOnce: atOnce}, 2)
		now, allowed := start, 0
		for range rapid.IntRange(1, 200).Draw(t, "asked") {
			now = now.Add(time.Duration(rapid.IntRange(0, 200).Draw(t, "ms")) * time.Millisecond)
			if l.Allow(1, now) == 0 {
				allowed++
			}
		}
		if most := float64(atOnce) + now.Sub(start).Seconds()*float64(perSecond) + 1e-6; float64(allowed) > most {
			t.Fatalf("%d were allowed, of %f", allowed, most)
		}
	})
}

func TestConcurrentUse(t *testing.T) {
	l := ratelimit.New[int](ratelimit.Rate{PerSecond: 1, AtOnce: 100}, 2)
	var mu sync.Mutex
	var wg sync.WaitGroup
	allowed := 0
	for range 8 {
		wg.Go(func() {
			for range 50 {
				if l.Allow(1, start) == 0 {
					mu.Lock()
					allowed++
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	if allowed != 100 {
		t.Errorf("%d were allowed, want 100", allowed)
	}
}

func TestNetwork(t *testing.T) {
	for given, want := range map[string]string{
		"192.0.2.1":           "192.0.2.1/32",
		"::ffff:192.0.2.1":    "192.0.2.1/32",
		"2001:db8:1:2:3:4::5": "2001:db8:1:2::/64",
		"fe80::1%eth0":        "fe80::/64",
	} {
		if got := ratelimit.Network(netip.MustParseAddr(given)).String(); got != want {
			t.Errorf("%s is of %s, want %s", given, got, want)
		}
	}
	if ratelimit.Network(netip.Addr{}).IsValid() {
		t.Error("no address has a network")
	}
}
