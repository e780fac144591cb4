package lane_test

import (
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/lane"
	"github.com/plinqx/hypha/internal/store"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// roomy is a share of slots that never binds.
const roomy = 1000

func newLane() *lane.Lane {
	l := lane.New(id.Tenant{1}, id.Webhook{1})
	l.Configure(true, time.Time{}, start)
	return l
}

func deliveryID(n int) (d id.Delivery) {
	binary.BigEndian.PutUint64(d[8:], uint64(n))
	return d
}

func item(n int, trigger hook.Trigger) *lane.Item {
	return &lane.Item{Queued: store.Queued{ID: deliveryID(n), Trigger: trigger}}
}

// offer publishes deliveries from..from+n-1 into the lane's memory.
func offer(t *testing.T, l *lane.Lane, from, n int, now time.Time) {
	t.Helper()
	for i := from; i < from+n; i++ {
		if !l.Reserve(now) {
			t.Fatalf("no place for delivery %d", i)
		}
		if !l.HandOver(item(i, hook.TriggerAuto)) {
			t.Fatalf("delivery %d is left on disk", i)
		}
	}
}

// startAll takes as many as the lane gives and reports how many those are.
func startAll(l *lane.Lane, now time.Time, share int) int {
	n := 0
	for l.Next(now, share) != nil {
		n++
	}
	return n
}

func TestPaceFollowsTheReceiver(t *testing.T) {
	for _, tc := range []struct {
		name     string
		verdicts []lane.Verdict
		share    int
		want     int // attempts at once after the verdicts
	}{
		{"begins with four", nil, roomy, 4},
		{"each success adds one", []lane.Verdict{lane.Healthy, lane.Healthy, lane.Healthy}, roomy, 7},
		{"sixty-four is the most", make([]lane.Verdict, 100), roomy, 64},
		{"a sign of overload halves it", append(make([]lane.Verdict, 60), lane.Ailing), roomy, 32},
		{"one is the least", []lane.Verdict{lane.Ailing, lane.Ailing, lane.Ailing, lane.Ailing}, roomy, 1},
		{"what was not sent tells nothing", []lane.Verdict{lane.NoWord, lane.NoWord}, roomy, 4},
		{"the share of slots binds too", make([]lane.Verdict, 100), 9, 9},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLane()
			offer(t, l, 0, 200, start)
			for range tc.verdicts {
				if l.Next(start, roomy) == nil {
					t.Fatal("nothing to send")
				}
				l.Finished(tc.verdicts[0], start)
				tc.verdicts = tc.verdicts[1:]
			}
			if got := startAll(l, start, tc.share); got != tc.want {
				t.Errorf("%d at once, want %d", got, tc.want)
			}
			if !l.Saturated(tc.share) {
				t.Error("the lane has all that it may, and says that it has not")
			}
		})
	}
}

// fail makes n attempts that fail, one after the other.
func fail(t *testing.T, l *lane.Lane, n int, now time.Time) {
	t.Helper()
	for range n {
		if l.Next(now, roomy) == nil {
			t.Fatal("nothing may be sent")
		}
		l.Finished(lane.Ailing, now)
	}
}

func TestBreakerOpensAfterTenInARow(t *testing.T) {
	for _, tc := range []struct {
		name     string
		verdicts string // h(ealthy), a(iling), n(o word)
		open     bool
	}{
		{"nine are not enough", "aaaaaaaaa", false},
		{"ten are", "aaaaaaaaaa", true},
		{"a success between begins anew", "aaaaaaaaahaaaaaaaaa", false},
		{"what was not sent does not count", "aaaaaaaaannnn", false},
		{"nor does it break the row", "aaaaaaaaana", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLane()
			offer(t, l, 0, 50, start)
			for _, v := range tc.verdicts {
				if l.Next(start, roomy) == nil {
					t.Fatal("nothing may be sent")
				}
				l.Finished(map[rune]lane.Verdict{'h': lane.Healthy, 'a': lane.Ailing, 'n': lane.NoWord}[v], start)
			}
			if l.Open() != tc.open {
				t.Fatalf("open is %t", l.Open())
			}
			if blocked := l.Next(start, roomy) == nil; blocked != tc.open {
				t.Errorf("the next one is held back: %t", blocked)
			}
		})
	}
}

