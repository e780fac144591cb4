package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Report is the JSON document that a run leaves behind.
type Report struct {
	StartedAt time.Time        `json:"startedAt"`
	Machine   Machine          `json:"machine"`
	Scenarios []ScenarioReport `json:"scenarios"`
}

// Machine is what the numbers were measured on. They mean nothing elsewhere.
type Machine struct {
	OS        string  `json:"os"`
	Arch      string  `json:"arch"`
	Processor string  `json:"processor,omitempty"`
	Cores     int     `json:"cores"`
	GoVersion string  `json:"goVersion"`
	SyncMs    float64 `json:"syncMs"` // median of a 4 KiB append and sync in the data folder; 0 if unknown
}

// ScenarioReport is what one scenario came to.
type ScenarioReport struct {
	Scenario Scenario `json:"scenario"`
	Duration string   `json:"duration"` // as [time.Duration.String] writes it
	Warmup   string   `json:"warmup"`
	Runs     []Result `json:"runs"`

	// Summary has, for each subject, every metric by name: the median of the
	// runs, but the sum of what must not happen at all (lost, duplicates, …).
	Summary map[string]map[string]float64 `json:"summary"`

	// Ratio is hypha over the relay, the median of the ratios within each pair.
	Ratio map[string]float64 `json:"ratio,omitempty"`
}

// Result is one run. Event counts are of events, delivery counts of arrivals
// at webhooks that answer 200 at once. Sizes are in bytes; a CPU time, memory
// or load average of 0 means that the system does not tell.
type Result struct {
	Subject string `json:"subject"` // "hypha" or "relay"
	Pair    int    `json:"pair"`

	Accepted          uint64  `json:"accepted"`          // answered 202
	AcceptedPerSecond float64 `json:"acceptedPerSecond"` // from the first publish to the last 202
	Refused           uint64  `json:"refused"`           // answered 429 or 503
	Failed            uint64  `json:"failed"`            // answered otherwise, or not at all
	Unsent            uint64  `json:"unsent"`            // due in an open loop that fell too far behind

	Delivered          uint64  `json:"delivered"`          // unique arrivals
	DeliveredPerSecond float64 `json:"deliveredPerSecond"` // from the first publish to the last arrival
	Duplicates         uint64  `json:"duplicates"`         // arrivals beyond the first
	Lost               uint64  `json:"lost"`               // accepted, never arrived
	WarmupLost         uint64  `json:"warmupLost"`         // the same, of the warm-up
	Unaccepted         uint64  `json:"unaccepted"`         // arrived although not accepted
	Stray              uint64  `json:"stray"`              // arrivals of events from the warm-up

	LatencyMs Latency `json:"latencyMs"` // publish (open loop: when it was due) to arrival
	AckMs     Latency `json:"ackMs"`     // publish (open loop: when it was due) to 202

	CPUSeconds        float64 `json:"cpuSeconds"`        // of the server, over the run
	CPUSecondsPer1000 float64 `json:"cpuSecondsPer1000"` // of the server, per 1,000 deliveries
	HarnessCPUSeconds float64 `json:"harnessCpuSeconds"` // of publisher and receiver, over the run
	MemoryIdle        Memory  `json:"memoryIdle"`        // of the server, before any load
	MemoryAfter       Memory  `json:"memoryAfter"`
	LoadBefore        float64 `json:"loadBefore"` // load average over one minute
	LoadAfter         float64 `json:"loadAfter"`

	// Bystanders counts requests to slow, hanging and failing webhooks.
	Bystanders map[string]uint64 `json:"bystanders"`
}

// A metric is a row of the table.
type metric struct {
	name   string // in JSON
	label  string
	format string
	value  func(*Result) float64

	sum     bool // over runs, not the median: one is one too many
	ratio   bool // is compared
	unknown bool // 0 means that it is not known
	hideNil bool // no row if it is 0 everywhere
}

const mib = 1 << 20

