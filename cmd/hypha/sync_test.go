package main

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// The kernel is asked whether a 202 can be believed: in a trace of the server's
// system calls, after the write that carries an event's id to a file and before
// the answer that carries it to the publisher, a sync of that file must have
// begun and ended.
func TestEveryAnswerComesAfterASync(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		t.Fatal("strace is missing; `make test` installs it")
	}
	const events, publishers = 200, 8
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	trace := filepath.Join(t.TempDir(), "trace")
	p := spawnCommand(t, exec.Command("strace", "-f", "-qq", "-y", "-s", "70000", "-o", trace,
		"-e", "trace=write,writev,pwrite64,pwritev,sendto,sendmsg,fsync,fdatasync", "-e", "signal=none",
		self, "serve", "--listen", "127.0.0.1:0", "--data", t.TempDir()),
		[]string{asProgram + "=1", "HYPHA_BOOTSTRAP_API_KEY=" + testKey})
	line := p.stderr.await(t, p.exited, "msg=ready")
	url := regexp.MustCompile(`url=(\S+)`).FindStringSubmatch(line)[1]

	c := client{url, testKey}
	var wg sync.WaitGroup
	for i := range publishers {
		wg.Go(func() {
			for j := i; j < events; j += publishers {
				if status, err := c.do(http.MethodPost, "/events", fmt.Sprintf(`{"type":"sync.test","id":"%s","data":{}}`, tracedID(j)), nil); status != http.StatusAccepted {
					t.Errorf("publish: %d, %v", status, err)
				}
			}
		})
	}
	wg.Wait()
	// The server is asked to end, not strace, so that the trace is whole.
	children, err := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(children)))
	if err != nil {
		t.Fatalf("strace has the children %q", children)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-p.exited
	raw, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	calls := parseTrace(string(raw))
	for i := range events {
		if problem := checkSynced(calls, tracedID(i)); problem != "" {
			t.Errorf("event %s: %s", tracedID(i), problem)
		}
	}
}

func tracedID(i int) string { return fmt.Sprintf("traced-%04d-end", i) }

// sysCall is a system call, with the lines of the trace where it began and ended.
type sysCall struct {
	name, file, text string
	began, ended     int
}

var (
	wholeCall = regexp.MustCompile(`^(\d+) +(\w+)\(\d+<([^>]*)>(.*)\) += `)
	beginning = regexp.MustCompile(`^(\d+) +(\w+)\(\d+<([^>]*)>(.*) <unfinished \.\.\.>$`)
	remainder = regexp.MustCompile(`^(\d+) +<\.\.\. (\w+) resumed>`)
)

func parseTrace(text string) []*sysCall {
	var calls []*sysCall
	open := map[string]*sysCall{} // by thread
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSuffix(line, "\n")
		if m := beginning.FindStringSubmatch(line); m != nil {
			c := &sysCall{name: m[2], file: m[3], text: m[4], began: n}
			open[m[1]] = c
			calls = append(calls, c)
		} else if m := remainder.FindStringSubmatch(line); m != nil {
			if c := open[m[1]]; c != nil && c.name == m[2] {
				c.ended = n
				delete(open, m[1])
			}
		} else if m := wholeCall.FindStringSubmatch(line); m != nil {
			calls = append(calls, &sysCall{name: m[2], file: m[3], text: m[4], began: n, ended: n})
		}
	}
	return calls
}

func checkSynced(calls []*sysCall, id string) (problem string) {
	var written, answered *sysCall
	for _, c := range calls {
		if !strings.Contains(c.text, id) {
			continue
		}
		if strings.HasPrefix(c.file, "/") {
			if written == nil {
				written = c
			}
		} else if answered == nil && strings.Contains(c.text, "202 Accepted") {
			answered = c
		}
	}
	switch {
	case answered == nil:
		return "no answer in the trace"
	case written == nil:
		return "no write of it to a file in the trace"
	}
	for _, c := range calls {
		if (c.name == "fdatasync" || c.name == "fsync") && c.file == written.file && c.began > written.ended && c.ended > 0 && c.ended < answered.began {
			return ""
		}
	}
	return fmt.Sprintf("no sync of %s between the write and the answer", filepath.Base(written.file))
}
