package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/plinqx/hypha/internal/certificate/certificatetest"
)

func TestFitConnections(t *testing.T) {
	for _, tc := range []struct {
		asked, slots int
		files        uint64
		want         int
	}{
		{10_000, 1024, 0, 10_000}, // not known
		{10_000, 1024, 1 << 20, 10_000},
		{10_000, 1024, 1<<64 - 1, 10_000}, // no limit
		{10_000, 1024, 4096, 2560},
		{10_000, 1024, 1024, leastConnections},
		{0, 1024, 4096, 2560},
		{0, 1024, 0, 0},
		{100, 1024, 4096, 100},
	} {
		var log bytes.Buffer
		got := fitConnections(tc.asked, tc.slots, tc.files, slog.New(slog.NewTextHandler(&log, nil)))
		if got != tc.want || (log.Len() > 0) != (got != tc.asked) {
			t.Errorf("%d asked, %d slots, %d files: %d, want %d; logged %q", tc.asked, tc.slots, tc.files, got, tc.want, &log)
		}
	}
}

// patience is how long these tests wait for what should be there at once.
const patience = 30 * time.Second

func connect(t *testing.T, v *server) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", v.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c
}

// refused reports whether the server takes no connection: it is closed without a word,
// or before it stands.
func refused(t *testing.T, v *server) bool {
	t.Helper()
	c, err := net.Dial("tcp", v.listener.Addr().String())
	if err != nil {
		return errors.Is(err, syscall.ECONNRESET)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience))
	said, ok := closed(c)
	return ok && said == ""
}

// closed reports how a server's end of a connection comes: true if it is closed, and
// what was said before.
func closed(c net.Conn) (said string, ok bool) {
	text, err := io.ReadAll(c)
	var n net.Error
	return string(text), !errors.As(err, &n) || !n.Timeout()
}

// Clients that send their requests drop by drop hold nobody up, and are gone after
// their time.
func TestSlowClients(t *testing.T) {
	v := startTuned(t, nil, func(v *server) {
		v.http.ReadHeaderTimeout, v.http.ReadTimeout = 2*time.Second, 3*time.Second
	})
	request := "POST /services/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + testKey + "\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n{"
	var heads, bodies []net.Conn
	for i := range 100 {
		c := connect(t, v)
		if i%2 == 0 {
			heads = append(heads, c)
			_, _ = io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: x\r\nX-A")
		} else {
			bodies = append(bodies, c)
			_, _ = io.WriteString(c, request)
		}
	}
	resp, err := http.Get(v.url() + "/readyz")
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", resp, err)
	}
	_ = resp.Body.Close()
	for _, c := range heads {
		if said, ok := closed(c); !ok {
			t.Fatalf("a head that does not end is waited for; said %q", said)
		}
	}
	for _, c := range bodies {
		said, ok := closed(c)
		if !ok || !strings.HasPrefix(said, "HTTP/1.1 400 ") {
			t.Fatalf("closed %t, said %q", ok, said)
		}
	}
}

// patient lets connections be as slow as they like.
func patient(v *server) { v.http.ReadHeaderTimeout, v.http.ReadTimeout = time.Hour, time.Hour }

