package postgres

import (
	"context"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// What the driver promises about its tables and statements, so that a database may
// be cut by tenant: the catalogue of the database and the statements themselves are
// asked.

// directory are the tables that stand apart: those of all tenants, and the two that
// say whose something is. The rest of them is the program's own.
var directory = []string{"nodes", "tenants", "settings", "credentials", "emails", "transfers", "goose_db_version"}

// readTexts are the rows of a query of texts.
func readTexts(t *testing.T, s *Store, text string) [][]string {
	t.Helper()
	rows, err := s.pool.Query(t.Context(), text)
	must(t, err)
	out, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (values []string, err error) {
		values = make([]string, len(r.FieldDescriptions()))
		to := make([]any, len(values))
		for i := range values {
			to[i] = &values[i]
		}
		return values, r.Scan(to...)
	})
	must(t, err)
	return out
}

func TestKeysStartWithTheTenant(t *testing.T) {
	s := openAt(t, server.Database(t))
	keys := readTexts(t, s, `SELECT c.relname, i.relname, a.attname
		FROM pg_index x JOIN pg_class c ON c.oid = x.indrelid JOIN pg_class i ON i.oid = x.indexrelid
		JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = x.indkey[0]
		WHERE x.indisunique AND c.relnamespace = current_schema()::regnamespace ORDER BY 1, 2`)
	keyed := map[string]bool{}
	for _, k := range keys {
		table, index, first := k[0], k[1], k[2]
		keyed[table] = true
		if first != "tenant_id" && !slices.Contains(directory, table) {
			t.Errorf("%s: the unique index %s starts with %s", table, index, first)
		}
	}
	tables := readTexts(t, s, `SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = current_schema()::regnamespace`)
	if len(tables) < 20 {
		t.Errorf("the catalogue has %d tables", len(tables))
	}
	for _, table := range tables {
		if !keyed[table[0]] {
			t.Errorf("%s has no key", table[0])
		}
	}
	for _, table := range directory {
		if !keyed[table] {
			t.Errorf("%s is not there", table)
		}
	}
}

func TestNothingTiesTenantsTogether(t *testing.T) {
	s := openAt(t, server.Database(t))
	for _, k := range readTexts(t, s, "SELECT conrelid::regclass::text, conname FROM pg_constraint WHERE contype = 'f'") {
		t.Errorf("%s has the foreign key %s", k[0], k[1])
	}
	for _, k := range readTexts(t, s, "SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE NOT tgisinternal") {
		t.Errorf("%s has the trigger %s", k[0], k[1])
	}
	got := readTexts(t, s, "SELECT d.refobjid::regclass::text FROM pg_class c JOIN pg_depend d ON d.objid = c.oid AND d.deptype IN ('a', 'i') WHERE c.relkind = 'S' ORDER BY 1")
	if want := [][]string{{"goose_db_version"}, {"nodes"}}; !slices.EqualFunc(got, want, slices.Equal[[]string]) {
		t.Errorf("sequences are of %v; want %v", got, want)
	}
}

// statements notes what is sent to the database.
type statements struct {
	mu   sync.Mutex
	sent map[string]bool
}

func (s *statements) note(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent[text] = true
}

// forget is for what came before that which is looked at.
func (s *statements) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.sent)
}

// TraceQueryStart implements pgx.QueryTracer.
func (s *statements) TraceQueryStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	s.note(d.SQL)
	return ctx
}

// TraceQueryEnd implements pgx.QueryTracer.
func (s *statements) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// TraceBatchStart implements pgx.BatchTracer.
func (s *statements) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return ctx
}

// TraceBatchQuery implements pgx.BatchTracer.
func (s *statements) TraceBatchQuery(_ context.Context, _ *pgx.Conn, d pgx.TraceBatchQueryData) {
	s.note(d.SQL)
}

// TraceBatchEnd implements pgx.BatchTracer.
func (s *statements) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

// traced is a store whose statements are noted, without what goes on behind.
func traced(t *testing.T, url string, tracer pgx.QueryTracer) *Store {
	t.Helper()
	plain, err := connect(t.Context(), url)
	must(t, err)
	defer plain.Close()
	c := plain.Config()
	c.ConnConfig.Tracer = tracer
	pool, err := pgxpool.NewWithConfig(t.Context(), c)
	must(t, err)
	s := &Store{
		o: Options{URL: url, Span: time.Hour}, pool: pool, commits: pool, leases: pool, logger: slog.New(slog.DiscardHandler), now: time.Now,
		unfolded: map[id.Tenant]struct{}{}, pending: map[id.Tenant]knownPending{},
	}
	t.Cleanup(pool.Close)
	must(t, s.open(t.Context()))
	return s
}

