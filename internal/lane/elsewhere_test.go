package lane_test

import (
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/lane"
)

const grace = 5 * time.Second

// fails has n attempts fail at a time, and reports how many there were.
func fails(t *testing.T, l *lane.Lane, n int, now time.Time) {
	t.Helper()
	for i := range n {
		if l.Next(now, roomy) == nil {
			t.Fatalf("attempt %d may not start", i+1)
		}
		l.Finished(lane.Ailing, now)
	}
}

func TestTurnsAreToldOnce(t *testing.T) {
	l := newLane()
	offer(t, l, 1, 30, start)
	fails(t, l, 9, start)
	if until, turned := l.TakeTurn(); turned {
		t.Fatalf("it is told before it opens: %v", until)
	}
	fails(t, l, 1, start)
	if until, turned := l.TakeTurn(); !turned || !until.Equal(start.Add(time.Second)) {
		t.Errorf("opened: %v, %t", until, turned)
	}
	if _, turned := l.TakeTurn(); turned {
		t.Error("told twice")
	}
	at := start.Add(time.Second)
	fails(t, l, 1, at)
	if until, turned := l.TakeTurn(); !turned || !until.Equal(at.Add(2*time.Second)) {
		t.Errorf("a probe failed: %v, %t", until, turned)
	}
	at = at.Add(2 * time.Second)
	l.Next(at, roomy)
	l.Finished(lane.Healthy, at)
	if until, turned := l.TakeTurn(); !turned || !until.IsZero() {
		t.Errorf("closed: %v, %t", until, turned)
	}
}

// Somebody turns a webhook off and on again: another process may see neither.
func TestLettingItGoOnIsTold(t *testing.T) {
	l := newLane()
	offer(t, l, 1, 30, start)
	fails(t, l, 10, start)
	l.TakeTurn()
	l.Configure(false, time.Time{}, start)
	if _, turned := l.TakeTurn(); turned {
		t.Error("told when it is turned off")
	}
	l.Configure(true, time.Time{}, start)
	if until, turned := l.TakeTurn(); !turned || !until.IsZero() {
		t.Errorf("turned on: %v, %t", until, turned)
	}
	l.Configure(false, time.Time{}, start)
	l.Configure(true, time.Time{}, start)
	if _, turned := l.TakeTurn(); turned {
		t.Error("told of a breaker that was not open")
	}
}

func TestBreakerOfAnotherProcess(t *testing.T) {
	until := start.Add(10 * time.Second)
	for name, tc := range map[string]struct {
		before func(l *lane.Lane)
		// opens is when an attempt may start; zero: at once.
		opens time.Time
	}{
		"idle": {func(*lane.Lane) {}, until.Add(grace)},
		// It may be the other one that can't reach the receiver.
		"went well lately": {func(l *lane.Lane) { l.Next(start, roomy); l.Finished(lane.Healthy, start.Add(-5*time.Second)) }, time.Time{}},
		"went well once":   {func(l *lane.Lane) { l.Next(start, roomy); l.Finished(lane.Healthy, start.Add(-time.Minute)) }, until.Add(grace)},
		"open itself":      {func(l *lane.Lane) { fails(t, l, 10, start) }, until.Add(grace)},
	} {
		l := newLane()
		offer(t, l, 1, 30, start)
		tc.before(l)
		l.OpenElsewhere(until, grace, start)
		if _, turned := l.TakeTurn(); turned {
			t.Errorf("%s: what others said is told to them", name)
		}
		if tc.opens.IsZero() {
			if !l.Ready(start) {
				t.Errorf("%s: nothing may be sent", name)
			}
			continue
		}
		if l.Ready(tc.opens.Add(-time.Millisecond)) || !l.Ready(tc.opens) {
			t.Errorf("%s: not when the other one has had its time", name)
		}
		// One probe, then it waits longer, and says so.
		if n := startAll(l, tc.opens, roomy); n != 1 {
			t.Errorf("%s: %d attempts started", name, n)
		}
		l.Finished(lane.Ailing, tc.opens)
		if next, turned := l.TakeTurn(); !turned || next.Before(tc.opens.Add(10*time.Second)) || next.After(tc.opens.Add(time.Minute)) {
			t.Errorf("%s: after its own probe: %v, %t", name, next.Sub(tc.opens), turned)
		}
		l.CloseElsewhere()
		if !l.Ready(start) || startAll(l, start, roomy) != 1 {
			t.Errorf("%s: closing does not ramp", name)
		}
		if opened, closed := l.TakeBreakerTurns(); closed != 0 || opened > 1 {
			t.Errorf("%s: counted as %d opened and %d closed", name, opened, closed)
		}
	}
}

// A node that can't reach a receiver says again and again that it is ill. The
// others find out that it is not.
func TestNobodyIsBelievedForEver(t *testing.T) {
	l := newLane()
	offer(t, l, 1, 5, start)
	now := start
	for l.OpenElsewhere(now.Add(10*time.Second), grace, now); !l.Ready(now); l.OpenElsewhere(now.Add(10*time.Second), grace, now) {
		if now = now.Add(time.Second); now.Sub(start) > time.Minute {
			t.Fatal("no attempt after a minute")
		}
	}
	if now.Sub(start) < time.Minute {
		t.Errorf("an attempt after %s already", now.Sub(start))
	}
}

func TestOldNewsOpenNothing(t *testing.T) {
	l := newLane()
	offer(t, l, 1, 5, start)
	l.OpenElsewhere(start.Add(-time.Minute), grace, start)
	if l.Open() {
		t.Error("it is open")
	}
	l.CloseElsewhere()
	if n := startAll(l, start, roomy); n != 4 {
		t.Errorf("%d attempts started", n)
	}
}

func TestDiscardElsewhere(t *testing.T) {
	l := newLane()
	offer(t, l, 1, 5, start)
	l.DiscardElsewhere(true)
	if got := len(l.Settle(start)); got != 5 || l.Next(start, roomy) != nil || l.State(start) != lane.Discarding || l.Quiet() {
		t.Errorf("%d given back, %s", got, l.State(start))
	}
	if _, ok := l.WantsClaim(start); ok {
		t.Error("it fetches what is discarded")
	}
	l.DiscardElsewhere(false)
	if _, ok := l.WantsClaim(start); !ok {
		t.Error("it does not go on")
	}
	// Whoever ends a discard of his own knows best.
	l.DiscardElsewhere(true)
	l.Discard(true)
	l.Discard(false)
	if here, elsewhere := l.Discarded(); here || elsewhere {
		t.Errorf("%t, %t", here, elsewhere)
	}
}

func TestFence(t *testing.T) {
	l := newLane()
	offer(t, l, 1, 5, start)
	sent := l.Next(start, roomy)
	if !l.Reserve(start) {
		t.Fatal("no place")
	}
	l.Claiming(10) // it is made after the fence
	if got := len(l.Fence()); got != 4 || l.Waiting() != 0 || !l.Holds(sent.ID) {
		t.Fatalf("%d given back, %d wait, the one in flight is held: %t", got, l.Waiting(), l.Holds(sent.ID))
	}
	if l.HandOver(item(6, hook.TriggerAuto)) {
		t.Error("what was committed meanwhile goes before what was given back")
	}
	if !l.Claimed([]*lane.Item{item(1, hook.TriggerAuto)}, true, time.Time{}) {
		t.Error("a claim is thrown away")
	}
	l.Finished(lane.Healthy, start)
	l.Recorded(sent.ID, time.Time{})
	if l.Holds(sent.ID) || l.Waiting() != 1 || !l.Spilled() {
		t.Errorf("%d wait", l.Waiting())
	}
}