// More than so many connections of one address are closed as they come, and counted.
func TestConnectionsAreBounded(t *testing.T) {
	v := startTuned(t, func(s *settings) { s.MaxConnectionsPerAddress = 3 }, patient)
	first := []net.Conn{connect(t, v), connect(t, v), connect(t, v)}
	eventually(t, "they are there", func() bool { return v.connections.Open() == 3 })
	if !refused(t, v) {
		t.Error("a fourth connection is taken")
	}
	// Those that are there work on.
	_, _ = io.WriteString(first[0], "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	said, ok := closed(first[0])
	if !ok || !strings.Contains(said, "\nhypha_connections 3\n") || !strings.Contains(said, `hypha_connections_refused_total{why="address"} 1`) || !strings.Contains(said, `hypha_connections_refused_total{why="total"} 0`) {
		t.Errorf("closed %t, said %s", ok, said)
	}
	eventually(t, "one has left", func() bool { return v.connections.Open() == 2 })
	c := connect(t, v)
	_, _ = io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	if said, ok := closed(c); !ok || !strings.HasPrefix(said, "HTTP/1.1 200 ") {
		t.Errorf("closed %t, said %q", ok, said)
	}
}

// Clients behind a trusted proxy have its address, and no limit by it.
func TestProxiesShareNoLimit(t *testing.T) {
	v := startTuned(t, func(s *settings) {
		s.MaxConnectionsPerAddress, s.MaxConnections, s.TrustedProxies = 1, 3, []string{"127.0.0.0/8"}
	}, patient)
	connect(t, v)
	connect(t, v)
	connect(t, v)
	eventually(t, "they are there", func() bool { return v.connections.Open() == 3 })
	if !refused(t, v) {
		t.Error("there is no limit in all")
	}
}

// withTLS runs a server with a certificate, and answers its folder and its clients.
func withTLS(t *testing.T, change func(*settings), tune func(*server)) (v *server, dir string, config *tls.Config) {
	t.Helper()
	dir = t.TempDir()
	pair := certificatetest.Make(t, "hooks.example.com", time.Now().Add(-time.Hour), time.Now().Add(90*24*time.Hour))
	cert, key := pair.Put(t, dir)
	v = startTuned(t, func(s *settings) {
		s.TLSCert, s.TLSKey = cert, key
		if change != nil {
			change(s)
		}
	}, tune)
	return v, dir, &tls.Config{RootCAs: pair.Pool()}
}

func httpClient(t *testing.T, config *tls.Config, two bool) *http.Client {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: config.Clone(), ForceAttemptHTTP2: two}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

func TestTLS(t *testing.T) {
	hangups := make(chan os.Signal)
	v, dir, config := withTLS(t, nil, func(v *server) { v.hangups = hangups })
	if !strings.HasPrefix(v.url(), "https://127.0.0.1:") {
		t.Errorf("it is at %s", v.url())
	}
	for proto, two := range map[string]bool{"HTTP/1.1": false, "HTTP/2.0": true} {
		resp, err := httpClient(t, config, two).Get(v.url() + "/healthz")
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != 200 || resp.Proto != proto || resp.TLS.Version < tls.VersionTLS12 {
			t.Errorf("%s over %s, TLS %x; want %s", resp.Status, resp.Proto, resp.TLS.Version, proto)
		}
	}

	// A session in a cookie is kept by a browser over TLS, and sent back.
	browser := httpClient(t, config, true)
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	browser.Jar = jar
	resp, err := browser.Post(v.url()+"/services/auth/login", "application/json", strings.NewReader(fmt.Sprintf(`{"email":%q,"password":%q,"cookie":true}`, testEmail, testPassword)))
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp, err = browser.Get(v.url() + "/services/auth/me"); err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("with the cookie: %s", resp.Status)
	}

	// Who speaks no TLS is told so.
	c := connect(t, v)
	_, _ = io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
	if said, ok := closed(c); !ok || !strings.HasPrefix(said, "HTTP/1.0 400 ") {
		t.Errorf("closed %t, said %q", ok, said)
	}

	// A new certificate is shown to who comes next, and in the metrics.
	end := time.Now().Add(60 * 24 * time.Hour).Truncate(time.Second)
	next := certificatetest.Make(t, "next.example.com", time.Now().Add(-time.Hour), end)
	next.Put(t, dir)
	hangups <- syscall.SIGHUP
	config = &tls.Config{RootCAs: next.Pool()}
	client := httpClient(t, config, true)
	var text string
	eventually(t, "the new certificate is shown", func() bool {
		resp, err := client.Get(v.url() + "/metrics")
		if err != nil {
			return false
		}
		defer func() { _ = resp.Body.Close() }()
		raw, err := io.ReadAll(resp.Body)
		text = string(raw)
		return err == nil
	})
	_, rest, _ := strings.Cut(text, "\nhypha_tls_certificate_expiration_timestamp_seconds ")
	value, _, _ := strings.Cut(rest, "\n")
	if got, err := strconv.ParseFloat(value, 64); err != nil || got != float64(end.Unix()) {
		t.Errorf("in the metrics it ends at %q, want %d", value, end.Unix())
	}
}

// Requests with two ends are refused over TLS too.
func TestFramingOverTLS(t *testing.T) {
	v, _, config := withTLS(t, nil, func(*server) {})
	config.NextProtos = []string{"http/1.1"}
	c := tls.Client(connect(t, v), config)
	config.ServerName = "hooks.example.com"
	const head = "POST /services/events HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
	if _, err := io.WriteString(c, head+"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != http.StatusBadRequest {
		t.Fatalf("%v, %v", resp, err)
	}
	if resp.Header.Get("X-Request-Id") != "" {
		t.Error("it came to a handler")
	}
}

// frames is a connection of HTTP/2 that can do what no client does.
func frames(t *testing.T, v *server, config *tls.Config) *http2.Framer {
	t.Helper()
	config = config.Clone()
	config.ServerName, config.NextProtos = "hooks.example.com", []string{"h2"}
	c := tls.Client(connect(t, v), config)
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f := http2.NewFramer(c, c)
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return f
}

