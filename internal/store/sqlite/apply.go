package sqlite

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/internal/store/codec"
)

// Apply writes a batch in one transaction: the accepts in their order, then the
// outcomes.
func (s *Store) Apply(ctx context.Context, b *store.Batch) error {
	return s.write(ctx, func(t *tx) error {
		a := newAcceptor(t)
		for _, accept := range b.Accepts {
			accept.Results, accept.Err = nil, nil
			if err := a.accept(accept); err != nil {
				var known *hook.Error
				if !errors.As(err, &known) && !errors.Is(err, store.ErrConfigMoved) {
					return err
				}
				accept.Results, accept.Err = nil, err
			}
		}
		if err := a.flush(); err != nil {
			return err
		}
		if err := t.outcomes(b.Outcomes); err != nil {
			return err
		}
		return t.boundHeld()
	})
}

// acceptor takes the accepts of a batch. It checks the whole of an accept
// before it writes any of it. Rows are gathered over all accepts, so it
// remembers the keys it has not written yet.
type acceptor struct {
	t          *tx
	now        time.Time
	events     rowWriter
	deliveries rowWriter
	keys       rowWriter
	fresh      map[eventKey]*heldKey
	own        map[ownID]struct{} // ids that this batch made
}

// eventKey is a request's idempotency key, or an id that a publisher gave.
type eventKey struct {
	tenant id.Tenant
	kind   int64
	key    string
}

const (
	kindRequest int64 = 0
	kindGiven   int64 = 1
)

// heldKey is what stands behind a key.
type heldKey struct {
	hash   [32]byte
	answer []store.AcceptResult
}

type ownID struct {
	tenant id.Tenant
	event  id.Event
}

func newAcceptor(t *tx) *acceptor {
	return &acceptor{
		t:   t,
		now: t.s.now(),
		events: t.write(rows{columns: 10,
			head: "INSERT INTO events (n, tenant_id, id, type, ts, created_at, given_id, deliveries, body, held) VALUES ",
			row:  "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"}),
		deliveries: t.newDeliveries(),
		keys: t.write(rows{columns: 7,
			head: "INSERT OR REPLACE INTO event_keys (tenant_id, kind, key, hash, expires_at, event_id, answer) VALUES ",
			row:  "(?, ?, ?, ?, ?, ?, ?)"}),
		fresh: map[eventKey]*heldKey{},
		own:   map[ownID]struct{}{},
	}
}

// newDeliveries writes rows of deliveries that wait: tenant, id, webhook, event,
// given id, type, trigger, era, due, created, expires.
func (t *tx) newDeliveries() rowWriter {
	return t.write(rows{columns: 11,
		head: "INSERT INTO deliveries (tenant_id, id, webhook_id, event_id, given_id, event_type, trigger, era, due_at, created_at, expires_at, status, attempts, try) VALUES ",
		row:  "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, 0)"})
}

func (a *acceptor) flush() error {
	for _, w := range [...]*rowWriter{&a.events, &a.deliveries, &a.keys} {
		if err := w.flush(); err != nil {
			return fmt.Errorf("write events: %w", err)
		}
	}
	return nil
}

// accept takes one request. What it returns as *hook.Error or ErrConfigMoved is
// the request's own; nothing of it was written then.
func (a *acceptor) accept(r *store.Accept) error {
	version, err := a.t.version(r.Tenant)
	if err != nil {
		return err
	}
	if version == tenantGone {
		return hook.NotFound("Tenant")
	}
	if version != r.ConfigVersion {
		return store.ErrConfigMoved
	}
	if r.Key != nil {
		held, err := a.lookUp(eventKey{r.Tenant, kindRequest, r.Key.Key})
		if err != nil {
			return err
		}
		if held != nil {
			r.Results, err = repeat(r, held)
			return err
		}
	}
	results, err := a.checkEvents(r)
	if err != nil {
		return err
	}
	if err := a.checkRoom(r, results); err != nil {
		return err
	}
	if err := a.writeEvents(r, results); err != nil {
		return err
	}
	r.Results = results
	return nil
}

