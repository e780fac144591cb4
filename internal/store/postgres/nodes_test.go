package postgres

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// longest is how long a test waits for what must happen.
const longest = 30 * time.Second

// nodes are processes that share a database, with a tenant and a webhook.
type nodes struct {
	t       *testing.T
	url     string
	tenant  id.Tenant
	webhook id.Webhook
	version int64
}

func newNodes(t *testing.T) *nodes {
	n := &nodes{t: t, url: server.Reused(t, wipe)}
	s := n.join()
	n.tenant = made(t, id.NewTenant)
	must(t, s.InsertTenant(t.Context(), hook.Tenant{ID: n.tenant, Name: "acme", CreatedAt: time.Now(), UpdatedAt: time.Now()}))
	n.webhook = n.newWebhook(s)
	must(t, s.Leave(t.Context()))
	return n
}

func (n *nodes) join() *Store { return openAt(n.t, n.url) }

func (n *nodes) newWebhook(s *Store) id.Webhook {
	n.t.Helper()
	w := made(n.t, id.NewWebhook)
	v, err := s.InsertWebhook(n.t.Context(), store.WebhookRow{Webhook: hook.Webhook{
		ID: w, Tenant: n.tenant, Revision: 1, URL: "https://example.com/", Events: []string{"*"}, Enabled: true, CreatedAt: time.Now(), UpdatedAt: time.Now(),
	}})
	must(n.t, err)
	n.version = v
	return w
}

// batch is events with a delivery each.
func (n *nodes) batch(count int, held bool) (*store.Batch, []id.Delivery) {
	n.t.Helper()
	a := &store.Accept{Tenant: n.tenant, ConfigVersion: n.version}
	var deliveries []id.Delivery
	for range count {
		d := made(n.t, id.NewDelivery)
		deliveries = append(deliveries, d)
		a.Events = append(a.Events, store.NewEvent{
			ID: made(n.t, id.NewEvent), Type: "a.b", Timestamp: time.Now(), Body: []byte("{}"), Due: time.Now(), ExpiresAt: time.Now().Add(time.Hour),
			Deliveries: []store.NewDelivery{{ID: d, Webhook: n.webhook, Trigger: hook.TriggerAuto, Held: held}},
		})
	}
	return &store.Batch{Accepts: []*store.Accept{a}}, deliveries
}

// accept takes events in.
func (n *nodes) accept(s *Store, count int, held bool) []id.Delivery {
	n.t.Helper()
	b, deliveries := n.batch(count, held)
	must(n.t, s.Apply(n.t.Context(), b))
	must(n.t, b.Accepts[0].Err)
	return deliveries
}

// claim claims all that is due.
func (n *nodes) claim(s *Store) []id.Delivery {
	n.t.Helper()
	c, err := s.Claim(n.t.Context(), n.claimParams())
	must(n.t, err)
	var out []id.Delivery
	for i := range c.Deliveries {
		out = append(out, c.Deliveries[i].ID)
	}
	return out
}

func (n *nodes) claimParams() store.ClaimParams {
	return store.ClaimParams{Tenant: n.tenant, Webhook: n.webhook, Now: time.Now().Add(time.Second), Limit: 1000, MaxBytes: 1 << 20}
}

func (n *nodes) success(d id.Delivery) *store.Outcome {
	return &store.Outcome{
		Tenant: n.tenant, Webhook: n.webhook, Delivery: d, Change: hook.Succeeded, Try: 1, At: time.Now(),
		Attempt: hook.Attempt{Number: 1, Trigger: hook.TriggerAuto, StartedAt: time.Now(), Duration: time.Millisecond, StatusCode: 200},
	}
}

func (n *nodes) beat(s *Store) *store.Pulse {
	n.t.Helper()
	p, err := s.Beat(n.t.Context())
	must(n.t, err)
	return p
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func made[T any](t testing.TB, f func() (T, error)) T {
	t.Helper()
	v, err := f()
	must(t, err)
	return v
}

func wantSame(t *testing.T, what string, got, want []id.Delivery) {
	t.Helper()
	got, want = slices.Clone(got), slices.Clone(want)
	slices.SortFunc(got, id.Delivery.Compare)
	slices.SortFunc(want, id.Delivery.Compare)
	if !slices.Equal(got, want) {
		t.Errorf("%s: %v; want %v", what, got, want)
	}
}

// wantFenced wants the error of a node whose lease was ended, as it leaves the
// package.
func wantFenced(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, store.ErrFenced) || hook.CodeOf(err) != hook.CodeUnavailable {
		t.Errorf("%s: error is %v; want ErrFenced, as %s", what, err, hook.CodeUnavailable)
	}
}