// hotPath does what happens to deliveries while a server works.
func hotPath(t *testing.T, n *nodes, s *Store) {
	t.Helper()
	ctx := t.Context()
	b, deliveries := n.batch(8, true)
	a := b.Accepts[0]
	a.MaxQueued = 100
	a.Key = &store.IdempotencyKey{Key: "key", ExpiresAt: time.Now().Add(time.Hour)}
	a.Events[0].GivenID, a.Events[1].GivenID = "given", made(t, id.NewEvent).String()
	for range 2 { // the second finds the key
		must(t, s.Apply(ctx, b))
		must(t, a.Err)
	}
	var outcomes []*store.Outcome
	for i, change := range []hook.Change{hook.Succeeded, hook.Postponed, hook.Exhausted, hook.Expired, hook.Canceled} {
		o := n.success(deliveries[i])
		o.Change = change
		switch change {
		case hook.Succeeded:
		case hook.Expired, hook.Canceled:
			o.Attempt = hook.Attempt{}
			o.Failure = &hook.Failure{Kind: hook.FailureStatus, Message: "no"}
		default:
			o.Attempt.StatusCode, o.Attempt.Failure, o.Due = 500, &hook.Failure{Kind: hook.FailureStatus, Message: "no"}, time.Now()
		}
		outcomes = append(outcomes, o)
	}
	must(t, s.Apply(ctx, &store.Batch{Outcomes: outcomes}))
	for i, o := range outcomes {
		if !o.Matched {
			t.Errorf("outcome %d did not match", i)
		}
	}
	again := n.success(deliveries[1])
	again.Attempt.Number = 2
	late := n.success(deliveries[2])
	late.Attempt.Number = 2
	must(t, s.Apply(ctx, &store.Batch{Outcomes: []*store.Outcome{again, late}}))
	// Three more are marked as this node's, and given back; one is free.
	n.accept(s, 1, false)
	if got := n.claim(s); len(got) != 4 {
		t.Errorf("%d deliveries are claimed; want 4", len(got))
	}
	if _, err := s.Expire(ctx, store.ExpireParams{Tenant: n.tenant, Webhook: n.webhook, Now: time.Now().Add(24 * time.Hour), Limit: 100}); err != nil {
		t.Error(err)
	}
	must(t, s.Release(ctx, n.tenant, n.webhook, nil))
}

// wrong says what is wrong with a statement of the hot path, "" for nothing.
// tables are those of tenants.
//
// A sub-select in array(…) beside UPDATE … FROM is run again for each row of the
// join, by some plans; SKIP LOCKED without the tenant walks over the locks of all.
func wrong(statement string, tables *regexp.Regexp) string {
	plain := strings.Join(strings.Fields(statement), " ")
	switch {
	case tables.MatchString(plain) && !strings.Contains(plain, "tenant_id = ") && !strings.Contains(plain, "(tenant_id, "):
		return "does not name the tenant"
	case regexp.MustCompile(`(?i)UPDATE .* FROM .*array ?\( ?SELECT`).MatchString(plain):
		return "has a sub-select in array(…) of an UPDATE … FROM"
	case strings.Contains(plain, "SKIP LOCKED") && !strings.Contains(plain, "tenant_id = $"):
		return "skips locked rows of all tenants"
	default:
		return ""
	}
}

func TestHotPathNamesTheTenant(t *testing.T) {
	n := newNodes(t)
	noted := &statements{sent: map[string]bool{}}
	s := traced(t, n.url, noted)
	noted.forget()
	hotPath(t, n, s)
	var names []string
	for _, table := range readTexts(t, s, `SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id'
		WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relnamespace = current_schema()::regnamespace`) {
		if !slices.Contains(directory, table[0]) {
			names = append(names, table[0])
		}
	}
	tables := regexp.MustCompile(`(?i)\b(FROM|JOIN|INTO|UPDATE|USING) (` + strings.Join(names, "|") + `)\b`)
	touching := 0
	for statement := range noted.sent {
		if tables.MatchString(strings.Join(strings.Fields(statement), " ")) {
			touching++
		}
		if problem := wrong(statement, tables); problem != "" {
			t.Errorf("%s %s", statement, problem)
		}
	}
	if touching < 15 {
		t.Errorf("%d statements were seen that touch a tenant's table: is all of the hot path run?", touching)
	}
	for statement, want := range map[string]string{
		"UPDATE queue SET node = NULL WHERE node = $1":                                                                   "does not name",
		"SELECT 1 FROM\n\tqueue LIMIT 1":                                                                                 "does not name",
		"SELECT id FROM queue q WHERE tenant_id = ANY($1) FOR UPDATE SKIP LOCKED":                                        "skips locked",
		"UPDATE queue q SET node = $1 FROM k WHERE q.tenant_id = $2 AND q.id = ANY(array(SELECT id FROM queue LIMIT 1))": "sub-select",
		"SELECT id FROM queue WHERE tenant_id = $1 FOR UPDATE SKIP LOCKED":                                               "",
		"SELECT config_version FROM tenants WHERE id = $1":                                                               "",
	} {
		if got := wrong(statement, tables); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: %q; want %q", statement, got, want)
		}
	}
}
