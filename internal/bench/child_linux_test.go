package bench

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestChildrenEndWithAHarnessThatIsKilled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	harness, err := startChild("harness", os.Args[0], []string{"harness", dir}, nil)
	if err != nil {
		t.Fatal(err)
	}
	poll := time.NewTicker(10 * ms)
	defer poll.Stop()
	// The data folder is made by the server: then both children are there.
	for {
		if data, _ := filepath.Glob(filepath.Join(dir, "*", "data")); len(data) == 1 {
			break
		}
		select {
		case <-poll.C:
		case <-harness.exited:
			t.Fatalf("the harness ended: %v", harness.tail.lines(20))
		}
	}
	children := childrenOf(t, harness.pid())
	if len(children) != 2 {
		t.Errorf("the harness has children %v, want a receiver and a server", children)
	}
	if err := harness.kill(); err != nil {
		t.Fatal(err)
	}
	for _, pid := range children {
		for alive(pid) {
			select {
			case <-poll.C:
			case <-t.Context().Done():
				t.Fatalf("process %s is still there", pid)
			}
		}
	}
}

// What several processes take is added up.
func TestUsageIsThatOfAllNodes(t *testing.T) {
	t.Parallel()
	self := os.Getpid()
	one, err := readUsage(self)
	if err != nil {
		t.Fatal(err)
	}
	s := &subject{nodes: []node{{pid: self}, {pid: self}, {}}}
	if got, err := s.usage(); err != nil || got.cpu < 2*one.cpu || got.memory.PeakBytes < 2*one.memory.PeakBytes {
		t.Errorf("%+v (%v), want twice %+v at least", got, err, one)
	}
	// Nobody's child, and not of that database.
	if pid := postmasterOf(self, "hypha_bench_0123456789abcdef"); pid != 0 {
		t.Errorf("the server of a session that is none is process %d", pid)
	}
}

// childrenOf lists the processes that the given one has started.
func childrenOf(t *testing.T, parent int) []string {
	stats, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		t.Fatal(err)
	}
	var children []string
	for _, path := range stats {
		f, err := os.Open(path)
		if err != nil {
			continue // it has ended meanwhile
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if lines.Text() == fmt.Sprintf("PPid:\t%d", parent) {
				children = append(children, filepath.Base(filepath.Dir(path)))
			}
		}
		_ = f.Close()
	}
	return children
}

// alive says whether a process runs; one that is dead, but not yet waited for
// by whoever inherited it, does not.
func alive(pid string) bool {
	status, err := os.ReadFile("/proc/" + pid + "/status")
	return err == nil && !strings.Contains(string(status), "State:\tZ")
}
