package send_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/egress"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/send"
	"github.com/plinqx/hypha/internal/send/receivertest"
)

// TestOnTheWire is what a receiver gets, to the byte.
func TestOnTheWire(t *testing.T) {
	r := receivertest.Start(t, receivertest.Step{EchoRequest: true})
	q := request(t, r.URL+"/a%2fb/%C3%BC?c=d&e", []byte(`{"id":"evt_1"}`), patience)
	q.Redact = nil
	q.Header = http.Header{
		"X-Two": {"1", " 2\t"}, "User-Agent": {"Hypha-Webhooks/1"}, "X-Empty": {""}, "X-Text": {"grüße"},
		// Those say where a request goes and ends, which is ours to say.
		"Host": {"another"}, "Content-Length": {"3"}, "Transfer-Encoding": {"chunked"}, "Trailer": {"X"}, "content-length": {"4"},
	}
	a := sender(t, r).Send(t.Context(), q)
	want := "POST /hook/a%2fb/%C3%BC?c=d&e HTTP/1.1\r\nHost: " + q.URL.Host + "\r\nContent-Length: 14\r\nUser-Agent: Hypha-Webhooks/1\r\n" +
		"X-Empty: \r\nX-Text: grüße\r\nX-Two: 1\r\nX-Two: 2\r\n\r\n" + `{"id":"evt_1"}`
	if got := string(a.Body); got != want {
		t.Errorf("it got\n%s\nwant\n%s", got, want)
	}
}

// TestHead: what is prepared is the same on the wire as what is not, with the
// headers that vary in their places; and those have the say.
func TestHead(t *testing.T) {
	r := receivertest.Start(t, receivertest.Step{EchoRequest: true})
	s := sender(t, r)
	q := request(t, r.URL, []byte("{}"), patience)
	q.Redact = nil
	q.Header = http.Header{"A": {"0"}, "B": {"1", "2"}, "C": {"3"}, "D": {"4"}, "Host": {"another"}, "E": {"5"}, "X": {"6"}}
	want := string(s.Send(t.Context(), q).Body)
	fixed := http.Header{"B": {"1", " 2"}, "C": {"forged"}, "E": {"5"}, "Host": {"another"}, "Gone": {"forged"}}
	q.Head = send.NewHead(q.URL, fixed, "X", "D", "Gone", "C", "A")
	q.Header = http.Header{"A": {"0"}, "C": {"3"}, "D": {"4"}, "X": {"6"}}
	for range 2 {
		if got := string(s.Send(t.Context(), q).Body); got != want {
			t.Errorf("it got\n%s\nwant\n%s", got, want)
		}
	}
	q.Header["Unheard-Of"] = []string{"7"}
	if a := s.Send(t.Context(), q); kindOf(a) != hook.FailureInternal {
		t.Errorf("a header that has no place is left out: status %d, %+v", a.StatusCode, a.Failure)
	}
}

// TestNotARequest: what would be another request on the wire is not sent.
func TestNotARequest(t *testing.T) {
	r := receivertest.Start(t)
	for name, change := range map[string]func(*send.Request){
		"a line break in a value":       func(q *send.Request) { q.Header.Set("X-A", "1\r\nX-B: 2") },
		"a line feed in a value":        func(q *send.Request) { q.Header.Set("X-A", "1\nX-B: 2") },
		"a return in a value":           func(q *send.Request) { q.Header.Set("X-A", "1\rX-B: 2") },
		"a zero in a value":             func(q *send.Request) { q.Header.Set("X-A", "1\x00") },
		"a second of two values":        func(q *send.Request) { q.Header["X-A"] = []string{"1", "\r\n"} },
		"a line break in a name":        func(q *send.Request) { q.Header["X-A: 1\r\nX-B"] = []string{"2"} },
		"a colon in a name":             func(q *send.Request) { q.Header["X-A:"] = []string{"2"} },
		"no name":                       func(q *send.Request) { q.Header[""] = []string{"2"} },
		"a line break in the query":     func(q *send.Request) { q.URL.RawQuery = "a\r\nX-B: 2" },
		"a line break in an odd target": func(q *send.Request) { q.URL.Opaque = "/a HTTP/1.1\r\nX-B: 2" },
		"a line break in the host":      func(q *send.Request) { q.URL.Host += "\r\nX-B: 2" },
		"no host":                       func(q *send.Request) { q.URL.Host = "" },
		"another protocol":              func(q *send.Request) { q.URL.Scheme = "ftp" },
	} {
		t.Run(name, func(t *testing.T) {
			q := request(t, r.URL, []byte("{}"), patience)
			change(&q)
			a := sender(t, r).Send(t.Context(), q)
			sane(t, a, patience)
			if kindOf(a) != hook.FailureInternal || a.Failure.Message != "the request could not be made" {
				t.Errorf("status %d, %+v", a.StatusCode, a.Failure)
			}
		})
	}
	if r.Conns() != 0 {
		t.Errorf("%d connections were made", r.Conns())
	}
}

