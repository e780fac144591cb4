// Package codec is how the drivers of the store write what stands in one column:
// attempts, answers, and the numbers and texts of which larger values are made.
// Each value begins with the version of its form, so that a later program knows
// what it reads.
package codec

import (
	"encoding/binary"
	"encoding/json"
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
)

// ErrDamaged says that a stored value can't be read.
var ErrDamaged = errors.New("a stored value is damaged")

// EncodeAttempt writes an attempt as bytes: numbers as varints, times in
// milliseconds, durations in microseconds, texts with their length before them,
// the body last.
func EncodeAttempt(a *hook.Attempt) []byte {
	b := make([]byte, 0, 64+len(a.Body)+32*len(a.Header))
	b = append(b, attemptForm)
	b = binary.AppendUvarint(b, uint64(a.Number))
	b = AppendText(b, string(a.Trigger))
	b = binary.AppendVarint(b, a.StartedAt.UnixMilli())
	for _, d := range [...]time.Duration{a.Duration, a.Timings.DNS, a.Timings.Connect, a.Timings.TLS, a.Timings.FirstByte} {
		b = binary.AppendVarint(b, d.Microseconds())
	}
	b = binary.AppendVarint(b, a.Revision)
	b = binary.AppendVarint(b, int64(a.StatusCode))
	if a.Failure == nil {
		b = append(b, 0)
	} else {
		b = append(b, 1)
		b = AppendText(b, string(a.Failure.Kind))
		b = AppendText(b, a.Failure.Message)
	}
	b = binary.AppendUvarint(b, uint64(len(a.Header)))
	for _, name := range slices.Sorted(maps.Keys(a.Header)) {
		b = AppendText(b, name)
		b = binary.AppendUvarint(b, uint64(len(a.Header[name])))
		for _, value := range a.Header[name] {
			b = AppendText(b, value)
		}
	}
	return append(b, a.Body...)
}

// DecodeAttempt reads what EncodeAttempt wrote.
func DecodeAttempt(b []byte) (hook.Attempt, error) {
	d := Decoder{Rest: b}
	if d.Byte() != attemptForm {
		return hook.Attempt{}, fmt.Errorf("read an attempt: %w", ErrDamaged)
	}
	a := hook.Attempt{
		Number:    int(d.Uvarint()),
		Trigger:   hook.Trigger(d.Text()),
		StartedAt: time.UnixMilli(d.Varint()).UTC(),
		Duration:  d.Micros(),
		Timings:   hook.Timings{DNS: d.Micros(), Connect: d.Micros(), TLS: d.Micros(), FirstByte: d.Micros()},
		Revision:  d.Varint(),
	}
	a.StatusCode = int(d.Varint())
	if d.Byte() == 1 {
		a.Failure = &hook.Failure{Kind: hook.FailureKind(d.Text()), Message: d.Text()}
	}
	if n := d.Length(); n > 0 {
		a.Header = make(http.Header, n)
		for range n {
			name := d.Text()
			values := make([]string, d.Length())
			for i := range values {
				values[i] = d.Text()
			}
			a.Header[name] = values
		}
	}
	if d.Failed {
		return hook.Attempt{}, fmt.Errorf("read an attempt: %w", ErrDamaged)
	}
	if len(d.Rest) > 0 {
		a.Body = d.Rest
	}
	return a, nil
}

// EncodeAnswer writes the results of an accept, to be given again.
func EncodeAnswer(results []store.AcceptResult) []byte {
	b := binary.AppendUvarint([]byte{answerForm}, uint64(len(results)))
	for i := range results {
		r := &results[i]
		b = AppendText(b, r.PublicID)
		b = AppendText(b, r.Type)
		b = binary.AppendVarint(b, r.Timestamp.UnixMilli())
		b = binary.AppendUvarint(b, uint64(r.Deliveries))
	}
	return b
}

// DecodeAnswer reads results; they are answers to a repetition.
func DecodeAnswer(b []byte) ([]store.AcceptResult, error) {
	d := Decoder{Rest: b}
	if d.Byte() != answerForm {
		return nil, fmt.Errorf("read an answer: %w", ErrDamaged)
	}
	results := make([]store.AcceptResult, d.Length())
	for i := range results {
		results[i] = store.AcceptResult{
			PublicID:   d.Text(),
			Type:       d.Text(),
			Timestamp:  time.UnixMilli(d.Varint()).UTC(),
			Deliveries: int(d.Uvarint()),
			Duplicate:  true,
		}
	}
	if d.Failed {
		return nil, fmt.Errorf("read an answer: %w", ErrDamaged)
	}
	return results, nil
}

