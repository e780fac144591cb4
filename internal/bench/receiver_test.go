package bench

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func bodyOf(m marker) []byte {
	data, at := appendData(nil, 128)
	m.put(data[at:])
	return append(append([]byte(`{"id":"evt_1","data":`), data...), '}')
}

func TestTally(t *testing.T) {
	now := time.Unix(1700000000, 0)
	const run = 0xfeed
	sent := func(number uint64, ago time.Duration) []byte {
		return bodyOf(marker{run, number, now.Add(-ago).UnixNano()})
	}
	ta := newTally()
	ta.arrived(0, bodyOf(marker{0, 1, 0}), now)
	ta.reset(run) // forgets the one before

	ta.arrived(0, sent(1, 10*ms), now)
	ta.arrived(0, sent(2, 20*ms), now)
	ta.arrived(1, sent(1, 30*ms), now) // another webhook: not the same
	ta.arrived(0, sent(1, 9*time.Hour), now.Add(time.Second))
	ta.arrived(0, sent(1, 9*time.Hour), now.Add(time.Second)) // duplicates have no latency, and are not the last arrival
	ta.arrived(0, bodyOf(marker{run + 1, 3, 0}), now)
	ta.arrived(0, []byte(`{"type":"webhook.test"}`), now)
	ta.arrived(0, bodyOf(marker{run, maxNumber + 1, 0}), now)

	want := arrivals{
		Run: "0000feed", Unique: 3, Duplicates: 2, Stray: 1, Unmarked: 1, Untracked: 1, LastAt: now.UnixNano(),
		LatencyMs: Latency{P50: 20, P90: 30, P99: 30, Max: 30},
	}
	got := ta.stats()
	if got.LatencyMs.P50 < 19.8 || got.LatencyMs.P50 > 20.2 {
		t.Errorf("p50 is %v, want 20 within 1 %%", got.LatencyMs.P50)
	}
	got.LatencyMs.P50, want.LatencyMs.P50 = 0, 0
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	var numbers bitmap
	numbers.add(1)
	numbers.add(2)
	if a, b := numbers.missingFrom(parseBitmap(ta.numbers(0))), parseBitmap(ta.numbers(0)).missingFrom(&numbers); a != 0 || b != 0 {
		t.Errorf("of the numbers at webhook 0, %d are missing and %d too many", a, b)
	}
}

func TestTallyIsBounded(t *testing.T) {
	ta := newTally()
	ta.reset(1)
	ta.pages = maxPages - 1
	now := time.Unix(1700000000, 0)
	ta.arrived(0, bodyOf(marker{1, 0, 0}), now)
	ta.arrived(0, bodyOf(marker{1, 1, 0}), now)        // the same page
	ta.arrived(0, bodyOf(marker{1, pageBits, 0}), now) // one page too many
	if got := ta.stats(); got.Unique != 2 || got.Untracked != 1 {
		t.Errorf("unique %d, untracked %d; want 2, 1", got.Unique, got.Untracked)
	}
}

// startReceiver runs a receiver as its process would, and returns its address
// and how to stop it.
func startReceiver(t *testing.T) (address string, stop func()) {
	t.Helper()
	says := newAnnouncement()
	stdin, parent := io.Pipe()
	over := make(chan error, 1)
	go func() { over <- RunReceiver(context.Background(), nil, stdin, says) }()
	select {
	case <-says.complete:
	case err := <-over:
		t.Fatal(err)
	}
	address, ok := strings.CutPrefix(says.text(), "listening ")
	if !ok {
		t.Fatalf("it said %q", says.text())
	}
	return address, sync.OnceFunc(func() {
		_ = parent.Close() // the parent is gone: so must it be
		if err := <-over; err != nil {
			t.Error(err)
		}
	})
}

