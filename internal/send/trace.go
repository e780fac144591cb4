package send

import (
	"crypto/tls"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	"github.com/plinqx/hypha/internal/hook"
)

// trace takes the times of an attempt's parts, in nanoseconds since it began.
// Its parts are atomic because a dial that lost the race may report late.
type trace struct {
	began   time.Time
	proxied bool // a connection is a proxy's to make
	dns, dnsDone, connect, connectDone, tls, tlsDone,
	headers, wrote, first atomic.Int64

	// Of the connection that was got; written by the goroutine of the attempt.
	got  bool
	kept bool // it stood already
}

// The first start counts and the last end: a name may have several addresses.
func (t *trace) start(at *atomic.Int64) { at.CompareAndSwap(0, t.elapsed()) }
func (t *trace) end(at *atomic.Int64)   { at.Store(t.elapsed()) }

func (t *trace) elapsed() int64 { return max(1, int64(time.Since(t.began))) }

// client takes the times of a dial, and of a request over HTTP/2.
func (t *trace) client() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		DNSStart:             func(httptrace.DNSStartInfo) { t.start(&t.dns) },
		DNSDone:              func(httptrace.DNSDoneInfo) { t.end(&t.dnsDone) },
		ConnectStart:         func(string, string) { t.start(&t.connect) },
		ConnectDone:          func(string, string, error) { t.end(&t.connectDone) },
		TLSHandshakeStart:    func() { t.start(&t.tls) },
		TLSHandshakeDone:     func(tls.ConnectionState, error) { t.end(&t.tlsDone) },
		WroteHeaders:         func() { t.end(&t.headers) },
		WroteRequest:         func(httptrace.WroteRequestInfo) { t.end(&t.wrote) },
		GotFirstResponseByte: func() { t.start(&t.first) },
	}
}

// answered reports whether anything of an answer came.
func (t *trace) answered() bool { return t.first.Load() != 0 }

// timings are the parts of what took duration. A part that did not end lasted
// until then; on a connection that stood already there was no dial, even if one
// was begun and overtaken.
func (t *trace) timings(duration time.Duration) hook.Timings {
	between := func(from, to int64) time.Duration {
		to = min(to, int64(duration))
		if from == 0 || to < from {
			return 0
		}
		return time.Duration(to - from)
	}
	dial := func(from, to *atomic.Int64) time.Duration {
		if t.kept {
			return 0
		}
		start, end := from.Load(), to.Load()
		if end == 0 {
			end = int64(duration)
		}
		return between(start, end)
	}
	return hook.Timings{
		DNS: dial(&t.dns, &t.dnsDone), Connect: dial(&t.connect, &t.connectDone),
		TLS: dial(&t.tls, &t.tlsDone), FirstByte: between(t.wrote.Load(), t.first.Load()),
	}
}
