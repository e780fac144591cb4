package lane_test

import (
	"cmp"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/lane"
	"github.com/plinqx/hypha/internal/store"
)

// row is a delivery on the model's disk.
type row struct {
	id      id.Delivery
	seq     int // of its commit
	due     time.Time
	trigger hook.Trigger
	done    bool
}

// accept is a delivery that is being committed.
type accept struct {
	id    id.Delivery
	place bool
}

// outcome is one that is not on disk yet.
type outcome struct {
	id  id.Delivery
	due time.Time
}

// world is a lane, the disk under it, and an owner that does what package
// dispatch does, in an order that is drawn.
type world struct {
	t    *rapid.T
	lane *lane.Lane
	now  time.Time
	// strict leaves out all that may change the order of deliveries.
	strict bool

	n          int
	seq        int
	disk       map[id.Delivery]*row
	accepts    []accept
	waiting    map[id.Delivery]bool
	background int
	inFlight   []id.Delivery
	unrecorded []outcome
	sent       []id.Delivery

	claiming bool // asked of the committer
	limit    int
	read     *claim // read from the disk, and not brought to the lane yet
}

type claim struct {
	rows    []*row
	more    bool
	nextDue time.Time
}

func newWorld(t *rapid.T, strict bool) *world {
	w := &world{t: t, lane: lane.New(id.Tenant{1}, id.Webhook{1}), now: start, strict: strict,
		disk: make(map[id.Delivery]*row), waiting: make(map[id.Delivery]bool)}
	w.lane.Configure(true, time.Time{}, start)
	return w
}

// settle is what the owner does after each call.
func (w *world) settle() {
	for _, it := range w.lane.Settle(w.now) {
		w.left(it)
	}
}

// left notes that an item is in the lane's memory no more.
func (w *world) left(it *lane.Item) {
	if !w.waiting[it.ID] {
		w.t.Fatalf("the lane gave %v, which it does not have", it.ID)
	}
	delete(w.waiting, it.ID)
	if it.Trigger == hook.TriggerReplay {
		w.background--
	}
}

func (w *world) publish(n int) {
	for range n {
		w.n++
		w.accepts = append(w.accepts, accept{deliveryID(w.n), w.lane.Reserve(w.now)})
	}
}

// commit writes the i-th of what waits for it, and hands it over.
func (w *world) commit(i int) {
	a := w.accepts[i]
	w.accepts = slices.Delete(w.accepts, i, i+1)
	w.seq++
	w.disk[a.id] = &row{id: a.id, seq: w.seq, due: w.now, trigger: hook.TriggerAuto}
	if !a.place {
		w.lane.Committed()
	} else if w.lane.HandOver(&lane.Item{Queued: store.Queued{ID: a.id, Trigger: hook.TriggerAuto}}) {
		w.waiting[a.id] = true
	}
	w.settle()
}

func (w *world) next(share int) {
	it := w.lane.Next(w.now, share)
	if it == nil {
		return
	}
	w.left(it)
	if r := w.disk[it.ID]; r == nil || r.done {
		w.t.Fatalf("%v is given to be sent and is not queued on disk", it.ID)
	}
	if slices.Contains(w.inFlight, it.ID) || slices.ContainsFunc(w.unrecorded, func(o outcome) bool { return o.id == it.ID }) {
		w.t.Fatalf("%v is given to be sent a second time", it.ID)
	}
	w.inFlight = append(w.inFlight, it.ID)
	w.sent = append(w.sent, it.ID)
	if len(w.inFlight) > share {
		w.t.Fatalf("%d in flight of %d", len(w.inFlight), share)
	}
}

// finish ends the i-th attempt: it succeeds, is due again after a time, or is
// given back.
func (w *world) finish(i int, v lane.Verdict, forget bool, again time.Duration) {
	d := w.inFlight[i]
	w.inFlight = slices.Delete(w.inFlight, i, i+1)
	w.lane.Finished(v, w.now)
	switch {
	case forget:
		w.lane.Forget(d)
	case again > 0:
		w.unrecorded = append(w.unrecorded, outcome{d, w.now.Add(again)})
	default:
		w.unrecorded = append(w.unrecorded, outcome{id: d})
	}
	w.settle()
}

func (w *world) record(i int) {
	o := w.unrecorded[i]
	w.unrecorded = slices.Delete(w.unrecorded, i, i+1)
	r := w.disk[o.id]
	r.due, r.done = o.due, r.done || o.due.IsZero()
	w.lane.Recorded(o.id, o.due)
	w.settle()
}

func (w *world) ask() {
	if limit, ok := w.lane.WantsClaim(w.now); ok {
		if w.claiming {
			w.t.Fatal("two claims at once")
		}
		w.lane.Claiming(limit)
		w.claiming, w.limit = true, limit
	}
}

