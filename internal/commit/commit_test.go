package commit_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/plinqx/hypha/internal/commit"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// disk is an Applier that notes what it is given. It can be held, and told what
// to answer.
type disk struct {
	// answer judges a batch; nil takes everything.
	answer func(b *store.Batch) error
	// gate, if there is one, is asked for leave before each batch.
	gate chan struct{}

	mu      sync.Mutex
	batches []batch
	running int
}

type batch struct {
	Accepts  []byte // the first byte of the first event's id
	Outcomes []byte // the first byte of the delivery
	At       time.Duration
}

func (d *disk) Apply(_ context.Context, b *store.Batch) error {
	d.mu.Lock()
	d.running++
	if d.running > 1 {
		panic("a test saw two batches at once: the committer writes one after the other")
	}
	d.mu.Unlock()
	if d.gate != nil {
		<-d.gate
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.running--
	var err error
	if d.answer != nil {
		err = d.answer(b)
	}
	if err == nil {
		d.batches = append(d.batches, batchOf(b))
	}
	return err
}

func batchOf(b *store.Batch) batch {
	var out batch
	for _, a := range b.Accepts {
		out.Accepts = append(out.Accepts, a.Events[0].ID[0])
	}
	for _, o := range b.Outcomes {
		out.Outcomes = append(out.Outcomes, o.Delivery[0])
	}
	return out
}

func (d *disk) written() []batch {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.batches)
}

// accept is an accept of one event and n deliveries.
func accept(name byte, n, size int) *store.Accept {
	return &store.Accept{Tenant: id.Tenant{1}, Events: []store.NewEvent{{
		ID: id.Event{name}, Body: make([]byte, size), Deliveries: make([]store.NewDelivery, n),
	}}}
}

func outcome(name byte) *store.Outcome { return &store.Outcome{Delivery: id.Delivery{name}} }

// journal notes what callbacks are told, in their order.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) add(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, fmt.Sprintf(format, args...))
}

func (j *journal) all() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.lines)
}

func (j *journal) recorded(outcomes []*store.Outcome) {
	for _, o := range outcomes {
		j.add("recorded %d", o.Delivery[0])
	}
}

// publish accepts in a goroutine and notes how it is settled and answered.
func publish(c *commit.Committer, j *journal, wg *sync.WaitGroup, a *store.Accept) {
	name := a.Events[0].ID[0]
	wg.Go(func() {
		err := c.Accept(context.Background(), a, func(ok bool) { j.add("settled %d %t", name, ok) })
		if err != nil {
			j.add("answered %d %s", name, hook.CodeOf(err))
		}
	})
}

func stop(t *testing.T, c *commit.Committer) {
	t.Helper()
	if err := c.Close(context.Background()); err != nil {
		t.Errorf("close: %v", err)
	}
}

func TestWhatWaitsIsWrittenTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j := &disk{gate: make(chan struct{})}, &journal{}
		c := commit.New(commit.Options{Store: d, Recorded: j.recorded})
		c.Start()
		var wg sync.WaitGroup
		publish(c, j, &wg, accept(1, 1, 0))
		synctest.Wait() // the first is being written
		for i := byte(2); i < 6; i++ {
			publish(c, j, &wg, accept(i, 1, 0))
			synctest.Wait()
		}
		c.Record(outcome(9))
		d.gate <- struct{}{}
		d.gate <- struct{}{}
		wg.Wait()
		stop(t, c)
		want := []batch{{Accepts: []byte{1}}, {Accepts: []byte{2, 3, 4, 5}, Outcomes: []byte{9}}}
		if diff := cmp.Diff(want, d.written()); diff != "" {
			t.Errorf("batches (-want +got):\n%s", diff)
		}
		settled := []string{"settled 1 true", "settled 2 true", "settled 3 true", "settled 4 true", "settled 5 true", "recorded 9"}
		if diff := cmp.Diff(settled, j.all()); diff != "" {
			t.Errorf("settled (-want +got):\n%s", diff)
		}
	})
}

