package postgres

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/plinqx/hypha/internal/hook"
)

// What a batch costs is held to what it costs now, in what can be counted: round
// trips, statements, commits. Times are the benchmark's.

// counted counts what is sent to the database.
type counted struct{ trips, statements, commits int }

func (c *counted) statement(text string) {
	c.statements++
	if text == "COMMIT" {
		c.commits++
	}
}

// TraceQueryStart implements pgx.QueryTracer.
func (c *counted) TraceQueryStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	c.trips++
	c.statement(d.SQL)
	return ctx
}

// TraceQueryEnd implements pgx.QueryTracer.
func (c *counted) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// TraceBatchStart implements pgx.BatchTracer.
func (c *counted) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	c.trips++
	return ctx
}

// TraceBatchQuery implements pgx.BatchTracer.
func (c *counted) TraceBatchQuery(_ context.Context, _ *pgx.Conn, d pgx.TraceBatchQueryData) {
	c.statement(d.SQL)
}

// TraceBatchEnd implements pgx.BatchTracer.
func (c *counted) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

func TestCostOfABatch(t *testing.T) {
	n := newNodes(t)
	cost := &counted{}
	s := traced(t, n.url, cost)
	for _, c := range []struct {
		what   string
		events int
		change hook.Change
		want   counted
	}{
		// The same for one event as for a thousand.
		{"successes", 1, hook.Succeeded, counted{trips: 2, statements: 5 + 5, commits: 1}},
		{"successes", 1000, hook.Succeeded, counted{trips: 2, statements: 5 + 5, commits: 1}},
		{"failures that are tried again", 1000, hook.Postponed, counted{trips: 2, statements: 5 + 5, commits: 1}},
	} {
		t.Run(fmt.Sprintf("%d events and %d %s", c.events, c.events, c.what), func(t *testing.T) {
			before, deliveries := n.batch(c.events, true)
			must(t, s.Apply(t.Context(), before))
			b, _ := n.batch(c.events, true)
			for _, d := range deliveries {
				o := n.success(d)
				if o.Change = c.change; c.change == hook.Postponed {
					o.Attempt.StatusCode, o.Attempt.Failure = 500, &hook.Failure{Kind: hook.FailureStatus, Message: "no"}
				}
				b.Outcomes = append(b.Outcomes, o)
			}
			// Spans and statements are known from now on.
			*cost = counted{}
			must(t, s.Apply(t.Context(), b))
			if *cost != c.want {
				t.Errorf("it cost %+v; want %+v", *cost, c.want)
			}
			for _, o := range b.Outcomes {
				if !o.Matched {
					t.Fatal("an outcome did not match")
				}
			}
		})
	}
}

func TestCostOfAClaim(t *testing.T) {
	n := newNodes(t)
	cost := &counted{}
	s := traced(t, n.url, cost)
	n.accept(s, 300, false)
	*cost = counted{}
	if got := n.claim(s); len(got) != 300 {
		t.Fatalf("%d were claimed", len(got))
	}
	if want := (counted{trips: 4, statements: 5 + 1 + 4 + 1, commits: 1}); *cost != want {
		t.Errorf("it cost %+v; want %+v", *cost, want)
	}
}

// sqlForgotten makes many rows in the queue, and sqlEmptied takes them away again.
const (
	sqlForgotten = `INSERT INTO queue (tenant_id, id, webhook_id, event_id, era, due_at, expires_at, status, attempts, try, event_type, trigger)
		SELECT $1, gen_random_uuid(), $2, gen_random_uuid(), 0, 1, 1, 0, 0, 0, 'a.b', 'auto' FROM generate_series(1, 20000)`
	sqlEmptied = `DELETE FROM queue`
)