func metrics() []metric {
	return []metric{
		{name: "acceptedPerSecond", label: "accepted/s", format: "%.0f", ratio: true, value: func(r *Result) float64 { return r.AcceptedPerSecond }},
		{name: "deliveredPerSecond", label: "delivered/s", format: "%.0f", ratio: true, value: func(r *Result) float64 { return r.DeliveredPerSecond }},
		{name: "latencyP50Ms", label: "latency p50, ms", format: "%.2f", ratio: true, value: func(r *Result) float64 { return r.LatencyMs.P50 }},
		{name: "latencyP90Ms", label: "latency p90, ms", format: "%.2f", value: func(r *Result) float64 { return r.LatencyMs.P90 }},
		{name: "latencyP99Ms", label: "latency p99, ms", format: "%.2f", ratio: true, value: func(r *Result) float64 { return r.LatencyMs.P99 }},
		{name: "latencyMaxMs", label: "latency max, ms", format: "%.2f", value: func(r *Result) float64 { return r.LatencyMs.Max }},
		{name: "ackP50Ms", label: "ack p50, ms", format: "%.2f", value: func(r *Result) float64 { return r.AckMs.P50 }},
		{name: "ackP99Ms", label: "ack p99, ms", format: "%.2f", value: func(r *Result) float64 { return r.AckMs.P99 }},
		{name: "accepted", label: "accepted", format: "%.0f", value: func(r *Result) float64 { return float64(r.Accepted) }},
		{name: "delivered", label: "delivered", format: "%.0f", value: func(r *Result) float64 { return float64(r.Delivered) }},
		{name: "lost", label: "lost", format: "%.0f", sum: true, value: func(r *Result) float64 { return float64(r.Lost) }},
		{name: "duplicates", label: "duplicates", format: "%.0f", sum: true, value: func(r *Result) float64 { return float64(r.Duplicates) }},
		{name: "refused", label: "refused (429, 503)", format: "%.0f", sum: true, value: func(r *Result) float64 { return float64(r.Refused) }},
		{name: "failed", label: "failed publishes", format: "%.0f", sum: true, hideNil: true, value: func(r *Result) float64 { return float64(r.Failed) }},
		{name: "unsent", label: "unsent", format: "%.0f", sum: true, hideNil: true, value: func(r *Result) float64 { return float64(r.Unsent) }},
		{name: "unaccepted", label: "arrived, not accepted", format: "%.0f", sum: true, hideNil: true, value: func(r *Result) float64 { return float64(r.Unaccepted) }},
		{name: "stray", label: "arrived after warm-up", format: "%.0f", sum: true, hideNil: true, value: func(r *Result) float64 { return float64(r.Stray) }},
		{name: "warmupLost", label: "lost in warm-up", format: "%.0f", sum: true, hideNil: true, value: func(r *Result) float64 { return float64(r.WarmupLost) }},
		{name: "bystanders", label: "requests to bystanders", format: "%.0f", hideNil: true, value: func(r *Result) float64 {
			var n uint64
			for _, requests := range r.Bystanders {
				n += requests
			}
			return float64(n)
		}},
		{name: "cpuSeconds", label: "server CPU, s", format: "%.2f", unknown: true, value: func(r *Result) float64 { return r.CPUSeconds }},
		{name: "cpuSecondsPer1000", label: "  per 1000 deliveries", format: "%.4f", unknown: true, ratio: true, value: func(r *Result) float64 { return r.CPUSecondsPer1000 }},
		{name: "harnessCpuSeconds", label: "harness CPU, s", format: "%.2f", unknown: true, value: func(r *Result) float64 { return r.HarnessCPUSeconds }},
		{name: "residentIdleMiB", label: "memory idle, MiB", format: "%.1f", unknown: true, value: func(r *Result) float64 { return float64(r.MemoryIdle.ResidentBytes) / mib }},
		{name: "residentAfterMiB", label: "memory after, MiB", format: "%.1f", unknown: true, value: func(r *Result) float64 { return float64(r.MemoryAfter.ResidentBytes) / mib }},
		{name: "peakIdleMiB", label: "memory peak idle, MiB", format: "%.1f", unknown: true, value: func(r *Result) float64 { return float64(r.MemoryIdle.PeakBytes) / mib }},
		{name: "peakAfterMiB", label: "memory peak after, MiB", format: "%.1f", unknown: true, value: func(r *Result) float64 { return float64(r.MemoryAfter.PeakBytes) / mib }},
		{name: "loadBefore", label: "load average before", format: "%.2f", unknown: true, value: func(r *Result) float64 { return r.LoadBefore }},
		{name: "loadAfter", label: "load average after", format: "%.2f", unknown: true, value: func(r *Result) float64 { return r.LoadAfter }},
	}
}

