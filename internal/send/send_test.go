package send_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/egress"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/send"
	"github.com/plinqx/hypha/internal/send/receivertest"
)

const (
	timeout    = 300 * time.Millisecond
	patience   = 20 * time.Second // for attempts that are not about time
	ownSecret  = "Bearer tok/en+\"of\"-ours"
	signSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
)

func guard(t *testing.T, o egress.Options) send.Dial {
	t.Helper()
	p, err := egress.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return p.DialContext
}

func loopback() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} }

// sender reaches a receiver through the guard.
func sender(t *testing.T, r *receivertest.Server) *send.Sender {
	t.Helper()
	s := send.New(send.Options{Dial: guard(t, egress.Options{Allow: loopback(), Resolver: r}), TLS: r.ClientTLS()})
	t.Cleanup(s.Close)
	return s
}

func request(t *testing.T, address string, body []byte, limit time.Duration) send.Request {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return send.Request{
		Tenant: id.Tenant{1}, URL: u, Body: body, Timeout: limit,
		Header: http.Header{"Content-Type": {"application/json"}, "Authorization": {ownSecret}},
		Redact: send.NewRedactor([]string{ownSecret, signSecret}),
	}
}

// sane checks what holds for every attempt.
func sane(t *testing.T, a *hook.Attempt, limit time.Duration) {
	t.Helper()
	if a.Duration <= 0 || a.Duration > limit+time.Second {
		t.Errorf("it took %s: its timeout is %s, and a second", a.Duration, limit)
	}
	parts := a.Timings
	if min(parts.DNS, parts.Connect, parts.TLS, parts.FirstByte) < 0 || parts.DNS+parts.Connect+parts.TLS+parts.FirstByte > a.Duration {
		t.Errorf("timings %+v of %s", parts, a.Duration)
	}
	if len(a.Body) > hook.MaxKeptBody {
		t.Errorf("%d bytes of the body are kept", len(a.Body))
	}
	if a.Header.Get("Set-Cookie") != "" {
		t.Error("a cookie is kept")
	}
	if a.Failure != nil && a.Failure.Message == "" {
		t.Error("the failure has no message")
	}
}

func kindOf(a *hook.Attempt) hook.FailureKind {
	if a.Failure == nil {
		return ""
	}
	return a.Failure.Kind
}

