package sqlite

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/internal/store/codec"
)

// A delivery that this process holds is sent from memory, and nearly all are
// done within milliseconds. A row for it would be written twice, and its entries
// in the indexes of the queue would be made to be deleted. So it has none at
// first: its event's row names it (column held), and the store knows it. It gets
// its row together with its outcome, or before that when somebody is about to
// look for it, when it was given back, or when it is held for long.
//
// After a crash the rows that are missing are made from the events. So that this
// takes a moment however long the process ran, no more than heldSpan deliveries
// (and heldBytes of bodies, which lie before the column on disk) stand between
// the oldest one without a row and the newest event; settings.held_from says
// where to begin.

const (
	heldSpan  = 16_384
	heldBytes = 64 << 20
	// noteParts is how often held_from is brought up to date on the way of such a
	// span: a start after a crash may have to look at so much more.
	noteParts = 4

	sqlHeld = `SELECT e.n, e.tenant_id, e.id, e.type, e.created_at, e.given_id, e.deliveries, e.held
		FROM events e JOIN tenants t ON t.id = e.tenant_id WHERE e.n >= ? AND e.held IS NOT NULL ORDER BY e.n`

	// settleTime is how long somebody who reads waits for the writer; after that
	// they see what there is.
	settleTime = time.Second
)

// heldRow is a delivery without a row.
type heldRow struct {
	event   *heldEvent
	id      id.Delivery
	webhook id.Webhook
	trigger hook.Trigger
	era     int64
	// written says that it has a row by now, or needs none any more.
	written bool
}

// heldEvent is an event with such deliveries.
type heldEvent struct {
	n                int64
	tenant           id.Tenant
	id               id.Event
	given, eventType string
	due, expires     int64
	size             int // of its body
	rows             []heldRow
	left             int // rows that are not written
}

// held is what the store knows of deliveries without a row. All but tenants is
// for whoever has the writer's turn.
type held struct {
	lanes map[gaugeKey]map[id.Delivery]*heldRow
	// events are in the order of n; the first has something left.
	events []*heldEvent
	span   int // deliveries of events
	bytes  int // bodies of events
	last   int64
	// unnoted counts the events since held_from was written and the deliveries of
	// them that were held, and unnotedBytes the bodies of the latter's events.
	unnoted, unnotedBytes int

	mu      sync.Mutex
	tenants map[id.Tenant]int      // rows that are not written
	asked   map[id.Tenant]struct{} // of whom somebody is about to read, and waits for the turn
}

func newHeld() *held {
	return &held{lanes: map[gaugeKey]map[id.Delivery]*heldRow{}, tenants: map[id.Tenant]int{}, asked: map[id.Tenant]struct{}{}}
}

func (h *held) any(tenant id.Tenant) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.tenants[tenant] > 0
}

func (h *held) count(tenant id.Tenant, n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if left := h.tenants[tenant] + n; left != 0 {
		h.tenants[tenant] = left
	} else {
		delete(h.tenants, tenant)
	}
}

func (h *held) ask(tenant id.Tenant) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asked[tenant] = struct{}{}
}

// takeAsked answers who asked, and forgets them.
func (h *held) takeAsked() map[id.Tenant]struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	asked := h.asked
	h.asked = map[id.Tenant]struct{}{}
	return asked
}

// hold takes note of the deliveries of a new event that need no row yet, and
// answers what its row says of them; nil if there are none.
func (t *tx) hold(tenant id.Tenant, e *store.NewEvent, n int64) []byte {
	count := 0
	for i := range e.Deliveries {
		if e.Deliveries[i].Held {
			count++
		}
	}
	if count == 0 {
		return nil
	}
	ev := &heldEvent{
		n: n, tenant: tenant, id: e.ID, given: e.GivenID, eventType: e.Type,
		due: millis(e.Due), expires: millis(e.ExpiresAt), size: len(e.Body),
		rows: make([]heldRow, 0, count), left: count,
	}
	h := t.s.held
	for i := range e.Deliveries {
		d := &e.Deliveries[i]
		if !d.Held {
			continue
		}
		ev.rows = append(ev.rows, heldRow{event: ev, id: d.ID, webhook: d.Webhook, trigger: d.Trigger, era: t.era})
		key := gaugeKey{tenant, d.Webhook}
		lane := h.lanes[key]
		if lane == nil {
			lane = map[id.Delivery]*heldRow{}
			h.lanes[key] = lane
		}
		lane[d.ID] = &ev.rows[len(ev.rows)-1]
	}
	h.events = append(h.events, ev)
	t.heldEvents++
	return encodeHeld(e)
}

