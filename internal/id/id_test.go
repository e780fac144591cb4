package id_test

import (
	"errors"
	"strings"
	"testing"

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
