package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/internal/store/codec"
	"github.com/plinqx/hypha/internal/store/transfer"
)

// seedRows is how many rows are written at once, and seedWriters how many do so:
// while one waits for the database, the next rows are made.
const (
	seedRows    = 20_000
	seedWriters = 2
)

// seedCopy writes the history as rows, as a copy of another store is written: each
// delivery in its final place at once. By commits it would take ten times as long.
type seedCopy struct {
	s     *seeder
	to    transfer.Target
	parts map[string]*seedPart
	pages chan seedPage // to the writers

	// What there is of each webhook; the zero one is the whole tenant.
	gauges map[id.Webhook]*seedGauge
	// counters are those of the time that is written: every hour, the ones of times
	// that are over become rows.
	counters map[seedBucket]*seedCounter
	hour     int64
}

type seedPart struct {
	transfer.Part
	rows []transfer.Row
	sent int64
}

type seedPage struct {
	part transfer.Part
	rows []transfer.Row
	at   transfer.Progress
}

type seedGauge struct{ failed, total int64 }

// seedBucket is a row of counters.
type seedBucket struct {
	webhook id.Webhook
	level   store.Level
	start   int64
}

type seedCounter struct {
	succeeded, failed int64
	latency           store.Latency
}

func newSeedCopy(s *seeder, to transfer.Target) *seedCopy {
	c := &seedCopy{
		s: s, to: to, parts: map[string]*seedPart{}, pages: make(chan seedPage),
		gauges: map[id.Webhook]*seedGauge{}, counters: map[seedBucket]*seedCounter{},
	}
	for _, p := range transfer.Parts() {
		c.parts[p.Name] = &seedPart{Part: p}
	}
	return c
}

// write implements seedSink.
func (c *seedCopy) write(ctx context.Context, all func(add seedAdd) error) error {
	// The first that fails ends the others.
	writing, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var writers sync.WaitGroup
	for range seedWriters {
		writers.Go(func() {
			for page := range c.pages {
				if err := c.to.WritePart(writing, page.part, page.rows, page.at); err != nil {
					fail(fmt.Errorf("bench-seed: write %s: %w", page.part.Name, err))
					return
				}
			}
		})
	}
	err := all(func(e store.NewEvent, outcomes []*store.Outcome) error { return c.add(writing, e, outcomes) })
	if err == nil {
		err = c.rest(writing)
	}
	close(c.pages)
	writers.Wait()
	if err == nil {
		err = context.Cause(writing)
	}
	if err != nil {
		return err
	}
	return c.to.EndTransfer(ctx)
}

