package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net/http"
	"time"

	"github.com/plinqx/hypha/internal/auth"
	"github.com/plinqx/hypha/internal/catalog"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/ingest"
	"github.com/plinqx/hypha/internal/obs"
	"github.com/plinqx/hypha/internal/registry"
	"github.com/plinqx/hypha/internal/seal"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/internal/store/postgres"
	"github.com/plinqx/hypha/internal/store/sqlite"
)

// benchSeedCommand fills a data folder, or a database, with a history that nobody
// has waited for: events of the past weeks, and deliveries of them that have ended.
// It goes past HTTP and the lanes, into the store, as the committer does. A database
// is given its rows as a copy of another store is.
type benchSeedCommand struct {
	Data        string
	DatabaseURL string
	SecretKey   string

	Deliveries int           `default:"10000000"`
	Webhooks   int           `default:"10000"`
	Fanout     int           `default:"10"`
	Payload    int           `default:"512"`
	Age        time.Duration `default:"696h"`
	Failed     float64       `default:"0.02"`
}

// benchSeeded is what was made, printed as one line of JSON.
type benchSeeded struct {
	Events     int       `json:"events"`
	Deliveries int       `json:"deliveries"`
	Failed     int       `json:"failed"`
	Webhooks   int       `json:"webhooks"`
	Payload    int       `json:"payload"`
	From       time.Time `json:"from"`
	Until      time.Time `json:"until"`
}

// Run fills the folder or the database, which must not hold a store yet. The API
// key of its tenant is HYPHA_BOOTSTRAP_API_KEY.
func (c *benchSeedCommand) Run(p *process) (err error) {
	if c.Deliveries < 1 || c.Webhooks < 1 || c.Fanout < 1 || c.Fanout > c.Webhooks || c.Payload < 2 || c.Age <= 0 {
		return errors.New("bench-seed: deliveries, webhooks, fanout, payload and age must be positive, and the fanout not more than the webhooks")
	}
	s := &seeder{benchSeedCommand: c, chance: mathrand.New(mathrand.NewPCG(1, 2))}
	if err := s.open(p.ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.store.Close()) }()
	if err := s.tenant(p); err != nil {
		return err
	}
	if err := s.webhooks(p.ctx); err != nil {
		return err
	}
	made, err := s.history(p.ctx)
	if err != nil {
		return err
	}
	return json.NewEncoder(p.stdout).Encode(made)
}

// seedBatch is how many deliveries one transaction of an embedded store writes.
// seedBurst is how many
// events come one after another for the same webhooks, as when something of theirs
// is busy: one by one, every delivery would have a minute's counter of its own, and
// filling the store would take five times as long.
const (
	seedBatch = 2000
	seedBurst = 200
)

// seeder is one filling.
type seeder struct {
	*benchSeedCommand
	store   store.Store
	sink    seedSink
	keys    [][]byte // that seal secrets; nil takes those in the folder
	catalog *catalog.Catalog
	owner   id.Tenant
	version int64 // of its configuration
	hooks   []id.Webhook
	chance  *mathrand.Rand
	counter uint16 // of ids within a millisecond
	last    int64  // the millisecond
}

// seedSink is what writes the history: what all gives to add.
type seedSink interface {
	write(ctx context.Context, all func(add seedAdd) error) error
}

// seedAdd takes an event and what its deliveries came to. It may be written later.
type seedAdd func(e store.NewEvent, outcomes []*store.Outcome) error

// open opens the store.
func (s *seeder) open(ctx context.Context) error {
	switch {
	case (s.Data == "") == (s.DatabaseURL == ""):
		return errors.New("bench-seed: name a folder or a database")
	case s.DatabaseURL == "":
		st, err := sqlite.Open(ctx, sqlite.Options{Dir: s.Data})
		if err != nil {
			return err
		}
		s.store, s.sink = st, &seedCommits{s: s}
		return nil
	}
	var err error
	if s.keys, err = seal.ParseKeys(s.SecretKey); err != nil {
		return fmt.Errorf("bench-seed: the secret key: %w", err)
	}
	st, err := postgres.Open(ctx, postgres.Options{URL: s.DatabaseURL, Node: "bench-seed", Version: obs.Version()})
	if err != nil {
		return err
	}
	s.store, s.sink = st, newSeedCopy(s, st)
	return nil
}

