package egress

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/egress/proxytest"
	"github.com/plinqx/hypha/internal/send/receivertest"
)

func mustParseProxy(t testing.TB, raw string) *Proxy {
	t.Helper()
	p, err := ParseProxy(raw)
	if err != nil {
		t.Fatalf("ParseProxy: %v", err)
	}
	return p
}

func TestParseProxy(t *testing.T) {
	long := strings.Repeat("p", 256)
	for raw, want := range map[string]string{
		"http://proxy.example.com:3128":             "http://proxy.example.com:3128",
		"http://proxy.example.com":                  "http://proxy.example.com:80",
		"HTTPS://proxy.example.com/":                "https://proxy.example.com:443",
		"socks5://10.0.0.3":                         "socks5://10.0.0.3:1080",
		"socks5h://[fd00::3]:1081":                  "socks5://[fd00::3]:1081",
		"http://hush:hush%3A%40%2F@127.0.0.1:3128":  "http://127.0.0.1:3128",
		"socks5://hush:hush@proxy.internal":         "socks5://proxy.internal:1080",
		"https://hush@proxy.internal":               "https://proxy.internal:443",
		"http://hush:" + long + "@proxy.internal":   "http://proxy.internal:80",
		"socks5://hush:" + long + "@proxy.internal": "",
		"socks5://hush" + long + "@proxy.internal":  "",
		"":                                       "",
		"proxy.example.com:3128":                 "",
		"//proxy.example.com":                    "",
		"ftp://proxy.example.com":                "",
		"socks4://proxy.example.com":             "",
		"http://":                                "",
		"http://:3128":                           "",
		"http://hush@":                           "",
		"http:proxy.example.com":                 "",
		"http://hush:hush@proxy:port":            "",
		"http://hush:hush@proxy:":                "",
		"http://hush:hush@fd00::1":               "",
		"http://hush:hush@a:b:3128":              "",
		"http://hush:hush@pro]xy":                "",
		"http://hush:hush@pro[xy:3128":           "",
		"http://hush:hush@proxy:0":               "",
		"http://hush:hush@proxy:65536":           "",
		"http://hush:hush@proxy/path":            "",
		"http://hush:hush@proxy?a":               "",
		"http://hush:hush@proxy#a":               "",
		"http://hush:hu/sh@proxy":                "",
		"http://hush:hu%sh@proxy":                "",
		"http://hush:hush\n@proxy":               "",
		"http://:hush@proxy":                     "",
		"http://hush%3Ahush:hush@proxy":          "",
		"http://hush:hush@proxy.example.com:3x/": "",
	} {
		p, err := ParseProxy(raw)
		switch {
		case want == "" && err == nil:
			t.Errorf("%q was accepted as %s", raw, p)
		case want != "" && (err != nil || p.String() != want):
			t.Errorf("%q: %v, %v; want %s", raw, p, err, want)
		case err != nil && (strings.Contains(err.Error(), "hush") || strings.Contains(err.Error(), "hu/sh")):
			t.Errorf("%q: the error has the password: %v", raw, err)
		}
	}
}