// TestBadReceivers plays the file of receivers that misbehave. A case that the
// table below doesn't know is held to what it says itself.
func TestBadReceivers(t *testing.T) {
	kinds := map[string]hook.FailureKind{
		"body_chunked_endless": "", "body_drip": "", "gzip_bomb": "", "gzip_bomb_nested": "", "deflate_br": "",
		"head_never": hook.FailureTimeout, "head_drip": hook.FailureTimeout, "slow_103": hook.FailureTimeout,
		"head_endless": hook.FailureProtocol, "head_one_line": hook.FailureProtocol, "status_line_endless": hook.FailureProtocol,
		"flood_103": hook.FailureProtocol, "http09": hook.FailureProtocol, "dup_content_length": hook.FailureProtocol,
		"switch_101_hold": hook.FailureStatus, "redirect_301": hook.FailureStatus, "redirect_303": hook.FailureStatus,
		"redirect_307": hook.FailureStatus, "redirect_https_down": hook.FailureStatus, "redirect_broken": hook.FailureStatus,
		"status_000": hook.FailureStatus, "status_600": hook.FailureStatus, "status_999": hook.FailureStatus,
		"retry_after_ok": hook.FailureStatus, "retry_after_bad_2": hook.FailureStatus, "retry_after_bad_3": hook.FailureStatus,
		"retry_after_bad_4": hook.FailureStatus, "retry_after_bad_5": hook.FailureStatus, "retry_after_bad_6": hook.FailureStatus,
		"retry_after_bad_7": hook.FailureStatus, "close_mid_request": hook.FailureConnect,
		"keepalive_poison": "", "bin_body": "", "secret_echo": "", "cookie_set": "",
		"tls_wrong_host": hook.FailureTLS, "tls_old": hook.FailureTLS, "dns_slow": hook.FailureTimeout,
	}
	for _, c := range receivertest.Load(t, badReceivers()) {
		t.Run(c.ID, func(t *testing.T) {
			r := receivertest.Start(t, c.Steps...)
			s := sender(t, r)
			body := []byte(`{"id":"evt_1"}`)
			if len(c.Steps) > 0 && c.Steps[0].ReadBytes > 0 {
				body = bytes.Repeat([]byte("x"), 1<<20)
			}
			// Twice: what comes after is judged by its own answer.
			for range 2 {
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				began := time.Now()
				a := s.Send(t.Context(), request(t, r.URL, body, timeout))
				if took := time.Since(began); took > timeout+time.Second {
					t.Errorf("the caller waited %s", took)
				}
				runtime.ReadMemStats(&after)
				// All that both sides allocated, freed or not: growth is less.
				if grown := int64(after.TotalAlloc-before.TotalAlloc) >> 20; grown >= c.Expect.MaxGrowth {
					t.Errorf("%d MiB were allocated", grown)
				}
				sane(t, a, timeout)
				if len(a.Body) > c.Expect.MaxStored {
					t.Errorf("%d bytes are stored", len(a.Body))
				}
				if verdict := map[bool]string{true: "delivered", false: "failed"}[a.Failure == nil]; !strings.Contains(c.Expect.Attempt, verdict) {
					t.Errorf("%s, want %s: %+v", verdict, c.Expect.Attempt, a.Failure)
				}
				if want, ok := kinds[c.ID]; ok && kindOf(a) != want {
					t.Errorf("failure %+v, want kind %q", a.Failure, want)
				}
				checkAnswer(t, c, a)
			}
			if hits := r.CanaryHits(); hits != c.Expect.Canary {
				t.Errorf("the canary was called %d times", hits)
			}
			for _, got := range r.Requests() {
				if got.Header.Get("Cookie") != "" {
					t.Error("a cookie was sent back")
				}
				if !bytes.Equal(got.Body, body) {
					t.Errorf("the body came as %d bytes", len(got.Body))
				}
			}
			if n := len(r.Requests()); n > 2 {
				t.Errorf("two attempts made %d requests", n)
			}
		})
	}
}

// checkAnswer checks what some cases are about.
func checkAnswer(t *testing.T, c receivertest.Case, a *hook.Attempt) {
	t.Helper()
	switch c.ID {
	case "bin_body":
		if len(a.Body) != 256 || a.Body[0] != 0 || a.Body[255] != 255 {
			t.Errorf("kept %d bytes", len(a.Body))
		}
	case "secret_echo":
		if !bytes.Contains(a.Body, []byte("Authorization: ****")) || bytes.Contains(a.Body, []byte("tok/en")) {
			t.Errorf("kept %q", a.Body)
		}
		if got := a.Header.Get("X-Echo-Authorization"); got != "****" {
			t.Errorf("kept the header %q", got)
		}
	case "gzip_bomb", "gzip_bomb_nested":
		if len(a.Body) < 2 || a.Body[0] != 0x1f || a.Body[1] != 0x8b {
			t.Error("the answer was unpacked")
		}
	case "status_600", "status_999", "redirect_broken", "switch_101_hold":
		if a.StatusCode == 0 {
			t.Error("the status is not kept")
		}
	case "retry_after_ok":
		if a.Header.Get("Retry-After") != "5" {
			t.Errorf("headers %v", a.Header)
		}
	}
}

