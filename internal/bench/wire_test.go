package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// crlf lets tests write messages with plain line breaks.
func crlf(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }

func TestReadResponse(t *testing.T) {
	type answer struct {
		Status     int
		Body       string
		Close      bool
		RetryAfter time.Duration
	}
	tests := []struct {
		name, wire string
		want       answer
		rest       string // what is left for the next answer
		err        string
	}{
		{name: "by length", wire: "HTTP/1.1 202 Accepted\nContent-Length: 2\n\n{}HTTP", want: answer{Status: 202, Body: "{}"}, rest: "HTTP"},
		{name: "without a reason", wire: "HTTP/1.1 202 \ncontent-length:0\n\n", want: answer{Status: 202}},
		{name: "chunked", wire: "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n3\nabc\nA;x=y\n0123456789\n0\n\nmore",
			want: answer{Status: 200, Body: "abc0123456789"}, rest: "more"},
		{name: "chunked with trailers", wire: "HTTP/1.1 200 OK\nTransfer-Encoding: Chunked\n\n1\na\n0\nDigest: x\nExpires: y\n\n",
			want: answer{Status: 200, Body: "a"}},
		{name: "chunks win over the length", wire: "HTTP/1.1 200 OK\nContent-Length: 9\nTransfer-Encoding: chunked\n\n1\na\n0\n\n",
			want: answer{Status: 200, Body: "a"}},
		{name: "until the end", wire: "HTTP/1.1 200 OK\n\nto the end", want: answer{Status: 200, Body: "to the end", Close: true}},
		{name: "HTTP/1.0 closes", wire: "HTTP/1.0 200 OK\nContent-Length: 1\n\na", want: answer{Status: 200, Body: "a", Close: true}},
		{name: "HTTP/1.0 kept alive", wire: "HTTP/1.0 200 OK\nConnection: keep-alive\nContent-Length: 0\n\n", want: answer{Status: 200}},
		{name: "close among options", wire: "HTTP/1.1 200 OK\nConnection: foo, Close\nContent-Length: 0\n\n", want: answer{Status: 200, Close: true}},
		{name: "no content", wire: "HTTP/1.1 204 No Content\nContent-Length: 5\n\nnext", want: answer{Status: 204}, rest: "next"},
		{name: "after informational ones", wire: "HTTP/1.1 100 Continue\n\nHTTP/1.1 103 Early Hints\nLink: x\n\nHTTP/1.1 202 A\nContent-Length: 0\n\n",
			want: answer{Status: 202}},
		{name: "retry after seconds", wire: "HTTP/1.1 429 T\nRetry-After:  7 \nContent-Length: 0\n\n", want: answer{Status: 429, RetryAfter: 7 * time.Second}},
		{name: "retry after a date", wire: "HTTP/1.1 503 T\nRetry-After: Fri, 31 Dec 1999 23:59:59 GMT\nContent-Length: 0\n\n", want: answer{Status: 503}},
		{name: "larger than the buffer", wire: "HTTP/1.1 200 OK\nContent-Length: 40000\n\n" + strings.Repeat("x", 40000) + "rest",
			want: answer{Status: 200, Body: strings.Repeat("x", 40000)}, rest: "rest"},

		{name: "nothing", wire: "", err: "before a message began"},
		{name: "cut in the status line", wire: "HTTP/1.1 20", err: "first line"},
		{name: "cut in the headers", wire: "HTTP/1.1 200 OK\nContent-", err: "header line: unexpected EOF"},
		{name: "cut in the body", wire: "HTTP/1.1 200 OK\nContent-Length: 5\n\nabc", err: "body of 5 bytes: unexpected EOF"},
		{name: "cut in a large body", wire: "HTTP/1.1 200 OK\nContent-Length: 50000\n\nabc", err: "unexpected EOF"},
		{name: "cut in a chunk", wire: "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5\nabc", err: "unexpected EOF"},
		{name: "cut before the last chunk", wire: "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n3\nabc\n", err: "size of a chunk: unexpected EOF"},
		{name: "chunk longer than it says", wire: "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n2\nabc\n0\n\n", err: "goes on after its end"},
		{name: "chunk size is no number", wire: "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\nxyz\n", err: "not the size of a chunk"},
		{name: "chunk size too long", wire: "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n100000000\n", err: "not the size of a chunk"},
		{name: "chunk beyond the limit", wire: "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\nffffffff\n", err: "a body of more than"},
		{name: "length beyond the limit", wire: "HTTP/1.1 200 OK\nContent-Length: 999999999999\n\n", err: "a body of more than"},
		{name: "two lengths", wire: "HTTP/1.1 200 OK\nContent-Length: 1\nContent-Length: 2\n\nab", err: "not one content length"},
		{name: "negative length", wire: "HTTP/1.1 200 OK\nContent-Length: -1\n\nab", err: "not one content length"},
		{name: "other encoding", wire: "HTTP/1.1 200 OK\nTransfer-Encoding: gzip, chunked\n\n", err: "unknown transfer encoding"},
		{name: "no header line", wire: "HTTP/1.1 200 OK\nwhat\n\n", err: "not a header line"},
		{name: "too many header lines", wire: "HTTP/1.1 200 OK\n" + strings.Repeat("a: b\n", 300) + "\n", err: "more than 256 header lines"},
		{name: "switches protocols", wire: "HTTP/1.1 101 Switching\n\n", err: "switched protocols"},
		{name: "not HTTP", wire: "SSH-2.0-OpenSSH_9.6\n", err: "not an HTTP/1.1 status line"},
		{name: "no status", wire: "HTTP/1.1 abc OK\n\n", err: "not an HTTP status"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			// However the network cuts it up.
			for name, r := range map[string]io.Reader{
				"at once":   strings.NewReader(crlf(tt.wire)),
				"bytewise":  iotest.OneByteReader(strings.NewReader(crlf(tt.wire))),
				"bare LF":   strings.NewReader(tt.wire), // RFC 9112, section 2.2 lets us take it
				"EOF early": iotest.DataErrReader(strings.NewReader(crlf(tt.wire))),
			} {
				w := newWireReader(r)
				m, err := w.readResponse()
				if tt.err != "" {
					if err == nil || !strings.Contains(err.Error(), tt.err) {
						t.Errorf("%s: error %v, want one with %q", name, err, tt.err)
					}
					continue
				}
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				got := answer{m.status, string(m.body), m.close, m.retryAfter}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", name, diff)
				}
				if rest, _ := io.ReadAll(w.br); string(rest) != tt.rest {
					t.Errorf("%s: left %q, want %q", name, rest, tt.rest)
				}
			}
		})
	}
}

