package send_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/plinqx/hypha/internal/egress"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/send"
	"github.com/plinqx/hypha/internal/send/receivertest"
)

// http2Server is a receiver that speaks HTTP/2 as the standard library does.
func http2Server(t *testing.T, handler http.HandlerFunc) (*httptest.Server, *send.Sender) {
	t.Helper()
	r := httptest.NewUnstartedServer(handler)
	r.EnableHTTP2 = true
	r.StartTLS()
	t.Cleanup(r.Close)
	s := send.New(send.Options{
		Dial: guard(t, egress.Options{Allow: loopback()}),
		TLS:  &tls.Config{RootCAs: r.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs},
	})
	t.Cleanup(s.Close)
	return r, s
}

func TestHTTP2(t *testing.T) {
	var requests atomic.Int64
	r, s := http2Server(t, func(w http.ResponseWriter, q *http.Request) {
		requests.Add(1)
		if q.ProtoMajor != 2 {
			t.Errorf("spoke %s", q.Proto)
		}
		body, err := io.ReadAll(q.Body)
		if err != nil {
			t.Error(err)
		}
		switch q.URL.Path {
		case "/reset":
			panic(http.ErrAbortHandler)
		case "/wait":
			<-q.Context().Done()
		case "/redirect":
			http.Redirect(w, q, "/canary", http.StatusTemporaryRedirect)
		case "/canary":
			t.Error("a redirect was followed")
		case "/flood":
			for q.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 32<<10)); err != nil {
					return
				}
			}
		default:
			w.Header().Set("Set-Cookie", "a=b")
			_, _ = w.Write(body)
		}
	})
	for _, test := range []struct {
		path   string
		status int
		kind   hook.FailureKind
	}{
		{"/", 200, ""},
		{"/", 200, ""},
		{"/redirect", 307, hook.FailureStatus},
		{"/reset", 0, hook.FailureConnect},
		{"/wait", 0, hook.FailureTimeout},
		{"/flood", 200, ""},
		{"/", 200, ""},
	} {
		limit := patience
		if test.path == "/wait" {
			limit = timeout
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		a := s.Send(t.Context(), request(t, r.URL+test.path, []byte("{}"), limit))
		runtime.ReadMemStats(&after)
		sane(t, a, limit)
		if a.StatusCode != test.status || kindOf(a) != test.kind {
			t.Errorf("%s: %d %+v", test.path, a.StatusCode, a.Failure)
		}
		if grown := (after.TotalAlloc - before.TotalAlloc) >> 20; grown >= 16 {
			t.Errorf("%s: %d MiB were allocated", test.path, grown)
		}
	}
	if requests.Load() != 7 {
		t.Errorf("7 attempts made %d requests", requests.Load())
	}
}