// A proxy is told names as they are, nobody else is asked for them, and what it
// connects to is spoken to through it.
func TestThroughProxies(t *testing.T) {
	receiver := proxytest.Serve(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
	server, client := receivertest.Certificates(t)
	for name, o := range map[string]proxytest.Options{
		"CONNECT":                            {},
		"CONNECT with a password":            {User: "us/er", Password: "p@ss:word/ü"},
		"CONNECT over TLS":                   {TLS: server},
		"CONNECT over TLS with a password":   {TLS: server, User: "user", Password: "password"},
		"SOCKS5":                             {SOCKS: true},
		"SOCKS5 with a password":             {SOCKS: true, User: "us/er", Password: "p@ss:word/ü"},
		"SOCKS5 that wants none where given": {SOCKS: true},
	} {
		t.Run(name, func(t *testing.T) {
			o.To = receiver
			s := proxytest.Start(t, o)
			address := s.URL()
			if strings.HasSuffix(name, "where given") {
				address = strings.Replace(address, "//", "//user:password@", 1)
			}
			via := mustParseProxy(t, address)
			if via.tls != nil {
				via.tls.RootCAs = client.RootCAs
			}
			dns := answers("8.8.8.8")
			p := mustNew(t, Options{Proxy: via, Resolver: dns, Control: new(door).control})
			var want []string
			for address, told := range map[string]string{
				"Hooks.Example.COM.:443":     "hooks.example.com:443",
				"b\u00fccher.example.com:80": "xn--bcher-kva.example.com:80",
				"8.8.8.8:8443":               "8.8.8.8:8443",
				"[2606:4700::1]:443":         "[2606:4700::1]:443",
			} {
				var events []string
				ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
					DNSStart:     func(httptrace.DNSStartInfo) { events = append(events, "lookup") },
					ConnectStart: func(_, addr string) { events = append(events, "connect "+addr) },
					ConnectDone:  func(_, addr string, err error) { events = append(events, "connected "+addr) },
				})
				ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
				conn, err := p.DialContext(ctx, "tcp", address)
				if err != nil {
					t.Fatalf("%s: %v", address, slog.AnyValue(err).Resolve())
				}
				cancel() // which ends the dial alone
				if _, err := conn.Write([]byte("ping")); err != nil {
					t.Error(err)
				}
				got := make([]byte, 4)
				if _, err := io.ReadFull(conn, got); err != nil || string(got) != "ping" {
					t.Errorf("%q came back, and %v", got, err)
				}
				_ = conn.Close()
				if want := []string{"connect " + told, "connected " + told}; !slices.Equal(events, want) {
					t.Errorf("trace %q, want %q", events, want)
				}
				want = append(want, told)
			}
			if got := s.Asked(); !slices.Equal(got, want) {
				t.Errorf("it was asked for %q, want %q", got, want)
			}
			if len(dns.asked) > 0 {
				t.Errorf("the resolver was asked: %q", dns.asked)
			}
		})
	}
}

// The rules of URLs hold behind a proxy too, which is not even asked.
func TestProxyIsNotAskedForWhatIsRefused(t *testing.T) {
	s := proxytest.Start(t, proxytest.Options{To: "127.0.0.1:1"})
	p := mustNew(t, Options{
		Proxy: mustParseProxy(t, s.URL()), Allow: prefixes("127.0.0.0/8"), Deny: prefixes("9.9.9.0/24", "127.0.0.9/32"),
		OwnListeners: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:8080")},
	})
	for _, address := range []string{
		"10.0.0.1:80", "169.254.169.254:80", "[::ffff:8.8.8.8]:80", "[64:ff9b::a9fe:a9fe]:80", "9.9.9.9:443", "127.0.0.9:80", "0.0.0.0:80",
		"0x7f.1:80", "127.1:80", "2130706433:80", "metadata.google.internal:80", "a.internal:80", "intranet:80", "a.localhost:80",
		"example.com:22", "example.com:0", "example.com:080", "127.0.0.1:8080", "exam%70le.com:80", "a.com\r\nX:80", "a b:80",
	} {
		if _, err := p.DialContext(t.Context(), "tcp", address); !errors.Is(err, ErrBlocked) {
			t.Errorf("%q: %v, want blocked", address, err)
		}
	}
	if s.Conns() > 0 {
		t.Errorf("the proxy was asked %d times: %q", s.Conns(), s.Asked())
	}
	// What is allowed is the proxy's loopback then.
	if _, err := p.DialContext(t.Context(), "tcp", "localhost:9000"); err == nil || !slices.Equal(s.Asked(), []string{"localhost:9000"}) {
		t.Errorf("localhost where allowed: %v, asked %q", err, s.Asked())
	}
}