func TestReceiverAnswersByPath(t *testing.T) {
	address, stop := startReceiver(t)
	defer stop()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	body := bodyOf(marker{0xbe, 4, time.Now().UnixNano()})
	for _, tt := range []struct {
		method, path string
		status       int
		body         string
	}{
		{"POST", "/_reset?run=000000be", 200, "{}"},
		{"POST", "/ok/3", 200, ""},
		{"POST", "/ok/3", 200, ""},
		{"POST", "/ok/4", 200, ""},
		{"POST", "/late/5?ms=1", 200, ""},
		{"POST", "/slow/0?ms=1", 200, ""},
		{"POST", "/fail/0", 500, ""},
		{"POST", "/busy/0", 429, ""},
		{"POST", "/well/0", 200, ""},
		{"POST", "/well/0", 200, ""},
		{"POST", "/gate/0", 503, ""},
		{"POST", "/_gate?run=000000be&open=true", 200, "{}"},
		{"POST", "/gate/0", 200, ""},
		{"POST", "/_gate?run=what", 404, ""},
		{"GET", "/ok/3", 404, ""},
		{"POST", "/ok/4096", 404, ""},
		{"POST", "/ok/-1", 404, ""},
		{"POST", "/ok", 404, ""},
		{"POST", "/other/1", 404, ""},
		{"POST", "/_other", 404, ""},
		{"POST", "/_reset?run=what", 404, ""},
		{"POST", "/_arrived?hook=4096", 404, ""},
	} {
		req, err := http.NewRequest(tt.method, "http://"+address+tt.path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		res, err := client.Do(req)
		if err != nil {
			t.Fatalf("%s %s: %v", tt.method, tt.path, err)
		}
		got, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil || res.StatusCode != tt.status || string(got) != tt.body {
			t.Errorf("%s %s: %d %q (%v), want %d %q", tt.method, tt.path, res.StatusCode, got, err, tt.status, tt.body)
		}
	}
	rc := &receiverClient{base: "http://" + address}
	a, err := rc.stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if a.BystanderDuplicates != 1 || a.Bystanders["busy"] != 1 || a.BystanderPeak != 1 {
		t.Errorf("counts %+v, want 1 duplicate of 2 at a bystander that is well, 1 busy, 1 at once", a)
	}
	if a.Run != "000000be" || a.Unique != 3 || a.Duplicates != 1 || a.Bystanders["slow"] != 1 || a.Bystanders["fail"] != 1 {
		t.Errorf("counts %+v, want 3 unique, 1 duplicate, 1 slow, 1 fail", a)
	}
	arrived, err := rc.arrived(t.Context(), 3)
	if err != nil {
		t.Fatal(err)
	}
	if n := arrived.missingFrom(&bitmap{}); n != 1 || arrived.add(4) {
		t.Errorf("%d numbers arrived at webhook 3, want 4 alone", n)
	}
}

// A late answer comes after its time, and the arrival counts from before.
func TestReceiverAnswersLate(t *testing.T) {
	address, stop := startReceiver(t)
	defer stop()
	rc := &receiverClient{base: "http://" + address}
	if err := rc.reset(t.Context(), 0xbe); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	body := bodyOf(marker{0xbe, 4, begin.UnixNano()})
	status, _, err := request(t.Context(), http.MethodPost, rc.base+hookPath(modeLate, 0, 300*ms), "", "", body)
	took := time.Since(begin)
	if err != nil || status != http.StatusOK || took < 300*ms {
		t.Errorf("%d after %v (%v), want 200 after 300ms", status, took, err)
	}
	// However long the way took, the wait is not in it: it lies between the arrival and the answer.
	if a, err := rc.stats(t.Context()); err != nil || a.Unique != 1 || a.LatencyMs.Max > milliseconds(took-300*ms) {
		t.Errorf("%+v (%v), want an arrival 300ms before the answer, which took %v", a, err, took)
	}
}

// A load whose webhooks are to answer late has such webhooks. The latencies of a run
// can't tell: an arrival is timed when it comes.
func TestMeasuredWebhooks(t *testing.T) {
	g := &rig{r: &runner{}, receiver: &receiverClient{base: "http://receiver"}}
	for _, tt := range []struct {
		scenario Scenario
		want     []string
	}{
		{Scenario{Fanout: 2}, []string{"http://receiver/ok/0", "http://receiver/ok/1"}},
		{Scenario{Fanout: 2, LateMs: 50}, []string{"http://receiver/late/0?ms=50", "http://receiver/late/1?ms=50"}},
	} {
		if diff := cmp.Diff(tt.want, g.measured(tt.scenario)); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", tt.scenario, diff)
		}
	}
}

func TestReceiverHangsUntilItEnds(t *testing.T) {
	address, stop := startReceiver(t)
	defer stop()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, "POST /hang/0 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	// The counts prove that it has come; only then is silence worth anything.
	rc := &receiverClient{base: "http://" + address}
	for {
		a, err := rc.stats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if a.Bystanders["hang"] == 1 {
			break
		}
	}
	stop()
	if n, _ := conn.Read(make([]byte, 1)); n != 0 {
		t.Error("a hanging webhook has answered")
	}
}

