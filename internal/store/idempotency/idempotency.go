// Package idempotency decides what is answered to an accept whose events, or whose
// request, may have come before: what is new, what is a duplicate, what stands
// against something else. The drivers of the store share it; they say what stands
// behind a key, and write what is new.
package idempotency

import (
	"fmt"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/internal/store/codec"
)

// Kind is what a key is, as it is stored.
type Kind int64

// The kinds.
const (
	Request Kind = 0 // a request's idempotency key
	Given   Kind = 1 // an id that a publisher gave to an event
)

// Key names a request or an event of a tenant.
type Key struct {
	Tenant id.Tenant
	Kind   Kind
	Text   string
}

// Entry is what stands behind a key: what was asked, and the answer. Behind a given
// id that is one result.
type Entry struct {
	Hash   [32]byte
	Answer []store.AcceptResult
}

// Ledger is what was written before.
type Ledger interface {
	// LookUp finds what stands behind a key, nil if it is free.
	LookUp(k Key) (*Entry, error)
	// Taken reports whether there is an event that has this id and was not given
	// another.
	Taken(tenant id.Tenant, event id.Event) (bool, error)
}

// Batch checks the accepts of a transaction one after another. It remembers the
// keys of those before, which are not written yet.
type Batch struct {
	ledger Ledger
	now    time.Time
	fresh  map[Key]*Entry
	own    map[ownID]struct{} // ids that this batch made
}

type ownID struct {
	tenant id.Tenant
	event  id.Event
}

// NewBatch begins a batch, by the store's clock.
func NewBatch(ledger Ledger, now time.Time) *Batch {
	return &Batch{ledger: ledger, now: now, fresh: map[Key]*Entry{}, own: map[ownID]struct{}{}}
}

// Check works out the answer to an accept. It writes nothing and changes nothing.
// Repeated says that the whole request came before: the answer is the one of then.
// Errors that are the accept's own are *hook.Error.
func (b *Batch) Check(r *store.Accept) (results []store.AcceptResult, repeated bool, err error) {
	if r.Key != nil {
		held, err := b.lookUp(Key{r.Tenant, Request, r.Key.Key})
		if err != nil {
			return nil, false, err
		}
		if held != nil {
			results, err = repeat(r, held)
			return results, true, err
		}
	}
	results, err = b.events(r)
	return results, false, err
}

func (b *Batch) lookUp(k Key) (*Entry, error) {
	if held, ok := b.fresh[k]; ok {
		return held, nil
	}
	return b.ledger.LookUp(k)
}

// repeat answers a request whose key was used before. The hash does not cover ids,
// so a key and an id that are both given must name the same event.
func repeat(r *store.Accept, held *Entry) ([]store.AcceptResult, error) {
	if held.Hash != r.Key.Hash || len(held.Answer) != len(r.Events) {
		return nil, conflict("Idempotency-Key", "this key was used with another request; use a new one")
	}
	for i := range r.Events {
		if given := r.Events[i].GivenID; given != "" && given != held.Answer[i].PublicID {
			return nil, conflict("Idempotency-Key", fmt.Sprintf("this key was used for event %s, not for %s", held.Answer[i].PublicID, given))
		}
	}
	return held.Answer, nil
}

func conflict(path, message string) error {
	e := hook.Conflict("The request stands against an earlier one; see details")
	e.Details = []hook.Detail{{Path: path, Message: message}}
	return e
}

// events works out the answer to each event.
func (b *Batch) events(r *store.Accept) ([]store.AcceptResult, error) {
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
		held, err := b.lookUp(Key{r.Tenant, Given, e.GivenID})
		if err != nil {
			return nil, err
		}
		switch {
		case held != nil && held.Hash != e.Hash:
			return nil, conflict(path, fmt.Sprintf("another event of id %s was published before", e.GivenID))
		case held != nil:
			results[i] = held.Answer[0]
			results[i].Duplicate = true
		default:
			taken, err := b.taken(r.Tenant, e.GivenID)
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
		Timestamp:  time.UnixMilli(e.Timestamp.UnixMilli()).UTC(),
		Deliveries: len(e.Deliveries),
	}
}

// taken reports whether a given id is the generated id of another event: two events
// must not answer to one name.
func (b *Batch) taken(tenant id.Tenant, given string) (bool, error) {
	event, err := id.ParseEvent(given)
	if err != nil {
		return false, nil //nolint:nilerr // it does not look like one: that is the answer
	}
	if _, ok := b.own[ownID{tenant, event}]; ok {
		return true, nil
	}
	return b.ledger.Taken(tenant, event)
}

// Row is a key to be written: it takes the place of one that is there and free.
type Row struct {
	Key
	Hash      [32]byte
	ExpiresAt time.Time // zero: with its event
	Event     id.Event  // of a given id
	Answer    []byte    // of a request
}

// Took notes that an accept is taken with these results, and answers the keys that
// are to be written with it.
func (b *Batch) Took(r *store.Accept, results []store.AcceptResult) ([]Row, error) {
	var rows []Row
	for i := range r.Events {
		e := &r.Events[i]
		switch {
		case results[i].Duplicate:
		case e.GivenID == "":
			b.own[ownID{r.Tenant, e.ID}] = struct{}{}
		default:
			k := Key{r.Tenant, Given, e.GivenID}
			b.fresh[k] = &Entry{e.Hash, []store.AcceptResult{results[i]}}
			rows = append(rows, Row{Key: k, Hash: e.Hash, Event: e.ID})
		}
	}
	if r.Key == nil {
		return rows, nil
	}
	k, answer := Key{r.Tenant, Request, r.Key.Key}, codec.EncodeAnswer(results)
	if r.Key.ExpiresAt.After(b.now) {
		again, err := codec.DecodeAnswer(answer)
		if err != nil {
			return nil, err
		}
		b.fresh[k] = &Entry{r.Key.Hash, again}
	}
	return append(rows, Row{Key: k, Hash: r.Key.Hash, ExpiresAt: r.Key.ExpiresAt, Answer: answer}), nil
}

// Added is how many deliveries an accept adds.
func Added(r *store.Accept, results []store.AcceptResult) (n int64) {
	for i := range results {
		if !results[i].Duplicate {
			n += int64(len(r.Events[i].Deliveries))
		}
	}
	return n
}

// retryFull is when to come back with what a tenant has no room for.
const retryFull = 5 * time.Second

// Room refuses what a tenant may not have queued beside what it has.
func Room(r *store.Accept, results []store.AcceptResult, pending int64) error {
	added := Added(r, results)
	if r.MaxQueued == 0 || added == 0 || pending+added <= r.MaxQueued {
		return nil
	}
	return &hook.Error{
		Code: hook.CodeRateLimited,
		Message: fmt.Sprintf("%d deliveries are queued and this would add %d; the limit is %d. Try again when some are done",
			pending, added, r.MaxQueued),
		RetryAfter: retryFull,
	}
}