// TestHostileProxies plays proxies that misbehave, each on a raw socket. All that
// they come to is a ProxyError, in time, with nothing that they wrote.
func TestHostileProxies(t *testing.T) {
	// What reads the request first, and then answers.
	http1 := func(answer string, after func(net.Conn)) func(net.Conn) {
		return func(c net.Conn) {
			if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
				return
			}
			_, _ = io.WriteString(c, answer)
			if after != nil {
				after(c)
			}
		}
	}
	socks := func(after func(net.Conn), answers ...string) func(net.Conn) {
		return func(c net.Conn) {
			for _, answer := range answers {
				if _, err := c.Read(make([]byte, 1024)); err != nil {
					return
				}
				_, _ = io.WriteString(c, answer)
			}
			if after != nil {
				after(c)
			}
		}
	}
	hold := func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }
	flood := func(line string) func(net.Conn) {
		return func(c net.Conn) {
			// Bytes, as a string is copied for each write, and what this proxy
			// allocates would count as the client's.
			for chunk := bytes.Repeat([]byte(line), 1000); ; {
				if _, err := c.Write(chunk); err != nil {
					return
				}
			}
		}
	}
	drip := func(text string) func(net.Conn) {
		return func(c net.Conn) {
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for i := 0; ; i++ {
				if _, err := io.WriteString(c, text[i%len(text):i%len(text)+1]); err != nil {
					return
				}
				<-tick.C
			}
		}
	}
	reset := func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0) }
	const ok, mine = "HTTP/1.1 200 OK\r\n\r\n", "\x05\x02"
	tests := []struct {
		name   string
		scheme string
		serve  func(net.Conn) // nil: nobody listens
		reason ProxyReason
		log    string
	}{
		{"nobody there", "http", nil, ProxyFailed, "connection refused"},
		{"accepts and hangs", "http", hold, ProxySilent, "in time"},
		{"closes at once", "http", func(net.Conn) {}, ProxySilent, "closed the connection without an answer"},
		{"resets", "http", http1("", reset), ProxySilent, "closed the connection without an answer"},
		{"asks for a password", "http", http1("HTTP/1.1 407 hush\r\nProxy-Authenticate: Basic realm=\"hush\"\r\nContent-Length: 4\r\n\r\nhush", nil), ProxyFailed, "the proxy answered 407 Proxy Authentication Required"},
		{"forbids", "http", http1("HTTP/1.1 403 hush\r\n\r\n", nil), ProxyForbids, "answered 403 Forbidden"},
		{"knows no CONNECT", "http", http1("HTTP/1.1 405 hush\r\n\r\n", nil), ProxyFailed, "answered 405"},
		{"can't reach it", "http", http1("HTTP/1.1 502 hush\r\nContent-Type: text/html\r\n\r\n<h1>hush", hold), ProxyUnreached, "answered 502 Bad Gateway"},
		{"waits too long for it", "http", http1("HTTP/1.0 504 hush\r\n\r\n", nil), ProxyUnreached, "answered 504"},
		{"redirects", "http", http1("HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\n\r\n", hold), ProxyFailed, "answered 302 Found"},
		{"switches protocols", "http", http1("HTTP/1.1 101 Switching Protocols\r\nUpgrade: hush\r\n\r\n", hold), ProxyFailed, "answered 101"},
		{"is no HTTP server", "http", http1("SSH-2.0-hush\r\n", hold), ProxyFailed, "not HTTP"},
		{"answers garbage", "http", http1("\x00\xff\x16\x03\n\n\n\nhush", hold), ProxyFailed, "not HTTP"},
		{"quotes what it was shown", "http", func(c net.Conn) {
			request := make([]byte, 1024)
			n, _ := c.Read(request)
			_, _ = c.Write(request[:n])
			hold(c)
		}, ProxyFailed, "not HTTP"},
		{"has a status of two digits", "http", http1("HTTP/1.1 20 hush\r\n\r\n", hold), ProxyFailed, "not HTTP"},
		{"has a status of its own", "http", http1("HTTP/1.1 999 hush\r\n\r\n", nil), ProxyFailed, "answered 999"},
		{"ends within the head", "http", http1("HTTP/1.1 200 OK\r\nX: hush\r\n", nil), ProxyFailed, "within its answer"},
		{"ends within the status line", "http", http1("HTTP/1.1 2", nil), ProxyFailed, "within its answer"},
		{"hangs within the head", "http", http1("HTTP/1.1 200 OK\r\nX: hush\r\n", hold), ProxySilent, "in time"},
		{"drips its head", "http", http1("HTTP/1.1 200 OK\r\n", drip("X: hush\r\n")), ProxySilent, "in time"},
		{"has an endless head", "http", http1("HTTP/1.1 200 OK\r\n", flood("X: hush\r\n")), ProxyFailed, "over 16 KiB"},
		{"has an endless header", "http", http1("HTTP/1.1 200 OK\r\nX: ", flood("hush")), ProxyFailed, "over 16 KiB"},
		{"has an endless status line", "http", http1("HTTP/1.1 200 ", flood("hush")), ProxyFailed, "over 16 KiB"},
		{"has endless interim answers", "http", http1("", flood("HTTP/1.1 100 Continue\r\n\r\n")), ProxyFailed, "over 16 KiB"},
		{"drips interim answers", "http", http1("", drip("HTTP/1.1 100 Continue\r\n\r\n")), ProxySilent, "in time"},
		{"answers for the receiver", "http", http1(ok+"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", hold), ProxyFailed, "more came behind"},
		{"says how long the tunnel is", "http", http1("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhush", hold), ProxyFailed, "more came behind"},
		{"drips before it has read", "http", drip("x"), ProxySilent, "in time"},

		{"no TLS behind https", "https", http1(ok, hold), ProxyFailed, "TLS handshake with the proxy"},
		{"hangs in the TLS handshake", "https", hold, ProxyFailed, "TLS handshake with the proxy"},
		{"closes in the TLS handshake", "https", func(net.Conn) {}, ProxyFailed, "TLS handshake with the proxy"},
		{"floods the TLS handshake", "https", flood("\x16\x03\x01\x40\x00"), ProxyFailed, "TLS handshake with the proxy"},

		{"SOCKS5: nobody there", "socks5", nil, ProxyFailed, "connection refused"},
		{"SOCKS5: hangs", "socks5", hold, ProxySilent, "in time"},
		{"SOCKS5: closes", "socks5", func(net.Conn) {}, ProxySilent, "closed the connection"},
		{"SOCKS5: is an HTTP server", "socks5", socks(hold, "HTTP/1.1 400 hush\r\n\r\n"), ProxyFailed, "unexpected protocol version"},
		{"SOCKS5: is SOCKS4", "socks5", socks(hold, "\x00\x5b\x00\x00\x00\x00\x00\x00"), ProxyFailed, "unexpected protocol version"},
		{"SOCKS5: takes no method", "socks5", socks(nil, "\x05\xff"), ProxyFailed, "no acceptable authentication methods"},
		{"SOCKS5: takes another method", "socks5", socks(nil, "\x05\x01"), ProxyFailed, "unsupported authentication method"},
		{"SOCKS5: takes another password", "socks5", socks(nil, mine, "\x01\x01"), ProxyFailed, "authentication failed"},
		{"SOCKS5: hangs over the password", "socks5", socks(hold, mine), ProxySilent, "in time"},
		{"SOCKS5: fails", "socks5", socks(nil, mine, "\x01\x00", "\x05\x01\x00\x01\x00\x00\x00\x00\x00\x00"), ProxyUnreached, "general SOCKS server failure"},
		{"SOCKS5: forbids", "socks5", socks(nil, mine, "\x01\x00", "\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00"), ProxyForbids, "not allowed by ruleset"},
		{"SOCKS5: no way to the network", "socks5", socks(nil, mine, "\x01\x00", "\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00"), ProxyUnreached, "network unreachable"},
		{"SOCKS5: no way to the host", "socks5", socks(nil, mine, "\x01\x00", "\x05\x04\x00\x01\x00\x00\x00\x00\x00\x00"), ProxyUnreached, "host unreachable"},
		{"SOCKS5: refused", "socks5", socks(nil, mine, "\x01\x00", "\x05\x05\x00\x01\x00\x00\x00\x00\x00\x00"), ProxyUnreached, "connection refused"},
		{"SOCKS5: too far", "socks5", socks(nil, mine, "\x01\x00", "\x05\x06\x00\x01\x00\x00\x00\x00\x00\x00"), ProxyUnreached, "TTL expired"},
		{"SOCKS5: knows no CONNECT", "socks5", socks(nil, mine, "\x01\x00", "\x05\x07\x00\x01\x00\x00\x00\x00\x00\x00"), ProxyFailed, "command not supported"},
		{"SOCKS5: knows no names", "socks5", socks(nil, mine, "\x01\x00", "\x05\x08\x00\x01\x00\x00\x00\x00\x00\x00"), ProxyFailed, "address type not supported"},
		{"SOCKS5: has a reply of its own", "socks5", socks(nil, mine, "\x01\x00", "\x05\x99\x00\x01\x00\x00\x00\x00\x00\x00"), ProxyFailed, "153"},
		{"SOCKS5: has an address of its own", "socks5", socks(nil, mine, "\x01\x00", "\x05\x00\x00\x09\x00\x00\x00\x00\x00\x00"), ProxyFailed, "unknown address type"},
		{"SOCKS5: ends within the reply", "socks5", socks(nil, mine, "\x01\x00", "\x05\x00\x00\x01\x00"), ProxyFailed, "within its answer"},
		{"SOCKS5: hangs within the reply", "socks5", socks(hold, mine, "\x01\x00", "\x05\x00\x00\x03\xff"), ProxySilent, "in time"},
		{"SOCKS5: drips", "socks5", socks(drip("\x00"), mine, "\x01\x00", "\x05\x00\x00\x03\xff"), ProxySilent, "in time"},
		{"SOCKS5: answers for the receiver", "socks5", socks(hold, mine, "\x01\x00", "\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"+ok), ProxyFailed, "more came behind"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			limit := 20 * time.Second // which is not what most are about
			if test.log == "in time" || test.name == "hangs in the TLS handshake" {
				limit = 300 * time.Millisecond
			}
			address := proxytest.Serve(t, test.serve)
			p := mustNew(t, Options{Proxy: mustParseProxy(t, test.scheme+"://hush:hush@"+address)})
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			began := time.Now()
			conn, err := p.DialContext(ctx, "tcp", "hooks.example.com:443")
			if took := time.Since(began); took > limit+time.Second {
				t.Errorf("it took %s", took)
			}
			runtime.ReadMemStats(&after)
			if grown := (after.TotalAlloc - before.TotalAlloc) >> 20; grown >= 4 {
				t.Errorf("%d MiB were allocated", grown)
			}
			if conn != nil {
				_ = conn.Close()
				t.Fatal("it connected")
			}
			failed, ok := errors.AsType[*ProxyError](err)
			if !ok {
				t.Fatalf("error %v, want a ProxyError", err)
			}
			if failed.Reason != test.reason {
				t.Errorf("reason %d, want %d", failed.Reason, test.reason)
			}
			if strings.ContainsAny(err.Error(), "0123456789") {
				t.Errorf("the error tells where the proxy is: %v", err)
			}
			var log bytes.Buffer
			slog.New(slog.NewTextHandler(&log, nil)).Error("failed", "cause", err)
			for _, want := range []string{test.log, "hooks.example.com:443", address} {
				if !strings.Contains(log.String(), want) {
					t.Errorf("the log has no %q: %s", want, &log)
				}
			}
			if strings.Contains(log.String(), "hush") || strings.Contains(log.String(), "aHVzaDpodXNo") {
				t.Errorf("the log has what the proxy wrote, or its password: %s", &log)
			}
		})
	}
}

