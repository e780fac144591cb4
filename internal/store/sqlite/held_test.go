package sqlite

import (
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/store"
)

// TestReadersSettleTogether holds that those who read, and wait for the writer
// at the same time, don't each have it commit something: whoever publishes waits
// behind them.
func TestReadersSettleTogether(t *testing.T) {
	for _, c := range []struct {
		name    string
		tenants int
	}{{"of one tenant", 1}, {"of sixteen tenants", 16}} {
		t.Run(c.name, func(t *testing.T) {
			s := openAt(t, t.TempDir())
			var benches []*bench
			for range c.tenants {
				b := newBench(t, s)
				if err := s.Apply(t.Context(), &store.Batch{Accepts: b.accepts(2)}); err != nil {
					t.Fatal(err)
				}
				benches = append(benches, b)
			}
			release, err := s.takeTurn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			before := s.writer.executed
			var wg sync.WaitGroup
			for i := range 64 {
				wg.Go(func() {
					page, err := s.Deliveries(t.Context(), store.DeliveryQuery{Tenant: benches[i%c.tenants].tenant, Limit: 10})
					if err != nil || len(page.Deliveries) != 2 {
						t.Errorf("%+v, %v; want 2 deliveries", page, err)
					}
				})
			}
			for asked := 0; asked < c.tenants; { // until somebody of each waits for the turn
				if t.Context().Err() != nil {
					t.Fatal("they don't ask")
				}
				runtime.Gosched()
				s.held.mu.Lock()
				asked = len(s.held.asked)
				s.held.mu.Unlock()
			}
			release()
			wg.Wait()
			// BEGIN, COMMIT, and what inserts the rows.
			if n := s.writer.executed - before; n > 2*8+4 {
				t.Errorf("%d statements of the writer for 64 readers, want those of one or two transactions", n)
			}
		})
	}
}