// readDisk is the store's part of a claim.
func (w *world) readDisk(limit int) {
	c := &claim{}
	held := w.lane.Held()
	for _, r := range w.queue() {
		if _, ok := held[r.id]; ok {
			continue
		}
		switch {
		case r.due.After(w.now):
			if c.nextDue.IsZero() {
				c.nextDue = r.due
			}
		case len(c.rows) < min(w.limit, limit):
			c.rows = append(c.rows, r)
		default:
			c.more = true
		}
	}
	w.claiming, w.read = false, c
}

// queue is what is unfinished on disk, in the order of claims.
func (w *world) queue() []*row {
	var rows []*row
	for _, r := range w.disk {
		if !r.done {
			rows = append(rows, r)
		}
	}
	slices.SortFunc(rows, func(a, b *row) int { return cmp.Or(a.due.Compare(b.due), cmp.Compare(a.seq, b.seq)) })
	return rows
}

func (w *world) bring() {
	c := w.read
	w.read = nil
	items := make([]*lane.Item, len(c.rows))
	for i, r := range c.rows {
		if w.waiting[r.id] {
			w.t.Fatalf("%v is brought from disk and was in memory", r.id)
		}
		items[i] = &lane.Item{Queued: store.Queued{ID: r.id, Trigger: r.trigger}}
	}
	if w.lane.Claimed(items, c.more, c.nextDue) {
		for _, r := range c.rows {
			w.waiting[r.id] = true
			if r.trigger == hook.TriggerReplay {
				w.background++
			}
		}
	}
	w.settle()
}

// drop changes a delivery's row as a person asked: cancels it, or has it sent
// again now.
func (w *world) drop(d id.Delivery, cancel, replay bool) {
	if it, ok := w.lane.DropOne(d); ok {
		w.left(it)
	} else if w.lane.Holds(d) {
		return
	}
	r := w.disk[d]
	if r.done = cancel; !cancel {
		r.due = w.now
		if r.trigger = hook.TriggerManual; replay {
			r.trigger = hook.TriggerReplay
		}
		w.lane.Wake()
	}
	w.settle()
}

// discard gives up what is queued on disk.
func (w *world) discard() {
	for _, r := range w.queue() {
		if !w.lane.Holds(r.id) {
			r.done = true
		}
	}
}

func (w *world) check() {
	t := w.t
	places := 0
	for _, a := range w.accepts {
		if a.place {
			places++
		}
	}
	if got, want := w.lane.Waiting(), len(w.waiting); got != want {
		t.Fatalf("%d wait in memory, want %d", got, want)
	}
	if got, want := w.lane.InFlight(), len(w.inFlight); got != want {
		t.Fatalf("%d in flight, want %d", got, want)
	}
	if live := len(w.waiting) - w.background; live+places > lane.Capacity || w.background > lane.Capacity {
		t.Fatalf("%d live and %d replays in memory, %d places taken: more than %d", live, w.background, places, lane.Capacity)
	}
	if got, want := len(w.lane.Held()), len(w.waiting)+len(w.inFlight)+len(w.unrecorded); got != want {
		t.Fatalf("%d held, want %d", got, want)
	}
	for d := range w.waiting {
		if !w.lane.Holds(d) {
			t.Fatalf("%v waits in memory and is not held", d)
		}
	}
}

// drain lets the world run until nothing more happens by itself. Time moves to
// when the lane asks to be looked at, and no further: what is left after that
// would have been left for ever.
func (w *world) drain() {
	w.lane.Discard(false)
	w.settle()
	w.lane.Configure(true, time.Time{}, w.now)
	w.settle()
	for range 100_000 {
		w.ask()
		before := len(w.sent)
		w.next(roomy)
		switch {
		case w.read != nil:
			w.bring()
		case len(w.accepts) > 0:
			w.commit(0)
		case w.claiming:
			w.readDisk(lane.Capacity)
		case len(w.inFlight) > 0:
			w.finish(0, lane.Healthy, false, 0)
		case len(w.unrecorded) > 0:
			w.record(0)
		case len(w.sent) > before:
		default:
			at := w.lane.NextWake(w.now)
			if at.IsZero() {
				if left := w.queue(); len(left) > 0 {
					w.t.Fatalf("%d deliveries are left on disk, and nothing will ever fetch them; the first is %+v", len(left), *left[0])
				}
				return
			}
			if !at.After(w.now) {
				w.t.Fatal("the lane asks to be looked at, and wants nothing")
			}
			w.now = at
			w.settle()
		}
		w.check()
	}
	w.t.Fatal("the lane does not come to rest")
}

func index(t *rapid.T, n int) int {
	if n == 0 {
		t.SkipNow()
	}
	return rapid.IntRange(0, n-1).Draw(t, "which")
}

// committer reports whether it is free: between the two halves of a claim it
// does nothing else.
func (w *world) committer() {
	if w.read != nil {
		w.t.SkipNow()
	}
}