// A dial through a proxy ends when whoever asked has gone, and leaves no
// connection.
func TestProxiedDialEndsWithItsContext(t *testing.T) {
	for _, scheme := range []string{"http", "https", "socks5"} {
		ctx, cancel := context.WithCancel(t.Context())
		closed := make(chan struct{})
		address := proxytest.Serve(t, func(c net.Conn) {
			_, _ = c.Read(make([]byte, 1024))
			cancel()
			_, _ = io.Copy(io.Discard, c) // until it is closed
			close(closed)
		})
		_, err := mustNew(t, Options{Proxy: mustParseProxy(t, scheme+"://"+address)}).DialContext(ctx, "tcp", "hooks.example.com:443")
		if _, ok := errors.AsType[*ProxyError](err); !ok {
			t.Errorf("%s: %v", scheme, err)
		}
		<-closed
	}
}

// Closing a tunnel inside of TLS waits for nobody, though the proxy reads nothing
// and the socket is full.
func TestClosingASecureTunnelDoesNotWait(t *testing.T) {
	server, client := receivertest.Certificates(t)
	done := make(chan struct{})
	s := proxytest.Start(t, proxytest.Options{TLS: server, To: proxytest.Serve(t, func(net.Conn) { <-done })})
	defer close(done)
	via := mustParseProxy(t, s.URL())
	via.tls.RootCAs = client.RootCAs
	conn, err := mustNew(t, Options{Proxy: via}).DialContext(t.Context(), "tcp", "hooks.example.com:443")
	if err != nil {
		t.Fatal(slog.AnyValue(err).Resolve())
	}
	if err := conn.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	for chunk := make([]byte, 1<<20); err == nil; {
		_, err = conn.Write(chunk)
	}
	began := time.Now()
	_ = conn.Close()
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("closing took %s", took)
	}
}

