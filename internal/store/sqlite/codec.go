package sqlite

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// What is stored as one value begins with the version of its form.
const (
	attemptForm = 1
	answerForm  = 1
	heldForm    = 1
	countsForm  = 1
)

var errDamaged = errors.New("a stored value is damaged")

// encodeAttempt writes an attempt as bytes: numbers as varints, times in
// milliseconds, durations in microseconds, texts with their length before them,
// the body last.
func encodeAttempt(a *hook.Attempt) []byte {
	b := make([]byte, 0, 64+len(a.Body)+32*len(a.Header))
	b = append(b, attemptForm)
	b = binary.AppendUvarint(b, uint64(a.Number))
	b = appendText(b, string(a.Trigger))
	b = binary.AppendVarint(b, millis(a.StartedAt))
	for _, d := range [...]time.Duration{a.Duration, a.Timings.DNS, a.Timings.Connect, a.Timings.TLS, a.Timings.FirstByte} {
		b = binary.AppendVarint(b, d.Microseconds())
	}
	b = binary.AppendVarint(b, a.Revision)
	b = binary.AppendVarint(b, int64(a.StatusCode))
	if a.Failure == nil {
		b = append(b, 0)
	} else {
		b = append(b, 1)
		b = appendText(b, string(a.Failure.Kind))
		b = appendText(b, a.Failure.Message)
	}
	b = binary.AppendUvarint(b, uint64(len(a.Header)))
	for _, name := range slices.Sorted(maps.Keys(a.Header)) {
		b = appendText(b, name)
		b = binary.AppendUvarint(b, uint64(len(a.Header[name])))
		for _, value := range a.Header[name] {
			b = appendText(b, value)
		}
	}
	return append(b, a.Body...)
}

func decodeAttempt(b []byte) (hook.Attempt, error) {
	d := decoder{b: b}
	if d.byte() != attemptForm {
		return hook.Attempt{}, fmt.Errorf("read an attempt: %w", errDamaged)
	}
	a := hook.Attempt{
		Number:    int(d.uvarint()),
		Trigger:   hook.Trigger(d.text()),
		StartedAt: time.UnixMilli(d.varint()).UTC(),
		Duration:  d.micros(),
		Timings:   hook.Timings{DNS: d.micros(), Connect: d.micros(), TLS: d.micros(), FirstByte: d.micros()},
		Revision:  d.varint(),
	}
	a.StatusCode = int(d.varint())
	if d.byte() == 1 {
		a.Failure = &hook.Failure{Kind: hook.FailureKind(d.text()), Message: d.text()}
	}
	if n := d.length(); n > 0 {
		a.Header = make(http.Header, n)
		for range n {
			name := d.text()
			values := make([]string, d.length())
			for i := range values {
				values[i] = d.text()
			}
			a.Header[name] = values
		}
	}
	if d.failed {
		return hook.Attempt{}, fmt.Errorf("read an attempt: %w", errDamaged)
	}
	if len(d.b) > 0 {
		a.Body = d.b
	}
	return a, nil
}

// encodeAnswer writes the results of an accept, to be given again.
func encodeAnswer(results []store.AcceptResult) []byte {
	b := binary.AppendUvarint([]byte{answerForm}, uint64(len(results)))
	for i := range results {
		r := &results[i]
		b = appendText(b, r.PublicID)
		b = appendText(b, r.Type)
		b = binary.AppendVarint(b, millis(r.Timestamp))
		b = binary.AppendUvarint(b, uint64(r.Deliveries))
	}
	return b
}

// decodeAnswer reads results; they are answers to a repetition.
func decodeAnswer(b []byte) ([]store.AcceptResult, error) {
	d := decoder{b: b}
	if d.byte() != answerForm {
		return nil, fmt.Errorf("read an answer: %w", errDamaged)
	}
	results := make([]store.AcceptResult, d.length())
	for i := range results {
		results[i] = store.AcceptResult{
			PublicID:   d.text(),
			Type:       d.text(),
			Timestamp:  time.UnixMilli(d.varint()).UTC(),
			Deliveries: int(d.uvarint()),
			Duplicate:  true,
		}
	}
	if d.failed {
		return nil, fmt.Errorf("read an answer: %w", errDamaged)
	}
	return results, nil
}

