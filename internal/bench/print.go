package bench

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

func printMachine(out io.Writer, m Machine) {
	processor := ""
	if m.Processor != "" {
		processor = ", " + m.Processor
	}
	_, _ = fmt.Fprintf(out, "%s/%s%s, %s, %s, a 4 KiB append and sync takes %s ms\n",
		m.OS, m.Arch, processor, count(m.Cores, "core"), m.GoVersion, number("%.2f", m.SyncMs, true))
}

func printDatabase(out io.Writer, d *DatabaseReport) {
	var settings []string
	for _, name := range slices.Sorted(maps.Keys(d.Settings)) {
		settings = append(settings, name+"="+d.Settings[name])
	}
	_, _ = fmt.Fprintf(out, "PostgreSQL %s, %s on it; %s\n", d.Version, count(d.Nodes, "node"), strings.Join(settings, " "))
}

func printScenario(out io.Writer, sr ScenarioReport) {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s: %s; %s after %s of warm-up", sr.Scenario.Name, sr.Scenario, sr.Duration, sr.Warmup)
	if pairs := sr.pairs(); pairs > 1 {
		fmt.Fprintf(&b, "; median of %d runs, the sum of what is lost, doubled, refused or failed", pairs)
	}
	if sr.Note != "" {
		fmt.Fprintf(&b, "; %s", sr.Note)
	}
	b.WriteByte('\n')
	for _, t := range []table{sr.runsTable(), sr.figuresTable(), sr.requestsTable()} {
		if len(t) > 1 {
			b.WriteByte('\n')
			t.write(&b)
		}
	}
	_, _ = io.WriteString(out, b.String())
}

// A table is lines of cells, the first of which are headings.
type table [][]string

const (
	labelWidth = 26
	cellWidth  = 14
)

// write puts labels to the left and numbers to the right.
func (t table) write(b *strings.Builder) {
	var widths []int
	for _, line := range t {
		for i, text := range line {
			if i == len(widths) {
				widths = append(widths, cellWidth)
				if i == 0 {
					widths[0] = labelWidth
				}
			}
			widths[i] = max(widths[i], len(text)+2)
		}
	}
	for _, line := range t {
		var w strings.Builder
		for i, text := range line {
			if i == 0 {
				fmt.Fprintf(&w, "%-*s", widths[i], text)
			} else {
				fmt.Fprintf(&w, "%*s", widths[i], text)
			}
		}
		b.WriteString(strings.TrimRight(w.String(), " "))
		b.WriteByte('\n')
	}
}

// runsTable has a column for each of what was measured, and one for each ratio.
func (sr *ScenarioReport) runsTable() table {
	var columns, ratios []string
	for _, c := range sr.Columns {
		if sr.Summary[c] != nil {
			columns = append(columns, c)
		}
	}
	if len(columns) == 0 {
		return nil
	}
	for _, pair := range sr.compared {
		if name := ratioName(pair); sr.Ratios[name] != nil {
			ratios = append(ratios, name)
		}
	}
	t := table{slices.Concat([]string{""}, columns, ratios)}
	for _, m := range metrics() {
		if m.hideNil && !slices.ContainsFunc(columns, func(c string) bool { return sr.Summary[c][m.name] != 0 }) {
			continue
		}
		line := []string{m.label}
		for _, c := range columns {
			line = append(line, number(m.format, sr.Summary[c][m.name], m.unknown))
		}
		for _, name := range ratios {
			text := ""
			if ratio, ok := sr.Ratios[name][m.name]; ok {
				text = fmt.Sprintf("%.2f", ratio)
			}
			line = append(line, text)
		}
		t = append(t, line)
	}
	return t
}

// figuresTable has a line for each figure.
func (sr *ScenarioReport) figuresTable() table {
	t := table{{"", ""}}
	for _, f := range sr.Figures {
		t = append(t, []string{f.Label, number(f.format(), f.Value, false)})
	}
	if len(t) == 1 {
		return nil
	}
	return t[1:]
}

// requestsTable has a line for each kind of request.
func (sr *ScenarioReport) requestsTable() table {
	t := table{{"", "requests", "p50, ms", "p90, ms", "p99, ms", "max, ms"}}
	for _, q := range sr.Requests {
		t = append(t, []string{
			q.Phase + "  " + q.Request, fmt.Sprint(q.Count),
			number("%.2f", q.LatencyMs.P50, false), number("%.2f", q.LatencyMs.P90, false),
			number("%.2f", q.LatencyMs.P99, false), number("%.2f", q.LatencyMs.Max, false),
		})
	}
	return t
}

func number(format string, v float64, unknown bool) string {
	if unknown && v == 0 {
		return "n/a"
	}
	return fmt.Sprintf(format, v)
}