// summarize fills in Summary and Ratio from Runs.
func (sr *ScenarioReport) summarize() {
	bySubject, byPair := map[string][]*Result{}, map[int]map[string]*Result{}
	for i := range sr.Runs {
		r := &sr.Runs[i]
		bySubject[r.Subject] = append(bySubject[r.Subject], r)
		if byPair[r.Pair] == nil {
			byPair[r.Pair] = map[string]*Result{}
		}
		byPair[r.Pair][r.Subject] = r
	}
	sr.Summary, sr.Ratio = map[string]map[string]float64{}, nil
	for subject, results := range bySubject {
		sr.Summary[subject] = map[string]float64{}
		for _, m := range metrics() {
			values := make([]float64, len(results))
			var sum float64
			for i, r := range results {
				values[i] = m.value(r)
				sum += values[i]
			}
			if m.sum {
				sr.Summary[subject][m.name] = sum
			} else {
				sr.Summary[subject][m.name] = median(values)
			}
		}
	}
	for _, m := range metrics() {
		if !m.ratio {
			continue
		}
		var ratios []float64
		for _, pair := range byPair {
			hypha, relay := pair[subjectHypha], pair[subjectRelay]
			if hypha != nil && relay != nil && m.value(hypha) > 0 && m.value(relay) > 0 {
				ratios = append(ratios, m.value(hypha)/m.value(relay))
			}
		}
		if len(ratios) > 0 {
			if sr.Ratio == nil {
				sr.Ratio = map[string]float64{}
			}
			sr.Ratio[m.name] = median(ratios)
		}
	}
}

// median is the middle value, or the mean of the two in the middle; 0 of none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	mid := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[mid]
	}
	return (sorted[mid-1] + sorted[mid]) / 2
}

func describeMachine(dir string) Machine {
	return Machine{
		OS: runtime.GOOS, Arch: runtime.GOARCH, Processor: processorName(), Cores: runtime.NumCPU(),
		GoVersion: runtime.Version(), SyncMs: milliseconds(measureSync(dir)),
	}
}

func printMachine(out io.Writer, m Machine) {
	processor := ""
	if m.Processor != "" {
		processor = ", " + m.Processor
	}
	_, _ = fmt.Fprintf(out, "%s/%s%s, %s, %s, a 4 KiB append and sync takes %s ms\n",
		m.OS, m.Arch, processor, count(m.Cores, "core"), m.GoVersion, number("%.2f", m.SyncMs, true))
}

func printScenario(out io.Writer, sr ScenarioReport) {
	var subjects []string
	for _, s := range []string{subjectHypha, subjectRelay} {
		if sr.Summary[s] != nil {
			subjects = append(subjects, s)
		}
	}
	runs := 0
	for _, r := range sr.Runs {
		runs = max(runs, r.Pair)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s: %s; %s after %s of warm-up", sr.Scenario.Name, sr.Scenario, sr.Duration, sr.Warmup)
	if runs > 1 {
		fmt.Fprintf(&b, "; median of %d runs, the sum of what is lost, doubled, refused or failed", runs)
	}
	fmt.Fprintf(&b, "\n\n%-24s", "")
	for _, s := range subjects {
		fmt.Fprintf(&b, "%14s", s)
	}
	if sr.Ratio != nil {
		fmt.Fprintf(&b, "%14s", subjectHypha+"/"+subjectRelay)
	}
	b.WriteByte('\n')
	for _, m := range metrics() {
		if m.hideNil && !slices.ContainsFunc(subjects, func(s string) bool { return sr.Summary[s][m.name] != 0 }) {
			continue
		}
		fmt.Fprintf(&b, "%-24s", m.label)
		for _, s := range subjects {
			fmt.Fprintf(&b, "%14s", number(m.format, sr.Summary[s][m.name], m.unknown))
		}
		if ratio, ok := sr.Ratio[m.name]; ok {
			fmt.Fprintf(&b, "%14s", fmt.Sprintf("%.2f", ratio))
		}
		b.WriteByte('\n')
	}
	_, _ = io.WriteString(out, b.String())
}

func number(format string, v float64, unknown bool) string {
	if unknown && v == 0 {
		return "n/a"
	}
	return fmt.Sprintf(format, v)
}

// write puts the report into a file.
func (r Report) write(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	return nil
}
