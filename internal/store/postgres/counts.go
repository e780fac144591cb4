package postgres

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/internal/store/codec"
)

// What is counted: gauges, of the deliveries that there are now, and counters, of
// finished attempts. A transaction writes what it adds to them into count_log, a
// row for each of its tenants. Rows are folded into the tables a moment later, by
// whichever node comes first. Whoever reads adds what is not folded yet.

// gauge is how many deliveries there are, or how many are added: unfinished,
// FAILED, and in all.
type gauge struct {
	pending, failed, total int64
}

func (g *gauge) add(other gauge) {
	g.pending += other.pending
	g.failed += other.failed
	g.total += other.total
}

type counter struct {
	succeeded, failed int64
	latency           store.Latency
}

func (c *counter) add(other *counter) {
	c.succeeded += other.succeeded
	c.failed += other.failed
	c.latency.Merge(&other.latency)
}

// countKey is a webhook in a minute.
type countKey struct {
	webhook id.Webhook
	minute  int64
}

// counts are what is added for one tenant. The tenant's own sums are worked out
// when they are folded or read.
type counts struct {
	gauges   map[id.Webhook]gauge
	counters map[countKey]*counter
}

func newCounts() *counts {
	return &counts{gauges: map[id.Webhook]gauge{}, counters: map[countKey]*counter{}}
}

func (c *counts) pending() (n int64) {
	for _, g := range c.gauges {
		n += g.pending
	}
	return n
}

// tally is what a transaction counts.
type tally map[id.Tenant]*counts

func (t tally) empty() bool { return len(t) == 0 }

func (t *tally) of(tenant id.Tenant) *counts {
	if *t == nil {
		*t = tally{}
	}
	c := (*t)[tenant]
	if c == nil {
		c = newCounts()
		(*t)[tenant] = c
	}
	return c
}

// addGauge counts deliveries of a webhook that have come, gone or changed.
func (t *tx) addGauge(tenant id.Tenant, webhook id.Webhook, pending, failed, total int64) {
	c := t.tally.of(tenant)
	g := c.gauges[webhook]
	g.add(gauge{pending, failed, total})
	c.gauges[webhook] = g
}

// addAttempt counts a finished attempt.
func (t *tx) addAttempt(tenant id.Tenant, webhook id.Webhook, at time.Time, took time.Duration, succeeded bool) {
	c := t.tally.of(tenant)
	key := countKey{webhook, store.LevelMinute.Start(millis(at))}
	n := c.counters[key]
	if n == nil {
		n = &counter{}
		c.counters[key] = n
	}
	if succeeded {
		n.succeeded++
	} else {
		n.failed++
	}
	n.latency.Add(took)
}

// countsForm is the version of the form in which counts are logged.
const countsForm = 1

// encode makes the rows of count_log.
func (t tally) encode(s *Store) (tenants []pgtype.UUID, numbers []int64, data [][]byte) {
	for tenant, c := range t {
		tenants = append(tenants, uuid(tenant))
		numbers = append(numbers, s.logged.Add(1))
		data = append(data, c.encode())
	}
	return tenants, numbers, data
}

func (c *counts) encode() []byte {
	b := make([]byte, 0, 16+24*len(c.gauges)+64*len(c.counters))
	b = append(b, countsForm)
	b = binary.AppendUvarint(b, uint64(len(c.gauges)))
	for webhook, g := range c.gauges {
		b = append(b, webhook[:]...)
		for _, n := range [...]int64{g.pending, g.failed, g.total} {
			b = binary.AppendVarint(b, n)
		}
	}
	b = binary.AppendUvarint(b, uint64(len(c.counters)))
	var latency []byte
	for key, n := range c.counters {
		b = append(b, key.webhook[:]...)
		for _, v := range [...]int64{key.minute, n.succeeded, n.failed} {
			b = binary.AppendVarint(b, v)
		}
		latency, _ = n.latency.AppendBinary(latency[:0]) // never fails
		b = binary.AppendUvarint(b, uint64(len(latency)))
		b = append(b, latency...)
	}
	return b
}

// merge adds what encode wrote.
func (c *counts) merge(data []byte) error {
	d := codec.Decoder{Rest: data}
	damaged := fmt.Errorf("read logged counts: %w", codec.ErrDamaged)
	if d.Byte() != countsForm {
		return damaged
	}
	for range d.Length() {
		webhook := id.Webhook(d.ID())
		g := c.gauges[webhook]
		g.add(gauge{d.Varint(), d.Varint(), d.Varint()})
		c.gauges[webhook] = g
	}
	for range d.Length() {
		key := countKey{id.Webhook(d.ID()), d.Varint()}
		n := counter{succeeded: d.Varint(), failed: d.Varint()}
		if err := n.latency.UnmarshalBinary([]byte(d.Text())); err != nil {
			return err
		}
		if have := c.counters[key]; have != nil {
			have.add(&n)
		} else {
			c.counters[key] = &n
		}
	}
	if d.Failed {
		return damaged
	}
	return nil
}