func TestReadRequest(t *testing.T) {
	type request struct {
		Method, Target, Body string
		Close                bool
	}
	tests := []struct {
		name, wire string
		want       request
		continues  int
		err        string
	}{
		{name: "by length", wire: "POST /ok/1 HTTP/1.1\nHost: x\nContent-Length: 3\n\nabc", want: request{"POST", "/ok/1", "abc", false}},
		{name: "chunked", wire: "POST /ok/1 HTTP/1.1\nTransfer-Encoding: chunked\n\n3\nabc\n0\n\n", want: request{"POST", "/ok/1", "abc", false}},
		{name: "no body", wire: "GET /_stats HTTP/1.1\nHost: x\n\n", want: request{"GET", "/_stats", "", false}},
		{name: "last one", wire: "POST / HTTP/1.1\nConnection: close\nContent-Length: 0\n\n", want: request{"POST", "/", "", true}},
		{name: "asks to continue", wire: "POST / HTTP/1.1\nExpect: 100-continue\nContent-Length: 1\n\na", want: request{"POST", "/", "a", false}, continues: 1},
		{name: "not HTTP", wire: "hello\n", err: "not an HTTP/1.1 request line"},
		{name: "HTTP/2 preface", wire: "PRI * HTTP/2.0\n\nSM\n\n", err: "not an HTTP/1.1 request line"},
		{name: "nothing", wire: "", err: "before a message began"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			continues := 0
			w := newWireReader(strings.NewReader(crlf(tt.wire)))
			w.onContinue = func() error { continues++; return nil }
			m, err := w.readRequest()
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want one with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, request{m.method, m.target, string(m.body), m.close}); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if continues != tt.continues {
				t.Errorf("%d invitations to continue, want %d", continues, tt.continues)
			}
		})
	}
}

