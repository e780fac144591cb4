package api

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/ingest"
	"github.com/plinqx/hypha/internal/match"
	"github.com/plinqx/hypha/internal/store"
)

// readEvent reads an event that is published. Its data and metadata stay in the
// body.
func readEvent(o *object) ingest.Event {
	var e ingest.Event
	o.require("type", "data")
	if s := o.text("type"); s != nil {
		if e.Type = *s; !hook.ValidType(e.Type) {
			o.add("type", "must be dot-separated segments of A-Z, a-z, 0-9, _ and -, %d characters at most", hook.MaxTypeLength)
		}
	}
	if e.Data = o.take("data"); e.Data != nil && jsontext.Value(e.Data).Kind() == 'n' {
		o.add("data", "must not be null; an event without data has an empty object")
	}
	if e.Metadata = o.take("metadata"); e.Metadata != nil && jsontext.Value(e.Metadata).Kind() != '{' {
		o.add("metadata", "must be an object")
	}
	if t := o.time("timestamp"); t != nil {
		e.Timestamp = *t
	}
	if s := o.text("id"); s != nil {
		if e.ID = *s; !hook.ValidPublisherID(e.ID) {
			o.add("id", "must be 1 to 128 of A-Z, a-z, 0-9, _ and -, without a dot")
		}
	}
	o.end()
	return e
}

const headerIdempotency = "Idempotency-Key"

// idempotencyKey is the request's key, "" without one.
func idempotencyKey(h http.Header, p *problems) string {
	given := h[headerIdempotency]
	switch {
	case len(given) == 0:
		return ""
	case len(given) > 1:
		p.add(headerIdempotency, "is given %d times", len(given))
	case !hook.ValidPublisherID(given[0]):
		p.add(headerIdempotency, "must be 1 to 128 of A-Z, a-z, 0-9, _ and -, without a dot")
	default:
		return given[0]
	}
	return ""
}

// takeBody reads the body of events that are published, unless they could not
// be taken in anyway.
func (a *api) takeBody(c *call, limit int64) error {
	if err := a.o.Admit(c.tenant()); err != nil {
		return err
	}
	err := a.readBody(c, limit)
	switch hook.CodeOf(err) {
	case hook.CodeUnavailable:
		a.o.NoRoom(false)
	case hook.CodeRateLimited:
		a.o.NoRoom(true)
	default:
	}
	return err
}

// publish is the hot path.
func (a *api) publish(c *call) (reply, error) {
	if err := a.takeBody(c, a.o.MaxEventBody); err != nil {
		return reply{}, err
	}
	var p problems
	request := ingest.Request{Tenant: c.tenant(), Key: idempotencyKey(c.Header, &p), Authorize: c.principal.Check}
	o, err := c.reader.object(&p)
	if err != nil {
		return reply{}, err
	}
	request.Events = []ingest.Event{readEvent(o)}
	if err := p.err(); err != nil {
		return reply{}, err
	}
	results, err := a.o.Publisher.Publish(c.Context(), request)
	if err != nil {
		return reply{}, ofOneEvent(err)
	}
	return reply{status: http.StatusAccepted, raw: appendResult(make([]byte, 0, 256), &results[0])}, nil
}

// ofOneEvent takes "events[0]." from the paths of an error: here there is one
// event, and it is the body.
func ofOneEvent(err error) error {
	var e *hook.Error
	if !errors.As(err, &e) || len(e.Details) == 0 {
		return err
	}
	changed := *e
	changed.Details = slices.Clone(e.Details)
	for i := range changed.Details {
		d := &changed.Details[i]
		d.Path = strings.TrimPrefix(strings.TrimPrefix(d.Path, "events[0]"), ".")
	}
	return &changed
}

// appendResult writes what became of a published event. Ids and types need no
// escaping, by their grammar.
func appendResult(b []byte, r *store.AcceptResult) []byte {
	b = append(b, `{"id":"`...)
	b = append(b, r.PublicID...)
	b = append(b, `","type":"`...)
	b = append(b, r.Type...)
	b = append(b, `","timestamp":"`...)
	b = r.Timestamp.UTC().AppendFormat(b, ingest.TimeFormat)
	b = append(b, `","deliveries":`...)
	b = strconv.AppendInt(b, int64(r.Deliveries), 10)
	if r.Duplicate {
		b = append(b, `,"duplicate":true`...)
	}
	return append(b, '}')
}

