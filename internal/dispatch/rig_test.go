package dispatch_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plinqx/hypha/internal/catalog"
	"github.com/plinqx/hypha/internal/commit"
	"github.com/plinqx/hypha/internal/dispatch"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/ingest"
	"github.com/plinqx/hypha/internal/retry"
	"github.com/plinqx/hypha/internal/send"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/signature"
)

// row is a delivery as the disk has it.
type row struct {
	store.Queued
	webhook  id.Webhook
	tenant   id.Tenant
	status   hook.Status
	failure  *hook.Failure
	attempts []hook.Attempt
}

// disk is the store, as far as the dispatcher and its company need it. What is
// on it survives the rig that uses it.
type disk struct {
	mu       sync.Mutex
	rows     map[id.Delivery]*row
	order    []id.Delivery
	versions map[id.Tenant]int64
	webhooks map[id.Webhook]store.WebhookRow
	vault    map[string]store.VaultRow

	// down makes every write fail, blind every read of the configuration, stuck
	// every claim.
	down, blind, stuck bool
	held               chan struct{} // if set, Apply waits for it to be closed
}

func newDisk() *disk {
	return &disk{rows: make(map[id.Delivery]*row), versions: make(map[id.Tenant]int64), webhooks: make(map[id.Webhook]store.WebhookRow), vault: make(map[string]store.VaultRow)}
}

func away() error { return hook.Unavailable(time.Second, nil, "The store is away") }

func (d *disk) Apply(_ context.Context, b *store.Batch) error {
	if d.held != nil {
		<-d.held
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down {
		return away()
	}
	for _, a := range b.Accepts {
		a.Err, a.Results = nil, nil
		if d.versions[a.Tenant] != a.ConfigVersion {
			a.Err = store.ErrConfigMoved
			continue
		}
		for i := range a.Events {
			e := &a.Events[i]
			public := cmp.Or(e.GivenID, e.ID.String())
			a.Results = append(a.Results, store.AcceptResult{PublicID: public, Deliveries: len(e.Deliveries)})
			for _, nd := range e.Deliveries {
				d.put(&row{tenant: a.Tenant, webhook: nd.Webhook, Queued: store.Queued{
					ID: nd.ID, Event: e.ID, PublicEventID: public, EventType: e.Type, Body: e.Body,
					Trigger: nd.Trigger, Due: e.Due, ExpiresAt: e.ExpiresAt,
				}})
			}
		}
	}
	for _, o := range b.Outcomes {
		d.outcome(o)
	}
	return nil
}

func (d *disk) put(r *row) {
	d.rows[r.ID] = r
	d.order = append(d.order, r.ID)
}

func (d *disk) outcome(o *store.Outcome) {
	r := d.rows[o.Delivery]
	tried := o.Attempt.Number > 0
	if tried {
		r.attempts = append(r.attempts, o.Attempt)
	}
	next, ok := r.status.Next(o.Change, tried)
	if o.Matched = ok && (!tried || r.Attempts == o.Attempt.Number-1); !o.Matched {
		return
	}
	r.status, r.failure = next, o.Failure
	if tried {
		r.Attempts, r.Try, r.Due = r.Attempts+1, o.Try, o.Due
	}
}

// queue lists what is unfinished of a webhook, in the order of claims.
func (d *disk) queue(webhook id.Webhook) []*row {
	var rows []*row
	for _, name := range d.order {
		if r := d.rows[name]; r.webhook == webhook && !r.status.Done() {
			rows = append(rows, r)
		}
	}
	slices.SortStableFunc(rows, func(a, b *row) int { return a.Due.Compare(b.Due) })
	return rows
}

func (d *disk) Claim(_ context.Context, p store.ClaimParams) (*store.Claimed, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stuck {
		return nil, away()
	}
	out, size := &store.Claimed{}, 0
	for _, r := range d.queue(p.Webhook) {
		switch {
		case p.Held(r.ID):
		case r.Due.After(p.Now):
			if out.NextDue.IsZero() {
				out.NextDue = r.Due
			}
		case len(out.Deliveries) >= p.Limit || len(out.Deliveries) > 0 && size+len(r.Body) > p.MaxBytes:
			out.More = true
			return out, nil
		default:
			size += len(r.Body)
			out.Deliveries = append(out.Deliveries, r.Queued)
		}
	}
	return out, nil
}

func (d *disk) Expire(_ context.Context, p store.ExpireParams) (*store.ExpireResult, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stuck {
		return nil, away()
	}
	out := &store.ExpireResult{}
	for _, r := range d.queue(p.Webhook) {
		switch {
		case !r.ExpiresAt.After(p.Now) && !p.Held(r.ID) && out.Expired < p.Limit:
			r.status, r.failure = hook.StatusFailed, &hook.Failure{Kind: hook.FailureExpired}
			out.Expired++
		case out.Next.IsZero() || r.ExpiresAt.Before(out.Next):
			out.Next = r.ExpiresAt
		}
	}
	return out, nil
}

func (d *disk) Backlog(context.Context) ([]store.BacklogLane, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var lanes []store.BacklogLane
	for webhook, w := range d.webhooks {
		if q := d.queue(webhook); len(q) > 0 {
			lanes = append(lanes, store.BacklogLane{Tenant: w.Tenant, Webhook: webhook, Due: q[0].Due})
		}
	}
	return lanes, nil
}

func (d *disk) TenantConfig(_ context.Context, tenant id.Tenant) (*store.TenantConfig, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.blind {
		return nil, away()
	}
	c := &store.TenantConfig{Tenant: hook.Tenant{ID: tenant}, Version: d.versions[tenant]}
	for _, w := range d.webhooks {
		if w.Tenant == tenant {
			c.Webhooks = append(c.Webhooks, w)
		}
	}
	for _, v := range d.vault {
		if v.Tenant == tenant {
			c.Vault = append(c.Vault, v)
		}
	}
	return c, nil
}

// counts tells how many deliveries have each status.
func (d *disk) counts() map[hook.Status]int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := make(map[hook.Status]int)
	for _, r := range d.rows {
		n[r.status]++
	}
	return n
}

