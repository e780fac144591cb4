package sqlite

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

func TestOneProcessPerFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	s := openAt(t, dir)
	_, err := Open(t.Context(), Options{Dir: dir})
	if !errors.Is(err, store.ErrLocked) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "another hypha process") {
		t.Fatalf("the second open: %v; want ErrLocked, and the folder named", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	openAt(t, dir)
}

func TestFilesAreTheOwnersAlone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	s := openAt(t, dir)
	newBench(t, s) // writes
	if _, err := s.Size(t.Context()); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Fatalf("the folder is %v, %v; want 0700", info.Mode(), err)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) < 4 {
		t.Fatalf("files: %v, %v", files, err)
	}
	for _, f := range files {
		if info, err := f.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s is %v, %v; want 0600", f.Name(), info.Mode(), err)
		}
	}
}

func TestFolderOfAnyName(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a b?c#d%41&é")
	openAt(t, dir)
	if _, err := os.Stat(filepath.Join(dir, databaseFile)); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(dir), "*")); err != nil || len(left) != 1 {
		t.Fatalf("the folder's parent has %v, %v", left, err)
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, dir)
	if err := s.writer.run("INSERT INTO goose_db_version (version_id, is_applied) VALUES (900, 1)"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), Options{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), "900") || !strings.Contains(err.Error(), "newer hypha") {
		t.Fatalf("opened a newer schema: %v", err)
	}
	// It let go of the folder.
	if _, err := Open(t.Context(), Options{Dir: dir}); errors.Is(err, store.ErrLocked) {
		t.Fatal("a refused start keeps the lock")
	}
}

func TestSettingsOfTheDatabase(t *testing.T) {
	s := openAt(t, t.TempDir())
	for pragma, want := range map[string]string{
		"journal_mode": "wal", "synchronous": "2", "auto_vacuum": "2", "wal_autocheckpoint": "0", "page_size": fmt.Sprint(pageSize), "foreign_keys": "0",
	} {
		var got string
		if err := s.writer.scan("PRAGMA "+pragma, func(r row) { got = fmt.Sprint(r[0]) }); err != nil || got != want {
			t.Errorf("%s is %s, %v; want %s", pragma, got, err, want)
		}
	}
	err := s.snapshot(t.Context(), func(c *conn) error {
		_, err := c.exec("UPDATE settings SET value = 7")
		return err
	})
	if err == nil {
		t.Error("a reader can write")
	}
}

// TestPlans holds that what is asked often, or of much, goes through the index
// that is meant for it.
func TestPlans(t *testing.T) { checkPlans(t, openAt(t, t.TempDir())) }

