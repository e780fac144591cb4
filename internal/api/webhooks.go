package api

import (
	"net/http"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/registry"
	"github.com/plinqx/hypha/internal/store"
)

func (c *call) webhookID() (id.Webhook, error) {
	w, err := id.ParseWebhook(c.param("webhook"))
	if err != nil {
		return w, hook.NotFound("Webhook")
	}
	return w, nil
}

// listWebhooks gives all, unless it is told a limit.
func (a *api) listWebhooks(c *call) (reply, error) {
	q := newQuery(c)
	limit := int(q.integer("limit", 1, maxLimit, 0))
	after, offset := q.cursorOrOffset()
	if err := q.err(); err != nil {
		return reply{}, err
	}
	all, err := a.o.Registry.List(c.Context(), c.tenant())
	if err != nil {
		return reply{}, err
	}
	total := len(all)
	if limit == 0 {
		limit = total
	}
	rows, next := pageOf(all[min(offset, total):], func(w *hook.Webhook) [16]byte { return w.ID }, after, limit)
	out := numberedPage[webhookView]{Data: make([]webhookView, len(rows)), Total: int64(total), Limit: limit, Offset: offset, NextCursor: q.next(next)}
	for i, w := range rows {
		out.Data[i] = a.webhookView(w)
	}
	return reply{status: http.StatusOK, value: out}, nil
}

// The most elements that are read of a webhook's lists: a few more than the
// registry takes, so that it can say what is allowed.
const (
	readEvents   = 1000
	readHeaders  = 100
	readVersions = 10
)

// readChange reads the fields of a webhook. Their rules are the registry's.
func readChange(o *object) registry.Change {
	return registry.Change{
		Name: o.text("name"), URL: o.text("url"), Events: o.texts("events", readEvents), Secret: o.text("secret"), Signatures: o.texts("signatures", readVersions),
		Headers: o.textMap("headers", readHeaders), TimeoutMS: o.integer("timeoutMs"),
		Description: o.text("description"), Enabled: o.boolean("enabled"),
	}
}

func (a *api) createWebhook(c *call) (reply, error) {
	wanted, err := decode(a, c, a.o.MaxBody, func(o *object) registry.Change {
		o.require("name", "url", "events")
		return readChange(o)
	}, func(wanted registry.Change) []hook.Detail {
		return a.o.Registry.Check(c.Context(), c.tenant(), nil, wanted)
	})
	if err != nil {
		return reply{}, err
	}
	made, err := a.o.Registry.Create(c.Context(), c.tenant(), wanted)
	if err != nil {
		return reply{}, err
	}
	v := a.webhookView(made.Webhook)
	v.Secret = made.Secret
	c.w.Header().Set("Location", "/services/webhooks/"+v.ID.String())
	return reply{status: http.StatusCreated, value: v}, nil
}

// heldWebhook is the webhook that the path names.
func (a *api) heldWebhook(c *call) (*hook.Webhook, error) {
	webhook, err := c.webhookID()
	if err != nil {
		return nil, err
	}
	return a.o.Registry.Get(c.Context(), c.tenant(), webhook)
}

func (a *api) getWebhook(c *call) (reply, error) {
	w, err := a.heldWebhook(c)
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusOK, value: a.webhookView(w)}, nil
}

func (a *api) updateWebhook(c *call) (reply, error) {
	// Before the body: what is not there has no fields to be wrong.
	held, err := a.heldWebhook(c)
	if err != nil {
		return reply{}, err
	}
	change, err := decode(a, c, a.o.MaxBody, func(o *object) registry.Change {
		change := readChange(o)
		change.PausedUntil = o.timeOrNull("pausedUntil")
		return change
	}, func(change registry.Change) []hook.Detail {
		return a.o.Registry.Check(c.Context(), c.tenant(), held, change)
	})
	if err != nil {
		return reply{}, err
	}
	w, err := a.o.Registry.Update(c.Context(), c.tenant(), held.ID, change)
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusOK, value: a.webhookView(w)}, nil
}

func (a *api) deleteWebhook(c *call) (reply, error) {
	webhook, err := c.webhookID()
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusNoContent}, a.o.Registry.Delete(c.Context(), c.tenant(), webhook)
}

// webhookAction is the way into the endpoints that do something with a webhook
// that is there, and take no body.
func (a *api) webhookAction(c *call) (*hook.Webhook, error) {
	w, err := a.heldWebhook(c)
	if err != nil {
		return nil, err
	}
	return w, a.noBody(c)
}

