package bench

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"time"
)

// Report is the JSON document that a run leaves behind.
type Report struct {
	StartedAt time.Time        `json:"startedAt"`
	Machine   Machine          `json:"machine"`
	Database  *DatabaseReport  `json:"database,omitempty"` // nil: the servers had embedded stores
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
	Note     string   `json:"note,omitempty"`

	// Columns are the subjects of the runs, in the order of the table.
	Columns []string `json:"columns"`
	Runs    []Result `json:"runs"`

	// Summary has, for each subject, every metric by name: the median of the
	// runs, but the sum of what must not happen at all (lost, duplicates, …).
	Summary map[string]map[string]float64 `json:"summary"`

	// Ratios has, for two subjects ("hypha/relay"), the median of the ratios
	// within each pair.
	Ratios map[string]map[string]float64 `json:"ratios,omitempty"`

	// Figures are what else was measured, and Requests how long single requests
	// took.
	Figures  []Figure        `json:"figures,omitempty"`
	Requests []RequestReport `json:"requests,omitempty"`

	compared [][2]string
}

// A Figure is one number with its name.
type Figure struct {
	Name   string    `json:"name"`
	Label  string    `json:"label"` // with the unit
	Value  float64   `json:"value"` // the median of Values, or the sum of what must not happen at all
	Values []float64 `json:"values"`
}

// format shows whole numbers and large ones without a fraction.
func (f Figure) format() string {
	if f.Value == math.Trunc(f.Value) || math.Abs(f.Value) >= 1000 {
		return "%.0f"
	}
	return "%.2f"
}

// RequestReport is how long requests of one kind took.
type RequestReport struct {
	Phase     string  `json:"phase"` // what the server was doing meanwhile
	Request   string  `json:"request"`
	Count     uint64  `json:"count"`
	LatencyMs Latency `json:"latencyMs"` // from sending to the last byte of the answer
}

func (sr *ScenarioReport) empty() bool {
	return len(sr.Runs)+len(sr.Figures)+len(sr.Requests) == 0
}

// pairs is how often the scenario was run.
func (sr *ScenarioReport) pairs() int {
	n := 0
	for _, r := range sr.Runs {
		n = max(n, r.Pair)
	}
	return n
}

// add takes a result of a pair in, if there is one.
func (sr *ScenarioReport) add(pair int, result *Result) {
	if result != nil {
		result.Pair = pair
		sr.Runs = append(sr.Runs, *result)
	}
}

// figure takes a number in. Of several of one name the median counts.
func (sr *ScenarioReport) figure(name, label string, value float64) {
	f := sr.named(name, label)
	f.Values = append(f.Values, value)
	f.Value = median(f.Values)
}

// total is figure for what must not happen at all: the sum counts.
func (sr *ScenarioReport) total(name, label string, value uint64) {
	f := sr.named(name, label)
	f.Values = append(f.Values, float64(value))
	f.Value += float64(value)
}

func (sr *ScenarioReport) named(name, label string) *Figure {
	for i := range sr.Figures {
		if sr.Figures[i].Name == name {
			return &sr.Figures[i]
		}
	}
	sr.Figures = append(sr.Figures, Figure{Name: name, Label: label})
	return &sr.Figures[len(sr.Figures)-1]
}

