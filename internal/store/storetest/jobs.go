package storetest

import (
	"slices"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

func jobTests() tests {
	return tests{
		"retry takes what was failed, in chunks, through crashes": jobRetry,
		"retry leaves what fails while it runs":                   jobRetryLater,
		"discard takes what was unfinished, through crashes":      jobDiscard,
		"discard leaves what comes while it runs":                 jobDiscardLater,
		"discard comes back for what was held":                    jobDiscardHeld,
		"a second start finds the first":                          jobExisting,
		"a job of none is done at once":                           jobOfNone,
		"a job of an unknown webhook":                             jobUnknown,
		"deleting a webhook discards its queue":                   jobDeleteWebhook,
		"deleting a webhook ends its retry":                       jobDeleteEndsRetry,
		"running jobs are listed, oldest first":                   jobList,
	}
}

func (f *fixture) start(kind store.JobKind, w id.Webhook) *store.Job {
	f.Helper()
	j, err := f.store.StartJob(f.ctx, store.JobParams{ID: f.makeID(), Tenant: f.tenant, Webhook: w, Kind: kind, Now: f.now})
	f.must(err)
	return j
}

func (f *fixture) step(j *store.Job, limit int, held ...id.Delivery) *store.Job {
	f.Helper()
	next, err := f.store.StepJob(f.ctx, store.JobStepParams{
		Tenant: f.tenant, Job: j.ID, Limit: limit, Now: f.now, ExpiresAt: f.now.Add(time.Hour),
		Held: func(d id.Delivery) bool { return slices.Contains(held, d) },
	})
	f.must(err)
	seen, err := f.store.Job(f.ctx, f.tenant, j.ID)
	f.must(err)
	f.equal("the job as it is shown", seen, next)
	return next
}

// complete steps until the job is done, with a crash before each step.
func (f *fixture) complete(j *store.Job, limit int) *store.Job {
	f.Helper()
	for steps := 0; !j.Done; steps++ {
		if steps > 1000 {
			f.Fatalf("the job does not come to its end: %+v", j)
		}
		f.crash()
		before := j.Moved
		if j = f.step(j, limit); j.Moved > before+int64(limit) {
			f.Fatalf("a step of %d moved %d", limit, j.Moved-before)
		}
	}
	return j
}

func jobRetry(_ *testing.T, f *fixture) {
	ids := f.queue(f.a, 10)
	other := f.queue(f.b, 1)
	f.fail(f.a, ids[:7]...)
	f.finish(f.outcome(f.a, ids[7], 1, hook.Succeeded))
	f.fail(f.b, other...)
	_, err := f.store.CancelDelivery(f.ctx, f.tenant, ids[8], f.now)
	f.must(err)

	j := f.start(store.JobRetryFailed, f.a)
	if j.Total != 8 || j.Moved != 0 || j.Done || j.Existing {
		f.Fatalf("the job is %+v", j)
	}
	f.now = f.now.Add(time.Minute)
	if j := f.complete(j, 3); j.Moved != 8 || j.Total != 8 {
		f.Fatalf("the job is %+v", j)
	}
	for i, d := range ids {
		v := f.delivery(d)
		switch i {
		case 7:
			if v.Status != hook.StatusSuccess || !v.Replay.IsZero() {
				f.Fatalf("a success was retried: %+v", v)
			}
			continue
		case 9:
			if !v.Replay.IsZero() {
				f.Fatalf("an unfinished one was retried: %+v", v)
			}
			continue
		}
		want := hook.StatusRetrying
		if i == 8 {
			want = hook.StatusPending // it was never tried
		}
		if v.Status != want || v.Replay != j.ID || v.Trigger != hook.TriggerReplay || v.Try != 0 || !v.Due.Equal(f.now) ||
			!v.ExpiresAt.Equal(f.now.Add(time.Hour)) || v.Failure != nil || !v.CompletedAt.IsZero() {
			f.Fatalf("delivery %d is %+v", i, v)
		}
	}
	f.wantCounts(f.a, "pending 9 failed 0 total 10; attempts 1+ 7-")
	f.wantCounts(f.b, "pending 0 failed 1 total 1; attempts 0+ 1-")
	f.equal("running", f.running(), []id.Replay(nil))
}

func jobRetryLater(_ *testing.T, f *fixture) {
	ids := f.queue(f.a, 12)
	early, late := ids[:6], ids[6:]
	// Ids do not tell when a delivery failed: mix them.
	early[1], late[1] = late[1], early[1]
	early[4], late[4] = late[4], early[4]
	f.fail(f.a, early...)
	j := f.start(store.JobRetryFailed, f.a)
	f.fail(f.a, late[:3]...) // in the same millisecond
	j = f.step(j, 2)
	again := f.claim(f.a, 20)
	for _, q := range again.Deliveries {
		if q.Trigger == hook.TriggerReplay { // what was retried fails once more
			f.finish(f.outcome(f.a, q.ID, q.Attempts+1, hook.Exhausted))
		}
	}
	f.crash()
	f.fail(f.a, late[3:]...)
	j = f.complete(j, 2)
	if j.Moved != int64(len(early)) {
		f.Fatalf("the job moved %d; want %d", j.Moved, len(early))
	}
	for _, d := range late {
		if v := f.delivery(d); v.Status != hook.StatusFailed || !v.Replay.IsZero() {
			f.Fatalf("a delivery that failed after the start was retried: %+v", v)
		}
	}
	second := f.start(store.JobRetryFailed, f.a)
	if second.Existing || second.Total == 0 {
		f.Fatalf("the next job is %+v", second)
	}
	if second = f.complete(second, 100); second.Moved != second.Total {
		f.Fatalf("the next job is %+v", second)
	}
	f.wantCounts(f.a, "pending 12 failed 0 total 12; attempts 0+ "+itoa(12+countReplays(again))+"-")
}

func countReplays(c *store.Claimed) int {
	n := 0
	for _, q := range c.Deliveries {
		if q.Trigger == hook.TriggerReplay {
			n++
		}
	}
	return n
}

func jobDiscard(_ *testing.T, f *fixture) {
	ids := f.queue(f.a, 8)
	f.queue(f.b, 2)
	f.finish(f.outcome(f.a, ids[0], 1, hook.Succeeded), f.outcome(f.a, ids[1], 1, hook.Postponed), f.outcome(f.a, ids[2], 1, hook.Exhausted))
	j := f.start(store.JobDiscard, f.a)
	if j.Total != 6 {
		f.Fatalf("the job is %+v", j)
	}
	if j = f.complete(j, 2); j.Moved != 6 {
		f.Fatalf("the job is %+v", j)
	}
	for i, d := range ids {
		v := f.delivery(d)
		if i == 0 || i == 2 {
			if v.Failure != nil {
				f.Fatalf("a finished delivery was discarded: %+v", v)
			}
			continue
		}
		if v.Status != hook.StatusFailed || v.Failure == nil || v.Failure.Kind != hook.FailureCanceled || !v.Due.IsZero() {
			f.Fatalf("delivery %d is %+v", i, v)
		}
	}
	f.wantCounts(f.a, "pending 0 failed 7 total 8; attempts 1+ 2-")
	f.wantCounts(f.b, "pending 2 failed 0 total 2; attempts 0+ 0-")
}

func jobDiscardLater(_ *testing.T, f *fixture) {
	old := f.queue(f.a, 4)
	retried := f.queue(f.a, 1)[0]
	f.fail(f.a, retried)
	f.finish(f.outcome(f.a, old[3], 1, hook.Postponed))
	j := f.start(store.JobDiscard, f.a)
	fresh := f.queue(f.a, 40) // in the same millisecond
	f.retry(retried)
	if j = f.complete(j, 1); j.Moved != 4 || j.Total != 4 {
		f.Fatalf("the job is %+v", j)
	}
	for _, d := range append(fresh, retried) {
		if v := f.delivery(d); v.Status.Done() {
			f.Fatalf("what came after the start was discarded: %+v", v)
		}
	}
}

func jobDiscardHeld(_ *testing.T, f *fixture) {
	ids := f.queue(f.a, 5)
	j := f.start(store.JobDiscard, f.a)
	for range 3 {
		j = f.step(j, 10, ids[1], ids[3])
	}
	if j.Done || j.Moved != 3 {
		f.Fatalf("with two held the job is %+v", j)
	}
	f.finish(f.outcome(f.a, ids[1], 1, hook.Succeeded), f.outcome(f.a, ids[3], 1, hook.Postponed))
	if j = f.complete(j, 10); j.Moved != 4 {
		f.Fatalf("the job is %+v", j)
	}
	f.wantCounts(f.a, "pending 0 failed 4 total 5; attempts 1+ 1-")
}

func jobExisting(_ *testing.T, f *fixture) {
	f.fail(f.a, f.queue(f.a, 2)...)
	f.queue(f.a, 1)
	first := f.start(store.JobRetryFailed, f.a)
	f.crash()
	again := f.start(store.JobRetryFailed, f.a)
	if !again.Existing || again.ID != first.ID || again.Total != 2 {
		f.Fatalf("the second start answered %+v; want the first, %+v", again, first)
	}
	if other := f.start(store.JobDiscard, f.a); other.Existing || other.ID == first.ID {
		f.Fatalf("a job of another kind answered %+v", other)
	}
	f.complete(first, 9)
	f.fail(f.a, f.queue(f.a, 1)...)
	if next := f.start(store.JobRetryFailed, f.a); next.Existing || next.ID == first.ID || next.Total != 1 {
		f.Fatalf("a start after the end answered %+v", next)
	}
}

func jobOfNone(_ *testing.T, f *fixture) {
	f.queue(f.a, 1)
	j := f.start(store.JobRetryFailed, f.a)
	if !j.Done || j.Total != 0 {
		f.Fatalf("the job is %+v", j)
	}
	f.equal("running", f.running(), []id.Replay(nil))
	f.step(j, 5)
	f.wantCounts(f.a, "pending 1 failed 0 total 1; attempts 0+ 0-")
}

func jobUnknown(_ *testing.T, f *fixture) {
	_, err := f.store.StartJob(f.ctx, store.JobParams{ID: f.makeID(), Tenant: f.tenant, Webhook: f.makeID(), Kind: store.JobDiscard, Now: f.now})
	f.wantCode(err, hook.CodeNotFound)
	_, err = f.store.Job(f.ctx, f.tenant, f.makeID())
	f.wantCode(err, hook.CodeNotFound)
	_, err = f.store.StepJob(f.ctx, store.JobStepParams{Tenant: f.tenant, Job: f.makeID(), Limit: 5, Now: f.now})
	f.wantCode(err, hook.CodeNotFound)
}

func (f *fixture) running() []id.Replay {
	f.Helper()
	jobs, err := f.store.RunningJobs(f.ctx)
	f.must(err)
	var ids []id.Replay
	for _, j := range jobs {
		ids = append(ids, j.ID)
	}
	return ids
}

func jobDeleteWebhook(_ *testing.T, f *fixture) {
	ids := f.queue(f.a, 3)
	f.finish(f.outcome(f.a, ids[0], 1, hook.Succeeded))
	p := store.DeleteWebhookParams{Tenant: f.tenant, Webhook: f.a, Job: f.makeID(), Now: f.now}
	v, err := f.store.DeleteWebhook(f.ctx, p)
	f.must(err)
	if v != f.version[f.tenant]+1 {
		f.Fatalf("the version is %d; want %d", v, f.version[f.tenant]+1)
	}
	f.crash()
	f.equal("running", f.running(), []id.Replay{p.Job})
	j, err := f.store.Job(f.ctx, f.tenant, p.Job)
	f.must(err)
	if j.Kind != store.JobDiscard || j.Total != 2 || j.Webhook != f.a {
		f.Fatalf("the job is %+v", j)
	}
	f.complete(j, 1)
	for i, d := range ids {
		want := hook.StatusFailed
		if i == 0 {
			want = hook.StatusSuccess
		}
		if got := f.delivery(d).Status; got != want {
			f.Fatalf("delivery %d is %s; want %s", i, got, want)
		}
	}
	if _, err := f.store.WebhookRevision(f.ctx, f.tenant, f.a, 1); err != nil {
		f.Fatalf("the revision of a deleted webhook: %v", err)
	}
	_, err = f.store.DeleteWebhook(f.ctx, p)
	f.wantCode(err, hook.CodeNotFound)
}

func jobDeleteEndsRetry(_ *testing.T, f *fixture) {
	f.fail(f.a, f.queue(f.a, 4)...)
	retry := f.step(f.start(store.JobRetryFailed, f.a), 2)
	p := store.DeleteWebhookParams{Tenant: f.tenant, Webhook: f.a, Job: f.makeID(), Now: f.now}
	_, err := f.store.DeleteWebhook(f.ctx, p)
	f.must(err)
	f.equal("running", f.running(), []id.Replay{p.Job})
	if retry = f.step(retry, 5); !retry.Done || retry.Moved != 2 {
		f.Fatalf("the retry went on: %+v", retry)
	}
	j, err := f.store.Job(f.ctx, f.tenant, p.Job)
	f.must(err)
	f.complete(j, 5)
	f.wantCounts(f.a, "pending 0 failed 4 total 4; attempts 0+ 4-")
}

func jobList(_ *testing.T, f *fixture) {
	f.queue(f.a, 1)
	f.queue(f.b, 1)
	first := f.start(store.JobDiscard, f.b)
	f.now = f.now.Add(time.Second)
	second := f.start(store.JobDiscard, f.a)
	f.equal("running", f.running(), []id.Replay{first.ID, second.ID})
	f.complete(first, 5)
	f.equal("running", f.running(), []id.Replay{second.ID})
}