func TestBatchesAreBounded(t *testing.T) {
	for _, tc := range []struct {
		name    string
		rows    int
		bytes   int
		accepts []*store.Accept
		want    []batch
	}{
		{"by rows", 6, 1000, []*store.Accept{accept(1, 1, 0), accept(2, 2, 0), accept(3, 2, 0), accept(4, 0, 0)},
			[]batch{{Accepts: []byte{1, 2}}, {Accepts: []byte{3, 4}}}},
		{"by bytes", 100, 10, []*store.Accept{accept(1, 1, 6), accept(2, 1, 4), accept(3, 1, 1)},
			[]batch{{Accepts: []byte{1, 2}}, {Accepts: []byte{3}}}},
		{"one that is larger than the bound goes alone", 4, 10, []*store.Accept{accept(1, 9, 0), accept(2, 1, 99), accept(3, 1, 1)},
			[]batch{{Accepts: []byte{1}}, {Accepts: []byte{2}}, {Accepts: []byte{3}}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, j := &disk{gate: make(chan struct{})}, &journal{}
				c := commit.New(commit.Options{Store: d, MaxBatchRows: tc.rows, MaxBatchBytes: tc.bytes})
				c.Start()
				var wg sync.WaitGroup
				publish(c, j, &wg, accept(0, 0, 0))
				synctest.Wait()
				for _, a := range tc.accepts {
					publish(c, j, &wg, a)
					synctest.Wait()
				}
				close(d.gate)
				wg.Wait()
				stop(t, c)
				if diff := cmp.Diff(tc.want, d.written()[1:]); diff != "" {
					t.Errorf("batches (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestOutcomesWait(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(c *commit.Committer)
		want time.Duration
	}{
		{"a tenth of a second for company", func(c *commit.Committer) { c.Record(outcome(1)) }, 100 * time.Millisecond},
		{"from the first one on", func(c *commit.Committer) {
			c.Record(outcome(1))
			time.Sleep(60 * time.Millisecond) // of the fake clock
			c.Record(outcome(2))
		}, 100 * time.Millisecond},
		{"not when there are many", func(c *commit.Committer) {
			for range 256 {
				c.Record(outcome(1))
			}
		}, 0},
		{"not when it is the end", func(c *commit.Committer) {
			c.Record(outcome(1))
			_ = c.Close(context.Background()) // it has time
		}, 0},
		{"not when an accept takes them along", func(c *commit.Committer) {
			c.Record(outcome(1))
			time.Sleep(10 * time.Millisecond) // of the fake clock
			_ = c.Accept(context.Background(), accept(2, 1, 0), func(bool) {})
		}, 10 * time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin, took := time.Now(), time.Duration(-1)
				d := &disk{}
				c := commit.New(commit.Options{Store: d, Recorded: func([]*store.Outcome) { took = time.Since(begin) }})
				c.Start()
				tc.do(c)
				time.Sleep(time.Second) // of the fake clock
				synctest.Wait()
				stop(t, c)
				if took != tc.want {
					t.Errorf("recorded after %v, want %v", took, tc.want)
				}
				if len(d.written()) != 1 {
					t.Errorf("%d batches, want one", len(d.written()))
				}
			})
		})
	}
}

var errPoison = errors.New("a value that no column takes")

func unavailable() error { return hook.Unavailable(time.Second, nil, "The disk is full") }

// poison refuses every batch that holds one of these.
func poison(accepts, outcomes []byte) func(*store.Batch) error {
	return func(b *store.Batch) error {
		got := batchOf(b)
		for _, p := range accepts {
			if slices.Contains(got.Accepts, p) {
				return errPoison
			}
		}
		for _, p := range outcomes {
			if slices.Contains(got.Outcomes, p) {
				return errPoison
			}
		}
		return nil
	}
}

func TestEverythingIsSettledOnce(t *testing.T) {
	for _, tc := range []struct {
		name   string
		answer func(*store.Batch) error
		want   []string
	}{
		{"written", nil,
			[]string{"recorded 8", "recorded 9", "settled 1 true", "settled 2 true", "settled 3 true"}},
		{"one is refused by itself", func(b *store.Batch) error {
			for _, a := range b.Accepts {
				if a.Err = nil; a.Events[0].ID[0] == 2 {
					a.Err = hook.Conflict("taken")
				}
			}
			return nil
		}, []string{"answered 2 CONFLICT", "recorded 8", "recorded 9", "settled 1 true", "settled 2 false", "settled 3 true"}},
		{"one accept can't be written", poison([]byte{2}, nil),
			[]string{"answered 2 INTERNAL_ERROR", "recorded 8", "recorded 9", "settled 1 true", "settled 2 false", "settled 3 true"}},
		{"one outcome can't be written, and is given up", poison(nil, []byte{8}),
			[]string{"recorded 8", "recorded 9", "settled 1 true", "settled 2 true", "settled 3 true"}},
		{"nothing can be written", func() func(b *store.Batch) error {
			down := 1
			return func(b *store.Batch) error {
				if down--; down >= 0 {
					return unavailable()
				}
				return nil
			}
		}(), []string{
			"answered 1 UNAVAILABLE", "answered 2 UNAVAILABLE", "answered 3 UNAVAILABLE", "recorded 8", "recorded 9",
			"settled 1 false", "settled 2 false", "settled 3 false"}},
		{"the store goes away amid the search for what is wrong", func() func(b *store.Batch) error {
			down := 1
			return func(b *store.Batch) error {
				switch {
				case len(b.Accepts)+len(b.Outcomes) > 1 && len(b.Accepts) > 0:
					return errPoison
				case len(b.Outcomes) > 0:
					if down--; down >= 0 {
						return unavailable()
					}
				}
				return nil
			}
		}(), []string{"recorded 8", "recorded 9", "settled 1 true", "settled 2 true", "settled 3 true"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, j := &disk{gate: make(chan struct{})}, &journal{}
				c := commit.New(commit.Options{Store: d, Recorded: j.recorded})
				c.Start()
				var wg sync.WaitGroup
				publish(c, j, &wg, accept(0, 0, 0))
				synctest.Wait()
				for i := byte(1); i < 4; i++ {
					publish(c, j, &wg, accept(i, 1, 0))
					synctest.Wait()
				}
				c.Record(outcome(8))
				c.Record(outcome(9))
				if n := c.Unrecorded(); n != 2 {
					t.Errorf("%d are unrecorded, want 2", n)
				}
				d.gate <- struct{}{}
				synctest.Wait()
				d.answer = tc.answer
				if n := c.Unrecorded(); n != 2 {
					t.Errorf("%d are unrecorded while they are being written, want 2", n)
				}
				close(d.gate)
				wg.Wait()
				time.Sleep(time.Minute) // of the fake clock
				synctest.Wait()
				if n := c.Unrecorded(); n != 0 {
					t.Errorf("%d are unrecorded at the end", n)
				}
				stop(t, c)
				got := j.all()[1:] // without the first
				slices.Sort(got)
				if diff := cmp.Diff(tc.want, got); diff != "" {
					t.Errorf("settled (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// What could not be written amid the search for what is wrong still counts.
func TestUnrecordedIsExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c *commit.Committer
		var got []string
		down := 2 // of the parts that are tried one by one
		d := &disk{answer: func(b *store.Batch) error {
			switch {
			case len(b.Outcomes) > 1 && down > 0:
				return errPoison
			case down > 0:
				down--
				return unavailable()
			}
			return nil
		}}
		c = commit.New(commit.Options{Store: d, Recorded: func(o []*store.Outcome) {
			for _, one := range o {
				got = append(got, fmt.Sprintf("%d recorded, %d to go", one.Delivery[0], c.Unrecorded()))
			}
		}})
		c.Start()
		for i := byte(1); i < 4; i++ {
			c.Record(outcome(i))
		}
		time.Sleep(time.Second) // of the fake clock
		synctest.Wait()
		stop(t, c)
		want := []string{"3 recorded, 2 to go", "2 recorded, 0 to go", "1 recorded, 0 to go"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// An outcome waits as long as the store is away, and is not counted as done.
func TestOutcomesOutliveTheStoresAbsence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var up bool
		tries := 0
		d, j := &disk{}, &journal{}
		d.answer = func(*store.Batch) error {
			if tries++; up {
				return nil
			}
			return unavailable()
		}
		c := commit.New(commit.Options{Store: d, Recorded: j.recorded})
		c.Start()
		c.Record(outcome(1))
		time.Sleep(time.Minute) // of the fake clock
		c.Record(outcome(2))
		synctest.Wait()
		if n := c.Unrecorded(); n != 2 || len(j.all()) != 0 {
			t.Fatalf("%d unrecorded, told of %v", n, j.all())
		}
		if tries < 100 || tries > 130 {
			t.Errorf("%d tries in a minute, want two a second", tries)
		}
		d.mu.Lock()
		up = true
		d.mu.Unlock()
		time.Sleep(time.Second) // of the fake clock
		synctest.Wait()
		if diff := cmp.Diff([]string{"recorded 1", "recorded 2"}, j.all()); diff != "" {
			t.Errorf("told of (-want +got):\n%s", diff)
		}
		stop(t, c)
	})
}

// A store that can't be written is trouble once that has lasted, until something is
// written or nobody has tried for long.
func TestTroubleIsThatOfNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var up atomic.Bool
		d := &disk{answer: func(*store.Batch) error {
			if up.Load() {
				return nil
			}
			return unavailable()
		}}
		c := commit.New(commit.Options{Store: d})
		c.Start()
		try := func() {
			t.Helper()
			if err := c.Accept(t.Context(), accept(1, 1, 0), func(bool) {}); (err == nil) != up.Load() {
				t.Fatalf("an accept got %v", err)
			}
		}
		expect := func(when string, trouble bool) {
			t.Helper()
			if err := c.Trouble(); (err != nil) != trouble || trouble && hook.CodeOf(err) != hook.CodeUnavailable {
				t.Errorf("%s: trouble is %v", when, err)
			}
		}
		expect("at the start", false)
		try()
		expect("after one failure", false)
		time.Sleep(3 * time.Second) // of the fake clock
		try()
		expect("after failures for three seconds", true)
		time.Sleep(9 * time.Second) // of the fake clock
		expect("when nobody has tried for long", false)
		try()
		expect("after one failure then", false)
		time.Sleep(3 * time.Second) // of the fake clock
		try()
		expect("after failures again", true)
		up.Store(true)
		try()
		expect("when something was written", false)
		stop(t, c)
	})
}

func TestTheDoorIsShut(t *testing.T) {
	other := func(a *store.Accept) *store.Accept { a.Tenant = id.Tenant{2}; return a }
	for _, tc := range []struct {
		name    string
		waiting []*store.Accept
		one     *store.Accept
		want    hook.Code // "" when it is let in
	}{
		{"nothing waits: anything is let in", nil, accept(9, 1000, 1000), ""},
		{"rows within the bound", []*store.Accept{accept(1, 4, 0)}, other(accept(9, 4, 0)), ""},
		{"rows over the bound", []*store.Accept{accept(1, 4, 0)}, other(accept(9, 5, 0)), hook.CodeUnavailable},
		{"bytes over the bound", []*store.Accept{accept(1, 1, 40)}, other(accept(9, 1, 61)), hook.CodeUnavailable},
		{"a tenant's half of the rows", []*store.Accept{accept(1, 3, 0)}, accept(9, 1, 0), hook.CodeRateLimited},
		{"a tenant's half of the bytes", []*store.Accept{accept(1, 0, 40)}, accept(9, 0, 11), hook.CodeRateLimited},
		{"a tenant's first is let in, whatever others have", []*store.Accept{accept(1, 1, 0)}, other(accept(9, 6, 0)), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, j := &disk{gate: make(chan struct{})}, &journal{}
				c := commit.New(commit.Options{Store: d, MaxWaitingRows: 10, MaxWaitingBytes: 100})
				c.Start()
				var wg sync.WaitGroup
				publish(c, j, &wg, accept(0, 0, 0))
				synctest.Wait()
				for _, a := range tc.waiting {
					publish(c, j, &wg, a)
					synctest.Wait()
				}
				publish(c, j, &wg, tc.one)
				synctest.Wait()
				var want []string
				if tc.want != "" {
					want = []string{"settled 9 false", "answered 9 " + string(tc.want)}
				}
				if diff := cmp.Diff(want, j.all()); diff != "" {
					t.Errorf("at the door (-want +got):\n%s", diff)
				}
				close(d.gate)
				wg.Wait()
				j.lines = nil
				publish(c, j, &wg, tc.one) // all has been written: there is room again
				wg.Wait()
				if diff := cmp.Diff([]string{"settled 9 true"}, j.all()); diff != "" {
					t.Errorf("afterwards (-want +got):\n%s", diff)
				}
				stop(t, c)
			})
		})
	}
}

