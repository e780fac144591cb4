package sqlite

import (
	"fmt"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/internal/store/codec"
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

// outcomes records what attempts came to. First come those of deliveries that
// have no row yet (see held.go): they get it now, as it is in the end, many in a
// statement.
func (t *tx) outcomes(all []*store.Outcome) error {
	w := outcomeWriter{t: t,
		rows: t.write(rows{columns: 23, head: "INSERT INTO deliveries (tenant_id, id, webhook_id, event_id, given_id, event_type, " +
			"status, attempts, try, due_at, completed_at, trigger, era, created_at, expires_at, " +
			"last_at, last_status, last_us, last_kind, last_message, fail_kind, fail_message, detail) VALUES ",
			row: "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"}),
		attempts: t.write(rows{columns: 4, head: "INSERT OR REPLACE INTO attempts (tenant_id, delivery_id, number, data) VALUES ", row: "(?, ?, ?, ?)"}),
	}
	var others []*store.Outcome
	for _, o := range all {
		o.Matched = false
		held := t.heldRow(o.Tenant, o.Webhook, o.Delivery)
		if held != nil && o.Attempt.Number > 1 { // it comes too early, and changes nothing
			if err := t.settle(o.Tenant, o.Webhook, func(d id.Delivery) bool { return d != o.Delivery }); err != nil {
				return err
			}
			held = nil
		}
		if held == nil {
			others = append(others, o)
			continue
		}
		if err := w.add(o, held); err != nil {
			return err
		}
	}
	if err := w.flush(); err != nil {
		return err
	}
	for _, o := range others {
		if err := t.outcome(o); err != nil {
			return err
		}
	}
	return nil
}

// end is what an outcome makes of a delivery, as it is stored.
type end struct {
	status         hook.Status
	due, completed any
	failKind, fail any
}

func endOf(o *store.Outcome) (end, error) {
	// An outcome applies to an unfinished delivery alone, and from the states
	// that are, a change leads to the same one.
	status, ok := hook.StatusPending.Next(o.Change, true)
	if !ok || o.Change == hook.Asked {
		return end{}, fmt.Errorf("outcome of delivery %s: change %d is not one that an attempt leads to", o.Delivery, o.Change)
	}
	if o.Attempt.Number == 0 && !status.Done() {
		return end{}, fmt.Errorf("outcome of delivery %s: without an attempt it can only be given up", o.Delivery)
	}
	r := end{status: status, completed: millis(o.At)}
	if !status.Done() {
		r.due, r.completed = millis(o.Due), nil
	}
	r.failKind, r.fail = failure(o.Failure)
	return r, nil
}

// outcomeWriter writes rows of deliveries that had none, with their outcomes.
type outcomeWriter struct {
	t              *tx
	rows, attempts rowWriter
}

func (w *outcomeWriter) flush() error {
	if err := w.rows.flush(); err != nil {
		return fmt.Errorf("record outcomes: %w", err)
	}
	if err := w.attempts.flush(); err != nil {
		return fmt.Errorf("record attempts: %w", err)
	}
	return nil
}

func (w *outcomeWriter) add(o *store.Outcome, held *heldRow) error {
	r, err := endOf(o)
	if err != nil {
		return err
	}
	e, trigger, era := held.event, held.trigger, w.t.era
	if !r.status.Done() {
		trigger, era = hook.TriggerAuto, held.era
	}
	try := 0 // it was given up without one
	var lastAt, lastStatus, lastTook, lastKind, lastMessage, detail any
	if a := &o.Attempt; a.Number > 0 {
		lastAt, lastStatus, lastTook = millis(a.StartedAt), int64(a.StatusCode), a.Duration.Microseconds()
		lastKind, lastMessage = failure(a.Failure)
		try = o.Try
		w.t.addAttempt(o.Tenant, o.Webhook, o.At, a.Duration, a.Failure == nil)
		if encoded := codec.EncodeAttempt(a); inRow(o) {
			detail = encoded
		} else if err := w.attempts.add(o.Tenant[:], o.Delivery[:], a.Number, encoded); err != nil {
			return fmt.Errorf("record attempts: %w", err)
		}
	}
	err = w.rows.add(e.tenant[:], held.id[:], held.webhook[:], e.id[:], textOrNull(e.given), e.eventType,
		int64(r.status), o.Attempt.Number, try, r.due, r.completed, string(trigger), era, millis(held.id.Time()), e.expires,
		lastAt, lastStatus, lastTook, lastKind, lastMessage, r.failKind, r.fail, detail)
	if err != nil {
		return fmt.Errorf("record outcomes: %w", err)
	}
	w.t.rowGiven(held)
	o.Matched = true
	return w.t.finished(o, r.status)
}

// outcome records what an attempt came to, of a delivery that has a row.
func (t *tx) outcome(o *store.Outcome) error {
	if v, err := t.version(o.Tenant); err != nil || v == tenantGone {
		return err
	}
	r, err := endOf(o)
	if err != nil {
		return err
	}
	if o.Attempt.Number == 0 {
		return t.giveUp(o, r)
	}
	a := &o.Attempt
	var detail any
	if inRow(o) {
		detail = codec.EncodeAttempt(a)
	}
	lastKind, lastMessage := failure(a.Failure)
	done := intOfBool(r.status.Done())
	changed, err := t.exec(sqlOutcome, int64(r.status), a.Number, o.Try, r.due, r.completed, done, done, t.era,
		millis(a.StartedAt), a.StatusCode, a.Duration.Microseconds(), lastKind, lastMessage,
		r.failKind, r.fail, detail,
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
			o.Tenant[:], o.Delivery[:], a.Number, codec.EncodeAttempt(a))
		if err != nil {
			return fmt.Errorf("record an attempt: %w", err)
		}
	}
	return t.finished(o, r.status)
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
func (t *tx) giveUp(o *store.Outcome, r end) error {
	changed, err := t.exec(sqlGiveUp, int64(r.status), r.completed, t.era, r.failKind, r.fail, o.Tenant[:], o.Delivery[:], o.Webhook[:])
	if err != nil {
		return fmt.Errorf("give up a delivery: %w", err)
	}
	if changed == 0 {
		return nil
	}
	o.Matched = true
	return t.finished(o, r.status)
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
	if inRow && a.Number == 1 {
		return nil
	}
	added, err := t.exec("INSERT OR IGNORE INTO attempts (tenant_id, delivery_id, number, data) VALUES (?, ?, ?, ?)",
		o.Tenant[:], o.Delivery[:], a.Number, codec.EncodeAttempt(a))
	if err != nil {
		return fmt.Errorf("record an attempt: %w", err)
	}
	if added > 0 {
		t.addAttempt(o.Tenant, o.Webhook, o.At, a.Duration, a.Failure == nil)
	}
	return nil
}