// TestKept is after which answers a connection is used again.
func TestKept(t *testing.T) {
	large, huge := bytes.Repeat([]byte("x"), 200<<10), bytes.Repeat([]byte("x"), 16<<20)
	for _, test := range []struct {
		name  string
		steps []receivertest.Step
		body  []byte
		kept  bool
		got   string // the answer's body
	}{
		{"with a length", []receivertest.Step{{Send: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"}}, nil, true, "ok"},
		{"of no length", []receivertest.Step{{Send: "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"}}, nil, true, ""},
		{"that has no body", []receivertest.Step{{Send: "HTTP/1.1 204 No Content\r\n\r\n"}}, nil, true, ""},
		{"in parts", []receivertest.Step{{Send: "HTTP/1.1 200 OK\r\nContent-"}, {Send: "Length: 2\r\n\r"}, {Send: "\no"}, {Send: "k"}}, nil, true, "ok"},
		{"in chunks", []receivertest.Step{{Send: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1;x=y\r\nk\r\n0\r\n\r\n"}}, nil, true, "ok"},
		{"with trailers", []receivertest.Step{{Send: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n2\r\nok\r\n0\r\nX-T: 1\r\n"}, {Send: "\r\n"}}, nil, true, "ok"},
		{"after early hints", []receivertest.Step{{Send: "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"}}, nil, true, "ok"},
		{"that fails", []receivertest.Step{{Send: "HTTP/1.1 500 X\r\nContent-Length: 2\r\n\r\nno"}}, nil, true, "no"},
		{"to a large request", []receivertest.Step{{Send: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"}}, large, true, "ok"},
		{"larger than is kept", []receivertest.Step{{Send: "HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n" + strings.Repeat("y", 20000)}}, nil, true, strings.Repeat("y", 16<<10)},
		{"larger than is read", []receivertest.Step{{Send: "HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n" + strings.Repeat("y", 70000)}}, nil, false, strings.Repeat("y", 16<<10)},
		{"that says it is the last", []receivertest.Step{{Send: "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"}, {Keep: true}}, nil, false, "ok"},
		{"of HTTP/1.0", []receivertest.Step{{Send: "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"}, {Keep: true}}, nil, false, "ok"},
		{"of HTTP/1.0, to be kept", []receivertest.Step{{Send: "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok"}}, nil, true, "ok"},
		{"that ends with the connection", []receivertest.Step{{Send: "HTTP/1.1 200 OK\r\n\r\nok"}, {Close: true}}, nil, false, "ok"},
		{"shorter than it said", []receivertest.Step{{Send: "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok"}, {Close: true}}, nil, false, "ok"},
		{"of broken chunks", []receivertest.Step{{Send: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nokzz\r\n"}, {Keep: true}}, nil, false, "ok"},
		{"with more behind it", []receivertest.Step{{Send: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n"}, {Keep: true}}, nil, false, "ok"},
		{"with a body that none may have", []receivertest.Step{{Send: "HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok"}, {Keep: true}}, nil, false, ""},
		{"before all was read", []receivertest.Step{{ReadBytes: 100}, {Send: "HTTP/1.1 413 X\r\nContent-Length: 2\r\n\r\nno"}, {Hold: true}}, huge, false, "no"},
		{"of another protocol", []receivertest.Step{{Send: "HTTP/1.1 101 X\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"}, {Keep: true}}, nil, false, ""},
	} {
		for _, secure := range []string{"", "ok"} {
			t.Run(test.name+map[string]string{"ok": ", over TLS"}[secure], func(t *testing.T) {
				t.Parallel()
				steps := test.steps
				if secure != "" {
					steps = append([]receivertest.Step{{TLS: secure}}, steps...)
				}
				r := receivertest.Start(t, steps...)
				s := sender(t, r)
				body := test.body
				if body == nil {
					body = []byte("{}")
				}
				for range 3 {
					a := s.Send(t.Context(), request(t, r.URL, body, patience))
					sane(t, a, patience)
					if a.StatusCode == 0 || string(a.Body) != test.got {
						t.Errorf("status %d, body %.20q, failure %+v", a.StatusCode, a.Body, a.Failure)
					}
				}
				if n := r.Conns(); n != map[bool]int{true: 1, false: 3}[test.kept] {
					t.Errorf("three attempts made %d connections", n)
				}
			})
		}
	}
}

// TestLastRequest: a webhook may ask for a connection of its own each time.
func TestLastRequest(t *testing.T) {
	r := receivertest.Start(t)
	s := sender(t, r)
	for range 3 {
		q := request(t, r.URL, []byte("{}"), patience)
		q.Header.Set("Connection", "Close")
		if a := s.Send(t.Context(), q); a.Failure != nil {
			t.Fatal(a.Failure.Message)
		}
	}
	if r.Conns() != 3 {
		t.Errorf("%d connections", r.Conns())
	}
}

// TestHeadLimit: 64 KiB of heads are read, the interim ones included, and not a
// byte more.
func TestHeadLimit(t *testing.T) {
	const limit = 64 << 10
	for _, interim := range []string{"", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"} {
		for _, over := range []int{0, 1} {
			t.Run(fmt.Sprintf("%d bytes before, %d over", len(interim), over), func(t *testing.T) {
				before, after := interim+"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: ", "\r\n\r\n"
				head := before + strings.Repeat("y", limit+over-len(before)-len(after)) + after
				r := receivertest.Start(t, receivertest.Step{Send: head + "ok"})
				a := sender(t, r).Send(t.Context(), request(t, r.URL, []byte("{}"), patience))
				want := map[int]hook.FailureKind{1: hook.FailureProtocol}[over]
				if kindOf(a) != want {
					t.Errorf("%d %+v, want %q", a.StatusCode, a.Failure, want)
				}
			})
		}
	}
}

// TestClosedWhileKept: a connection that its receiver has closed meanwhile is
// not used, so that no attempt fails for it.
func TestClosedWhileKept(t *testing.T) {
	for _, secure := range []bool{false, true} {
		closed := make(chan struct{})
		address, client := speak(t, secure, func(c net.Conn) {
			if answerOne(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") == nil {
				_ = c.Close()
				closed <- struct{}{}
			}
		})
		s := send.New(send.Options{Dial: guard(t, egress.Options{Allow: loopback()}), TLS: client})
		defer s.Close()
		for i := range 3 {
			a := s.Send(t.Context(), request(t, address, []byte("{}"), patience))
			if a.Failure != nil {
				t.Fatalf("TLS %t, attempt %d: %s", secure, i+1, a.Failure.Message)
			}
			<-closed
		}
	}
}

// TestPoisonInTLS: what follows an answer counts as well where it has left the
// socket and stands inside of TLS.
func TestPoisonInTLS(t *testing.T) {
	const surplus = "HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n"
	answer := func(size int) string {
		head := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", size)
		return head + strings.Repeat("y", size)
	}
	full := answer(4096 - len(answer(1000)) + 1000) // as large as a reader's buffer
	if len(full) != 4096 {
		t.Fatal(len(full))
	}
	for name, records := range map[string][]string{
		"a record of its own":             {answer(2), surplus},
		"a record of its own, full":       {full, surplus},
		"in the answer's last record":     {full + surplus},
		"after much of it":                {answer(9000) + surplus},
		"a record that has just begun":    {answer(2), "\x17\x03"},
		"a record that misses a byte":     {answer(2), "\x17\x03\x03\x00\x20" + strings.Repeat("z", 31)},
		"the end, and what it should not": {answer(2), "\x15\x03\x03\x00\x20" + strings.Repeat("z", 32)},
	} {
		t.Run(name, func(t *testing.T) {
			var conns sync.Map
			address, client := speak(t, true, func(c net.Conn) {
				conns.Store(c, true)
				flushed, ok := c.(*tls.Conn).NetConn().(*together)
				if !ok {
					t.Error("not the connection that was made")
					return
				}
				for readOne(c) == nil {
					flushed.hold = true
					for _, record := range records {
						if record[0] < ' ' { // as it is, past TLS
							flushed.held = append(flushed.held, record...)
						} else if _, err := io.WriteString(c, record); err != nil {
							return
						}
					}
					if flushed.flush() != nil {
						return
					}
				}
			})
			s := send.New(send.Options{Dial: guard(t, egress.Options{Allow: loopback()}), TLS: client})
			defer s.Close()
			for range 3 {
				if a := s.Send(t.Context(), request(t, address, []byte("{}"), patience)); a.Failure != nil {
					t.Errorf("%d %s", a.StatusCode, a.Failure.Message)
				}
			}
			n := 0
			conns.Range(func(any, any) bool { n++; return true })
			if n != 3 {
				t.Errorf("three attempts made %d connections", n)
			}
		})
	}
}

// speak plays a receiver of which each connection is in a function's hands.
func speak(t *testing.T, secure bool, serve func(net.Conn)) (string, *tls.Config) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	scheme := "http://"
	var server, client *tls.Config
	if secure {
		scheme = "https://"
		server, client = receivertest.Certificates(t)
	}
	var serving sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				stop := context.AfterFunc(ctx, func() { _ = c.Close() })
				defer stop()
				defer func() { _ = c.Close() }()
				if secure {
					serve(tls.Server(&together{Conn: c}, server))
				} else {
					serve(c)
				}
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		serving.Wait()
	})
	return scheme + l.Addr().String(), client
}

// together is a connection that sends several writes in one.
type together struct {
	net.Conn
	hold bool
	held []byte
}

func (c *together) Write(p []byte) (int, error) {
	if !c.hold {
		return c.Conn.Write(p)
	}
	c.held = append(c.held, p...)
	return len(p), nil
}

func (c *together) flush() error {
	_, err := c.Conn.Write(c.held)
	c.hold, c.held = false, nil
	return err
}

func readOne(c io.Reader) error {
	r, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, r.Body)
	return err
}

func answerOne(c io.ReadWriter, text string) error {
	if err := readOne(c); err != nil {
		return err
	}
	_, err := io.WriteString(c, text)
	return err
}

// TestOverBeforeItBegan: nothing is sent for a caller who has gone.
func TestOverBeforeItBegan(t *testing.T) {
	r := receivertest.Start(t)
	s := sender(t, r)
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if a := s.Send(ctx, request(t, r.URL, []byte("{}"), patience)); kindOf(a) != hook.FailureInternal {
			t.Errorf("%d %+v", a.StatusCode, a.Failure)
		}
		if a := s.Send(t.Context(), request(t, r.URL, []byte("{}"), patience)); a.Failure != nil {
			t.Error(a.Failure.Message)
		}
	}
	if n := len(r.Requests()); n != 2 {
		t.Errorf("%d requests", n)
	}
}

// TestEarlyAnswer: a status that comes before the request is read is not waited
// for until the timeout.
func TestEarlyAnswer(t *testing.T) {
	for _, scheme := range []string{"", "ok"} {
		steps := []receivertest.Step{{ReadBytes: 100}, {Send: "HTTP/1.1 413 X\r\nContent-Length: 2\r\n\r\nno"}, {Hold: true}}
		if scheme != "" {
			steps = append([]receivertest.Step{{TLS: scheme}}, steps...)
		}
		r := receivertest.Start(t, steps...)
		a := sender(t, r).Send(t.Context(), request(t, r.URL, make([]byte, 16<<20), patience))
		if a.StatusCode != 413 || string(a.Body) != "no" || a.Duration > patience/4 {
			t.Errorf("%d %+v after %s", a.StatusCode, a.Failure, a.Duration)
		}
	}
}

// TestManyKept: as many connections as there were attempts at once are used
// again when they come again.
func TestManyKept(t *testing.T) {
	const many = 300
	var mu sync.Mutex
	waiting := 0
	all := make(chan struct{})
	conns := 0
	address, _ := speak(t, false, func(c net.Conn) {
		mu.Lock()
		conns++
		mu.Unlock()
		for readOne(c) == nil {
			// Nobody is answered before everybody has asked.
			mu.Lock()
			answer := all
			if waiting++; waiting == many {
				close(all)
				waiting, all = 0, make(chan struct{})
			}
			mu.Unlock()
			<-answer
			if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"); err != nil {
				return
			}
		}
	})
	s := send.New(send.Options{Dial: guard(t, egress.Options{Allow: loopback()})})
	defer s.Close()
	for range 3 {
		var running sync.WaitGroup
		for range many {
			running.Go(func() {
				if a := s.Send(t.Context(), request(t, address, []byte("{}"), patience)); a.Failure != nil {
					t.Error(a.Failure.Message)
				}
			})
		}
		running.Wait()
	}
	if conns != many {
		t.Errorf("%d connections for %d attempts at once", conns, many)
	}
}

// TestTarget is where a URL's connection goes.
func TestTarget(t *testing.T) {
	for address, want := range map[string]string{
		"http://example.com/":       "example.com:80",
		"https://example.com/":      "example.com:443",
		"http://example.com:8080/":  "example.com:8080",
		"https://example.com:80/":   "example.com:80",
		"http://192.0.2.1/":         "192.0.2.1:80",
		"https://[2001:db8::1]/":    "[2001:db8::1]:443",
		"http://[2001:db8::1]:81/":  "[2001:db8::1]:81",
		"http://bücher.example:82/": "xn--bcher-kva.example:82",
	} {
		var got string
		s := send.New(send.Options{Dial: func(_ context.Context, network, address string) (net.Conn, error) {
			got = network + " " + address
			return nil, io.EOF
		}})
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		s.Send(t.Context(), send.Request{URL: u, Timeout: time.Minute})
		s.Close()
		if got != "tcp "+want {
			t.Errorf("%s: %s, want %s", address, got, want)
		}
	}
}