func TestProbes(t *testing.T) {
	l := newLane()
	offer(t, l, 0, 50, start)
	fail(t, l, 10, start)
	if got := len(l.Settle(start)); got != 40 {
		t.Fatalf("an open breaker gave %d back to the disk, want all 40", got)
	}
	now, next := start, 10
	waits := []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} // seconds
	for i, wait := range waits {
		wait *= time.Second
		if at := l.NextWake(now); !at.Equal(now.Add(wait)) {
			t.Fatalf("probe %d: the lane is to be looked at after %v, want %v", i, at.Sub(now), wait)
		}
		if _, ok := l.WantsClaim(now.Add(wait - 1)); ok {
			t.Fatalf("probe %d: a claim before its time", i)
		}
		now = now.Add(wait)
		limit, ok := l.WantsClaim(now)
		if !ok || limit != 1 {
			t.Fatalf("probe %d: asks for %d (%t), want one", i, limit, ok)
		}
		l.Claiming(limit)
		l.Claimed([]*lane.Item{item(next, hook.TriggerAuto)}, true, time.Time{})
		next++
		if got := startAll(l, now, roomy); got != 1 {
			t.Fatalf("probe %d: %d at once, want one", i, got)
		}
		if l.Reserve(now) {
			t.Fatalf("probe %d: a place in memory while probing", i)
		}
		l.Release(false)
		v := lane.Ailing
		if i == len(waits)-1 {
			v = lane.Healthy
		}
		l.Finished(v, now)
	}
	if l.Open() {
		t.Fatal("a success did not close the breaker")
	}
	l.Claiming(lane.Capacity)
	var items []*lane.Item
	for i := range 50 {
		items = append(items, item(100+i, hook.TriggerAuto))
	}
	l.Claimed(items, false, time.Time{})
	if got := startAll(l, now, roomy); got != 2 {
		t.Errorf("%d at once after closing, want to ramp from 2", got)
	}
}

func TestProbeThatWasNotSentIsReplaced(t *testing.T) {
	l := newLane()
	offer(t, l, 0, 12, start)
	fail(t, l, 10, start)
	now := start.Add(time.Second)
	if l.Next(now, roomy) == nil || l.Next(now, roomy) != nil {
		t.Fatal("want one probe, and one only")
	}
	l.Finished(lane.NoWord, now)
	if l.Next(now, roomy) == nil {
		t.Error("a probe that was not sent holds the lane")
	}
}

func TestSomebodyEnablingClosesTheBreaker(t *testing.T) {
	l := newLane()
	offer(t, l, 0, 12, start)
	fail(t, l, 10, start)
	l.Configure(false, time.Time{}, start)
	l.Configure(true, time.Time{}, start)
	if l.Open() || l.Next(start, roomy) == nil {
		t.Error("still held back")
	}
}