func TestLease(t *testing.T) {
	n := newNodes(t)
	a, b := n.join(), n.join()
	if a.Node() == b.Node() {
		t.Fatalf("both are node %d", a.Node())
	}
	first, second := n.beat(a), n.beat(a)
	if !second.Now.After(first.Now) {
		t.Errorf("the database's clock was at %v, and later at %v", first.Now, second.Now)
	}
	if len(first.Peers) != 1 || first.Peers[0].Node != b.Node() || first.Peers[0].Name != t.Name() || first.Peers[0].Silent < 0 || first.Peers[0].Silent > longest {
		t.Errorf("peers are %+v; want node %d", first.Peers, b.Node())
	}
	if ended, err := b.TakeOver(t.Context(), a.Node(), longest); ended || err != nil {
		t.Errorf("taking over from a node that lives: %v, %v", ended, err)
	}
	n.beat(a)
}

func TestDeadNodeIsFenced(t *testing.T) {
	n := newNodes(t)
	a, b := n.join(), n.join()
	held := n.accept(a, 2, true)
	if got := n.claim(b); len(got) != 0 {
		t.Fatalf("another node claimed %v of a node that lives", got)
	}
	takeOver(t, b, a.Node())

	late, _ := n.batch(1, true)
	outcome := n.success(held[0])
	_, claimErr := a.Claim(t.Context(), n.claimParams())
	_, beatErr := a.Beat(t.Context())
	_, expireErr := a.Expire(t.Context(), store.ExpireParams{Tenant: n.tenant, Webhook: n.webhook, Now: time.Now(), Limit: 10})
	for what, err := range map[string]error{
		"Apply of accepts":  a.Apply(t.Context(), late),
		"Apply of outcomes": a.Apply(t.Context(), &store.Batch{Outcomes: []*store.Outcome{outcome}}),
		"Claim":             claimErr,
		"Expire":            expireErr,
		"Beat":              beatErr,
		"SetPause":          a.SetPause(t.Context(), n.tenant, n.webhook, time.Now()),
		"Release":           a.Release(t.Context(), n.tenant, n.webhook, nil),
		"SetBreaker":        a.SetBreaker(t.Context(), n.tenant, n.webhook, time.Now()),
	} {
		wantFenced(t, what, err)
	}
	if ended, err := a.TakeOver(t.Context(), b.Node(), 0); ended || err != nil {
		t.Errorf("a node without a lease took over: %v, %v", ended, err)
	}
	if p := n.beat(b); len(p.Peers) != 0 {
		t.Errorf("peers are %+v; want none", p.Peers)
	}
	wantSame(t, "what the other node claims", n.claim(b), held)

	before := a.Node()
	must(t, a.Join(t.Context()))
	if a.Node() == before {
		t.Errorf("it is node %d as before", before)
	}
	wantSame(t, "what the node claims that is back", n.claim(a), nil)
	must(t, a.Apply(t.Context(), &store.Batch{Outcomes: []*store.Outcome{outcome}}))
	if outcome.Matched {
		t.Error("an outcome of another node's delivery matched")
	}
	fresh := n.accept(a, 1, true)
	outcome = n.success(fresh[0])
	must(t, a.Apply(t.Context(), &store.Batch{Outcomes: []*store.Outcome{outcome}}))
	if !outcome.Matched {
		t.Error("an outcome of the node's own delivery did not match")
	}
}

func TestOneOfManyTakesOver(t *testing.T) {
	n := newNodes(t)
	dead := n.join()
	held := n.accept(dead, 5, true)
	peers := []*Store{n.join(), n.join(), n.join()}
	type answer struct {
		ended bool
		err   error
	}
	answers := make(chan answer, len(peers))
	for _, s := range peers {
		go func() {
			ended, err := s.TakeOver(context.Background(), dead.Node(), 0)
			answers <- answer{ended, err}
		}()
	}
	winners := 0
	for range peers {
		a := <-answers
		must(t, a.err)
		if a.ended {
			winners++
		}
	}
	if winners != 1 {
		t.Errorf("%d nodes took over", winners)
	}
	wantSame(t, "what is claimed", append(n.claim(peers[0]), n.claim(peers[1])...), held)
}

