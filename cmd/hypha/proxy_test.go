package main

import (
	"encoding/json"
	"encoding/pem"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/plinqx/hypha/internal/egress/dnstest"
	"github.com/plinqx/hypha/internal/egress/proxytest"
)

// recorder counts who connects to it.
func recorder(t *testing.T) (address string, count *atomic.Int64) {
	t.Helper()
	count = new(atomic.Int64)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			count.Add(1)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return l.Addr().String(), count
}

// authority is a file with the certificate of a test's servers, for a process
// that is to trust it.
func authority(t *testing.T, s *httptest.Server) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "authority.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// delivered is how many deliveries of a webhook are recorded as made.
func delivered(t *testing.T, c client, webhook string) int64 {
	t.Helper()
	var stats struct{ SuccessfulDeliveries int64 }
	c.must(t, http.MethodGet, "/webhooks/stats?webhookId="+webhook, nil, &stats)
	return stats.SuccessfulDeliveries
}

// Neither a proxy that the environment names nor a redirect takes a request
// anywhere but to the webhook's URL.
func TestRequestsGoNowhereElse(t *testing.T) {
	elsewhere, touched := recorder(t)
	var arrived atomic.Int64
	redirecting := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		arrived.Add(1)
		status := map[string]int{"/301": 301, "/302": 302, "/303": 303, "/307": 307, "/308": 308}[r.URL.Path]
		http.Redirect(w, r, "http://"+elsewhere+"/", status)
	})
	plain, secure := httptest.NewServer(redirecting), httptest.NewUnstartedServer(redirecting)
	secure.EnableHTTP2 = true
	secure.StartTLS()
	t.Cleanup(plain.Close)
	t.Cleanup(secure.Close)
	// The environment's proxy is for names: it never was for loopback addresses.
	udp, tcp := dnstest.Start(t, dnstest.Static(map[string]dnstest.Answer{"example.com": {Addresses: []string{"127.0.0.1"}}})).Addresses()
	env := []string{nameServer + "=" + udp + "," + tcp, "HYPHA_BOOTSTRAP_API_KEY=" + testKey, "NO_PROXY=", "no_proxy=", "SSL_CERT_FILE=" + authority(t, secure)}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "SOCKS_PROXY"} {
		env = append(env, name+"=http://"+elsewhere, strings.ToLower(name)+"=http://"+elsewhere)
	}
	p := startProgram(t, env, "serve", "--data", t.TempDir(), "--listen", "127.0.0.1:0", "--allow-egress", "127.0.0.0/8", "--retry-schedule", "")
	c := client{p.url, testKey}
	webhooks := map[string]string{}
	for _, base := range []string{plain.URL, secure.URL} {
		for _, path := range []string{"/301", "/302", "/303", "/307", "/308"} {
			url := strings.Replace(base, "127.0.0.1", "example.com", 1) + path
			webhooks[url], _ = c.createWebhook(t, url, "order.paid")
		}
	}
	c.must(t, http.MethodPost, "/events", `{"type":"order.paid","data":{}}`, nil)
	for url, webhook := range webhooks {
		if kind, message := failureKind(t, c, webhook); kind != "status" || !strings.Contains(message, "redirects are not followed") {
			t.Errorf("%s: kind %q, %q", url, kind, message)
		}
	}
	if n := arrived.Load(); n != int64(len(webhooks)) {
		t.Errorf("%d requests arrived, want %d", n, len(webhooks))
	}
	if n := touched.Load(); n != 0 {
		t.Errorf("something else was connected to, %d times", n)
	}
}