// heldRow finds a delivery that has no row; nil if it has one, or is not there.
func (t *tx) heldRow(tenant id.Tenant, webhook id.Webhook, delivery id.Delivery) *heldRow {
	r := t.s.held.lanes[gaugeKey{tenant, webhook}][delivery]
	if r == nil || r.written {
		return nil
	}
	return r
}

// rowGiven notes that a held delivery has a row, or needs none any more.
func (t *tx) rowGiven(r *heldRow) {
	r.written = true
	t.heldWritten = append(t.heldWritten, r)
}

// writeHeld gives a held delivery its row, as the one that waits.
func (t *tx) writeHeld(w *rowWriter, r *heldRow) error {
	t.rowGiven(r)
	e := r.event
	err := w.add(e.tenant[:], r.id[:], r.webhook[:], e.id[:], textOrNull(e.given), e.eventType,
		string(r.trigger), r.era, e.due, millis(r.id.Time()), e.expires)
	if err != nil {
		return fmt.Errorf("write deliveries: %w", err)
	}
	return nil
}

// settle gives rows to the held deliveries of a webhook that are not passed
// over.
func (t *tx) settle(tenant id.Tenant, webhook id.Webhook, pass func(id.Delivery) bool) error {
	lane := t.s.held.lanes[gaugeKey{tenant, webhook}]
	if len(lane) == 0 {
		return nil
	}
	w := t.newDeliveries()
	for delivery, r := range lane {
		if r.written || pass != nil && pass(delivery) {
			continue
		}
		if err := t.writeHeld(&w, r); err != nil {
			return err
		}
	}
	return w.flush()
}

// settleTenant gives rows to all held deliveries of a tenant.
func (t *tx) settleTenant(tenant id.Tenant) error {
	if !t.s.held.any(tenant) {
		return nil
	}
	return t.settleEvents(func(e *heldEvent) bool { return e.tenant == tenant })
}

// settleAll gives every held delivery its row, and notes that there is none
// without.
func (t *tx) settleAll() error {
	if err := t.settleEvents(func(*heldEvent) bool { return true }); err != nil {
		return err
	}
	return t.noteHeld()
}

func (t *tx) settleEvents(want func(*heldEvent) bool) error {
	w := t.newDeliveries()
	for _, e := range t.s.held.events {
		if e.left == 0 || !want(e) {
			continue
		}
		if err := t.writeHeldOf(&w, e); err != nil {
			return err
		}
	}
	return w.flush()
}

func (t *tx) writeHeldOf(w *rowWriter, e *heldEvent) error {
	for i := range e.rows {
		if r := &e.rows[i]; !r.written {
			if err := t.writeHeld(w, r); err != nil {
				return err
			}
		}
	}
	return nil
}

// boundHeld gives rows to what is held for so long that a start after a crash
// would have to look through too much.
func (t *tx) boundHeld() error {
	h := t.s.held
	span, bytes := h.span, h.bytes
	for _, e := range h.events[len(h.events)-t.heldEvents:] {
		span += len(e.rows)
		bytes += e.size
	}
	w := t.newDeliveries()
	for _, e := range h.events {
		// A start reads what lies between, whether it was held or not.
		if span <= heldSpan && bytes <= heldBytes && t.lastEvent-e.n < heldSpan {
			break
		}
		if err := t.writeHeldOf(&w, e); err != nil {
			return err
		}
		span -= len(e.rows)
		bytes -= e.size
	}
	if err := w.flush(); err != nil {
		return err
	}
	if h.unnoted < heldSpan/noteParts && h.unnotedBytes < heldBytes/noteParts {
		return nil
	}
	return t.noteHeld()
}

// noteHeld writes down where the first event is that has a delivery without a
// row.
func (t *tx) noteHeld() error {
	from := t.lastEvent + 1
	if e := t.firstHeld(); e != nil {
		from = e.n
	}
	t.heldNoted = true
	_, err := t.exec("UPDATE settings SET value = ? WHERE name = 'held_from'", from)
	return err
}

// firstHeld is the first event that has a delivery without a row; nil if there
// is none.
func (t *tx) firstHeld() *heldEvent {
	for _, e := range t.s.held.events {
		if e.unwritten() {
			return e
		}
	}
	return nil
}

func (e *heldEvent) unwritten() bool {
	for i := range e.rows {
		if !e.rows[i].written {
			return true
		}
	}
	return false
}