func checkPlans(t *testing.T, s *Store) {
	t.Helper()
	var tenant id.Tenant
	webhook := id.Webhook{1}
	failed, pending := hook.StatusFailed, hook.StatusPending
	listText := func(q store.DeliveryQuery) string { l := deliveryList(&q); return l.text }
	for name, c := range map[string]struct{ text, want string }{
		"claim":                     {sqlClaim, "SEARCH d USING INDEX deliveries_queue (tenant_id=? AND webhook_id=? AND due_at<?)"},
		"next due":                  {sqlNextDue, "COVERING INDEX deliveries_queue (tenant_id=? AND webhook_id=? AND due_at>?)"},
		"claimed row":               {sqlClaim, "SEARCH e USING INDEX events_id (tenant_id=? AND id=?)"},
		"expire":                    {sqlExpired, "INDEX deliveries_expiry (tenant_id=? AND webhook_id=?"},
		"backlog":                   {sqlBacklog, "COVERING INDEX deliveries_queue (tenant_id=? AND webhook_id=?"},
		"outcome":                   {sqlOutcome, "PRIMARY KEY (tenant_id=? AND id=?)"},
		"give up":                   {sqlGiveUp, "PRIMARY KEY (tenant_id=? AND id=?)"},
		"retry job":                 {sqlFailedRows, "COVERING INDEX deliveries_failed (tenant_id=? AND webhook_id=? AND id>?)"},
		"discard job":               {sqlQueueRows, "COVERING INDEX deliveries_queue (tenant_id=? AND webhook_id=? AND (due_at,id)>(?,?))"},
		"retry one":                 {sqlAskable, "SEARCH d USING PRIMARY KEY (tenant_id=? AND id=?)"},
		"list of a tenant":          {listText(store.DeliveryQuery{}), "PRIMARY KEY (tenant_id=? AND id>? AND id<?)"},
		"list of a webhook":         {listText(store.DeliveryQuery{Webhook: webhook}), "COVERING INDEX deliveries_webhook (tenant_id=? AND webhook_id=? AND id>? AND id<?)"},
		"list by status":            {listText(store.DeliveryQuery{Webhook: webhook, Status: &pending}), "deliveries_webhook (tenant_id=? AND webhook_id=? AND id>? AND id<?)"},
		"list of failed":            {listText(store.DeliveryQuery{Status: &failed}), "COVERING INDEX deliveries_failed_all (tenant_id=? AND id>? AND id<?)"},
		"list of a webhook, failed": {listText(store.DeliveryQuery{Webhook: webhook, Status: &failed}), "COVERING INDEX deliveries_failed (tenant_id=? AND webhook_id=? AND id>? AND id<?)"},
		"prune deliveries":          {sqlOldDeliveries, "PRIMARY KEY (tenant_id=? AND id>?)"},
		"prune events":              {sqlOldEvents, "INDEX events_id (tenant_id=? AND id>?)"},
		"prune counters":            {sqlDropCounters, "PRIMARY KEY (tenant_id=? AND webhook_id=? AND level=? AND bucket<?)"},
		"next counted":              {sqlNextCounted, "PRIMARY KEY (tenant_id=? AND webhook_id>?)"},
		"stats":                     {sqlStatsRange, "PRIMARY KEY (tenant_id=? AND webhook_id=? AND level=? AND bucket>? AND bucket<?)"},
		"running jobs":              {sqlJobsRunning, "jobs_running"},
		"running job":               {sqlJobRunning, "jobs_running (tenant_id=? AND webhook_id=? AND kind=?)"},
	} {
		var plan []string
		args := make([]any, strings.Count(c.text, "?"))
		for i := range args {
			args[i] = tenant[:]
		}
		if err := s.writer.scan("EXPLAIN QUERY PLAN "+c.text, func(r row) { plan = append(plan, r.text(3)) }, args...); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		all := strings.Join(plan, "\n")
		if !strings.Contains(all, c.want) || strings.Contains(all, "SCAN deliveries") || strings.Contains(all, "SCAN events") ||
			(strings.Contains(all, "TEMP B-TREE") && name != "running jobs") {
			t.Errorf("%s: the plan is\n%s\nwant %s", name, all, c.want)
		}
	}
}

// TestFullDisk fills the database up to its last page. What fails leaves
// nothing behind, and when there is room again all goes on.
func TestFullDisk(t *testing.T) {
	s := openAt(t, t.TempDir())
	b := newBench(t, s)
	first := b.accepts(3)
	if err := s.Apply(t.Context(), &store.Batch{Accepts: first}); err != nil {
		t.Fatal(err)
	}
	var pages int64
	if err := s.writer.scan("PRAGMA page_count", func(r row) { pages = r.int(0) }); err != nil {
		t.Fatal(err)
	}
	if err := s.writer.run(fmt.Sprintf("PRAGMA max_page_count = %d", pages)); err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		big := b.accepts(2)
		big[1].Events[0].Body = make([]byte, 1<<20)
		big[0].Key = &store.IdempotencyKey{Key: "k", Hash: [32]byte{byte(round)}, ExpiresAt: b.now.Add(time.Hour)}
		outcome := b.outcome(first[0])
		err := s.Apply(t.Context(), &store.Batch{Accepts: big, Outcomes: []*store.Outcome{outcome}})
		var e *hook.Error
		if !errors.As(err, &e) || e.Code != hook.CodeUnavailable || e.RetryAfter <= 0 || e.Cause == nil {
			t.Fatalf("on a full disk: %v; want UNAVAILABLE, when to come again, and the cause", err)
		}
		d, err := s.Delivery(t.Context(), b.tenant, first[0].Events[0].Deliveries[0].ID)
		if err != nil || d.Status != hook.StatusPending {
			t.Fatalf("the outcome of the failed batch was kept: %+v, %v", d, err)
		}
		b.want(t, 3)
	}
	if err := s.writer.run(fmt.Sprintf("PRAGMA max_page_count = %d", pages+10_000)); err != nil {
		t.Fatal(err)
	}
	again := b.accepts(2)
	again[0].Key = &store.IdempotencyKey{Key: "k", Hash: [32]byte{9}, ExpiresAt: b.now.Add(time.Hour)}
	if err := s.Apply(t.Context(), &store.Batch{Accepts: again, Outcomes: []*store.Outcome{b.outcome(first[0])}}); err != nil {
		t.Fatalf("with room again: %v", err)
	}
	if again[0].Err != nil || again[0].Results[0].Duplicate {
		t.Fatalf("a key of a failed batch counts: %+v, %v", again[0].Results, again[0].Err)
	}
	b.want(t, 4)
}

