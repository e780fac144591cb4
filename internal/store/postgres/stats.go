package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/plinqx/hypha/internal/store"
)

const (
	sqlStatsAll   = `SELECT succeeded, failed, latency FROM counters WHERE tenant_id = $1 AND webhook_id = $2 AND level = 0 AND bucket = 0`
	sqlStatsRange = `SELECT succeeded, failed, latency FROM counters WHERE tenant_id = $1 AND webhook_id = $2 AND level = $3 AND bucket >= $4 AND bucket < $5`
)

// Stats sums what was counted, folded or not. Times before the history's start are
// counted by the day: Prune drops the minutes and hours of them.
func (s *Store) Stats(ctx context.Context, q store.StatsQuery) (*store.Stats, error) {
	var sum counter
	var pending int64
	err := s.read(ctx, q.Tenant, func(ctx context.Context, c pgx.Tx) error {
		sum, pending = counter{}, 0
		g, err := readGauge(ctx, c, q.Tenant, q.Webhook)
		if err != nil {
			return err
		}
		pending = g.pending
		if err := sum.addFolded(ctx, c, &q); err != nil {
			return err
		}
		fresh, err := unfolded(ctx, c, q.Tenant)
		if err != nil {
			return err
		}
		sum.addFresh(fresh, &q)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("sum up the counters: %w", err)
	}
	return &store.Stats{Succeeded: sum.succeeded, Failed: sum.failed, Pending: pending, Latency: sum.latency}, nil
}

func (c *counter) addFolded(ctx context.Context, q querier, of *store.StatsQuery) error {
	var part counter
	var latency []byte
	add := func() error {
		if err := part.latency.UnmarshalBinary(latency); err != nil {
			return err
		}
		c.add(&part)
		return nil
	}
	columns := []any{&part.succeeded, &part.failed, &latency}
	if of.Since.IsZero() && of.Until.IsZero() {
		return each(ctx, q, sqlStatsAll, []any{uuid(of.Tenant), uuid(of.Webhook)}, columns, add)
	}
	for _, p := range store.Spans(of.Since, of.Until) {
		if err := each(ctx, q, sqlStatsRange, []any{uuid(of.Tenant), uuid(of.Webhook), int16(p.Level), p.From, p.To}, columns, add); err != nil {
			return err
		}
	}
	return nil
}

// addFresh adds what is not folded yet. It is by the minute, as times are rounded.
func (c *counter) addFresh(fresh *counts, of *store.StatsQuery) {
	since, until := millis(of.Since)/msPerMinute, millis(of.Until)/msPerMinute
	for key, n := range fresh.counters {
		minute := key.minute / msPerMinute
		if (of.Webhook.IsZero() || key.webhook == of.Webhook) && (of.Since.IsZero() || minute >= since) && (of.Until.IsZero() || minute < until) {
			c.add(n)
		}
	}
}

const msPerMinute = int64(60_000)