// FuzzParseProxy holds that whatever stands around a password, neither an error nor
// what is shown of a proxy has it; and that what is shown is a proxy's URL, of the
// same proxy without its user.
func FuzzParseProxy(f *testing.F) {
	const password = "hunter2hunter2"
	for _, around := range [][2]string{
		{"http://user:", "@proxy.example.com:3128"}, {"https://user:", "@proxy.example.com"}, {"socks5://user:", "@10.0.0.3:1080"}, {"socks5h://u:", "@[fd00::1]"},
		{"http://:", "@proxy.example.com"}, {"http://user:%zz", "@proxy.example.com"}, {"http://user:", "@proxy.example.com:0"}, {"http://user:", "@"},
		{"http://user:a", "/b@proxy.example.com"}, {"http://user:", "@proxy.example.com/path"}, {"http://user:", "@proxy.example.com?q"}, {"http://user:", "#@proxy.example.com"},
		{"ftp://user:", "@proxy.example.com"}, {"http://user:", "@proxy.example.com:70000"}, {"http://user:", "@proxy.example.com:"}, {"user:", "@proxy.example.com"},
		{"http://user:", "@x@proxy.example.com"}, {"http://user%3a:", "@proxy.example.com"}, {"socks5://" + strings.Repeat("u", 256) + ":", "@h"}, {"http://user:\n", "@h"},
	} {
		f.Add(around[0], around[1])
	}
	f.Fuzz(func(t *testing.T, before, behind string) {
		raw := before + password + behind
		p, err := ParseProxy(raw)
		if err != nil {
			if strings.Contains(err.Error(), password) {
				t.Errorf("%q: the error has the password: %v", raw, err)
			}
			return
		}
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatalf("%q was taken, and is no URL: %v", raw, err)
		}
		host, port, err := net.SplitHostPort(p.address)
		if n, portErr := strconv.ParseUint(port, 10, 16); err != nil || host != u.Hostname() || portErr != nil || n == 0 {
			t.Errorf("%q has the address %q", raw, p.address)
		}
		shown := p.String()
		if p.LogValue().String() != shown {
			t.Errorf("%q is shown as %s, and logged as %s", raw, shown, p.LogValue())
		}
		if strings.Contains(shown, password) && !strings.Contains(host, password) {
			t.Errorf("%q: the password is shown: %s", raw, shown)
		}
		if strings.Contains(host, "%") {
			return // a zone, which is not written as in a URL
		}
		again, err := ParseProxy(shown)
		if err != nil || again.user != nil || again.address != p.address || again.String() != shown {
			t.Errorf("%q is shown as %s, which is another: %v", raw, shown, err)
		}
	})
}
