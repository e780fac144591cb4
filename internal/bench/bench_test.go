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
	if sr.Ratio["deliveredPerSecond"] <= 0 || sr.Ratio["latencyP99Ms"] <= 0 {
		t.Errorf("ratios %v", sr.Ratio)
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
	server, base, key, err := r.startServer(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := &subject{kind: subjectHypha, base: base, process: server}
	if err := s.ready(t.Context(), 10*time.Second); err != nil {
		t.Fatal(err)
	}
	o.Target, o.APIKey, o.TargetPID = base.String(), key, server.pid()
	report, out, err := bench(t, t.Context(), o)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	consistent(t, report.Scenarios[0].Runs[0], 1)
	if err := server.stop(10 * time.Second); err != nil {
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
		{"unknown scenario", Options{Scenario: "x"}, []string{`no scenario "x": choose one of default, latency, fanout10, all`}},
		{"everything at once", Options{PayloadBytes: 10, Batch: 1001, Publishers: -1, Rate: -1, Pairs: -1, Duration: -1},
			[]string{"payload bytes is 10", "batch is 1001", "publishers is -1", "rate is -1", "pairs is -1", "duration is -1ns"}},
		{"said once for all scenarios", Options{Scenario: "all", PayloadBytes: 10}, []string{"payload bytes is 10: it must be 64 to 8388608"}},
		{"target without key", Options{Target: "http://127.0.0.1:1"}, []string{"a target needs an API key"}},
		{"key without target", Options{APIKey: "hypha_x"}, []string{"without a target"}},
		{"key that breaks the header", Options{Target: "http://127.0.0.1:1", APIKey: "a\r\nb"}, []string{"cannot stand in a header"}},
		{"target that is no URL", Options{Target: "127.0.0.1:8080", APIKey: "hypha_x"}, []string{"not a base URL"}},
		{"against what", Options{Against: "nginx"}, []string{`cannot compare with "nginx"`}},
		{"batches against the relay", Options{Against: "relay", Batch: 2}, []string{"the relay knows neither batches"}},
		{"host that is no address", Options{ReceiverHost: "localhost"}, []string{`"localhost" is not an IP address`}},
		{"negative bystanders", Options{Slow: -1, Fanout: 2}, []string{"it must be 0 to 4096"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := Run(t.Context(), tt.o, &strings.Builder{})
			if err == nil {
				t.Fatal("no error")
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
	_, got, err := Options{Scenario: "all", Publishers: 3, PayloadBytes: 100}.resolve()
	if err != nil {
		t.Fatal(err)
	}
	want := []Scenario{
		{Name: "default", Publishers: 3, Fanout: 1, PayloadBytes: 100, Batch: 1},
		{Name: "latency", Publishers: 3, Rate: 200, Fanout: 1, PayloadBytes: 100, Batch: 1},
		{Name: "fanout10", Publishers: 3, Fanout: 10, PayloadBytes: 100, Batch: 1},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSummaryTakesMediansAndSums(t *testing.T) {
	run := func(subject string, pair int, perSecond float64, lost uint64) Result {
		return Result{Subject: subject, Pair: pair, DeliveredPerSecond: perSecond, Lost: lost}
	}
	sr := ScenarioReport{Runs: []Result{
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
	if got := sr.Ratio["deliveredPerSecond"]; got != 0.5 {
		t.Errorf("median of the ratios 0.25, 0.9, 0.5 is %v, want 0.5", got)
	}
	if _, ok := sr.Ratio["cpuSecondsPer1000"]; ok {
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
	stat := "4242 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 150 25 0 0 20 0 9 0 100 0 0"
	if got, err := parseStat(stat); err != nil || got != 1750*ms {
		t.Errorf("CPU time %v (%v), want 1.75s", got, err)
	}
	status := "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\nThreads:\t5\n"
	if got, err := parseStatus(status); err != nil || got != (Memory{ResidentBytes: 1 << 20, PeakBytes: 2 << 20}) {
		t.Errorf("memory %+v (%v), want 1 MiB, peak 2 MiB", got, err)
	}
	for _, broken := range []string{"", "1 (a) S 1 2", "1 (a) S 1 2 3 4 5 6 7 8 9 10 x y 0"} {
		if got, err := parseStat(broken); err == nil {
			t.Errorf("%q has CPU time %v, want an error", broken, got)
		}
	}
	if _, err := parseStatus("VmRSS: many kB\n"); err == nil {
		t.Error("no error for a size that is none")
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
