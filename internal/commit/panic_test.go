package commit_test

import (
	"bytes"
	"context"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/plinqx/hypha/internal/commit"
	"github.com/plinqx/hypha/internal/contain"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

const secretText = "whsec_in-a-panic"

// An event that makes the store panic is refused, alone: what was in its batch is
// written, and so is what comes after.
func TestStorePanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		var counted []contain.Where
		guard := contain.New(contain.Options{
			Logger: slog.New(slog.NewTextHandler(&log, nil)), Counted: func(w contain.Where) { counted = append(counted, w) }, End: func() { t.Error("the process ends") },
		})
		d, j, wg := &disk{gate: make(chan struct{})}, &journal{}, &sync.WaitGroup{}
		d.answer = func(b *store.Batch) error {
			if slices.ContainsFunc(b.Accepts, func(a *store.Accept) bool { return a.Events[0].ID[0] == 3 }) {
				panic(secretText)
			}
			return nil
		}
		c := commit.New(commit.Options{Store: d, Guard: guard, Recorded: j.recorded})
		c.Start()
		publish(c, j, wg, accept(1, 1, 1)) // holds the committer, so that the others gather
		synctest.Wait()
		for _, name := range []byte{2, 3, 4} {
			publish(c, j, wg, accept(name, 1, 1))
			synctest.Wait()
		}
		c.Record(outcome(9))
		close(d.gate)
		wg.Wait()
		publish(c, j, wg, accept(5, 1, 1))
		wg.Wait()
		if err := c.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		got := j.all()
		slices.Sort(got)
		want := []string{
			"answered 3 INTERNAL_ERROR", "recorded 9",
			"settled 1 true", "settled 2 true", "settled 3 false", "settled 4 true", "settled 5 true",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if !slices.Equal(counted, []contain.Where{contain.Store, contain.Store}) { // with the batch, and alone
			t.Errorf("counted %v", counted)
		}
		if strings.Contains(log.String(), secretText) {
			t.Errorf("logged:\n%s", &log)
		}
	})
}

// Where the committer itself panics, nobody is told anything any more: the process
// ends.
func TestCommitterPanics(t *testing.T) {
	for name, breaks := range map[string]func(c *commit.Committer, o *commit.Options){
		"in what it is given to do": func(c *commit.Committer, _ *commit.Options) {
			c.Do(func(context.Context) { panic(secretText) })
		},
		"in what it tells": func(c *commit.Committer, o *commit.Options) {
			o.Recorded = func([]*store.Outcome) { panic(secretText) }
			c.Record(&store.Outcome{Delivery: id.Delivery{1}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			ended := make(chan struct{})
			var log bytes.Buffer
			o := commit.Options{Store: &disk{}}
			o.Guard = contain.New(contain.Options{
				Logger: slog.New(slog.NewTextHandler(&log, nil)), Counted: func(contain.Where) { t.Error("it is said to be contained") },
				End: func() { close(ended); runtime.Goexit() },
			})
			recorded := func([]*store.Outcome) {}
			o.Recorded = func(all []*store.Outcome) { recorded(all) }
			c := commit.New(o)
			breaks(c, &o)
			recorded = o.Recorded
			c.Start()
			<-ended
			if strings.Count(log.String(), "the committer") != 1 || strings.Contains(log.String(), secretText) {
				t.Errorf("logged:\n%s", &log)
			}
		})
	}
}
