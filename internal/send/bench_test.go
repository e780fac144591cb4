//go:build unix

package send_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"maps"
	"net"
	"net/http"
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
		secure   bool
		inFlight int
		body     int
	}{
		{"plain", false, 64, 512},
		{"plain, 640 in flight", false, 640, 512},
		{"plain, 64 KiB", false, 64, 64 << 10},
		{"TLS", true, 64, 512},
	} {
		b.Run(test.name, func(b *testing.B) {
			address, client := lean(b, test.secure, test.body)
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

// lean is a receiver of requests whose bodies are of one size.
func lean(b *testing.B, secure bool, body int) (string, *tls.Config) {
	b.Helper()
	scheme := "http://"
	var client *tls.Config
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	if secure {
		var server *tls.Config
		scheme = "https://"
		server, client = receivertest.Certificates(b)
		l = tls.NewListener(l, server)
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
	return scheme + l.Addr().String() + "/hook", client
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
