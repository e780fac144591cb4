package bench

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fakeDatabases are folders. Each reading of what they have done is the one before
// and a second, 100 commits and a megabyte more.
type fakeDatabases struct {
	root   string
	broken bool // a database that is made is none

	mu      sync.Mutex
	dropped []string
	settled []string
	calls   map[string]int // publishes by node, of all that were dropped
	reads   uint64
}

func (f *fakeDatabases) dir(name string) string { return filepath.Join(f.root, name) }

func (f *fakeDatabases) describe(context.Context) (*DatabaseReport, error) {
	return &DatabaseReport{Version: "15.1", Settings: map[string]string{"fsync": "on"}}, nil
}

func (f *fakeDatabases) url(name string) string { return fakeScheme + f.dir(name) }

func (f *fakeDatabases) exists(_ context.Context, name string) (bool, error) {
	_, err := os.Stat(f.dir(name))
	return err == nil, nil
}

func (f *fakeDatabases) create(_ context.Context, name, template string) error {
	if f.broken {
		return errors.New("permission denied to create database")
	}
	if template != "" {
		return copyFolder(f.dir(template), f.dir(name))
	}
	return os.Mkdir(f.dir(name), 0o700)
}

func (f *fakeDatabases) drop(ctx context.Context, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dropped = append(f.dropped, name)
	if f.calls == nil {
		f.calls = map[string]int{}
	}
	files, err := filepath.Glob(filepath.Join(f.dir(name), "*.calls"))
	if err != nil {
		return err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(string(text))
		if err != nil {
			return err
		}
		f.calls[strings.TrimSuffix(filepath.Base(file), ".calls")] += n
	}
	return errors.Join(ctx.Err(), os.RemoveAll(f.dir(name)))
}

func (f *fakeDatabases) settle(_ context.Context, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.settled = append(f.settled, name)
	return nil
}

func (f *fakeDatabases) size(_ context.Context, name string) (int64, error) {
	return folderSize(f.dir(name))
}

func (f *fakeDatabases) note(_ context.Context, name string, text []byte) error {
	return os.WriteFile(filepath.Join(f.dir(name), "note"), text, 0o600)
}

func (f *fakeDatabases) noted(_ context.Context, name string) ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(f.dir(name), "note"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return text, err
}

func (f *fakeDatabases) watch(context.Context, string) (databaseWatch, error) { return f, nil }

func (f *fakeDatabases) close(context.Context) error { return nil }

func (f *fakeDatabases) read(context.Context) (databaseUsage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads++
	return databaseUsage{cpu: time.Duration(f.reads) * time.Second, commits: f.reads * 100, wal: f.reads * 1e6}, nil
}

// left fails the test if there are other databases than these.
func (f *fakeDatabases) left(t *testing.T, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(f.root)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if !slices.Equal(names, want) {
		t.Errorf("databases %q are left, want %q", names, want)
	}
}

// onDatabases is short with nodes on databases.
func onDatabases(t *testing.T, nodes int) (Options, *fakeDatabases) {
	o := short(t)
	f := &fakeDatabases{root: t.TempDir()}
	o.Nodes, o.databases = nodes, f
	return o, f
}