func TestMarkerSurvivesTheWayThroughData(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(minPayload, 2000).Draw(t, "size")
		want := marker{
			run:    rapid.Uint32().Draw(t, "run"),
			number: rapid.Uint64Range(0, maxNumber).Draw(t, "number"),
			sentAt: rapid.Int64Range(0, 1<<63-1).Draw(t, "sentAt"),
		}
		data, at := appendData(nil, size)
		want.put(data[at:])
		if len(data) != size || !json.Valid(data) {
			t.Fatalf("data of %d bytes, want %d bytes of JSON: %s", len(data), size, data)
		}
		body := append([]byte(`{"id":"evt_1","type":"bench.event","timestamp":"2024-01-01T00:00:00.000Z","data":`), data...)
		body = append(body, `,"metadata":null}`...)
		if got, ok := findMarker(body); !ok || got != want {
			t.Fatalf("found %+v, %v; want %+v", got, ok, want)
		}
		// A body that is cut, or garbled in the marker, has none.
		if got, ok := findMarker(data[:at+markerLen-1]); ok {
			t.Fatalf("found %+v in a body that is cut", got)
		}
		data[at+rapid.IntRange(0, markerLen-1).Draw(t, "garbled")] = 'x'
		if got, ok := findMarker(data); ok {
			t.Fatalf("found %+v in a garbled body", got)
		}
	})
}