// unfolded reads what is logged of a tenant and not folded. It must see the same
// snapshot as what it is added to.
func unfolded(ctx context.Context, q querier, tenant id.Tenant) (*counts, error) {
	c := newCounts()
	var data []byte
	err := each(ctx, q, "SELECT data FROM count_log WHERE tenant_id = $1", []any{uuid(tenant)}, []any{&data}, func() error { return c.merge(data) })
	if err != nil {
		return nil, fmt.Errorf("read the log of counts: %w", err)
	}
	return c, nil
}

// readGauge is how many deliveries a webhook, or with none the tenant, has now.
func readGauge(ctx context.Context, q querier, tenant id.Tenant, webhook id.Webhook) (gauge, error) {
	var g gauge
	_, err := one(ctx, q, "SELECT pending, failed, total FROM gauges WHERE tenant_id = $1 AND webhook_id = $2",
		[]any{uuid(tenant), uuid(webhook)}, &g.pending, &g.failed, &g.total)
	if err != nil {
		return gauge{}, fmt.Errorf("read how many deliveries there are: %w", err)
	}
	c, err := unfolded(ctx, q, tenant)
	if err != nil {
		return gauge{}, err
	}
	for of, added := range c.gauges {
		if webhook.IsZero() || of == webhook {
			g.add(added)
		}
	}
	return g, nil
}

// counted takes note of what a committed transaction counted: its tenants are to be
// folded, and what waits of them is known better.
func (s *Store) counted(t *tx) {
	if t.tally.empty() {
		return
	}
	s.countsMu.Lock()
	defer s.countsMu.Unlock()
	for tenant, c := range t.tally {
		s.unfolded[tenant] = struct{}{}
		if known, ok := s.pending[tenant]; ok {
			known.n += c.pending()
			s.pending[tenant] = known
		}
	}
}

// How the log is folded: every foldEach, foldTenants at a time. What a node logged
// that ended is found when nobody knows of it any more, every strayEach.
const (
	foldEach    = time.Second
	foldTenants = 64
	strayEach   = 15 * time.Second
	// pendingLife is how long the number of a tenant's unfinished deliveries is
	// believed that others may change too.
	pendingLife = time.Second
	// maxPending is of how many tenants it is kept beyond that time.
	maxPending = 4096
)

