// Package ingest takes events in: it finds who wants an event, builds the body
// that all of them get, reserves places in their lanes, and has the event and
// its deliveries written in one commit. What it accepted is on disk.
//
// It must not know how a delivery is sent; of the lanes it knows that they have
// places.
package ingest

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/plinqx/hypha/internal/catalog"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// Lanes have places for deliveries that are sent at once. A delivery without a
// place waits on disk.
type Lanes interface {
	// Reserve takes a place for each delivery of an event that finds one, and
	// sets its Held. It must be followed by HandOver or Release.
	Reserve(tenant id.Tenant, e *store.NewEvent)
	// HandOver gives the event's deliveries to their lanes: they are on disk.
	HandOver(tenant id.Tenant, e *store.NewEvent)
	// Release gives the places back: nothing was written.
	Release(tenant id.Tenant, e *store.NewEvent)
	// Watch makes the lanes tell the attempt of a test delivery when that is on
	// disk; nil if it was not sent. A delivery of hook.TriggerTest is sent when
	// it is handed over, watched or not, whatever holds its webhook back.
	// It is not ok when too many are on their way like that; else stop must
	// follow.
	Watch(tenant id.Tenant, delivery id.Delivery) (attempt <-chan *hook.Attempt, stop func(), ok bool)
}

// Committer writes accepts (package commit).
type Committer interface {
	Accept(ctx context.Context, a *store.Accept, settle func(committed bool)) error
}

// The bounds of what is published.
const (
	MaxBatch    = 1000               // events in one request
	KeyLifetime = 7 * 24 * time.Hour // of an idempotency key
	TestType    = "webhook.test"     // the type of a test-send
)

// Options are what ingest needs; all are required but MaxQueued.
type Options struct {
	Catalog   *catalog.Catalog
	Committer Committer
	Lanes     Lanes
	Now       func() time.Time
	// MaxAge is how long a delivery may stay unfinished.
	MaxAge time.Duration
	// MaxQueued is the most unfinished deliveries of a tenant; 0 is no limit.
	MaxQueued int64
}

// Ingest is safe for concurrent use.
type Ingest struct{ o Options }

// New makes an Ingest.
func New(o Options) *Ingest { return &Ingest{o} }

// Event is an event as it is published.
type Event struct {
	ID   string // the publisher's own, or ""
	Type string
	// Data and Metadata are JSON texts, kept byte for byte. Metadata is empty
	// where none was given.
	Data, Metadata []byte
	Timestamp      time.Time // zero where none was given
}

// Request is what one call publishes: all of it or nothing.
type Request struct {
	Tenant id.Tenant
	Key    string // the idempotency key, or ""
	Events []Event
	// Authorize is asked again whenever the tenant's configuration has moved
	// on since the request was let in: a revoked key publishes nothing more.
	Authorize func(*catalog.Snapshot) error
}

// Publish takes events in. When it returns without error they are on disk. The
// results are one per event, in order.
func (in *Ingest) Publish(ctx context.Context, r Request) ([]store.AcceptResult, error) {
	now := in.o.Now().UTC().Truncate(time.Millisecond)
	a := store.Accept{Tenant: r.Tenant, MaxQueued: in.o.MaxQueued, Events: make([]store.NewEvent, len(r.Events))}
	if r.Key != "" {
		a.Key = &store.IdempotencyKey{Key: r.Key, Hash: requestHash(r.Events), ExpiresAt: now.Add(KeyLifetime)}
	}
	for i := range r.Events {
		if err := in.newEvent(&a.Events[i], &r.Events[i], now); err != nil {
			return nil, err
		}
	}
	err := in.accept(ctx, &a, r.Authorize, func(snap *catalog.Snapshot, e *store.NewEvent) ([]store.NewDelivery, error) {
		return deliveries(snap.Match(e.Type), hook.TriggerAuto)
	})
	if err != nil {
		return nil, err // after a timeout, the results may still be written to
	}
	return a.Results, nil
}

// Test sends one event of type TestType to one webhook, at once and once, and
// answers the attempt when it is on disk. The delivery's id comes with it.
func (in *Ingest) Test(ctx context.Context, tenant id.Tenant, webhook id.Webhook, authorize func(*catalog.Snapshot) error) (id.Delivery, *hook.Attempt, error) {
	now := in.o.Now().UTC().Truncate(time.Millisecond)
	a := store.Accept{Tenant: tenant, Events: make([]store.NewEvent, 1)}
	ev := Event{Type: TestType, Data: fmt.Appendf(nil, `{"message":"A test of this webhook.","webhookId":"%s"}`, webhook)}
	if err := in.newEvent(&a.Events[0], &ev, now); err != nil {
		return id.Delivery{}, nil, err
	}
	delivery, err := id.NewDelivery()
	if err != nil {
		return id.Delivery{}, nil, err
	}
	attempt, stop, ok := in.o.Lanes.Watch(tenant, delivery)
	if !ok {
		return id.Delivery{}, nil, &hook.Error{Code: hook.CodeRateLimited, RetryAfter: 5 * time.Second, Message: "Too many tests are being sent at once; try again when some have ended"}
	}
	defer stop()
	err = in.accept(ctx, &a, authorize, func(snap *catalog.Snapshot, _ *store.NewEvent) ([]store.NewDelivery, error) {
		if _, ok := snap.Webhook(webhook); !ok {
			return nil, hook.NotFound("Webhook")
		}
		return []store.NewDelivery{{ID: delivery, Webhook: webhook, Trigger: hook.TriggerTest}}, nil
	})
	if err != nil {
		return id.Delivery{}, nil, err
	}
	select {
	case got := <-attempt:
		if got == nil {
			if _, err := in.o.Catalog.Webhook(ctx, tenant, webhook); err != nil {
				return id.Delivery{}, nil, err // it was deleted meanwhile
			}
			return id.Delivery{}, nil, hook.Unavailable(5*time.Second, nil, "The test could not be sent now; try again")
		}
		return delivery, got, nil
	case <-ctx.Done():
		return id.Delivery{}, nil, ctx.Err()
	}
}