// repeat answers a request whose key was used before. The hash does not cover
// ids, so a key and an id that are both given must name the same event.
func repeat(r *store.Accept, held *heldKey) ([]store.AcceptResult, error) {
	if held.hash != r.Key.Hash || len(held.answer) != len(r.Events) {
		return nil, conflict("Idempotency-Key", "this key was used with another request; use a new one")
	}
	for i := range r.Events {
		if given := r.Events[i].GivenID; given != "" && given != held.answer[i].PublicID {
			return nil, conflict("Idempotency-Key", fmt.Sprintf("this key was used for event %s, not for %s", held.answer[i].PublicID, given))
		}
	}
	return held.answer, nil
}

func conflict(path, message string) error {
	e := hook.Conflict("The request stands against an earlier one; see details")
	e.Details = []hook.Detail{{Path: path, Message: message}}
	return e
}

// checkEvents works out the answer to each event.
func (a *acceptor) checkEvents(r *store.Accept) ([]store.AcceptResult, error) {
	results := make([]store.AcceptResult, len(r.Events))
	var first map[string]int // where in this request a given id came first
	for i := range r.Events {
		e := &r.Events[i]
		if e.GivenID == "" {
			results[i] = resultOf(e, e.ID.String())
			continue
		}
		path := fmt.Sprintf("events[%d].id", i)
		if at, ok := first[e.GivenID]; ok {
			if r.Events[at].Hash != e.Hash {
				return nil, conflict(path, fmt.Sprintf("another event of id %s is in this request, as events[%d]", e.GivenID, at))
			}
			results[i] = results[at]
			results[i].Duplicate = true
			continue
		}
		held, err := a.lookUp(eventKey{r.Tenant, kindGiven, e.GivenID})
		if err != nil {
			return nil, err
		}
		switch {
		case held != nil && held.hash != e.Hash:
			return nil, conflict(path, fmt.Sprintf("another event of id %s was published before", e.GivenID))
		case held != nil:
			results[i] = held.answer[0]
			results[i].Duplicate = true
		default:
			taken, err := a.ownIDTaken(r.Tenant, e.GivenID)
			if err != nil {
				return nil, err
			}
			if taken {
				return nil, conflict(path, fmt.Sprintf("another event has the id %s", e.GivenID))
			}
			results[i] = resultOf(e, e.GivenID)
		}
		if first == nil {
			first = map[string]int{}
		}
		first[e.GivenID] = i
	}
	return results, nil
}

// resultOf is the answer to a new event, as a repetition will be told it too.
func resultOf(e *store.NewEvent, public string) store.AcceptResult {
	return store.AcceptResult{
		PublicID:   public,
		Type:       e.Type,
		Timestamp:  time.UnixMilli(millis(e.Timestamp)).UTC(),
		Deliveries: len(e.Deliveries),
	}
}

// checkRoom refuses what the tenant may not have queued.
func (a *acceptor) checkRoom(r *store.Accept, results []store.AcceptResult) error {
	if r.MaxQueued == 0 {
		return nil
	}
	var added int64
	for i := range results {
		if !results[i].Duplicate {
			added += int64(len(r.Events[i].Deliveries))
		}
	}
	if added == 0 {
		return nil
	}
	g, err := a.t.gauge(gaugeKey{tenant: r.Tenant})
	if err != nil {
		return err
	}
	if g.pending+added > r.MaxQueued {
		return &hook.Error{
			Code: hook.CodeRateLimited,
			Message: fmt.Sprintf("%d deliveries are queued and this would add %d; the limit is %d. Try again when some are done",
				g.pending, added, r.MaxQueued),
			RetryAfter: retryFull,
		}
	}
	return nil
}

