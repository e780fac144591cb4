package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// History is three tables that are cut into spans of time, each a table of its own:
// events, deliveries and attempts. Ids are in order of time, so a span is a range
// of ids, and of one and the same in the three. Spans are made ahead of time, and
// of an older time when somebody has something to write there: an unfinished
// delivery may become history long after its span was dropped.

// historyTables are cut into spans.
func historyTables() [3]string { return [...]string{"events", "deliveries", "attempts"} }

const (
	// spansAhead is how many spans after the current one there are.
	spansAhead = 2
	// spansEach is how often it is looked whether there are.
	spansEach = time.Minute
)

// span is a time that a part of the history holds: hours since 1970, the first
// included and the last not. Its table is named by the first.
type span struct {
	from, to int64
}

func (p span) table(of string) string { return fmt.Sprintf("%s_s%d", of, p.from) }

// first and end are the bounds of its ids, the first included and the end not.
func (p span) first() [16]byte { return hourBound(p.from) }
func (p span) end() [16]byte   { return hourBound(p.to) }

const msPerHour = int64(time.Hour / time.Millisecond)

// hourBound is the least id of an hour: the time is in the leading 48 bits (RFC
// 9562 §5.7).
func hourBound(hour int64) (bound [16]byte) {
	binary.BigEndian.PutUint64(bound[:8], uint64(hour*msPerHour)<<16)
	return bound
}

// hourOf is the hour in which an id was made.
func hourOf(v [16]byte) int64 { return int64(binary.BigEndian.Uint64(v[:8])>>16) / msPerHour }

// spans are those that this node knows of: in order of time, and there in all three
// tables. One that is dropped by another node is known for a while longer.
type spans struct {
	known atomic.Pointer[[]span]

	pruning sync.Mutex
	pass    prunePass // of pruning, which holds the mutex
	// sizes are those of cut.go, unless they are set.
	sizes sizes
}

// missing are the hours of ids that no known span holds, each once.
func (s *spans) missing(ids [][16]byte) (hours []int64) {
	var known []span
	if p := s.known.Load(); p != nil {
		known = *p
	}
	last := span{} // most ids are of the same span as the one before
	for _, v := range ids {
		hour := hourOf(v)
		if last.from <= hour && hour < last.to {
			continue
		}
		if i, ok := find(known, hour); ok {
			last = known[i]
		} else if !slices.Contains(hours, hour) {
			hours = append(hours, hour)
		}
	}
	return hours
}

// find is where an hour is among spans, or would be.
func find(known []span, hour int64) (int, bool) {
	return slices.BinarySearchFunc(known, hour, func(p span, hour int64) int {
		switch {
		case p.to <= hour:
			return -1
		case p.from > hour:
			return 1
		default:
			return 0
		}
	})
}

// forgetSpans makes the next one who needs a span look for it.
func (s *Store) forgetSpans() { s.spans.known.Store(nil) }

// needSpans sees to it that what has these ids can be written to history. It costs
// next to nothing while the spans are there.
func (s *Store) needSpans(ctx context.Context, ids ...[16]byte) error {
	return edge(s.needHours(ctx, s.spans.missing(ids)))
}

func (s *Store) needHours(ctx context.Context, hours []int64) error {
	if len(hours) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := pgx.BeginFunc(ctx, s.pool, func(q pgx.Tx) error {
		// One at a time, over all nodes: who comes second finds the spans there.
		if _, err := q.Exec(ctx, `SELECT `+sqlSet+`, pg_advisory_xact_lock(7004, 0)`, pgx.QueryExecModeSimpleProtocol); err != nil {
			return err
		}
		have, err := readSpans(ctx, q)
		if err != nil {
			return err
		}
		for _, hour := range hours {
			for _, table := range historyTables() {
				if err := makeSpan(ctx, q, have, table, hour, int64(s.o.Span/time.Hour)); err != nil {
					return err
				}
			}
		}
		whole := have.whole()
		s.spans.known.Store(&whole)
		return nil
	})
	if err != nil {
		s.forgetSpans()
		return fmt.Errorf("make room in the history: %w", err)
	}
	return nil
}

// spansOf are the spans of each history table, in order.
type spansOf map[string][]span

// whole are the times that all three tables hold.
func (have spansOf) whole() []span {
	var out []span
	tables := historyTables()
	for _, p := range have[tables[0]] {
		for _, table := range tables[1:] {
			i, ok := find(have[table], p.from)
			if !ok {
				p.to = p.from
				break
			}
			p.to = min(p.to, have[table][i].to)
		}
		if p.from < p.to {
			out = append(out, p)
		}
	}
	return out
}

const sqlSpans = `SELECT p.relname, c.relname, pg_get_expr(c.relpartbound, c.oid)
	FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent JOIN pg_class c ON c.oid = i.inhrelid
	WHERE i.inhparent IN ('events'::regclass, 'deliveries'::regclass, 'attempts'::regclass)`

