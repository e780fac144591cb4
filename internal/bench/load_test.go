package bench

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// scripted is a server whose answers are known beforehand: what act says about
// each publish, after it has taken its time.
type scripted struct {
	mu   sync.Mutex
	sent []sentBatch
	act  func(ctx context.Context, first uint64) outcome
}

type sentBatch struct {
	First  uint64
	At     time.Duration // deemed start, since the load began
	Really time.Duration // actual start
}

func (s *scripted) connect(start time.Time) func() publisher {
	return func() publisher { return &scriptedPublisher{s, start} }
}

type scriptedPublisher struct {
	*scripted
	start time.Time
}

func (p *scriptedPublisher) publish(ctx context.Context, first uint64, sentAt time.Time) outcome {
	p.mu.Lock()
	p.sent = append(p.sent, sentBatch{first, sentAt.Sub(p.start), time.Since(p.start)})
	p.mu.Unlock()
	return p.act(ctx, first)
}

func (p *scriptedPublisher) close() {}

const ms = time.Millisecond

func TestOpenLoopCountsFromTheSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// 100 events/s; the server needs 1 ms, but the third time 35 ms.
		s := &scripted{act: func(_ context.Context, first uint64) outcome {
			if first == 2 {
				time.Sleep(35 * ms)
			} else {
				time.Sleep(ms)
			}
			return outcome{verdict: accepted}
		}}
		l := load{publishers: 1, rate: 100, batch: 1, duration: 100 * ms, connect: s.connect(time.Now())}
		p, err := l.drive(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		// Events 3, 4 and 5 were due during the stall: they go out late, and
		// their time counts from when they were due.
		want := []sentBatch{
			{0, 0, 0}, {1, 10 * ms, 10 * ms}, {2, 20 * ms, 20 * ms},
			{3, 30 * ms, 55 * ms}, {4, 40 * ms, 56 * ms}, {5, 50 * ms, 57 * ms},
			{6, 60 * ms, 60 * ms}, {7, 70 * ms, 70 * ms}, {8, 80 * ms, 80 * ms}, {9, 90 * ms, 90 * ms},
		}
		if diff := cmp.Diff(want, s.sent); diff != "" {
			t.Errorf("sent (-want +got):\n%s", diff)
		}
		wantAck := new(histogram)
		for _, d := range []time.Duration{1, 1, 35, 26, 17, 8, 1, 1, 1, 1} {
			wantAck.record(d * ms)
		}
		if p.ack != *wantAck {
			t.Errorf("ack %+v, want %+v", p.ack.latency(), wantAck.latency())
		}
		if p.accepted != 10 || p.unsent != 0 || p.last.Sub(p.first) != 91*ms {
			t.Errorf("accepted %d, unsent %d in %v; want 10, 0 in 91ms", p.accepted, p.unsent, p.last.Sub(p.first))
		}
	})
}

func TestOpenLoopGivesUpWhatIsTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// 100 events/s in batches of 5 are due for 100 ms, but each batch takes
		// 150 ms: the second is sent at 150 ms, and at 300 ms it is too late.
		s := &scripted{act: func(context.Context, uint64) outcome {
			time.Sleep(150 * ms)
			return outcome{verdict: accepted}
		}}
		l := load{publishers: 1, rate: 200, batch: 5, duration: 100 * ms, connect: s.connect(time.Now())}
		p, err := l.drive(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]sentBatch{{0, 0, 0}, {5, 25 * ms, 150 * ms}}, s.sent); diff != "" {
			t.Errorf("sent (-want +got):\n%s", diff)
		}
		if p.accepted != 10 || p.unsent != 10 {
			t.Errorf("accepted %d, unsent %d; want 10, 10", p.accepted, p.unsent)
		}
	})
}

func TestClosedLoopWaitsForAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{act: func(context.Context, uint64) outcome {
			time.Sleep(10 * ms)
			return outcome{verdict: accepted}
		}}
		l := load{publishers: 4, batch: 2, duration: time.Second, connect: s.connect(time.Now())}
		p, err := l.drive(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		// 4 publishers, 100 batches each, 2 events in a batch; no number twice.
		if p.accepted != 800 || p.perSecond() != 800 {
			t.Errorf("accepted %d, %v/s; want 800, 800/s", p.accepted, p.perSecond())
		}
		var all bitmap
		for n := range uint64(800) {
			all.add(n)
		}
		if a, b := all.missingFrom(&p.numbers), p.numbers.missingFrom(&all); a != 0 || b != 0 {
			t.Errorf("%d numbers are missing, %d are too many", a, b)
		}
	})
}