func TestReceiverDripsUntilThePeerLeaves(t *testing.T) {
	address, stop := startReceiver(t)
	defer stop()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "POST /drip/0 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	head := make([]byte, len(answerDrip))
	if _, err := io.ReadFull(conn, head); err != nil || string(head) != answerDrip {
		t.Fatalf("it answered %q (%v)", head, err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	stop() // hangs if the webhook does
}

func TestBystanders(t *testing.T) {
	now := time.Unix(1700000000, 0)
	event := func(run uint32, number uint64) []byte { return bodyOf(marker{run, number, 0}) }
	for _, tt := range []struct {
		name, mode string
		again      time.Duration // after the first
		duplicates uint64
	}{
		{"one that is well gets it twice", modeWell, time.Hour, 1},
		{"one that drips has answered 200", modeDrip, time.Hour, 1},
		{"one that hangs, before the timeout", modeHang, 28 * time.Second, 1},
		{"one that hangs, after it", modeHang, 35 * time.Second, 0},
		{"one that fails", modeFail, ms, 0},
		{"one that is busy", modeBusy, ms, 0},
	} {
		b := newBystanders()
		b.began(tt.mode, 1, event(7, 1), now)()
		b.reset() // it came in the warm-up
		b.began(tt.mode, 1, event(7, 1), now.Add(tt.again))()
		b.began(tt.mode, 1, event(7, 2), now)()
		b.began(tt.mode, 2, event(7, 1), now)()
		b.began(tt.mode, 1, event(8, 1), now)()
		b.began(tt.mode, 1, []byte("{}"), now)()
		var a arrivals
		b.addTo(&a)
		if a.BystanderDuplicates != tt.duplicates || a.Bystanders[tt.mode] != 5 || a.Untracked != 0 {
			t.Errorf("%s: %+v, want %d duplicates of 5", tt.name, a, tt.duplicates)
		}
	}
}

func TestBystandersInFlight(t *testing.T) {
	b := newBystanders()
	now := time.Unix(1700000000, 0)
	peak := func() int {
		var a arrivals
		b.addTo(&a)
		return a.BystanderPeak
	}
	one, two := b.began(modeHang, 1, nil, now), b.began(modeDrip, 2, nil, now)
	b.began(modeWell, 3, nil, now) // is not counted
	one()
	if got := peak(); got != 2 {
		t.Errorf("at most %d at once, want 2", got)
	}
	b.reset()
	if got := peak(); got != 1 {
		t.Errorf("at most %d at once since the reset, want the one that is still there", got)
	}
	two()
	b.reset()
	if got := peak(); got != 0 {
		t.Errorf("at most %d at once, want none", got)
	}
}

func TestBystandersAreBounded(t *testing.T) {
	b := newBystanders()
	for n := range uint32(maxTracked) {
		b.last[delivered{'w', 0, 1, n}] = time.Time{}
	}
	b.began(modeWell, 1, bodyOf(marker{1, 1, 0}), time.Unix(1700000000, 0))()
	var a arrivals
	b.addTo(&a)
	if a.Untracked != 1 || len(b.last) != maxTracked {
		t.Errorf("%d untracked, %d tracked", a.Untracked, len(b.last))
	}
}

func TestGate(t *testing.T) {
	now := time.Unix(1700000000, 0)
	var g gate
	knock := func(run uint32, number uint64, after time.Duration) bool {
		return g.knock(bodyOf(marker{run, number, 0}), now.Add(after))
	}
	g.set(7, false)
	for _, number := range []uint64{0, 1, 0} {
		if knock(7, number, 0) {
			t.Error("it is open")
		}
	}
	g.set(7, true)
	for i, number := range []uint64{2, 4, 3, 9, 5, 1, 0, 9, 10} { // 0 and 1 were turned away: they may be late
		if !knock(7, number, time.Duration(i)*time.Second) {
			t.Error("it is shut")
		}
	}
	knock(8, 11, time.Hour) // another run
	g.knock([]byte("{}"), now.Add(time.Hour))
	want := gateStats{
		TurnedAway: 3, Tried: 2, Unique: 8, Duplicates: 1, FirstAt: now.UnixNano(), LastAt: now.Add(8 * time.Second).UnixNano(), Displacement: 4,
	}
	if diff := cmp.Diff(want, g.read()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if n := parseBitmap(g.numbers()).count(); n != 8 {
		t.Errorf("%d numbers have passed, want 8", n)
	}
	g.set(8, false)
	if diff := cmp.Diff(gateStats{}, g.read()); diff != "" {
		t.Errorf("a new run remembers the old one (-want +got):\n%s", diff)
	}
}

func TestGroupLogSyncsBeforeItReturns(t *testing.T) {
	f := &slowFile{gate: make(chan struct{})}
	l := newGroupLog(nil)
	l.file = f
	var committer, writers sync.WaitGroup
	committer.Go(l.run)
	var returned sync.Map
	for _, record := range []string{"one", "two", "three"} {
		writers.Go(func() {
			if err := l.append([]byte(record)); err != nil {
				t.Error(err)
			}
			if !strings.Contains(f.syncedText(), record+"\n") {
				t.Errorf("%s is acknowledged but not synced", record)
			}
			returned.Store(record, true)
		})
	}
	close(f.gate)
	writers.Wait()
	l.close()
	committer.Wait()
	if f.syncs > 3 || f.syncs < 1 {
		t.Errorf("%d syncs for 3 records", f.syncs)
	}
}

func TestGroupLogReportsAFullDisk(t *testing.T) {
	f := &slowFile{gate: make(chan struct{}), err: errors.New("no space left on device")}
	close(f.gate)
	l := newGroupLog(nil)
	l.file = f
	var committer sync.WaitGroup
	committer.Go(l.run)
	if err := l.append([]byte("one")); !errors.Is(err, f.err) {
		t.Errorf("error %v, want %v", err, f.err)
	}
	l.close()
	committer.Wait()
}

// slowFile syncs when its gate is open.
type slowFile struct {
	gate  chan struct{}
	err   error
	syncs int

	mu              sync.Mutex
	written, synced string
}

func (f *slowFile) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.written += string(p)
	return len(p), nil
}

func (f *slowFile) sync() error {
	<-f.gate
	f.mu.Lock()
	defer f.mu.Unlock()
	f.syncs++
	f.synced = f.written
	return f.err
}

func (f *slowFile) syncedText() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.synced
}

func TestRelayRefusesSenselessArguments(t *testing.T) {
	for _, tt := range []struct {
		args []string
		err  string
	}{
		{nil, "--log is missing"},
		{[]string{"--log", filepath.Join(t.TempDir(), "no", "log")}, "no such file"},
		{[]string{"--forward", "ftp://x"}, "not an http URL"},
		{[]string{"--what"}, "bench-relay: flag provided but not defined"},
	} {
		err := RunRelay(t.Context(), tt.args, strings.NewReader(""), io.Discard)
		if err == nil || !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%v: error %v, want one with %q", tt.args, err, tt.err)
		}
	}
}

