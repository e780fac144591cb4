// Package replay sends again, and discards, on request: one delivery, or all
// that failed of a webhook. What concerns many is a durable job in the store,
// done in chunks and taken up again after a crash; it goes no faster than the
// webhook takes it, and what is new goes first.
//
// It must not know how a delivery is sent: of the lanes it knows how to take a
// delivery out of one and to wake it.
package replay

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/plinqx/hypha/internal/audit"
	"github.com/plinqx/hypha/internal/contain"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// Store keeps the jobs.
type Store interface {
	StartJob(ctx context.Context, p store.JobParams) (*store.Job, error)
	StepJob(ctx context.Context, p store.JobStepParams) (*store.Job, error)
	RunningJobs(ctx context.Context) ([]store.Job, error)
	Job(ctx context.Context, tenant id.Tenant, job id.Replay) (*store.Job, error)
	RetryDelivery(ctx context.Context, p store.RetryParams) (*hook.Delivery, error)
	CancelDelivery(ctx context.Context, tenant id.Tenant, delivery id.Delivery, now time.Time) (*hook.Delivery, error)
	Delivery(ctx context.Context, tenant id.Tenant, delivery id.Delivery) (*hook.Delivery, error)
}

// Lanes have deliveries in memory (package dispatch). All but Busy is called in
// the committer's goroutine.
type Lanes interface {
	Drop(tenant id.Tenant, webhook id.Webhook, delivery id.Delivery) bool
	Discard(tenant id.Tenant, webhook id.Webhook, on bool)
	Held(tenant id.Tenant, webhook id.Webhook) func(id.Delivery) bool
	Wake(tenant id.Tenant, webhook id.Webhook)
	Busy(tenant id.Tenant, webhook id.Webhook) bool
}

// Committer runs what must see the store and the lanes agree.
type Committer interface {
	Do(f func(ctx context.Context))
}

// Webhooks answers a webhook, or hook.CodeNotFound.
type Webhooks interface {
	Webhook(ctx context.Context, tenant id.Tenant, webhook id.Webhook) (*hook.Webhook, error)
}

// Options are what replays need; all are required.
type Options struct {
	Store     Store
	Lanes     Lanes
	Committer Committer
	Webhooks  Webhooks
	Now       func() time.Time
	MaxAge    time.Duration // of an unfinished delivery
	Logger    *slog.Logger
	// Guard contains panics. Default: they end the process by themselves.
	Guard *contain.Guard
}

// The pace of a job: how many deliveries one transaction moves, and how often a
// job looks whether its webhook has taken what it was given.
const (
	retryChunk   = 200
	discardChunk = 2000
	look         = 10 * time.Millisecond
	maxLook      = time.Second // between steps that find nothing to move
)

// Replays is safe for concurrent use. It works between Start and Stop.
type Replays struct {
	o      Options
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	running map[id.Replay]bool
	// discards counts the running discards of a webhook.
	discards map[id.Webhook]int
}