// keepHeld takes over what a committed transaction did to what is held.
func (s *Store) keepHeld(t *tx) {
	h := s.held
	if t.heldNoted {
		h.unnoted, h.unnotedBytes = 0, 0
	}
	h.unnoted += int(t.lastEvent - h.last)
	h.last = t.lastEvent
	for _, e := range h.events[len(h.events)-t.heldEvents:] {
		h.span += len(e.rows)
		h.bytes += e.size
		h.unnoted += len(e.rows)
		h.unnotedBytes += e.size
		h.count(e.tenant, len(e.rows))
	}
	for _, r := range t.heldWritten {
		h.drop(r)
		r.event.left--
		h.count(r.event.tenant, -1)
	}
	done := 0
	for ; done < len(h.events) && h.events[done].left == 0; done++ {
		h.span -= len(h.events[done].rows)
		h.bytes -= h.events[done].size
		h.events[done] = nil
	}
	if h.events = h.events[done:]; len(h.events) == 0 {
		h.events = nil
	}
}

// undoHeld takes back what a transaction did that was not committed.
func (s *Store) undoHeld(t *tx) {
	h := s.held
	for _, r := range t.heldWritten {
		r.written = false
	}
	kept := len(h.events) - t.heldEvents
	for _, e := range h.events[kept:] {
		for i := range e.rows {
			h.drop(&e.rows[i])
		}
	}
	clear(h.events[kept:])
	h.events = h.events[:kept]
}

func (h *held) drop(r *heldRow) {
	key := gaugeKey{r.event.tenant, r.webhook}
	lane := h.lanes[key]
	delete(lane, r.id)
	if len(lane) == 0 {
		delete(h.lanes, key)
	}
}

// settled sees to it that all deliveries of a tenant have rows, for one who is
// about to read them. Where that can't be, because the disk is full, say, what
// there is can be read all the same: only what is being sent is missing.
func (s *Store) settled(ctx context.Context, tenant id.Tenant) error {
	if !s.held.any(tenant) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	s.held.ask(tenant)
	release, err := s.takeTurn(ctx)
	if err != nil {
		return err
	}
	defer release()
	if !s.held.any(tenant) {
		return nil // somebody who had the turn before did it
	}
	// A commit costs as much for one as for all who wait: whoever publishes
	// waits behind it.
	asked := s.held.takeAsked()
	asked[tenant] = struct{}{} // not there if the one before failed
	return edge(s.transact(ctx, func(t *tx) error {
		return t.settleEvents(func(e *heldEvent) bool { _, ok := asked[e.tenant]; return ok })
	}))
}

// orUnsettled is the error of a search for something that was not found: it may
// be there, if settled failed.
func orUnsettled(err, unsettled error) error {
	if unsettled != nil && hook.CodeOf(err) == hook.CodeNotFound {
		return unsettled
	}
	return err
}

// recoverHeld makes the rows that a process was still to make when it ended.
func (s *Store) recoverHeld(ctx context.Context) error {
	var from int64
	err := s.writer.scan("SELECT value FROM settings WHERE name = 'held_from'", func(r row) { from = r.int(0) })
	if err == nil {
		s.held.last = from - 1
		err = s.writer.scan("SELECT max(n) FROM events", func(r row) { s.held.last = max(s.held.last, r.int(0)) })
	}
	if err != nil {
		return fmt.Errorf("read what was held in %s: %w", s.path, err)
	}
	if from > s.held.last {
		return nil // it ended well
	}
	err = s.transact(ctx, func(t *tx) error {
		w := t.newDeliveries()
		w.head = "INSERT OR IGNORE" + w.head[len("INSERT"):]
		if err := t.query(sqlHeld, func(r row) (bool, error) { return true, t.recoverEvent(&w, r) }, from); err != nil {
			return err
		}
		if err := w.flush(); err != nil {
			return err
		}
		return t.noteHeld()
	})
	if err != nil {
		return fmt.Errorf("take up what was held in %s: %w", s.path, err)
	}
	return nil
}

// recoverEvent reads a row of sqlHeld.
func (t *tx) recoverEvent(w *rowWriter, r row) error {
	tenant, event, due := readID[id.Tenant](r, 1), readID[id.Event](r, 2), r.int(4)
	expires, deliveries, err := decodeHeld(codec.SplitIDs(r.blob(6)), r.blob(7))
	if err != nil {
		return errors.Join(fmt.Errorf("event %s", event), err)
	}
	for _, d := range deliveries {
		err := w.add(tenant[:], d.ID[:], d.Webhook[:], event[:], textOrNull(r.text(5)), r.text(3),
			string(d.Trigger), t.era, due, millis(d.ID.Time()), expires)
		if err != nil {
			return err
		}
	}
	return nil
}