// open seals nothing: what is told here is not how secrets are kept.
type open struct{}

func (open) Seal(plain, _ []byte) ([]byte, error)  { return plain, nil }
func (open) Open(sealed, _ []byte) ([]byte, error) { return sealed, nil }

// sent is a request as the network saw it.
type sent struct {
	host     string
	event    string
	delivery string
	at       time.Duration // since the rig was made
}

// rig is a dispatcher and its company, with a network that is made up.
type rig struct {
	*dispatch.Dispatcher
	t         *testing.T
	disk      *disk
	catalog   *catalog.Catalog
	committer *commit.Committer
	ingest    *ingest.Ingest
	begin     time.Time
	stopped   bool

	mu        sync.Mutex
	receivers map[string]func(ctx context.Context, r send.Request) *hook.Attempt
	log       []sent
	inFlight  map[string]bool // deliveries
	most      int             // of inFlight
	memory    int             // the most that was taken
}

// run makes a rig in a bubble of fake time and stops it at the end.
func run(t *testing.T, change func(*dispatch.Options), do func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, newDisk(), change)
		defer r.stop(context.Background())
		do(t, r)
	})
}

func newRig(t *testing.T, d *disk, change func(*dispatch.Options)) *rig {
	t.Helper()
	r := &rig{t: t, disk: d, begin: time.Now(), catalog: catalog.New(d, open{}),
		receivers: make(map[string]func(context.Context, send.Request) *hook.Attempt), inFlight: make(map[string]bool)}
	prefix, err := signature.ParsePrefix("X-Plinqx")
	if err != nil {
		t.Fatal(err)
	}
	o := dispatch.Options{
		Store: d, Catalog: r.catalog, Sender: r, Holder: r, Schedule: retry.DefaultSchedule(),
		Prefix: prefix, UserAgent: "Hypha-Webhooks/test", Now: time.Now, Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError})),
		Chance: func() float64 { return 0.5 }, // no jitter
	}
	if change != nil {
		change(&o)
	}
	// Outcomes hold attempts back when there are as many as slots, so they are
	// not to wait for company that long.
	r.committer = commit.New(commit.Options{Store: d, FlushOutcomes: max(1, cmp.Or(o.Slots, dispatch.DefaultSlots)/2), Recorded: func(o []*store.Outcome) { r.Recorded(o) }})
	o.Committer = r.committer
	r.Dispatcher = dispatch.New(o)
	r.catalog.Observe(r.Dispatcher)
	r.ingest = ingest.New(ingest.Options{Catalog: r.catalog, Committer: r.committer, Lanes: r.Dispatcher, Now: time.Now, MaxAge: cmp.Or(o.MaxAge, dispatch.DefaultMaxAge)})
	r.committer.Start()
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) stop(ctx context.Context) {
	r.t.Helper()
	if r.stopped {
		return
	}
	r.stopped = true
	r.Stop(ctx)
	if err := r.committer.Close(context.Background()); err != nil {
		r.t.Error(err)
	}
	synctest.Wait()
	if g := r.Gauge(); g.InFlight != 0 {
		r.t.Errorf("%d in flight after the end", g.InFlight)
	}
}