func head(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for _, h := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "x"}, {":path", "/healthz"}} {
		if err := e.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// A flood on a connection of HTTP/2 ends it, and nobody else notices.
func TestHTTP2Floods(t *testing.T) {
	v, _, config := withTLS(t, nil, func(*server) {})
	for name, flood := range map[string]func(f *http2.Framer, block []byte, i uint32) error{
		// As much of a head as is ever sent, and never its end.
		"heads without end": func(f *http2.Framer, block []byte, i uint32) error {
			if i == 0 {
				return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block})
			}
			return f.WriteContinuation(1, false, bytes.Repeat([]byte{0x00, 0x01, 'a', 0x01, 'b'}, 2000))
		},
		// Questions, whose answers nobody reads.
		"pings": func(f *http2.Framer, _ []byte, _ uint32) error { return f.WritePing(false, [8]byte{}) },
	} {
		t.Run(name, func(t *testing.T) {
			f, block := frames(t, v, config), head(t)
			var err error
			for i := uint32(0); err == nil; i++ {
				err = flood(f, block, i)
			}
			var n net.Error
			if errors.As(err, &n) && n.Timeout() {
				t.Error("it goes on")
			}
			resp, err := httpClient(t, config, true).Get(v.url() + "/healthz")
			if err != nil || resp.StatusCode != 200 {
				t.Fatalf("somebody else: %v, %v", resp, err)
			}
			_ = resp.Body.Close()
		})
	}
}

// Requests that are taken back as fast as they come (rapid reset) cost no more than
// as many as may be open, and others are answered.
func TestHTTP2RapidReset(t *testing.T) {
	v, _, config := withTLS(t, nil, func(*server) {})
	f, block := frames(t, v, config), head(t)
	frame, err := f.ReadFrame()
	if err != nil {
		t.Fatal(err)
	}
	settings, ok := frame.(*http2.SettingsFrame)
	if !ok {
		t.Fatalf("it begins with %v", frame)
	}
	if n, ok := settings.Value(http2.SettingMaxConcurrentStreams); !ok || n != maxStreams {
		t.Errorf("it takes %d streams", n)
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		for {
			if _, err := f.ReadFrame(); err != nil {
				return
			}
		}
	}()
	other := httpClient(t, config, true)
	for i := range uint32(5000) {
		id := 2*i + 1
		if f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true, EndStream: true}) != nil || f.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
			break // the server has had enough
		}
		if i%1000 == 0 {
			resp, err := other.Get(v.url() + "/healthz")
			if err != nil || resp.StatusCode != 200 {
				t.Fatalf("somebody else: %v, %v", resp, err)
			}
			_ = resp.Body.Close()
		}
	}
	_ = f.WriteGoAway(0, http2.ErrCodeNo, nil)
}

// A head may be long or have many lines, up to a bound that is far from what anybody
// sends; beyond, it is refused, and not read to its end.
func TestHeadsAreBounded(t *testing.T) {
	v := startServer(t, nil)
	for name, tc := range map[string]struct {
		head string
		want string
	}{
		"a long address":        {"GET /healthz?" + strings.Repeat("a", 40<<10) + " HTTP/1.1\r\nHost: x\r\n", "431"},
		"a long line":           {"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: " + strings.Repeat("a", 40<<10) + "\r\n", "431"},
		"many lines":            {"GET /healthz HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("a:\r\n", 10_000), "431"},
		"many names":            {"GET /healthz HTTP/1.1\r\nHost: x\r\n" + manyHeaders(3000), "431"},
		"many parameters":       {"GET /services/webhooks?" + strings.Repeat("a&", 6_000) + " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + testKey + "\r\n", "400"},
		"long, but not so long": {"GET /healthz?" + strings.Repeat("a", 12<<10) + " HTTP/1.1\r\nHost: x\r\n", "200"},
	} {
		t.Run(name, func(t *testing.T) {
			c := connect(t, v)
			go func() { _, _ = io.WriteString(c, tc.head+"Connection: close\r\n\r\n") }() // all of it or not
			said, ok := closed(c)
			if !ok || !strings.HasPrefix(said, "HTTP/1.1 "+tc.want+" ") {
				t.Errorf("closed %t, said %.200q", ok, said)
			}
			if len(said) > 20<<10 {
				t.Errorf("the answer has %d bytes", len(said))
			}
		})
	}
}

// manyHeaders are so many headers, each with a name of its own.
func manyHeaders(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "x%d:\r\n", i)
	}
	return b.String()
}

// The program looks at its certificate when it gets SIGHUP, and goes on.
func TestHangupReadsTheCertificate(t *testing.T) {
	dir := t.TempDir()
	first := certificatetest.Make(t, "one.example.com", time.Now().Add(-time.Hour), time.Now().Add(90*24*time.Hour))
	cert, key := first.Put(t, dir)
	p := startProgram(t, nil, "serve", "--listen", "127.0.0.1:0", "--data", t.TempDir(), "--tls-cert", cert, "--tls-key", key)
	shown := func() string {
		c, err := tls.Dial("tcp", strings.TrimPrefix(p.url, "https://"), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		return c.ConnectionState().PeerCertificates[0].DNSNames[0]
	}
	if got := shown(); got != "one.example.com" {
		t.Errorf("shows %s", got)
	}
	certificatetest.Make(t, "two.example.com", time.Now().Add(-time.Hour), time.Now().Add(90*24*time.Hour)).Put(t, dir)
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new one is shown", func() bool { return shown() == "two.example.com" })
}
