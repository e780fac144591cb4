package dispatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/plinqx/hypha/internal/catalog"
	"github.com/plinqx/hypha/internal/contain"
	"github.com/plinqx/hypha/internal/egress"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/lane"
	"github.com/plinqx/hypha/internal/send"
	"github.com/plinqx/hypha/internal/signing"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/signature"
)

// target is what a webhook's requests are made of, worked out once for a
// revision of it.
type target struct {
	revision int64
	url      *url.URL
	head     *send.Head // with the webhook's own headers, and ours that don't change
	signer   *signature.Signer
	// signsUntil is when the signer must be made anew, because a secret or key
	// that it has is at its end; zero for never.
	signsUntil time.Time
	// vault is what the headers' references were filled in from; nil if they have
	// none.
	vault   *catalog.Vault
	timeout time.Duration
	redact  send.Redactor
}

// vaultError is why a webhook's headers can't be filled in. Its text may be shown.
type vaultError struct{ text string }

func (e *vaultError) Error() string { return e.text }

func (d *Dispatcher) newTarget(w *hook.Webhook, held *catalog.Vault, now time.Time) (*target, error) {
	u, err := url.Parse(w.URL)
	if err != nil {
		return nil, err
	}
	u.RawQuery = asciiQuery(u.RawQuery)
	t := &target{revision: w.Revision, url: u, timeout: w.Timeout}
	header := make(http.Header, len(w.Headers)+2)
	var hidden []string
	for name, template := range w.Headers {
		value, filled, err := fill(name, template, held)
		if err != nil {
			return nil, err
		}
		header.Set(name, value)
		if egress.Credential(name) || len(filled) > 0 {
			hidden = append(append(hidden, value), filled...)
		}
		if len(filled) > 0 {
			t.vault = held
		}
	}
	header.Set("Content-Type", "application/json")
	header.Set("User-Agent", d.o.UserAgent)
	// Ours vary, so that none of the webhook's can take their place.
	t.head = send.NewHead(u, header, d.eventHeader, d.deliveryHeader,
		signature.HeaderID, signature.HeaderTimestamp, signature.HeaderSignature,
		d.o.Prefix.Timestamp(), d.o.Prefix.Signature(), d.o.Prefix.Previous())
	// Those at their end too: a receiver that was not told may show one.
	for _, secret := range w.Secrets {
		hidden = append(hidden, secret.Value)
	}
	t.redact = send.NewRedactor(hidden)
	t.signer, t.signsUntil, err = signing.Signer(d.o.Prefix, w, now)
	return t, err
}

// fill puts the values of vault secrets into a header, and answers them too. What
// can't be filled in is not sent: its text tells a receiver what nobody meant to.
func fill(name, template string, held *catalog.Vault) (value string, filled []string, err error) {
	t, err := hook.ParseTemplate(template)
	if err != nil {
		return "", nil, &vaultError{fmt.Sprintf("the header %s can't be read", name)}
	}
	value, missing := t.Fill(func(secret string) (string, bool) {
		v, ok := held.Value(secret)
		filled = append(filled, v)
		return v, ok
	})
	switch {
	case missing != "":
		return "", nil, &vaultError{fmt.Sprintf("the header %s refers to the vault secret %s, which does not exist; nothing was sent", name, missing)}
	case len(filled) > 0 && len(value) > egress.MaxFilledLength:
		return "", nil, &vaultError{fmt.Sprintf("the header %s has more than %d bytes with its vault secrets filled in; nothing was sent", name, egress.MaxFilledLength)}
	default:
		return value, filled, nil
	}
}

// asciiQuery escapes what a URL may hold as it was written and a request line
// may not.
func asciiQuery(raw string) string {
	var b strings.Builder
	for i := range len(raw) {
		if c := raw[i]; c < 0x80 {
			b.WriteByte(c)
		} else {
			b.WriteString(url.QueryEscape(string([]byte{c})))
		}
	}
	return b.String()
}

