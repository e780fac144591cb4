package postgres

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// A job stands for a set of deliveries: those that were FAILED, or unfinished,
// when it was started. The set is not written down. Instead each start of a job
// begins a new era of its tenant, and a row carries the era in which it was last
// queued or done; the set are the rows of the right status and of an earlier era.
// What fails or is queued later has the job's own era or a later one. That is exact
// where times are not: a start excludes the commits of its tenant.

const (
	jobColumns = `tenant_id, id, webhook_id, kind, node, era, created_at, total, moved, done, cursor_id, passed`

	sqlJob        = `SELECT ` + jobColumns + ` FROM jobs WHERE tenant_id = $1 AND id = $2`
	sqlJobRunning = `SELECT ` + jobColumns + ` FROM jobs WHERE tenant_id = $1 AND webhook_id = $2 AND kind = $3 AND NOT done FOR UPDATE`
	// sqlTakeJobs takes what nobody works off.
	sqlTakeJobs = `UPDATE jobs SET node = $1 WHERE NOT done AND (node IS NULL OR node = $1 OR NOT EXISTS (SELECT 1 FROM nodes n WHERE n.id = jobs.node))
		RETURNING ` + jobColumns
	sqlNewEra    = `UPDATE tenants SET era = era + 1 WHERE id = $1 RETURNING era`
	sqlInsertJob = `INSERT INTO jobs (` + jobColumns + `) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0, $9, $10, false)`
	sqlUpdateJob = `UPDATE jobs SET node = $3, moved = $4, done = $5, cursor_id = $6, passed = $7 WHERE tenant_id = $1 AND id = $2`
	sqlFoldWait  = `SELECT pg_advisory_xact_lock(7003, $1)`
	sqlNodeThere = `SELECT 1 FROM nodes WHERE id = $1`
	sqlWebhook   = `SELECT 1 FROM webhooks WHERE tenant_id = $1 AND id = $2`

	sqlFailedRows = `SELECT id, era FROM deliveries WHERE tenant_id = $1 AND webhook_id = $2 AND status = 3 AND id > $3 ORDER BY id LIMIT $4`
	sqlQueueRows  = `SELECT id, era, node FROM queue WHERE tenant_id = $1 AND era >= 0 AND (webhook_id, id) > ($2, $3) AND webhook_id <= $2
		ORDER BY webhook_id, id LIMIT $4`

	// sqlGiveUp ends unfinished deliveries without an attempt, if they are still
	// of an era before, and nobody's or this node's (or anybody's).
	sqlGiveUp = `WITH gone AS (DELETE FROM queue q USING unnest($1::uuid[], $3::uuid[]) AS o(tenant_id, id)
				WHERE q.tenant_id = o.tenant_id AND q.id = o.id AND q.webhook_id = $2 AND q.era < $4 AND (q.node IS NULL OR q.node = $5 OR $6) RETURNING q.*)
		INSERT INTO deliveries (tenant_id, id, webhook_id, event_id, era, expires_at, completed_at, last_at, last_us, last_status,
			attempts, try, status, given_id, event_type, trigger, replay_id, last_kind, last_message, fail_kind, fail_message, detail)
		SELECT tenant_id, id, webhook_id, event_id, $7::bigint, expires_at, $8::bigint, last_at, last_us, last_status,
			attempts, try, $9::smallint, given_id, event_type, trigger, replay_id, last_kind, last_message, $10::text, $11::text, detail FROM gone`

	// An attempt that was recorded when the delivery had been given up is counted
	// from the time on when it is asked for again, so that the next has a number of
	// its own.
	tried = `tried AS (SELECT delivery_id, max(number) AS number FROM attempts
			WHERE tenant_id = $1 AND delivery_id = ANY($2) AND delivery_id >= $3 AND delivery_id <= $4 GROUP BY delivery_id)`
	// sqlAskDone puts finished deliveries back in the queue, if they are still of
	// an era before, and FAILED (or anything).
	sqlAskDone = `WITH gone AS (DELETE FROM deliveries WHERE tenant_id = $1 AND id = ANY($2) AND id >= $3 AND id <= $4
				AND era < $5 AND (status = 3 OR $6) RETURNING *),
			` + tried + `,
			counted AS (SELECT g.*, greatest(g.attempts, t.number) AS n FROM gone g LEFT JOIN tried t ON t.delivery_id = g.id),
			put AS (INSERT INTO queue (tenant_id, id, webhook_id, event_id, node, era, due_at, expires_at, status, attempts, try, given_id,
					event_type, trigger, replay_id, last_at, last_status, last_us, last_kind, last_message, detail)
				SELECT tenant_id, id, webhook_id, event_id, NULL, $7::bigint, $8::bigint, $9::bigint, CASE WHEN n > 0 THEN $10::smallint ELSE $11::smallint END, n, 0, given_id,
					event_type, $12::text, $13::uuid, last_at, last_status, last_us, last_kind, last_message, detail FROM counted)
		SELECT webhook_id, status FROM gone`
	// sqlAskQueued starts the schedule of one unfinished delivery again. Whoever
	// holds it goes on holding it.
	sqlAskQueued = `WITH ` + tried + `
		UPDATE queue q SET attempts = c.n, try = 0, status = CASE WHEN c.n > 0 THEN $8::smallint ELSE $9::smallint END,
			trigger = $10, replay_id = NULL, era = $5, due_at = $6, expires_at = $7
		FROM (SELECT u.tenant_id, u.id, greatest(u.attempts, t.number) AS n FROM queue u LEFT JOIN tried t ON t.delivery_id = u.id
			WHERE u.tenant_id = $1 AND u.id = $3) c
		WHERE q.tenant_id = c.tenant_id AND q.id = c.id`
)

