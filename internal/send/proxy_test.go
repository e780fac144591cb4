package send_test

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/egress"
	"github.com/plinqx/hypha/internal/egress/proxytest"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/send"
)

// through is a sender that reaches receivers through a proxy alone: what it
// dials itself is blocked.
func through(t *testing.T, proxy string, o send.Options) *send.Sender {
	t.Helper()
	p, err := egress.ParseProxy(proxy)
	if err != nil {
		t.Fatal(err)
	}
	o.Dial, o.Proxied = guard(t, egress.Options{Proxy: p}), true
	s := send.New(o)
	t.Cleanup(s.Close)
	return s
}

// TestThroughProxies: what is sent arrives, whatever the receiver speaks; TLS
// goes from end to end, with the receiver's name; and the connection is kept.
func TestThroughProxies(t *testing.T) {
	for name, o := range map[string]proxytest.Options{"CONNECT": {User: "user", Password: "hush"}, "SOCKS5": {SOCKS: true, User: "user", Password: "hush"}} {
		for proto, start := range map[string]func(*httptest.Server){
			"HTTP/1.1":          (*httptest.Server).Start,
			"HTTP/1.1 over TLS": (*httptest.Server).StartTLS,
			"HTTP/2.0": func(r *httptest.Server) {
				r.EnableHTTP2 = true
				r.StartTLS()
			},
		} {
			t.Run(name+" "+proto, func(t *testing.T) {
				var mu sync.Mutex
				var came []string
				r := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
					body, _ := io.ReadAll(q.Body)
					mu.Lock()
					defer mu.Unlock()
					came = append(came, q.Proto+" "+q.Host+" "+string(body))
					if q.Header.Get("Proxy-Authorization") != "" {
						t.Error("the receiver gets the proxy's password")
					}
					if q.TLS != nil && q.TLS.ServerName != "example.com" {
						t.Errorf("TLS with %q", q.TLS.ServerName)
					}
				}))
				start(r)
				t.Cleanup(r.Close)
				o.To = r.Listener.Addr().String()
				proxy := proxytest.Start(t, o)
				var options send.Options
				if transport, ok := r.Client().Transport.(*http.Transport); ok && r.TLS != nil {
					options.TLS = transport.TLSClientConfig
				}
				s := through(t, proxy.URL(), options)
				_, port, _ := net.SplitHostPort(o.To)
				address := strings.Replace(r.URL, "127.0.0.1", "example.com", 1)
				want := strings.Fields(proto)[0] + " example.com:" + port + " {}"
				for i := range 3 {
					a := s.Send(t.Context(), request(t, address, []byte("{}"), patience))
					sane(t, a, patience)
					if a.Failure != nil || a.StatusCode != 200 {
						t.Fatalf("%d, %+v", a.StatusCode, a.Failure)
					}
					if dialed := a.Timings.Connect > 0; dialed != (i == 0) || a.Timings.DNS > 0 {
						t.Errorf("attempt %d: %+v", i+1, a.Timings)
					}
				}
				mu.Lock()
				defer mu.Unlock()
				if strings.Join(came, "\n") != strings.Join([]string{want, want, want}, "\n") {
					t.Errorf("came %q, want three times %q", came, want)
				}
				if asked := strings.Join(proxy.Asked(), " "); asked != "example.com:"+port {
					t.Errorf("the proxy was asked for %q", asked)
				}
			})
		}
	}
}