// maxVarying is how many headers differ from attempt to attempt.
const maxVarying = 8

// headers puts those of one attempt into h.
func (d *Dispatcher) headers(h http.Header, t *target, it *lane.Item, at time.Time) error {
	clear(h)
	values := []string{it.EventType, it.ID.String()}
	h[d.eventHeader] = values[0:1:1]
	h[d.deliveryHeader] = values[1:2:2]
	return t.signer.Sign(h, it.PublicEventID, at, it.Body)
}

// attempt sends one delivery that a lane gave, and says what becomes of it. The
// worker that it runs in is free again before it returns; the map is the
// worker's.
func (d *Dispatcher) attempt(l *laneState, it *lane.Item, w worker, h http.Header) {
	outcome, verdict, a := d.try(l, it, h, false)
	d.mu.Lock()
	defer d.unlock()
	l.Finished(verdict, d.now())
	d.turned(l)
	if outcome == nil {
		l.Forget(it.ID)
	} else {
		// Under the lock, so that the count of what is not recorded can't be
		// read between the end of the attempt and here.
		d.o.Committer.Record(outcome)
		if a != nil {
			d.o.Attempted(a, outcome.Change)
		}
	}
	d.rest(w)
	turn := d.fair.tenant(l.Tenant)
	turn.inFlight--
	d.ended()
	d.fair.requeue(turn)
	d.update(l)
	d.pump()
}

// test sends a delivery that somebody waits for, whatever holds its lane back.
func (d *Dispatcher) test(l *laneState, it *lane.Item, w *watch) {
	outcome, _, a := d.try(l, it, make(http.Header, maxVarying), true)
	d.mu.Lock()
	defer d.unlock()
	if outcome == nil {
		l.Forget(it.ID) // the webhook is gone, or we are stopping
	} else {
		d.o.Committer.Record(outcome)
	}
	if a == nil {
		w.attempt <- nil
	} else {
		w.result = a
		d.o.Attempted(a, outcome.Change)
	}
	d.testEnded(l.Tenant)
	d.ended()
	d.update(l)
	d.pump()
}

// ended frees a slot. d.mu is held.
func (d *Dispatcher) ended() {
	if d.inFlight--; d.stopping && d.inFlight == 0 {
		close(d.idle) // nothing starts any more: it happens once
	}
}

