package sqlite

import (
	"fmt"
	"time"

	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// Counts are kept in rows that hold the whole value, not in sums: this process
// is the only one, so it knows the value before, from memory or from the row,
// and writes the one after, though not at once (see fold.go). Gauges are of now,
// counters of finished attempts.

// gaugeKey is a webhook, or with no webhook its whole tenant.
type gaugeKey struct {
	tenant  id.Tenant
	webhook id.Webhook
}

// gauge is how many deliveries there are: unfinished, FAILED, and in all.
type gauge struct {
	pending, failed, total int64
}

type counterKey struct {
	gaugeKey
	level  store.Level
	bucket int64
}

type counter struct {
	succeeded, failed int64
	latency           store.Latency
}

// countKey and count are what a transaction adds: of a webhook, in a minute.
type countKey struct {
	gaugeKey
	minute int64
}

type count = counter

// Bounds of what is kept in memory, in entries: a counter takes 1.3 KiB.
const (
	maxGauges   = 1 << 16
	maxCounters = 1 << 12
)

// gauge reads the gauge of a webhook or tenant as the transaction sees it.
func (t *tx) gauge(key gaugeKey) (gauge, error) {
	if g, ok := t.gauges[key]; ok {
		return g, nil
	}
	if g, ok := t.s.gauges[key]; ok {
		return g, nil
	}
	g, err := readGauge(t.conn, key)
	if err != nil {
		return gauge{}, err
	}
	return g, nil
}

func readGauge(c *conn, key gaugeKey) (gauge, error) {
	var g gauge
	_, err := c.one("SELECT pending, failed, total FROM gauges WHERE tenant_id = ? AND webhook_id = ?",
		func(r row) { g = gauge{r.int(0), r.int(1), r.int(2)} }, key.tenant[:], key.webhook[:])
	if err != nil {
		return gauge{}, fmt.Errorf("read how many deliveries there are: %w", err)
	}
	return g, nil
}

// addGauge changes the gauges of a webhook and of its tenant.
func (t *tx) addGauge(tenant id.Tenant, webhook id.Webhook, pending, failed, total int64) error {
	if t.gauges == nil {
		t.gauges = map[gaugeKey]gauge{}
	}
	for _, key := range [...]gaugeKey{{tenant, webhook}, {tenant: tenant}} {
		g, err := t.gauge(key)
		if err != nil {
			return err
		}
		g.pending += pending
		g.failed += failed
		g.total += total
		t.gauges[key] = g
	}
	return nil
}

// addAttempt counts a finished attempt.
func (t *tx) addAttempt(tenant id.Tenant, webhook id.Webhook, at time.Time, took time.Duration, succeeded bool) {
	if t.counts == nil {
		t.counts = map[countKey]*count{}
	}
	key := countKey{gaugeKey{tenant, webhook}, store.LevelMinute.Start(millis(at))}
	c := t.counts[key]
	if c == nil {
		c = &count{}
		t.counts[key] = c
	}
	if succeeded {
		c.succeeded++
	} else {
		c.failed++
	}
	c.latency.Add(took)
}

func (c *counter) add(other *counter) {
	c.succeeded += other.succeeded
	c.failed += other.failed
	c.latency.Merge(&other.latency)
}

// writeCounts writes the gauges and counters that the transaction has, as rows.
func (t *tx) writeCounts() error {
	gauges := t.write(rows{head: "INSERT INTO gauges (tenant_id, webhook_id, pending, failed, total) VALUES ",
		row: "(?, ?, ?, ?, ?)", columns: 5,
		tail: " ON CONFLICT DO UPDATE SET pending = excluded.pending, failed = excluded.failed, total = excluded.total"})
	for key, g := range t.gauges {
		if err := gauges.add(key.tenant[:], key.webhook[:], g.pending, g.failed, g.total); err != nil {
			return err
		}
	}
	if err := gauges.flush(); err != nil {
		return fmt.Errorf("write how many deliveries there are: %w", err)
	}
	if err := t.mergeCounts(); err != nil {
		return err
	}
	counters := t.write(rows{head: "INSERT INTO counters (tenant_id, webhook_id, level, bucket, succeeded, failed, latency) VALUES ",
		row: "(?, ?, ?, ?, ?, ?, ?)", columns: 7,
		tail: " ON CONFLICT DO UPDATE SET succeeded = excluded.succeeded, failed = excluded.failed, latency = excluded.latency"})
	for key, c := range t.counters {
		latency, err := c.latency.AppendBinary(nil)
		if err != nil {
			return err
		}
		if err := counters.add(key.tenant[:], key.webhook[:], int64(key.level), key.bucket, c.succeeded, c.failed, latency); err != nil {
			return err
		}
	}
	if err := counters.flush(); err != nil {
		return fmt.Errorf("write counters: %w", err)
	}
	return nil
}

// mergeCounts works out the values after the transaction of every counter that
// it adds to: each level of each webhook and tenant.
func (t *tx) mergeCounts() error {
	if len(t.counts) == 0 {
		return nil
	}
	t.counters = make(map[counterKey]*counter, 2*store.NumLevels*len(t.counts))
	for key, added := range t.counts {
		for _, of := range [...]gaugeKey{key.gaugeKey, {tenant: key.tenant}} {
			for _, l := range store.Levels() {
				at := counterKey{of, l, l.Start(key.minute)}
				c := t.counters[at]
				if c == nil {
					before, err := t.counter(at)
					if err != nil {
						return err
					}
					c = &before
					t.counters[at] = c
				}
				c.add(added)
			}
		}
	}
	return nil
}

// counter is a counter's value before the transaction.
func (t *tx) counter(key counterKey) (counter, error) {
	if c, ok := t.s.counters[key]; ok {
		return *c, nil
	}
	var c counter
	var damaged error
	_, err := t.one("SELECT succeeded, failed, latency FROM counters WHERE tenant_id = ? AND webhook_id = ? AND level = ? AND bucket = ?",
		func(r row) {
			c.succeeded, c.failed = r.int(0), r.int(1)
			damaged = c.latency.UnmarshalBinary(r.blob(2))
		}, key.tenant[:], key.webhook[:], int64(key.level), key.bucket)
	if err == nil {
		err = damaged
	}
	if err != nil {
		return counter{}, fmt.Errorf("read a counter: %w", err)
	}
	return c, nil
}

// keepCounts takes over what a committed transaction counted.
func (s *Store) keepCounts(t *tx) {
	if len(s.gauges) > maxGauges && t.folded { // else the log's are among them
		clear(s.gauges)
	}
	for key, g := range t.gauges {
		s.gauges[key] = g
	}
	for key := range s.counters {
		if len(s.counters)+len(t.counters) <= maxCounters {
			break
		}
		delete(s.counters, key)
	}
	for key, c := range t.counters {
		s.counters[key] = c
	}
}

// forgetCounts drops what is known of counters, after rows of them were
// deleted.
func (s *Store) forgetCounts() {
	clear(s.gauges)
	clear(s.counters)
}