// New makes Replays that have not started.
func New(o Options) *Replays {
	r := &Replays{o: o, running: make(map[id.Replay]bool), discards: make(map[id.Webhook]int)}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// Start takes up the jobs that were not done when the server stopped. It is to
// be called before deliveries are sent, so that nothing of a queue that is
// being discarded is sent.
func (r *Replays) Start(ctx context.Context) error { return r.TakeUp(ctx) }

// TakeUp takes up the jobs that nobody works off, such as those of a process that
// has died.
func (r *Replays) TakeUp(ctx context.Context) error {
	select {
	case <-r.ctx.Done():
		return nil // they are for others to take
	default:
	}
	jobs, err := r.o.Store.RunningJobs(ctx)
	if err != nil {
		return err
	}
	for i := range jobs {
		r.run(&jobs[i])
	}
	return nil
}

// Stop ends the running of jobs between two chunks. They are taken up at the
// next start.
func (r *Replays) Stop() {
	r.mu.Lock()
	r.cancel()
	r.mu.Unlock()
	r.wg.Wait()
}

// RetryAllFailed puts all that is FAILED of a webhook now back in its queue, in
// the background. While such a job runs, it is answered again.
func (r *Replays) RetryAllFailed(ctx context.Context, tenant id.Tenant, webhook id.Webhook) (*store.Job, error) {
	w, err := r.enabled(ctx, tenant, webhook)
	if err != nil {
		return nil, err
	}
	return r.start(noteWebhook(ctx, hook.AuditFailedRetried, w), tenant, webhook, store.JobRetryFailed)
}

// DiscardQueue gives up all that waits for a webhook now, in the background, and
// answers how many that is. What is being sent is not broken off.
func (r *Replays) DiscardQueue(ctx context.Context, tenant id.Tenant, webhook id.Webhook) (int64, error) {
	w, err := r.o.Webhooks.Webhook(ctx, tenant, webhook)
	if err != nil {
		return 0, err
	}
	job, err := r.start(noteWebhook(ctx, hook.AuditQueueDiscarded, w), tenant, webhook, store.JobDiscard)
	if err != nil {
		return 0, err
	}
	return job.Total, nil
}

// Resume runs a job that is in the store already.
func (r *Replays) Resume(tenant id.Tenant, job id.Replay) {
	j, err := r.o.Store.Job(r.ctx, tenant, job)
	if err != nil {
		r.o.Logger.Error("a job can't be read; it runs at the next start", "job", job, "tenant", tenant, "err", err)
		return
	}
	r.run(j)
}

// Retry sends one delivery again, whatever became of it, with its whole
// schedule. One that is being sent is left as it is.
func (r *Replays) Retry(ctx context.Context, tenant id.Tenant, delivery id.Delivery) (*hook.Delivery, error) {
	d, err := r.o.Store.Delivery(ctx, tenant, delivery)
	if err != nil {
		return nil, err
	}
	if _, err := r.enabled(ctx, tenant, d.Webhook); err != nil {
		if hook.CodeOf(err) == hook.CodeNotFound {
			return nil, hook.Conflict("The webhook of this delivery was deleted")
		}
		return nil, err
	}
	return r.change(noteDelivery(ctx, hook.AuditDeliveryRetried, d), d, func(ctx context.Context) (*hook.Delivery, error) {
		now := r.now()
		changed, err := r.o.Store.RetryDelivery(ctx, store.RetryParams{Tenant: tenant, Delivery: delivery, Now: now, ExpiresAt: now.Add(r.o.MaxAge)})
		if err == nil {
			r.o.Lanes.Wake(tenant, d.Webhook)
		}
		return changed, err
	})
}

// Cancel gives up an unfinished delivery. One that is being sent is conflict.
func (r *Replays) Cancel(ctx context.Context, tenant id.Tenant, delivery id.Delivery) (*hook.Delivery, error) {
	d, err := r.o.Store.Delivery(ctx, tenant, delivery)
	if err != nil {
		return nil, err
	}
	if d.Status.Done() {
		return nil, hook.Conflict("This delivery is %s already", d.Status)
	}
	changed, err := r.change(noteDelivery(ctx, hook.AuditDeliveryCanceled, d), d, func(ctx context.Context) (*hook.Delivery, error) {
		return r.o.Store.CancelDelivery(ctx, tenant, delivery, r.now())
	})
	if err == nil && !changed.Status.Done() {
		return nil, hook.Conflict("This delivery is being sent at this moment; try again when the attempt is over")
	}
	return changed, err
}

// change does something to a delivery that is not being sent; one that is, it
// answers as it was.
func (r *Replays) change(ctx context.Context, d *hook.Delivery, f func(context.Context) (*hook.Delivery, error)) (*hook.Delivery, error) {
	type result struct {
		d   *hook.Delivery
		err error
	}
	done := make(chan result, 1)
	r.o.Committer.Do(func(turn context.Context) {
		if !r.o.Lanes.Drop(d.Tenant, d.Webhook, d.ID) {
			done <- result{d, nil}
			return
		}
		changed, err := f(audit.Carry(turn, ctx))
		if err != nil {
			r.o.Lanes.Wake(d.Tenant, d.Webhook) // it was taken out of memory
		}
		done <- result{changed, err}
	})
	select {
	case got := <-done:
		return got.d, got.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-r.ctx.Done():
		return nil, hook.Unavailable(5*time.Second, nil, "The server is shutting down; try again")
	}
}

// enabled answers a webhook that is enabled.
func (r *Replays) enabled(ctx context.Context, tenant id.Tenant, webhook id.Webhook) (*hook.Webhook, error) {
	w, err := r.o.Webhooks.Webhook(ctx, tenant, webhook)
	if err != nil {
		return nil, err
	}
	if !w.Enabled {
		return nil, hook.Conflict("The webhook is disabled (%s); enable it first", w.DisabledReason)
	}
	return w, nil
}

// noteWebhook says in the audit log that a job was started. How many deliveries it
// stands for, the store adds.
func noteWebhook(ctx context.Context, action hook.AuditAction, w *hook.Webhook) context.Context {
	return audit.Note(ctx, hook.AuditEntry{
		Tenant: w.Tenant, Action: action, Object: hook.AuditObject{Kind: hook.ObjectWebhook, ID: w.ID.String(), Name: w.Name},
	})
}

func noteDelivery(ctx context.Context, action hook.AuditAction, d *hook.Delivery) context.Context {
	var diff audit.Diff
	diff.Set("eventId", d.PublicEventID)
	diff.Set("webhookId", d.Webhook.String())
	return audit.Note(ctx, hook.AuditEntry{
		Tenant: d.Tenant, Action: action, Object: hook.AuditObject{Kind: hook.ObjectDelivery, ID: d.ID.String(), Name: d.EventType}, Changes: diff,
	})
}

func (r *Replays) start(ctx context.Context, tenant id.Tenant, webhook id.Webhook, kind store.JobKind) (*store.Job, error) {
	jobID, err := id.NewReplay()
	if err != nil {
		return nil, err
	}
	job, err := r.o.Store.StartJob(ctx, store.JobParams{ID: jobID, Tenant: tenant, Webhook: webhook, Kind: kind, Now: r.now()})
	if err != nil {
		return nil, err
	}
	r.run(job)
	return job, nil
}

func (r *Replays) now() time.Time { return r.o.Now().UTC().Truncate(time.Millisecond) }

// run works a job off in a goroutine of its own, unless one does already, here or
// in another process.
func (r *Replays) run(job *store.Job) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if job.Done || job.Elsewhere || r.running[job.ID] || r.ctx.Err() != nil {
		return
	}
	r.running[job.ID] = true
	discard := job.Kind == store.JobDiscard
	if discard {
		r.discards[job.Webhook]++
		r.o.Lanes.Discard(job.Tenant, job.Webhook, true)
	}
	r.wg.Go(func() {
		// What a job has done is in the store: begun again, it goes on from there.
		r.o.Guard.Loop(r.ctx, "a job", func() { r.work(job) })
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.running, job.ID)
		if !discard {
			return
		}
		// The last one to end lets the queue go on.
		if r.discards[job.Webhook]--; r.discards[job.Webhook] == 0 {
			delete(r.discards, job.Webhook)
			if r.ctx.Err() == nil {
				r.o.Lanes.Discard(job.Tenant, job.Webhook, false)
			}
		}
	})
}

