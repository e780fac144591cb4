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
	if want := (counted{trips: 4, statements: 5 + 1 + 3 + 1, commits: 1}); *cost != want {
		t.Errorf("it cost %+v; want %+v", *cost, want)
	}
}

// Whatever the database believes of the tables' sizes, what outcomes and claims are
// about is found by its tenant and id: a node holds thousands of rows. Of a table as
// small as this one, several indexes that have both cost the same.
func TestPlansOfTheHotPath(t *testing.T) {
	n := newNodes(t)
	s := openAt(t, n.url)
	n.accept(s, 100, true)
	c, err := s.pool.Acquire(t.Context())
	must(t, err)
	defer c.Release()
	_, err = c.Exec(t.Context(), "BEGIN")
	must(t, err)
	_, err = c.Exec(t.Context(), "SELECT "+sqlSet)
	must(t, err)
	wrong := regexp.MustCompile("Seq Scan|Sort|BitmapOr")
	for _, q := range []struct {
		name, text, args, index string
	}{
		{"done", sqlDone, "1, '{}', '{}', '{}', '{}'", "queue_(pkey|webhook|expiry)"},
		{"postponed", sqlPostponed, "1, '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}'", "queue_(pkey|webhook|expiry)"},
		{"free_mine", sqlFreeMine, "'00000000-0000-0000-0000-000000000001', '{}', 1, '00000000-0000-0000-0000-000000000001'", "queue_(pkey|webhook|expiry)"},
		{"hold", sqlHold, "'00000000-0000-0000-0000-000000000001', '{}', 1, '00000000-0000-0000-0000-000000000001'", "queue_(pkey|webhook|expiry)"},
		{"mine", sqlMine, "1, '00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-000000000001'", "queue_held"},
		{"due", sqlDue, "'00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-000000000001', 1, 100", "queue_free"},
		{"next_due", sqlNextDue, "'00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-000000000001', 1", "queue_free"},
		{"expired", sqlExpired, "'00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-000000000001', 1, 100", "queue_expiry"},
	} {
		_, err := c.Exec(t.Context(), "PREPARE "+q.name+" AS "+q.text)
		must(t, err)
		var plan strings.Builder
		var line string
		must(t, each(t.Context(), c, "EXPLAIN EXECUTE "+q.name+" ("+q.args+")", []any{pgx.QueryExecModeSimpleProtocol}, []any{&line}, func() error {
			plan.WriteString(line + "\n")
			return nil
		}))
		if text := plan.String(); !regexp.MustCompile(q.index).MatchString(text) || wrong.MatchString(text) || strings.HasPrefix(q.index, "queue_(") && regexp.MustCompile("queue_(held|free)").MatchString(text) {
			t.Errorf("%s does not go by %s alone:\n%s", q.name, q.index, text)
		}
	}
}
