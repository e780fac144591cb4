package sqlite

import (
	"context"
	"fmt"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// A job stands for a set of deliveries: those that were FAILED, or unfinished,
// when it was started. The set is not written down. Instead each start of a job
// begins a new era, and a row carries the era in which it was last queued or
// done; the set are the rows of the right status and of an earlier era. What
// fails or is queued later has the job's own era or a later one. That is exact
// where times are not: within a millisecond, and when clocks jump.

const (
	jobColumns = `tenant_id, id, webhook_id, kind, era, created_at, total, moved, done, cursor_due, cursor_id, passed`

	sqlJob         = `SELECT ` + jobColumns + ` FROM jobs WHERE tenant_id = ? AND id = ?`
	sqlJobRunning  = `SELECT ` + jobColumns + ` FROM jobs WHERE tenant_id = ? AND webhook_id = ? AND kind = ? AND done = 0`
	sqlJobsRunning = `SELECT ` + jobColumns + ` FROM jobs INDEXED BY jobs_running WHERE done = 0 ORDER BY era`
	sqlInsertJob   = `INSERT INTO jobs (` + jobColumns + `) VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?, 0)`
	sqlUpdateJob   = `UPDATE jobs SET moved = ?, done = ?, cursor_due = ?, cursor_id = ?, passed = ? WHERE tenant_id = ? AND id = ?`

	sqlFailedRows = `SELECT id FROM deliveries INDEXED BY deliveries_failed
		WHERE tenant_id = ? AND webhook_id = ? AND status = 3 AND id > ? ORDER BY id LIMIT ?`
	sqlQueueRows = `SELECT id, due_at FROM deliveries INDEXED BY deliveries_queue
		WHERE tenant_id = ? AND webhook_id = ? AND due_at IS NOT NULL AND (due_at, id) > (?, ?) ORDER BY due_at, id LIMIT ?`
	sqlEra = `SELECT era FROM deliveries WHERE tenant_id = ? AND id = ?`

	// sqlAsk puts a delivery back in the queue. An attempt that was recorded
	// when the delivery had been given up is counted from here on, so that the
	// next has a number of its own.
	sqlAsk = `UPDATE deliveries SET status = ?, attempts = ?, try = 0, trigger = ?, era = ?, replay_id = ?,
		due_at = ?, expires_at = ?, completed_at = NULL, fail_kind = NULL, fail_message = NULL
		WHERE tenant_id = ? AND id = ?`
	sqlAskable = `SELECT d.webhook_id, d.status, max(d.attempts,
			coalesce((SELECT max(number) FROM attempts a WHERE a.tenant_id = d.tenant_id AND a.delivery_id = d.id), 0)), d.era
		FROM deliveries d WHERE d.tenant_id = ? AND d.id = ?`
)

// looked is how many rows a step looks at for each that it may move.
const looked = 8

// firstDue is before every time that a queue holds.
const firstDue = -1 << 62

// job is a job with the driver's part of it.
type job struct {
	store.Job
	era       int64
	cursorDue int64
	cursorID  id.Delivery
	// passed says that this pass left something that the job stands for: it was
	// held. Another pass is needed.
	passed bool
}

func readJob(r row) job {
	return job{
		Job: store.Job{
			Tenant: readID[id.Tenant](r, 0), ID: readID[id.Replay](r, 1), Webhook: readID[id.Webhook](r, 2),
			Kind: store.JobKind(r.text(3)), CreatedAt: r.time(5), Total: r.int(6), Moved: r.int(7), Done: r.bool(8),
		},
		era: r.int(4), cursorDue: r.int(9), cursorID: readID[id.Delivery](r, 10), passed: r.bool(11),
	}
}

// StartJob starts a job, or answers the running one.
func (s *Store) StartJob(ctx context.Context, p store.JobParams) (*store.Job, error) {
	var out *store.Job
	err := s.write(ctx, func(t *tx) error {
		if err := t.need(p.Tenant); err != nil {
			return err
		}
		found, err := t.one("SELECT 1 FROM webhooks WHERE tenant_id = ? AND id = ?", func(row) {}, p.Tenant[:], p.Webhook[:])
		if err != nil {
			return err
		}
		if !found {
			return hook.NotFound("Webhook")
		}
		if out, err = t.startJob(p); err != nil {
			return err
		}
		if out.Existing {
			t.unchanged()
		}
		t.audit.SetCount("deliveries", out.Total)
		return nil
	})
	return out, err
}

func (t *tx) startJob(p store.JobParams) (*store.Job, error) {
	var j job
	found, err := t.one(sqlJobRunning, func(r row) { j = readJob(r) }, p.Tenant[:], p.Webhook[:], string(p.Kind))
	if err != nil {
		return nil, fmt.Errorf("look for a running job: %w", err)
	}
	if found {
		j.Existing = true
		return &j.Job, nil
	}
	// What is held now is of the era before: the job stands for it.
	if err := t.settle(p.Tenant, p.Webhook, nil); err != nil {
		return nil, err
	}
	g, err := t.gauge(gaugeKey{p.Tenant, p.Webhook})
	if err != nil {
		return nil, err
	}
	j.Job = store.Job{ID: p.ID, Tenant: p.Tenant, Webhook: p.Webhook, Kind: p.Kind, CreatedAt: p.Now, Total: g.pending}
	if p.Kind == store.JobRetryFailed {
		j.Total = g.failed
	}
	j.Done = j.Total == 0
	if err := t.nextEra(); err != nil {
		return nil, fmt.Errorf("start a job: %w", err)
	}
	_, err = t.exec(sqlInsertJob, j.Tenant[:], j.ID[:], j.Webhook[:], string(j.Kind), t.era, millis(j.CreatedAt),
		j.Total, intOfBool(j.Done), firstDue, j.cursorID[:])
	if err != nil {
		return nil, exists(err, "the job")
	}
	return &j.Job, nil
}

// StepJob does the next chunk.
func (s *Store) StepJob(ctx context.Context, p store.JobStepParams) (*store.Job, error) {
	var j job
	err := s.write(ctx, func(t *tx) error {
		if err := t.need(p.Tenant); err != nil {
			return err
		}
		found, err := t.one(sqlJob, func(r row) { j = readJob(r) }, p.Tenant[:], p.Job[:])
		if err != nil {
			return fmt.Errorf("read a job: %w", err)
		}
		if !found {
			return hook.NotFound("Job")
		}
		if j.Done {
			return nil
		}
		if err := t.settle(j.Tenant, j.Webhook, nil); err != nil {
			return err
		}
		if j.Kind == store.JobRetryFailed {
			err = t.stepRetry(&j, p)
		} else {
			err = t.stepDiscard(&j, p)
		}
		if err != nil {
			return err
		}
		_, err = t.exec(sqlUpdateJob, j.Moved, intOfBool(j.Done), j.cursorDue, j.cursorID[:], intOfBool(j.passed), j.Tenant[:], j.ID[:])
		return err
	})
	if err != nil {
		return nil, err
	}
	return &j.Job, nil
}

// stepRetry goes through the FAILED deliveries in the order of their ids.
func (t *tx) stepRetry(j *job, p store.JobStepParams) error {
	ids := make([]id.Delivery, 0, p.Limit)
	limit := max(1, p.Limit)
	err := t.scan(sqlFailedRows, func(r row) { ids = append(ids, readID[id.Delivery](r, 0)) },
		j.Tenant[:], j.Webhook[:], j.cursorID[:], limit)
	if err != nil {
		return fmt.Errorf("find failed deliveries: %w", err)
	}
	for _, delivery := range ids {
		a, err := t.askable(j.Tenant, delivery)
		if err != nil {
			return err
		}
		j.cursorID = delivery
		if a.era >= j.era {
			continue // it failed after the job was started
		}
		if err := t.ask(j.Tenant, delivery, a, hook.TriggerReplay, j.ID, p.Now, p.ExpiresAt); err != nil {
			return err
		}
		j.Moved++
	}
	j.Done = len(ids) < limit
	return nil
}

// stepDiscard goes through the queue in its order, and again while something
// was held that the job stands for: it comes back when its attempt has failed.
func (t *tx) stepDiscard(j *job, p store.JobStepParams) error {
	type queued struct {
		id  id.Delivery
		due int64
	}
	var rows []queued
	limit := max(1, p.Limit)
	err := t.scan(sqlQueueRows, func(r row) { rows = append(rows, queued{readID[id.Delivery](r, 0), r.int(1)}) },
		j.Tenant[:], j.Webhook[:], j.cursorDue, j.cursorID[:], limit*looked)
	if err != nil {
		return fmt.Errorf("find queued deliveries: %w", err)
	}
	var chosen []id.Delivery
	ended := len(rows) < limit*looked
	for _, q := range rows {
		if len(chosen) == limit {
			ended = false
			break
		}
		j.cursorDue, j.cursorID = q.due, q.id
		var era int64
		if _, err := t.one(sqlEra, func(r row) { era = r.int(0) }, j.Tenant[:], q.id[:]); err != nil {
			return err
		}
		switch {
		case era >= j.era:
		case p.Held != nil && p.Held(q.id):
			j.passed = true
		default:
			chosen = append(chosen, q.id)
		}
	}
	j.Moved += int64(len(chosen))
	if ended {
		j.Done = !j.passed
		j.cursorDue, j.cursorID, j.passed = firstDue, id.Delivery{}, false
	}
	return t.giveUpAll(j.Tenant, j.Webhook, chosen, hook.Canceled, p.Now,
		hook.Failure{Kind: hook.FailureCanceled, Message: "the webhook's queue was discarded"})
}

// askable is what must be known of a delivery to put it back in the queue.
type askable struct {
	webhook  id.Webhook
	status   hook.Status
	attempts int64
	era      int64
}

func (t *tx) askable(tenant id.Tenant, delivery id.Delivery) (askable, error) {
	var a askable
	found, err := t.one(sqlAskable, func(r row) {
		a = askable{readID[id.Webhook](r, 0), hook.Status(r.int(1)), r.int(2), r.int(3)}
	}, tenant[:], delivery[:])
	if err != nil {
		return askable{}, fmt.Errorf("read delivery %s: %w", delivery, err)
	}
	if !found {
		return askable{}, hook.NotFound("Delivery")
	}
	return a, nil
}

// ask puts a delivery back in the queue.
func (t *tx) ask(tenant id.Tenant, delivery id.Delivery, a askable, trigger hook.Trigger, replay id.Replay, now, expires time.Time) error {
	status, ok := a.status.Next(hook.Asked, a.attempts > 0)
	if !ok {
		return hook.Conflict("A delivery that is %s can't be retried", a.status)
	}
	_, err := t.exec(sqlAsk, int64(status), a.attempts, string(trigger), t.era, idOrNull(replay), millis(now), millis(expires), tenant[:], delivery[:])
	if err != nil {
		return fmt.Errorf("retry delivery %s: %w", delivery, err)
	}
	switch {
	case !a.status.Done():
		return nil
	case a.status == hook.StatusFailed:
		return t.addGauge(tenant, a.webhook, 1, -1, 0)
	default:
		return t.addGauge(tenant, a.webhook, 1, 0, 0)
	}
}

// RunningJobs lists the unfinished jobs of all tenants.
func (s *Store) RunningJobs(ctx context.Context) ([]store.Job, error) {
	var jobs []store.Job
	err := s.snapshot(ctx, func(c *conn) error {
		return c.scan(sqlJobsRunning, func(r row) { jobs = append(jobs, readJob(r).Job) })
	})
	return jobs, err
}

// Job shows one job.
func (s *Store) Job(ctx context.Context, tenant id.Tenant, replay id.Replay) (*store.Job, error) {
	var j job
	err := s.read(ctx, tenant, func(c *conn) error {
		found, err := c.one(sqlJob, func(r row) { j = readJob(r) }, tenant[:], replay[:])
		if err == nil && !found {
			err = hook.NotFound("Job")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return &j.Job, nil
}

// RetryDelivery puts one delivery at the start of its schedule. The delivery of
// a webhook that was deleted has nowhere to go.
func (s *Store) RetryDelivery(ctx context.Context, p store.RetryParams) (*hook.Delivery, error) {
	var out *hook.Delivery
	err := s.write(ctx, func(t *tx) error {
		if err := t.need(p.Tenant); err != nil {
			return err
		}
		if err := t.settleTenant(p.Tenant); err != nil {
			return err
		}
		a, err := t.askable(p.Tenant, p.Delivery)
		if err != nil {
			return err
		}
		found, err := t.one("SELECT 1 FROM webhooks WHERE tenant_id = ? AND id = ?", func(row) {}, p.Tenant[:], a.webhook[:])
		if err != nil {
			return err
		}
		if !found {
			return hook.Conflict("The webhook of this delivery was deleted")
		}
		if err := t.ask(p.Tenant, p.Delivery, a, hook.TriggerManual, id.Replay{}, p.Now, p.ExpiresAt); err != nil {
			return err
		}
		out, err = readDelivery(t.conn, p.Tenant, p.Delivery)
		return err
	})
	return out, err
}

// CancelDelivery gives up an unfinished delivery.
func (s *Store) CancelDelivery(ctx context.Context, tenant id.Tenant, delivery id.Delivery, now time.Time) (*hook.Delivery, error) {
	var out *hook.Delivery
	err := s.write(ctx, func(t *tx) error {
		if err := t.need(tenant); err != nil {
			return err
		}
		if err := t.settleTenant(tenant); err != nil {
			return err
		}
		a, err := t.askable(tenant, delivery)
		if err != nil {
			return err
		}
		if a.status.Done() {
			return hook.Conflict("The delivery is %s already; only an unfinished one can be canceled", a.status)
		}
		err = t.giveUpAll(tenant, a.webhook, []id.Delivery{delivery}, hook.Canceled, now,
			hook.Failure{Kind: hook.FailureCanceled, Message: "the delivery was canceled"})
		if err != nil {
			return err
		}
		out, err = readDelivery(t.conn, tenant, delivery)
		return err
	})
	return out, err
}
