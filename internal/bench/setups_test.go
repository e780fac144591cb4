package bench

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// figures are the values by name.
func figures(sr ScenarioReport) map[string]float64 {
	out := map[string]float64{}
	for _, f := range sr.Figures {
		out[f.Name] = f.Value
	}
	return out
}

// runOf is the run of a column.
func runOf(t *testing.T, sr ScenarioReport, column string) Result {
	t.Helper()
	for _, r := range sr.Runs {
		if r.Subject == column {
			return r
		}
	}
	t.Fatalf("no run of %q", column)
	return Result{}
}

func TestIsolation(t *testing.T) {
	for _, tt := range []struct {
		scenario, ill string
		spread        bool
	}{
		{"isolation-hanging", modeHang, true},
		{"isolation-failing", modeFail, false},
		{"isolation-429", modeBusy, false},
		{"isolation-drip", modeDrip, true},
	} {
		t.Run(tt.scenario, func(t *testing.T) {
			o := short(t)
			// The fake server has 32 senders: those that hang may hold ten.
			o.Scenario, o.Pairs, o.Fanout, o.Rate, o.Spread, o.Warmup = tt.scenario, 1, 20, 60, new(tt.spread), -1
			report, out, err := bench(t, t.Context(), o)
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			sr := report.Scenarios[0]
			for _, column := range []string{"disturbed", "calm"} {
				r := runOf(t, sr, column)
				// 18 events: for all 20 webhooks, or one each. The last ten of them are
				// not measured.
				want := r.Accepted * 10
				if tt.spread {
					want = 10
				}
				if r.Accepted != 18 || r.Delivered != want || r.Lost+r.Duplicates+r.BystanderDuplicates+r.Unaccepted != 0 {
					t.Errorf("%s: %+v, want 18 events and %d deliveries", column, r, want)
				}
				mode := map[string]string{"disturbed": tt.ill, "calm": modeWell}[column]
				if r.Bystanders[mode] == 0 || len(r.Bystanders) != 1 {
					t.Errorf("%s: requests to bystanders %v, want only %q", column, r.Bystanders, mode)
				}
			}
			if sr.Ratios["disturbed/calm"]["latencyP99Ms"] <= 0 || !strings.Contains(out, "disturbed/calm") {
				t.Errorf("ratios %v\n%s", sr.Ratios, out)
			}
		})
	}
}

func TestIsolationFindsDuplicatesAtBystanders(t *testing.T) {
	o := short(t)
	o.Scenario, o.Pairs, o.Fanout, o.Rate, o.Warmup, o.ServeArgs = "isolation-429", 1, 11, 40, -1, []string{"--fault", "double"}
	report, out, err := bench(t, t.Context(), o)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// Of 12 events one comes twice, to ten bystanders. Those that answer 429 may
	// well get it again.
	for column, want := range map[string]float64{"calm": 10, "disturbed": 0} {
		if got := report.Scenarios[0].Summary[column]["bystanderDuplicates"]; got != want {
			t.Errorf("%s: %v duplicates at bystanders, want %v\n%s", column, got, want, out)
		}
	}
}

