package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/ingest"
)

// FuzzBody holds what is taken as a body against the standard library's reading of
// it: the same members with the same values, none twice, nested no deeper than
// is allowed; and written anew from its members it is the same.
func FuzzBody(f *testing.F) {
	for _, body := range []string{
		`{}`, `{"type":"order.created","data":{"id":1}}`, `{"a":1,"a":2}`, `{"a":1,"\u0061":2}`, `{"a":{"b":1,"b":2}}`,
		`{"a":1}{"b":2}`, `{"a":1} `, `[]`, `null`, ``, `{`, `{"a"`, `{"a":`, `{"a":1,}`, `{'a':1}`, "\ufeff{}",
		`{"a":"\ud800"}`, "{\"a\":\"\xff\"}", "{\"a\":\"\x00\"}", `{"a":NaN}`, `{"a":01}`, `{"a":1e999}`, `{"a":-0}`, `{"":0}`,
		`{"a":` + strings.Repeat("[", maxDepth-1) + strings.Repeat("]", maxDepth-1) + `}`,
		`{"a":` + strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth) + `}`,
		`{"a":"` + strings.Repeat("[", 2*maxDepth) + `"}`, `{"a":"\"` + strings.Repeat("{", 2*maxDepth) + `"}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		members, err := bodyMembers(body)
		if err != nil {
			checkRefusal(t, err)
			return
		}
		if !utf8.Valid(body) {
			t.Errorf("taken, and it is no UTF-8: %q", body)
		}
		var others map[string]json.RawMessage
		if err := json.Unmarshal(body, &others); err != nil {
			t.Fatalf("taken, but the standard library says: %v", err)
		}
		if len(others) != len(members) {
			t.Errorf("%d members, the standard library has %d", len(members), len(others))
		}
		var again bytes.Buffer
		again.WriteByte('{')
		for i, m := range members {
			if !bytes.Equal(others[string(m.name)], m.value) {
				t.Errorf("%q is %s, the standard library has %s", m.name, m.value, others[string(m.name)])
			}
			if depth := depthOf(m.value) + 1; depth > maxDepth {
				t.Errorf("taken with %d levels", depth)
			}
			name, err := json.Marshal(string(m.name))
			if err != nil {
				t.Fatal(err)
			}
			if i > 0 {
				again.WriteByte(',')
			}
			again.Write(name)
			again.WriteByte(':')
			again.Write(m.value)
		}
		again.WriteByte('}')
		same, err := bodyMembers(again.Bytes())
		if err != nil {
			t.Fatalf("taken, but not written anew as %s: %v", again.Bytes(), err)
		}
		if !slices.EqualFunc(members, same, func(a, b member) bool {
			return bytes.Equal(a.name, b.name) && bytes.Equal(a.value, b.value)
		}) {
			t.Errorf("written anew as %s it is another one", again.Bytes())
		}
	})
}

// bodyMembers reads a body as requests are read.
func bodyMembers(body []byte) ([]member, error) {
	r := newReader()
	r.body = body
	var p problems
	o, err := r.object(&p)
	if err != nil {
		return nil, err
	}
	return o.members, p.err()
}

// depthOf is how deep a valid value is nested.
func depthOf(value []byte) int {
	d := json.NewDecoder(bytes.NewReader(value))
	depth, deepest := 0, 0
	for {
		token, err := d.Token()
		if err != nil {
			return deepest
		}
		switch token {
		case json.Delim('{'), json.Delim('['):
			depth++
			deepest = max(deepest, depth)
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
	}
}

// checkRefusal checks that an error can be shown to whoever sent the request.
func checkRefusal(t *testing.T, err error) {
	t.Helper()
	var shown *hook.Error
	if !errors.As(err, &shown) || shown.Code != hook.CodeValidation || len(shown.Details) == 0 {
		t.Fatalf("not an error for a client: %v", err)
	}
	for _, d := range shown.Details {
		if len(d.Path) > maxPath+len("...") || !utf8.ValidString(d.Path) || d.Message == "" {
			t.Errorf("at %q: %q", d.Path, d.Message)
		}
	}
}

// FuzzCursor holds that a cursor that is taken is the very one that is given out
// for its position, and leads nowhere in another list.
func FuzzCursor(f *testing.F) {
	list := func(path, raw string) *query {
		return newQuery(&call{Request: &http.Request{URL: &url.URL{Path: path, RawQuery: raw}}})
	}
	for _, position := range [][16]byte{{1}, {15: 1}, {0xff, 0xfe}} {
		f.Add("cursor=" + *list("/services/webhooks", "").next(position))
		f.Add("status=FAILED&cursor=" + *list("/services/webhooks", "status=FAILED").next(position))
		f.Add("cursor=" + *list("/services/users", "").next(position))
	}
	for _, raw := range []string{"", "cursor", "cursor=", "cursor=a&cursor=b", "cursor=%zz", "cursor=AQ==", "cursor=" + strings.Repeat("A", 34), "cursor=" + strings.Repeat("A", 1<<10), "limit=1;cursor=AA"} {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		q := list("/services/webhooks", raw)
		given, ok := q.text("cursor")
		position := q.cursor()
		if len(q.problems) > 0 {
			checkRefusal(t, q.problems.err())
			if position != [16]byte{} {
				t.Errorf("refused, and at %x", position)
			}
			return
		}
		next := q.next(position)
		switch {
		case !ok || position == [16]byte{}:
			return // from the start
		case next == nil || *next != given:
			t.Errorf("%q was taken, which is not what is given out", given)
		}
		other := list("/services/users", raw)
		if other.cursor(); len(other.problems) == 0 {
			t.Errorf("%q leads somewhere in another list too", given)
		}
	})
}

// FuzzEvent holds that an event's data is taken as it stands, byte for byte, and
// that an event alone is taken as one in a batch is.
func FuzzEvent(f *testing.F) {
	for _, data := range []string{
		`{}`, `{"a":1.0,"b":[1e5, -0]}`, ` {"z":1, "a":2} `, `"\u00e9\/"`, `null`, `1`, `12345678901234567890.10`, `"a`, ``,
		`1,"id":"x"`, `1,"data":2`, `1,"dat\u0061":2`, `1}, {"type":"b","data":2`, `{"a":1,"a":2}`, "\"\u2028<&>\"", `"\ud800"`,
		`1,"metadata":{"b":1,"a":2.50}`, `1,"timestamp":"2026-01-31T12:00:00Z"`, `1,"Data":2`,
	} {
		f.Add([]byte(data))
	}
	a := &api{o: Options{MaxEventBody: 1 << 20}}
	f.Fuzz(func(t *testing.T, data []byte) {
		one := slices.Concat([]byte(`{"type":"order.created","data":`), data, []byte(`}`))
		var p problems
		r := newReader()
		r.body = slices.Clone(one)
		o, err := r.object(&p)
		var alone ingest.Event
		if err == nil {
			alone = readEvent(o)
			err = p.err()
		}
		if err != nil {
			checkRefusal(t, err)
			if jsontext.Value(data).IsValid() && depthOf(data) < maxDepth && jsontext.Value(data).Kind() != 'n' {
				t.Errorf("data that is good JSON is refused: %v", err)
			}
			return
		}
		if json.Valid(data) && !bytes.Equal(alone.Data, bytes.Trim(data, " \t\r\n")) {
			t.Errorf("%s was sent, and %s is taken", data, alone.Data)
		}

		if depthOf(one)+2 > maxDepth {
			return // in a batch it is too deep
		}
		p = nil
		r = newReader()
		r.body = slices.Concat([]byte(`{"events":[`), one, []byte(`]}`))
		events, err := a.readBatch(r, &p)
		if err == nil {
			err = p.err()
		}
		if err != nil || len(events) != 1 {
			t.Fatalf("%s is an event alone, and %d in a batch: %v", one, len(events), err)
		}
		e := events[0]
		if e.Type != alone.Type || e.ID != alone.ID || !e.Timestamp.Equal(alone.Timestamp) ||
			!bytes.Equal(e.Data, alone.Data) || !bytes.Equal(e.Metadata, alone.Metadata) {
			t.Errorf("%+v alone is %+v in a batch", alone, e)
		}
	})
}