// Everything goes through the proxy that the operator names, TLS inside of TLS
// too, over connections that are kept; and nobody is shown its password.
func TestThroughAProxy(t *testing.T) {
	var arrived atomic.Int64
	secure := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || r.TLS.ServerName != "example.com" || r.Header.Get("webhook-signature") == "" {
			t.Errorf("it came as %s with the headers %v", r.Proto, r.Header)
		}
		arrived.Add(1)
	}))
	secure.StartTLS()
	t.Cleanup(secure.Close)
	elsewhere, touched := recorder(t)
	proxy := proxytest.Start(t, proxytest.Options{TLS: secure.TLS, User: "hypha", Password: "hu/sh", To: secure.Listener.Addr().String()})
	p := startProgram(t, []string{
		"HYPHA_BOOTSTRAP_API_KEY=" + testKey, "SSL_CERT_FILE=" + authority(t, secure),
		"HYPHA_EGRESS_PROXY=" + proxy.URL(), "HTTPS_PROXY=http://" + elsewhere, "HTTP_PROXY=http://" + elsewhere,
	}, "serve", "--data", t.TempDir(), "--listen", "127.0.0.1:0", "--retry-schedule", "", "--log-level", "debug")
	c := client{p.url, testKey}
	_, port, _ := net.SplitHostPort(secure.Listener.Addr().String())
	webhook, _ := c.createWebhook(t, "https://example.com:"+port+"/", "order.paid")
	if status, err := c.do(http.MethodPost, "/webhooks", map[string]any{"name": "n", "url": "http://10.0.0.1/", "events": []string{"*"}}, nil); status != http.StatusBadRequest {
		t.Errorf("a webhook to a private address: %d, %v", status, err)
	}
	for i := range 5 {
		c.must(t, http.MethodPost, "/events", `{"type":"order.paid","data":{}}`, nil)
		// One after the other, so that each finds the connection of the one before.
		eventually(t, "a delivery is recorded", func() bool { return delivered(t, c, webhook) == int64(i+1) })
	}
	if got := proxy.Asked(); len(got) != 1 || got[0] != "example.com:"+port {
		t.Errorf("the proxy was asked for %q", got)
	}
	if arrived.Load() != 5 || touched.Load() != 0 {
		t.Errorf("%d arrived, and %d at a proxy of the environment", arrived.Load(), touched.Load())
	}
	failing, _ := c.createWebhook(t, "https://another.example.com/", "order.lost")
	secure.Close() // so that the proxy answers 502
	c.must(t, http.MethodPost, "/events", `{"type":"order.lost","data":{}}`, nil)
	if kind, message := failureKind(t, c, failing); kind != "proxy" || message != "the proxy that this server sends through could not reach the receiver" {
		t.Errorf("kind %q, %q", kind, message)
	}
	log := p.stderr.await(t, p.exited, "the egress proxy made no connection")
	for _, want := range []string{proxy.Address(), "another.example.com:443", "502 Bad Gateway", failing} {
		if !strings.Contains(log, want) {
			t.Errorf("the log has no %q: %s", want, log)
		}
	}
	series, metrics := scrape(t, p.url)
	if series[`hypha_attempts_total{result="proxy"}`] != 1 {
		t.Error("the metrics don't count it")
	}
	var shown strings.Builder
	for _, path := range []string{"/webhooks", "/webhooks/" + failing + "/deliveries", "/webhooks/" + failing} {
		var answer any
		c.must(t, http.MethodGet, path, nil, &answer)
		if err := json.NewEncoder(&shown).Encode(answer); err != nil {
			t.Fatal(err)
		}
	}
	_, proxyPort, _ := net.SplitHostPort(proxy.Address())
	if strings.Contains(shown.String(), proxyPort) {
		t.Error("the API tells where the proxy is")
	}
	for what, text := range map[string]string{"the log": p.stderr.String(), "what it printed": p.stdout.String(), "the metrics": metrics, "the API": shown.String()} {
		for _, secret := range []string{"hu/sh", "hu%2Fsh", "aHlwaGE6aHUvc2g="} {
			if strings.Contains(text, secret) {
				t.Errorf("%s: the proxy's password is in it", what)
			}
		}
	}
}
