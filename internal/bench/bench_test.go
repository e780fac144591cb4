package bench

import (
	"context"
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// short is a run against child processes that are this test binary.
func short(t *testing.T) Options {
	t.Parallel()
	return Options{
		Self: os.Args[0], TempDir: t.TempDir(), JSONFile: filepath.Join(t.TempDir(), "report.json"),
		Publishers: 4, Duration: 300 * ms, Warmup: 100 * ms, DrainIdle: 10 * time.Second,
	}
}

// bench runs o and returns the report, what was printed, and the error.
func bench(t *testing.T, ctx context.Context, o Options) (Report, string, error) {
	t.Helper()
	var out strings.Builder
	runErr := Run(ctx, o, &out)
	var report Report
	if text, err := os.ReadFile(o.JSONFile); err == nil {
		if err := json.Unmarshal(text, &report); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(o.TempDir, "*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
	return report, out.String(), runErr
}

// consistent fails the test if the counts of a faultless run contradict each
// other.
func consistent(t *testing.T, r Result, fanout int) {
	t.Helper()
	if r.Accepted == 0 || r.Delivered != r.Accepted*uint64(fanout) {
		t.Errorf("%s: delivered %d of %d accepted, to %d webhooks", r.Subject, r.Delivered, r.Accepted, fanout)
	}
	if bad := r.Lost + r.WarmupLost + r.Duplicates + r.Failed + r.Refused + r.Unaccepted + r.Stray + r.Unsent; bad != 0 {
		t.Errorf("%s: something went wrong: %+v", r.Subject, r)
	}
	if r.AcceptedPerSecond <= 0 || r.DeliveredPerSecond <= 0 {
		t.Errorf("%s: accepted %v/s, delivered %v/s", r.Subject, r.AcceptedPerSecond, r.DeliveredPerSecond)
	}
	for name, l := range map[string]Latency{"latency": r.LatencyMs, "ack": r.AckMs} {
		if l.P50 <= 0 || l.P50 > l.P90 || l.P90 > l.P99 || l.P99 > l.Max {
			t.Errorf("%s: %s is out of order: %+v", r.Subject, name, l)
		}
	}
}

func TestServerAgainstRelay(t *testing.T) {
	o := short(t)
	o.Against, o.Pairs, o.Fanout = "relay", 2, 2
	report, out, err := bench(t, t.Context(), o)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	sr := report.Scenarios[0]
	var order []string
	for _, r := range sr.Runs {
		order = append(order, r.Subject+strconv.Itoa(r.Pair))
		consistent(t, r, 2)
	}
	if diff := cmp.Diff([]string{"hypha1", "relay1", "relay2", "hypha2"}, order); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
	for _, want := range []string{"closed loop, 4 publishers, 512 B data, 2 webhooks", "hypha/relay", "delivered/s", "lost"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in the table:\n%s", want, out)
		}
	}
	if r := sr.Ratios["hypha/relay"]; r["deliveredPerSecond"] <= 0 || r["latencyP99Ms"] <= 0 {
		t.Errorf("ratios %v", sr.Ratios)
	}
}

func TestLoads(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Options)
		fanout int
		also   func(*testing.T, Result)
	}{
		{name: "open loop", fanout: 1, change: func(o *Options) { o.Scenario = "latency"; o.Rate = 100 }, also: func(t *testing.T, r Result) {
			if r.Accepted != 30 {
				t.Errorf("%d events at 100/s for 300 ms, want 30", r.Accepted)
			}
		}},
		{name: "fan-out", fanout: 10, change: func(o *Options) { o.Scenario = "fanout10"; o.Publishers = 1 }},
		{name: "batches of large events", fanout: 1, change: func(o *Options) { o.Batch, o.PayloadBytes = 7, 20000 }, also: func(t *testing.T, r Result) {
			if r.Accepted%7 != 0 {
				t.Errorf("%d events in batches of 7", r.Accepted)
			}
		}},
		{name: "shared out", fanout: 1, change: func(o *Options) { o.Spread, o.Fanout, o.Hanging, o.Rate, o.Warmup = new(true), 3, 1, 20, -1 }, also: func(t *testing.T, r Result) {
			if r.Bystanders["hang"] != r.Accepted {
				t.Errorf("a webhook beside the %d got %d events, want all %d", 3, r.Bystanders["hang"], r.Accepted)
			}
		}},
		{name: "answered late", fanout: 2, change: func(o *Options) { o.Scenario, o.Fanout, o.Rate, o.Warmup = "slow50", 2, 100, -1 }, also: func(t *testing.T, r Result) {
			if r.Accepted != 30 {
				t.Errorf("%d events at 100/s for 300 ms, want 30", r.Accepted)
			}
		}},
		{name: "no warm-up", fanout: 1, change: func(o *Options) { o.Warmup = -1 }},
		{name: "bad neighbours", fanout: 1, change: func(o *Options) {
			// The fake server has 32 senders and no timeouts to speak of: 10
			// events keep some of them free.
			o.Slow, o.Hanging, o.Failing, o.SlowDelay, o.Rate, o.Warmup = 1, 1, 1, ms, 20, -1
		}, also: func(t *testing.T, r Result) {
			if r.Bystanders["slow"] == 0 || r.Bystanders["hang"] == 0 || r.Bystanders["fail"] == 0 {
				t.Errorf("requests to bystanders: %v", r.Bystanders)
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := short(t)
			tt.change(&o)
			report, out, err := bench(t, t.Context(), o)
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			r := report.Scenarios[0].Runs[0]
			consistent(t, r, tt.fanout)
			if tt.also != nil {
				tt.also(t, r)
			}
		})
	}
}

func TestFaultsAreFound(t *testing.T) {
	tests := []struct {
		fault  string
		lost   bool   // the error is ErrLost
		err    string // otherwise, part of it
		shown  string // part of what is printed
		result func(Result) bool
	}{
		{fault: "drop", lost: true, result: func(r Result) bool { return r.Lost > 0 && r.Delivered+r.Lost == r.Accepted && r.WarmupLost > 0 }},
		{fault: "double", result: func(r Result) bool { return r.Duplicates > 0 && r.Lost == 0 && r.Delivered == r.Accepted }},
		{fault: "refuse", result: func(r Result) bool { return r.Refused > 0 && r.Lost == 0 && r.Delivered == r.Accepted }},
		{fault: "broken", err: "answered 500 Internal Server Error to a publish: {\"error\":\"no luck\"}", shown: "fake server is up"},
		{fault: "crash", err: "the server ended by itself (exit status 3)", shown: "fake server crashes as it was told to"},
		{fault: "notready", err: "GET /readyz answered 503", shown: "last lines of the server's output"},
	}
	for _, tt := range tests {
		t.Run(tt.fault, func(t *testing.T) {
			o := short(t)
			o.ServeArgs = []string{"--fault", tt.fault}
			switch tt.fault {
			case "drop":
				o.DrainIdle = 300 * ms
			case "notready":
				o.ReadyTimeout = 500 * ms
			}
			report, out, err := bench(t, t.Context(), o)
			if errors.Is(err, ErrLost) != tt.lost {
				t.Errorf("error %v, want a loss: %v", err, tt.lost)
			}
			if tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("error %v, want one with %q", err, tt.err)
			}
			if !strings.Contains(out, tt.shown) {
				t.Errorf("%q is not shown:\n%s", tt.shown, out)
			}
			if tt.result == nil {
				return
			}
			if !tt.lost && err != nil {
				t.Errorf("error %v, want none", err)
			}
			if r := report.Scenarios[0].Runs[0]; !tt.result(r) {
				t.Errorf("result %+v", r)
			}
		})
	}
}

