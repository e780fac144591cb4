package sqlite

import (
	"context"
	"fmt"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/internal/store/codec"
)

// Prune goes over the tenants one after another, and over each one's rows from
// the oldest on, in the order of ids, which is that of time. Calls go on where
// the one before stopped, so that a row that may not go yet is looked at once
// in a pass, not once in a call.

const (
	sqlOldDeliveries = `SELECT id, webhook_id, completed_at, status, era, event_id FROM deliveries
		WHERE tenant_id = ? AND id > ? ORDER BY id LIMIT ?`
	sqlEventNumber = `SELECT n FROM events WHERE tenant_id = ? AND id = ?`
	sqlOldEvents   = `SELECT id, given_id, deliveries, n FROM events INDEXED BY events_id
		WHERE tenant_id = ? AND id > ? ORDER BY id LIMIT ?`
	sqlNextTenant    = `SELECT id FROM tenants WHERE id > ? ORDER BY id LIMIT 1`
	sqlNextCounted   = `SELECT webhook_id FROM counters WHERE tenant_id = ? AND webhook_id >= ? ORDER BY webhook_id LIMIT 1`
	sqlDropCounters  = `DELETE FROM counters WHERE tenant_id = ? AND webhook_id = ? AND level = ? AND bucket < ?`
	sqlRetriesOf     = `SELECT webhook_id, era FROM jobs INDEXED BY jobs_running WHERE tenant_id = ? AND kind = 'retry_failed' AND done = 0`
	sqlDeleteOne     = `DELETE FROM deliveries WHERE tenant_id = ? AND id = ?`
	sqlDeleteTries   = `DELETE FROM attempts WHERE tenant_id = ? AND delivery_id = ?`
	sqlDeleteEvent   = `DELETE FROM events WHERE n = ?`
	sqlDeleteGivenID = `DELETE FROM event_keys WHERE tenant_id = ? AND kind = 1 AND key = ?`

	// orderSlack is how much earlier than an event's id the id of one may be made
	// that is written after it: a request makes its ids before it waits for its
	// turn, and none waits for that long.
	orderSlack = time.Hour

	// vacuumPages is how many free pages a call gives back to the disk: 4 MiB.
	vacuumPages = 1024
)

// prunePhase is what a pass does at a tenant.
type prunePhase int

const (
	pruneDeliveries prunePhase = iota
	pruneEvents
	pruneCounters
)

// prunePass is how far a pass is: at a tenant, after a row.
type prunePass struct {
	tenant id.Tenant // zero: before the first
	phase  prunePhase
	after  [16]byte
}

// pruner is one call.
type pruner struct {
	t     *tx
	p     store.PruneParams
	pass  prunePass
	out   store.PruneResult
	looks int // what may still be looked at
	// held is the first event that a start after a crash looks at; nil for none.
	held *heldEvent
}