func TestWhatALaneIsAbout(t *testing.T) {
	ill := func(t *testing.T, l *lane.Lane) {
		offer(t, l, 0, 40, start)
		for range 10 {
			if l.Next(start, roomy) == nil {
				t.Fatal("nothing to send")
			}
			l.Finished(lane.Ailing, start)
		}
		l.Settle(start)
	}
	for _, tc := range []struct {
		want  lane.State
		limit int
		do    func(t *testing.T, l *lane.Lane)
	}{
		{lane.Idle, 4, func(*testing.T, *lane.Lane) {}},
		{lane.Waiting, 4, func(t *testing.T, l *lane.Lane) { offer(t, l, 0, 1, start) }},
		{lane.Waiting, 4, func(_ *testing.T, l *lane.Lane) { l.Behind() }},
		{lane.Sending, 4, func(t *testing.T, l *lane.Lane) {
			offer(t, l, 0, 1, start)
			l.Next(start, roomy)
		}},
		{lane.BreakerOpen, 1, ill},
		{lane.Paused, 4, func(_ *testing.T, l *lane.Lane) { l.Configure(true, start.Add(time.Hour), start) }},
		{lane.Paused, 1, func(t *testing.T, l *lane.Lane) {
			ill(t, l)
			l.Configure(true, start.Add(time.Hour), start)
		}},
		{lane.Disabled, 4, func(_ *testing.T, l *lane.Lane) { l.Configure(false, start.Add(time.Hour), start) }},
		{lane.Discarding, 4, func(_ *testing.T, l *lane.Lane) {
			l.Configure(false, time.Time{}, start)
			l.Discard(true)
		}},
	} {
		t.Run(string(tc.want), func(t *testing.T) {
			l := newLane()
			tc.do(t, l)
			if got := l.State(start); got != tc.want || l.Limit() != tc.limit {
				t.Errorf("it is %s with a limit of %d, want %s and %d", got, l.Limit(), tc.want, tc.limit)
			}
			if !slices.Contains(lane.States(), tc.want) || slices.Max(lane.LimitBounds()) < l.Limit() {
				t.Error("not of the closed set")
			}
		})
	}
}

func TestBreakerTurnsAreCounted(t *testing.T) {
	l := newLane()
	offer(t, l, 0, 40, start)
	now := start
	fail := func(n int) {
		for range n {
			now = now.Add(2 * time.Minute) // past whatever wait
			if l.Next(now, roomy) == nil {
				t.Fatal("nothing to send")
			}
			l.Finished(lane.Ailing, now)
		}
	}
	fail(13)
	if l.Next(now.Add(2*time.Minute), roomy) == nil {
		t.Fatal("no probe")
	}
	l.Finished(lane.Healthy, now)
	fail(10)
	l.Configure(false, time.Time{}, now)
	l.Configure(true, time.Time{}, now)
	if opened, closed := l.TakeBreakerTurns(); opened != 2 || closed != 2 {
		t.Errorf("opened %d and closed %d times, want 2 and 2", opened, closed)
	}
	if opened, closed := l.TakeBreakerTurns(); opened+closed != 0 {
		t.Errorf("then it opened %d and closed %d times more", opened, closed)
	}
}

func TestJudge(t *testing.T) {
	status := func(code int) *hook.Attempt {
		return &hook.Attempt{StatusCode: code, Failure: &hook.Failure{Kind: hook.FailureStatus}}
	}
	kind := func(k hook.FailureKind) *hook.Attempt { return &hook.Attempt{Failure: &hook.Failure{Kind: k}} }
	for _, tc := range []struct {
		name string
		a    *hook.Attempt
		want lane.Verdict
	}{
		{"200", &hook.Attempt{StatusCode: 200}, lane.Healthy},
		{"301", status(301), lane.Healthy},
		{"400", status(400), lane.Healthy},
		{"404", status(404), lane.Healthy},
		{"410", status(410), lane.Healthy},
		{"429", status(429), lane.Ailing},
		{"500", status(500), lane.Ailing},
		{"503", status(503), lane.Ailing},
		{"timeout", kind(hook.FailureTimeout), lane.Ailing},
		{"refused", kind(hook.FailureConnect), lane.Ailing},
		{"no such name", kind(hook.FailureDNS), lane.Ailing},
		{"certificate", kind(hook.FailureTLS), lane.Ailing},
		{"not HTTP", kind(hook.FailureProtocol), lane.Ailing},
		{"no connection from the proxy", kind(hook.FailureProxy), lane.Ailing},
		{"an address that may not be called", kind(hook.FailureBlocked), lane.NoWord},
		{"our own fault", kind(hook.FailureInternal), lane.NoWord},
	} {
		if got := lane.Judge(tc.a); got != tc.want {
			t.Errorf("%s: verdict %d, want %d", tc.name, got, tc.want)
		}
	}
}