// TestHTTP2Head: over HTTP/2 too a request has what was prepared and what varies.
func TestHTTP2Head(t *testing.T) {
	r, s := http2Server(t, func(_ http.ResponseWriter, q *http.Request) {
		for name, want := range map[string]string{"Fixed": "1", "Varies": "2", "Gone": ""} {
			if got := q.Header.Get(name); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
	})
	q := request(t, r.URL, []byte("{}"), patience)
	q.Head = send.NewHead(q.URL, http.Header{"Fixed": {"1"}, "Varies": {"forged"}, "Gone": {"forged"}}, "Varies", "Gone")
	q.Header = http.Header{"Varies": {"2"}}
	for range 2 {
		if a := s.Send(t.Context(), q); a.StatusCode != http.StatusOK {
			t.Errorf("status %d, %+v", a.StatusCode, a.Failure)
		}
	}
}

// framed is a receiver that says frames of its own choice to each request.
func framed(t *testing.T, r *receivertest.HTTP2) *send.Sender {
	t.Helper()
	r.Start(t)
	s := send.New(send.Options{Dial: guard(t, egress.Options{Allow: loopback()}), TLS: r.ClientTLS()})
	t.Cleanup(s.Close)
	return s
}

// TestHTTP2Frames: after an error of HTTP/2 the request is not sent again, not
// even where the protocol would let us; the retry schedule does that.
func TestHTTP2Frames(t *testing.T) {
	for _, test := range []struct {
		name   string
		answer func(f *receivertest.Frames, stream uint32) error
		status int
		kind   hook.FailureKind
	}{
		{"an answer", func(f *receivertest.Frames, n uint32) error { return f.Status(n, "200", false) }, 200, ""},
		{"a refused stream", func(f *receivertest.Frames, n uint32) error { return f.WriteRSTStream(n, http2.ErrCodeRefusedStream) }, 0, hook.FailureConnect},
		{"a protocol error, they say", func(f *receivertest.Frames, n uint32) error { return f.WriteRSTStream(n, http2.ErrCodeProtocol) }, 0, hook.FailureConnect},
		{"an internal error", func(f *receivertest.Frames, n uint32) error { return f.WriteRSTStream(n, http2.ErrCodeInternal) }, 0, hook.FailureConnect},
		{"going away without us", func(f *receivertest.Frames, _ uint32) error { return f.WriteGoAway(0, http2.ErrCodeNo, nil) }, 0, hook.FailureConnect},
		{"going away in anger", func(f *receivertest.Frames, _ uint32) error {
			return errors.Join(f.WriteGoAway(0, http2.ErrCodeEnhanceYourCalm, nil), io.EOF)
		}, 0, hook.FailureConnect},
		{"closed", func(*receivertest.Frames, uint32) error { return io.EOF }, 0, hook.FailureConnect},
		{"going away after the answer", func(f *receivertest.Frames, n uint32) error {
			return errors.Join(f.WriteGoAway(n, http2.ErrCodeNo, nil), f.Status(n, "204", false))
		}, 204, ""},
		{"reset in the body", func(f *receivertest.Frames, n uint32) error {
			return errors.Join(f.Status(n, "200", true), f.WriteData(n, false, []byte("ok")), f.WriteRSTStream(n, http2.ErrCodeInternal))
		}, 200, ""},
		{"a status of five digits", func(f *receivertest.Frames, n uint32) error { return f.Status(n, "99999", false) }, 0, hook.FailureProtocol},
		{"a negative status", func(f *receivertest.Frames, n uint32) error { return f.Status(n, "-200", false) }, 0, hook.FailureProtocol},
		{"early hints for ever", func(f *receivertest.Frames, n uint32) error {
			for {
				if err := f.Status(n, "103", true); err != nil {
					return err
				}
			}
		}, 0, hook.FailureProtocol},
		{"headers for ever", func(f *receivertest.Frames, n uint32) error {
			var block bytes.Buffer
			e := hpack.NewEncoder(&block)
			_ = e.WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
			err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: n, BlockFragment: block.Bytes()})
			for err == nil {
				block.Reset()
				_ = e.WriteField(hpack.HeaderField{Name: "x-a", Value: string(bytes.Repeat([]byte("y"), 8<<10)), Sensitive: true})
				err = f.WriteContinuation(n, false, block.Bytes())
			}
			return err
		}, 0, hook.FailureProtocol},
		{"silence", func(*receivertest.Frames, uint32) error { return nil }, 0, hook.FailureTimeout},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := &receivertest.HTTP2{Answer: test.answer}
			s := framed(t, r)
			limit := patience
			if test.kind == hook.FailureTimeout {
				limit = timeout
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			began := time.Now()
			a := s.Send(t.Context(), request(t, r.URL(), []byte("{}"), limit))
			if took := time.Since(began); took > limit+time.Second {
				t.Errorf("the caller waited %s", took)
			}
			runtime.ReadMemStats(&after)
			sane(t, a, limit)
			if a.StatusCode != test.status || kindOf(a) != test.kind {
				t.Errorf("%d %+v, want %d %q", a.StatusCode, a.Failure, test.status, test.kind)
			}
			if n := r.Requests(); n != 1 {
				t.Errorf("one attempt made %d requests", n)
			}
			if grown := (after.TotalAlloc - before.TotalAlloc) >> 20; grown >= 16 {
				t.Errorf("%d MiB were allocated", grown)
			}
		})
	}
}