func TestTarget(t *testing.T) {
	o := short(t)
	o.ReceiverHost = "127.0.0.1"
	r := &runner{opts: o}
	key, err := randomKey()
	if err != nil {
		t.Fatal(err)
	}
	n, err := r.startNode(serverOptions{data: t.TempDir(), key: key}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.ready(t.Context(), 10*time.Second); err != nil {
		t.Fatal(err)
	}
	o.Target, o.APIKey, o.TargetPID = n.base.String(), key, n.pid
	report, out, err := bench(t, t.Context(), o)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	consistent(t, report.Scenarios[0].Runs[0], 1)
	if err := n.process.stop(10 * time.Second); err != nil {
		t.Errorf("the target must still run: %v", err)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	o := short(t)
	o.Duration = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 500*ms)
	defer cancel()
	_, _, err := bench(t, ctx, o)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want the context's", err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	tests := []struct {
		name string
		o    Options
		errs []string
	}{
		{"unknown scenario", Options{Scenario: "default, x"}, []string{`no scenario "x": choose one or more of default, latency, fanout10, fanout100,`}},
		{"everything at once", Options{PayloadBytes: 10, Batch: 1001, Publishers: -1, Rate: -1, Pairs: -1, Duration: -1},
			[]string{"payload bytes is 10", "batch is 1001", "publishers is -1", "rate is -1", "pairs is -1", "duration is -1ns"}},
		{"said once for all scenarios", Options{Scenario: "all", PayloadBytes: 10}, []string{"payload bytes is 10: it must be 64 to 8388608"}},
		{"target without key", Options{Target: "http://127.0.0.1:1"}, []string{"a target needs an API key"}},
		{"key without target", Options{APIKey: "hypha_x"}, []string{"without a target"}},
		{"key that breaks the header", Options{Target: "http://127.0.0.1:1", APIKey: "a\r\nb"}, []string{"cannot stand in a header"}},
		{"target that is no URL", Options{Target: "127.0.0.1:8080", APIKey: "hypha_x"}, []string{"not a base URL"}},
		{"against what", Options{Against: "nginx"}, []string{`cannot compare with "nginx"`}},
		{"batches against the relay", Options{Against: "relay", Batch: 2}, []string{"the relay knows neither batches"}},
		{"a target that is to be restarted", Options{Scenario: "backlog", Target: "http://127.0.0.1:1", APIKey: "k"}, []string{"starts its servers itself"}},
		{"batches of what has none", Options{Scenario: "overload", Batch: 2}, []string{"scenario overload knows neither batches"}},
		{"more ill than there are", Options{Scenario: "isolation-429", Fanout: 10}, []string{"fanout is 10: it must be 11 to 4096"}},
		{"fan-out of what has none", Options{Scenario: "history", Fanout: 2}, []string{"scenario history has one webhook"}},
		{"nodes without a database", Options{Nodes: 2}, []string{"2 nodes need a database that they share"}},
		{"too many nodes", Options{Nodes: 65, Publishers: 70}, []string{"the number of nodes is 65: it must be 1 to 64"}},
		{"a node for nobody", Options{Nodes: 3, Publishers: 2, databases: &fakeDatabases{}}, []string{"publishers is 2: there must be one for each of 3 nodes"}},
		{"a database beside a target", Options{Target: "http://127.0.0.1:1", APIKey: "k", databases: &fakeDatabases{}}, []string{"with a target no server is started"}},
		{"a database that can't be called so", Options{KeepData: "./kept", databases: &fakeDatabases{}}, []string{`"./kept", which is not the name of a database`}},
		{"no address of a database", Options{DatabaseURL: "postgres://u:geheim@h:x/"}, []string{"the database's URL can't be read"}},
		{"host that is no address", Options{ReceiverHost: "localhost"}, []string{`"localhost" is not an IP address`}},
		{"negative bystanders", Options{Slow: -1, Fanout: 2}, []string{"it must be 0 to 4096"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := Run(t.Context(), tt.o, &strings.Builder{})
			if err == nil {
				t.Fatal("no error")
			}
			if strings.Contains(err.Error(), "geheim") {
				t.Errorf("a password is in:\n%v", err)
			}
			for _, want := range tt.errs {
				if strings.Count(err.Error(), want) != 1 {
					t.Errorf("want %q once in:\n%v", want, err)
				}
			}
			if got := strings.Count(err.Error(), "\n") + 1; got != len(tt.errs) {
				t.Errorf("%d problems, want %d:\n%v", got, len(tt.errs), err)
			}
		})
	}
}