func TestPlaces(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(t *testing.T, l *lane.Lane)
		want bool // a place for the next one
	}{
		{"an idle lane has one", func(*testing.T, *lane.Lane) {}, true},
		{"a disabled one has none", func(_ *testing.T, l *lane.Lane) { l.Configure(false, time.Time{}, start) }, false},
		{"a paused one has none", func(_ *testing.T, l *lane.Lane) { l.Configure(true, start.Add(1), start) }, false},
		{"a pause that ended is none", func(_ *testing.T, l *lane.Lane) { l.Configure(true, start, start) }, true},
		{"a full one has none", func(t *testing.T, l *lane.Lane) { offer(t, l, 0, lane.Capacity, start) }, false},
		{"places that are being committed count", func(t *testing.T, l *lane.Lane) {
			for range lane.Capacity {
				l.Reserve(start)
			}
		}, false},
		{"what a claim may bring counts", func(t *testing.T, l *lane.Lane) {
			l.Recorded(deliveryID(1), start)
			limit, _ := l.WantsClaim(start)
			l.Claiming(limit)
			offer(t, l, 2, lane.Capacity-limit, start)
		}, false},
		{"replays do not", func(t *testing.T, l *lane.Lane) {
			l.Wake()
			limit, _ := l.WantsClaim(start)
			l.Claiming(limit)
			var items []*lane.Item
			for i := range limit {
				items = append(items, item(i, hook.TriggerReplay))
			}
			l.Claimed(items, false, time.Time{})
			offer(t, l, 1000, lane.Capacity-1, start)
		}, true},
		{"one that was spilled has none: nothing may overtake", func(_ *testing.T, l *lane.Lane) {
			l.Spill()
			l.Committed()
		}, false},
		{"one with a backlog has none", func(_ *testing.T, l *lane.Lane) { l.Behind() }, false},
		{"after a claim that came back short it has one again", func(_ *testing.T, l *lane.Lane) {
			l.Behind()
			l.Claiming(lane.Capacity)
			l.Claimed(nil, false, time.Time{})
		}, true},
		{"not while a spilled one is still committing", func(_ *testing.T, l *lane.Lane) {
			l.Spill()
			l.Claiming(lane.Capacity)
			l.Claimed(nil, false, time.Time{})
		}, false},
		{"not when something came to the disk meanwhile", func(_ *testing.T, l *lane.Lane) {
			l.Spill()
			l.Claiming(lane.Capacity)
			l.Committed()
			l.Claimed(nil, false, time.Time{})
		}, false},
		{"not when the claim failed", func(_ *testing.T, l *lane.Lane) {
			l.Claiming(lane.Capacity)
			l.ClaimFailed(start.Add(time.Second))
		}, false},
		{"one that gave its memory back has none", func(t *testing.T, l *lane.Lane) {
			offer(t, l, 0, 3, start)
			l.Configure(true, start.Add(time.Minute), start)
			l.Settle(start)
			l.Configure(true, time.Time{}, start)
		}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLane()
			tc.do(t, l)
			if got := l.Reserve(start); got != tc.want {
				t.Errorf("a place: %t, want %t", got, tc.want)
			}
		})
	}
}