func (a *api) publishBatch(c *call) (reply, error) {
	if err := a.takeBody(c, a.o.MaxBatchBody); err != nil {
		return reply{}, err
	}
	var p problems
	request := ingest.Request{Tenant: c.tenant(), Key: idempotencyKey(c.Header, &p), Authorize: c.principal.Check}
	var err error
	if request.Events, err = a.readBatch(c.reader, &p); err != nil {
		return reply{}, err
	}
	a.limits.batch(c.principal, len(request.Events))
	if err := p.err(); err != nil {
		return reply{}, err
	}
	results, err := a.o.Publisher.Publish(c.Context(), request)
	if err != nil {
		return reply{}, err
	}
	b := append(make([]byte, 0, 160*len(results)+16), `{"data":[`...)
	for i := range results {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendResult(b, &results[i])
	}
	return reply{status: http.StatusAccepted, raw: append(b, "]}"...)}, nil
}

// readBatch reads {"events": [...]} in one pass: each event's members are read
// where they stand.
func (a *api) readBatch(r *reader, p *problems) ([]ingest.Event, error) {
	if err := r.begin(); err != nil {
		return nil, err
	}
	var events []ingest.Event
	whole := object{problems: p}
	for {
		name, more, err := r.name()
		if err != nil {
			return nil, err
		}
		if !more {
			break
		}
		m := member{name: name}
		if string(name) == "events" && r.dec.PeekKind() == '[' {
			m.value = jsontext.Value("[]")
			if events, err = a.readEvents(r, p); err != nil {
				return nil, err
			}
		} else if m.value, err = r.value(); err != nil {
			return nil, err
		}
		whole.members = append(whole.members, m)
	}
	if err := r.finish(); err != nil {
		return nil, err
	}
	whole.require("events")
	if raw := whole.take("events"); raw != nil {
		switch {
		case raw.Kind() != '[':
			whole.add("events", "must be an array of events")
		case len(events) == 0 && len(*p) == 0:
			whole.add("events", "must have at least one event")
		}
	}
	whole.end()
	return events, nil
}

// readEvents reads the array that comes next.
func (a *api) readEvents(r *reader, p *problems) ([]ingest.Event, error) {
	if _, err := r.dec.ReadToken(); err != nil {
		return nil, syntax(err)
	}
	var events []ingest.Event
	var members []member
	for i := 0; r.dec.PeekKind() != ']'; i++ {
		if i == ingest.MaxBatch {
			return nil, malformed("events", fmt.Sprintf("must have at most %d events", ingest.MaxBatch))
		}
		path := fmt.Sprintf("events[%d]", i)
		if r.dec.PeekKind() != '{' {
			if _, err := r.value(); err != nil {
				return nil, err
			}
			p.add(path, "must be an event: a JSON object")
			continue
		}
		if _, err := r.dec.ReadToken(); err != nil {
			return nil, syntax(err)
		}
		start, at := r.dec.InputOffset(), members[:0]
		for {
			name, more, err := r.name()
			if err != nil {
				return nil, err
			}
			if !more {
				break
			}
			value, err := r.value()
			if err != nil {
				return nil, err
			}
			at = append(at, member{name: name, value: value})
		}
		members = at
		if size := r.dec.InputOffset() - start; size > a.o.MaxEventBody {
			p.add(path, "is larger than %d bytes", a.o.MaxEventBody)
		}
		o := object{path: path + ".", members: at, asked: r.asked[:0], problems: p}
		events = append(events, readEvent(&o))
		if len(*p) > maxDetails {
			break
		}
	}
	if len(*p) > maxDetails {
		return nil, p.err()
	}
	_, err := r.dec.ReadToken()
	return events, syntax(err)
}

func (a *api) listEvents(c *call) (reply, error) {
	q := newQuery(c)
	ask := store.EventQuery{Tenant: c.tenant(), Type: q.eventType("type"), Limit: q.limit(), Before: q.cursor()}
	ask.Since, ask.Until = q.span()
	if err := q.err(); err != nil {
		return reply{}, err
	}
	p, err := a.o.History.Events(c.Context(), ask)
	if err != nil {
		return reply{}, err
	}
	out := page[eventView]{Data: make([]eventView, len(p.Events)), NextCursor: q.next(p.Next)}
	for i := range p.Events {
		p.Events[i].Body = nil
		out.Data[i] = viewEvent(&p.Events[i])
	}
	return reply{status: http.StatusOK, value: out}, nil
}

// outcome is what became of an event at one webhook.
type outcome string

// The outcomes. The first four are those of a delivery.
const (
	outcomeDelivered     outcome = "delivered"
	outcomePending       outcome = "pending"
	outcomeRetrying      outcome = "retrying"
	outcomeFailed        outcome = "failed"
	outcomeNotSubscribed outcome = "not_subscribed"
	outcomeDisabled      outcome = "disabled"
	outcomeCreatedLater  outcome = "created_later"
)

type eventDetailView struct {
	eventView
	Deliveries []eventOutcomeView `json:"deliveries"`
}