// tenant makes what the first start of a server makes.
func (s *seeder) tenant(p *process) error {
	box, err := openKeys(s.keys, s.Data)
	if err != nil {
		return err
	}
	s.catalog = catalog.New(s.store, box)
	a, err := auth.New(auth.Options{Store: s.store, Catalog: s.catalog, Now: time.Now})
	if err != nil {
		return err
	}
	made, err := a.Bootstrap(p.ctx, bootstrapFrom(p.env))
	if err != nil {
		return err
	}
	if made == nil {
		where := "the database"
		if s.Data != "" {
			where = s.Data
		}
		return fmt.Errorf("bench-seed: there is a store in %s already; name another one", where)
	}
	s.owner = made.Tenant.ID
	return nil
}

// eventType is what the webhooks of a group want: Fanout of them want the same.
func (s *seeder) eventType(group int) string { return fmt.Sprintf("seed.event.%d", group) }

// groups is how many groups the webhooks are in.
func (s *seeder) groups() int { return (s.Webhooks + s.Fanout - 1) / s.Fanout }

// webhooks makes webhooks that point nowhere, for types that nobody publishes.
func (s *seeder) webhooks(ctx context.Context) error {
	now := time.Now().UTC().Add(-s.Age).Truncate(time.Millisecond)
	for n := range s.Webhooks {
		hookID, err := id.NewWebhook()
		if err != nil {
			return err
		}
		w := &hook.Webhook{
			ID: hookID, Tenant: s.owner, Revision: 1, Name: fmt.Sprintf("seeded %d", n),
			URL: fmt.Sprintf("https://receiver-%d.example.com/hook", n), Events: []string{s.eventType(n / s.Fanout)},
			Enabled: true, Secrets: []hook.Secret{{Value: "seeded-secret-that-signs-nothing"}}, Timeout: registry.DefaultTimeout,
			CreatedAt: now, UpdatedAt: now,
		}
		row, err := s.catalog.Seal(w)
		if err != nil {
			return err
		}
		if _, err := s.store.InsertWebhook(ctx, row); err != nil {
			return err
		}
		s.hooks = append(s.hooks, hookID)
	}
	return nil
}

// history writes the events, oldest first, with the outcomes of their
// deliveries.
func (s *seeder) history(ctx context.Context) (*benchSeeded, error) {
	config, err := s.store.TenantConfig(ctx, s.owner)
	if err != nil {
		return nil, err
	}
	s.version = config.Version
	until := time.Now().UTC().Truncate(time.Millisecond)
	made := &benchSeeded{Webhooks: s.Webhooks, Payload: s.Payload, From: until.Add(-s.Age), Until: until}
	return made, s.sink.write(ctx, func(add seedAdd) error { return s.generate(made, add) })
}

// generate makes the history.
func (s *seeder) generate(made *benchSeeded, add seedAdd) error {
	for made.Deliveries < s.Deliveries {
		at := made.From.Add(time.Duration(float64(s.Age) * float64(made.Deliveries) / float64(s.Deliveries))).Truncate(time.Millisecond)
		e, err := s.event(made.Events/seedBurst%s.groups(), at)
		if err != nil {
			return err
		}
		// The last event has what is left.
		e.Deliveries = e.Deliveries[:min(len(e.Deliveries), s.Deliveries-made.Deliveries)]
		outcomes := make([]*store.Outcome, len(e.Deliveries))
		for i := range e.Deliveries {
			outcomes[i] = s.outcome(&e.Deliveries[i], at)
			if outcomes[i].Change == hook.Exhausted {
				made.Failed++
			}
		}
		if err := add(e, outcomes); err != nil {
			return err
		}
		made.Events++
		made.Deliveries += len(e.Deliveries)
	}
	return nil
}

// seedCommits writes as the committer does.
type seedCommits struct {
	s        *seeder
	accept   store.Accept
	outcomes []*store.Outcome
}