// rotateSecret takes a body or none: all in it may be left out.
func (a *api) rotateSecret(c *call) (reply, error) {
	held, err := a.heldWebhook(c)
	if err != nil {
		return reply{}, err
	}
	var rotation registry.Rotation
	if !c.bodiless() {
		rotation, err = decode(a, c, a.o.MaxBody, func(o *object) registry.Rotation {
			return registry.Rotation{Secret: o.text("secret"), GraceSeconds: o.integer("graceSeconds")}
		}, func(rotation registry.Rotation) []hook.Detail { return a.o.Registry.CheckRotation(held, rotation) })
		if err != nil {
			return reply{}, err
		}
	}
	made, err := a.o.Registry.Rotate(c.Context(), c.tenant(), held.ID, rotation)
	if err != nil {
		return reply{}, err
	}
	v := a.webhookView(made.Webhook)
	v.Secret = made.Secret
	return reply{status: http.StatusOK, value: v}, nil
}

func (a *api) resumeWebhook(c *call) (reply, error) {
	w, err := a.webhookAction(c)
	if err != nil {
		return reply{}, err
	}
	if w, err = a.o.Registry.Resume(c.Context(), c.tenant(), w.ID); err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusOK, value: a.webhookView(w)}, nil
}

type discardView struct {
	Discarded int64 `json:"discarded"`
}

func (a *api) discardQueue(c *call) (reply, error) {
	w, err := a.webhookAction(c)
	if err != nil {
		return reply{}, err
	}
	n, err := a.o.Replays.DiscardQueue(c.Context(), c.tenant(), w.ID)
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusAccepted, value: discardView{n}}, nil
}

type replayView struct {
	Retried  int64     `json:"retried"`
	ReplayID id.Replay `json:"replayId"`
}

func (a *api) retryAllFailed(c *call) (reply, error) {
	w, err := a.webhookAction(c)
	if err != nil {
		return reply{}, err
	}
	job, err := a.o.Replays.RetryAllFailed(c.Context(), c.tenant(), w.ID)
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusAccepted, value: replayView{Retried: job.Total, ReplayID: job.ID}}, nil
}

// testView is the attempt of a test, and where to find it again.
type testView struct {
	DeliveryID id.Delivery `json:"deliveryId"`
	attemptView
}

func (a *api) testWebhook(c *call) (reply, error) {
	w, err := a.webhookAction(c)
	if err != nil {
		return reply{}, err
	}
	delivery, attempt, err := a.o.Publisher.Test(c.Context(), c.tenant(), w.ID, c.principal.Check)
	if err != nil {
		return reply{}, err
	}
	d, err := a.o.History.Delivery(c.Context(), c.tenant(), delivery)
	if err != nil {
		return reply{}, err
	}
	event, err := a.o.History.Event(c.Context(), c.tenant(), d.PublicEventID)
	if err != nil {
		return reply{}, err
	}
	shown, err := a.viewAttempts(c, d, event, []hook.Attempt{*attempt})
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusOK, value: testView{DeliveryID: delivery, attemptView: shown[0]}}, nil
}

func (a *api) stats(c *call) (reply, error) {
	q := newQuery(c)
	ask := store.StatsQuery{Tenant: c.tenant(), Webhook: q.webhook()}
	ask.Since, ask.Until = q.span()
	if err := q.err(); err != nil {
		return reply{}, err
	}
	ask.Since, ask.Until = ask.Since.Truncate(time.Minute), ask.Until.Truncate(time.Minute)
	s, err := a.o.History.Stats(c.Context(), ask)
	if err != nil {
		return reply{}, err
	}
	v := statsView{
		TotalDeliveries: s.Succeeded + s.Failed, SuccessfulDeliveries: s.Succeeded, FailedDeliveries: s.Failed,
		PendingDeliveries: s.Pending,
		LatencyMS: latencyView{
			P50: milliseconds(s.Latency.Quantile(0.5)), P95: milliseconds(s.Latency.Quantile(0.95)), P99: milliseconds(s.Latency.Quantile(0.99)),
		},
	}
	if v.TotalDeliveries > 0 {
		v.SuccessRate = float64(v.SuccessfulDeliveries) / float64(v.TotalDeliveries)
	}
	return reply{status: http.StatusOK, value: v}, nil
}