func TestJobsOfDeadNode(t *testing.T) {
	n := newNodes(t)
	a, b := n.join(), n.join()
	n.accept(a, 3, false)
	job, err := a.StartJob(t.Context(), store.JobParams{ID: made(t, id.NewReplay), Tenant: n.tenant, Webhook: n.webhook, Kind: store.JobDiscard, Now: time.Now()})
	must(t, err)
	p := n.beat(b)
	if p.Orphans != 0 || !slices.Equal(p.Discards, []store.LaneKey{{Tenant: n.tenant, Webhook: n.webhook}}) {
		t.Errorf("another node hears of %d orphans and discards of %v", p.Orphans, p.Discards)
	}
	if jobs, err := b.RunningJobs(t.Context()); len(jobs) != 0 || err != nil {
		t.Errorf("another node works off %v, %v", jobs, err)
	}
	takeOver(t, b, a.Node())
	if p := n.beat(b); p.Orphans != 1 {
		t.Errorf("%d orphans; want 1", p.Orphans)
	}
	jobs, err := b.RunningJobs(t.Context())
	if err != nil || len(jobs) != 1 || jobs[0].ID != job.ID {
		t.Errorf("the node that took over works off %v, %v", jobs, err)
	}
	if p := n.beat(b); p.Orphans != 0 {
		t.Errorf("%d orphans; want 0", p.Orphans)
	}
}

func TestRelease(t *testing.T) {
	n := newNodes(t)
	a, b := n.join(), n.join()
	mine := n.accept(a, 3, true)
	must(t, a.Release(t.Context(), n.tenant, n.webhook, func(d id.Delivery) bool { return d == mine[1] }))
	wantSame(t, "what another node claims", n.claim(b), []id.Delivery{mine[0], mine[2]})
	must(t, a.Release(t.Context(), n.tenant, n.webhook, nil))
	wantSame(t, "what another node claims later", n.claim(b), append([]id.Delivery{mine[1]}, mine[0], mine[2]))
}

func TestLeave(t *testing.T) {
	n := newNodes(t)
	a, b := n.join(), n.join()
	held := n.accept(a, 2, true)
	left := a.Node()
	must(t, a.Leave(t.Context()))
	must(t, a.Leave(t.Context())) // once more changes nothing
	if p := n.beat(b); len(p.Peers) != 0 {
		t.Errorf("peers are %+v; want none", p.Peers)
	}
	if ended, err := b.TakeOver(t.Context(), left, 0); ended || err != nil {
		t.Errorf("taking over from a node that left: %v, %v", ended, err)
	}
	wantSame(t, "what is free", n.claim(b), held)
	late, _ := n.batch(1, true)
	wantFenced(t, "Apply", a.Apply(t.Context(), late))
}

func TestCloseLeaves(t *testing.T) {
	n := newNodes(t)
	a, b := n.join(), n.join()
	held := n.accept(a, 2, true)
	must(t, a.Close())
	if p := n.beat(b); len(p.Peers) != 0 {
		t.Errorf("peers are %+v; want none", p.Peers)
	}
	wantSame(t, "what is free", n.claim(b), held)
}

// A node that joins anew lets go of what it held, whether it was fenced or not.
func TestJoinAnew(t *testing.T) {
	n := newNodes(t)
	a, b := n.join(), n.join()
	held := n.accept(a, 2, true)
	must(t, a.Join(t.Context()))
	wantSame(t, "what is free", n.claim(b), held)
	if p := n.beat(b); len(p.Peers) != 1 || p.Peers[0].Node != a.Node() {
		t.Errorf("peers are %+v; want node %d alone", p.Peers, a.Node())
	}
}

func TestBeatTellsOfOthersChanges(t *testing.T) {
	n := newNodes(t)
	a, b := n.join(), n.join()
	lane := func() store.LaneChange {
		t.Helper()
		for _, l := range n.beat(b).Lanes {
			if l.Tenant == n.tenant && l.Webhook == n.webhook {
				return l
			}
		}
		t.Fatal("nothing is said of the lane")
		return store.LaneChange{}
	}
	change := func() store.TenantChange {
		t.Helper()
		for _, c := range n.beat(b).Tenants {
			if c.Tenant == n.tenant {
				return c
			}
		}
		t.Fatal("nothing is said of the tenant")
		return store.TenantChange{}
	}
	n.newWebhook(a)
	if c := change(); c.Version != n.version {
		t.Errorf("the tenant is at version %d; want %d", c.Version, n.version)
	}
	until := time.Now().Add(time.Minute).UTC().Truncate(time.Millisecond)
	must(t, a.SetPause(t.Context(), n.tenant, n.webhook, until))
	must(t, a.SetBreaker(t.Context(), n.tenant, n.webhook, until.Add(time.Second)))
	if l := lane(); !l.PausedUntil.Equal(until) || !l.BreakerUntil.Equal(until.Add(time.Second)) {
		t.Errorf("the lane is %+v; want it paused until %v, its breaker open for a second more", l, until)
	}
	must(t, a.SetPause(t.Context(), n.tenant, n.webhook, time.Time{}))
	if l := lane(); !l.PausedUntil.IsZero() || l.BreakerUntil.IsZero() {
		t.Errorf("the lane is %+v; want it to go on, and its breaker open", l)
	}
	must(t, a.SetBreaker(t.Context(), n.tenant, n.webhook, time.Time{}))
	if l := lane(); !l.PausedUntil.IsZero() || !l.BreakerUntil.IsZero() {
		t.Errorf("the lane is %+v; want it to go on", l)
	}
	c, err := b.TenantConfig(t.Context(), n.tenant)
	must(t, err)
	if i := slices.IndexFunc(c.Webhooks, func(w store.WebhookRow) bool { return w.ID == n.webhook }); !c.Webhooks[i].PausedUntil.IsZero() {
		t.Errorf("the webhook is paused until %v", c.Webhooks[i].PausedUntil)
	}
	must(t, a.SetBreaker(t.Context(), n.tenant, made(t, id.NewWebhook), until)) // it was deleted
	if lanes := n.beat(b).Lanes; len(lanes) != 1 {
		t.Errorf("lanes are %+v; want one", lanes)
	}
	must(t, a.DeleteTenant(t.Context(), n.tenant))
	if c := change(); c.Version != 0 {
		t.Errorf("the removed tenant is at version %d; want 0", c.Version)
	}
}