// TestLogBeginsAnew writes several times what the log may hold.
func TestLogBeginsAnew(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, dir)
	b := newBench(t, s)
	for range 20 {
		a := b.accepts(4)
		for _, r := range a {
			r.Events[0].Body = make([]byte, 1<<20)
		}
		if err := s.Apply(t.Context(), &store.Batch{Accepts: a}); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(filepath.Join(dir, databaseFile+"-wal"))
	if err != nil || info.Size() > 2*restartAbove {
		t.Fatalf("after 80 MiB the log has %d bytes, %v; want %d at most", info.Size(), err, 2*restartAbove)
	}
}

// bench makes work for a store with one tenant and some webhooks.
type bench struct {
	store    *Store
	tenant   id.Tenant
	webhooks []id.Webhook
	version  int64
	now      time.Time
}

func newBench(t testing.TB, s *Store) *bench {
	t.Helper()
	b := &bench{store: s, now: time.Now().UTC().Truncate(time.Millisecond)}
	var err error
	if b.tenant, err = id.NewTenant(); err == nil {
		err = s.InsertTenant(t.Context(), hook.Tenant{ID: b.tenant, Name: "acme", CreatedAt: b.now, UpdatedAt: b.now})
	}
	for range 8 {
		var w id.Webhook
		if err == nil {
			w, err = id.NewWebhook()
		}
		if err == nil {
			b.version, err = s.InsertWebhook(t.Context(), store.WebhookRow{Webhook: hook.Webhook{ID: w, Tenant: b.tenant, Revision: 1}})
		}
		b.webhooks = append(b.webhooks, w)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// accepts makes n requests of an event with a delivery.
func (b *bench) accepts(n int) []*store.Accept {
	var out []*store.Accept
	for i := range n {
		e, d := id.Event(newID()), id.Delivery(newID())
		out = append(out, &store.Accept{Tenant: b.tenant, ConfigVersion: b.version, MaxQueued: 1 << 40, Events: []store.NewEvent{{
			ID: e, Type: "invocation.completed", Timestamp: b.now, Body: make([]byte, 500), Due: b.now, ExpiresAt: b.now.Add(time.Hour),
			Deliveries: []store.NewDelivery{{ID: d, Webhook: b.webhooks[i%len(b.webhooks)], Trigger: hook.TriggerAuto, Held: true}},
		}}})
	}
	return out
}

// made has the ids of a request made at a time.
func (b *bench) made(a *store.Accept, at time.Time) {
	bound := id.First(at)
	for i := range a.Events {
		e := &a.Events[i]
		copy(e.ID[:6], bound[:])
		for j := range e.Deliveries {
			copy(e.Deliveries[j].ID[:6], bound[:])
		}
		e.Due = at
	}
}

// newID is an id of any kind: the kinds differ in their text alone.
func newID() [16]byte {
	v, err := id.NewEvent()
	if err != nil {
		return [16]byte{}
	}
	return v
}

func (b *bench) outcome(a *store.Accept) *store.Outcome {
	d := a.Events[0].Deliveries[0]
	return &store.Outcome{Tenant: b.tenant, Webhook: d.Webhook, Delivery: d.ID, Change: hook.Succeeded, Try: 1, At: time.Now(), Attempt: hook.Attempt{
		Number: 1, Trigger: hook.TriggerAuto, StartedAt: b.now, Duration: 12 * time.Millisecond, Revision: 1, StatusCode: 200,
		Header: map[string][]string{"Content-Type": {"application/json"}, "Date": {"Mon, 23 Nov 2026 22:00:00 GMT"}}, Body: []byte(`{"ok":true}`),
	}}
}

// want checks how many deliveries are unfinished.
func (b *bench) want(t *testing.T, pending int64) {
	t.Helper()
	st, err := b.store.Stats(t.Context(), store.StatsQuery{Tenant: b.tenant})
	if err != nil || st.Pending != pending {
		t.Fatalf("%d deliveries are unfinished, %v; want %d", st.Pending, err, pending)
	}
}

// BenchmarkApply writes batches of accepts with the outcomes of the batch
// before; an operation is one event with both.
func BenchmarkApply(b *testing.B) {
	for _, size := range []int{1, 32, 256} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			w := newBench(b, openAt(b, b.TempDir()))
			var before []*store.Accept
			for n := 0; n < b.N; n += size {
				batch := &store.Batch{Accepts: w.accepts(size)}
				for _, a := range before {
					batch.Outcomes = append(batch.Outcomes, w.outcome(a))
				}
				if err := w.store.Apply(b.Context(), batch); err != nil {
					b.Fatal(err)
				}
				before = batch.Accepts
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	b.Run("empty", func(b *testing.B) {
		for b.Loop() {
			s, err := Open(b.Context(), Options{Dir: b.TempDir()})
			if err != nil {
				b.Fatal(err)
			}
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("again", func(b *testing.B) {
		dir := b.TempDir()
		for b.Loop() {
			s, err := Open(b.Context(), Options{Dir: dir})
			if err != nil {
				b.Fatal(err)
			}
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// A writer that was lost and could not be replaced at once comes back with the
// next who asks for it, be that only a look whether all is well.
func TestPingBringsTheWriterBack(t *testing.T) {
	s, err := Open(t.Context(), Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if err := s.writer.close(); err != nil {
		t.Fatal(err)
	}
	s.writer = nil
	if err := s.Ping(t.Context()); err != nil {
		t.Errorf("ping: %v", err)
	}
	if s.writer == nil {
		t.Error("there is still no writer")
	}
}

// However often a webhook is changed, no more than keptRevisions are kept.
func TestRevisionsAreBounded(t *testing.T) {
	s, err := Open(t.Context(), Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	tenant, webhook := id.Tenant{1}, id.Webhook{2}
	if err := s.InsertTenant(t.Context(), hook.Tenant{ID: tenant, Name: "a"}); err != nil {
		t.Fatal(err)
	}
	row := store.WebhookRow{Webhook: hook.Webhook{ID: webhook, Tenant: tenant, Revision: 1}, Sealed: []byte("sealed")}
	if _, err := s.InsertWebhook(t.Context(), row); err != nil {
		t.Fatal(err)
	}
	for row.Revision < keptRevisions+20 {
		row.Revision++
		if _, err := s.UpdateWebhook(t.Context(), row); err != nil {
			t.Fatal(err)
		}
	}
	kept := 0
	for r := int64(1); r <= row.Revision; r++ {
		if _, err := s.WebhookRevision(t.Context(), tenant, webhook, r); err == nil {
			kept++
		}
	}
	if _, err := s.WebhookRevision(t.Context(), tenant, webhook, row.Revision); err != nil || kept != keptRevisions {
		t.Errorf("%d revisions are kept, want the last %d; the last: %v", kept, keptRevisions, err)
	}
}
