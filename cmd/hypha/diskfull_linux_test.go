package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// smallDisk is a file system of its own, which a program has its data on and
// nobody else sees: it is gone with the program and this.
type smallDisk struct{ *os.Root }

// startOnSmallDisk runs the program with its data on a file system of so many
// MiB.
func startOnSmallDisk(t *testing.T, mib int, args ...string) (*programProcess, smallDisk) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.Command("sh", append([]string{"-c", `mount -t tmpfs -o "size=$1,mode=700" tmpfs "$2" && shift 2 && exec "$@"`, "sh",
		fmt.Sprintf("%dm", mib), dir, self, "serve", "--listen", "127.0.0.1:0", "--data", dir}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if uid := os.Getuid(); uid != 0 { // whoever is not root may be it in a world of their own
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	p := spawnCommand(t, cmd, []string{asProgram + "=1", "HYPHA_BOOTSTRAP_API_KEY=" + testKey})
	line := p.stderr.await(t, p.exited, "msg=ready")
	_, rest, _ := strings.Cut(line, "url=")
	p.url, _, _ = strings.Cut(rest, " ")
	// Its files, as it sees them. What is open keeps the file system there when
	// the program has ended.
	root, err := os.OpenRoot(fmt.Sprintf("/proc/%d/root%s", p.cmd.Process.Pid, dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return p, smallDisk{root}
}

// fill leaves so many MiB free.
func (d smallDisk) fill(t *testing.T, free int64) {
	t.Helper()
	f, err := d.Create("ballast")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var stat syscall.Statfs_t
	if err := syscall.Fstatfs(int(f.Fd()), &stat); err != nil {
		t.Fatal(err)
	}
	for left := int64(stat.Bavail)*stat.Bsize - free<<20; left > 0; left -= 1 << 20 {
		if _, err := f.Write(make([]byte, min(left, 1<<20))); err != nil {
			t.Fatal(err)
		}
	}
}

// copyTo copies the files to a folder.
func (d smallDisk) copyTo(t *testing.T, dir string) {
	t.Helper()
	err := fs.WalkDir(d.FS(), ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		raw, err := fs.ReadFile(d.FS(), path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, path), raw, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// refusal is what a publisher is told that can't be served now.
type refusal struct {
	status     int
	retryAfter string
	code       string
	message    string
}

// publishRaw publishes an event, and answers nil for 202.
func publishRaw(url, id string, size int) (*refusal, error) {
	body := fmt.Sprintf(`{"type":"full.test","id":%q,"data":%q}`, id, strings.Repeat("a", size))
	req, err := http.NewRequest(http.MethodPost, url+"/services/events", strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+testKey)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusAccepted {
		return nil, nil
	}
	var answer struct {
		Error struct{ Code, Message string }
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		return nil, errors.Join(err, fmt.Errorf("%s: %s", resp.Status, raw))
	}
	return &refusal{resp.StatusCode, resp.Header.Get("Retry-After"), answer.Error.Code, answer.Error.Message}, nil
}

// The disk of a real process runs full while events are published and delivered.
// Until there is room again every publisher is told so; nothing that was
// accepted is lost, nothing that was refused arrives, and what was delivered and
// could not be written down is not delivered for ever.
func TestDiskFull(t *testing.T) {
	const (
		slots      = 32
		publishers = 6
		size       = 32 << 10
	)
	receiver := newArrivals(t, nil)
	p, disk := startOnSmallDisk(t, 128, "--allow-egress", "127.0.0.0/8", "--slots", fmt.Sprint(slots), "--retry-schedule", "100ms,200ms,500ms")
	c := client{p.url, testKey}
	c.createWebhook(t, receiver.URL+"/hook", "full.*")
	ready := func() int {
		resp, err := http.Get(p.url + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}

	var (
		mu       sync.Mutex
		accepted []string
		refused  = map[string]bool{}
		next     atomic.Int64
	)
	// publish publishes until enough is true, which is asked after each answer.
	publish := func(size int, enough func(r *refusal) bool) {
		t.Helper()
		var wg sync.WaitGroup
		var done atomic.Bool
		for range publishers {
			wg.Go(func() {
				for !done.Load() {
					id := fmt.Sprintf("full-%06d", next.Add(1))
					r, err := publishRaw(p.url, id, size)
					if err != nil {
						t.Errorf("publish: %v", err)
						return
					}
					mu.Lock()
					if r == nil {
						accepted = append(accepted, id)
					} else {
						refused[id] = true
						if r.status != http.StatusServiceUnavailable || r.code != "UNAVAILABLE" || r.retryAfter == "" || r.retryAfter == "0" || !strings.Contains(r.message, "disk is full") {
							t.Errorf("refused with %+v", *r)
						}
					}
					if enough(r) {
						done.Store(true)
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			t.FailNow()
		}
	}

	if got := ready(); got != http.StatusOK {
		t.Fatalf("with room: /readyz = %d", got)
	}
	publish(100, func(*refusal) bool { return len(accepted) >= 200 })
	disk.fill(t, 16)
	if got := ready(); got != http.StatusServiceUnavailable {
		t.Errorf("with little room: /readyz = %d", got)
	}
	row := 0 // refusals one after the other
	publish(size, func(r *refusal) bool {
		if row++; r == nil {
			row = 0
		}
		return row >= 300
	})
	before := len(accepted)
	t.Logf("%d accepted until the disk was full", before)
	// Small ones neither, and none is accepted that can't be kept.
	publish(1, func(*refusal) bool { return len(refused) >= 600 })
	if got := ready(); got != http.StatusServiceUnavailable {
		t.Errorf("without room: /readyz = %d", got)
	}
	if _, err := c.do(http.MethodGet, "/webhooks", nil, nil); err != nil {
		t.Errorf("what is there can't be read: %v", err)
	}

	if err := disk.Remove("ballast"); err != nil {
		t.Fatal(err)
	}
	freed, again := time.Now(), len(accepted)
	eventually(t, "events are accepted again", func() bool {
		publish(100, func(*refusal) bool { return true })
		return len(accepted) > again
	})
	if took := time.Since(freed); took > 10*time.Second {
		t.Errorf("with room again it took %v until an event was accepted", took)
	}
	row = 0
	publish(100, func(r *refusal) bool {
		if r != nil {
			t.Errorf("refused with room again: %+v", *r)
		}
		row++
		return row >= 100
	})
	eventually(t, "/readyz is green again", func() bool { return ready() == http.StatusOK })

	times := func(got []arrived) map[string]int {
		n := make(map[string]int, len(got))
		for _, a := range got {
			n[a.header.Get("webhook-id")]++
		}
		return n
	}
	receiver.await(t, "the arrival of every accepted event", func(got []arrived) bool {
		if len(got) < len(accepted) {
			return false
		}
		n := times(got)
		for _, id := range accepted {
			if n[id] == 0 {
				return false
			}
		}
		return true
	})
	if err := p.stop(t); err != nil {
		t.Errorf("it did not stop cleanly: %v\n%s", err, p.stderr)
	}
	doubled := 0
	for id, n := range times(receiver.await(t, "the end", func([]arrived) bool { return true })) {
		doubled += n - 1
		if refused[id] {
			t.Errorf("%s was refused, and arrived", id)
		}
	}
	t.Logf("%d accepted, %d refused, %d came twice", len(accepted), len(refused), doubled)
	if doubled > slots {
		t.Errorf("%d deliveries came twice; at most %d could be unrecorded", doubled, slots)
	}
	if out := p.stderr.String(); strings.Contains(out, "panic") || strings.Contains(out, "level=ERROR") {
		t.Errorf("the server was not well:\n%s", out)
	}
	dir := t.TempDir()
	disk.copyTo(t, dir)
	checkIntegrity(t, dir)
}