func (a *acceptor) writeEvents(r *store.Accept, results []store.AcceptResult) error {
	t := a.t
	for i := range r.Events {
		if results[i].Duplicate {
			continue
		}
		e := &r.Events[i]
		ids := make([]byte, 0, len(e.Deliveries)*len(id.Delivery{}))
		for j := range e.Deliveries {
			d := &e.Deliveries[j]
			ids = append(ids, d.ID[:]...)
			if err := t.addGauge(r.Tenant, d.Webhook, 1, 0, 1); err != nil {
				return err
			}
			if d.Held {
				continue
			}
			err := a.deliveries.add(r.Tenant[:], d.ID[:], d.Webhook[:], e.ID[:], textOrNull(e.GivenID), e.Type,
				string(d.Trigger), t.era, millis(e.Due), millis(d.ID.Time()), millis(e.ExpiresAt))
			if err != nil {
				return fmt.Errorf("write deliveries: %w", err)
			}
		}
		t.lastEvent++
		// Nobody asks its row when it was created: its id tells. The column has what
		// rows need that a start after a crash makes of it (see recoverEvent).
		err := a.events.add(t.lastEvent, r.Tenant[:], e.ID[:], e.Type, millis(e.Timestamp), millis(e.Due), textOrNull(e.GivenID), ids, e.Body,
			blobOrNull(t.hold(r.Tenant, e, t.lastEvent)))
		if err != nil {
			return fmt.Errorf("write events: %w", err)
		}
		if e.GivenID == "" {
			a.own[ownID{r.Tenant, e.ID}] = struct{}{}
			continue
		}
		key := eventKey{r.Tenant, kindGiven, e.GivenID}
		a.fresh[key] = &heldKey{e.Hash, []store.AcceptResult{results[i]}}
		if err := a.keys.add(key.tenant[:], key.kind, key.key, e.Hash[:], nil, e.ID[:], nil); err != nil {
			return fmt.Errorf("write an event's id: %w", err)
		}
	}
	if r.Key == nil {
		return nil
	}
	key := eventKey{r.Tenant, kindRequest, r.Key.Key}
	answer := codec.EncodeAnswer(results)
	if r.Key.ExpiresAt.After(a.now) {
		repeated, err := codec.DecodeAnswer(answer)
		if err != nil {
			return err
		}
		a.fresh[key] = &heldKey{r.Key.Hash, repeated}
	}
	if err := a.keys.add(key.tenant[:], key.kind, key.key, r.Key.Hash[:], millis(r.Key.ExpiresAt), nil, answer); err != nil {
		return fmt.Errorf("write an idempotency key: %w", err)
	}
	return nil
}

// lookUp finds what stands behind a key; nil if it is free.
func (a *acceptor) lookUp(key eventKey) (*heldKey, error) {
	if held, ok := a.fresh[key]; ok {
		return held, nil
	}
	var held *heldKey
	var event id.Event
	var broken error
	_, err := a.t.one("SELECT hash, expires_at, event_id, answer FROM event_keys WHERE tenant_id = ? AND kind = ? AND key = ?",
		func(r row) {
			if !r.null(1) && r.int(1) <= millis(a.now) {
				return
			}
			held = &heldKey{hash: r.hash(0)}
			if key.kind == kindRequest {
				held.answer, broken = codec.DecodeAnswer(r.blob(3))
			}
			copy(event[:], r.blob(2))
		}, key.tenant[:], key.kind, key.key)
	if err = errors.Join(err, broken); err != nil {
		return nil, fmt.Errorf("look up an idempotency key: %w", err)
	}
	if held == nil || key.kind == kindRequest {
		return held, nil
	}
	found, err := a.t.one("SELECT type, ts, length(deliveries) FROM events WHERE tenant_id = ? AND id = ?",
		func(r row) {
			held.answer = []store.AcceptResult{{PublicID: key.key, Type: r.text(0), Timestamp: r.time(1), Deliveries: int(r.int(2)) / len(id.Delivery{})}}
		}, key.tenant[:], event[:])
	if err != nil {
		return nil, fmt.Errorf("look up an event: %w", err)
	}
	if !found {
		return nil, nil
	}
	return held, nil
}

// ownIDTaken reports whether a given id is the generated id of another event:
// two events must not answer to one name.
func (a *acceptor) ownIDTaken(tenant id.Tenant, given string) (bool, error) {
	event, err := id.ParseEvent(given)
	if err != nil {
		return false, nil //nolint:nilerr // it does not look like one: that is the answer
	}
	if _, ok := a.own[ownID{tenant, event}]; ok {
		return true, nil
	}
	taken, err := a.t.one("SELECT 1 FROM events WHERE tenant_id = ? AND id = ? AND given_id IS NULL", func(row) {}, tenant[:], event[:])
	if err != nil {
		return false, fmt.Errorf("look up an event: %w", err)
	}
	return taken, nil
}
