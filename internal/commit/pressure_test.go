package commit_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plinqx/hypha/internal/commit"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// costs is an answer of a disk that takes its time: of a fake clock.
func costs(fixed, each time.Duration) func(*store.Batch) error {
	return func(b *store.Batch) error {
		rows := len(b.Outcomes)
		for _, a := range b.Accepts {
			rows += len(a.Events) + len(a.Events[0].Deliveries)
		}
		time.Sleep(fixed + time.Duration(rows)*each)
		return nil
	}
}

// tally is what became of a tenant's publishes.
type tally struct {
	mu       sync.Mutex
	accepted int
	refused  map[hook.Code]int
	longest  time.Duration // until an answer
}

// offer publishes an event with one delivery every so often, for a time, as many
// publishers would: nobody waits for the answer before the next.
func offer(c *commit.Committer, wg *sync.WaitGroup, tenant byte, every, span time.Duration) *tally {
	t := &tally{refused: map[hook.Code]int{}}
	wg.Go(func() {
		for end := time.Now().Add(span); time.Now().Before(end); time.Sleep(every) {
			wg.Go(func() {
				a := accept(tenant, 1, 100)
				a.Tenant = id.Tenant{tenant}
				begin := time.Now()
				err := c.Accept(context.Background(), a, func(bool) {})
				took := time.Since(begin)
				t.mu.Lock()
				defer t.mu.Unlock()
				t.longest = max(t.longest, took)
				if err == nil {
					t.accepted++
				} else {
					t.refused[hook.CodeOf(err)]++
				}
			})
		}
	})
	return t
}

// Ten times more comes than can be written: nobody waits long, and what can be
// written is.
func TestTenTimesTooMuch(t *testing.T) {
	for _, tc := range []struct {
		name        string
		fixed, each time.Duration
		every       time.Duration
		span        time.Duration
		least       int           // events
		longest     time.Duration // until an answer
	}{
		{"a usual disk", time.Millisecond, 100 * time.Microsecond, 20 * time.Microsecond, 2 * time.Second, 8000, 500 * time.Millisecond},
		{"a slow machine", 5 * time.Millisecond, 2 * time.Millisecond, 400 * time.Microsecond, 5 * time.Second, 1000, time.Second},
		{"a slow sync", 200 * time.Millisecond, 400 * time.Microsecond, 40 * time.Microsecond, 5 * time.Second, 2500, 1500 * time.Millisecond},
		// What each transaction takes, whatever is in it, is no queue's fault.
		{"a sync that is as slow as can be", 600 * time.Millisecond, 400 * time.Microsecond, 100 * time.Microsecond, 5 * time.Second, 1000, 2500 * time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				refused := map[commit.Reason]int{}
				var mu sync.Mutex
				c := commit.New(commit.Options{Store: &disk{answer: costs(tc.fixed, tc.each)}, Refused: func(why commit.Reason, n int) {
					mu.Lock()
					defer mu.Unlock()
					refused[why] += n
				}})
				c.Start()
				var wg sync.WaitGroup
				got := offer(c, &wg, 1, tc.every, tc.span)
				wg.Wait()
				stop(t, c)
				t.Logf("%d accepted, refused %v (%v), the longest after %v", got.accepted, got.refused, refused, got.longest)
				if got.longest > tc.longest {
					t.Errorf("an answer took %v, want %v at most", got.longest, tc.longest)
				}
				if got.accepted < tc.least {
					t.Errorf("%d accepted, want %d at least", got.accepted, tc.least)
				}
				// One tenant may have half of all that may wait.
				if n := refused[commit.Overloaded] + refused[commit.Stalled]; n == 0 || n != got.refused[hook.CodeUnavailable] {
					t.Errorf("refused with %v, counted are %v", got.refused, refused)
				}
				if n := refused[commit.TenantShare]; n != got.refused[hook.CodeRateLimited] {
					t.Errorf("refused with %v, counted are %v", got.refused, refused)
				}
			})
		})
	}
}