// Prune deletes what is old and finished. A delivery that a running retry-all
// stands for is kept until it had its turn.
func (s *Store) Prune(ctx context.Context, params store.PruneParams) (*store.PruneResult, error) {
	release, err := s.takeTurn(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	params.Limit = max(1, params.Limit)
	p := &pruner{p: params, pass: s.pass, looks: 4*params.Limit + 1000}
	err = s.transact(ctx, func(t *tx) error {
		p.t = t
		// An old event whose deliveries have no rows looks as if they were gone.
		// And a start after a crash must not make rows again of what is deleted
		// here: see deliveries.
		if err := t.settleEvents(func(e *heldEvent) bool { return e.id.Time().Before(params.Before) }); err != nil {
			return err
		}
		if err := t.noteHeld(); err != nil {
			return err
		}
		p.held = t.firstHeld()
		t.wantFold = true // what is counted is forgotten below, and read again
		if err := p.usedUp(); err != nil {
			return err
		}
		if err := p.oldAudit(); err != nil {
			return err
		}
		if err := p.removedTenants(); err != nil {
			return err
		}
		return p.history()
	})
	if err != nil {
		return nil, edge(fmt.Errorf("prune: %w", err))
	}
	s.pass = p.pass
	s.forgetCounts()
	if err := s.writer.run(fmt.Sprintf("PRAGMA incremental_vacuum(%d)", vacuumPages)); err != nil {
		return nil, edge(fmt.Errorf("give free pages back: %w", err))
	}
	s.afterCommit()
	return &p.out, nil
}

// usedUp deletes keys and sessions that have ended, and jobs that are history.
func (p *pruner) usedUp() error {
	for _, d := range [...]struct {
		text   string
		before int64
	}{
		{"DELETE FROM event_keys WHERE (tenant_id, kind, key) IN (SELECT tenant_id, kind, key FROM event_keys INDEXED BY event_keys_expiry WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)", millis(p.p.Now)},
		{"DELETE FROM sessions WHERE (tenant_id, id) IN (SELECT tenant_id, id FROM sessions INDEXED BY sessions_expiry WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)", millis(p.p.Now)},
		{"DELETE FROM jobs WHERE (tenant_id, id) IN (SELECT tenant_id, id FROM jobs WHERE done = 1 AND created_at < ? LIMIT ?)", millis(p.p.Before)},
	} {
		n, err := p.t.exec(d.text, d.before, p.p.Limit)
		if err != nil {
			return err
		}
		p.out.More = p.out.More || n == int64(p.p.Limit)
	}
	return nil
}

// removedTenants deletes rows of the first tenant that was removed, and the
// note of it with the last of them.
func (p *pruner) removedTenants() error {
	var tenant id.Tenant
	found, err := p.t.one("SELECT id FROM removed_tenants ORDER BY id LIMIT 1", func(r row) { tenant = readID[id.Tenant](r, 0) })
	if err != nil || !found {
		return err
	}
	left := int64(p.p.Limit)
	for _, d := range [...]struct {
		text  string
		count *int
	}{
		{"DELETE FROM attempts WHERE (tenant_id, delivery_id, number) IN (SELECT tenant_id, delivery_id, number FROM attempts WHERE tenant_id = ? LIMIT ?)", nil},
		{"DELETE FROM deliveries WHERE (tenant_id, id) IN (SELECT tenant_id, id FROM deliveries WHERE tenant_id = ? LIMIT ?)", &p.out.Deliveries},
		{"DELETE FROM events WHERE n IN (SELECT n FROM events INDEXED BY events_id WHERE tenant_id = ? LIMIT ?)", &p.out.Events},
		{"DELETE FROM event_keys WHERE (tenant_id, kind, key) IN (SELECT tenant_id, kind, key FROM event_keys WHERE tenant_id = ? LIMIT ?)", nil},
		{"DELETE FROM counters WHERE (tenant_id, webhook_id, level, bucket) IN (SELECT tenant_id, webhook_id, level, bucket FROM counters WHERE tenant_id = ? LIMIT ?)", nil},
		{"DELETE FROM gauges WHERE (tenant_id, webhook_id) IN (SELECT tenant_id, webhook_id FROM gauges WHERE tenant_id = ? LIMIT ?)", nil},
		{"DELETE FROM webhook_revisions WHERE (tenant_id, webhook_id, revision) IN (SELECT tenant_id, webhook_id, revision FROM webhook_revisions WHERE tenant_id = ? LIMIT ?)", nil},
		{"DELETE FROM audit WHERE (tenant_id, id) IN (SELECT tenant_id, id FROM audit WHERE tenant_id = ? LIMIT ?)", &p.out.AuditEntries},
	} {
		if left <= 0 {
			break
		}
		n, err := p.t.exec(d.text, tenant[:], left)
		if err != nil {
			return err
		}
		if d.count != nil {
			*d.count += int(n)
		}
		left -= n
	}
	p.out.More = true
	if left <= 0 {
		return nil
	}
	_, err = p.t.exec("DELETE FROM removed_tenants WHERE id = ?", tenant[:])
	return err
}

// history goes on with the pass.
func (p *pruner) history() error {
	for p.room() {
		if p.pass.tenant.IsZero() {
			found, err := p.nextTenant()
			if err != nil || !found {
				return err
			}
		}
		var ended bool
		var err error
		switch p.pass.phase {
		case pruneDeliveries:
			ended, err = p.deliveries()
		case pruneEvents:
			ended, err = p.events()
		case pruneCounters:
			ended, err = p.counters()
		}
		if err != nil {
			return err
		}
		if !ended {
			continue
		}
		p.pass.after = [16]byte{}
		p.pass.phase++
		if p.pass.phase > pruneCounters {
			found, err := p.nextTenant()
			if err != nil || !found {
				return err
			}
		}
	}
	p.out.More = true
	return nil
}

func (p *pruner) room() bool {
	return p.looks > 0 && p.out.Deliveries < p.p.Limit && p.out.Events < p.p.Limit
}

// nextTenant begins with the next tenant; after the last one the pass is over.
func (p *pruner) nextTenant() (found bool, err error) {
	p.looks--
	before := p.pass.tenant
	p.pass = prunePass{}
	return p.t.one(sqlNextTenant, func(r row) { p.pass.tenant = readID[id.Tenant](r, 0) }, before[:])
}

type oldDelivery struct {
	id      id.Delivery
	webhook id.Webhook
	failed  bool
	era     int64
}

// deliveries deletes old and finished ones. It has ended at the first row that
// is not old.
func (p *pruner) deliveries() (ended bool, err error) {
	kept, err := p.retries()
	if err != nil {
		return false, err
	}
	tenant, from, limit := p.pass.tenant, p.pass.after, min(p.looks, p.p.Limit-p.out.Deliveries)
	before, n := millis(p.p.Before), 0
	end := id.First(p.p.Before)
	var old []oldDelivery
	err = p.t.query(sqlOldDeliveries, func(r row) (bool, error) {
		n++
		d := oldDelivery{readID[id.Delivery](r, 0), readID[id.Webhook](r, 1), hook.Status(r.int(3)) == hook.StatusFailed, r.int(4)}
		if d.id.Compare(end) >= 0 {
			ended = true
			return false, nil
		}
		p.pass.after = d.id
		if !hook.Status(r.int(3)).Done() || r.int(2) >= before {
			return true, nil
		}
		if era, ok := kept[d.webhook]; ok && d.failed && d.era < era {
			return true, nil
		}
		if later, err := p.afterHeld(tenant, readID[id.Event](r, 5)); later || err != nil {
			return true, err
		}
		old = append(old, d)
		return true, nil
	}, tenant[:], from[:], limit)
	if err != nil {
		return false, err
	}
	p.looks -= n + 1
	ended = ended || n < limit
	for _, d := range old {
		for _, text := range [...]string{sqlDeleteOne, sqlDeleteTries} {
			if _, err := p.t.exec(text, tenant[:], d.id[:]); err != nil {
				return false, err
			}
		}
		if err := p.t.addGauge(tenant, d.webhook, 0, -intOfBool(d.failed), -1); err != nil {
			return false, err
		}
	}
	p.out.Deliveries += len(old)
	return ended, nil
}

// afterHeld reports whether an old delivery is of an event that came after one
// that is held, as when the id of the latter was made later, just not before
// Before: a start after a crash would make its row again. Its turn is when that
// one has its row. Nearly always the ids tell without a look.
func (p *pruner) afterHeld(tenant id.Tenant, event id.Event) (bool, error) {
	if p.held == nil || event.Time().Before(p.held.id.Time().Add(-orderSlack)) {
		return false, nil
	}
	number := int64(0)
	_, err := p.t.one(sqlEventNumber, func(r row) { number = r.int(0) }, tenant[:], event[:])
	return number >= p.held.n, err
}

// retries are the webhooks of the tenant with a running retry-all, and its era.
func (p *pruner) retries() (map[id.Webhook]int64, error) {
	kept := map[id.Webhook]int64{}
	err := p.t.scan(sqlRetriesOf, func(r row) { kept[readID[id.Webhook](r, 0)] = r.int(1) }, p.pass.tenant[:])
	return kept, err
}

// events deletes old ones of which no delivery is left.
func (p *pruner) events() (ended bool, err error) {
	type oldEvent struct {
		given      string
		deliveries []id.Delivery
		n          int64
	}
	tenant, from, limit := p.pass.tenant, p.pass.after, min(p.looks, p.p.Limit-p.out.Events)
	end, n := id.First(p.p.Before), 0
	var old []oldEvent
	err = p.t.query(sqlOldEvents, func(r row) (bool, error) {
		n++
		event := readID[id.Event](r, 0)
		if event.Compare(end) >= 0 {
			ended = true
			return false, nil
		}
		p.pass.after = event
		old = append(old, oldEvent{r.text(1), codec.SplitIDs(r.blob(2)), r.int(3)})
		return true, nil
	}, tenant[:], from[:], limit)
	if err != nil {
		return false, err
	}
	p.looks -= n + 1
	ended = ended || n < limit
	for _, e := range old {
		left, err := p.anyLeft(tenant, e.deliveries)
		if err != nil {
			return false, err
		}
		if left {
			continue
		}
		if _, err := p.t.exec(sqlDeleteEvent, e.n); err != nil {
			return false, err
		}
		if e.given != "" {
			if _, err := p.t.exec(sqlDeleteGivenID, tenant[:], e.given); err != nil {
				return false, err
			}
		}
		p.out.Events++
	}
	return ended, nil
}

func (p *pruner) anyLeft(tenant id.Tenant, ids []id.Delivery) (bool, error) {
	for _, delivery := range ids {
		found, err := p.t.one("SELECT 1 FROM deliveries WHERE tenant_id = ? AND id = ?", func(row) {}, tenant[:], delivery[:])
		if err != nil || found {
			return found, err
		}
		p.looks--
	}
	return false, nil
}

// counters drops the minutes and hours of days that are over and old; the days
// stay.
func (p *pruner) counters() (ended bool, err error) {
	tenant, from := p.pass.tenant, p.pass.after
	before := store.LevelDay.Start(max(0, millis(p.p.Before)))
	var webhook [16]byte
	found, err := p.t.one(sqlNextCounted, func(r row) { webhook = readID[[16]byte](r, 0) }, tenant[:], from[:])
	if err != nil || !found {
		return true, err
	}
	p.looks--
	for _, l := range [...]store.Level{store.LevelHour, store.LevelMinute} {
		n, err := p.t.exec(sqlDropCounters, tenant[:], webhook[:], int64(l), before)
		if err != nil {
			return false, err
		}
		p.looks -= int(n)
	}
	p.pass.after = after(webhook)
	return false, nil
}

// after is what follows 16 bytes in their order.
func after(v [16]byte) [16]byte {
	for i := len(v) - 1; i >= 0; i-- {
		v[i]++
		if v[i] != 0 {
			break
		}
	}
	return v
}
