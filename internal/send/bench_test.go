//go:build unix

package send_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/egress"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/send"
	"github.com/plinqx/hypha/internal/send/receivertest"
)

// BenchmarkSend makes attempts at a receiver that costs as little as one can:
// what it measures is the attempt, the sockets of both sides included. Its cpu
// is that of the process, so it tells what an attempt costs where ns/op tells
// how many fit into a second.
func BenchmarkSend(b *testing.B) {
	for _, test := range []struct {
		name     string
		receiver func(b *testing.B, body int) (string, *tls.Config)
		inFlight int
		body     int
	}{
		{"plain", lean, 64, 512},
		{"plain, 640 in flight", lean, 640, 512},
		{"plain, 64 KiB", lean, 64, 64 << 10},
		{"TLS", leanTLS, 64, 512},
		{"HTTP2", standardHTTP2, 64, 512},
	} {
		b.Run(test.name, func(b *testing.B) {
			address, client := test.receiver(b, test.body)
			policy, err := egress.New(egress.Options{Allow: loopback()})
			if err != nil {
				b.Fatal(err)
			}
			s := send.New(send.Options{Dial: policy.DialContext, TLS: client})
			defer s.Close()
			u, err := url.Parse(address)
			if err != nil {
				b.Fatal(err)
			}
			request := send.Request{
				Tenant: id.Tenant{1}, URL: u, Body: bytes.Repeat([]byte("x"), test.body), Timeout: patience,
				Header: http.Header{
					"Webhook-Id": {"msg_0123456789abcdef0123456789"}, "Webhook-Timestamp": {"1700000000"},
					"Webhook-Signature":  {"v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4="},
					"X-Plinqx-Timestamp": {"1700000000"}, "X-Plinqx-Event": {"order.created"},
					"X-Plinqx-Delivery":  {"dlv_0123456789abcdef0123456789"},
					"X-Plinqx-Signature": {"2b99e8cf1c5f4c6b9f7f0a3d9ab1b0f2c7e21c7f43a6d3c9a8e5f2b1c0d9e8f7"},
				},
				Redact: send.NewRedactor([]string{signSecret}),
			}
			request.Head = send.NewHead(u, http.Header{"Content-Type": {"application/json"}, "User-Agent": {"Hypha-Webhooks/1.0"}},
				slices.Collect(maps.Keys(request.Header))...)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			attempts := make(chan struct{}, test.inFlight)
			var running sync.WaitGroup
			b.ReportAllocs()
			before := cpu(b)
			for range test.inFlight {
				running.Go(func() {
					for range attempts {
						if a := s.Send(ctx, request); a.Failure != nil {
							b.Error(a.Failure.Message)
						}
					}
				})
			}
			for b.Loop() {
				attempts <- struct{}{}
			}
			close(attempts)
			running.Wait()
			b.ReportMetric(float64(cpu(b)-before)/float64(b.N), "cpu-ns/op")
		})
	}
}

// cpu is what the process has used.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// standardHTTP2 is a receiver that costs what the standard library's does.
func standardHTTP2(b *testing.B, _ int) (string, *tls.Config) {
	b.Helper()
	r := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		_, _ = io.Copy(io.Discard, q.Body) // what is missing the sender tells
		_, _ = io.WriteString(w, "ok")
	}))
	r.EnableHTTP2 = true
	r.StartTLS()
	b.Cleanup(r.Close)
	return r.URL, r.Client().Transport.(*http.Transport).TLSClientConfig
}

// lean is a receiver of requests whose bodies are of one size.
func lean(b *testing.B, body int) (string, *tls.Config) {
	b.Helper()
	return serveLean(b, "http://", body, nil), nil
}

func leanTLS(b *testing.B, body int) (string, *tls.Config) {
	b.Helper()
	server, client := receivertest.Certificates(b)
	return serveLean(b, "https://", body, server), client
}

func serveLean(b *testing.B, scheme string, body int, secure *tls.Config) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	if secure != nil {
		l = tls.NewListener(l, secure)
	}
	var serving sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			serving.Go(func() { answerAll(c, body) })
		}
	})
	b.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		serving.Wait()
	})
	return scheme + l.Addr().String() + "/hook"
}

func answerAll(c net.Conn, body int) {
	answer := []byte("HTTP/1.1 200 OK\r\nDate: Mon, 02 Jan 2006 15:04:05 GMT\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 2\r\n\r\nok")
	in := make([]byte, 128<<10)
	have := 0
	for {
		n, err := c.Read(in[have:])
		if err != nil {
			return
		}
		have += n
		if end := bytes.Index(in[:have], []byte("\r\n\r\n")); end >= 0 && have >= end+4+body {
			have = 0
			if _, err := c.Write(answer); err != nil {
				return
			}
		}
	}
}