// readSpans asks the database which spans there are. Those of another width than
// this node's are as good.
func readSpans(ctx context.Context, q querier) (spansOf, error) {
	have := spansOf{}
	var parent, table, bounds string
	err := each(ctx, q, sqlSpans, nil, []any{&parent, &table, &bounds}, func() error {
		found := uuidsIn(bounds)
		if len(found) != 2 {
			return fmt.Errorf("table %s holds %s; a part of the history holds a time", table, bounds)
		}
		have[parent] = append(have[parent], span{hourOf(found[0]), hourOf(found[1])})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look at the history's spans: %w", err)
	}
	for _, of := range have {
		slices.SortFunc(of, func(a, b span) int { return int(a.from - b.from) })
	}
	return have, nil
}

// uuidsIn finds the UUIDs in what the database says.
func uuidsIn(text string) [][16]byte {
	var out [][16]byte
	for _, found := range regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`).FindAllString(text, -1) {
		var v pgtype.UUID
		if v.Scan(found) == nil {
			out = append(out, v.Bytes)
		}
	}
	return out
}

// makeSpan makes a table's span around an hour, if there is none. Where spans of
// another width are in the way it takes what is left between them. Attaching a table
// that was made apart leaves readers and writers of the others alone; making it as a
// part from the beginning would not.
func makeSpan(ctx context.Context, q pgx.Tx, have spansOf, table string, hour, width int64) error {
	of := have[table]
	i, ok := find(of, hour)
	if ok {
		return nil
	}
	p := span{hour - hour%width, hour - hour%width + width}
	if i > 0 {
		p.from = max(p.from, of[i-1].to)
	}
	if i < len(of) {
		p.to = min(p.to, of[i].from)
	}
	for _, text := range [...]string{createText(table, p.table(table)), attachText(table, p.table(table), p)} {
		if _, err := q.Exec(ctx, text); err != nil {
			return err
		}
	}
	have[table] = slices.Insert(of, i, p)
	return nil
}

// createText makes a table that could be a span of another.
func createText(of, name string) string {
	return fmt.Sprintf("CREATE TABLE %s (LIKE %s INCLUDING ALL)", name, of)
}

// attachText makes it a span.
func attachText(to, name string, p span) string {
	return fmt.Sprintf("ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM ('%s') TO ('%s')", to, name, uuid(p.first()), uuid(p.end()))
}

// openSpans sees to it that there is room for what comes next.
func (s *Store) openSpans(ctx context.Context) error {
	if s.o.Span < time.Hour || s.o.Span%time.Hour != 0 {
		return fmt.Errorf("a span of the history can't be %v: it is in whole hours", s.o.Span)
	}
	return edge(s.moreSpans(ctx, 1))
}

// moreSpans makes the current span and some after it.
func (s *Store) moreSpans(ctx context.Context, ahead int) error {
	var ids [][16]byte
	hour := s.now().UnixMilli() / msPerHour
	for i := range int64(ahead) + 1 {
		ids = append(ids, hourBound(hour+i*int64(s.o.Span/time.Hour)))
	}
	return s.needHours(ctx, s.spans.missing(ids))
}

// keepSpansAhead makes spans before they are needed, until ctx ends.
func (s *Store) keepSpansAhead(ctx context.Context) {
	ticks := time.NewTicker(spansEach)
	defer ticks.Stop()
	for {
		if err := s.moreSpans(ctx, spansAhead); err != nil && ctx.Err() == nil {
			s.logger.WarnContext(ctx, "there is no room for the history to come; trying again", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
	}
}

// noSpanError is what a transaction ends with that has something to write to spans
// that are not there. They can't be made in its middle: whoever looks on must see
// them before.
type noSpanError struct {
	hours []int64
}

func (e *noSpanError) Error() string { return "the history has no room for this time yet" }

// haveSpans is a noSpanError if what has these ids can't be written to history.
func (t *tx) haveSpans(ids ...[16]byte) error {
	if hours := t.s.spans.missing(ids); len(hours) > 0 {
		return &noSpanError{hours}
	}
	return nil
}

// mendSpans makes the spans for want of which a transaction failed, and reports
// whether to run it again. One that was dropped by another node meanwhile is
// noticed by the database, which names the id.
func (s *Store) mendSpans(ctx context.Context, err error) bool {
	var missing *noSpanError
	var e *pgconn.PgError
	switch {
	case errors.As(err, &missing):
		return s.needHours(ctx, missing.hours) == nil
	case errors.As(err, &e) && e.Code == stateCheck:
		s.forgetSpans()
		return s.needSpans(ctx, uuidsIn(e.Detail)...) == nil
	default:
		return false
	}
}