// Result is one run. Event counts are of events, delivery counts of arrivals
// at webhooks that answer 200 at once. Sizes are in bytes; a CPU time, memory
// or load average of 0 means that the system does not tell.
type Result struct {
	Subject string `json:"subject"` // a column of the scenario
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

	// Statuses counts events by how their publish was answered: "202", "429",
	// "503", and "other" for all else and for no answer.
	Statuses           map[string]uint64 `json:"statuses"`
	RefusedWithoutTime uint64            `json:"refusedWithoutTime"` // without Retry-After

	LatencyMs Latency `json:"latencyMs"` // publish (open loop: when it was due) to arrival
	AckMs     Latency `json:"ackMs"`     // publish (open loop: when it was due) to 202
	RefusalMs Latency `json:"refusalMs"` // sending to 429 or 503

	CPUSeconds        float64 `json:"cpuSeconds"`        // of the server, over the run
	CPUSecondsPer1000 float64 `json:"cpuSecondsPer1000"` // of the server, per 1,000 deliveries
	HarnessCPUSeconds float64 `json:"harnessCpuSeconds"` // of publisher and receiver, over the run
	OtherCPUSeconds   float64 `json:"otherCpuSeconds"`   // of everything else on the machine, over the run
	MemoryIdle        Memory  `json:"memoryIdle"`        // of the server, before any load
	MemoryAfter       Memory  `json:"memoryAfter"`
	LoadBefore        float64 `json:"loadBefore"` // load average over one minute
	LoadAfter         float64 `json:"loadAfter"`

	// What the database server did over the run: all of it, so that nobody else
	// should use it. Commits are those that wrote something. The CPU time is known
	// if it is on this machine; it is that of all its processes.
	DatabaseCPUSeconds        float64 `json:"databaseCpuSeconds,omitempty"`
	DatabaseCPUSecondsPer1000 float64 `json:"databaseCpuSecondsPer1000,omitempty"` // per 1,000 deliveries
	DatabaseCommits           uint64  `json:"databaseCommits,omitempty"`
	DatabaseWALBytes          uint64  `json:"databaseWalBytes,omitempty"`
	CommitsPerDelivery        float64 `json:"commitsPerDelivery,omitempty"`
	WALBytesPerDelivery       float64 `json:"walBytesPerDelivery,omitempty"`

	// Bystanders counts requests to webhooks that are not measured, by what
	// these do. BystanderDuplicates are events that came to one again before the
	// attempt before could have failed, BystanderPeak the most requests at once
	// to those that are not well.
	Bystanders          map[string]uint64 `json:"bystanders"`
	BystanderDuplicates uint64            `json:"bystanderDuplicates"`
	BystanderPeak       int               `json:"bystanderPeak"`

	NeighbourPerSecond float64 `json:"neighbourPerSecond,omitempty"` // accepted of a second tenant
	NeighbourRefused   uint64  `json:"neighbourRefused,omitempty"`
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
		{name: "refusalP50Ms", label: "refusal p50, ms", format: "%.2f", hideNil: true, value: func(r *Result) float64 { return r.RefusalMs.P50 }},
		{name: "refusalP99Ms", label: "refusal p99, ms", format: "%.2f", hideNil: true, value: func(r *Result) float64 { return r.RefusalMs.P99 }},
		{name: "accepted", label: "accepted", format: "%.0f", value: func(r *Result) float64 { return float64(r.Accepted) }},
		{name: "delivered", label: "delivered", format: "%.0f", value: func(r *Result) float64 { return float64(r.Delivered) }},
		{name: "lost", label: "lost", format: "%.0f", sum: true, value: func(r *Result) float64 { return float64(r.Lost) }},
		{name: "duplicates", label: "duplicates", format: "%.0f", sum: true, value: func(r *Result) float64 { return float64(r.Duplicates) }},
		{name: "refused", label: "refused (429, 503)", format: "%.0f", sum: true, value: func(r *Result) float64 { return float64(r.Refused) }},
		{name: "refused429", label: "  with 429", format: "%.0f", sum: true, hideNil: true, value: func(r *Result) float64 { return float64(r.Statuses["429"]) }},
		{name: "refused503", label: "  with 503", format: "%.0f", sum: true, hideNil: true, value: func(r *Result) float64 { return float64(r.Statuses["503"]) }},
		{name: "refusedWithoutTime", label: "  without Retry-After", format: "%.0f", sum: true, hideNil: true, value: func(r *Result) float64 { return float64(r.RefusedWithoutTime) }},
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
		{name: "bystanderDuplicates", label: "  of them duplicates", format: "%.0f", sum: true, hideNil: true, value: func(r *Result) float64 { return float64(r.BystanderDuplicates) }},
		{name: "bystanderPeak", label: "  most at once", format: "%.0f", hideNil: true, value: func(r *Result) float64 { return float64(r.BystanderPeak) }},
		{name: "neighbourPerSecond", label: "second tenant, accepted/s", format: "%.0f", hideNil: true, value: func(r *Result) float64 { return r.NeighbourPerSecond }},
		{name: "neighbourRefused", label: "  refused", format: "%.0f", sum: true, hideNil: true, value: func(r *Result) float64 { return float64(r.NeighbourRefused) }},
		{name: "cpuSeconds", label: "server CPU, s", format: "%.2f", unknown: true, value: func(r *Result) float64 { return r.CPUSeconds }},
		{name: "cpuSecondsPer1000", label: "  per 1000 deliveries", format: "%.4f", unknown: true, ratio: true, value: func(r *Result) float64 { return r.CPUSecondsPer1000 }},
		{name: "databaseCpuSeconds", label: "database CPU, s", format: "%.2f", unknown: true, hideNil: true, value: func(r *Result) float64 { return r.DatabaseCPUSeconds }},
		{name: "databaseCpuSecondsPer1000", label: "database CPU s per 1000", format: "%.4f", unknown: true, hideNil: true, ratio: true, value: func(r *Result) float64 { return r.DatabaseCPUSecondsPer1000 }},
		{name: "commitsPerDelivery", label: "commits per delivery", format: "%.4f", unknown: true, hideNil: true, ratio: true, value: func(r *Result) float64 { return r.CommitsPerDelivery }},
		{name: "walBytesPerDelivery", label: "WAL bytes per delivery", format: "%.0f", unknown: true, hideNil: true, ratio: true, value: func(r *Result) float64 { return r.WALBytesPerDelivery }},
		{name: "harnessCpuSeconds", label: "harness CPU, s", format: "%.2f", unknown: true, value: func(r *Result) float64 { return r.HarnessCPUSeconds }},
		{name: "otherCpuSeconds", label: "other CPU, s", format: "%.2f", unknown: true, value: func(r *Result) float64 { return r.OtherCPUSeconds }},
		{name: "residentIdleMiB", label: "memory idle, MiB", format: "%.1f", unknown: true, value: func(r *Result) float64 { return float64(r.MemoryIdle.ResidentBytes) / mib }},
		{name: "residentAfterMiB", label: "memory after, MiB", format: "%.1f", unknown: true, value: func(r *Result) float64 { return float64(r.MemoryAfter.ResidentBytes) / mib }},
		{name: "peakIdleMiB", label: "memory peak idle, MiB", format: "%.1f", unknown: true, value: func(r *Result) float64 { return float64(r.MemoryIdle.PeakBytes) / mib }},
		{name: "peakAfterMiB", label: "memory peak after, MiB", format: "%.1f", unknown: true, ratio: true, value: func(r *Result) float64 { return float64(r.MemoryAfter.PeakBytes) / mib }},
		{name: "loadBefore", label: "load average before", format: "%.2f", unknown: true, value: func(r *Result) float64 { return r.LoadBefore }},
		{name: "loadAfter", label: "load average after", format: "%.2f", unknown: true, value: func(r *Result) float64 { return r.LoadAfter }},
	}
}

// summarize fills in Summary and Ratios from Runs.
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
	sr.Summary, sr.Ratios = map[string]map[string]float64{}, nil
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
	for _, compared := range sr.compared {
		ratios := map[string]float64{}
		for _, m := range metrics() {
			var values []float64
			for _, pair := range byPair {
				a, b := pair[compared[0]], pair[compared[1]]
				if m.ratio && a != nil && b != nil && m.value(a) > 0 && m.value(b) > 0 {
					values = append(values, m.value(a)/m.value(b))
				}
			}
			if len(values) > 0 {
				ratios[m.name] = median(values)
			}
		}
		if len(ratios) > 0 {
			if sr.Ratios == nil {
				sr.Ratios = map[string]map[string]float64{}
			}
			sr.Ratios[ratioName(compared)] = ratios
		}
	}
}

func ratioName(compared [2]string) string { return compared[0] + "/" + compared[1] }

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
