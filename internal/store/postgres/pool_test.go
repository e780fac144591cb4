package postgres

import (
	"os"
	"slices"
	"testing"

	"github.com/plinqx/hypha/internal/store/storetest"
)

// pooled is a way to databases on which each transaction may come to another session
// than the one before, and nothing can be prepared.
func pooled(t *testing.T) func(url string) string {
	t.Helper()
	through := server.Pooled(t)
	return func(url string) string { return with(t, through(url), "default_query_exec_mode", "exec") }
}

// What is written goes through a proxy in the ordinary run, all of it with
// HYPHA_SOAK=1.
func TestStoreThroughPool(t *testing.T) {
	groups := []string{"Accept", "Queue", "Outcome", "Jobs", "Configuration", "Directory"}
	if os.Getenv("HYPHA_SOAK") != "" {
		groups = nil
	}
	through := pooled(t)
	storetest.Run(t, func(t *testing.T) storetest.Harness {
		t.Parallel()
		return harnessAt(t, through(server.Reused(t, wipe)))
	}, groups...)
}

func TestNodesThroughPool(t *testing.T) {
	through := pooled(t)
	n := newNodes(t)
	n.url = through(n.url)
	a, b := n.join(), n.join()
	hotPath(t, n, a)
	held := n.accept(a, 2, true)
	if p := n.beat(b); len(p.Peers) != 1 || p.Peers[0].Node != a.Node() {
		t.Errorf("peers are %+v; want node %d", p.Peers, a.Node())
	}
	takeOver(t, b, a.Node())
	late, _ := n.batch(1, true)
	wantFenced(t, "Apply", a.Apply(t.Context(), late))
	free := n.claim(b)
	for _, d := range held {
		if !slices.Contains(free, d) {
			t.Errorf("delivery %s of the dead node is not free", d)
		}
	}
	must(t, a.Join(t.Context()))
	n.accept(a, 1, true)
}

func TestMigrateThroughPool(t *testing.T) {
	url := pooled(t)(emptyDatabase(t))
	errs := make(chan error, 3)
	for range cap(errs) {
		go func() {
			_, err := Up(t.Context(), url)
			errs <- err
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	openAt(t, url)
}
