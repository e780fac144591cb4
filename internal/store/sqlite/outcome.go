package sqlite

import (
	"fmt"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/store"
)

const (
	// sqlOutcome records an attempt with what it led to. The schedule makes the
	// attempts after this one, so the trigger goes back to auto.
	sqlOutcome = `UPDATE deliveries SET status = ?, attempts = ?, try = ?, due_at = ?, completed_at = ?,
		trigger = CASE WHEN ? THEN trigger ELSE 'auto' END, era = CASE WHEN ? THEN ? ELSE era END,
		last_at = ?, last_status = ?, last_us = ?, last_kind = ?, last_message = ?,
		fail_kind = ?, fail_message = ?, detail = coalesce(?, detail)
		WHERE tenant_id = ? AND id = ? AND attempts = ? AND due_at IS NOT NULL AND webhook_id = ?`
	// sqlGiveUp ends a delivery without an attempt.
	sqlGiveUp = `UPDATE deliveries SET status = ?, due_at = NULL, completed_at = ?, era = ?, fail_kind = ?, fail_message = ?
		WHERE tenant_id = ? AND id = ? AND due_at IS NOT NULL AND webhook_id = ?`
)

// outcome records what an attempt came to.
func (t *tx) outcome(o *store.Outcome) error {
	if v, err := t.version(o.Tenant); err != nil || v == tenantGone {
		return err
	}
	// The condition of the statement is that the delivery is unfinished, and
	// from the states that are, a change leads to the same one.
	status, ok := hook.StatusPending.Next(o.Change, true)
	if !ok || o.Change == hook.Asked {
		return fmt.Errorf("outcome of delivery %s: change %d is not one that an attempt leads to", o.Delivery, o.Change)
	}
	if o.Attempt.Number == 0 {
		return t.giveUp(o, status)
	}
	a := &o.Attempt
	var due, completed any = nil, millis(o.At)
	if !status.Done() {
		due, completed = millis(o.Due), nil
	}
	var detail any
	if inRow(o) {
		detail = encodeAttempt(a)
	}
	lastKind, lastMessage := failure(a.Failure)
	failKind, failMessage := failure(o.Failure)
	changed, err := t.exec(sqlOutcome, int64(status), a.Number, o.Try, due, completed,
		intOfBool(status.Done()), intOfBool(status.Done()), t.era,
		millis(a.StartedAt), a.StatusCode, a.Duration.Microseconds(), lastKind, lastMessage,
		failKind, failMessage, detail,
		o.Tenant[:], o.Delivery[:], a.Number-1, o.Webhook[:])
	if err != nil {
		return fmt.Errorf("record an outcome: %w", err)
	}
	if changed == 0 {
		return t.staleOutcome(o)
	}
	o.Matched = true
	t.addAttempt(o.Tenant, o.Webhook, o.At, a.Duration, a.Failure == nil)
	if detail == nil {
		_, err := t.exec("INSERT OR REPLACE INTO attempts (tenant_id, delivery_id, number, data) VALUES (?, ?, ?, ?)",
			o.Tenant[:], o.Delivery[:], a.Number, encodeAttempt(a))
		if err != nil {
			return fmt.Errorf("record an attempt: %w", err)
		}
	}
	return t.finished(o, status)
}

// inRow reports whether the attempt is kept in the delivery's own row: a
// success at the first try, which is what nearly all are.
func inRow(o *store.Outcome) bool {
	return o.Attempt.Number == 1 && o.Change == hook.Succeeded
}

func failure(f *hook.Failure) (kind, message any) {
	if f == nil {
		return nil, nil
	}
	return string(f.Kind), f.Message
}

// finished keeps the gauges when a delivery was unfinished and has now status.
func (t *tx) finished(o *store.Outcome, status hook.Status) error {
	switch {
	case !status.Done():
		return nil
	case status == hook.StatusFailed:
		return t.addGauge(o.Tenant, o.Webhook, -1, 1, 0)
	default:
		return t.addGauge(o.Tenant, o.Webhook, -1, 0, 0)
	}
}

// giveUp records an end that no attempt made.
func (t *tx) giveUp(o *store.Outcome, status hook.Status) error {
	if !status.Done() {
		return fmt.Errorf("outcome of delivery %s: without an attempt it can only be given up", o.Delivery)
	}
	kind, message := failure(o.Failure)
	changed, err := t.exec(sqlGiveUp, int64(status), millis(o.At), t.era, kind, message, o.Tenant[:], o.Delivery[:], o.Webhook[:])
	if err != nil {
		return fmt.Errorf("give up a delivery: %w", err)
	}
	if changed == 0 {
		return nil
	}
	o.Matched = true
	return t.finished(o, status)
}

// staleOutcome keeps an attempt that ended after its delivery had been given up
// or had gone on without it.
func (t *tx) staleOutcome(o *store.Outcome) error {
	a := &o.Attempt
	var inRow bool
	known, err := t.one("SELECT detail IS NOT NULL FROM deliveries WHERE tenant_id = ? AND id = ? AND webhook_id = ?",
		func(r row) { inRow = r.bool(0) }, o.Tenant[:], o.Delivery[:], o.Webhook[:])
	if err != nil || !known {
		return err
	}
	t.addAttempt(o.Tenant, o.Webhook, o.At, a.Duration, a.Failure == nil)
	if inRow && a.Number == 1 {
		return nil
	}
	_, err = t.exec("INSERT OR IGNORE INTO attempts (tenant_id, delivery_id, number, data) VALUES (?, ?, ?, ?)",
		o.Tenant[:], o.Delivery[:], a.Number, encodeAttempt(a))
	if err != nil {
		return fmt.Errorf("record an attempt: %w", err)
	}
	return nil
}
