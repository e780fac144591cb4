package sqlite

import (
	"testing"

	"github.com/plinqx/hypha/internal/store"
)

// TestCountsAreFolded holds that what batches count is folded into the tables
// when there is enough of it, and before somebody reads, once for all who do.
func TestCountsAreFolded(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, dir)
	b := newBench(t, s)
	logged := func(s *Store) (n int) {
		if err := s.writer.scan("SELECT count(*) FROM count_log", func(r row) { n = int(r.int(0)) }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	most := 0
	for range 3 * foldRows {
		a := b.accepts(1)
		if err := s.Apply(t.Context(), &store.Batch{Accepts: a}); err != nil {
			t.Fatal(err)
		}
		if err := s.Apply(t.Context(), &store.Batch{Outcomes: b.outcomes(a[0])}); err != nil {
			t.Fatal(err)
		}
		most = max(most, logged(s))
	}
	if most != foldRows {
		t.Errorf("the log has up to %d rows, want %d", most, foldRows)
	}
	a := b.accepts(1)
	if err := s.Apply(t.Context(), &store.Batch{Accepts: a}); err != nil {
		t.Fatal(err)
	}

	next := t.TempDir()
	copyFiles(t, dir, next)
	again := openAt(t, next)
	if n := logged(again); n != 0 {
		t.Errorf("after a crash and a start the log has %d rows, want none", n)
	}
	for _, st := range []*Store{s, again} {
		got, err := st.Stats(t.Context(), store.StatsQuery{Tenant: b.tenant})
		if err != nil || got.Succeeded != 3*foldRows || got.Pending != 1 {
			t.Errorf("stats are %+v, %v; want %d successes, and one that waits", got, err, 3*foldRows)
		}
		if n := logged(st); n != 0 {
			t.Errorf("after somebody read, the log has %d rows, want none", n)
		}
		before := st.writer.executed
		if _, err := st.Stats(t.Context(), store.StatsQuery{Tenant: b.tenant}); err != nil || st.writer.executed != before {
			t.Errorf("a second look has the writer do something: %d statements, %v", st.writer.executed-before, err)
		}
	}
}
