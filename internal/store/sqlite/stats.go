package sqlite

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/plinqx/hypha/internal/store"
)

const (
	sqlStatsAll   = `SELECT succeeded, failed, latency FROM counters WHERE tenant_id = ? AND webhook_id = ? AND level = 0 AND bucket = 0`
	sqlStatsRange = `SELECT succeeded, failed, latency FROM counters WHERE tenant_id = ? AND webhook_id = ? AND level = ? AND bucket >= ? AND bucket < ?`
)

// span is a range of buckets of a level: from included, to not.
type span struct {
	level    level
	from, to int64
}

// spans covers a time, in Unix milliseconds, with as few buckets as may be: days
// in its middle, hours and minutes at its ends.
func spans(from, to int64) []span {
	if from >= to {
		return nil
	}
	var out []span
	add := func(l level, from, to int64) {
		if from < to {
			out = append(out, span{l, from, to})
		}
	}
	// cover adds [from, to), whose bounds are on a bucket of l.
	var cover func(l level, from, to int64)
	cover = func(l level, from, to int64) {
		if l == levelDay {
			add(l, from, to)
			return
		}
		larger := l - 1
		first, last := larger.start(from+larger.width()-1), larger.start(to)
		if first >= last {
			add(l, from, to)
			return
		}
		add(l, from, first)
		cover(larger, first, last)
		add(l, last, to)
	}
	cover(levelMinute, from, to)
	return out
}

// The time that counters can be of.
const (
	firstTime = 0
	lastTime  = math.MaxInt64 / 2
)

// Stats sums what was counted. Times before the history's start are counted by
// the day: Prune drops the minutes and hours of them.
func (s *Store) Stats(ctx context.Context, q store.StatsQuery) (*store.Stats, error) {
	s.foldedUp(ctx)
	out := &store.Stats{}
	err := s.read(ctx, q.Tenant, func(c *conn) error {
		g, err := readGauge(c, gaugeKey{q.Tenant, q.Webhook})
		if err != nil {
			return err
		}
		out.Pending = g.pending
		add := func(r row) (bool, error) {
			var l store.Latency
			if err := l.UnmarshalBinary(r.blob(2)); err != nil {
				return false, err
			}
			out.Succeeded += r.int(0)
			out.Failed += r.int(1)
			out.Latency.Merge(&l)
			return true, nil
		}
		if q.Since.IsZero() && q.Until.IsZero() {
			return c.query(sqlStatsAll, add, q.Tenant[:], q.Webhook[:])
		}
		for _, part := range spans(bound(q.Since, firstTime), bound(q.Until, levelDay.start(lastTime))) {
			if err := c.query(sqlStatsRange, add, q.Tenant[:], q.Webhook[:], int64(part.level), part.from, part.to); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("sum up the counters: %w", err)
	}
	return out, nil
}

func bound(t time.Time, open int64) int64 {
	if t.IsZero() {
		return open
	}
	return levelMinute.start(max(firstTime, millis(t)))
}
