package sqlite

import (
	"encoding/binary"
	"fmt"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/internal/store/codec"
)

// What is stored as one value begins with the version of its form.
const (
	heldForm   = 1
	countsForm = 1
)

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
			b = codec.AppendText(b, "")
			continue
		}
		b = codec.AppendText(b, string(d.Trigger))
		b = append(b, d.Webhook[:]...)
	}
	return b
}

// decodeHeld reads what encodeHeld wrote of an event with these deliveries.
func decodeHeld(deliveries []id.Delivery, b []byte) (expires int64, out []store.NewDelivery, err error) {
	d := codec.Decoder{Rest: b}
	if d.Byte() != heldForm {
		return 0, nil, fmt.Errorf("read held deliveries: %w", codec.ErrDamaged)
	}
	expires = d.Varint()
	for _, delivery := range deliveries {
		trigger := hook.Trigger(d.Text())
		if trigger == "" {
			continue
		}
		if len(d.Rest) < len(id.Webhook{}) {
			d.Failed = true
			break
		}
		out = append(out, store.NewDelivery{ID: delivery, Webhook: id.Webhook(d.Rest[:len(id.Webhook{})]), Trigger: trigger, Held: true})
		d.Rest = d.Rest[len(id.Webhook{}):]
	}
	if d.Failed {
		return 0, nil, fmt.Errorf("read held deliveries: %w", codec.ErrDamaged)
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