type eventOutcomeView struct {
	WebhookID     id.Webhook   `json:"webhookId"`
	WebhookName   *string      `json:"webhookName"`
	Outcome       outcome      `json:"outcome"`
	Reason        string       `json:"reason"`
	DeliveryID    *id.Delivery `json:"deliveryId"`
	Attempts      int          `json:"attempts"`
	NextAttemptAt *instant     `json:"nextAttemptAt"`
}

func (a *api) getEvent(c *call) (reply, error) {
	publicID := c.param("event")
	if !hook.ValidPublisherID(publicID) {
		return reply{}, hook.NotFound("Event")
	}
	e, err := a.o.History.Event(c.Context(), c.tenant(), publicID)
	if err != nil {
		return reply{}, err
	}
	webhooks, err := a.o.Registry.List(c.Context(), c.tenant())
	if err != nil {
		return reply{}, err
	}
	out := eventDetailView{eventView: viewEvent(e)}
	if out.Deliveries, err = a.eventOutcomes(c, e, webhooks); err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusOK, value: out}, nil
}

// eventOutcomes says what became of an event: first its deliveries, then, for
// each webhook of the tenant that got none, why.
func (a *api) eventOutcomes(c *call, e *hook.Event, webhooks []*hook.Webhook) ([]eventOutcomeView, error) {
	out := []eventOutcomeView{}
	got := map[id.Webhook]bool{}
	for _, delivery := range e.Deliveries {
		d, err := a.o.History.Delivery(c.Context(), c.tenant(), delivery)
		if err != nil {
			if hook.CodeOf(err) == hook.CodeNotFound {
				continue // pruned
			}
			return nil, err
		}
		got[d.Webhook] = true
		v := eventOutcomeView{WebhookID: d.Webhook, DeliveryID: &d.ID, Attempts: d.Attempts}
		v.Outcome, v.Reason = outcomeOf(d)
		if !d.Status.Done() {
			v.NextAttemptAt = orNull(d.Due)
		}
		if w := find(webhooks, d.Webhook); w != nil {
			v.WebhookName = &w.Name
		}
		out = append(out, v)
	}
	reads := maxRevisionReads
	for _, w := range webhooks {
		if got[w.ID] {
			continue
		}
		v := eventOutcomeView{WebhookID: w.ID, WebhookName: &w.Name}
		var err error
		if v.Outcome, v.Reason, err = a.whyNot(c, e, w, &reads); err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

func find(webhooks []*hook.Webhook, want id.Webhook) *hook.Webhook {
	i, ok := slices.BinarySearchFunc(webhooks, want, func(w *hook.Webhook, want id.Webhook) int { return w.ID.Compare(want) })
	if !ok {
		return nil
	}
	return webhooks[i]
}

func outcomeOf(d *hook.Delivery) (outcome, string) {
	failure := d.Failure
	if failure == nil && d.Last != nil {
		failure = d.Last.Failure
	}
	why := func(otherwise string) string {
		if failure == nil {
			return otherwise
		}
		return failure.Message
	}
	switch d.Status {
	case hook.StatusSuccess:
		return outcomeDelivered, "The receiver answered with success"
	case hook.StatusRetrying:
		return outcomeRetrying, why("It is due again")
	case hook.StatusFailed:
		return outcomeFailed, why("It was given up")
	default:
		return outcomePending, "It waits for its first attempt"
	}
}

// maxRevisionReads is how many earlier revisions are read for one answer. What
// is beyond is judged by the webhook as it is now.
const maxRevisionReads = 200

// whyNot says why a webhook got no delivery of an event: how it was when the
// event came.
func (a *api) whyNot(c *call, e *hook.Event, w *hook.Webhook, reads *int) (outcome, string, error) {
	if w.CreatedAt.After(e.CreatedAt) {
		return outcomeCreatedLater, "The webhook was created after the event", nil
	}
	then := w
	for then.UpdatedAt.After(e.CreatedAt) && then.Revision > 1 && *reads > 0 {
		*reads--
		row, err := a.o.History.WebhookRevision(c.Context(), c.tenant(), w.ID, then.Revision-1)
		if hook.CodeOf(err) == hook.CodeNotFound {
			break
		}
		if err != nil {
			return "", "", err
		}
		then = &row.Webhook
	}
	switch {
	case !match.Wants(then, e.Type):
		return outcomeNotSubscribed, "The webhook was not subscribed to " + e.Type, nil
	case e.Type == ingest.TestType:
		return outcomeNotSubscribed, "A test is sent to one webhook alone", nil
	case !then.Enabled:
		return outcomeDisabled, "The webhook was disabled", nil
	default:
		return outcomeNotSubscribed, "The webhook came to want " + e.Type + " as the event was published", nil
	}
}