// accept matches and commits, again whenever the configuration moved meanwhile.
func (in *Ingest) accept(ctx context.Context, a *store.Accept, authorize func(*catalog.Snapshot) error, deliveries func(*catalog.Snapshot, *store.NewEvent) ([]store.NewDelivery, error)) error {
	snap, err := in.o.Catalog.Tenant(ctx, a.Tenant)
	for {
		if err != nil {
			return err
		}
		if err := authorize(snap); err != nil {
			return err
		}
		a.ConfigVersion = snap.Version
		for i := range a.Events {
			if a.Events[i].Deliveries, err = deliveries(snap, &a.Events[i]); err != nil {
				return err
			}
		}
		for i := range a.Events {
			in.o.Lanes.Reserve(a.Tenant, &a.Events[i])
		}
		err = in.o.Committer.Accept(ctx, a, func(committed bool) { in.settle(a, committed) })
		if !errors.Is(err, store.ErrConfigMoved) {
			return err
		}
		snap, err = in.o.Catalog.Refresh(ctx, a.Tenant, a.ConfigVersion)
	}
}

func (in *Ingest) settle(a *store.Accept, committed bool) {
	for i := range a.Events {
		// What was there already was not written again: its places go back.
		if committed && !a.Results[i].Duplicate {
			in.o.Lanes.HandOver(a.Tenant, &a.Events[i])
		} else {
			in.o.Lanes.Release(a.Tenant, &a.Events[i])
		}
	}
}

func deliveries(webhooks []*hook.Webhook, trigger hook.Trigger) ([]store.NewDelivery, error) {
	if len(webhooks) == 0 {
		return nil, nil
	}
	out := make([]store.NewDelivery, len(webhooks))
	for i, w := range webhooks {
		d, err := id.NewDelivery()
		if err != nil {
			return nil, err
		}
		out[i] = store.NewDelivery{ID: d, Webhook: w.ID, Trigger: trigger}
	}
	return out, nil
}

func (in *Ingest) newEvent(out *store.NewEvent, e *Event, now time.Time) error {
	eventID, err := id.NewEvent()
	if err != nil {
		return err
	}
	*out = store.NewEvent{
		ID: eventID, GivenID: e.ID, Type: e.Type, Timestamp: e.Timestamp.UTC().Truncate(time.Millisecond),
		Due: now, ExpiresAt: now.Add(in.o.MaxAge),
	}
	if e.Timestamp.IsZero() {
		out.Timestamp = now
	}
	if e.ID != "" {
		out.Hash = requestHash([]Event{*e})
	}
	out.Body = envelope(out, e)
	return nil
}

// TimeFormat is RFC 3339 with milliseconds, for times in UTC.
const TimeFormat = "2006-01-02T15:04:05.000Z"

// envelope is the body that receivers get. It is built once: every attempt
// sends these bytes. Ids and types need no escaping, by their grammar. Without
// metadata the member is an empty object, so that its type is always the same.
func envelope(n *store.NewEvent, e *Event) []byte {
	b := make([]byte, 0, len(e.Data)+len(e.Metadata)+len(e.Type)+len(e.ID)+128)
	b = append(b, `{"id":"`...)
	if e.ID != "" {
		b = append(b, e.ID...)
	} else {
		b, _ = n.ID.AppendText(b) // never fails
	}
	b = append(b, `","type":"`...)
	b = append(b, e.Type...)
	b = append(b, `","timestamp":"`...)
	b = n.Timestamp.AppendFormat(b, TimeFormat)
	b = append(b, `","data":`...)
	b = append(b, e.Data...)
	b = append(b, `,"metadata":`...)
	if len(e.Metadata) == 0 {
		b = append(b, "{}"...)
	}
	b = append(b, e.Metadata...)
	return append(b, '}')
}

// requestHash tells whether two requests ask the same: the same types, data and
// metadata bytes, and timestamps where given. Ids are compared by the store, so
// that a request that names its id the second time only is the same still.
func requestHash(events []Event) (sum [32]byte) {
	h := sha256.New()
	part := func(b []byte) {
		var size [8]byte
		binary.BigEndian.PutUint64(size[:], uint64(len(b)))
		h.Write(size[:])
		h.Write(b)
	}
	for i := range events {
		e := &events[i]
		part([]byte(e.Type))
		part(e.Data)
		part(e.Metadata)
		if e.Timestamp.IsZero() {
			part(nil)
		} else {
			part(e.Timestamp.UTC().AppendFormat(nil, time.RFC3339Nano))
		}
	}
	h.Sum(sum[:0])
	return sum
}