func (c *seedCopy) add(ctx context.Context, e store.NewEvent, outcomes []*store.Outcome) error {
	ids := make([]byte, 0, len(e.Deliveries)*len(id.Delivery{}))
	for i := range e.Deliveries {
		ids = append(ids, e.Deliveries[i].ID[:]...)
	}
	err := c.row(ctx, "events", map[string]any{
		"tenant_id": [16]byte(c.s.owner), "id": [16]byte(e.ID), "ts": e.Timestamp.UnixMilli(), "type": e.Type, "deliveries": ids, "body": e.Body,
	})
	if err != nil {
		return err
	}
	for i, o := range outcomes {
		if err := c.delivery(ctx, &e, &e.Deliveries[i], o); err != nil {
			return err
		}
		if err := c.count(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

// delivery writes a delivery that has ended with its first attempt.
func (c *seedCopy) delivery(ctx context.Context, e *store.NewEvent, d *store.NewDelivery, o *store.Outcome) error {
	status, ok := hook.StatusPending.Next(o.Change, true)
	if !ok || !status.Done() || o.Attempt.Number != 1 {
		return fmt.Errorf("bench-seed: delivery %s has not ended with its first attempt", d.ID)
	}
	tenant, attempt := [16]byte(c.s.owner), codec.EncodeAttempt(&o.Attempt)
	row := map[string]any{
		"tenant_id": tenant, "id": [16]byte(d.ID), "webhook_id": [16]byte(d.Webhook), "event_id": [16]byte(e.ID),
		"era": int64(0), "expires_at": e.ExpiresAt.UnixMilli(), "attempts": int64(o.Attempt.Number), "try": int64(o.Try), "status": int64(status),
		"event_type": e.Type, "trigger": string(d.Trigger),
		"last_at": o.Attempt.StartedAt.UnixMilli(), "last_status": int64(o.Attempt.StatusCode), "last_us": o.Attempt.Duration.Microseconds(),
		"completed_at": o.At.UnixMilli(),
	}
	if f := o.Attempt.Failure; f != nil {
		row["last_kind"], row["last_message"] = string(f.Kind), f.Message
	}
	// A success at the first attempt stands in its delivery's row.
	if o.Change == hook.Succeeded {
		row["detail"] = attempt
		return c.row(ctx, "deliveries", row)
	}
	if err := c.row(ctx, "deliveries", row); err != nil {
		return err
	}
	return c.row(ctx, "attempts", map[string]any{"tenant_id": tenant, "delivery_id": [16]byte(d.ID), "number": int64(o.Attempt.Number), "data": attempt})
}

// count adds an outcome to the gauges and counters.
func (c *seedCopy) count(ctx context.Context, o *store.Outcome) error {
	ms := o.At.UnixMilli()
	if hour := store.LevelHour.Start(ms); hour > c.hour {
		c.hour = hour
		// An attempt may end a little before one that was written before it.
		border := ms - time.Minute.Milliseconds()
		if err := c.writeCounters(ctx, func(k seedBucket) bool { return k.start < k.level.Start(border) }); err != nil {
			return err
		}
	}
	for _, webhook := range [...]id.Webhook{o.Webhook, {}} {
		g := c.gauges[webhook]
		if g == nil {
			g = &seedGauge{}
			c.gauges[webhook] = g
		}
		g.total++
		if o.Change != hook.Succeeded {
			g.failed++
		}
		for _, level := range store.Levels() {
			k := seedBucket{webhook, level, level.Start(ms)}
			n := c.counters[k]
			if n == nil {
				n = &seedCounter{}
				c.counters[k] = n
			}
			if o.Attempt.Failure == nil {
				n.succeeded++
			} else {
				n.failed++
			}
			n.latency.Add(o.Attempt.Duration)
		}
	}
	return nil
}

// writeCounters writes those that are over.
func (c *seedCopy) writeCounters(ctx context.Context, over func(seedBucket) bool) error {
	for k, n := range c.counters {
		if !over(k) {
			continue
		}
		latency, err := n.latency.AppendBinary(nil)
		if err != nil {
			return err
		}
		err = c.row(ctx, "counters", map[string]any{
			"tenant_id": [16]byte(c.s.owner), "webhook_id": [16]byte(k.webhook), "level": int64(k.level), "bucket": k.start,
			"succeeded": n.succeeded, "failed": n.failed, "latency": latency,
		})
		if err != nil {
			return err
		}
		delete(c.counters, k)
	}
	return nil
}

// rest writes what is left, and the sums of all.
func (c *seedCopy) rest(ctx context.Context) error {
	if err := c.writeCounters(ctx, func(seedBucket) bool { return true }); err != nil {
		return err
	}
	for webhook, g := range c.gauges {
		err := c.row(ctx, "gauges", map[string]any{
			"tenant_id": [16]byte(c.s.owner), "webhook_id": [16]byte(webhook), "pending": int64(0), "failed": g.failed, "total": g.total,
		})
		if err != nil {
			return err
		}
	}
	for _, p := range c.parts {
		if err := c.send(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// row adds a row to a part. A column that has no value is NULL.
func (c *seedCopy) row(ctx context.Context, part string, values map[string]any) error {
	p := c.parts[part]
	row := make(transfer.Row, len(p.Columns))
	for i, column := range p.Columns {
		row[i] = values[column.Name]
	}
	if p.rows = append(p.rows, row); len(p.rows) < seedRows {
		return nil
	}
	return c.send(ctx, p)
}

// send gives the rows of a part to a writer.
func (c *seedCopy) send(ctx context.Context, p *seedPart) error {
	if len(p.rows) == 0 {
		return nil
	}
	p.sent += int64(len(p.rows))
	page := seedPage{p.Part, p.rows, transfer.Progress{Rows: p.sent}}
	p.rows = make([]transfer.Row, 0, seedRows)
	select {
	case c.pages <- page:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