// A tenant that publishes twenty times its share is refused by itself.
func TestAnotherTenantIsNotRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// 5,000 events a second can be written.
		c := commit.New(commit.Options{Store: &disk{answer: costs(time.Millisecond, 100*time.Microsecond)}})
		c.Start()
		var wg sync.WaitGroup
		const span = 2 * time.Second
		flood := offer(c, &wg, 1, 20*time.Microsecond, span)
		steady := offer(c, &wg, 2, 500*time.Microsecond, span)
		rare := offer(c, &wg, 3, 50*time.Millisecond, span)
		wg.Wait()
		stop(t, c)
		t.Logf("flood: %d, refused %v, longest %v", flood.accepted, flood.refused, flood.longest)
		t.Logf("steady: %d, refused %v, longest %v", steady.accepted, steady.refused, steady.longest)
		t.Logf("rare: %d, refused %v, longest %v", rare.accepted, rare.refused, rare.longest)
		for name, got := range map[string]*tally{"within its share": steady, "one now and then": rare} {
			if len(got.refused) > 0 || got.longest > 400*time.Millisecond {
				t.Errorf("%s: refused %v, an answer took %v", name, got.refused, got.longest)
			}
		}
		if flood.refused[hook.CodeRateLimited] == 0 || flood.longest > time.Second {
			t.Errorf("the flood: refused %v, an answer took %v", flood.refused, flood.longest)
		}
		if flood.accepted < 10_000*8/10-steady.accepted {
			t.Errorf("the flood got %d of what was left", flood.accepted)
		}
	})
}

// While the store hangs everybody is answered soon, and when it is back it is as
// if nothing had been.
func TestTheStoreHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &disk{gate: make(chan struct{})}
		var refused []commit.Reason
		c := commit.New(commit.Options{Store: d, Refused: func(why commit.Reason, n int) {
			for range n {
				refused = append(refused, why)
			}
		}})
		c.Start()
		j := &journal{}
		var wg sync.WaitGroup
		publish(c, j, &wg, accept(1, 1, 0))
		synctest.Wait()
		publish(c, j, &wg, accept(2, 1, 0)) // waits behind it
		time.Sleep(300 * time.Millisecond)
		publish(c, j, &wg, accept(3, 1, 0))
		time.Sleep(299 * time.Millisecond)
		synctest.Wait()
		if len(j.all()) != 0 {
			t.Fatalf("answered before it hung for long: %v", j.all())
		}
		if err := c.Admit(id.Tenant{7}); err != nil {
			t.Fatalf("not let in before it hung for long: %v", err)
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		want := []string{"settled 2 false", "answered 2 UNAVAILABLE", "settled 3 false", "answered 3 UNAVAILABLE"}
		if got := j.all(); len(got) != 4 || got[0] != want[0] {
			t.Fatalf("after 0.6 s: %v, want %v", got, want)
		}
		for range 20 { // seconds
			time.Sleep(time.Second)
			begin := time.Now()
			err := c.Accept(t.Context(), accept(4, 1, 0), func(ok bool) { j.add("settled 4 %t", ok) })
			if hook.CodeOf(err) != hook.CodeUnavailable || time.Since(begin) != 0 || hook.CodeOf(c.Admit(id.Tenant{7})) != hook.CodeUnavailable {
				t.Fatalf("while it hangs: %v after %v", err, time.Since(begin))
			}
		}
		close(d.gate)
		wg.Wait()
		if err := c.Accept(t.Context(), accept(5, 1, 0), func(bool) {}); err != nil {
			t.Errorf("when it is back: %v", err)
		}
		stop(t, c)
		if len(refused) != 2+2*20 {
			t.Errorf("%d refusals are counted", len(refused))
		}
		for _, why := range refused {
			if why != commit.Stalled {
				t.Errorf("refused for %s", why)
			}
		}
		if n := len(d.written()); n != 2 {
			t.Errorf("%d batches, want that of 1 and that of 5", n)
		}
	})
}