// fold folds until ctx ends.
func (s *Store) fold(ctx context.Context) {
	ticks := time.NewTicker(foldEach)
	defer ticks.Stop()
	strays := s.now() // at once, for what was left by a node that ended
	for {
		if now := s.now(); !now.Before(strays) {
			strays = now.Add(strayEach)
			if err := s.findStrayCounts(ctx); err != nil && ctx.Err() == nil {
				s.logger.DebugContext(ctx, "the log of counts could not be looked through; trying again", "err", err)
			}
		}
		if err := s.foldAll(ctx); err != nil && ctx.Err() == nil {
			s.logger.DebugContext(ctx, "counts could not be folded; trying again", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
	}
}

func (s *Store) findStrayCounts(ctx context.Context) error {
	var tenant id.Tenant
	var found []id.Tenant
	err := each(ctx, s.pool, "SELECT DISTINCT tenant_id FROM count_log LIMIT 10000", nil, []any{(*[16]byte)(&tenant)}, func() error {
		found = append(found, tenant)
		return nil
	})
	s.countsMu.Lock()
	defer s.countsMu.Unlock()
	for _, tenant := range found {
		s.unfolded[tenant] = struct{}{}
	}
	return err
}

// foldAll folds what this node knows of.
func (s *Store) foldAll(ctx context.Context) error {
	s.countsMu.Lock()
	var all []id.Tenant
	for tenant := range s.unfolded {
		all = append(all, tenant)
	}
	clear(s.unfolded)
	s.countsMu.Unlock()
	slices.SortFunc(all, id.Tenant.Compare)
	for part := range slices.Chunk(all, foldTenants) {
		if err := s.foldTenants(ctx, part); err != nil {
			s.countsMu.Lock()
			for _, tenant := range all {
				s.unfolded[tenant] = struct{}{}
			}
			s.countsMu.Unlock()
			return err
		}
	}
	return nil
}

const (
	sqlFoldLock  = `SELECT ` + sqlSet + `, (SELECT count(pg_advisory_xact_lock(7003, k)) FROM unnest($1::int[]) k)`
	sqlFoldTake  = `DELETE FROM count_log WHERE tenant_id = ANY($1) RETURNING tenant_id, data`
	sqlFoldGauge = `INSERT INTO gauges (tenant_id, webhook_id, pending, failed, total)
		SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::bigint[], $5::bigint[])
		ON CONFLICT (tenant_id, webhook_id) DO UPDATE SET pending = gauges.pending + excluded.pending,
			failed = gauges.failed + excluded.failed, total = gauges.total + excluded.total`
	sqlCounterLatency = `SELECT c.tenant_id, c.webhook_id, c.level, c.bucket, c.latency
		FROM unnest($1::uuid[], $2::uuid[], $3::smallint[], $4::bigint[]) AS v(tenant_id, webhook_id, level, bucket)
		JOIN counters c ON c.tenant_id = v.tenant_id AND c.webhook_id = v.webhook_id AND c.level = v.level AND c.bucket = v.bucket`
	sqlFoldCounter = `INSERT INTO counters (tenant_id, webhook_id, level, bucket, succeeded, failed, latency)
		SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::smallint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bytea[])
		ON CONFLICT (tenant_id, webhook_id, level, bucket) DO UPDATE SET succeeded = counters.succeeded + excluded.succeeded,
			failed = counters.failed + excluded.failed, latency = excluded.latency`
)

// foldTenants folds what is logged of some tenants, by whichever node. Two nodes
// never fold the same tenant at once, so rows need no locks.
func (s *Store) foldTenants(ctx context.Context, tenants []id.Tenant) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return pgx.BeginFunc(ctx, s.pool, func(q pgx.Tx) error {
		if _, err := q.Exec(ctx, sqlFoldLock, lockKeysOf(tenants)); err != nil {
			return err
		}
		taken := tally{}
		var tenant id.Tenant
		var data []byte
		err := each(ctx, q, sqlFoldTake, []any{uuids(tenants)}, []any{(*[16]byte)(&tenant), &data}, func() error {
			return taken.of(tenant).merge(data)
		})
		if err != nil || taken.empty() {
			return err
		}
		if err := taken.foldGauges(ctx, q); err != nil {
			return err
		}
		return taken.foldCounters(ctx, q)
	})
}

func (t tally) foldGauges(ctx context.Context, q pgx.Tx) error {
	type key struct {
		tenant  id.Tenant
		webhook id.Webhook
	}
	sums := map[key]gauge{}
	for tenant, c := range t {
		for webhook, g := range c.gauges {
			for _, k := range [...]key{{tenant, webhook}, {tenant: tenant}} {
				sum := sums[k]
				sum.add(g)
				sums[k] = sum
			}
		}
	}
	var of, webhooks []pgtype.UUID
	var pending, failed, total []int64
	for k, g := range sums {
		of, webhooks = append(of, uuid(k.tenant)), append(webhooks, uuid(k.webhook))
		pending, failed, total = append(pending, g.pending), append(failed, g.failed), append(total, g.total)
	}
	if len(of) == 0 {
		return nil
	}
	_, err := q.Exec(ctx, sqlFoldGauge, of, webhooks, pending, failed, total)
	return err
}

// bucketKey is a row of counters.
type bucketKey struct {
	tenant  id.Tenant
	webhook id.Webhook
	level   store.Level
	bucket  int64
}

func (t tally) foldCounters(ctx context.Context, q pgx.Tx) error {
	sums := map[bucketKey]*counter{}
	for tenant, c := range t {
		for key, n := range c.counters {
			for _, webhook := range [...]id.Webhook{key.webhook, {}} {
				for _, l := range store.Levels() {
					k := bucketKey{tenant, webhook, l, l.Start(key.minute)}
					if sums[k] == nil {
						sums[k] = &counter{}
					}
					sums[k].add(n)
				}
			}
		}
	}
	if len(sums) == 0 {
		return nil
	}
	var tenants, webhooks []pgtype.UUID
	var levels []int16
	var buckets []int64
	keys := make([]bucketKey, 0, len(sums))
	for k := range sums {
		keys = append(keys, k)
		tenants, webhooks = append(tenants, uuid(k.tenant)), append(webhooks, uuid(k.webhook))
		levels, buckets = append(levels, int16(k.level)), append(buckets, k.bucket)
	}
	var k bucketKey
	var level int16
	var data []byte
	merged := make(map[bucketKey]store.Latency, len(sums))
	for k, n := range sums {
		merged[k] = n.latency
	}
	err := each(ctx, q, sqlCounterLatency, []any{tenants, webhooks, levels, buckets},
		[]any{(*[16]byte)(&k.tenant), (*[16]byte)(&k.webhook), &level, &k.bucket, &data}, func() error {
			k.level = store.Level(level)
			var before store.Latency
			if err := before.UnmarshalBinary(data); err != nil {
				return err
			}
			l := merged[k]
			l.Merge(&before)
			merged[k] = l
			return nil
		})
	if err != nil {
		return err
	}
	var succeeded, failed []int64
	var latencies [][]byte
	for _, k := range keys {
		l := merged[k]
		data, err := l.AppendBinary(nil)
		if err != nil {
			return err
		}
		if data == nil {
			data = []byte{}
		}
		succeeded, failed, latencies = append(succeeded, sums[k].succeeded), append(failed, sums[k].failed), append(latencies, data)
	}
	_, err = q.Exec(ctx, sqlFoldCounter, tenants, webhooks, levels, buckets, succeeded, failed, latencies)
	return err
}