// A caller that gives up does not take its event back, nor its settlement.
func TestAcceptOutlivesItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j := &disk{gate: make(chan struct{})}, &journal{}
		c := commit.New(commit.Options{Store: d})
		c.Start()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := c.Accept(ctx, accept(1, 1, 0), func(ok bool) { j.add("settled %t", ok) })
		if !errors.Is(err, context.DeadlineExceeded) || len(j.all()) != 0 {
			t.Fatalf("answered %v, settled %v", err, j.all())
		}
		close(d.gate)
		stop(t, c)
		if diff := cmp.Diff([]string{"settled true"}, j.all()); diff != "" {
			t.Error(diff)
		}
	})
}

// What is given to Do sees everything before it settled and nothing after it
// written.
func TestDoRunsBetweenBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j := &disk{gate: make(chan struct{})}, &journal{}
		c := commit.New(commit.Options{Store: d, Recorded: j.recorded})
		c.Start()
		var wg sync.WaitGroup
		publish(c, j, &wg, accept(1, 1, 0))
		synctest.Wait()
		c.Record(outcome(8))
		c.Do(func(context.Context) {
			j.add("done after %d batches", len(d.written()))
			c.Do(func(context.Context) { j.add("and what that asked for") })
		})
		publish(c, j, &wg, accept(2, 1, 0))
		synctest.Wait()
		close(d.gate)
		wg.Wait()
		synctest.Wait()
		stop(t, c)
		want := []string{"settled 1 true", "done after 1 batches", "settled 2 true", "recorded 8", "and what that asked for"}
		if diff := cmp.Diff(want, j.all()); diff != "" {
			t.Errorf("order (-want +got):\n%s", diff)
		}
		c.Do(func(context.Context) { t.Error("run after the end") })
		synctest.Wait()
	})
}

func TestCloseWritesWhatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j := &disk{gate: make(chan struct{})}, &journal{}
		c := commit.New(commit.Options{Store: d, Recorded: j.recorded})
		c.Start()
		var wg sync.WaitGroup
		publish(c, j, &wg, accept(1, 1, 0))
		synctest.Wait()
		publish(c, j, &wg, accept(2, 1, 0))
		c.Record(outcome(8))
		synctest.Wait()
		wg.Go(func() { stop(t, c) })
		synctest.Wait()
		publish(c, j, &wg, accept(3, 1, 0))
		synctest.Wait()
		if diff := cmp.Diff([]string{"settled 3 false", "answered 3 UNAVAILABLE"}, j.all()); diff != "" {
			t.Errorf("while closing (-want +got):\n%s", diff)
		}
		close(d.gate)
		wg.Wait()
		if diff := cmp.Diff([]string{"settled 1 true", "settled 2 true", "recorded 8"}, j.all()[2:]); diff != "" {
			t.Errorf("at the end (-want +got):\n%s", diff)
		}
		stop(t, c) // a second time is no harm
	})
}

// Out of time, Close answers everybody all the same.
func TestCloseOutOfTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j := &disk{gate: make(chan struct{})}, &journal{}
		c := commit.New(commit.Options{Store: d, Recorded: j.recorded})
		c.Start()
		var wg sync.WaitGroup
		publish(c, j, &wg, accept(1, 1, 0))
		synctest.Wait()
		publish(c, j, &wg, accept(2, 1, 0))
		c.Record(outcome(8))
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		wg.Go(func() {
			if err := c.Close(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("close: %v", err)
			}
		})
		synctest.Wait()
		close(d.gate) // what the store has begun, it ends
		wg.Wait()
		got := j.all()
		slices.Sort(got)
		if diff := cmp.Diff([]string{"answered 2 UNAVAILABLE", "settled 1 true", "settled 2 false"}, got); diff != "" {
			t.Errorf("settled (-want +got):\n%s", diff)
		}
		if len(d.written()) != 1 {
			t.Errorf("%d batches, want the one that had begun", len(d.written()))
		}
		if n := c.Unrecorded(); n != 1 {
			t.Errorf("%d unrecorded, want the one that was left", n)
		}
	})
}

// Many at once, and a thousand starts and ends. The race detector watches.
func TestStartAndCloseManyTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // fails if a goroutine is left
		for i := range 1000 {
			d := &disk{}
			var settled, recorded int
			c := commit.New(commit.Options{Store: d, Recorded: func(o []*store.Outcome) { recorded += len(o) }})
			c.Start()
			var wg sync.WaitGroup
			for n := range i % 5 {
				wg.Go(func() {
					if err := c.Accept(context.Background(), accept(byte(n), 1, 0), func(bool) { settled++ }); err != nil {
						t.Error(err)
					}
				})
				wg.Go(func() { c.Record(outcome(byte(n))) })
				wg.Go(func() { c.Do(func(context.Context) {}) })
			}
			wg.Wait()
			stop(t, c)
			if settled != i%5 || recorded != i%5 {
				t.Fatalf("%d settled and %d recorded of %d", settled, recorded, i%5)
			}
		}
	})
}