func TestOptionsOverrideScenarios(t *testing.T) {
	_, got, bad := Options{Scenario: "all", Publishers: 3, PayloadBytes: 100, Warmup: -1}.resolve()
	if len(bad) > 0 {
		t.Fatal(bad)
	}
	row := func(name string, change func(*Scenario)) Scenario {
		s := Scenario{Name: name, Publishers: 3, Fanout: 1, PayloadBytes: 100, Batch: 1, Duration: 10 * time.Second, Pairs: 1}
		change(&s)
		return s
	}
	want := []Scenario{
		row("default", func(*Scenario) {}),
		row("latency", func(s *Scenario) { s.Rate = 200 }),
		row("fanout10", func(s *Scenario) { s.Fanout = 10 }),
		row("fanout100", func(s *Scenario) { s.Fanout = 100 }),
		row("payload8k", func(*Scenario) {}),
		row("payload200k", func(*Scenario) {}),
		row("batch", func(s *Scenario) { s.Batch = 100 }),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestPairs(t *testing.T) {
	for _, tt := range []struct {
		o    Options
		want []int
	}{
		{Options{Scenario: "default,isolation-drip"}, []int{1, 3}},
		{Options{Scenario: "default,batch,isolation-drip", Against: "relay"}, []int{9, 1, 3}}, // the relay can do the first alone
		{Options{Scenario: "default,batch,isolation-drip", Against: "relay", Pairs: 2}, []int{2, 2, 2}},
	} {
		_, scenarios, bad := tt.o.resolve()
		var got []int
		for _, s := range scenarios {
			got = append(got, s.Pairs)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" || len(bad) > 0 {
			t.Errorf("%s (-want +got):\n%s%v", tt.o.Scenario, diff, bad)
		}
	}
}

// What the relay can't do is measured all the same, and the table says so.
func TestWhatTheRelayCannotDo(t *testing.T) {
	o := short(t)
	o.Scenario, o.Against, o.Pairs = "batch", "relay", 1
	report, out, err := bench(t, t.Context(), o)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if runs := report.Scenarios[0].Runs; len(runs) != 1 || runs[0].Subject != subjectHypha {
		t.Errorf("runs %+v, want one of hypha", runs)
	}
	if !strings.Contains(out, "the relay can't do this") {
		t.Errorf("the table does not say that nothing is compared:\n%s", out)
	}
}

func TestSummaryTakesMediansAndSums(t *testing.T) {
	run := func(subject string, pair int, perSecond float64, lost uint64) Result {
		return Result{Subject: subject, Pair: pair, DeliveredPerSecond: perSecond, Lost: lost}
	}
	sr := ScenarioReport{Columns: []string{"hypha", "relay"}, compared: [][2]string{{"hypha", "relay"}}, Runs: []Result{
		run("hypha", 1, 100, 0), run("relay", 1, 400, 0),
		run("relay", 2, 100, 0), run("hypha", 2, 90, 2),
		run("hypha", 3, 300, 1), run("relay", 3, 600, 0),
	}}
	sr.summarize()
	if got := sr.Summary["hypha"]["deliveredPerSecond"]; got != 100 {
		t.Errorf("median of 100, 90, 300 is %v, want 100", got)
	}
	if got := sr.Summary["hypha"]["lost"]; got != 3 {
		t.Errorf("lost %v in all, want 3: a median would hide it", got)
	}
	if got := sr.Ratios["hypha/relay"]["deliveredPerSecond"]; got != 0.5 {
		t.Errorf("median of the ratios 0.25, 0.9, 0.5 is %v, want 0.5", got)
	}
	if _, ok := sr.Ratios["hypha/relay"]["cpuSecondsPer1000"]; ok {
		t.Error("a ratio of unknown CPU times")
	}
	var out strings.Builder
	printScenario(&out, sr)
	for _, want := range []string{"median of 3 runs", "n/a"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in:\n%s", want, out.String())
		}
	}
}

func TestParseProc(t *testing.T) {
	stat := "4242 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 150 25 30 40 20 0 9 0 100 0 0"
	if got, err := parseStat(stat); err != nil || got != (processStat{parent: 1, own: 1750 * ms, reaped: 700 * ms}) {
		t.Errorf("%+v (%v), want 1.75s, 0.7s of the dead, and 1 as the parent", got, err)
	}
	status := "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\nThreads:\t5\n"
	if got, err := parseStatus(status); err != nil || got != (Memory{ResidentBytes: 1 << 20, PeakBytes: 2 << 20}) {
		t.Errorf("memory %+v (%v), want 1 MiB, peak 2 MiB", got, err)
	}
	for _, broken := range []string{"", "1 (a) S 1 2", "1 (a) S 1 2 3 4 5 6 7 8 9 10 x y 0 0", "1 (a) S x 2 3 4 5 6 7 8 9 10 1 1 0 0"} {
		if got, err := parseStat(broken); err == nil {
			t.Errorf("%q has CPU time %v, want an error", broken, got)
		}
	}
	if _, err := parseStatus("VmRSS: many kB\n"); err == nil {
		t.Error("no error for a size that is none")
	}
}

func TestParseIdle(t *testing.T) {
	// user nice system idle iowait irq softirq steal guest guest_nice
	text := "cpu  11 12 13 1000 200 14 15 30 0 0\ncpu0 1 1 1 500 100 1 1 15 0 0\ncpu1 1 1 1 500 100 1 1 15 0 0\nintr 5\n"
	if idle, n, err := parseIdle(text); err != nil || idle != 12300*ms || n != 2 {
		t.Errorf("%v of %d processors (%v), want 12.3s of 2", idle, n, err)
	}
	for _, broken := range []string{"", "cpu  1 2 3 4\ncpu0 1 2 3 4\n", "cpu  1 2 3 x 5 6 7 8\ncpu0 1\n", "cpu  1 2 3 4 5 6 7 8\n"} {
		if idle, n, err := parseIdle(broken); err == nil {
			t.Errorf("%q has %v of %d processors, want an error", broken, idle, n)
		}
	}
}

// What else runs is what neither waits nor is ours.
func TestMeterTellsOthersFromOurs(t *testing.T) {
	now := time.Unix(1700000000, 0)
	from := reading{
		at: now, server: usage{cpu: time.Second}, harness: time.Second, idle: 10 * time.Second, processors: 2,
		database: databaseUsage{cpu: 7 * time.Second, commits: 5, wal: 100},
	}
	to := reading{
		at: now.Add(10 * time.Second), server: usage{cpu: 5 * time.Second}, harness: 2 * time.Second, idle: 22 * time.Second, processors: 2,
		database: databaseUsage{cpu: 9 * time.Second, commits: 8, wal: 1000},
	}
	// 20 s of processors, of which 12 were idle, 4 the server's, 2 the database's and 1 ours.
	got := to.since(from)
	if got.server != 4*time.Second || got.harness != time.Second || got.others != time.Second {
		t.Errorf("taken %+v, want 4s, 1s, 1s", got)
	}
	if want := (databaseUsage{cpu: 2 * time.Second, commits: 3, wal: 900}); got.database != want {
		t.Errorf("the database has done %+v, want %+v", got.database, want)
	}
}

func TestFigures(t *testing.T) {
	sr := ScenarioReport{}
	for _, v := range []float64{3, 1, 2} {
		sr.figure("speed", "speed, m/s", v)
		sr.total("lost", "lost", uint64(v))
	}
	sr.figure("size", "size", 1.26)
	want := []Figure{
		{Name: "speed", Label: "speed, m/s", Value: 2, Values: []float64{3, 1, 2}},
		{Name: "lost", Label: "lost", Value: 6, Values: []float64{3, 1, 2}},
		{Name: "size", Label: "size", Value: 1.26, Values: []float64{1.26}},
	}
	if diff := cmp.Diff(want, sr.Figures); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	var out strings.Builder
	sr.figuresTable().write(&out)
	if want := "speed, m/s                             2\nlost                                   6\nsize                                1.26\n"; out.String() != want {
		t.Errorf("printed\n%swant\n%s", out.String(), want)
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	var tl tail
	for i := range 10000 {
		line := []byte("line " + strconv.Itoa(i) + "\n")
		if n, err := tl.Write(line); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
	}
	if diff := cmp.Diff([]string{"line 9998", "line 9999"}, tl.lines(2)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := tl.Write(append([]byte(strings.Repeat("x", 10*tailBytes)), "end"...)); err != nil {
		t.Fatal(err)
	}
	if len(tl.buf) > 2*tailBytes || !strings.HasSuffix(tl.lines(1)[0], "xend") {
		t.Errorf("%d bytes kept", len(tl.buf))
	}
}

func TestFreshKeysAndAddresses(t *testing.T) {
	a, err1 := randomKey()
	b, err2 := randomKey()
	if err1 != nil || err2 != nil || a == b || len(a) != len("hypha_")+43 || !strings.HasPrefix(a, "hypha_") {
		t.Errorf("keys %q, %q (%v, %v)", a, b, err1, err2)
	}
	address, err := freeAddress()
	if _, perr := url.Parse("http://" + address); err != nil || perr != nil {
		t.Errorf("address %q (%v, %v)", address, err, perr)
	}
}
