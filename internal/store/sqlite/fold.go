package sqlite

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store/codec"
)

// A batch changes the gauges and four levels of counters of every webhook and
// tenant in it. Written as rows each time, that was most of what a batch of many
// webhooks cost. So a batch writes all that it counted as one row of a log, in the
// transaction of what it counts, and many of these are folded into the tables
// together: when the log has grown, or when somebody wants to read.

const (
	foldRows  = 64      // batches
	foldBytes = 1 << 20 // of the log
	// foldKeys bounds the memory: a webhook's counts of a minute take 1.3 KiB.
	foldKeys = 2048
)

// unfolded is what the log holds. All but dirty is for whoever has the writer's
// turn.
type unfolded struct {
	gauges map[gaugeKey]struct{} // their values are in Store.gauges
	counts map[countKey]*count
	rows   int
	bytes  int
	dirty  atomic.Bool // there is something
}

func newUnfolded() *unfolded {
	return &unfolded{gauges: map[gaugeKey]struct{}{}, counts: map[countKey]*count{}}
}

// full reports whether the log is to be folded, with what a transaction adds.
func (u *unfolded) full(t *tx) bool {
	return u.rows >= foldRows || u.bytes >= foldBytes || len(u.gauges)+len(u.counts)+len(t.gauges)+len(t.counts) > foldKeys ||
		len(t.s.gauges) > maxGauges
}

func (u *unfolded) add(gauges map[gaugeKey]gauge, counts map[countKey]*count) {
	for key := range gauges {
		u.gauges[key] = struct{}{}
	}
	for key, c := range counts {
		if before := u.counts[key]; before != nil {
			before.add(c)
		} else {
			u.counts[key] = c
		}
	}
}

// flushCounts writes what the transaction counted: into the log or, with all that
// is there, into the tables.
func (t *tx) flushCounts() error {
	u := t.s.unfolded
	if t.wantFold || u.full(t) {
		return t.fold()
	}
	if len(t.gauges)+len(t.counts) == 0 {
		return nil
	}
	data, err := encodeCounts(t.gauges, t.counts)
	if err != nil {
		return err
	}
	if _, err := t.exec("INSERT INTO count_log (data) VALUES (?)", data); err != nil {
		return fmt.Errorf("log counts: %w", err)
	}
	t.logged = len(data)
	return nil
}

// fold writes the log and what the transaction counted into the tables.
func (t *tx) fold() error {
	u := t.s.unfolded
	for key := range u.gauges {
		if _, ok := t.gauges[key]; ok {
			continue
		}
		g, err := t.gauge(key)
		if err != nil {
			return err
		}
		if t.gauges == nil {
			t.gauges = map[gaugeKey]gauge{}
		}
		t.gauges[key] = g
	}
	for key, c := range u.counts {
		if t.counts == nil {
			t.counts = map[countKey]*count{}
		}
		if mine := t.counts[key]; mine != nil {
			mine.add(c)
		} else {
			t.counts[key] = c
		}
	}
	if err := t.writeCounts(); err != nil {
		return err
	}
	t.folded = true
	if u.rows == 0 {
		return nil
	}
	if _, err := t.exec("DELETE FROM count_log"); err != nil {
		return fmt.Errorf("empty the log of counts: %w", err)
	}
	return nil
}

// keepFold takes over what a committed transaction did to the log.
func (s *Store) keepFold(t *tx) {
	u := s.unfolded
	switch {
	case t.folded:
		clear(u.gauges)
		clear(u.counts)
		u.rows, u.bytes = 0, 0
	case t.logged > 0:
		u.add(t.gauges, t.counts)
		u.rows++
		u.bytes += t.logged
	}
	u.dirty.Store(u.rows > 0)
}

// foldedUp sees to it that the tables hold all counts, for one who is about to
// read them. Where that can't be, what is there can be read all the same: it is
// as it was some batches ago.
func (s *Store) foldedUp(ctx context.Context) {
	if !s.unfolded.dirty.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	release, err := s.takeTurn(ctx)
	if err != nil {
		return
	}
	defer release()
	if !s.unfolded.dirty.Load() {
		return // somebody who had the turn before did it
	}
	if err := s.transact(ctx, (*tx).foldAll); err != nil {
		s.logger.DebugContext(ctx, "counts are read as they were a moment ago", "err", err)
	}
}

// foldAll has the transaction fold the log at its end.
func (t *tx) foldAll() error {
	t.wantFold = true
	return nil
}

// recoverCounts folds what a process had logged when it ended.
func (s *Store) recoverCounts(ctx context.Context) error {
	u := s.unfolded
	var last int64
	err := s.writer.query("SELECT n, data FROM count_log ORDER BY n", func(r row) (bool, error) {
		last = r.int(0)
		gauges, counts, err := decodeCounts(r.blob(1))
		if err != nil {
			return false, err
		}
		for key, g := range gauges {
			s.gauges[key] = g
		}
		u.add(gauges, counts)
		u.rows++
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("read the log of counts in %s, up to row %d: %w", s.path, last, err)
	}
	if u.rows == 0 {
		return nil
	}
	if err := s.transact(ctx, (*tx).foldAll); err != nil {
		return fmt.Errorf("fold the log of counts in %s: %w", s.path, err)
	}
	return nil
}

// decodeCounts reads what encodeCounts wrote.
func decodeCounts(b []byte) (map[gaugeKey]gauge, map[countKey]*count, error) {
	d := codec.Decoder{Rest: b}
	damaged := fmt.Errorf("read logged counts: %w", codec.ErrDamaged)
	if d.Byte() != countsForm {
		return nil, nil, damaged
	}
	key := func() gaugeKey { return gaugeKey{id.Tenant(d.ID()), id.Webhook(d.ID())} }
	gauges, counts := map[gaugeKey]gauge{}, map[countKey]*count{}
	for range d.Length() {
		k := key()
		gauges[k] = gauge{d.Varint(), d.Varint(), d.Varint()}
	}
	for range d.Length() {
		k := countKey{key(), d.Varint()}
		c := &count{succeeded: d.Varint(), failed: d.Varint()}
		if err := c.latency.UnmarshalBinary([]byte(d.Text())); err != nil {
			return nil, nil, err
		}
		counts[k] = c
	}
	if d.Failed {
		return nil, nil, damaged
	}
	return gauges, counts, nil
}
