package id_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/plinqx/hypha/internal/id"
)

func TestTextForm(t *testing.T) {
	// The first two are from the TypeID specification's valid.json.
	for text, want := range map[string]id.Webhook{
		"wh_00000000000000000000000000": {},
		"wh_7zzzzzzzzzzzzzzzzzzzzzzzzz": {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		"wh_01h455vb4pex5vsknk084sn02q": {0x01, 0x89, 0x0a, 0x5d, 0xac, 0x96, 0x77, 0x4b, 0xbc, 0xce, 0xb3, 0x02, 0x09, 0x9a, 0x80, 0x57},
	} {
		got, err := id.ParseWebhook(text)
		if err != nil || got != want {
			t.Errorf("Parse(%s) = %x, %v; want %x", text, got[:], err, want[:])
		}
		if want.String() != text {
			t.Errorf("String(%x) = %s; want %s", want[:], want, text)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "raw")
		want := id.Event(raw)
		var got id.Event
		if err := got.UnmarshalText([]byte(want.String())); err != nil || got != want {
			t.Fatalf("%x -> %s -> %x, %v", want[:], want, got[:], err)
		}
	})
}

func TestMalformed(t *testing.T) {
	good := id.Webhook{1, 2, 3}.String()
	for name, text := range map[string]string{
		"empty":                 "",
		"another kind":          strings.Replace(good, "wh_", "evt_", 1),
		"no prefix":             strings.TrimPrefix(good, "wh_"),
		"upper case":            strings.ToUpper(good),
		"too short":             good[:len(good)-1],
		"too long":              good + "0",
		"trailing space":        good + " ",
		"more than 128 bits":    "wh_8zzzzzzzzzzzzzzzzzzzzzzzzz",
		"letter not in base 32": "wh_0000000000000000000000000l",
		"NUL":                   "wh_0000000000000000000000000\x00",
	} {
		t.Run(name, func(t *testing.T) {
			var got id.Webhook
			if err := got.UnmarshalText([]byte(text)); !errors.Is(err, id.ErrMalformed) {
				t.Fatalf("%q: %v, %v; want ErrMalformed", text, got, err)
			}
		})
	}
}

func TestOrder(t *testing.T) {
	var last id.Delivery
	for range 10_000 {
		next, err := id.NewDelivery()
		if err != nil {
			t.Fatal(err)
		}
		if next.Compare(last) <= 0 || next.String() <= last.String() {
			t.Fatalf("%s came after %s", next, last)
		}
		last = next
	}
}

func TestTime(t *testing.T) {
	// The example of RFC 9562, appendix A.6.
	i := id.Event{0x01, 0x7f, 0x22, 0xe2, 0x79, 0xb0, 0x7c, 0xc3, 0x98, 0xc4, 0xdc, 0x0c, 0x0c, 0x07, 0x39, 0x8f}
	if got, want := i.Time(), time.Date(2022, 2, 22, 19, 22, 22, 0, time.UTC); got != want {
		t.Errorf("the time is %v, want %v", got, want)
	}
	before := time.Now().Truncate(time.Millisecond)
	i, err := id.NewEvent()
	if err != nil || i.Time().Before(before) {
		t.Errorf("a new id is of %v, %v; want %v or later", i.Time(), err, before)
	}
}

func TestFirst(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		i := id.Delivery(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id"))
		at := i.Time().Add(time.Duration(rapid.Int64Range(-2_000_000, 2_000_000).Draw(t, "nanoseconds from it")))
		if rapid.Bool().Draw(t, "of another time") {
			at = time.UnixMilli(rapid.Int64Range(0, 1<<48-1).Draw(t, "milliseconds"))
		}
		below := i.Compare(id.First(at)) < 0
		if at.Before(time.Unix(0, 0)) || at.UnixMilli() >= 1<<48-1 {
			t.Skip("no id has this time")
		}
		if below != i.Time().Before(at) {
			t.Fatalf("%x, of %v, is below the first id of %v: %v", i[:], i.Time(), at, below)
		}
	})
	for _, c := range []struct {
		at   time.Time
		want [16]byte
	}{
		{time.Unix(-1, 0), [16]byte{}},
		{time.Unix(0, 0), [16]byte{}},
		{time.UnixMilli(1).Add(-1), [16]byte{5: 1}},
		{time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC), [16]byte{0xe6, 0x77, 0xcc, 0xf9, 0x80, 0}},
		{time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC), [16]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
	} {
		if got := id.First(c.at); got != c.want {
			t.Errorf("the first of %v is %x, want %x", c.at, got, c.want)
		}
	}
}