func TestWhenToClaim(t *testing.T) {
	for _, tc := range []struct {
		name  string
		do    func(t *testing.T, l *lane.Lane)
		limit int // 0: no claim
	}{
		{"not when nothing is known on disk", func(*testing.T, *lane.Lane) {}, 0},
		{"half, so that new events have places", func(_ *testing.T, l *lane.Lane) { l.Wake() }, lane.Capacity / 2},
		{"all when new ones go to the disk anyway", func(_ *testing.T, l *lane.Lane) { l.Behind() }, lane.Capacity},
		{"when something is due", func(_ *testing.T, l *lane.Lane) { l.Recorded(deliveryID(1), start) }, lane.Capacity / 2},
		{"not before it is due", func(_ *testing.T, l *lane.Lane) { l.Recorded(deliveryID(1), start.Add(1)) }, 0},
		{"not twice at once", func(_ *testing.T, l *lane.Lane) { l.Behind(); l.Claiming(1) }, 0},
		{"not while disabled", func(_ *testing.T, l *lane.Lane) { l.Behind(); l.Configure(false, time.Time{}, start) }, 0},
		{"not while paused", func(_ *testing.T, l *lane.Lane) { l.Behind(); l.Configure(true, start.Add(1), start) }, 0},
		{"not while discarding", func(_ *testing.T, l *lane.Lane) { l.Behind(); l.Discard(true) }, 0},
		{"after discarding", func(_ *testing.T, l *lane.Lane) { l.Discard(true); l.Discard(false) }, lane.Capacity / 2},
		{"not while memory is more than half full", func(t *testing.T, l *lane.Lane) {
			offer(t, l, 0, lane.Capacity/2+1, start)
			l.Behind()
		}, 0},
		{"when it is half empty", func(t *testing.T, l *lane.Lane) {
			offer(t, l, 0, lane.Capacity/2, start)
			l.Behind()
		}, lane.Capacity / 2},
		{"for what was forgotten", func(t *testing.T, l *lane.Lane) {
			offer(t, l, 0, 1, start)
			it := l.Next(start, roomy)
			l.Finished(lane.NoWord, start)
			l.Forget(it.ID)
		}, lane.Capacity},
		{"again when the claim left something", func(_ *testing.T, l *lane.Lane) {
			l.Behind()
			l.Claiming(lane.Capacity)
			l.Claimed(nil, true, time.Time{})
		}, lane.Capacity},
		{"again when something came to the disk meanwhile", func(_ *testing.T, l *lane.Lane) {
			l.Wake()
			l.Claiming(lane.Capacity)
			l.Wake()
			l.Claimed(nil, false, time.Time{})
		}, lane.Capacity / 2},
		{"not at once when the claim failed", func(_ *testing.T, l *lane.Lane) {
			l.Behind()
			l.Claiming(lane.Capacity)
			l.ClaimFailed(start.Add(time.Second))
		}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLane()
			tc.do(t, l)
			limit, ok := l.WantsClaim(start)
			if !ok {
				limit = 0
			}
			if limit != tc.limit {
				t.Errorf("claims %d, want %d", limit, tc.limit)
			}
		})
	}
}

func TestNextWake(t *testing.T) {
	in := func(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }
	for _, tc := range []struct {
		name string
		do   func(t *testing.T, l *lane.Lane)
		want time.Time
	}{
		{"an idle lane: never", func(*testing.T, *lane.Lane) {}, time.Time{}},
		{"a retry: when it is due", func(_ *testing.T, l *lane.Lane) { l.Recorded(deliveryID(1), in(5)) }, in(5)},
		{"of two retries the first", func(_ *testing.T, l *lane.Lane) {
			l.Recorded(deliveryID(1), in(9))
			l.Recorded(deliveryID(2), in(5))
		}, in(5)},
		{"paused with a queue: when the pause ends", func(_ *testing.T, l *lane.Lane) {
			l.Behind()
			l.Configure(true, in(60), start)
		}, in(60)},
		{"a retry due in a pause: when the pause ends", func(_ *testing.T, l *lane.Lane) {
			l.Recorded(deliveryID(1), in(5))
			l.Configure(true, in(60), start)
		}, in(60)},
		{"a retry due after a pause: when it is due", func(_ *testing.T, l *lane.Lane) {
			l.Recorded(deliveryID(1), in(90))
			l.Configure(true, in(60), start)
		}, in(90)},
		{"a retry behind what waits in memory: when it is due", func(t *testing.T, l *lane.Lane) {
			l.Recorded(deliveryID(1), in(5))
			offer(t, l, 2, 1, start)
		}, in(5)},
		{"disabled: never", func(_ *testing.T, l *lane.Lane) {
			l.Recorded(deliveryID(1), in(5))
			l.Configure(false, time.Time{}, start)
		}, time.Time{}},
		{"a failed claim: when it is tried again", func(_ *testing.T, l *lane.Lane) {
			l.Behind()
			l.Claiming(1)
			l.ClaimFailed(in(1))
		}, in(1)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLane()
			tc.do(t, l)
			if got := l.NextWake(start); !got.Equal(tc.want) {
				t.Errorf("wakes at %v, want %v", got, tc.want)
			}
		})
	}
}