// TestProxyFailures: what customers are told of a proxy's failure, which is never
// where it is, and what the log has.
func TestProxyFailures(t *testing.T) {
	raw := func(answer string) string {
		return "http://user:hush@" + proxytest.Serve(t, func(c net.Conn) {
			_, _ = c.Read(make([]byte, 1024))
			if answer == "" {
				<-t.Context().Done()
			}
			_, _ = io.WriteString(c, answer)
		})
	}
	for _, test := range []struct {
		name, proxy, url string
		limit            time.Duration
		kind             hook.FailureKind
		message          string
	}{
		{"407", raw("HTTP/1.1 407 X\r\n\r\n"), "http://example.com/", patience, hook.FailureProxy, "the proxy that this server sends through does not work"},
		{"407, over TLS", raw("HTTP/1.1 407 X\r\n\r\n"), "https://example.com/", patience, hook.FailureProxy, "the proxy that this server sends through does not work"},
		{"403", raw("HTTP/1.1 403 X\r\n\r\n"), "https://example.com/", patience, hook.FailureProxy, "the proxy that this server sends through does not let this address be called"},
		{"502", raw("HTTP/1.1 502 X\r\n\r\n"), "https://example.com/", patience, hook.FailureProxy, "the proxy that this server sends through could not reach the receiver"},
		{"silent", raw(""), "http://example.com/", timeout, hook.FailureProxy, "the proxy that this server sends through made no connection to the receiver; it had 300ms"},
		{"silent, over TLS", raw(""), "https://example.com/", timeout, hook.FailureProxy, "the proxy that this server sends through made no connection to the receiver; it had 300ms"},
		{"a private address", raw("HTTP/1.1 200 OK\r\n\r\n"), "http://10.0.0.1/", patience, hook.FailureBlocked, "the address may not be called"},
		{"a tunnel to nowhere", raw("HTTP/1.1 200 OK\r\n\r\n"), "https://example.com/", patience, hook.FailureTLS, "the receiver closed the connection during the TLS handshake"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			a := through(t, test.proxy, send.Options{}).Send(t.Context(), request(t, test.url, []byte("{}"), test.limit))
			sane(t, a, test.limit)
			if kindOf(a) != test.kind || a.Failure.Message != test.message {
				t.Fatalf("%+v, want %s: %s", a.Failure, test.kind, test.message)
			}
			u, err := url.Parse(test.proxy)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(a.Failure.Message, u.Port()) || strings.Contains(a.Failure.Message, "127.0.0.1") {
				t.Errorf("the message tells where the proxy is: %s", a.Failure.Message)
			}
			if test.kind == hook.FailureProxy && test.limit == patience && a.Failure.Cause == nil {
				t.Error("the log gets nothing")
			}
		})
	}
}

// TestProxyDiesBetweenAttempts: where a shared connection was, and has ended with
// the proxy, what the proxy does then is told as before.
func TestProxyDiesBetweenAttempts(t *testing.T) {
	r := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	r.EnableHTTP2 = true
	r.StartTLS()
	t.Cleanup(r.Close)
	proxy := proxytest.Start(t, proxytest.Options{To: r.Listener.Addr().String()})
	var silent atomic.Bool
	front := proxytest.Serve(t, func(c net.Conn) {
		if silent.Load() {
			<-t.Context().Done()
			return
		}
		out, err := net.Dial("tcp", proxy.Address())
		if err != nil {
			return
		}
		var back sync.WaitGroup
		back.Go(func() {
			_, _ = io.Copy(c, out)
			_ = c.Close()
		})
		_, _ = io.Copy(out, c)
		_ = out.Close()
		back.Wait()
	})
	s := through(t, "http://"+front, send.Options{TLS: r.Client().Transport.(*http.Transport).TLSClientConfig})
	address := strings.Replace(r.URL, "127.0.0.1", "example.com", 1)
	if a := s.Send(t.Context(), request(t, address, []byte("{}"), patience)); a.Failure != nil {
		t.Fatal(a.Failure.Message)
	}
	silent.Store(true)
	proxy.Cut()
	for i := range 3 {
		a := s.Send(t.Context(), request(t, address, []byte("{}"), timeout))
		sane(t, a, timeout)
		// The first one may be on its way when the kept connection ends.
		if i > 0 && kindOf(a) != hook.FailureProxy {
			t.Errorf("attempt %d: %+v, want kind proxy", i+1, a.Failure)
		}
	}
}
