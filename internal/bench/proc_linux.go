package bench

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// readUsage reads what the process has taken so far.
func readUsage(pid int) (usage, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return usage{}, fmt.Errorf("reading what a process takes: %w", err)
	}
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return usage{}, fmt.Errorf("reading what a process takes: %w", err)
	}
	s, err := parseStat(string(stat))
	if err != nil {
		return usage{}, err
	}
	u := usage{cpu: s.own}
	u.memory, err = parseStatus(string(status))
	return u, err
}

// familyReads is how often a family is read whose members come and go.
const familyReads = 10

// readFamily is the CPU time that a process and its children have taken, with those
// that have ended.
func readFamily(parent int) (time.Duration, error) {
	for n := 1; ; n++ {
		before, err := readStat(parent)
		if err != nil {
			return 0, err
		}
		children, err := readChildren(parent)
		if err != nil {
			return 0, err
		}
		after, err := readStat(parent)
		if err != nil {
			return 0, err
		}
		// A child that ended in between would count twice, or not at all.
		if before.reaped == after.reaped || n == familyReads {
			return after.own + after.reaped + children, nil
		}
	}
}

func readStat(pid int) (processStat, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return processStat{}, fmt.Errorf("reading what a process takes: %w", err)
	}
	return parseStat(string(text))
}

// readChildren is the CPU time of the children that a process has now.
func readChildren(parent int) (sum time.Duration, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, fmt.Errorf("looking for a process's children: %w", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// What has ended since the folder was read is nobody's child.
		if s, err := readStat(pid); err == nil && s.parent == parent {
			sum += s.own + s.reaped
		}
	}
	return sum, nil
}

// postmasterOf is the process whose children serve a PostgreSQL server's sessions,
// of which one has the given process id and database; 0 if it is not on this
// machine. A session shows its database as its command line; the name is one that
// nobody else has, so that a process that happens to have the id is not taken for
// it.
func postmasterOf(backend int, database string) int {
	title, err := os.ReadFile("/proc/" + strconv.Itoa(backend) + "/cmdline")
	if err != nil || !strings.Contains(string(title), database) {
		return 0
	}
	s, err := readStat(backend)
	if err != nil {
		return 0
	}
	return s.parent
}

// readIdle is the time that the machine's processors were not at work since its
// start, all together, and how many there are; 0 if unknown.
func readIdle() (idle time.Duration, processors int, err error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, fmt.Errorf("reading what the machine does: %w", err)
	}
	return parseIdle(string(text))
}

// loadAverage is the load average over the last minute; 0 if unknown.
func loadAverage() float64 {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(text), " ")
	load, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0
	}
	return load
}

// processorName is the processor's model; empty if unknown.
func processorName() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
