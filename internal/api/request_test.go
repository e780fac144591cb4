package api_test

import (
	"fmt"
	"io"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/plinqx/hypha/internal/api"
)

func TestBodies(t *testing.T) {
	s := newServer(t, nil)
	const create, publish = "/services/webhooks", "/services/events"
	ok := `{"name":"n","url":"https://example.com/","events":["a.b"]}`
	for _, tc := range []struct {
		name, target, body string
		status             int
		problems           []string
	}{
		{"nothing", create, "", 400, []string{": The body is empty; send a JSON object"}},
		{"a number", create, "1", 400, []string{": The body must be a JSON object"}},
		{"an array", create, "[]", 400, []string{": The body must be a JSON object"}},
		{"XML", create, "<a/>", 400, nil},
		{"single quotes", create, "{'name':'n'}", 400, nil},
		{"a comment", create, "{/**/}", 400, nil},
		{"a byte order mark", create, "\ufeff" + ok, 400, nil},
		{"cut off", create, `{"name":"n"`, 400, []string{": The body ends before the JSON object does"}},
		{"something after it", create, ok + "{}", 400, nil},
		{"a comma too many", create, `{"name":"n",}`, 400, nil},
		{"a hexadecimal number", create, `{"timeoutMs":0x10}`, 400, nil},
		{"a control character in a string", create, "{\"name\":\"a\x01b\"}", 400, nil},
		{"no UTF-8", create, "{\"name\":\"\xff\"}", 400, nil},
		{"half a character", create, `{"name":"\ud800"}`, 400, nil},
		{"a name twice", create, `{"name":"a","name":"b"}`, 400, []string{"name: is given twice"}},
		{"a header twice", create, `{"headers":{"X-A":"1","X-A":"2"}}`, 400, []string{"headers.X-A: is given twice"}},
		{"20,000 brackets", create, strings.Repeat("[", 20000), 400, []string{": The body is nested deeper than 128 levels"}},
		{"129 levels", publish, `{"type":"a.b","data":` + strings.Repeat("[", 128) + strings.Repeat("]", 128) + "}", 400, nil},
		{"128 levels", publish, `{"type":"a.b","data":` + strings.Repeat("[", 127) + strings.Repeat("]", 127) + "}", 202, nil},
		{"brackets in a string", publish, `{"type":"a.b","data":"\"` + strings.Repeat("[", 200) + `"}`, 202, nil},

		{"what is missing", create, `{}`, 400, []string{"name: is required", "url: is required", "events: is required"}},
		{"all at once", create, `{"name":1,"events":["a",2,null],"timeoutMs":1.5,"enabled":"yes","headers":{"X-A":1},"id":"x","URL":"y"}`, 400, []string{
			"url: is required", "name: must be a string", "events[1]: must be a string", "events[2]: must be a string",
			"headers.X-A: must be a string", "timeoutMs: must be an integer", "enabled: must be true or false",
			"id: is not a field of this request", "URL: is not a field of this request; did you mean url?",
		}},
		{"null", create, `{"name":null,"url":null,"events":null,"secret":null,"headers":null,"timeoutMs":null,"description":null,"enabled":null}`, 400, []string{
			"name: must be a string", "url: must be a string", "events: must be an array of strings", "secret: must be a string",
			"headers: must be an object of strings", "timeoutMs: must be an integer", "description: must be a string", "enabled: must be true or false",
		}},
		{"an exponent", create, `{"name":"n","url":"https://example.com/","events":["a.b"],"timeoutMs":1e4}`, 400, []string{"timeoutMs: must be an integer"}},
		{"over int64", create, `{"name":"n","url":"https://example.com/","events":["a.b"],"timeoutMs":9223372036854775808}`, 400, []string{"timeoutMs: is out of range"}},
		{"the rules", create, `{"name":" ","url":"http://127.0.0.1/","events":["a..b"],"timeoutMs":1}`, 400, nil},

		{"an event", publish, `{"type":"a.b","data":{}}`, 202, nil},
		{"data null", publish, `{"type":"a.b","data":null}`, 400, []string{"data: must not be null; an event without data has an empty object"}},
		{"all of an event", publish, `{"type":"a..b","metadata":[],"timestamp":"2026-01-01","id":"a.b"}`, 400, []string{
			"data: is required", "type: must be dot-separated segments of A-Z, a-z, 0-9, _ and -, 128 characters at most",
			"metadata: must be an object", "timestamp: must be a time as in RFC 3339, such as 2026-01-31T12:00:00Z",
			"id: must be 1 to 128 of A-Z, a-z, 0-9, _ and -, without a dot",
		}},
		{"a line break in the type", publish, `{"type":"a\r\nX-Evil: 1","data":{}}`, 400, nil},
		{"a name twice in data", publish, `{"type":"a.b","data":{"x":{"y":1,"y":2}}}`, 400, []string{"data.x.y: is given twice"}},
		{"a name twice, spelled otherwise", publish, `{"type":"a.b","data":{"y":1,"\u0079":2}}`, 400, []string{"data.y: is given twice"}},
		{"half a character in data", publish, `{"type":"a.b","data":["\udc00"]}`, 400, nil},
		{"half a character in a name", publish, `{"type":"a.b","data":{"\ud800":1}}`, 400, nil},
		{"a comma in the time", publish, `{"type":"a.b","data":1,"timestamp":"2026-01-01T00:00:00,5Z"}`, 400, nil},
		{"the year 0", publish, `{"type":"a.b","data":1,"timestamp":"0000-06-01T00:00:00Z"}`, 400, nil},
		{"no zone", publish, `{"type":"a.b","data":1,"timestamp":"2026-01-01T00:00:00"}`, 400, nil},
		{"a zone", publish, `{"type":"a.b","data":1,"timestamp":"2026-01-01T00:00:00.5+02:00"}`, 202, nil},
		{"an escaped name", publish, `{"\u0074ype":"a.b","data":1}`, 202, nil},

		{"a batch of none", publish + "/batch", `{"events":[]}`, 400, []string{"events: must have at least one event"}},
		{"no batch", publish + "/batch", `{"event":[]}`, 400, []string{"events: is required", "event: is not a field of this request"}},
		{"a batch of nothing", publish + "/batch", `{"events":null}`, 400, []string{"events: must be an array of events"}},
		{"a batch with problems", publish + "/batch", `{"events":[{"type":"a.b","data":1},{"type":"a b","data":1,"x":2},7]}`, 400, []string{
			"events[1].type: must be dot-separated segments of A-Z, a-z, 0-9, _ and -, 128 characters at most",
			"events[1].x: is not a field of this request", "events[2]: must be an event: a JSON object",
		}},
		{"a batch with a name twice", publish + "/batch", `{"events":[{"type":"a.b","data":{"a":1,"a":1}}]}`, 400, []string{"events[0].data.a: is given twice"}},
		{"a batch of 1001", publish + "/batch", `{"events":[` + strings.Repeat(`{"type":"a.b","data":1},`, 1000) + `{"type":"a.b","data":1}]}`, 400, []string{"events: must have at most 1000 events"}},
		{"a batch of 1000", publish + "/batch", `{"events":[` + strings.Repeat(`{"type":"a.b","data":1},`, 999) + `{"type":"a.b","data":1}]}`, 202, nil},
		{"a body where there is none", "/services/auth/logout", `{"x":1}`, 400, []string{"x: is not a field of this request"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := s.ask("POST", tc.target, tc.body, "Content-Type: application/json")
			if a.status != tc.status {
				t.Fatalf("= %d, want %d\n%s", a.status, tc.status, a.body)
			}
			if tc.status == 400 && a.text("error.code") != "VALIDATION_ERROR" {
				t.Errorf("code = %q", a.text("error.code"))
			}
			if diff := cmp.Diff(tc.problems, a.problems()); tc.problems != nil && diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestMediaTypes(t *testing.T) {
	s := newServer(t, nil)
	for _, tc := range []struct {
		name    string
		headers []string
		status  int
	}{
		{"plain", []string{"Content-Type: application/json"}, 202},
		{"with its charset", []string{"Content-Type: Application/JSON; charset=UTF-8"}, 202},
		{"another charset", []string{"Content-Type: application/json; charset=latin1"}, 415},
		{"none", []string{"Content-Type: "}, 415},
		{"a form", []string{"Content-Type: application/x-www-form-urlencoded"}, 415},
		{"text", []string{"Content-Type: text/plain"}, 415},
		{"broken", []string{"Content-Type: application/json; charset"}, 415},
		{"not compressed", []string{"Content-Encoding: identity"}, 202},
		{"compressed", []string{"Content-Encoding: gzip"}, 415},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if a := s.ask("POST", "/services/events", `{"type":"a.b","data":1}`, tc.headers...); a.status != tc.status {
				t.Errorf("= %d, want %d\n%s", a.status, tc.status, a.body)
			}
		})
	}
}

func TestSizes(t *testing.T) {
	s := newServer(t, func(o *api.Options) { o.MaxEventBody, o.MaxBatchBody, o.MaxBodies = 2000, 5000, 6000 })
	event := func(size int) string {
		const around = `{"type":"a.b","data":""}`
		return `{"type":"a.b","data":"` + strings.Repeat("a", size-len(around)) + `"}`
	}
	for _, tc := range []struct {
		name, target, body string
		chunked            bool
		status             int
	}{
		{"as large as may be", "/services/events", event(2000), false, 202},
		{"one more", "/services/events", event(2001), false, 413},
		{"of a length not told", "/services/events", event(2000), true, 202},
		{"of a length not told, one more", "/services/events", event(2001), true, 413},
		{"a batch", "/services/events/batch", `{"events":[` + event(1900) + "," + event(1900) + "]}", false, 202},
		{"an event of a batch", "/services/events/batch", `{"events":[` + event(2100) + "]}", false, 400},
		{"a large batch", "/services/events/batch", `{"events":[` + event(1900) + "," + event(1900) + "," + event(1900) + "]}", false, 413},
		{"more than there is room for", "/services/webhooks", event(7000), false, 503},
	} {
		t.Run(tc.name, func(t *testing.T) {
			req := httptest.NewRequest("POST", tc.target, strings.NewReader(tc.body))
			req.Header.Set("Authorization", "Bearer "+adminKey)
			req.Header.Set("Content-Type", "application/json")
			if tc.chunked {
				req.ContentLength = -1
			}
			a := s.send(req, tc.body)
			if a.status != tc.status {
				t.Errorf("= %d, want %d\n%.300s", a.status, tc.status, a.body)
			}
			if (a.header.Get("Retry-After") == "1") != (tc.status == 503) {
				t.Errorf("Retry-After = %q", a.header.Get("Retry-After"))
			}
		})
	}
}

func TestQueries(t *testing.T) {
	s := newServer(t, nil)
	webhook := s.newWebhook()
	for _, tc := range []struct {
		target   string
		problems []string // nil: taken
	}{
		{"/services/webhooks", nil},
		{"/services/webhooks?limit=10&offset=1000000", nil},
		{"/services/webhooks?limit=1000", nil},
		{"/services/webhooks?limit=1001", []string{"limit: must be an integer from 1 to 1000"}},
		{"/services/webhooks?limit=0", []string{"limit: must be an integer from 1 to 1000"}},
		{"/services/webhooks?limit=-1", []string{"limit: must be an integer from 1 to 1000"}},
		{"/services/webhooks?limit=%2B1", []string{"limit: must be an integer from 1 to 1000"}},
		{"/services/webhooks?limit=1.5", []string{"limit: must be an integer from 1 to 1000"}},
		{"/services/webhooks?limit=1e3", []string{"limit: must be an integer from 1 to 1000"}},
		{"/services/webhooks?limit=0x10", []string{"limit: must be an integer from 1 to 1000"}},
		{"/services/webhooks?limit=%2010", []string{"limit: must be an integer from 1 to 1000"}},
		{"/services/webhooks?limit=9223372036854775808", []string{"limit: must be an integer from 1 to 1000"}},
		{"/services/webhooks?limit=10%0d%0aX:1", []string{"limit: must be an integer from 1 to 1000"}},
		{"/services/webhooks?limit=", []string{"limit: is empty"}},
		{"/services/webhooks?limit=10&limit=20", []string{"limit: is given 2 times"}},
		{"/services/webhooks?offset=-1&limit=abc", []string{"limit: must be an integer from 1 to 1000", "offset: must be an integer from 0 to 2147483647"}},
		{"/services/webhooks?Limit=1", []string{"Limit: is not a parameter of this request"}},
		{"/services/webhooks?limit=10;offset=5", []string{": The query can't be read: write it as name=value&name=value, percent-encoded"}},
		{"/services/webhooks?limit=%zz", []string{": The query can't be read: write it as name=value&name=value, percent-encoded"}},
		{"/services/webhooks?cursor=x", []string{"cursor: is not a cursor that was given out"}},
		{"/services/webhooks/" + webhook + "?x=1", []string{"x: is not a parameter of this request"}},
		{"/services/webhooks/deliveries?status=failed", []string{"status: must be PENDING, RETRYING, SUCCESS or FAILED"}},
		{"/services/webhooks/deliveries?eventId=a.b&eventType=a.*", []string{"eventType: must be an event type", "eventId: must be an event's id"}},
		{"/services/webhooks/deliveries?offset=1", []string{"offset: is not a parameter of this request"}},
		{"/services/webhooks/deliveries/failed?webhookId=1", []string{"webhookId: must be a webhook's id"}},
		{"/services/webhooks/deliveries/failed?webhookId=" + webhook, nil},
		{"/services/webhooks/stats?since=2026-01-01T00:00:00Z&until=2025-01-01T00:00:00Z", []string{"until: must not be before since"}},
		{"/services/webhooks/stats?since=yesterday", []string{"since: must be a time as in RFC 3339, such as 2026-01-31T12:00:00Z"}},
	} {
		t.Run(tc.target, func(t *testing.T) {
			a := s.ask("GET", tc.target, "")
			if diff := cmp.Diff(tc.problems, a.problems()); diff != "" || (a.status == 200) != (tc.problems == nil) {
				t.Errorf("= %d, problems (-want +got):\n%s", a.status, diff)
			}
		})
	}
}

func TestCursors(t *testing.T) {
	s := newServer(t, nil)
	for range 5 {
		s.newWebhook()
	}
	for range 5 {
		s.must(202, "POST", "/services/events", `{"type":"order.a","data":1}`)
	}
	s.must(202, "POST", "/services/events", `{"type":"a.b","data":1}`)
	for _, tc := range []struct {
		list, with string
		rows       int
	}{
		{"/services/webhooks", "?limit=2", 5},
		{"/services/webhooks/deliveries", "?limit=7", 25},
		{"/services/webhooks/deliveries", "?limit=25", 25},
		{"/services/events", "?limit=4", 6},
		{"/services/events", "?type=order.a&limit=2", 5},
		{"/services/api-keys", "?limit=1", 1},
	} {
		t.Run(tc.list+tc.with, func(t *testing.T) {
			seen := map[string]bool{}
			next := ""
			for pages := 0; ; pages++ {
				if pages > 30 {
					t.Fatal("the list has no end")
				}
				a := s.must(200, "GET", tc.list+tc.with+next, "")
				for _, row := range a.get("data").([]any) {
					id := row.(map[string]any)["id"].(string)
					if seen[id] {
						t.Errorf("%s is on two pages", id)
					}
					seen[id] = true
				}
				if a.get("nextCursor") == nil {
					break
				}
				next = "&cursor=" + a.text("nextCursor")
			}
			if len(seen) != tc.rows {
				t.Errorf("%d rows, want %d", len(seen), tc.rows)
			}
		})
	}

	cursor := s.must(200, "GET", "/services/events?type=order.a&limit=2", "").text("nextCursor")
	for _, tc := range []struct{ name, target, problem string }{
		{"other filters", "/services/events?cursor=" + cursor, "cursor: belongs to another list: use it with the path and the filters that it was given for"},
		{"another list", "/services/webhooks?cursor=" + cursor, "cursor: belongs to another list: use it with the path and the filters that it was given for"},
		{"another limit", "/services/events?type=order.a&limit=3&cursor=" + cursor, ""},
		{"cut", "/services/events?type=order.a&cursor=" + cursor[1:], "cursor: is not a cursor that was given out"},
		{"another version", "/services/events?type=order.a&cursor=B" + cursor[1:], "cursor: is not a cursor that was given out"},
		{"with an offset", "/services/webhooks?offset=1&cursor=" + s.must(200, "GET", "/services/webhooks?limit=2", "").text("nextCursor"), "offset: can't be given with a cursor"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want := []string(nil)
			if tc.problem != "" {
				want = []string{tc.problem}
			}
			if diff := cmp.Diff(want, s.ask("GET", tc.target, "").problems()); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestIdempotencyKeys(t *testing.T) {
	s := newServer(t, nil)
	const body = `{"type":"a.b","data":1}`
	first := s.must(202, "POST", "/services/events", body, "Idempotency-Key: k1")
	again := s.must(202, "POST", "/services/events", body, "Idempotency-Key: k1")
	if first.text("id") != again.text("id") || again.get("duplicate") != true {
		t.Errorf("first %s\nagain %s", first.body, again.body)
	}
	other := s.must(409, "POST", "/services/events", `{"type":"a.b","data":2}`, "Idempotency-Key: k1")
	if got := other.problems(); len(got) != 1 || !strings.HasPrefix(got[0], "Idempotency-Key: ") {
		t.Errorf("problems = %q", got)
	}
	for _, key := range []string{"a.b", "a b", strings.Repeat("k", 129), "é"} {
		if got := s.must(400, "POST", "/services/events", body, "Idempotency-Key: "+key).problems(); len(got) != 1 {
			t.Errorf("%.10q: problems = %q", key, got)
		}
	}
	s.must(202, "POST", "/services/events", `{"type":"a.b","data":1,"id":"x"}`)
	conflict := s.must(409, "POST", "/services/events", `{"type":"a.b","data":2,"id":"x"}`)
	if got := conflict.problems(); len(got) != 1 || !strings.HasPrefix(got[0], "id: ") {
		t.Errorf("problems = %q", got)
	}
	batch := s.must(409, "POST", "/services/events/batch", `{"events":[{"type":"a.b","data":2},{"type":"a.b","data":2,"id":"x"}]}`)
	if got := fmt.Sprint(batch.problems()); !strings.Contains(got, "events[1].id: ") {
		t.Errorf("problems = %s", got)
	}
}

// A body that is announced and does not come takes no room from others.
func TestAnnouncedBodiesTakeNoRoom(t *testing.T) {
	const stalled = 60
	s := newServer(t, func(o *api.Options) { o.MaxBodies = 2 << 20 })
	var bodies []*io.PipeWriter
	answered := make(chan int, stalled)
	for range stalled {
		r, w := io.Pipe()
		bodies = append(bodies, w)
		req := httptest.NewRequest("POST", "/services/events/batch", r)
		req.Header.Set("Authorization", "Bearer "+adminKey)
		req.Header.Set("Content-Type", "application/json")
		req.ContentLength = 16 << 20
		go func() {
			rec := httptest.NewRecorder()
			s.handler.ServeHTTP(rec, req)
			answered <- rec.Code
		}()
		if _, err := w.Write([]byte(`{"events":[`)); err != nil { // it is being read
			t.Fatal(err)
		}
	}
	s.must(202, "POST", "/services/events", `{"type":"a.b","data":"`+strings.Repeat("a", 500_000)+`"}`)
	for _, w := range bodies {
		if err := w.CloseWithError(io.ErrUnexpectedEOF); err != nil {
			t.Fatal(err)
		}
		if status := <-answered; status != 400 {
			t.Errorf("a body that was cut off: %d", status)
		}
	}
	// What was held is given back.
	s.must(202, "POST", "/services/events", `{"type":"a.b","data":"`+strings.Repeat("a", 1_000_000)+`"}`)
}