// AppendText writes a text with its length before it.
func AppendText(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// Decoder reads values one after another, and notes if one was cut short.
type Decoder struct {
	Rest   []byte
	Failed bool
}

// Byte reads a byte.
func (d *Decoder) Byte() byte {
	if len(d.Rest) == 0 {
		d.Failed = true
		return 0
	}
	v := d.Rest[0]
	d.Rest = d.Rest[1:]
	return v
}

// Uvarint reads an unsigned number.
func (d *Decoder) Uvarint() uint64 {
	v, n := binary.Uvarint(d.Rest)
	return advance(d, v, n)
}

// Varint reads a number.
func (d *Decoder) Varint() int64 {
	v, n := binary.Varint(d.Rest)
	return advance(d, v, n)
}

func advance[V uint64 | int64](d *Decoder, v V, n int) V {
	if n <= 0 {
		d.Failed, d.Rest = true, nil
		return 0
	}
	d.Rest = d.Rest[n:]
	return v
}

// Length is a number of things that follow: each takes a byte at least.
func (d *Decoder) Length() int {
	n := d.Uvarint()
	if n > uint64(len(d.Rest)) {
		d.Failed, d.Rest = true, nil
		return 0
	}
	return int(n)
}

// ID reads an id.
func (d *Decoder) ID() (v [16]byte) {
	if len(d.Rest) < len(v) {
		d.Failed, d.Rest = true, nil
		return v
	}
	d.Rest = d.Rest[copy(v[:], d.Rest):]
	return v
}

// Text reads what AppendText wrote.
func (d *Decoder) Text() string {
	n := d.Length()
	s := string(d.Rest[:n])
	d.Rest = d.Rest[n:]
	return s
}

// Micros reads a duration of whole microseconds.
func (d *Decoder) Micros() time.Duration {
	n := d.Varint()
	v := time.Duration(n) * time.Microsecond
	if v.Microseconds() != n { // no duration is as long
		d.Failed, d.Rest = true, nil
		return 0
	}
	return v
}

// SplitIDs reads ids that stand one after another.
func SplitIDs(b []byte) []id.Delivery {
	var ids []id.Delivery
	for ; len(b) >= len(id.Delivery{}); b = b[len(id.Delivery{}):] {
		ids = append(ids, id.Delivery(b[:len(id.Delivery{})]))
	}
	return ids
}

// webhook is what is stored of a webhook besides its columns.
type webhook struct {
	Name           string              `json:"name"`
	URL            string              `json:"url"`
	Events         []string            `json:"events"`
	Enabled        bool                `json:"enabled"`
	Timeout        int64               `json:"timeoutMs"`
	Description    string              `json:"description,omitempty"`
	DisabledReason hook.DisabledReason `json:"disabledReason,omitempty"`
	CreatedAt      int64               `json:"createdAt"`
	UpdatedAt      int64               `json:"updatedAt"`
}

// EncodeWebhook writes a webhook as JSON, without what has columns of its own:
// tenant, id, revision, secrets, pause.
func EncodeWebhook(w *hook.Webhook) (string, error) {
	data, err := json.Marshal(webhook{
		Name: w.Name, URL: w.URL, Events: w.Events, Enabled: w.Enabled, Timeout: w.Timeout.Milliseconds(),
		Description: w.Description, DisabledReason: w.DisabledReason,
		CreatedAt: w.CreatedAt.UnixMilli(), UpdatedAt: w.UpdatedAt.UnixMilli(),
	})
	if err != nil {
		return "", fmt.Errorf("encode webhook %s: %w", w.ID, err)
	}
	return string(data), nil
}

// DecodeWebhook reads what EncodeWebhook wrote into w.
func DecodeWebhook(data string, w *hook.Webhook) error {
	var d webhook
	if err := json.Unmarshal([]byte(data), &d); err != nil {
		return fmt.Errorf("read webhook %s: %w", w.ID, err)
	}
	w.Name, w.URL, w.Events, w.Enabled = d.Name, d.URL, d.Events, d.Enabled
	w.Timeout, w.Description, w.DisabledReason = time.Duration(d.Timeout)*time.Millisecond, d.Description, d.DisabledReason
	w.CreatedAt, w.UpdatedAt = time.UnixMilli(d.CreatedAt).UTC(), time.UnixMilli(d.UpdatedAt).UTC()
	return nil
}