func TestClosedLoopBacksOffWhenRefused(t *testing.T) {
	tests := []struct {
		name       string
		retryAfter time.Duration
		want       []time.Duration // when it asks
	}{
		{"no time given", 0, []time.Duration{0, 100 * ms, 200 * ms, 300 * ms}},
		{"a second", time.Second, []time.Duration{0}},
		{"an hour", time.Hour, []time.Duration{0}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &scripted{act: func(context.Context, uint64) outcome {
					return outcome{verdict: refused, retryAfter: tt.retryAfter}
				}}
				start := time.Now()
				l := load{publishers: 1, batch: 1, duration: 350 * ms, connect: s.connect(start)}
				p, err := l.drive(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				var at []time.Duration
				for _, b := range s.sent {
					at = append(at, b.Really)
				}
				if diff := cmp.Diff(tt.want, at); diff != "" {
					t.Errorf("asked (-want +got):\n%s", diff)
				}
				if p.refused != uint64(len(tt.want)) || p.accepted != 0 || p.numbers.missingFrom(&bitmap{}) != 0 {
					t.Errorf("refused %d, accepted %d", p.refused, p.accepted)
				}
				if time.Since(start) > time.Second {
					t.Errorf("took %v: a refusal must not hold the load up for more than a second", time.Since(start))
				}
			})
		})
	}
}

func TestLoadEndsAtItsLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{act: func(context.Context, uint64) outcome {
			time.Sleep(ms)
			return outcome{verdict: accepted}
		}}
		l := load{publishers: 2, batch: 3, duration: time.Hour, limit: 12, connect: s.connect(time.Now())}
		p, err := l.drive(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if p.accepted != 12 || p.numbers.count() != 12 || len(s.sent) != 4 {
			t.Errorf("accepted %d in %d batches, want 12 in 4", p.accepted, len(s.sent))
		}
	})
}

func TestDroppingLoadSendsNothingLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// 1,000 events/s are due on one connection; a publish takes 25 ms.
		s := &scripted{act: func(context.Context, uint64) outcome {
			time.Sleep(25 * ms)
			return outcome{verdict: failed, err: errors.New("broken")}
		}}
		l := load{publishers: 1, rate: 1000, batch: 1, duration: 2 * time.Second, drop: true, connect: s.connect(time.Now())}
		p, err := l.drive(t.Context())
		if err != nil {
			t.Fatalf("%v: it must go on, however many publishes fail", err)
		}
		for _, b := range s.sent {
			if late := b.Really - b.At; late != 0 {
				t.Errorf("event %d counts from %v before it was sent", b.First, late)
			}
			if due := time.Duration(b.First) * ms; b.Really-due > dropAfter {
				t.Errorf("event %d was sent %v after it was due", b.First, b.Really-due)
			}
		}
		if len(s.sent) <= maxFailures || uint64(len(s.sent)) != p.failed || p.failed+p.unsent != 2000 {
			t.Errorf("failed %d, unsent %d, of 2,000", p.failed, p.unsent)
		}
	})
}

func TestAnswersAreCountedByStatus(t *testing.T) {
	p := newPublished()
	start := time.Unix(1700000000, 0)
	at := func(n int) time.Time { return start.Add(time.Duration(n) * ms) }
	for _, o := range []outcome{
		{verdict: accepted, status: 202},
		{verdict: refused, status: 429, retrySaid: true},
		{verdict: refused, status: 503},
		{verdict: failed, status: 500, err: errors.New("first")},
		{verdict: failed, err: errors.New("second")},
	} {
		// Due at 1, sent at 5, answered at 9 ms.
		p.note(o, 0, 2, at(1), at(5), at(9))
	}
	want := map[string]uint64{"202": 2, "429": 2, "503": 2, "other": 4}
	if diff := cmp.Diff(want, p.byStatus()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if p.unnamed != 2 || p.failure.Error() != "first" {
		t.Errorf("%d refused without a time, failure %v; want 2, first", p.unnamed, p.failure)
	}
	if p.ack.max != int64(8*ms) || p.refusal.max != int64(4*ms) || p.refusal.n != 2 {
		t.Errorf("the 202 took %v, refusals %v; want 8ms from when it was due, 4ms from the sending", time.Duration(p.ack.max), time.Duration(p.refusal.max))
	}
}

func TestLoadIsGivenUpAfterFailuresInARow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		s := &scripted{act: func(_ context.Context, first uint64) outcome {
			time.Sleep(ms)
			if first == 5 { // one success starts the count again
				return outcome{verdict: accepted}
			}
			return outcome{verdict: failed, err: broken}
		}}
		l := load{publishers: 1, batch: 1, duration: time.Hour, connect: s.connect(time.Now())}
		p, err := l.drive(t.Context())
		if !errors.Is(err, errGaveUp) || !errors.Is(err, broken) {
			t.Errorf("error %v, want that it gave up because of %v", err, broken)
		}
		if p.failed != 15 || p.accepted != 1 || !errors.Is(p.failure, broken) {
			t.Errorf("failed %d, accepted %d, failure %v; want 15, 1, %v", p.failed, p.accepted, p.failure, broken)
		}
	})
}

func TestLoadEndsWithItsContext(t *testing.T) {
	for _, rate := range []float64{0, 10} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			s := &scripted{act: func(ctx context.Context, _ uint64) outcome {
				<-ctx.Done()
				return outcome{verdict: failed, err: ctx.Err()}
			}}
			l := load{publishers: 3, rate: rate, batch: 1, duration: time.Hour, connect: s.connect(time.Now())}
			p, err := l.drive(ctx)
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("rate %v: error %v, want the context's", rate, err)
			}
			if p.failed != 0 {
				t.Errorf("rate %v: %d failures: what we broke off is not the server's failure", rate, p.failed)
			}
		})
	}
}