func TestSecondTenant(t *testing.T) {
	o := short(t)
	o.Scenario, o.Pairs, o.Fanout, o.Rate = "isolation-tenant", 2, 5, 20
	report, out, err := bench(t, t.Context(), o)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	sr := report.Scenarios[0]
	var order []string
	for _, r := range sr.Runs {
		order = append(order, r.Subject)
		consistent(t, r, 1)
		want := uint64(0)
		if r.Subject == "disturbed" {
			want = neighbourFactor * r.Accepted
		}
		if got := r.Bystanders[modeWell]; got > want || got == 0 && want > 0 {
			t.Errorf("%s: %d deliveries of the second tenant, want %d at most", r.Subject, got, want)
		}
		if (r.NeighbourPerSecond > 0) != (want > 0) {
			t.Errorf("%s: the second tenant published %v/s", r.Subject, r.NeighbourPerSecond)
		}
	}
	if diff := cmp.Diff([]string{"disturbed", "calm", "calm", "disturbed"}, order); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

func TestBacklog(t *testing.T) {
	for _, tt := range []struct {
		fault string
		check func(t *testing.T, f map[string]float64)
		lost  bool
	}{
		{fault: "", check: func(t *testing.T, f map[string]float64) {
			// A sender that the machine holds up may fall behind, but not the whole way.
			if f["displacement"] >= 900 || f["backlogLost"] != 0 || f["backlogDuplicates"] != 0 {
				t.Errorf("figures %v, want all in order", f)
			}
		}},
		{fault: "backwards", check: func(t *testing.T, f map[string]float64) {
			if f["displacement"] < 900 {
				t.Errorf("displacement %v, want nearly the whole of what was not tried: newest first", f["displacement"])
			}
		}},
		{fault: "forget", lost: true, check: func(t *testing.T, f map[string]float64) {
			if f["backlogLost"] == 0 {
				t.Errorf("figures %v, want a loss", f)
			}
		}},
	} {
		t.Run("fault "+tt.fault, func(t *testing.T) {
			o := short(t)
			o.Scenario, o.Backlog, o.ServeArgs = "backlog", 1500, []string{"--fault", tt.fault}
			if tt.lost {
				o.DrainIdle = 300 * ms
			}
			report, out, err := bench(t, t.Context(), o)
			if errors.Is(err, ErrLost) != tt.lost || !tt.lost && err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			sr := report.Scenarios[0]
			f := figures(sr)
			if f["queued"] != 2000 || f["tried"] == 0 || f["readySeconds"] <= 0 {
				t.Errorf("figures %v: want 2 batches of 1,000 queued, some of them tried, and a restart", f)
			}
			tt.check(t, f)
			for _, column := range []string{"normal", "before", "beside"} {
				consistent(t, runOf(t, sr, column), 1)
			}
			if !strings.Contains(out, "drained at, deliveries/s") || sr.Ratios["beside/before"]["latencyP99Ms"] <= 0 {
				t.Errorf("ratios %v\n%s", sr.Ratios, out)
			}
		})
	}
}

func TestHistory(t *testing.T) {
	o := short(t)
	kept := filepath.Join(t.TempDir(), "kept")
	o.Scenario, o.Pairs, o.History, o.Webhooks, o.KeepData = "history", 2, 500, 20, kept
	for _, want := range []string{"Filling a store with 500 deliveries of 20 webhooks", ""} { // the second time it is there
		report, out, err := bench(t, t.Context(), o)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if (want == "") == strings.Contains(out, "Filling a store") || !strings.Contains(out, want) {
			t.Errorf("it must fill a store the first time, and only then:\n%s", out)
		}
		sr := report.Scenarios[0]
		var order []string
		for _, r := range sr.Runs {
			order = append(order, r.Subject)
			consistent(t, r, 1)
		}
		if diff := cmp.Diff([]string{"seeded", "empty", "empty", "seeded", "quiet", "pruning"}, order); diff != "" {
			t.Errorf("order (-want +got):\n%s", diff)
		}
		if f := figures(sr); f["deliveries"] != 500 || f["bytesPerDelivery"] < 100 || f["prunedDeliveries"] != 50 || f["pruneSeconds"] <= 0 {
			t.Errorf("figures %v", f)
		}
		for _, phase := range []string{"idle", "200 events/s"} {
			for _, request := range []string{"stats", "failed, offset 10000", "deliveries, 20 pages", "deliveries of a webhook", "deliveries, 200 rows deep"} {
				if !slices.ContainsFunc(sr.Requests, func(q RequestReport) bool {
					return q.Phase == phase && q.Request == request && q.Count == askedTimes && q.LatencyMs.P50 > 0
				}) {
					t.Errorf("%s: nothing is known of %q", phase, request)
				}
			}
		}
		// What is kept stays as it was made.
		if files, err := filepath.Glob(filepath.Join(kept, "data", "*")); err != nil || len(files) != 1 {
			t.Errorf("kept %v (%v)", files, err)
		}
	}
	o.History = 600
	if _, out, err := bench(t, t.Context(), o); err == nil || !strings.Contains(err.Error(), "holds 500 deliveries of 20 webhooks") {
		t.Errorf("error %v, want that another size is kept\n%s", err, out)
	}
}

func TestHistoryThatIsNotKept(t *testing.T) {
	o := short(t)
	o.Scenario, o.Pairs, o.History, o.Webhooks = "history", 1, 500, 20
	if _, out, err := bench(t, t.Context(), o); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	o.Self = filepath.Join(t.TempDir(), "no-such-program")
	if _, _, err := bench(t, t.Context(), o); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v, want that there is no such program", err)
	}
}

func TestOverload(t *testing.T) {
	o := short(t)
	o.Scenario, o.Publishers = "overload", 20
	report, out, err := bench(t, t.Context(), o)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	sr := report.Scenarios[0]
	normal, over := runOf(t, sr, "normal"), runOf(t, sr, "overload")
	consistent(t, normal, 1)
	if over.Delivered != over.Accepted || over.Accepted != over.Statuses["202"] || over.Unsent == 0 {
		t.Errorf("%+v: want what was accepted delivered, and not all sent", over)
	}
	f := figures(sr)
	if want := 10 * normal.AcceptedPerSecond; f["offeredPerSecond"] != want || f["sentPerSecond"] >= want || f["goodput"] <= 0 {
		t.Errorf("figures %v, want %v/s offered and less sent", f, want)
	}
}

func TestOverloadWithoutATimeToTryAgain(t *testing.T) {
	o := short(t)
	o.Scenario, o.Publishers, o.Rate, o.ServeArgs = "overload", 4, 200, []string{"--fault", "mute"}
	report, out, err := bench(t, t.Context(), o)
	if err == nil || !strings.Contains(err.Error(), "refused without saying when to try again") {
		t.Errorf("error %v, want that refusals named no time\n%s", err, out)
	}
	r := runOf(t, report.Scenarios[0], "overload")
	if r.RefusedWithoutTime == 0 || r.RefusedWithoutTime != r.Statuses["503"] || r.RefusalMs.P99 <= 0 || r.Failed+r.Lost != 0 {
		t.Errorf("%+v", r)
	}
}