func TestNotices(t *testing.T) {
	n := newNodes(t)
	a, b := n.join(), n.join()
	hear := func() {
		t.Helper()
		select {
		case _, open := <-a.Notices():
			if !open {
				t.Fatal("notices ended")
			}
		case <-time.After(longest):
			t.Fatal("no notice came")
		}
	}
	hear() // that it listens: something may have been said before
	n.newWebhook(b)
	hear()
	must(t, b.SetBreaker(t.Context(), n.tenant, n.webhook, time.Now().Add(time.Minute)))
	hear()
	must(t, a.Close())
	for range a.Notices() {
	}
}

// frozen begins a transaction of a node as a process does that is halted in its
// middle.
func frozen(t *testing.T, n *nodes, node int64, halt func(*pgconn.PgConn)) {
	t.Helper()
	c, err := pgconn.Connect(t.Context(), n.url)
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = c.Close(ctx) // it was cut off
	})
	begin := func(text string, args ...string) {
		t.Helper()
		var values [][]byte
		for _, arg := range args {
			values = append(values, []byte(arg))
		}
		_, err := c.ExecParams(t.Context(), text, values, nil, nil, nil).Close()
		must(t, err)
	}
	begin("BEGIN")
	begin(sqlNodeShared, strconv.Itoa(int(nodeKey(node))))
	begin("UPDATE queue SET try = try WHERE node = $1", strconv.FormatInt(node, 10))
	halt(c)
}

// A process may be halted anywhere in a transaction. Where the database waits for its
// next statement, it gives up after some seconds; where it has read a part of what was
// sent together, it would wait for the rest as long as the connection is there.
func TestTakeOverFromFrozenNode(t *testing.T) {
	for name, halt := range map[string]func(*pgconn.PgConn){
		"between statements": func(*pgconn.PgConn) {},
		"within a batch": func(c *pgconn.PgConn) {
			f := c.Frontend()
			f.SendParse(&pgproto3.Parse{Query: "SELECT 1"})
			f.SendBind(&pgproto3.Bind{})
			f.SendExecute(&pgproto3.Execute{})
			f.Send(&pgproto3.Flush{}) // no Sync: more is to come
			must(t, f.Flush())
			for {
				m, err := f.Receive()
				must(t, err)
				if _, done := m.(*pgproto3.CommandComplete); done {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNodes(t)
			a, b := n.join(), n.join()
			held := n.accept(a, 2, true)
			frozen(t, n, a.Node(), halt)
			takeOver(t, b, a.Node())
			wantSame(t, "what is free", n.claim(b), held)
			_, err := a.Beat(t.Context())
			wantFenced(t, "Beat", err)
		})
	}
}

// A transaction of a node that is taken over in its middle leaves no trace.
func TestTransactionOfDeadNodeIsUndone(t *testing.T) {
	n := newNodes(t)
	a, b := n.join(), n.join()
	within, resume := make(chan struct{}), make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- a.write(context.Background(), []id.Tenant{n.tenant}, func(ctx context.Context, t *tx) error {
			if err := t.pause(ctx, n.tenant, n.webhook, time.Now().Add(time.Hour)); err != nil {
				return err
			}
			close(within)
			<-resume
			return nil
		})
	}()
	<-within
	takeOver(t, b, a.Node())
	close(resume)
	if err := <-ended; hook.CodeOf(err) != hook.CodeUnavailable {
		t.Errorf("it ended with %v; want %s", err, hook.CodeUnavailable)
	}
	if lanes := n.beat(b).Lanes; len(lanes) != 0 {
		t.Errorf("it left %+v", lanes)
	}
}