// What is published is spread over the nodes, and what they take is added up.
func TestNodes(t *testing.T) {
	o, f := onDatabases(t, 3)
	o.Publishers, o.Pairs, o.Warmup = 6, 2, -1
	report, out, err := bench(t, t.Context(), o)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var published uint64
	for _, r := range report.Scenarios[0].Runs {
		consistent(t, r, 1)
		published += r.Accepted
		if r.DatabaseCPUSeconds != 1 || r.DatabaseCommits != 100 || r.DatabaseWALBytes != 1e6 {
			t.Errorf("the database did %+v, want what a reading adds", r)
		}
		n := float64(r.Delivered)
		if r.DatabaseCPUSecondsPer1000 != 1/n*1000 || r.CommitsPerDelivery != 100/n || r.WALBytesPerDelivery != 1e6/n {
			t.Errorf("of %v deliveries: %+v", n, r)
		}
	}
	var sum int
	for node, n := range f.calls {
		sum += n
		// Two of six publishers, as fast as the node answers them.
		if n == 0 || n == int(published) {
			t.Errorf("node %s got %d of %d publishes", node, n, published)
		}
	}
	if len(f.calls) != 3 || sum != int(published) {
		t.Errorf("publishes %v, want %d at three nodes", f.calls, published)
	}
	if len(f.dropped) != 2 || f.dropped[0] == f.dropped[1] || !strings.HasPrefix(f.dropped[0], databasePrefix) {
		t.Errorf("dropped %q, want a database for each run", f.dropped)
	}
	f.left(t)
	if d := report.Database; d == nil || d.Nodes != 3 || d.Version != "15.1" {
		t.Errorf("the report says of the database: %+v", d)
	}
	for _, want := range []string{"PostgreSQL 15.1, 3 nodes on it; fsync=on", "database CPU s per 1000", "commits per delivery", "WAL bytes per delivery"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in:\n%s", want, out)
		}
	}
}

// Without a database the table says nothing of one.
func TestNoDatabase(t *testing.T) {
	report, out, err := bench(t, t.Context(), short(t))
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if report.Database != nil || strings.Contains(out, "database") || strings.Contains(out, "WAL") {
		t.Errorf("a database is in the report:\n%s", out)
	}
}

func TestPublishersTakeTurnsAtNodes(t *testing.T) {
	s := &subject{key: "k"}
	for i := range 3 {
		base, err := url.Parse(fmt.Sprintf("http://127.0.0.1:%d", i+1))
		if err != nil {
			t.Fatal(err)
		}
		s.nodes = append(s.nodes, node{base: base})
	}
	connect := s.publishers(wireEvents{eventType: eventType, batch: 1, payloadBytes: minPayload})
	var got []string
	for range 4 {
		p, ok := connect().(*wirePublisher)
		if !ok {
			t.Fatal("another publisher")
		}
		got = append(got, p.address)
	}
	want := []string{"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Whatever goes wrong, no database is left.
func TestDatabasesAreDroppedAfterFailures(t *testing.T) {
	t.Run("a node ends", func(t *testing.T) {
		o, f := onDatabases(t, 2)
		o.ServeArgs = []string{"--fault", "crash"}
		_, out, err := bench(t, t.Context(), o)
		if err == nil || !strings.Contains(err.Error(), "ended by itself") {
			t.Errorf("error %v, want that a node ended\n%s", err, out)
		}
		f.left(t)
	})
	t.Run("interrupted", func(t *testing.T) {
		o, f := onDatabases(t, 2)
		o.Duration = time.Hour
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, _, err := bench(t, ctx, o); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, want the context's", err)
		}
		f.left(t)
	})
	t.Run("it can't be made", func(t *testing.T) {
		o, f := onDatabases(t, 1)
		f.broken = true
		if _, _, err := bench(t, t.Context(), o); err == nil || !strings.Contains(err.Error(), "permission denied") {
			t.Errorf("error %v, want that it can't be made", err)
		}
		// It may have been made all the same, and only the answer lost.
		if len(f.dropped) != 1 {
			t.Errorf("dropped %q", f.dropped)
		}
	})
}

func TestBacklogOnADatabase(t *testing.T) {
	o, f := onDatabases(t, 2)
	o.Scenario, o.Backlog = "backlog", 1500
	report, out, err := bench(t, t.Context(), o)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	sr := report.Scenarios[0]
	got := figures(sr)
	if got["queued"] != 2000 || got["backlogLost"] != 0 || got["readySeconds"] <= 0 || got["drainDatabaseCpuSecondsPer1000"] != 0.5 {
		t.Errorf("figures %v: want 2 batches of 1,000 queued and drained, and a second for that", got)
	}
	if len(f.dropped) != 1 {
		t.Errorf("dropped %q, want one database: it is restarted on", f.dropped)
	}
	f.left(t)
}

func TestHistoryInADatabase(t *testing.T) {
	o, f := onDatabases(t, 2)
	o.Scenario, o.Pairs, o.History, o.Webhooks, o.KeepData = "history", 1, 500, 20, "kept"
	for _, want := range []string{"Filling a store with 500 deliveries of 20 webhooks", ""} { // the second time it is there
		report, out, err := bench(t, t.Context(), o)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if (want == "") == strings.Contains(out, "Filling a store") || !strings.Contains(out, want) {
			t.Errorf("it must fill a database the first time, and only then:\n%s", out)
		}
		for _, r := range report.Scenarios[0].Runs {
			consistent(t, r, 1)
		}
		if got := figures(report.Scenarios[0]); got["deliveries"] != 500 || got["bytesPerDelivery"] < 100 || got["prunedDeliveries"] < 50 {
			t.Errorf("figures %v", got)
		}
		f.left(t, "kept")
	}
	if !slices.Equal(f.settled, []string{"kept"}) {
		t.Errorf("settled %q, want what was filled", f.settled)
	}
	o.History = 600
	if _, out, err := bench(t, t.Context(), o); err == nil || !strings.Contains(err.Error(), "the database kept holds 500 deliveries of 20 webhooks") {
		t.Errorf("error %v, want that another size is kept\n%s", err, out)
	}
	if err := f.create(t.Context(), "mine", ""); err != nil {
		t.Fatal(err)
	}
	o.KeepData = "mine"
	if _, out, err := bench(t, t.Context(), o); err == nil || !strings.Contains(err.Error(), "a database mine that holds no history") {
		t.Errorf("error %v, want that it is somebody's\n%s", err, out)
	}
	// One that did not get done is not kept, and one that is not to be kept is not.
	o.KeepData, o.Self = "new", filepath.Join(t.TempDir(), "no-such-program")
	if _, _, err := bench(t, t.Context(), o); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v, want that there is no such program", err)
	}
	o.KeepData = ""
	if _, _, err := bench(t, t.Context(), o); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v, want that there is no such program", err)
	}
	f.left(t, "kept", "mine")
}