// TestHTTP2Window: a receiver may send no more ahead than would be read.
func TestHTTP2Window(t *testing.T) {
	var window atomic.Int64
	r := &receivertest.HTTP2{
		Given: func(f *http2.SettingsFrame) {
			if n, ok := f.Value(http2.SettingInitialWindowSize); ok {
				window.Store(int64(n))
			}
		},
		Answer: func(f *receivertest.Frames, n uint32) error { return f.Status(n, "200", false) },
	}
	if a := framed(t, r).Send(t.Context(), request(t, r.URL(), []byte("{}"), patience)); a.Failure != nil {
		t.Fatal(a.Failure.Message)
	}
	if n := window.Load(); n != 64<<10 {
		t.Errorf("the window is %d bytes", n)
	}
}

// switching is a receiver that chooses HTTP/2 or HTTP/1.1 for each connection,
// as it is told.
type switching struct {
	url             string
	speaks          atomic.Value
	conns, requests atomic.Int64
	open            atomic.Int64
}

func newSwitching(t *testing.T) (*switching, *send.Sender) {
	t.Helper()
	w := &switching{}
	w.speaks.Store("h2")
	r := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) {
		w.requests.Add(1)
		if q.Proto != map[string]string{"h2": "HTTP/2.0", "http/1.1": "HTTP/1.1"}[w.speaks.Load().(string)] {
			t.Errorf("spoke %s", q.Proto)
		}
	}))
	r.EnableHTTP2 = true
	r.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			w.open.Add(1)
		case http.StateClosed:
			w.open.Add(-1)
		default:
		}
	}
	r.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		w.conns.Add(1)
		config := r.TLS.Clone()
		config.GetConfigForClient = nil
		config.NextProtos = []string{w.speaks.Load().(string)}
		return config, nil
	}}
	r.StartTLS()
	t.Cleanup(r.Close)
	s := send.New(send.Options{
		Dial: guard(t, egress.Options{Allow: loopback()}),
		TLS:  &tls.Config{RootCAs: r.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs},
	})
	t.Cleanup(s.Close)
	w.url = r.URL
	return w, s
}

// to makes it choose another protocol, once no connection is left.
func (w *switching) to(t *testing.T, protocol string, s *send.Sender) {
	t.Helper()
	await(t, "the connections to close", func() bool {
		s.CloseIdle() // what has just been used may not be idle yet
		return w.open.Load() == 0
	})
	w.speaks.Store(protocol)
}

// TestProtocolChosen: which protocol a host speaks is found out on a connection
// that is used, and may change.
func TestProtocolChosen(t *testing.T) {
	w, s := newSwitching(t)
	for i, step := range []struct {
		speak string
		fresh bool // a connection is needed
		times bool // and is seen to be
	}{
		{"h2", true, true}, {"h2", false, false},
		{"http/1.1", true, true}, {"http/1.1", false, false},
		{"h2", true, true}, {"h2", false, false},
	} {
		if i > 0 && step.fresh {
			w.to(t, step.speak, s)
		}
		before := w.conns.Load()
		a := s.Send(t.Context(), request(t, w.url, []byte("{}"), patience))
		sane(t, a, patience)
		if a.Failure != nil {
			t.Fatalf("step %d: %s", i+1, a.Failure.Message)
		}
		if made := w.conns.Load() - before; made != map[bool]int64{true: 1}[step.fresh] {
			t.Errorf("step %d made %d connections", i+1, made)
		}
		if shook := a.Timings.TLS > 0 && a.Timings.Connect > 0; shook != step.fresh {
			t.Errorf("step %d: timings %+v", i+1, a.Timings)
		}
		if n := w.requests.Load(); n != int64(i+1) {
			t.Errorf("step %d: %d requests", i+1, n)
		}
	}
}

// TestProtocolChosenAtOnce: the same where many attempts find it out together.
func TestProtocolChosenAtOnce(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("attempts", func(t *testing.T) {
		w, s := newSwitching(t)
		want := int64(0)
		for _, protocol := range []string{"h2", "http/1.1", "h2"} {
			w.to(t, protocol, s)
			for range 3 {
				var running sync.WaitGroup
				for range 30 {
					running.Go(func() {
						if a := s.Send(t.Context(), request(t, w.url, []byte("{}"), patience)); a.Failure != nil {
							t.Error(a.Failure.Message)
						}
					})
				}
				running.Wait()
				if want += 30; w.requests.Load() != want {
					t.Fatalf("%d requests, want %d", w.requests.Load(), want)
				}
			}
			if protocol == "h2" {
				await(t, "all connections but one to close", func() bool { return w.open.Load() <= 1 })
			}
		}
	})
	await(t, "the goroutines", func() bool { return runtime.NumGoroutine() <= before })
}