func (w *world) actions() map[string]func(*rapid.T) {
	again := rapid.SampledFrom([]time.Duration{0, 0, 0, time.Millisecond, time.Second, time.Minute})
	some := rapid.SampledFrom([]int{1, 1, 2, 5, 100})
	all := map[string]func(*rapid.T){
		"": func(*rapid.T) { w.check() },
		"publish": func(t *rapid.T) {
			w.publish(some.Draw(t, "n"))
		},
		"publish without memory": func(*rapid.T) {
			w.n++
			w.lane.Spill()
			w.accepts = append(w.accepts, accept{deliveryID(w.n), false})
		},
		"commit": func(t *rapid.T) {
			w.committer()
			n := min(some.Draw(t, "n"), len(w.accepts))
			for range n {
				i := 0
				if !w.strict {
					i = index(t, len(w.accepts))
				}
				w.commit(i)
			}
		},
		"refuse": func(t *rapid.T) {
			w.committer()
			i := index(t, len(w.accepts))
			w.lane.Release(w.accepts[i].place)
			w.accepts = slices.Delete(w.accepts, i, i+1)
			w.settle()
		},
		"send": func(t *rapid.T) {
			share := rapid.SampledFrom([]int{roomy, 1000, 2000}).Draw(t, "share")
			for range some.Draw(t, "n") {
				w.next(share)
			}
		},
		"succeed": func(t *rapid.T) {
			for range min(some.Draw(t, "n"), len(w.inFlight)) {
				w.finish(index(t, len(w.inFlight)), lane.Healthy, false, 0)
			}
		},
		"record": func(t *rapid.T) {
			w.committer()
			for range min(some.Draw(t, "n"), len(w.unrecorded)) {
				w.record(index(t, len(w.unrecorded)))
			}
		},
		"ask": func(*rapid.T) { w.ask() },
		"claim": func(t *rapid.T) {
			w.committer()
			if !w.claiming {
				t.SkipNow()
			}
			w.readDisk(rapid.SampledFrom([]int{1, 10, lane.Capacity}).Draw(t, "bytes allow"))
		},
		"bring": func(t *rapid.T) {
			if w.read == nil {
				t.SkipNow()
			}
			w.bring()
		},
		"claim fails": func(t *rapid.T) {
			w.committer()
			if !w.claiming {
				t.SkipNow()
			}
			w.claiming = false
			w.lane.ClaimFailed(w.now.Add(time.Second))
			w.settle()
		},
		"time": func(t *rapid.T) {
			w.now = w.now.Add(rapid.SampledFrom([]time.Duration{time.Millisecond, time.Second, time.Minute}).Draw(t, "by"))
			w.settle()
		},
		"configure": func(t *rapid.T) {
			var pause time.Time
			if rapid.Bool().Draw(t, "paused") {
				pause = w.now.Add(time.Minute)
			}
			w.lane.Configure(rapid.Bool().Draw(t, "enabled"), pause, w.now)
			w.settle()
		},
	}
	if w.strict {
		return all
	}
	all["fail"] = func(t *rapid.T) {
		for range min(some.Draw(t, "n"), len(w.inFlight)) {
			v := rapid.SampledFrom([]lane.Verdict{lane.Ailing, lane.Ailing, lane.Healthy, lane.NoWord}).Draw(t, "verdict")
			w.finish(index(t, len(w.inFlight)), v, false, again.Draw(t, "again"))
		}
	}
	all["forget"] = func(t *rapid.T) {
		w.finish(index(t, len(w.inFlight)), lane.NoWord, true, 0)
	}
	all["drop"] = func(t *rapid.T) {
		w.committer()
		d := deliveryID(1 + index(t, w.n))
		if w.disk[d] != nil {
			w.drop(d, rapid.Bool().Draw(t, "cancel"), rapid.Bool().Draw(t, "replay"))
		}
	}
	all["discard"] = func(t *rapid.T) {
		w.committer()
		w.lane.Discard(true)
		w.settle()
		w.discard()
		if rapid.Bool().Draw(t, "to its end") {
			w.lane.Discard(false)
		}
		w.settle()
	}
	all["restart of a job"] = func(*rapid.T) { w.lane.Behind() }
	return all
}

// Whatever happens in whatever order: a delivery is in one place, memory is
// bounded, and nothing is lost.
func TestLaneKeepsEveryDelivery(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, false)
		t.Repeat(w.actions())
		w.drain()
	})
}

// Where nothing is retried, deliveries are sent in the order of their commits,
// though they go by way of the disk, pauses come and claims fail.
func TestLaneKeepsTheOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, true)
		t.Repeat(w.actions())
		w.drain()
		last := 0
		for _, d := range w.sent {
			if r := w.disk[d]; r.seq < last {
				t.Fatalf("commit %d is sent after commit %d", r.seq, last)
			} else {
				last = r.seq
			}
		}
	})
}