// encodeHeld writes which of an event's deliveries are held, with what their rows
// need that the event's does not have: when they expire, and for each delivery of
// the event, in order, its trigger and webhook, or no trigger if it is not held.
func encodeHeld(e *store.NewEvent) []byte {
	b := make([]byte, 0, 16+len(e.Deliveries)*(len(id.Webhook{})+6))
	b = append(b, heldForm)
	b = binary.AppendVarint(b, millis(e.ExpiresAt))
	for i := range e.Deliveries {
		d := &e.Deliveries[i]
		if !d.Held {
			b = appendText(b, "")
			continue
		}
		b = appendText(b, string(d.Trigger))
		b = append(b, d.Webhook[:]...)
	}
	return b
}

// decodeHeld reads what encodeHeld wrote of an event with these deliveries.
func decodeHeld(deliveries []id.Delivery, b []byte) (expires int64, out []store.NewDelivery, err error) {
	d := decoder{b: b}
	if d.byte() != heldForm {
		return 0, nil, fmt.Errorf("read held deliveries: %w", errDamaged)
	}
	expires = d.varint()
	for _, delivery := range deliveries {
		trigger := hook.Trigger(d.text())
		if trigger == "" {
			continue
		}
		if len(d.b) < len(id.Webhook{}) {
			d.failed = true
			break
		}
		out = append(out, store.NewDelivery{ID: delivery, Webhook: id.Webhook(d.b[:len(id.Webhook{})]), Trigger: trigger, Held: true})
		d.b = d.b[len(id.Webhook{}):]
	}
	if d.failed {
		return 0, nil, fmt.Errorf("read held deliveries: %w", errDamaged)
	}
	return expires, out, nil
}

// encodeCounts writes what a transaction counted: gauges as they are after it,
// and what it adds to the counters of webhooks and minutes.
func encodeCounts(gauges map[gaugeKey]gauge, counts map[countKey]*count) ([]byte, error) {
	b := make([]byte, 0, 16+40*len(gauges)+64*len(counts))
	b = append(b, countsForm)
	b = binary.AppendUvarint(b, uint64(len(gauges)))
	for key, g := range gauges {
		b = append(append(b, key.tenant[:]...), key.webhook[:]...)
		for _, n := range [...]int64{g.pending, g.failed, g.total} {
			b = binary.AppendVarint(b, n)
		}
	}
	b = binary.AppendUvarint(b, uint64(len(counts)))
	var latency []byte
	for key, c := range counts {
		b = append(append(b, key.tenant[:]...), key.webhook[:]...)
		for _, n := range [...]int64{key.minute, c.succeeded, c.failed} {
			b = binary.AppendVarint(b, n)
		}
		var err error
		if latency, err = c.latency.AppendBinary(latency[:0]); err != nil {
			return nil, err
		}
		b = binary.AppendUvarint(b, uint64(len(latency)))
		b = append(b, latency...)
	}
	return b, nil
}

func appendText(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// decoder reads values one after another, and notes if one was cut short.
type decoder struct {
	b      []byte
	failed bool
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.failed = true
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	return advance(d, v, n)
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	return advance(d, v, n)
}

func advance[V uint64 | int64](d *decoder, v V, n int) V {
	if n <= 0 {
		d.failed, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

// length is a number of things that follow: each takes a byte at least.
func (d *decoder) length() int {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.failed, d.b = true, nil
		return 0
	}
	return int(n)
}

func (d *decoder) id() (v [16]byte) {
	if len(d.b) < len(v) {
		d.failed, d.b = true, nil
		return v
	}
	d.b = d.b[copy(v[:], d.b):]
	return v
}

func (d *decoder) text() string {
	n := d.length()
	s := string(d.b[:n])
	d.b = d.b[n:]
	return s
}

func (d *decoder) micros() time.Duration { return time.Duration(d.varint()) * time.Microsecond }

// splitIDs reads ids that stand one after another.
func splitIDs(b []byte) []id.Delivery {
	var ids []id.Delivery
	for ; len(b) >= len(id.Delivery{}); b = b[len(id.Delivery{}):] {
		ids = append(ids, id.Delivery(b[:len(id.Delivery{})]))
	}
	return ids
}