// write implements seedSink.
func (c *seedCommits) write(ctx context.Context, all func(add seedAdd) error) error {
	err := all(func(e store.NewEvent, outcomes []*store.Outcome) error {
		c.accept.Events = append(c.accept.Events, e)
		if c.outcomes = append(c.outcomes, outcomes...); len(c.outcomes) >= seedBatch {
			return c.commit(ctx)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return c.commit(ctx)
}

func (c *seedCommits) commit(ctx context.Context) error {
	c.accept.Tenant, c.accept.ConfigVersion = c.s.owner, c.s.version
	if err := c.s.store.Apply(ctx, &store.Batch{Accepts: []*store.Accept{&c.accept}, Outcomes: c.outcomes}); err != nil {
		return err
	}
	if c.accept.Err != nil {
		return c.accept.Err
	}
	for _, o := range c.outcomes {
		if !o.Matched {
			return fmt.Errorf("bench-seed: the outcome of delivery %s came to nothing", o.Delivery)
		}
	}
	c.accept.Events, c.outcomes = c.accept.Events[:0], c.outcomes[:0]
	return nil
}

// event is an event for a group of webhooks. The last group may be smaller.
func (s *seeder) event(group int, at time.Time) (store.NewEvent, error) {
	eventID, err := s.newID(at)
	if err != nil {
		return store.NewEvent{}, err
	}
	e := store.NewEvent{
		ID: eventID, Type: s.eventType(group), Timestamp: at, Due: at, ExpiresAt: at.Add(7 * 24 * time.Hour),
	}
	e.Body = fmt.Appendf(nil, `{"id":"%s","type":"%s","timestamp":"%s","data":`, e.ID, e.Type, at.Format(ingest.TimeFormat))
	e.Body = append(s.data(e.Body), `,"metadata":{}}`...)
	for _, h := range s.hooks[group*s.Fanout : min((group+1)*s.Fanout, len(s.hooks))] {
		deliveryID, err := s.newID(at)
		if err != nil {
			return e, err
		}
		// Their outcomes are in the same batch: they never wait for a claim.
		e.Deliveries = append(e.Deliveries, store.NewDelivery{ID: deliveryID, Webhook: h, Trigger: hook.TriggerAuto, Held: true})
	}
	return e, nil
}

// data appends Payload bytes of JSON that do not compress well.
func (s *seeder) data(b []byte) []byte {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
	b = append(b, '"')
	bits := uint64(0)
	for i := range s.Payload - 2 {
		if i%10 == 0 {
			bits = s.chance.Uint64()
		}
		b = append(b, letters[bits&63])
		bits >>= 6
	}
	return append(b, '"')
}

// outcome is the end of a delivery: nearly always a success at the first try.
func (s *seeder) outcome(d *store.NewDelivery, at time.Time) *store.Outcome {
	began := at.Add(time.Duration(s.chance.IntN(20)) * time.Millisecond)
	took := time.Duration(20_000+s.chance.IntN(200_000)) * time.Microsecond
	o := &store.Outcome{
		Tenant: s.owner, Webhook: d.Webhook, Delivery: d.ID, Change: hook.Succeeded, Try: 1, At: began.Add(took),
		Attempt: hook.Attempt{
			Number: 1, Trigger: hook.TriggerAuto, StartedAt: began, Duration: took, Revision: 1, StatusCode: http.StatusOK,
			Timings: hook.Timings{FirstByte: took - 10*time.Millisecond},
			Header:  http.Header{"Content-Type": {"application/json"}}, Body: []byte(`{"ok":true}`),
		},
	}
	if s.chance.Float64() < s.Failed {
		o.Change = hook.Exhausted
		o.Attempt.StatusCode, o.Attempt.Body = http.StatusInternalServerError, []byte(`{"error":"no luck"}`)
		o.Attempt.Failure = &hook.Failure{Kind: hook.FailureStatus, Message: "the receiver answered 500"}
	}
	return o
}

// newID makes an id of a time that has passed (a UUIDv7, RFC 9562 §5.7, with a
// counter in its 12 bits rand_a): the history is read, and deleted, in the order
// of ids.
func (s *seeder) newID(at time.Time) ([16]byte, error) {
	b := id.First(at)
	if _, err := rand.Read(b[8:]); err != nil {
		return b, fmt.Errorf("make an id: %w", err)
	}
	ms := at.UnixMilli()
	if s.counter++; ms != s.last {
		s.last, s.counter = ms, 0
	}
	if s.counter > 0xfff {
		return b, errors.New("bench-seed: more than 4,096 ids in a millisecond: give the history more time")
	}
	binary.BigEndian.PutUint16(b[6:], 0x7000|s.counter)
	b[8] = b[8]&0x3f | 0x80
	return b, nil
}