// try makes the attempt, if the webhook still wants it. A nil outcome gives the
// delivery back as it was. The map is room for its headers.
func (d *Dispatcher) try(l *laneState, it *lane.Item, h http.Header, whatever bool) (outcome *store.Outcome, verdict lane.Verdict, made *hook.Attempt) {
	now := d.now()
	var w *hook.Webhook
	var a *hook.Attempt
	defer func() {
		if p := recover(); p != nil {
			_ = d.o.Guard.Caught(contain.Delivery, "an attempt", p, "tenant", l.Tenant, "webhook", l.Webhook, "delivery", it.ID) // logged, and that is all
			outcome, verdict, made = d.broken(l, it, w, a, now)
		}
	}()
	if !it.ExpiresAt.After(now) {
		return d.expired(l, it, now), lane.NoWord, nil
	}
	w, err := d.look(l)
	if err != nil || w == nil || !whatever && (!w.Enabled || w.PausedUntil.After(now)) {
		return nil, lane.NoWord, nil
	}
	d.mu.Lock()
	t := l.target
	d.mu.Unlock()
	snap, err := d.o.Catalog.Tenant(d.hard, l.Tenant)
	if err != nil {
		return nil, lane.NoWord, nil
	}
	if t == nil || t.revision != w.Revision || t.vault != nil && t.vault != snap.Vault() || !t.signsUntil.IsZero() && !t.signsUntil.After(now) {
		if t, err = d.newTarget(w, snap.Vault(), now); err != nil {
			if newest, ok := snap.Webhook(l.Webhook); !ok || newest.Revision != w.Revision {
				return nil, lane.NoWord, nil // it changed this moment, and the vault with it
			}
			d.o.Logger.Error("a webhook's requests can't be made", "tenant", l.Tenant, "webhook", l.Webhook, "err", err)
			why := "the request could not be made"
			if v := (*vaultError)(nil); errors.As(err, &v) {
				why = v.text
			}
			return d.decide(l, it, w, &hook.Attempt{StartedAt: now, Failure: &hook.Failure{Kind: hook.FailureInternal, Message: why}})
		}
		d.mu.Lock()
		l.target = t
		d.mu.Unlock()
	}
	if err := d.headers(h, t, it, now); err != nil {
		d.o.Logger.Error("a delivery can't be signed", "tenant", l.Tenant, "webhook", l.Webhook, "delivery", it.ID, "err", err)
		return d.decide(l, it, w, &hook.Attempt{StartedAt: now, Failure: &hook.Failure{Kind: hook.FailureInternal, Message: "the request could not be signed"}})
	}
	if !d.o.MaySend() {
		return nil, lane.NoWord, nil // what came before took too long
	}
	a = d.o.Sender.Send(d.hard, send.Request{Tenant: l.Tenant, URL: t.url, Head: t.head, Header: h, Body: it.Body, Timeout: t.timeout, Redact: t.redact})
	a.StartedAt = now // the time that was signed
	if d.hard.Err() != nil && a.Failure != nil {
		return nil, lane.NoWord, nil // we broke it off ourselves: it counts for nothing
	}
	return d.decide(l, it, w, a)
}

// afterPanic is when a delivery is tried again of which the schedule could not be
// asked.
const afterPanic = 5 * time.Minute

// broken is try's answer when it panicked: w is nil if it had not come so far as to
// know the webhook, a if it had not sent anything that came to an end. Sent or not,
// the attempt is one, so that a delivery that always panics is given up some day.
func (d *Dispatcher) broken(l *laneState, it *lane.Item, w *hook.Webhook, a *hook.Attempt, began time.Time) (outcome *store.Outcome, verdict lane.Verdict, made *hook.Attempt) {
	if w == nil {
		if w, _ = d.o.Catalog.Held(l.Tenant, l.Webhook); w == nil {
			return nil, lane.NoWord, nil // it is read again before anything is sent
		}
	}
	if a == nil {
		a = &hook.Attempt{Failure: &hook.Failure{Kind: hook.FailureInternal, Message: "the attempt failed within the server"}, Duration: d.now().Sub(began)}
	}
	a.StartedAt = began
	defer func() {
		if p := recover(); p != nil {
			// Twice: it was what decides.
			_ = d.o.Guard.Caught(contain.Delivery, "what is done after an attempt", p, "tenant", l.Tenant, "webhook", l.Webhook, "delivery", it.ID) // logged, and that is all
			end := began.Add(a.Duration)
			outcome, verdict, made = &store.Outcome{
				Tenant: l.Tenant, Webhook: l.Webhook, Delivery: it.ID, Attempt: *a, Change: hook.Succeeded, Try: it.Try + 1, At: end,
			}, lane.NoWord, a
			if a.Failure != nil {
				outcome.Change, outcome.Due = hook.Postponed, end.Add(afterPanic)
			}
		}
	}()
	return d.decide(l, it, w, a)
}