// TestReceivers is what each kind of receiver comes to.
func TestReceivers(t *testing.T) {
	ok := "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	big := bytes.Repeat([]byte("x"), 16<<20)
	tests := []struct {
		name    string
		steps   []receivertest.Step
		body    []byte
		limit   time.Duration // patience if 0
		kind    hook.FailureKind
		status  int
		message string
	}{
		{name: "a good one", steps: []receivertest.Step{{Send: ok}}, status: 200},
		{name: "early hints before the answer", steps: []receivertest.Step{{Send: "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + ok}}, status: 200},
		{name: "a continue that nobody asked for", steps: []receivertest.Step{{Send: "HTTP/1.1 100 Continue\r\n\r\n" + ok}}, status: 200},
		{name: "continues for ever", steps: []receivertest.Step{{Flood: "HTTP/1.1 100 Continue\r\n\r\n"}}, kind: hook.FailureProtocol, message: "the answer's status line and headers are over 64 KiB"},
		{name: "continues for ever, slowly", steps: []receivertest.Step{{Drip: "HTTP/1.1 100 Continue\r\n\r\n", EveryMS: 50}}, limit: timeout, kind: hook.FailureTimeout, message: "no complete answer within 300ms"},
		{name: "204 with a body", steps: []receivertest.Step{{Send: "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello"}, {Keep: true}}, status: 204},
		{name: "304 with a body", steps: []receivertest.Step{{Send: "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello"}, {Keep: true}}, status: 304, kind: hook.FailureStatus, message: "answered 304 Not Modified: redirects are not followed"},
		{name: "102 and an end", steps: []receivertest.Step{{Send: "HTTP/1.1 102 Processing\r\n\r\n"}, {Close: true}}, kind: hook.FailureConnect, message: "the receiver closed the connection before the answer's headers were complete"},
		{name: "101 without an upgrade", steps: []receivertest.Step{{Send: "HTTP/1.1 101 Switching Protocols\r\n\r\n"}, {Hold: true}}, status: 101, kind: hook.FailureStatus, message: "answered 101 Switching Protocols"},
		{name: "410", steps: []receivertest.Step{{Send: "HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n"}}, status: 410, kind: hook.FailureStatus, message: "answered 410 Gone"},
		{name: "a status with two digits", steps: []receivertest.Step{{Send: "HTTP/1.1 99 X\r\n\r\n"}}, kind: hook.FailureProtocol, message: "the answer is not valid HTTP"},
		{name: "another protocol", steps: []receivertest.Step{{Send: "SSH-2.0-OpenSSH_9.9\r\n"}, {Hold: true}}, kind: hook.FailureProtocol, message: "the answer is not valid HTTP"},
		{name: "a body shorter than it said", steps: []receivertest.Step{{Send: "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok"}, {Close: true}}, status: 200},
		{name: "a body of broken chunks", steps: []receivertest.Step{{Send: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"}}, status: 200},
		{name: "endless trailers", steps: []receivertest.Step{{Send: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"}, {Flood: "X: y\r\n"}}, status: 200},
		{name: "a body cut off by a reset", steps: []receivertest.Step{{Send: "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok"}, {Reset: true}}, status: 200},
		{name: "closed", steps: []receivertest.Step{{Close: true}}, kind: hook.FailureConnect, message: "the receiver closed the connection without an answer"},
		{name: "reset", steps: []receivertest.Step{{Reset: true}}, kind: hook.FailureConnect, message: "the receiver closed the connection without an answer"},
		{name: "closed by halves", steps: []receivertest.Step{{HalfClose: true}}, kind: hook.FailureConnect, message: "the receiver closed the connection without an answer"},
		{name: "reset in the head", steps: []receivertest.Step{{Send: "HTTP/1.1 200 OK\r\nX-A: y\r\n"}, {Reset: true}}, kind: hook.FailureConnect, message: "the receiver closed the connection before the answer's headers were complete"},
		{name: "never reads", steps: []receivertest.Step{{Unread: true}, {Hold: true}}, body: big, limit: timeout, kind: hook.FailureTimeout, message: "no answer within 300ms"},
		{name: "never reads, over TLS", steps: []receivertest.Step{{TLS: "ok"}, {Unread: true}, {Hold: true}}, body: big, limit: timeout, kind: hook.FailureTimeout, message: "no answer within 300ms"},
		{name: "answers before it has read all", steps: []receivertest.Step{{ReadBytes: 100}, {Send: "HTTP/1.1 413 X\r\nContent-Length: 0\r\n\r\n"}, {Hold: true}}, body: big, status: 413, kind: hook.FailureStatus, message: "answered 413 Request Entity Too Large"},
		{name: "over TLS", steps: []receivertest.Step{{TLS: "ok"}, {Send: ok}}, status: 200},
		{name: "an expired certificate", steps: []receivertest.Step{{TLS: "expired"}}, kind: hook.FailureTLS, message: "the certificate has expired, or is not valid yet"},
		{name: "a certificate of its own making", steps: []receivertest.Step{{TLS: "self-signed"}}, kind: hook.FailureTLS, message: "the certificate is signed by an unknown authority"},
		{name: "a certificate for another name", steps: []receivertest.Step{{TLS: "wrong-host"}}, kind: hook.FailureTLS, message: "the certificate is for another name"},
		{name: "old TLS", steps: []receivertest.Step{{TLS: "max1.1"}}, kind: hook.FailureTLS, message: "the TLS handshake failed; TLS 1.2 or newer is needed"},
		{name: "slow DNS", steps: []receivertest.Step{{DNS: "delay30s"}}, limit: timeout, kind: hook.FailureTimeout, message: "no answer from the name servers within 300ms"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := receivertest.Start(t, test.steps...)
			limit := test.limit
			if limit == 0 {
				limit = patience
			}
			body := test.body
			if body == nil {
				body = []byte("{}")
			}
			began := time.Now()
			a := sender(t, r).Send(t.Context(), request(t, r.URL, body, limit))
			if took := time.Since(began); took > limit+time.Second {
				t.Errorf("the caller waited %s", took)
			}
			sane(t, a, limit)
			if kindOf(a) != test.kind || a.StatusCode != test.status {
				t.Errorf("status %d, failure %+v; want %d, %q", a.StatusCode, a.Failure, test.status, test.kind)
			}
			if test.message != "" && a.Failure != nil && a.Failure.Message != test.message {
				t.Errorf("message %q, want %q", a.Failure.Message, test.message)
			}
			if n := len(r.Requests()); n > 1 {
				t.Errorf("one attempt made %d requests", n)
			}
		})
	}
}

type resolver func(ctx context.Context) ([]netip.Addr, error)

func (r resolver) LookupNetIP(ctx context.Context, _, _ string) ([]netip.Addr, error) { return r(ctx) }

// TestUnreached is about receivers that no connection is made to.
func TestUnreached(t *testing.T) {
	r := receivertest.Start(t)
	port := r.URL[strings.LastIndex(r.URL, ":"):]
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refusing := "http://" + closed.Addr().String() + "/"
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name    string
		url     string
		options egress.Options
		kind    hook.FailureKind
		message string
	}{
		{"not allowed", r.URL, egress.Options{}, hook.FailureBlocked, "the address may not be called"},
		{"not allowed, by name", "http://" + receivertest.Name + port, egress.Options{Resolver: resolver(func(context.Context) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
		})}, hook.FailureBlocked, "the address may not be called"},
		{"no such name", "http://" + receivertest.Name + port, egress.Options{Allow: loopback(), Resolver: resolver(func(context.Context) ([]netip.Addr, error) {
			return nil, &net.DNSError{Err: "no such host", Name: "x", Server: "10.1.2.3:53", IsNotFound: true}
		})}, hook.FailureDNS, "the host name has no address"},
		{"no resolver", "http://" + receivertest.Name + port, egress.Options{Allow: loopback(), Resolver: resolver(func(context.Context) ([]netip.Addr, error) {
			return nil, &net.DNSError{Err: "server misbehaving", Name: "x", Server: "10.1.2.3:53", IsTimeout: true}
		})}, hook.FailureDNS, "the host name could not be resolved"},
		{"refused", refusing, egress.Options{Allow: loopback()}, hook.FailureConnect, "the connection was refused"},
		{"plain HTTP where TLS should be", strings.Replace(r.URL, "http:", "https:", 1), egress.Options{Allow: loopback()}, hook.FailureTLS, "the receiver"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := send.New(send.Options{Dial: guard(t, test.options)})
			defer s.Close()
			a := s.Send(t.Context(), request(t, test.url, []byte("{}"), patience))
			sane(t, a, patience)
			if kindOf(a) != test.kind || !strings.HasPrefix(a.Failure.Message, test.message) {
				t.Errorf("%+v, want %s: %s", a.Failure, test.kind, test.message)
			}
			if strings.ContainsAny(a.Failure.Message, "0123456789") {
				t.Errorf("the message tells addresses: %s", a.Failure.Message)
			}
		})
	}
}

// TestConnectionKept: attempts share a connection, and a tenant has its own.
func TestConnectionKept(t *testing.T) {
	for _, secure := range []bool{false, true} {
		steps := []receivertest.Step{{Send: "HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 2\r\n\r\nok"}, {Keep: true}}
		if secure {
			steps = append([]receivertest.Step{{TLS: "ok"}}, steps...)
		}
		r := receivertest.Start(t, steps...)
		s := sender(t, r)
		for i := range 5 {
			a := s.Send(t.Context(), request(t, r.URL, []byte("{}"), patience))
			sane(t, a, patience)
			if a.Failure != nil {
				t.Fatal(a.Failure.Message)
			}
			if dialed := a.Timings.Connect > 0; dialed != (i == 0) {
				t.Errorf("attempt %d: connect %s", i+1, a.Timings.Connect)
			}
			if shook := a.Timings.TLS > 0; shook != (secure && i == 0) {
				t.Errorf("attempt %d: TLS %s", i+1, a.Timings.TLS)
			}
		}
		if r.Conns() != 1 {
			t.Errorf("%d connections", r.Conns())
		}
		other := request(t, r.URL, []byte("{}"), patience)
		other.Tenant = id.Tenant{2}
		s.Send(t.Context(), other)
		if r.Conns() != 2 {
			t.Errorf("another tenant's attempt made it %d connections", r.Conns())
		}
		for _, got := range r.Requests() {
			if got.Header.Get("Cookie") != "" {
				t.Error("a cookie was sent back")
			}
		}
	}
}

// TestConnectionLife: after five minutes a new connection is made.
func TestConnectionLife(t *testing.T) {
	r := receivertest.Start(t)
	now := time.Now()
	s := send.New(send.Options{Dial: guard(t, egress.Options{Allow: loopback()}), Now: func() time.Time { return now }})
	defer s.Close()
	for _, step := range []struct {
		forward time.Duration
		conns   int
	}{{0, 1}, {5 * time.Minute, 1}, {time.Second, 2}, {time.Minute, 2}} {
		now = now.Add(step.forward)
		if a := s.Send(t.Context(), request(t, r.URL, []byte("{}"), patience)); a.Failure != nil {
			t.Fatal(a.Failure.Message)
		}
		if r.Conns() != step.conns {
			t.Errorf("%s later: %d connections, want %d", step.forward, r.Conns(), step.conns)
		}
	}
}

// TestPoison: what a receiver sends beyond its answer is nobody's answer, also
// where requests wait for the connection while it comes back.
func TestPoison(t *testing.T) {
	for name, steps := range map[string][]receivertest.Step{
		"plain": {{Send: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n"}, {Keep: true}},
		"empty": {{Send: "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n"}, {Keep: true}},
		"tls":   {{TLS: "ok"}, {Send: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n"}, {Keep: true}},
	} {
		t.Run(name, func(t *testing.T) {
			r := receivertest.Start(t, steps...)
			s := sender(t, r)
			var running sync.WaitGroup
			for range 8 {
				running.Go(func() {
					for range 40 {
						if a := s.Send(t.Context(), request(t, r.URL, []byte("{}"), patience)); a.Failure != nil {
							t.Errorf("%d: %s", a.StatusCode, a.Failure.Message)
							return
						}
					}
				})
			}
			running.Wait()
			if n := len(r.Requests()); n != 320 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

// breaking is a connection whose writes fail from some moment on.
type breaking struct {
	net.Conn
	broken *atomic.Bool
	// partial bytes are written by the write that fails.
	partial int
}

func (b *breaking) Write(p []byte) (int, error) {
	if !b.broken.Load() {
		return b.Conn.Write(p)
	}
	n, _ := b.Conn.Write(p[:min(b.partial, len(p))])
	return n, &net.OpError{Op: "write", Net: "tcp", Err: syscall.EPIPE}
}

// TestStaleConnection: a kept connection that is closed when it is needed costs
// nothing as long as nothing was sent. What was sent, were it one byte, is not
// sent again.
func TestStaleConnection(t *testing.T) {
	for _, test := range []struct {
		name     string
		partial  int
		kind     hook.FailureKind
		requests int
	}{
		{"nothing sent", 0, "", 2},
		{"one byte sent", 1, hook.FailureConnect, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := receivertest.Start(t)
			dial := guard(t, egress.Options{Allow: loopback()})
			var broken atomic.Bool
			dials := 0
			s := send.New(send.Options{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
				c, err := dial(ctx, network, address)
				if dials++; err != nil || dials > 1 {
					return c, err
				}
				return &breaking{Conn: c, broken: &broken, partial: test.partial}, nil
			}})
			defer s.Close()
			if a := s.Send(t.Context(), request(t, r.URL, []byte("{}"), patience)); a.Failure != nil {
				t.Fatal(a.Failure.Message)
			}
			broken.Store(true)
			a := s.Send(t.Context(), request(t, r.URL, []byte("{}"), patience))
			sane(t, a, patience)
			if kindOf(a) != test.kind {
				t.Errorf("%+v, want %q", a.Failure, test.kind)
			}
			if n := len(r.Requests()); n != test.requests {
				t.Errorf("%d requests came, want %d", n, test.requests)
			}
		})
	}
}

// ending is a connection that ends in the moment of a write: its reader learns
// of it first, and nothing is written.
type ending struct {
	net.Conn
	on  atomic.Bool
	saw chan struct{}
}

func (e *ending) Read(p []byte) (int, error) {
	n, err := e.Conn.Read(p)
	if err != nil {
		close(e.saw)
	}
	return n, err
}

func (e *ending) Write(p []byte) (int, error) {
	if e.on.Load() {
		_ = e.SetReadDeadline(time.Now())
		<-e.saw
		return 0, net.ErrClosed
	}
	return e.Conn.Write(p)
}

// TestClosedUnderHand: the reader learns of the close just before the write.
func TestClosedUnderHand(t *testing.T) {
	r := receivertest.Start(t)
	dial := guard(t, egress.Options{Allow: loopback()})
	var first *ending
	s := send.New(send.Options{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err != nil || first != nil {
			return c, err
		}
		first = &ending{Conn: c, saw: make(chan struct{})}
		return first, nil
	}})
	defer s.Close()
	for i := range 2 {
		if a := s.Send(t.Context(), request(t, r.URL, []byte("{}"), patience)); a.Failure != nil {
			t.Fatalf("attempt %d: %s", i+1, a.Failure.Message)
		}
		first.on.Store(true)
	}
	if n := len(r.Requests()); n != 2 {
		t.Errorf("%d requests", n)
	}
}

// TestBrokenOff: the caller's end ends an attempt, but not an answer's status.
func TestBrokenOff(t *testing.T) {
	for _, test := range []struct {
		name  string
		steps []receivertest.Step
		kind  hook.FailureKind
	}{
		{"waiting for the answer", []receivertest.Step{{Hold: true}}, hook.FailureInternal},
		{"while the body comes", []receivertest.Step{{Send: "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"}, {Hold: true}}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := receivertest.Start(t, test.steps...)
			s := sender(t, r)
			ctx, cancel := context.WithCancel(t.Context())
			result := make(chan *hook.Attempt)
			go func() { result <- s.Send(ctx, request(t, r.URL, []byte("{}"), patience)) }()
			await(t, "the request", func() bool { return len(r.Requests()) == 1 })
			if test.kind == "" {
				await(t, "the answer", func() bool { return r.Sent() > 0 })
				// The status is on its way to the sender, who has a second
				// for the body: the end of that is as good.
				a := <-result
				cancel()
				if a.Failure != nil || string(a.Body) != "ok" {
					t.Errorf("%+v %q", a.Failure, a.Body)
				}
				if a.Duration > patience/2 {
					t.Errorf("the body had %s", a.Duration)
				}
				return
			}
			cancel()
			a := <-result
			sane(t, a, patience)
			if kindOf(a) != test.kind {
				t.Errorf("%+v, want %q", a.Failure, test.kind)
			}
		})
	}
}

// TestSilentHandshake: a receiver that accepts and then says nothing has no
// connection of ours once the attempt is over.
func TestSilentHandshake(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	for _, stop := range []bool{false, true} {
		s := send.New(send.Options{Dial: guard(t, egress.Options{Allow: loopback()})})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		limit := timeout
		if stop {
			limit = patience
		}
		result := make(chan *hook.Attempt, 1)
		go func() { result <- s.Send(ctx, request(t, "https://"+l.Addr().String(), []byte("{}"), limit)) }()
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		want := hook.FailureTimeout
		if stop {
			cancel()
			want = hook.FailureInternal
		}
		a := <-result
		sane(t, a, limit)
		if kindOf(a) != want {
			t.Errorf("%+v, want %q", a.Failure, want)
		}
		if !stop && a.Failure.Message != "no TLS handshake within 300ms" {
			t.Error(a.Failure.Message)
		}
		// Well before the transport would give a handshake up by itself.
		if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, c); errors.Is(err, syscall.ETIMEDOUT) || isTimeout(err) {
			t.Error("the connection is still open")
		}
		_ = c.Close()
		s.Close()
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// TestGoroutinesEnd: whatever the receivers did, nothing is left running.
func TestGoroutinesEnd(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("attempts", func(t *testing.T) {
		for _, steps := range [][]receivertest.Step{
			nil,
			{{Hold: true}},
			{{Send: "HTTP/1.1 200 OK\r\n"}, {Flood: "X: y\r\n"}},
			{{Send: "HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n"}, {Flood: "x"}},
			{{Send: "HTTP/1.1 101 X\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"}, {Hold: true}},
			{{TLS: "ok"}, {Hold: true}},
			{{TLS: "wrong-host"}},
			{{DNS: "delay30s"}},
		} {
			r := receivertest.Start(t, steps...)
			sender(t, r).Send(t.Context(), request(t, r.URL, []byte("{}"), timeout))
		}
	})
	await(t, "the goroutines", func() bool { return runtime.NumGoroutine() <= before })
}

// await asks again and again until something is so.
func await(t *testing.T, what string, so func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for !so() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			stacks := make([]byte, 1<<20)
			t.Fatalf("waited in vain for %s\n%s", what, stacks[:runtime.Stack(stacks, true)])
		}
	}
}

// TestOldTLSIsNotAllowed: a configuration can't go below TLS 1.2.
func TestOldTLSIsNotAllowed(t *testing.T) {
	r := receivertest.Start(t, receivertest.Step{TLS: "max1.1"})
	config := r.ClientTLS().Clone()
	config.MinVersion = tls.VersionTLS10
	s := send.New(send.Options{Dial: guard(t, egress.Options{Allow: loopback()}), TLS: config})
	defer s.Close()
	if a := s.Send(t.Context(), request(t, r.URL, []byte("{}"), patience)); kindOf(a) != hook.FailureTLS {
		t.Errorf("%d %+v", a.StatusCode, a.Failure)
	}
}

// TestKeptConnectionsOpenNoOtherName: a connection that is kept is for the name
// and the tenant that it was made for. Another name's way is judged by itself,
// though it leads to where a connection stands already.
func TestKeptConnectionsOpenNoOtherName(t *testing.T) {
	for name, start := range map[string]func(*httptest.Server){
		"plain": (*httptest.Server).Start,
		"TLS":   (*httptest.Server).StartTLS,
		"HTTP/2": func(r *httptest.Server) {
			r.EnableHTTP2 = true
			r.StartTLS()
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
			start(r)
			t.Cleanup(r.Close)
			var dialled atomic.Int64
			options := send.Options{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
				dialled.Add(1)
				if !strings.HasPrefix(address, "example.com:") {
					return nil, &egress.BlockedError{Host: address}
				}
				var d net.Dialer
				return d.DialContext(ctx, network, r.Listener.Addr().String())
			}}
			if transport, ok := r.Client().Transport.(*http.Transport); ok && r.TLS != nil {
				options.TLS = transport.TLSClientConfig
			}
			s := send.New(options)
			t.Cleanup(s.Close)
			address := strings.Replace(r.URL, "127.0.0.1", "example.com", 1)
			for range 2 {
				if a := s.Send(t.Context(), request(t, address, []byte("{}"), patience)); a.Failure != nil {
					t.Fatal(a.Failure.Message)
				}
			}
			if n := dialled.Load(); n != 1 {
				t.Errorf("two requests made %d connections", n)
			}
			for _, other := range []string{"www.example.com", "127.0.0.1"} {
				a := s.Send(t.Context(), request(t, strings.Replace(address, "example.com", other, 1), []byte("{}"), patience))
				if kindOf(a) != hook.FailureBlocked {
					t.Errorf("%s: %+v, want blocked", other, a.Failure)
				}
			}
		})
	}
}