// What is not refused at the door, because it could be hoped to be in time, is
// refused when it is not.
func TestWhatIsLateIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &disk{answer: costs(0, time.Millisecond)} // 500 events a second
		c := commit.New(commit.Options{Store: d})
		c.Start()
		var wg sync.WaitGroup
		const span = 3 * time.Second
		first := offer(c, &wg, 1, time.Millisecond, span)
		time.Sleep(time.Second)
		// Nine others share with it what it had alone.
		var others []*tally
		for i := byte(2); i < 11; i++ {
			others = append(others, offer(c, &wg, i, 5*time.Millisecond, span-time.Second))
		}
		wg.Wait()
		stop(t, c)
		for _, got := range append(others, first) {
			if got.longest > 1200*time.Millisecond {
				t.Errorf("an answer took %v", got.longest)
			}
			if got.accepted == 0 {
				t.Error("a tenant got nothing")
			}
		}
	})
}

func TestWhyItWasRefused(t *testing.T) {
	for _, tc := range []struct {
		name   string
		answer func(*store.Batch) error
		want   commit.Reason
	}{
		{"the store is away", func(*store.Batch) error { return unavailable() }, commit.StoreDown},
		{"the tenant has too much", func(b *store.Batch) error {
			b.Accepts[0].Err = &hook.Error{Code: hook.CodeRateLimited}
			return nil
		}, commit.TenantBacklog},
		{"a conflict is no refusal", func(b *store.Batch) error {
			b.Accepts[0].Err = hook.Conflict("taken")
			return nil
		}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var got commit.Reason
				c := commit.New(commit.Options{Store: &disk{answer: tc.answer}, Refused: func(why commit.Reason, _ int) { got = why }})
				c.Start()
				if err := c.Accept(t.Context(), accept(1, 1, 0), func(bool) {}); err == nil {
					t.Error("accepted")
				}
				stop(t, c)
				if got != tc.want {
					t.Errorf("for %q, want %q", got, tc.want)
				}
				if err := c.Admit(id.Tenant{1}); hook.CodeOf(err) != hook.CodeUnavailable || got != commit.Draining {
					t.Errorf("after the end: %v, %q", err, got)
				}
			})
		})
	}
}

// Many functions that take long do not keep those who publish waiting.
func TestFunctionsTakeTurnsWithBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := commit.New(commit.Options{Store: &disk{}})
		ran := 0
		for i := range 200 {
			c.Do(func(context.Context) {
				if ran != i {
					t.Errorf("the function %d ran as number %d", i, ran)
				}
				ran++
				time.Sleep(10 * time.Millisecond)
			})
		}
		c.Start()
		time.Sleep(5 * time.Millisecond)
		begin := time.Now()
		if err := c.Accept(t.Context(), accept(1, 1, 0), func(bool) {}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > 150*time.Millisecond {
			t.Errorf("an accept waited %v", took)
		}
		stop(t, c)
		if ran != 200 {
			t.Errorf("%d of 200 ran", ran)
		}
	})
}

func TestGaugeAndIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &disk{gate: make(chan struct{})}
		c := commit.New(commit.Options{Store: d})
		if !c.Idle(0) {
			t.Error("it is busy before it began")
		}
		c.Start()
		j := &journal{}
		var wg sync.WaitGroup
		publish(c, j, &wg, accept(1, 1, 0))
		synctest.Wait()
		publish(c, j, &wg, accept(2, 2, 50))
		synctest.Wait()
		c.Record(outcome(9))
		time.Sleep(200 * time.Millisecond)
		if g := c.Gauge(); g.Rows != 3 || g.Bytes != 50 || g.Tenants != 1 || g.Unrecorded != 1 || g.Wait < 190*time.Millisecond {
			t.Errorf("%+v", g)
		}
		if c.Idle(0) {
			t.Error("idle while it writes")
		}
		close(d.gate)
		wg.Wait()
		synctest.Wait()
		if g := c.Gauge(); g != (commit.Gauge{}) {
			t.Errorf("with nothing to do: %+v", g)
		}
		if c.Idle(time.Second) {
			t.Error("idle for a second already")
		}
		time.Sleep(time.Second)
		if !c.Idle(time.Second) {
			t.Error("not idle after a second of nothing")
		}
		stop(t, c)
	})
}
