package catalog_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
)

// notes writes down which webhooks the catalogue tells of, and what it holds of them.
type notes struct {
	w     *world
	lines []string
}

func (n *notes) WebhookChanged(_ id.Tenant, webhook id.Webhook) {
	line := string('0'+webhook[0]) + " gone"
	if w, _ := n.w.catalog.Held(tenant, webhook); w != nil {
		line = w.Name
		if !w.Enabled {
			line += " off"
		}
		if !w.PausedUntil.IsZero() {
			line += " paused"
		}
	}
	n.lines = append(n.lines, line)
}

func (n *notes) told() string {
	slices.Sort(n.lines)
	lines := strings.Join(n.lines, ", ")
	n.lines = nil
	return lines
}

// three is a catalogue that holds three webhooks, at version 4.
func three(t *testing.T) (*world, *notes) {
	w := newWorld(t)
	n := &notes{w: w}
	w.catalog.Observe(n)
	for i := range 3 {
		w.putWebhook(t, webhook(byte(i+1)))
	}
	if _, err := w.catalog.Tenant(t.Context(), tenant); err != nil {
		t.Fatal(err)
	}
	n.lines = nil
	w.reads = 0
	return w, n
}

// elsewhere makes three changes that another process makes: one webhook off, one
// gone, one new. It answers their last version.
func (w *world) elsewhere(t *testing.T) int64 {
	off := webhook(1)
	off.Revision, off.Enabled = 2, false
	w.putWebhook(t, off)
	w.deleteWebhook(id.Webhook{2})
	w.putWebhook(t, webhook(4))
	return w.config.Version
}

const changedElsewhere = "2 gone, w1 off, w4"

func TestMoved(t *testing.T) {
	ctx := context.Background()
	for name, tc := range map[string]struct {
		do    func(t *testing.T, w *world)
		want  string
		reads int
	}{
		"changed elsewhere":      {func(t *testing.T, w *world) { moved(t, w, w.elsewhere(t)) }, changedElsewhere, 1},
		"told twice":             {func(t *testing.T, w *world) { v := w.elsewhere(t); moved(t, w, v); moved(t, w, v) }, changedElsewhere, 1},
		"told of the one before": {func(t *testing.T, w *world) { v := w.elsewhere(t); moved(t, w, v); moved(t, w, v-1) }, changedElsewhere, 1},
		"held already":           {func(t *testing.T, w *world) { moved(t, w, 4) }, "", 0},
		// Whoever finds out first, all that changed is told of.
		"an accept finds out": {func(t *testing.T, w *world) {
			v := w.elsewhere(t)
			if _, err := w.catalog.Refresh(ctx, tenant, 4); err != nil {
				t.Fatal(err)
			}
			moved(t, w, v)
		}, changedElsewhere, 1},
		"a change from here finds out": {func(t *testing.T, w *world) {
			v := w.elsewhere(t)
			on := webhook(3)
			on.Revision = 2
			w.putWebhook(t, on)
			w.untold[len(w.untold)-1]() // this one is ours
			moved(t, w, v)
			moved(t, w, v+1)
		}, "2 gone, 3 gone, w1 off, w3, w4", 1}, // ours is told of at once, when nothing is held
		"removed": {func(t *testing.T, w *world) { moved(t, w, 0); moved(t, w, 0) }, "1 gone, 2 gone, 3 gone", 0},
		"found removed": {func(t *testing.T, w *world) {
			w.err = hook.NotFound("Tenant")
			moved(t, w, 9)
		}, "1 gone, 2 gone, 3 gone", 1},
		"after a time without news": {func(t *testing.T, w *world) {
			w.elsewhere(t)
			if err := w.catalog.Renew(ctx); err != nil {
				t.Fatal(err)
			}
		}, changedElsewhere, 1},
		"nothing was missed": {func(t *testing.T, w *world) {
			if err := w.catalog.Renew(ctx); err != nil {
				t.Fatal(err)
			}
		}, "", 1},
		"the store is away": {func(t *testing.T, w *world) {
			v := w.elsewhere(t)
			w.err = hook.Unavailable(time.Second, nil, "away")
			if err := w.catalog.Moved(ctx, tenant, v); hook.CodeOf(err) != hook.CodeUnavailable {
				t.Errorf("%v", err)
			}
			if err := w.catalog.Renew(ctx); hook.CodeOf(err) != hook.CodeUnavailable {
				t.Errorf("%v", err)
			}
			w.err = nil
			moved(t, w, v)
		}, changedElsewhere, 3},
	} {
		t.Run(name, func(t *testing.T) {
			w, n := three(t)
			tc.do(t, w)
			if got := n.told(); got != tc.want || w.reads != tc.reads {
				t.Errorf("told of %q with %d reads, want %q with %d", got, w.reads, tc.want, tc.reads)
			}
		})
	}
}

func moved(t *testing.T, w *world, version int64) {
	t.Helper()
	if err := w.catalog.Moved(context.Background(), tenant, version); err != nil {
		t.Fatal(err)
	}
}

func TestMovedLeavesAloneWhatNobodyAskedFor(t *testing.T) {
	w := newWorld(t)
	moved(t, w, 7)
	moved(t, w, 0)
	w.catalog.PausedElsewhere(1, tenant, id.Webhook{1}, noon)
	if w.reads != 0 {
		t.Errorf("%d reads", w.reads)
	}
}

func TestPausedElsewhere(t *testing.T) {
	w, n := three(t)
	mark := w.catalog.Mark()
	for range 3 {
		w.catalog.PausedElsewhere(mark, tenant, id.Webhook{1}, noon)
	}
	w.catalog.PausedElsewhere(mark, tenant, id.Webhook{9}, noon) // there is none
	if got := n.told(); got != "w1 paused" {
		t.Errorf("told of %q", got)
	}
	// A pause from here stands against what was read before it.
	w.catalog.Pause(tenant, id.Webhook{1}, noon.Add(time.Hour))
	n.told()
	w.catalog.PausedElsewhere(mark, tenant, id.Webhook{1}, noon)
	if got := n.told(); got != "" {
		t.Errorf("told of %q", got)
	}
	w.catalog.PausedElsewhere(w.catalog.Mark(), tenant, id.Webhook{1}, time.Time{})
	if diff := gocmp.Diff("w1", n.told()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if w.reads != 0 {
		t.Errorf("%d reads", w.reads)
	}
}

func TestRecheckReadsOnceInASecond(t *testing.T) {
	w, n := three(t)
	w.elsewhere(t)
	for range 10 {
		if _, err := w.catalog.Recheck(t.Context(), tenant); err != nil {
			t.Fatal(err)
		}
	}
	if got := n.told(); w.reads > 1 || w.reads == 1 && got != changedElsewhere {
		t.Errorf("%d reads, told of %q", w.reads, got)
	}
}
