package sqlite

import (
	"context"
	"fmt"

	"github.com/plinqx/hypha/internal/store"
)

const (
	sqlStatsAll   = `SELECT succeeded, failed, latency FROM counters WHERE tenant_id = ? AND webhook_id = ? AND level = 0 AND bucket = 0`
	sqlStatsRange = `SELECT succeeded, failed, latency FROM counters WHERE tenant_id = ? AND webhook_id = ? AND level = ? AND bucket >= ? AND bucket < ?`
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
		for _, part := range store.Spans(q.Since, q.Until) {
			if err := c.query(sqlStatsRange, add, q.Tenant[:], q.Webhook[:], int64(part.Level), part.From, part.To); err != nil {
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