func TestLiveGoesBeforeReplays(t *testing.T) {
	l := newLane()
	l.Wake()
	l.Claiming(2)
	l.Claimed([]*lane.Item{item(1, hook.TriggerReplay), item(2, hook.TriggerManual)}, false, time.Time{})
	offer(t, l, 3, 1, start)
	for _, want := range []int{2, 3, 1} {
		if got := l.Next(start, roomy); got == nil || got.ID != deliveryID(want) {
			t.Fatalf("got %v, want delivery %d", got, want)
		}
	}
}

// What was given back while a claim was on its way goes before what the claim
// brings.
func TestClaimThatCameTooLate(t *testing.T) {
	l := newLane()
	l.Behind()
	l.Claiming(lane.Capacity)
	l.Claimed([]*lane.Item{item(1, hook.TriggerAuto)}, true, time.Time{})
	l.Claiming(lane.Capacity)
	l.Configure(false, time.Time{}, start)
	if got := l.Settle(start); len(got) != 1 {
		t.Fatalf("%d given back, want the first delivery", len(got))
	}
	l.Configure(true, time.Time{}, start)
	if l.Claimed([]*lane.Item{item(2, hook.TriggerAuto)}, false, time.Time{}) {
		t.Error("the second delivery is taken while the first is on disk")
	}
	if l.Waiting() != 0 || l.Holds(deliveryID(2)) {
		t.Error("what was not taken is held")
	}
	if _, ok := l.WantsClaim(start); !ok {
		t.Error("neither is fetched")
	}
}

// The same for a place that was taken before.
func TestHandOverThatCameTooLate(t *testing.T) {
	l := newLane()
	offer(t, l, 1, 1, start)
	if !l.Reserve(start) {
		t.Fatal("no place")
	}
	l.Configure(false, time.Time{}, start)
	l.Settle(start)
	l.Configure(true, time.Time{}, start)
	if l.HandOver(item(2, hook.TriggerAuto)) || l.Holds(deliveryID(2)) {
		t.Error("the second delivery is taken while the first is on disk")
	}
}

func TestDropOne(t *testing.T) {
	l := newLane()
	offer(t, l, 0, 3, start)
	l.Next(start, roomy)
	if it, ok := l.DropOne(deliveryID(1)); !ok || it.ID != deliveryID(1) {
		t.Fatal("what waits can be taken out")
	}
	if _, ok := l.DropOne(deliveryID(0)); ok || !l.Holds(deliveryID(0)) {
		t.Error("what is being sent can't be taken out, and is held")
	}
	if _, ok := l.DropOne(deliveryID(1)); ok || l.Holds(deliveryID(1)) {
		t.Error("it is there no more")
	}
	if it := l.Next(start, roomy); it == nil || it.ID != deliveryID(2) {
		t.Error("the others keep their places")
	}
}

func TestQuiet(t *testing.T) {
	l := newLane()
	if !l.Quiet() || !l.Gone() {
		t.Fatal("a new lane knows nothing worth keeping")
	}
	offer(t, l, 0, 1, start)
	if l.Quiet() || l.Gone() {
		t.Error("something waits")
	}
	it := l.Next(start, roomy)
	l.Finished(lane.Healthy, start)
	if l.Quiet() || l.Gone() {
		t.Error("an outcome is not recorded")
	}
	l.Recorded(it.ID, start.Add(time.Second))
	if l.Quiet() || !l.Gone() {
		t.Error("a retry is known, and is on disk")
	}
	l.Claiming(1)
	l.Claimed(nil, false, time.Time{})
	if !l.Quiet() {
		t.Error("nothing is left")
	}
}