// rest waits until nothing happens any more within a time, and checks that no
// memory is taken for nothing.
func (r *rig) rest(d time.Duration) {
	r.t.Helper()
	time.Sleep(d) // of the fake clock
	synctest.Wait()
	if g := r.Gauge(); g.Waiting == 0 && g.Memory != 0 || g.Memory < 0 || g.InFlight < 0 {
		r.t.Errorf("at rest: %+v", g)
	}
}

// Send implements dispatch.Sender.
func (r *rig) Send(ctx context.Context, q send.Request) *hook.Attempt {
	delivery := q.Header.Get("X-Plinqx-Delivery")
	memory := r.Gauge().Memory
	r.mu.Lock()
	if r.inFlight[delivery] {
		r.t.Errorf("%s is sent twice at the same time", delivery)
	}
	r.inFlight[delivery] = true
	r.most = max(r.most, len(r.inFlight))
	r.memory = max(r.memory, memory)
	begin := time.Now()
	r.log = append(r.log, sent{q.URL.Host, q.Header.Get(signature.HeaderID), delivery, begin.Sub(r.begin)})
	receive := r.receivers[q.URL.Host]
	r.mu.Unlock()
	if receive == nil {
		receive = answers(200)
	}
	a := receive(ctx, q)
	a.StartedAt, a.Duration = begin, time.Since(begin)
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.inFlight, delivery)
	return a
}

func (r *rig) receive(host string, f func(context.Context, send.Request) *hook.Attempt) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.receivers[host] = f
}

// to lists the events that a host was sent, in their order.
func (r *rig) to(host string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var events []string
	for _, s := range r.log {
		if s.host == host {
			events = append(events, s.event)
		}
	}
	return events
}

// allTo lists the events that a host was sent, in the order of their numbers:
// attempts that are made at once have none.
func (r *rig) allTo(host string) []string {
	all := r.to(host)
	slices.SortFunc(all, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) })
	return all
}

// times lists when a host was sent something.
func (r *rig) times(host string) []time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	var at []time.Duration
	for _, s := range r.log {
		if s.host == host {
			at = append(at, s.at)
		}
	}
	return at
}

// answers answers with a status at once.
func answers(status int) func(context.Context, send.Request) *hook.Attempt {
	return after(0, status)
}

// after answers with a status after a time, unless the attempt ends first.
func after(d time.Duration, status int) func(context.Context, send.Request) *hook.Attempt {
	return func(ctx context.Context, q send.Request) *hook.Attempt {
		if d > 0 {
			timer := time.NewTimer(min(d, q.Timeout))
			defer timer.Stop()
			select {
			case <-ctx.Done():
				return failed(hook.FailureTimeout)
			case <-timer.C:
			}
		}
		if d >= q.Timeout {
			return failed(hook.FailureTimeout)
		}
		a := &hook.Attempt{StatusCode: status, Header: http.Header{}}
		if status < 200 || status > 299 {
			a.Failure = &hook.Failure{Kind: hook.FailureStatus, Message: "it was not a 2xx"}
		}
		return a
	}
}

func failed(kind hook.FailureKind) *hook.Attempt {
	return &hook.Attempt{Failure: &hook.Failure{Kind: kind}}
}

func refuses(context.Context, send.Request) *hook.Attempt { return failed(hook.FailureConnect) }

// hangs answers nothing until the attempt's time is over.
func hangs(ctx context.Context, q send.Request) *hook.Attempt { return after(time.Hour, 200)(ctx, q) }

func retryAfter(status int, header string) func(context.Context, send.Request) *hook.Attempt {
	return func(ctx context.Context, q send.Request) *hook.Attempt {
		a := answers(status)(ctx, q)
		a.Header.Set("Retry-After", header)
		return a
	}
}

func tenant(n byte) id.Tenant { return id.Tenant{n} }

// webhook makes a webhook that wants the type "to.<host>".
func (r *rig) webhook(n byte, host string) id.Webhook {
	r.t.Helper()
	webhook, err := id.NewWebhook()
	if err != nil {
		r.t.Fatal(err)
	}
	r.put(hook.Webhook{
		ID: webhook, Tenant: tenant(n), Revision: 1, URL: "https://" + host + "/", Events: []string{"to." + host},
		Enabled: true, Timeout: time.Minute, Secrets: []hook.Secret{{Value: "a-secret-of-sixteen"}},
	})
	return webhook
}