// decide turns an attempt into its outcome, and does what the receiver asked
// for.
func (d *Dispatcher) decide(l *laneState, it *lane.Item, w *hook.Webhook, a *hook.Attempt) (*store.Outcome, lane.Verdict, *hook.Attempt) {
	a.Number, a.Trigger, a.Revision = it.Attempts+1, it.Trigger, w.Revision
	end := a.StartedAt.Add(a.Duration)
	decision := d.o.Schedule.Decide(a, it.Try+1, end, d.o.Chance())
	now, err := d.o.Catalog.Webhook(d.hard, l.Tenant, l.Webhook)
	if err != nil && decision.Change == hook.Postponed && hook.CodeOf(err) == hook.CodeNotFound {
		// It was deleted meanwhile, and its queue with it.
		decision.Change, decision.Due = hook.Exhausted, time.Time{}
	}
	if err == nil && now.URL != w.URL {
		// It has another receiver by now: what this one wishes is its own matter.
		decision.PauseUntil, decision.Gone = time.Time{}, false
	}
	if !decision.PauseUntil.IsZero() {
		d.tell(l, "pause", func(ctx context.Context) error {
			return d.o.Holder.Pause(ctx, l.Tenant, l.Webhook, decision.PauseUntil)
		})
	}
	if decision.Gone {
		d.tell(l, "disable", func(ctx context.Context) error {
			return d.o.Holder.Disable(ctx, l.Tenant, l.Webhook, hook.DisabledGone)
		})
	}
	d.report(l, it, a)
	if d.o.Logger.Enabled(d.hard, slog.LevelDebug) { // its arguments cost, whether they are written or not
		d.o.Logger.Debug("attempt", "tenant", l.Tenant, "webhook", l.Webhook, "delivery", it.ID, "event", it.PublicEventID,
			"type", it.EventType, "number", a.Number, "status", a.StatusCode, "duration", a.Duration, "failure", failureKind(a.Failure), "cause", failureCause(a.Failure), "due", decision.Due)
	}
	return &store.Outcome{
		Tenant: l.Tenant, Webhook: l.Webhook, Delivery: it.ID, Attempt: *a,
		Change: decision.Change, Try: it.Try + 1, Due: decision.Due, At: end,
	}, lane.Judge(a), a
}

// tell changes the webhook before the outcome is recorded, so that the lane
// does not send on meanwhile.
func (d *Dispatcher) tell(l *laneState, what string, change func(context.Context) error) {
	if err := change(d.hard); err != nil && hook.CodeOf(err) != hook.CodeNotFound {
		d.o.Logger.Warn("a webhook could not be changed as its receiver asked", "change", what, "tenant", l.Tenant, "webhook", l.Webhook, "err", err)
	}
}

func (d *Dispatcher) expired(l *laneState, it *lane.Item, now time.Time) *store.Outcome {
	return &store.Outcome{
		Tenant: l.Tenant, Webhook: l.Webhook, Delivery: it.ID, Attempt: hook.Attempt{}, Change: hook.Expired, At: now,
		Failure: &hook.Failure{Kind: hook.FailureExpired, Message: "the delivery was not made in the time that it had"},
	}
}

// reportEvery bounds the log of what an operator may have to mend. One fault
// fails every attempt of thousands, and a tenant may ask for as many as it
// likes; the metrics count them, and at the level debug the log has each.
const reportEvery = 10 * time.Second

// report tells the operator what customers are not told.
func (d *Dispatcher) report(l *laneState, it *lane.Item, a *hook.Attempt) {
	if a.Failure == nil || a.Failure.Cause == nil {
		return
	}
	switch a.Failure.Kind {
	case hook.FailureProxy:
		d.proxyReports.Do(func() {
			d.o.Logger.Warn("the egress proxy made no connection", "tenant", l.Tenant, "webhook", l.Webhook, "delivery", it.ID, "cause", a.Failure.Cause)
		})
	case hook.FailureBlocked:
		d.blockedReports.Do(func() {
			d.o.Logger.Info("a webhook leads to an address that may not be called", "tenant", l.Tenant, "webhook", l.Webhook, "delivery", it.ID, "cause", a.Failure.Cause)
		})
	default:
	}
}

func failureCause(f *hook.Failure) error {
	if f == nil {
		return nil
	}
	return f.Cause
}

func failureKind(f *hook.Failure) hook.FailureKind {
	if f == nil {
		return ""
	}
	return f.Kind
}