// looked is how many rows a step looks at for each that it may move.
const looked = 8

// anyEra is after every era.
const anyEra = math.MaxInt64

// job is a job with the driver's part of it.
type job struct {
	store.Job
	node   pgtype.Int8 // who works it off
	era    int64
	cursor id.Delivery
	// passed says that this pass left something that the job stands for: it was
	// held. Another pass is needed.
	passed bool

	kind    string
	created int64
}

// columns are where jobColumns go.
func (j *job) columns() []any {
	return []any{
		(*[16]byte)(&j.Tenant), (*[16]byte)(&j.ID), (*[16]byte)(&j.Webhook), &j.kind, &j.node, &j.era, &j.created, &j.Total, &j.Moved, &j.Done,
		(*[16]byte)(&j.cursor), &j.passed,
	}
}

// read makes of columns what they stand for.
func (j *job) read() { j.Kind, j.CreatedAt = store.JobKind(j.kind), atMillis(j.created) }

// readJob reads one job; nil if there is none.
func readJob(ctx context.Context, q querier, text string, args ...any) (*job, error) {
	var j job
	found, err := one(ctx, q, text, args, j.columns()...)
	if err != nil {
		return nil, fmt.Errorf("read a job: %w", err)
	}
	if !found {
		return nil, nil //nolint:nilnil // none is an answer
	}
	j.read()
	return &j, nil
}