// Whatever the database believes of the queue, what outcomes and claims are about is
// found by its tenant and id alone, and what is due by the index that has the order.
func TestPlansOfTheHotPath(t *testing.T) {
	const tenant, webhook = "'00000000-0000-0000-0000-000000000001'", "'00000000-0000-0000-0000-000000000002'"
	byKey := regexp.MustCompile(`(?s)Bitmap Index Scan on queue_pkey.*Index Cond: \(\(tenant_id = o\w*\.tenant_id\) AND \(id = o\w*\.id\)\)`)
	statements := []struct {
		name, text, args string
		byID             bool
		plan             *regexp.Regexp
	}{
		{"done", sqlDone, "1, '{}', '{}', '{}', '{}'", true, byKey},
		{"postponed", sqlPostponed, "1, '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}'", true, byKey},
		{"known", sqlKnown, "1, '{}', '{}', '{}'", true, byKey},
		{"free_mine", sqlFreeMine, "'{}', '{}', 1", true, byKey},
		{"hold", sqlHold, "'{}', '{}', 1", true, byKey},
		{"give_up", sqlGiveUp, "'{}', " + webhook + ", '{}', 1, 1, false, 1, 1, 3, 'a', 'b'", true, byKey},
		{"mine", sqlMine, "1, " + tenant + ", " + webhook, false, regexp.MustCompile("using queue_held")},
		{"due", sqlDue, tenant + ", " + webhook + ", 1, 100", false, regexp.MustCompile("using queue_free")},
		{"next_due", sqlNextDue, tenant + ", " + webhook + ", 1", false, regexp.MustCompile("using queue_free")},
		{"expired", sqlExpired, tenant + ", " + webhook + ", 1, 100", false, regexp.MustCompile("using queue_expiry")},
		{"next_end", sqlNextEnd, tenant + ", " + webhook + ", 1", false, regexp.MustCompile("using queue_expiry")},
		{"queue_rows", sqlQueueRows, tenant + ", " + webhook + ", " + tenant + ", 100", false, regexp.MustCompile("using queue_webhook")},
	}
	// The row of a webhook that fills the table.
	fill := func(t *testing.T, n *nodes, s *Store) {
		t.Helper()
		_, err := s.pool.Exec(t.Context(), sqlForgotten, uuid(n.tenant), uuid(n.webhook))
		must(t, err)
	}
	run := func(t *testing.T, s *Store, text string) {
		t.Helper()
		_, err := s.pool.Exec(t.Context(), text)
		must(t, err)
	}
	for _, c := range []struct {
		name    string
		prepare func(t *testing.T, n *nodes, s *Store)
	}{
		{"nothing is known", func(t *testing.T, n *nodes, s *Store) { n.accept(s, 100, true) }},
		{"it was empty when it was looked at", func(t *testing.T, n *nodes, s *Store) {
			run(t, s, "VACUUM (ANALYZE) queue")
			fill(t, n, s)
		}},
		{"it had been emptied when it was looked at", func(t *testing.T, n *nodes, s *Store) {
			fill(t, n, s)
			run(t, s, sqlEmptied)
			run(t, s, "VACUUM (ANALYZE, TRUNCATE off) queue")
			fill(t, n, s)
		}},
		{"it is full, of one webhook's", func(t *testing.T, n *nodes, s *Store) {
			fill(t, n, s)
			run(t, s, "VACUUM (ANALYZE) queue")
		}},
		{"it was full when it was looked at", func(t *testing.T, n *nodes, s *Store) {
			fill(t, n, s)
			run(t, s, "VACUUM (ANALYZE) queue")
			run(t, s, sqlEmptied)
			n.accept(s, 100, true)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNodes(t)
			s := openAt(t, n.url)
			c.prepare(t, n, s)
			conn, err := s.pool.Acquire(t.Context())
			must(t, err)
			defer conn.Release()
			for _, q := range statements {
				must(t, pgx.BeginFunc(t.Context(), conn, func(pgx.Tx) error {
					mode := byOrder
					if q.byID {
						mode = byID
					}
					_, err := conn.Exec(t.Context(), "SELECT "+sqlSet+", "+mode)
					must(t, err)
					_, err = conn.Exec(t.Context(), "PREPARE "+q.name+" AS "+q.text)
					must(t, err)
					var plan strings.Builder
					var line string
					must(t, each(t.Context(), conn, "EXPLAIN EXECUTE "+q.name+" ("+q.args+")", []any{pgx.QueryExecModeSimpleProtocol}, []any{&line}, func() error {
						plan.WriteString(line + "\n")
						return nil
					}))
					text := plan.String()
					if !q.plan.MatchString(text) || strings.Contains(text, "Seq Scan on queue") || strings.Contains(text, "Sort") || q.byID && strings.Contains(text, " using queue") {
						t.Errorf("%s does not go by %v alone:\n%s", q.name, q.plan, text)
					}
					return nil
				}))
			}
		})
	}
}