// TestPruneWritesNoRows holds that a look for old history does not give rows to
// all that is being sent: the writer's time for that is not the history's.
func TestPruneWritesNoRows(t *testing.T) {
	s := openAt(t, t.TempDir())
	b := newBench(t, s)
	if err := s.Apply(t.Context(), &store.Batch{Accepts: b.accepts(1000)}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prune(t.Context(), store.PruneParams{Before: b.now.Add(-time.Hour), Now: b.now, Limit: 100}); err != nil {
		t.Fatal(err)
	}
	var n int64
	if err := s.writer.scan("SELECT count(*) FROM deliveries", func(r row) { n = r.int(0) }); err != nil || n != 0 {
		t.Errorf("%d rows, %v; want none: nothing of them is old", n, err)
	}
}

// TestOldAndNewInAnyOrder holds that a start after a crash makes no row again
// where a young delivery that is held comes before an old one, as when the ids of
// requests are made just before and after a moment, and written the other way. The
// call is bounded, so that it ends before it comes to the old one's event.
func TestOldAndNewInAnyOrder(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, dir)
	b := newBench(t, s)
	young, old := b.accepts(1), b.accepts(1)
	before := b.now.Add(-time.Hour)
	b.made(young[0], before)
	b.made(old[0], before.Add(-time.Millisecond))
	for _, a := range [][]*store.Accept{young, old} {
		if err := s.Apply(t.Context(), &store.Batch{Accepts: a}); err != nil {
			t.Fatal(err)
		}
	}
	o := b.outcome(old[0])
	o.At = b.now.Add(-2 * time.Hour)
	if err := s.Apply(t.Context(), &store.Batch{Outcomes: []*store.Outcome{o}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prune(t.Context(), store.PruneParams{Before: before, Now: b.now, Limit: 1}); err != nil {
		t.Fatal(err)
	}
	next := t.TempDir()
	copyFiles(t, dir, next)
	again := openAt(t, next)
	for _, st := range []*Store{again, s} {
		g, err := readGauge(st.writer, gaugeKey{tenant: b.tenant})
		if err != nil {
			t.Fatal(err)
		}
		page, err := st.Deliveries(t.Context(), store.DeliveryQuery{Tenant: b.tenant, Limit: 10})
		if err != nil || int64(len(page.Deliveries)) != g.total {
			t.Fatalf("%d deliveries, %v; the gauge says %d", len(page.Deliveries), err, g.total)
		}
	}
}

// TestWhatIsNotHeldIsBoundedToo holds that a start after a crash does not look
// through all the events that went by way of the disk while one was held.
func TestWhatIsNotHeldIsBoundedToo(t *testing.T) {
	for _, stuck := range []bool{true, false} {
		s := openAt(t, t.TempDir())
		b := newBench(t, s)
		first := b.accepts(1)
		if err := s.Apply(t.Context(), &store.Batch{Accepts: first}); err != nil {
			t.Fatal(err)
		}
		if !stuck {
			if err := s.Apply(t.Context(), &store.Batch{Outcomes: b.outcomes(first[0])}); err != nil {
				t.Fatal(err)
			}
		}
		const size = 512
		for n := 0; n < 2*heldSpan; n += size {
			next := b.accepts(size)
			for _, a := range next {
				a.Events[0].Deliveries[0].Held = false
			}
			if err := s.Apply(t.Context(), &store.Batch{Accepts: next}); err != nil {
				t.Fatal(err)
			}
		}
		var from int64
		if err := s.writer.scan("SELECT value FROM settings WHERE name = 'held_from'", func(r row) { from = r.int(0) }); err != nil {
			t.Fatal(err)
		}
		if behind := s.held.last - from; behind > heldSpan+heldSpan/noteParts+size {
			t.Errorf("stuck %v: a start would look through %d events", stuck, behind)
		}
	}
}

// TestHeldDeliveriesWriteNoRow holds that the row of a delivery is written once
// where nobody asks for it before its outcome.
func TestHeldDeliveriesWriteNoRow(t *testing.T) {
	s := openAt(t, t.TempDir())
	b := newBench(t, s)
	rows := func() (n int64) {
		if err := s.writer.scan("SELECT count(*) FROM deliveries", func(r row) { n = r.int(0) }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	accepts := b.accepts(4)
	if err := s.Apply(t.Context(), &store.Batch{Accepts: accepts}); err != nil {
		t.Fatal(err)
	}
	if n := rows(); n != 0 {
		t.Fatalf("%d rows before anything is to be said, want none", n)
	}
	if err := s.Apply(t.Context(), &store.Batch{Outcomes: b.outcomes(accepts[0])}); err != nil {
		t.Fatal(err)
	}
	if n := rows(); n != 1 {
		t.Fatalf("%d rows after an outcome, want its one", n)
	}
	page, err := s.Deliveries(t.Context(), store.DeliveryQuery{Tenant: b.tenant, Limit: 10})
	if err != nil || len(page.Deliveries) != 4 {
		t.Fatalf("somebody who asks sees %d deliveries, %v; want 4", len(page.Deliveries), err)
	}
	if s.held.any(b.tenant) || len(s.held.lanes)+len(s.held.events)+s.held.span+s.held.bytes != 0 {
		t.Errorf("something is left of what was held: %+v", s.held)
	}
}

// TestHeldIsBounded holds that a start after a crash never has to look through
// more than a bounded number of events, however long something is held.
func TestHeldIsBounded(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, dir)
	b := newBench(t, s)
	stuck := b.accepts(1)
	if err := s.Apply(t.Context(), &store.Batch{Accepts: stuck}); err != nil {
		t.Fatal(err)
	}
	const size = 512
	var before []*store.Accept
	for n := 0; n < 2*heldSpan; n += size {
		next := &store.Batch{Accepts: b.accepts(size)}
		for _, a := range before {
			next.Outcomes = append(next.Outcomes, b.outcomes(a)...)
		}
		if err := s.Apply(t.Context(), next); err != nil {
			t.Fatal(err)
		}
		before = next.Accepts
		if s.held.span > heldSpan {
			t.Fatalf("%d deliveries stand behind the first without a row, want %d at most", s.held.span, heldSpan)
		}
	}
	if r := s.held.lanes[gaugeKey{b.tenant, stuck[0].Events[0].Deliveries[0].Webhook}][stuck[0].Events[0].Deliveries[0].ID]; r != nil {
		t.Error("the delivery that was held all the time has no row yet")
	}
	var from int64
	if err := s.writer.scan("SELECT value FROM settings WHERE name = 'held_from'", func(r row) { from = r.int(0) }); err != nil {
		t.Fatal(err)
	}
	if behind := s.held.last - from; behind > heldSpan+heldSpan/noteParts+size {
		t.Errorf("a start would look through %d events", behind)
	}
}

// TestPruneIsNotUndone holds that a start after a crash makes no rows of
// deliveries that were deleted as history.
func TestPruneIsNotUndone(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, dir)
	b := newBench(t, s)
	accepts := b.accepts(3)
	if err := s.Apply(t.Context(), &store.Batch{Accepts: accepts}); err != nil {
		t.Fatal(err)
	}
	if err := s.Apply(t.Context(), &store.Batch{Outcomes: append(b.outcomes(accepts[0]), b.outcomes(accepts[1])...)}); err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(time.Hour)
	if _, err := s.Prune(t.Context(), store.PruneParams{Before: later, Now: later, Limit: 2}); err != nil { // the deliveries, not yet their events
		t.Fatal(err)
	}
	next := t.TempDir()
	copyFiles(t, dir, next)
	again := openAt(t, next)
	page, err := again.Deliveries(t.Context(), store.DeliveryQuery{Tenant: b.tenant, Limit: 10})
	if err != nil || len(page.Deliveries) != 1 || page.Deliveries[0].Status != hook.StatusPending {
		t.Fatalf("after the crash there are %+v, %v; want the one that waits", page, err)
	}
}