// StartJob starts a job, or answers the running one.
func (s *Store) StartJob(ctx context.Context, p store.JobParams) (*store.Job, error) {
	var out *store.Job
	err := s.writeAlone(ctx, p.Tenant, func(ctx context.Context, t *tx) error {
		if err := t.need(p.Tenant); err != nil {
			return err
		}
		found, err := t.one(ctx, sqlWebhook, []any{uuid(p.Tenant), uuid(p.Webhook)}, new(int))
		if err != nil {
			return err
		}
		if !found {
			return hook.NotFound("Webhook")
		}
		if out, err = t.startJob(ctx, p); err != nil {
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

// startJob starts a job in a transaction that is alone with its tenant.
func (t *tx) startJob(ctx context.Context, p store.JobParams) (*store.Job, error) {
	running, err := readJob(ctx, t.conn, sqlJobRunning, uuid(p.Tenant), uuid(p.Webhook), string(p.Kind))
	if err != nil {
		return nil, err
	}
	if running != nil {
		running.Existing = true
		mine, err := t.take(ctx, running)
		running.Elsewhere = !mine
		if err == nil && mine {
			err = t.updateJob(ctx, running)
		}
		return &running.Job, err
	}
	// What is counted is read in two steps, between which nothing may be folded.
	if _, err := t.exec(ctx, sqlFoldWait, lockKey(p.Tenant)); err != nil {
		return nil, err
	}
	g, err := readGauge(ctx, t.conn, p.Tenant, p.Webhook)
	if err != nil {
		return nil, err
	}
	j := store.Job{ID: p.ID, Tenant: p.Tenant, Webhook: p.Webhook, Kind: p.Kind, CreatedAt: atMillis(millis(p.Now)), Total: g.pending}
	if p.Kind == store.JobRetryFailed {
		j.Total = g.failed
	}
	j.Done = j.Total == 0
	state := t.tenants[p.Tenant]
	if _, err := t.one(ctx, sqlNewEra, []any{uuid(p.Tenant)}, &state.era); err != nil {
		return nil, fmt.Errorf("start a job: %w", err)
	}
	t.tenants[p.Tenant] = state
	_, err = t.exec(ctx, sqlInsertJob, uuid(j.Tenant), uuid(j.ID), uuid(j.Webhook), string(j.Kind), t.node, state.era, millis(j.CreatedAt),
		j.Total, j.Done, uuid(id.Delivery{}))
	if err != nil {
		return nil, exists(err, "the job")
	}
	return &j, nil
}

// take makes a job this node's, unless another node that lives works it off.
func (t *tx) take(ctx context.Context, j *job) (bool, error) {
	if j.node.Valid && j.node.Int64 != t.node {
		lives, err := t.one(ctx, sqlNodeThere, []any{j.node.Int64}, new(int))
		if err != nil || lives {
			return false, err
		}
	}
	j.node = number(t.node)
	return true, nil
}

func (t *tx) updateJob(ctx context.Context, j *job) error {
	_, err := t.exec(ctx, sqlUpdateJob, uuid(j.Tenant), uuid(j.ID), j.node, j.Moved, j.Done, uuid(j.cursor), j.passed)
	return err
}

// StepJob does the next chunk. A job that another node works off is none of this
// node's.
func (s *Store) StepJob(ctx context.Context, p store.JobStepParams) (*store.Job, error) {
	var j *job
	p.Limit = max(1, p.Limit)
	err := s.commit(ctx, []id.Tenant{p.Tenant}, func(ctx context.Context, t *tx) (err error) {
		if err := t.need(p.Tenant); err != nil {
			return err
		}
		if j, err = readJob(ctx, t.conn, sqlJob+" FOR UPDATE", uuid(p.Tenant), uuid(p.Job)); err != nil {
			return err
		}
		if j == nil {
			return hook.NotFound("Job")
		}
		if j.Done {
			return nil
		}
		mine, err := t.take(ctx, j)
		if err != nil {
			return err
		}
		if !mine {
			return hook.NotFound("Job")
		}
		if j.Kind == store.JobRetryFailed {
			err = t.stepRetry(ctx, j, &p)
		} else {
			err = t.stepDiscard(ctx, j, &p)
		}
		if err != nil {
			return err
		}
		return t.updateJob(ctx, j)
	})
	if err != nil {
		return nil, err
	}
	return &j.Job, nil
}

// stepRetry goes through the FAILED deliveries in the order of their ids.
func (t *tx) stepRetry(ctx context.Context, j *job, p *store.JobStepParams) error {
	var chosen []id.Delivery
	var d id.Delivery
	var era int64
	rows := 0
	err := t.each(ctx, sqlFailedRows, []any{uuid(j.Tenant), uuid(j.Webhook), uuid(j.cursor), int64(p.Limit)}, []any{(*[16]byte)(&d), &era}, func() error {
		rows++
		j.cursor = d
		if era < j.era { // else it failed after the job was started
			chosen = append(chosen, d)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("find failed deliveries: %w", err)
	}
	if rows < p.Limit {
		// What must stay of a span that is being deleted may not be back yet.
		parted, err := t.one(ctx, sqlParted, nil, new(string), new(int64))
		if err != nil {
			return err
		}
		if j.Done = !parted; parted {
			j.cursor = id.Delivery{}
		}
	}
	moved, err := t.askDone(ctx, &ask{
		tenant: j.Tenant, ids: chosen, era: j.era, trigger: hook.TriggerReplay, replay: j.ID, now: p.Now, expires: p.ExpiresAt,
	})
	j.Moved += int64(moved)
	return err
}

// stepDiscard goes through the queue in the order of ids, and again while something
// was held that the job stands for: it comes back when its attempt has failed.
func (t *tx) stepDiscard(ctx context.Context, j *job, p *store.JobStepParams) error {
	var chosen []id.Delivery
	var d id.Delivery
	var era int64
	var node pgtype.Int8
	rows, more := 0, false
	err := t.each(ctx, sqlQueueRows, []any{uuid(j.Tenant), uuid(j.Webhook), uuid(j.cursor), int64(p.Limit) * looked},
		[]any{(*[16]byte)(&d), &era, &node}, func() error {
			rows++
			more = more || len(chosen) == p.Limit
			if more {
				return nil
			}
			j.cursor = d
			switch {
			case era >= j.era:
			case node.Valid && node.Int64 != t.node, p.Held != nil && p.Held(d):
				j.passed = true
			default:
				chosen = append(chosen, d)
			}
			return nil
		})
	if err != nil {
		return fmt.Errorf("find queued deliveries: %w", err)
	}
	moved, err := t.giveUp(ctx, &giveUp{
		tenant: j.Tenant, webhook: j.Webhook, ids: chosen, era: j.era, change: hook.Canceled, now: p.Now,
		failure: hook.Failure{Kind: hook.FailureCanceled, Message: "the webhook's queue was discarded"},
	})
	if err != nil {
		return err
	}
	j.Moved += int64(moved)
	// What could not be moved has ended since it was looked at, or was claimed.
	j.passed = j.passed || moved < len(chosen)
	if !more && rows < p.Limit*looked {
		j.Done = !j.passed
		j.cursor, j.passed = id.Delivery{}, false
	}
	return nil
}

// giveUp says which deliveries to give up.
type giveUp struct {
	tenant  id.Tenant
	webhook id.Webhook
	ids     []id.Delivery
	era     int64 // those of an era before this
	anyNode bool  // whoever holds them; else those that are free or this node's
	change  hook.Change
	now     time.Time
	failure hook.Failure
}

// giveUpAll ends unfinished deliveries of a webhook without an attempt. Those that
// another node holds, or that have ended meanwhile, are passed over.
func (t *tx) giveUpAll(ctx context.Context, tenant id.Tenant, webhook id.Webhook, ids []id.Delivery, change hook.Change, now time.Time, f hook.Failure) error {
	_, err := t.giveUp(ctx, &giveUp{tenant: tenant, webhook: webhook, ids: ids, era: anyEra, change: change, now: now, failure: f})
	return err
}

// giveUp moves deliveries from the queue to history, and says how many.
func (t *tx) giveUp(ctx context.Context, g *giveUp) (int, error) {
	if len(g.ids) == 0 {
		return 0, nil
	}
	status, _ := hook.StatusPending.Next(g.change, true)
	if err := t.haveSpans(arrays(g.ids)...); err != nil {
		return 0, err
	}
	kind, message := failure(&g.failure)
	n, err := t.execByID(ctx, sqlGiveUp, sameTenant(g.tenant, len(g.ids)), uuid(g.webhook), uuids(g.ids), g.era, t.node, g.anyNode,
		t.tenants[g.tenant].era, millis(g.now), int16(status), kind, message)
	if err != nil {
		return 0, fmt.Errorf("give up deliveries: %w", err)
	}
	if n > 0 {
		t.addGauge(g.tenant, g.webhook, -n, n, 0)
	}
	return int(n), nil
}

func arrays[T ~[16]byte](ids []T) [][16]byte {
	out := make([][16]byte, len(ids))
	for i, v := range ids {
		out[i] = v
	}
	return out
}

// ask says which deliveries to put back in the queue.
type ask struct {
	tenant       id.Tenant
	ids          []id.Delivery
	era          int64 // those of an era before this
	anyStatus    bool  // those that succeeded too; else the FAILED ones
	trigger      hook.Trigger
	replay       id.Replay
	now, expires time.Time
}

// bounds are the least and the greatest of ids, for the database to see at once in
// which spans they are.
func bounds(ids []id.Delivery) (first, last id.Delivery) {
	return slices.MinFunc(ids, id.Delivery.Compare), slices.MaxFunc(ids, id.Delivery.Compare)
}

// askDone puts finished deliveries back in the queue, free and due now, and says how
// many.
func (t *tx) askDone(ctx context.Context, a *ask) (moved int, err error) {
	if len(a.ids) == 0 {
		return 0, nil
	}
	first, last := bounds(a.ids)
	again, fresh := asked()
	var webhook id.Webhook
	var status int16
	err = t.each(ctx, sqlAskDone, []any{
		uuid(a.tenant), uuids(a.ids), uuid(first), uuid(last), a.era, a.anyStatus, t.tenants[a.tenant].era, millis(a.now), millis(a.expires),
		again, fresh, string(a.trigger), uuidOrNull(a.replay),
	}, []any{(*[16]byte)(&webhook), &status}, func() error {
		moved++
		t.addGauge(a.tenant, webhook, 1, -failedOne(status), 0)
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("retry deliveries: %w", err)
	}
	return moved, nil
}

// asked are the states of a delivery that was asked for: of one that was tried
// before, and of one that was not.
func asked() (again, fresh int16) {
	a, _ := hook.StatusFailed.Next(hook.Asked, true)
	f, _ := hook.StatusFailed.Next(hook.Asked, false)
	return int16(a), int16(f)
}

// RunningJobs lists the unfinished jobs that no other node works off: they are this
// node's from now on.
func (s *Store) RunningJobs(ctx context.Context) ([]store.Job, error) {
	var jobs []job
	err := s.write(ctx, nil, func(ctx context.Context, t *tx) error {
		jobs = nil
		var j job
		return t.each(ctx, sqlTakeJobs, []any{t.node}, j.columns(), func() error {
			j.read()
			jobs = append(jobs, j)
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(jobs, func(a, b job) int { return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.era, b.era)) })
	var out []store.Job
	for i := range jobs {
		out = append(out, jobs[i].Job)
	}
	return out, nil
}

// Job shows one job.
func (s *Store) Job(ctx context.Context, tenant id.Tenant, replay id.Replay) (*store.Job, error) {
	var j *job
	err := s.read(ctx, tenant, func(ctx context.Context, q pgx.Tx) (err error) {
		if j, err = readJob(ctx, q, sqlJob, uuid(tenant), uuid(replay)); err == nil && j == nil {
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
	err := s.write(ctx, []id.Tenant{p.Tenant}, func(ctx context.Context, t *tx) error {
		if err := t.need(p.Tenant); err != nil {
			return err
		}
		d, err := readDelivery(ctx, t.conn, p.Tenant, p.Delivery)
		if err != nil {
			return err
		}
		found, err := t.one(ctx, sqlWebhook, []any{uuid(p.Tenant), uuid(d.Webhook)}, new(int))
		if err != nil {
			return err
		}
		if !found {
			return hook.Conflict("The webhook of this delivery was deleted")
		}
		if err := t.retry(ctx, &p, d.Status); err != nil {
			return err
		}
		out, err = readDelivery(ctx, t.conn, p.Tenant, p.Delivery)
		return err
	})
	return out, err
}

// retry starts the schedule of a delivery again that was in a state a moment ago.
func (t *tx) retry(ctx context.Context, p *store.RetryParams, status hook.Status) error {
	var moved int64
	if status.Done() {
		n, err := t.askDone(ctx, &ask{
			tenant: p.Tenant, ids: []id.Delivery{p.Delivery}, era: anyEra, anyStatus: true, trigger: hook.TriggerManual, now: p.Now, expires: p.ExpiresAt,
		})
		if err != nil {
			return err
		}
		moved = int64(n)
	} else {
		again, fresh := asked()
		n, err := t.exec(ctx, sqlAskQueued, uuid(p.Tenant), uuids([]id.Delivery{p.Delivery}), uuid(p.Delivery), uuid(p.Delivery),
			t.tenants[p.Tenant].era, millis(p.Now), millis(p.ExpiresAt), again, fresh, string(hook.TriggerManual))
		if err != nil {
			return fmt.Errorf("retry delivery %s: %w", p.Delivery, err)
		}
		moved = n
	}
	if moved == 0 {
		return errAgain // it has moved to where it was not looked for
	}
	return nil
}

// CancelDelivery gives up an unfinished delivery, whoever holds it. The outcome of
// an attempt that is on its way will not match any more.
func (s *Store) CancelDelivery(ctx context.Context, tenant id.Tenant, delivery id.Delivery, now time.Time) (*hook.Delivery, error) {
	var out *hook.Delivery
	err := s.write(ctx, []id.Tenant{tenant}, func(ctx context.Context, t *tx) error {
		if err := t.need(tenant); err != nil {
			return err
		}
		d, err := readDelivery(ctx, t.conn, tenant, delivery)
		if err != nil {
			return err
		}
		if d.Status.Done() {
			return hook.Conflict("The delivery is %s already; only an unfinished one can be canceled", d.Status)
		}
		n, err := t.giveUp(ctx, &giveUp{
			tenant: tenant, webhook: d.Webhook, ids: []id.Delivery{delivery}, era: anyEra, anyNode: true, change: hook.Canceled, now: now,
			failure: hook.Failure{Kind: hook.FailureCanceled, Message: "the delivery was canceled"},
		})
		if err != nil {
			return err
		}
		if n == 0 {
			return errAgain // it has ended since
		}
		out, err = readDelivery(ctx, t.conn, tenant, delivery)
		return err
	})
	return out, err
}
