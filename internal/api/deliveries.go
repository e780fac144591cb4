package api

import (
	"math"
	"net/http"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/registry"
	"github.com/plinqx/hypha/internal/signing"
	"github.com/plinqx/hypha/internal/store"
)

// maxCounted is where the count of a filtered list stops.
const maxCounted = 10_000

func (a *api) listDeliveries(c *call) (reply, error) {
	return a.deliveryPage(c, id.Webhook{})
}

// listWebhookDeliveries lists those of a webhook that is there, or was.
func (a *api) listWebhookDeliveries(c *call) (reply, error) {
	webhook, err := c.webhookID()
	if err != nil {
		return reply{}, err
	}
	_, err = a.o.Registry.Get(c.Context(), c.tenant(), webhook)
	if hook.CodeOf(err) == hook.CodeNotFound {
		// Deleted webhooks keep their revisions, and their history stays.
		if _, err = a.o.History.WebhookRevision(c.Context(), c.tenant(), webhook, 1); hook.CodeOf(err) == hook.CodeNotFound {
			err = hook.NotFound("Webhook")
		}
	}
	if err != nil {
		return reply{}, err
	}
	return a.deliveryPage(c, webhook)
}

func (a *api) deliveryPage(c *call, webhook id.Webhook) (reply, error) {
	q := newQuery(c)
	ask := store.DeliveryQuery{
		Tenant: c.tenant(), Webhook: webhook, Status: q.status(), EventType: q.eventType("eventType"), EventID: q.eventID(),
		Limit: q.limit(), Before: q.cursor(),
	}
	ask.Since, ask.Until = q.span()
	if err := q.err(); err != nil {
		return reply{}, err
	}
	p, err := a.o.History.Deliveries(c.Context(), ask)
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusOK, value: page[deliveryView]{Data: viewDeliveries(p.Deliveries), NextCursor: q.next(p.Next)}}, nil
}

func (a *api) listFailed(c *call) (reply, error) {
	q := newQuery(c)
	failed := hook.StatusFailed
	ask := store.DeliveryQuery{
		Tenant: c.tenant(), Webhook: q.webhook(), Status: &failed, EventType: q.eventType("eventType"), Limit: q.limit(),
	}
	ask.Before, ask.Offset = q.cursorOrOffset()
	ask.Since, ask.Until = q.span()
	if err := q.err(); err != nil {
		return reply{}, err
	}
	p, err := a.o.History.Deliveries(c.Context(), ask)
	if err != nil {
		return reply{}, err
	}
	// The total is that of the list, wherever the page is in it.
	all := ask
	all.Before, all.Offset, all.Limit = id.Delivery{}, 0, 0
	most := int64(math.MaxInt64)
	if ask.EventType != "" || !ask.Since.IsZero() || !ask.Until.IsZero() {
		most = maxCounted
	}
	total, more, err := a.o.History.CountDeliveries(c.Context(), all, most)
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusOK, value: numberedPage[deliveryView]{
		Data: viewDeliveries(p.Deliveries), Total: total, TotalMore: more,
		Limit: ask.Limit, Offset: ask.Offset, NextCursor: q.next(p.Next),
	}}, nil
}

func (c *call) deliveryID() (id.Delivery, error) {
	d, err := id.ParseDelivery(c.param("delivery"))
	if err != nil {
		return d, hook.NotFound("Delivery")
	}
	return d, nil
}

type deliveryDetailView struct {
	deliveryView
	Event       *eventView    `json:"event"`
	AttemptList []attemptView `json:"attemptList"`
}

func (a *api) getDelivery(c *call) (reply, error) {
	delivery, err := c.deliveryID()
	if err != nil {
		return reply{}, err
	}
	d, err := a.o.History.Delivery(c.Context(), c.tenant(), delivery)
	if err != nil {
		return reply{}, err
	}
	attempts, err := a.o.History.Attempts(c.Context(), c.tenant(), delivery)
	if err != nil {
		return reply{}, err
	}
	event, err := a.o.History.Event(c.Context(), c.tenant(), d.PublicEventID)
	if err != nil && hook.CodeOf(err) != hook.CodeNotFound {
		return reply{}, err
	}
	out := deliveryDetailView{deliveryView: viewDelivery(d)}
	if err == nil {
		shown := viewEvent(event)
		out.Event = &shown
	}
	if out.AttemptList, err = a.viewAttempts(c, d, event, attempts); err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusOK, value: out}, nil
}

// viewAttempts shows attempts with their requests: the webhook as it was at each
// attempt's revision says what was sent. A revision or an event that is gone
// leaves the request out.
func (a *api) viewAttempts(c *call, d *hook.Delivery, event *hook.Event, attempts []hook.Attempt) ([]attemptView, error) {
	revisions := map[int64]*hook.Webhook{}
	out := make([]attemptView, len(attempts))
	for i := range attempts {
		at := &attempts[i]
		w, known := revisions[at.Revision]
		if !known {
			var err error
			if w, err = a.revision(c, d.Webhook, at.Revision); err != nil {
				return nil, err
			}
			revisions[at.Revision] = w
		}
		var request *requestView
		if w != nil && event != nil {
			var err error
			if request, err = a.viewRequest(w, d, event, at); err != nil {
				return nil, err
			}
		}
		out[i] = viewAttempt(at, request)
	}
	return out, nil
}

// revision answers a webhook as it was, nil if that is not known any more.
func (a *api) revision(c *call, webhook id.Webhook, revision int64) (*hook.Webhook, error) {
	row, err := a.o.History.WebhookRevision(c.Context(), c.tenant(), webhook, revision)
	if err != nil {
		if hook.CodeOf(err) == hook.CodeNotFound {
			return nil, nil
		}
		return nil, err
	}
	return a.o.Catalog.Open(row)
}

func (a *api) viewRequest(w *hook.Webhook, d *hook.Delivery, event *hook.Event, at *hook.Attempt) (*requestView, error) {
	signer, _, err := signing.Signer(a.o.Prefix, w, at.StartedAt)
	if err != nil {
		return nil, err
	}
	ours := http.Header{}
	ours.Set("Content-Type", "application/json")
	ours.Set("User-Agent", a.o.UserAgent)
	ours.Set(a.o.Prefix.String()+"-Event", d.EventType)
	ours.Set(a.o.Prefix.String()+"-Delivery", d.ID.String())
	if err := signer.Sign(ours, d.PublicEventID, at.StartedAt, event.Body); err != nil {
		return nil, err
	}
	headers := registry.MaskHeaders(w.Headers)
	for name, values := range ours {
		headers[name] = values[0]
	}
	return &requestView{Method: http.MethodPost, URL: w.URL, Headers: headers, bodyView: viewBody(event.Body)}, nil
}

// deliveryAction is the way into the endpoints that do something with a
// delivery, and take no body.
func (a *api) deliveryAction(c *call) (id.Delivery, error) {
	delivery, err := c.deliveryID()
	if err != nil {
		return delivery, err
	}
	return delivery, a.noBody(c)
}

func (a *api) retryDelivery(c *call) (reply, error) {
	delivery, err := a.deliveryAction(c)
	if err != nil {
		return reply{}, err
	}
	d, err := a.o.Replays.Retry(c.Context(), c.tenant(), delivery)
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusAccepted, value: viewDelivery(d)}, nil
}

func (a *api) cancelDelivery(c *call) (reply, error) {
	delivery, err := a.deliveryAction(c)
	if err != nil {
		return reply{}, err
	}
	d, err := a.o.Replays.Cancel(c.Context(), c.tenant(), delivery)
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusOK, value: viewDelivery(d)}, nil
}