func TestRelayKeepsAndForwards(t *testing.T) {
	address, stop := startReceiver(t)
	defer stop()
	rc := &receiverClient{base: "http://" + address}
	if err := rc.reset(t.Context(), 5); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "relay.log")
	says := newAnnouncement()
	stdin, parent := io.Pipe()
	over := make(chan error, 1)
	go func() {
		over <- RunRelay(context.Background(), []string{
			"--log", path, "--forward", rc.base + "/ok/0", "--forward", rc.base + "/ok/1",
		}, stdin, says)
	}()
	select {
	case <-says.complete:
	case err := <-over:
		t.Fatal(err)
	}
	relay := "http://" + strings.TrimPrefix(says.text(), listening)
	var want strings.Builder
	for n := range uint64(10) {
		body := bodyOf(marker{5, n, time.Now().UnixNano()})
		want.Write(append(body, '\n'))
		status, _, err := request(t.Context(), http.MethodPost, relay+"/services/events", "key", "", body)
		if err != nil || status != http.StatusAccepted {
			t.Fatalf("status %d, error %v; want 202", status, err)
		}
		// On disk when it is answered, not some time later.
		if log, err := os.ReadFile(path); err != nil || string(log) != want.String() {
			t.Fatalf("the log has %d bytes, want %d (%v)", len(log), want.Len(), err)
		}
	}
	_ = parent.Close() // it stops, and forwards what it holds before it ends
	if err := <-over; err != nil {
		t.Fatal(err)
	}
	a, err := rc.stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if a.Unique != 20 || a.Duplicates != 0 {
		t.Errorf("%d arrivals, %d duplicates; want 20, 0", a.Unique, a.Duplicates)
	}
}