// FuzzClientAddress holds that nobody but a proxy of ours is believed; that what a
// client writes in front of the list changes nothing; and that how the list is
// spread over lines doesn't either. Lines are separated by line feeds here.
func FuzzClientAddress(f *testing.F) {
	for _, forwarded := range []string{
		"", "203.0.113.7", "203.0.113.7, 10.0.0.2", "198.51.100.1\n203.0.113.7\n10.0.0.2", "10.0.0.3,10.0.0.2", "203.0.113.7,,", "unknown, 10.0.0.2",
		"203.0.113.7:5555", "[2001:db8::7]:5555", "[2001:db8::7", "fe80::1%eth0", "::ffff:203.0.113.7", "::ffff:10.0.0.2", "3405803783", "1.2.3.4:x",
	} {
		for _, remote := range []string{"10.0.0.1:1", "203.0.113.9:1", "[fd00::1]:1", "[::ffff:10.0.0.1]:1", "[fe80::1%eth0]:1", "@"} {
			f.Add(remote, forwarded)
		}
	}
	ours := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	of := func(remote string, proxies []netip.Prefix, lines ...string) netip.Addr {
		return clientAddress(&http.Request{RemoteAddr: remote, Header: http.Header{headerForwardedFor: lines}}, proxies)
	}
	f.Fuzz(func(t *testing.T, remote, forwarded string) {
		lines := strings.Split(forwarded, "\n")
		alone := of(remote, nil, lines...)
		if other := of(remote, nil); alone != other {
			t.Errorf("%q is believed though there are no proxies: %s, not %s", forwarded, alone, other)
		}
		got := of(remote, ours, lines...)
		if got.Is4In6() || got.Zone() != "" || got.IsValid() != alone.IsValid() {
			t.Errorf("the address is %s", got)
		}
		trusted := contains(ours, alone)
		if !trusted && got != alone {
			t.Errorf("%s is no proxy, and is believed that it is %s", alone, got)
		}
		if got != alone && !slices.ContainsFunc(lines, func(line string) bool {
			return slices.ContainsFunc(strings.Split(line, ","), func(entry string) bool { return writes(entry, got) })
		}) {
			t.Errorf("%s is neither the remote address nor written in %q", got, forwarded)
		}
		if joined := of(remote, ours, strings.Join(lines, ",")); joined != got {
			t.Errorf("%q in one line is %s, in lines %s", forwarded, joined, got)
		}
		if contains(ours, got) {
			return // the list ended, or broke off, at a proxy of ours
		}
		for _, hearsay := range []string{"198.51.100.99", "10.0.0.99", "", "x"} {
			if other := of(remote, ours, append([]string{hearsay}, lines...)...); other != got {
				t.Errorf("%q in front of %q makes of %s %s", hearsay, forwarded, got, other)
			}
		}
	})
}

// writes reports whether an entry is a way to write an address.
func writes(entry string, addr netip.Addr) bool {
	entry = strings.Trim(entry, " \t")
	if host, _, err := net.SplitHostPort(entry); err == nil {
		entry = host
	}
	entry = strings.TrimSuffix(strings.TrimPrefix(entry, "["), "]")
	written, err := netip.ParseAddr(entry)
	return err == nil && written.WithZone("").Unmap() == addr
}
