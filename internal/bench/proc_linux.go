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
	var u usage
	if u.cpu, err = parseStat(string(stat)); err != nil {
		return usage{}, err
	}
	u.memory, err = parseStatus(string(status))
	return u, err
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