// put stores a webhook and tells the catalogue, as the registry does.
func (r *rig) put(w hook.Webhook) {
	r.t.Helper()
	row, err := r.catalog.Seal(&w)
	if err != nil {
		r.t.Fatal(err)
	}
	r.disk.mu.Lock()
	r.disk.versions[w.Tenant]++
	version := r.disk.versions[w.Tenant]
	r.disk.webhooks[w.ID] = row
	r.disk.mu.Unlock()
	r.catalog.PutWebhook(version, &w)
}

func (r *rig) change(n byte, webhook id.Webhook, f func(*hook.Webhook)) {
	r.t.Helper()
	held, err := r.catalog.Webhook(context.Background(), tenant(n), webhook)
	if err != nil {
		r.t.Fatal(err)
	}
	w := *held
	w.Revision++
	f(&w)
	r.put(w)
}

func (r *rig) enable(n byte, webhook id.Webhook, on bool) {
	r.change(n, webhook, func(w *hook.Webhook) { w.Enabled = on })
}

func (r *rig) delete(n byte, webhook id.Webhook) {
	r.disk.mu.Lock()
	r.disk.versions[tenant(n)]++
	version := r.disk.versions[tenant(n)]
	delete(r.disk.webhooks, webhook)
	r.disk.mu.Unlock()
	r.catalog.DeleteWebhook(version, tenant(n), webhook)
}

// secret keeps a vault secret and tells the catalogue, as the vault does.
func (r *rig) secret(n byte, name, value string) {
	r.t.Helper()
	r.disk.mu.Lock()
	v := hook.VaultSecret{Tenant: tenant(n), ID: id.VaultSecret([]byte(name + "----------------")[:16]), Name: name, Revision: r.disk.vault[name].Revision + 1, Value: value}
	row, err := r.catalog.SealVault(&v)
	if err != nil {
		r.t.Fatal(err)
	}
	r.disk.versions[v.Tenant]++
	version := r.disk.versions[v.Tenant]
	r.disk.vault[name] = row
	r.disk.mu.Unlock()
	r.catalog.PutVaultSecret(version, &v)
}

// Pause implements dispatch.Holder.
func (r *rig) Pause(_ context.Context, tenant id.Tenant, webhook id.Webhook, until time.Time) error {
	r.disk.mu.Lock()
	row, ok := r.disk.webhooks[webhook]
	if row.PausedUntil = until; ok {
		r.disk.webhooks[webhook] = row
	}
	r.disk.mu.Unlock()
	if !ok {
		return hook.NotFound("Webhook")
	}
	r.catalog.Pause(tenant, webhook, until)
	return nil
}

// Disable implements dispatch.Holder.
func (r *rig) Disable(_ context.Context, tenant id.Tenant, webhook id.Webhook, reason hook.DisabledReason) error {
	r.change(tenant[0], webhook, func(w *hook.Webhook) { w.Enabled, w.DisabledReason = false, reason })
	return nil
}

// publish publishes events e<from>..e<from+n-1> to a host's webhook.
func (r *rig) publish(n byte, host string, from, count int) {
	r.t.Helper()
	for i := from; i < from+count; i++ {
		if err := r.tryPublish(n, host, i, `1`); err != nil {
			r.t.Fatal(err)
		}
	}
}

func (r *rig) tryPublish(n byte, host string, i int, data string) error {
	got, err := r.ingest.Publish(context.Background(), ingest.Request{
		Tenant: tenant(n), Authorize: func(*catalog.Snapshot) error { return nil },
		Events: []ingest.Event{{ID: fmt.Sprintf("e%d", i), Type: "to." + host, Data: []byte(data)}},
	})
	if err == nil && got[0].Deliveries == 0 {
		return errors.New("nobody wanted it")
	}
	return err
}

// test makes a test-send.
func (r *rig) test(ctx context.Context, n byte, webhook id.Webhook) (*hook.Attempt, error) {
	_, a, err := r.ingest.Test(ctx, tenant(n), webhook, func(*catalog.Snapshot) error { return nil })
	return a, err
}

// events are the names of events from..from+n-1.
func events(from, n int) []string {
	var names []string
	for i := from; i < from+n; i++ {
		names = append(names, fmt.Sprintf("e%d", i))
	}
	return names
}
