package storetest

import (
	"cmp"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

func modelTests() tests {
	return tests{
		"any sequence of what can happen to deliveries": modelSequence,
	}
}

// modelDelivery is what the model knows of a delivery.
type modelDelivery struct {
	id       id.Delivery
	webhook  id.Webhook
	status   hook.Status
	attempts int
	try      int
	due      time.Time
	expires  time.Time
	trigger  hook.Trigger
	replay   id.Replay
	failure  hook.FailureKind
}

// modelJob is a running job, with the set that it stands for written down.
type modelJob struct {
	store.Job
	left map[id.Delivery]bool
}

// model is a store in memory, plain enough to be believed.
type model struct {
	f          *fixture
	deliveries []*modelDelivery
	jobs       []*modelJob
	held       map[id.Delivery]bool
	good, bad  map[id.Webhook]int64
}

func modelSequence(t *testing.T, f *fixture) {
	rapid.Check(t, func(t *rapid.T) {
		g := *f
		g.tb = t
		g.tenant = g.newTenant()
		g.a, g.b = g.newWebhook(g.tenant), g.newWebhook(g.tenant)
		m := &model{f: &g, held: map[id.Delivery]bool{}, good: map[id.Webhook]int64{}, bad: map[id.Webhook]int64{}}
		t.Repeat(map[string]func(*rapid.T){
			// Not after each step: a look may change what a driver does next.
			"": func(t *rapid.T) {
				if rapid.IntRange(0, 3).Draw(t, "look") == 0 {
					m.check(t)
				}
			},
			"accept":  m.accept,
			"claim":   m.claim,
			"outcome": m.outcome,
			"retry":   m.retry,
			"cancel":  m.cancel,
			"expire":  m.expire,
			"start":   m.start,
			"step":    m.step,
			"wait": func(t *rapid.T) {
				g.now = g.now.Add(time.Duration(rapid.IntRange(1, 7200).Draw(t, "seconds")) * time.Second)
			},
			"crash": func(t *rapid.T) {
				if rapid.IntRange(0, 3).Draw(t, "now") != 0 {
					return // it takes as long as many others
				}
				g.crash()
				clear(m.held)
			},
		})
		m.check(t)
		f.store, f.ids = g.store, g.ids
	})
}

func (m *model) webhook(t *rapid.T) id.Webhook {
	return rapid.SampledFrom([]id.Webhook{m.f.a, m.f.b}).Draw(t, "webhook")
}

func (m *model) any(t *rapid.T) *modelDelivery {
	if len(m.deliveries) == 0 {
		t.Skip("nothing is there yet")
	}
	return rapid.SampledFrom(m.deliveries).Draw(t, "delivery")
}

// leave takes a delivery out of the sets of running jobs: it is something new
// from here on.
func (m *model) leave(d *modelDelivery) {
	for _, j := range m.jobs {
		delete(j.left, d.id)
	}
}

func (m *model) end(d *modelDelivery, status hook.Status) {
	d.status, d.due = status, time.Time{}
	delete(m.held, d.id)
	m.leave(d)
}

func (m *model) ask(d *modelDelivery, trigger hook.Trigger, replay id.Replay, expires time.Time) {
	d.status, _ = d.status.Next(hook.Asked, d.attempts > 0)
	d.try, d.due, d.expires, d.trigger, d.replay, d.failure = 0, m.f.now, expires, trigger, replay, ""
	m.leave(d)
}

func (m *model) accept(t *rapid.T) {
	r := m.f.request()
	life := time.Duration(rapid.IntRange(1, 10).Draw(t, "hours")) * time.Hour
	for range rapid.IntRange(1, 4).Draw(t, "events") {
		e := m.f.event(m.webhook(t))
		e.ExpiresAt = m.f.now.Add(life)
		d := &e.Deliveries[0]
		d.Held = m.f.held && rapid.Bool().Draw(t, "held")
		r.Events = append(r.Events, e)
		if d.Held && rapid.Bool().Draw(t, "kept") { // else it was given back
			m.held[d.ID] = true
		}
		m.deliveries = append(m.deliveries, &modelDelivery{id: d.ID, webhook: d.Webhook, due: m.f.now, expires: e.ExpiresAt, trigger: d.Trigger})
	}
	m.f.accept(r)
}

// due are the free deliveries of a webhook in the order of their claim.
func (m *model) free(w id.Webhook) []*modelDelivery {
	var out []*modelDelivery
	for _, d := range m.deliveries {
		if d.webhook == w && !d.status.Done() && !m.held[d.id] {
			out = append(out, d)
		}
	}
	slices.SortFunc(out, func(a, b *modelDelivery) int { return cmp.Or(a.due.Compare(b.due), a.id.Compare(b.id)) })
	return out
}

func (m *model) claim(t *rapid.T) {
	w, limit := m.webhook(t), rapid.IntRange(1, 4).Draw(t, "limit")
	got, err := m.f.store.Claim(m.f.ctx, store.ClaimParams{
		Tenant: m.f.tenant, Webhook: w, Now: m.f.now, Limit: limit, MaxBytes: 1 << 20, Held: func(d id.Delivery) bool { return m.held[d] },
	})
	m.f.must(err)
	var want []id.Delivery
	more := false
	var next time.Time
	for _, d := range m.free(w) {
		switch {
		case d.due.After(m.f.now):
			if next.IsZero() {
				next = d.due
			}
		case len(want) < limit:
			want = append(want, d.id)
		default:
			more = true
		}
	}
	if got.More != more || !got.NextDue.Equal(next) {
		t.Fatalf("more is %v and the next is due at %v; want %v, %v", got.More, got.NextDue, more, next)
	}
	m.f.equal("claimed", claimed(got), want)
	for _, d := range want {
		m.held[d] = true
	}
}

func (m *model) outcome(t *rapid.T) {
	d := m.any(t)
	change := rapid.SampledFrom([]hook.Change{hook.Succeeded, hook.Postponed, hook.Exhausted, hook.Expired, hook.Canceled}).Draw(t, "change")
	number := d.attempts + 1
	if rapid.IntRange(0, 9).Draw(t, "stale") == 0 {
		number += rapid.IntRange(1, 3).Draw(t, "ahead")
		change = hook.Succeeded
	}
	if d.status.Done() {
		change = hook.Expired // or the late attempt would be counted when it is retried
	}
	o := m.f.outcome(d.webhook, d.id, number, change)
	o.Try = d.try + 1
	noAttempt := change == hook.Expired || change == hook.Canceled
	if noAttempt {
		o.Attempt = hook.Attempt{}
		o.Failure = &hook.Failure{Kind: hook.FailureExpired, Message: "too old"}
	}
	want := !d.status.Done() && (noAttempt || number == d.attempts+1)
	if !want && !noAttempt {
		return // what a stale attempt leaves has tests of its own
	}
	m.f.apply(&store.Batch{Outcomes: []*store.Outcome{o}})
	if o.Matched != want {
		t.Fatalf("outcome %d of a delivery that is %s with %d attempts: matched is %v", change, d.status, d.attempts, o.Matched)
	}
	if !want {
		return
	}
	if !noAttempt {
		d.attempts, d.try = number, d.try+1
		d.failure = ""
		if change == hook.Succeeded {
			m.good[d.webhook]++
		} else {
			m.bad[d.webhook]++
		}
	} else {
		d.failure = hook.FailureExpired
	}
	status, _ := d.status.Next(change, true)
	if status.Done() {
		m.end(d, status)
		return
	}
	d.status, d.due, d.trigger = status, o.Due, hook.TriggerAuto
	delete(m.held, d.id)
}

func (m *model) retry(t *rapid.T) {
	d := m.any(t)
	if m.held[d.id] {
		return // it is being sent: the caller knows
	}
	m.f.retry(d.id)
	m.ask(d, hook.TriggerManual, id.Replay{}, m.f.now.Add(time.Hour))
}

func (m *model) cancel(t *rapid.T) {
	d := m.any(t)
	_, err := m.f.store.CancelDelivery(m.f.ctx, m.f.tenant, d.id, m.f.now)
	if d.status.Done() {
		m.f.wantCode(err, hook.CodeConflict)
		return
	}
	m.f.must(err)
	m.end(d, hook.StatusFailed)
	d.failure = hook.FailureCanceled
}

func (m *model) expire(t *rapid.T) {
	w, limit := m.webhook(t), rapid.IntRange(1, 5).Draw(t, "limit")
	got, err := m.f.store.Expire(m.f.ctx, store.ExpireParams{
		Tenant: m.f.tenant, Webhook: w, Now: m.f.now, Limit: limit, Held: func(d id.Delivery) bool { return m.held[d] },
	})
	m.f.must(err)
	var unfinished []*modelDelivery
	for _, d := range m.deliveries {
		if d.webhook == w && !d.status.Done() {
			unfinished = append(unfinished, d)
		}
	}
	slices.SortFunc(unfinished, func(a, b *modelDelivery) int { return cmp.Or(a.expires.Compare(b.expires), a.id.Compare(b.id)) })
	var want store.ExpireResult
	for _, d := range unfinished {
		old := !d.expires.After(m.f.now) && !m.held[d.id]
		if old && want.Expired < limit {
			want.Expired++
			m.end(d, hook.StatusFailed)
			d.failure = hook.FailureExpired
			continue
		}
		want.More = want.More || old
		if want.Next.IsZero() {
			want.Next = d.expires
		}
	}
	m.f.equal("expired", got, &want)
}

func (m *model) start(t *rapid.T) {
	w := m.webhook(t)
	kind := rapid.SampledFrom([]store.JobKind{store.JobRetryFailed, store.JobDiscard}).Draw(t, "kind")
	got := m.f.start(kind, w)
	for _, j := range m.jobs {
		if j.Webhook == w && j.Kind == kind {
			if !got.Existing || got.ID != j.ID {
				t.Fatalf("the start answered %+v; %s runs", got, j.ID)
			}
			return
		}
	}
	j := &modelJob{Job: *got, left: map[id.Delivery]bool{}}
	for _, d := range m.deliveries {
		if d.webhook == w && (kind == store.JobRetryFailed && d.status == hook.StatusFailed || kind == store.JobDiscard && !d.status.Done()) {
			j.left[d.id] = true
		}
	}
	if got.Existing || got.Total != int64(len(j.left)) || got.Done != (len(j.left) == 0) {
		t.Fatalf("the job is %+v; want one for %d", got, len(j.left))
	}
	if !got.Done {
		m.jobs = append(m.jobs, j)
	}
}

func (m *model) step(t *rapid.T) {
	if len(m.jobs) == 0 {
		t.Skip("no job runs")
	}
	i := rapid.IntRange(0, len(m.jobs)-1).Draw(t, "job")
	j, limit := m.jobs[i], rapid.IntRange(1, 4).Draw(t, "limit")
	var held []id.Delivery
	for d := range m.held {
		held = append(held, d)
	}
	before := j.Moved
	j.Job = *m.f.step(&j.Job, limit, held...)
	// Which ones of its set a step takes is its own affair: look.
	moved := int64(0)
	for _, d := range m.deliveries {
		if !j.left[d.id] {
			continue
		}
		now := m.f.delivery(d.id)
		switch {
		case now.Status == d.status:
		case j.Kind == store.JobRetryFailed:
			moved++
			m.ask(d, hook.TriggerReplay, j.ID, m.f.now.Add(time.Hour))
		default:
			if m.held[d.id] {
				t.Fatalf("a held delivery was discarded")
			}
			moved++
			m.end(d, hook.StatusFailed)
			d.failure = hook.FailureCanceled
		}
	}
	if j.Moved != before+moved || moved > int64(limit) {
		t.Fatalf("a step of %d says that it moved %d, and moved %d", limit, j.Moved-before, moved)
	}
	if j.Done {
		if len(j.left) > 0 {
			t.Fatalf("the job is done and %d of its deliveries are left", len(j.left))
		}
		m.jobs = slices.Delete(m.jobs, i, i+1)
	}
}

// check compares the store with the model.
func (m *model) check(t *rapid.T) {
	pending, failed, total := map[id.Webhook]int{}, map[id.Webhook]int{}, map[id.Webhook]int{}
	for _, d := range m.deliveries {
		got := m.f.delivery(d.id)
		kind := hook.FailureKind("")
		if got.Failure != nil {
			kind = got.Failure.Kind
		}
		if got.Status != d.status || got.Attempts != d.attempts || got.Try != d.try || !got.Due.Equal(d.due) || !got.ExpiresAt.Equal(d.expires) ||
			got.Trigger != d.trigger || got.Replay != d.replay || kind != d.failure || len(m.f.attempts(d.id)) != d.attempts {
			t.Fatalf("the delivery is %+v; want %+v", got, d)
		}
		for _, w := range []id.Webhook{d.webhook, {}} {
			total[w]++
			if d.status == hook.StatusFailed {
				failed[w]++
			}
			if !d.status.Done() {
				pending[w]++
			}
		}
	}
	m.good[id.Webhook{}], m.bad[id.Webhook{}] = m.good[m.f.a]+m.good[m.f.b], m.bad[m.f.a]+m.bad[m.f.b]
	for _, w := range []id.Webhook{{}, m.f.a, m.f.b} {
		m.f.wantCounts(w, fmt.Sprintf("pending %d failed %d total %d; attempts %d+ %d-", pending[w], failed[w], total[w], m.good[w], m.bad[w]))
	}
}
