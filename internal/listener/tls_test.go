package listener_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/listener"
)

// authority is a certificate for example.com, and who trusts it.
func authority(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	s := httptest.NewUnstartedServer(nil)
	s.StartTLS()
	defer s.Close()
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	return &tls.Config{Certificates: s.TLS.Certificates, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}},
		&tls.Config{RootCAs: pool, ServerName: "example.com"}
}

func secure(t *testing.T, timeout time.Duration) (l net.Listener, client *tls.Config) {
	t.Helper()
	server, client := authority(t)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l = listener.Secure(inner, listener.Handshake{Config: server, Timeout: timeout})
	t.Cleanup(func() { _ = l.Close() })
	return l, client
}

func dial(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(time.Minute)) // the test's patience
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Connections that never shake hands keep nobody waiting, and their time ends.
func TestSilentHandshakes(t *testing.T) {
	l, config := secure(t, 2*time.Second) // for the one that does, too
	var silent []net.Conn
	for range 20 {
		silent = append(silent, dial(t, l))
	}
	shaken := make(chan error, 1)
	go func() { shaken <- tls.Client(dial(t, l), config).Handshake() }()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if err := <-shaken; err != nil {
		t.Fatal(err)
	}
	if s, ok := c.(*tls.Conn); !ok || !s.ConnectionState().HandshakeComplete {
		t.Errorf("got a %T", c)
	}
	for _, c := range silent {
		if _, err := io.ReadAll(c); errTimeout(err) != nil {
			t.Fatal("a connection that never shook hands is open")
		}
	}
}

func TestPlainHTTPIsToldSo(t *testing.T) {
	l, _ := secure(t, 0)
	c := dial(t, l)
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != 400 || !strings.Contains(string(text), "https://") {
		t.Errorf("%s: %s", resp.Status, text)
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	l, config := secure(t, 0)
	config.MaxVersion = tls.VersionTLS11
	if err := tls.Client(dial(t, l), config).Handshake(); err == nil {
		t.Error("TLS 1.1 is spoken")
	}
}

// Close ends handshakes that hang, and Accept.
func TestCloseEndsHandshakes(t *testing.T) {
	l, _ := secure(t, time.Hour)
	c := dial(t, l)
	accepted := make(chan error, 1)
	go func() { _, err := l.Accept(); accepted <- err }()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := <-accepted; err == nil {
		t.Error("accepted after the end")
	}
	if _, err := io.ReadAll(c); errTimeout(err) != nil {
		t.Error("a connection is left open")
	}
}
