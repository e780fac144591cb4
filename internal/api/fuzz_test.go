package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/plinqx/hypha/internal/hook"
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