func (r *Replays) work(job *store.Job) {
	log := r.o.Logger.With("job", job.ID, "kind", job.Kind, "tenant", job.Tenant, "webhook", job.Webhook)
	moved, wait := job.Moved, look
	for {
		if job.Kind == store.JobRetryFailed {
			if !r.room(job) {
				return
			}
		}
		next, err := r.step(job)
		switch {
		case r.ctx.Err() != nil:
			return
		case hook.CodeOf(err) == hook.CodeNotFound && err != nil:
			return // with its webhook, or its tenant; or another process has it now
		case err != nil:
			log.Warn("a job could not go on; trying again", "err", err)
			if !sleep(r.ctx, time.Second) {
				return
			}
		case next.Done:
			log.Info("job done", "moved", next.Moved, "total", next.Total)
			return
		case next.Moved > moved:
			moved, wait = next.Moved, look
		default:
			// All that is left is being sent at this moment, or was looked
			// through without a find: no reason to keep the store busy.
			if !sleep(r.ctx, wait) {
				return
			}
			wait = min(2*wait, maxLook)
		}
	}
}

// room waits until the webhook has taken what it has. The longer that takes, the
// less often it looks.
func (r *Replays) room(job *store.Job) bool {
	for wait := look; r.o.Lanes.Busy(job.Tenant, job.Webhook); wait = min(wait*5/4, maxLook) {
		if !sleep(r.ctx, wait) {
			return false
		}
	}
	return r.ctx.Err() == nil
}

func (r *Replays) step(job *store.Job) (*store.Job, error) {
	type result struct {
		job *store.Job
		err error
	}
	done := make(chan result, 1)
	r.o.Committer.Do(func(ctx context.Context) {
		p := store.JobStepParams{Tenant: job.Tenant, Job: job.ID, Limit: retryChunk, Now: r.now(), Held: r.o.Lanes.Held(job.Tenant, job.Webhook)}
		p.ExpiresAt = p.Now.Add(r.o.MaxAge)
		if job.Kind == store.JobDiscard {
			p.Limit = discardChunk
		}
		var next *store.Job
		err := r.o.Guard.Try(contain.Store, "a step of a job", func() (err error) {
			next, err = r.o.Store.StepJob(ctx, p)
			return err
		})
		if err == nil && job.Kind == store.JobRetryFailed {
			r.o.Lanes.Wake(job.Tenant, job.Webhook)
		}
		done <- result{next, err}
	})
	select {
	case got := <-done:
		return got.job, got.err
	case <-r.ctx.Done():
		return nil, r.ctx.Err()
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