// Whole days go, and no more is waited for than goes.
func TestBorderOfADatabase(t *testing.T) {
	from := time.Date(2024, 5, 1, 15, 0, 0, 0, time.UTC)
	h := &history{seeded: seeded{From: from, Until: from.Add(29 * 24 * time.Hour), Deliveries: 2900}}
	if cut, gone, old := h.border(); old != 290 || !cut.Equal(from.Add(69*time.Hour+36*time.Minute)) || !gone.Before(cut) {
		t.Errorf("%v, %v, %d: want a tenth", cut, gone, old)
	}
	h.database = &database{}
	cut, gone, old := h.border()
	if !cut.Equal(time.Date(2024, 5, 5, 0, 0, 0, 0, time.UTC)) || !gone.Equal(cut.Add(-24*time.Hour)) || old != 337 {
		t.Errorf("%v, %v, %d: want the days before the 5th, of which the last one's events may stay", cut, gone, old)
	}
}

func TestDatabaseURLs(t *testing.T) {
	for _, tt := range []struct{ given, want string }{
		{"postgres://u:p%40ss@db:5433/postgres?sslmode=disable&pool_max_conns=20", "postgres://u:p%40ss@db:5433/new?pool_max_conns=20&sslmode=disable"},
		{"postgresql://db", "postgresql://db/new"},
		{"postgres://db/a?dbname=b", "postgres://db/new"},
		{"host=db user=u password=p dbname=postgres", "host=db user=u password=p dbname=postgres dbname=new"},
	} {
		p, err := newPostgres(tt.given)
		if err != nil {
			t.Errorf("%s: %v", tt.given, err)
			continue
		}
		if got := p.url("new"); got != tt.want {
			t.Errorf("%s: a database of it is at %s, want %s", tt.given, got, tt.want)
		}
	}
}