// TestHTTP2Shared: attempts share a connection as far as it has room, and need no
// more of them than that.
func TestHTTP2Shared(t *testing.T) {
	const room, together = 10, 30
	r := &receivertest.HTTP2{Settings: []http2.Setting{{ID: http2.SettingMaxConcurrentStreams, Val: room}}}
	r.Answer = func(f *receivertest.Frames, n uint32) error {
		for r.Requests() < together {
			if err := f.Pause(5); err != nil {
				return err
			}
		}
		return f.Status(n, "200", false)
	}
	s := framed(t, r)
	send := func() {
		if a := s.Send(t.Context(), request(t, r.URL(), []byte("{}"), patience)); a.Failure != nil {
			t.Error(a.Failure.Message)
		}
	}
	var running sync.WaitGroup
	for range together {
		running.Go(send)
	}
	running.Wait()
	made := r.Conns()
	if made < together/room || made > together {
		t.Errorf("%d attempts at once made %d connections, each with room for %d", together, made, room)
	}
	// The library may not be done with all of those requests yet, and have no room.
	send()
	made = r.Conns()
	for range 5 {
		send()
	}
	if n := r.Conns(); n != made || r.Requests() != together+6 {
		t.Errorf("5 more made %d connections; there were %d requests, want %d", n-made, r.Requests(), together+6)
	}
}

// TestHTTP2SharedWithOneThatTimesOut: a connection on which one attempt waited in
// vain is closed, but not under the hands of another.
func TestHTTP2SharedWithOneThatTimesOut(t *testing.T) {
	timedOut := make(chan struct{})
	r := &receivertest.HTTP2{Answer: func(f *receivertest.Frames, n uint32) error {
		switch n {
		case 3:
			<-timedOut
			fallthrough
		case 5:
			return f.Status(n, "200", false)
		default:
			return nil
		}
	}}
	s := framed(t, r)
	var waiting, other sync.WaitGroup
	waiting.Go(func() {
		if a := s.Send(t.Context(), request(t, r.URL(), []byte("{}"), timeout)); kindOf(a) != hook.FailureTimeout {
			t.Errorf("the first: %d, %+v", a.StatusCode, a.Failure)
		}
	})
	await(t, "the first request", func() bool { return r.Requests() == 1 })
	other.Go(func() {
		if a := s.Send(t.Context(), request(t, r.URL(), []byte("{}"), patience)); a.Failure != nil {
			t.Errorf("the one beside it: %s", a.Failure.Message)
		}
	})
	await(t, "the second request", func() bool { return r.Requests() == 2 })
	waiting.Wait()
	close(timedOut)
	other.Wait()
	if a := s.Send(t.Context(), request(t, r.URL(), []byte("{}"), patience)); a.Failure != nil || r.Conns() != 1 {
		t.Errorf("the one after them: %+v, over %d connections", a.Failure, r.Conns())
	}
	if a := s.Send(t.Context(), request(t, r.URL(), []byte("{}"), timeout)); kindOf(a) != hook.FailureTimeout {
		t.Errorf("one alone: %d, %+v", a.StatusCode, a.Failure)
	}
	await(t, "the connection to close", func() bool { return r.Open() == 0 })
}

// TestHTTP2GoingAway: a connection that the receiver is about to close is finished
// with, and not used again.
func TestHTTP2GoingAway(t *testing.T) {
	r := &receivertest.HTTP2{Answer: func(f *receivertest.Frames, n uint32) error {
		return errors.Join(f.WriteGoAway(n, http2.ErrCodeNo, nil), f.Status(n, "200", false))
	}}
	s := framed(t, r)
	for i := range 3 {
		if a := s.Send(t.Context(), request(t, r.URL(), []byte("{}"), patience)); a.Failure != nil || r.Conns() != i+1 {
			t.Errorf("attempt %d: %+v, over %d connections", i+1, a.Failure, r.Conns())
		}
	}
	await(t, "the connections to close", func() bool { return r.Open() == 0 })
}