func TestPublish(t *testing.T) {
	sentAt := time.Unix(1700000000, 123456789)
	tests := []struct {
		name       string
		batch      int
		status     int
		retryAfter string
		types      int
		close      bool
		want       verdict
		path       string
		numbers    []uint64
		err        string
	}{
		{name: "accepted", batch: 1, status: 202, want: accepted, path: "/base/services/events", numbers: []uint64{7}},
		{name: "a batch", batch: 3, status: 202, want: accepted, path: "/base/services/events/batch", numbers: []uint64{7, 8, 9}},
		{name: "refused by limit", batch: 1, status: 429, retryAfter: "3", want: refused, path: "/base/services/events", numbers: []uint64{7}},
		{name: "refused by overload", batch: 1, status: 503, retryAfter: "3", want: refused, path: "/base/services/events", numbers: []uint64{7}},
		{name: "refused until a date", batch: 1, status: 503, retryAfter: "Fri, 31 Dec 1999 23:59:59 GMT", want: refused, path: "/base/services/events", numbers: []uint64{7}},
		{name: "refused for no time", batch: 1, status: 503, want: refused, path: "/base/services/events", numbers: []uint64{7}},
		{name: "types of their own", batch: 3, types: 8, status: 202, want: accepted, path: "/base/services/events/batch", numbers: []uint64{7, 8, 9}},
		{name: "not accepted", batch: 1, status: 200, want: failed, path: "/base/services/events", numbers: []uint64{7}, err: "answered 200"},
		{name: "server error", batch: 1, status: 500, want: failed, path: "/base/services/events", numbers: []uint64{7}, err: "some reason"},
		{name: "closed after", batch: 1, status: 202, close: true, want: accepted, path: "/base/services/events", numbers: []uint64{7}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var path, auth, contentType string
			var body []byte
			connections := map[string]bool{}
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				path, auth, contentType = r.URL.Path, r.Header.Get("Authorization"), r.Header.Get("Content-Type")
				body, _ = io.ReadAll(r.Body)
				connections[r.RemoteAddr] = true
				if tt.retryAfter != "" {
					w.Header().Set("Retry-After", tt.retryAfter)
				}
				if tt.close {
					w.Header().Set("Connection", "close")
				}
				w.WriteHeader(tt.status)
				_, _ = io.WriteString(w, "some reason")
			}))
			defer server.Close()
			base, err := url.Parse(server.URL + "/base/")
			if err != nil {
				t.Fatal(err)
			}
			p := newWirePublisher(base, "hypha_key", wireEvents{run: 0xabc, eventType: eventType, types: tt.types, batch: tt.batch, payloadBytes: 100})
			defer p.close()
			var o outcome
			for range 2 { // the second must find the connection as it should be
				o = p.publish(t.Context(), 7, sentAt)
			}
			if o.verdict != tt.want {
				t.Errorf("verdict %v (%v), want %v", o.verdict, o.err, tt.want)
			}
			if tt.err != "" && (o.err == nil || !strings.Contains(o.err.Error(), tt.err)) {
				t.Errorf("error %v, want one with %q", o.err, tt.err)
			}
			if tt.retryAfter == "3" && o.retryAfter != 3*time.Second {
				t.Errorf("retry after %v, want 3 s", o.retryAfter)
			}
			if o.status != tt.status || o.retrySaid != (tt.retryAfter != "") {
				t.Errorf("status %d, said when to try again: %t; want %d, %t", o.status, o.retrySaid, tt.status, tt.retryAfter != "")
			}
			if path != tt.path || auth != "Bearer hypha_key" || contentType != "application/json" {
				t.Errorf("the server saw %s, %q, %q", path, auth, contentType)
			}
			if want := map[bool]int{false: 1, true: 2}[tt.close]; len(connections) != want {
				t.Errorf("%d connections for two publishes, want %d", len(connections), want)
			}

			type event struct {
				Type string          `json:"type"`
				Data json.RawMessage `json:"data"`
			}
			var sent struct {
				event
				Events []event `json:"events"`
			}
			if err := json.Unmarshal(body, &sent); err != nil {
				t.Fatal(err)
			}
			events := sent.Events
			if tt.batch == 1 {
				events = []event{sent.event}
			}
			var numbers []uint64
			for _, e := range events {
				m, ok := findMarker(e.Data)
				eventType := "bench.event"
				if tt.types > 0 {
					eventType = fmt.Sprintf("bench.event.%04d", m.number%uint64(tt.types))
				}
				if !ok || m.run != 0xabc || m.sentAt != sentAt.UnixNano() || e.Type != eventType || len(e.Data) != 100 {
					t.Errorf("event %s %s", e.Type, e.Data)
				}
				numbers = append(numbers, m.number)
			}
			if diff := cmp.Diff(tt.numbers, numbers); diff != "" {
				t.Errorf("numbers (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPublishIsBrokenOffWithItsContext(t *testing.T) {
	reached, release := make(chan struct{}), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(reached)
		<-release
	}))
	defer server.Close()
	defer close(release)
	base, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	p := newWirePublisher(base, "hypha_key", wireEvents{run: 1, eventType: eventType, batch: 1, payloadBytes: 100})
	defer p.close()
	go func() { <-reached; cancel() }()
	if o := p.publish(ctx, 0, time.Now()); o.verdict != failed || o.err == nil {
		t.Errorf("outcome %+v, want a failure", o)
	}
	if o := p.publish(ctx, 0, time.Now()); o.verdict != failed || !errors.Is(o.err, context.Canceled) {
		t.Errorf("outcome %+v after the end, want the context's error", o)
	}
}

func FuzzReadResponse(f *testing.F) {
	f.Add([]byte(crlf("HTTP/1.1 202 Accepted\nContent-Length: 2\n\n{}")))
	f.Add([]byte(crlf("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n3\nabc\n0\n\n")))
	f.Fuzz(func(t *testing.T, wire []byte) {
		m, err := newWireReader(bytes.NewReader(wire)).readResponse()
		if err == nil && (m.status < 200 || m.status > 999 || len(m.body) > len(wire)) {
			t.Errorf("status %d, %d bytes of body from %d on the wire", m.status, len(m.body), len(wire))
		}
	})
}
