package bench

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Usage is what a process has taken. Where the system does not tell, it is 0.
type usage struct {
	cpu    time.Duration // user and system time since its start
	memory Memory
}

func (u *usage) add(other usage) {
	u.cpu += other.cpu
	u.memory.ResidentBytes += other.memory.ResidentBytes
	u.memory.PeakBytes += other.memory.PeakBytes
}

// Memory is a process's resident memory in bytes: now, and the most it has ever
// been. 0 means that the system does not tell.
type Memory struct {
	ResidentBytes int64 `json:"residentBytes"`
	PeakBytes     int64 `json:"peakBytes"`
}

// clockTick is the unit of times in /proc: Linux fixes USER_HZ at 100 on every
// architecture that Go supports.
const clockTick = time.Second / 100

// processStat is what /proc/<pid>/stat says of a process.
type processStat struct {
	parent int
	own    time.Duration // user and system time
	reaped time.Duration // the same of its children that have ended, and of theirs
}

// parseStat reads ppid, utime, stime, cutime and cstime: fields 4 and 14 to 17 of
// /proc/<pid>/stat (proc_pid_stat(5)). Field 2 is the program's name in parentheses
// and may itself contain spaces and parentheses.
func parseStat(text string) (s processStat, err error) {
	_, rest := text, ""
	if i := strings.LastIndexByte(text, ')'); i >= 0 {
		rest = text[i+1:]
	}
	fields := strings.Fields(rest) // from field 3 on
	if len(fields) < 15 {
		return s, errors.New("/proc/<pid>/stat has fewer than 17 fields")
	}
	if s.parent, err = strconv.Atoi(fields[1]); err != nil {
		return s, fmt.Errorf("/proc/<pid>/stat: not a process: %q", fields[1])
	}
	for i, f := range fields[11:15] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return s, fmt.Errorf("/proc/<pid>/stat: not a time: %q", f)
		}
		to := &s.own
		if i >= 2 {
			to = &s.reaped
		}
		*to += time.Duration(n) * clockTick
	}
	return s, nil
}

// parseStatus reads VmRSS and VmHWM of /proc/<pid>/status (proc_pid_status(5)).
func parseStatus(text string) (Memory, error) {
	var m Memory
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, ":")
		field := map[string]*int64{"VmRSS": &m.ResidentBytes, "VmHWM": &m.PeakBytes}[name]
		if field == nil {
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
		if err != nil {
			return Memory{}, fmt.Errorf("/proc/<pid>/status: not a size: %q", strings.TrimSpace(line))
		}
		*field = kib << 10
	}
	return m, nil
}

// parseIdle reads the time that all processors together were not at work, and
// how many there are, from /proc/stat (proc_stat(5)): idle, iowait and steal
// time. That is asked for rather than the time at work, because the kernel
// counts the latter by what it finds at each tick, and misses what is shorter.
func parseIdle(text string) (idle time.Duration, processors int, err error) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 0 || !strings.HasPrefix(fields[0], "cpu"):
			continue
		case fields[0] != "cpu":
			processors++
			continue
		case len(fields) < 9:
			return 0, 0, errors.New("/proc/stat has fewer than 8 times of the processors")
		}
		var ticks int64
		for _, i := range []int{4, 5, 8} {
			n, err := strconv.ParseInt(fields[i], 10, 64)
			if err != nil {
				return 0, 0, fmt.Errorf("/proc/stat: not a time: %q", fields[i])
			}
			ticks += n
		}
		idle = time.Duration(ticks) * clockTick
	}
	if processors == 0 {
		return 0, 0, errors.New("/proc/stat names no processors")
	}
	return idle, processors, nil
}
