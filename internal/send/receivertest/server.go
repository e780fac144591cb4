package receivertest

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Name is what a receiver with a DNS step is called.
const Name = "receiver.example.com"

// Server is a receiver on the loopback interface. It ends with its test.
type Server struct {
	// URL is where it is reached: a loopback address, or Name.
	URL string

	steps    []Step
	listener net.Listener
	tls      *tls.Config // nil without a TLS step
	client   *tls.Config
	gzipped  []byte
	canary   net.Listener
	ended    context.Context

	mu       sync.Mutex
	open     map[net.Conn]struct{}
	requests []Request

	conns, canaryHits, sent atomic.Int64
	running                 sync.WaitGroup
}

// Request is one that a receiver read to its end.
type Request struct {
	Conn   int // which connection it came on, from 1
	Header http.Header
	Body   []byte
}

// Start starts a receiver. Without steps it answers every request with 200.
func Start(tb testing.TB, steps ...Step) *Server {
	tb.Helper()
	if len(steps) == 0 {
		steps = []Step{{Send: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"}}
	}
	ended, end := context.WithCancel(context.Background())
	s := &Server{steps: steps, ended: ended, open: make(map[net.Conn]struct{})}
	s.listener, s.canary = listen(tb), listen(tb)
	scheme, host := "http", s.listener.Addr().String()
	for len(s.steps) > 0 && (s.steps[0].TLS != "" || s.steps[0].DNS != "") {
		if kind := s.steps[0].TLS; kind != "" {
			scheme = "https"
			s.tls, s.client = certificates(tb, kind)
		} else {
			host = net.JoinHostPort(Name, fmt.Sprint(s.port()))
		}
		s.steps = s.steps[1:]
	}
	s.URL = scheme + "://" + host + "/hook"
	for _, step := range s.steps {
		if step.GzipZeros > 0 {
			s.gzipped = gzipZeros(step.GzipZeros, max(1, step.Layers))
		}
	}
	s.running.Go(func() {
		s.accept(s.listener, func(c net.Conn) { s.serve(c) })
	})
	s.running.Go(func() {
		s.accept(s.canary, func(net.Conn) { s.canaryHits.Add(1) })
	})
	tb.Cleanup(func() {
		end()
		_ = s.listener.Close()
		_ = s.canary.Close()
		s.mu.Lock()
		for c := range s.open {
			_ = c.Close()
		}
		s.mu.Unlock()
		s.running.Wait()
	})
	return s
}

func listen(tb testing.TB) net.Listener {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

func (s *Server) port() uint16 {
	return netip.MustParseAddrPort(s.listener.Addr().String()).Port()
}

// Conns is how many connections were made to it.
func (s *Server) Conns() int { return int(s.conns.Load()) }

// CanaryHits is how many connections were made to the canary.
func (s *Server) CanaryHits() int { return int(s.canaryHits.Load()) }

// Sent is how many bytes the sockets took.
func (s *Server) Sent() int64 { return s.sent.Load() }

// Requests are those that were read to their end, in order.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Request(nil), s.requests...)
}

// ClientTLS trusts the authority that signs the receiver's certificates; nil
// without a TLS step.
func (s *Server) ClientTLS() *tls.Config { return s.client }

// LookupNetIP resolves Name as a DNS step says, so that a Server is a resolver.
func (s *Server) LookupNetIP(ctx context.Context, _, _ string) ([]netip.Addr, error) {
	late := time.NewTimer(30 * time.Second)
	defer late.Stop()
	select {
	case <-late.C:
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// accept gives each connection a goroutine, and sees that it ends.
func (s *Server) accept(l net.Listener, serve func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		if s.ended.Err() != nil {
			s.mu.Unlock()
			_ = c.Close()
			return
		}
		s.open[c] = struct{}{}
		s.mu.Unlock()
		s.running.Go(func() {
			serve(c)
			_ = c.Close()
			s.mu.Lock()
			delete(s.open, c)
			s.mu.Unlock()
		})
	}
}

func (s *Server) serve(socket net.Conn) {
	number := int(s.conns.Add(1))
	c := socket
	if s.tls != nil {
		secure := tls.Server(socket, s.tls)
		if secure.Handshake() != nil {
			return
		}
		c = secure
	}
	in := bufio.NewReader(c)
	for {
		keep, err := s.play(number, socket, c, in)
		if !keep || err != nil {
			return
		}
	}
}

// play plays the steps for one request.
func (s *Server) play(number int, socket, c net.Conn, in *bufio.Reader) (keep bool, err error) {
	steps := s.steps
	var request []byte
	switch {
	case len(steps) > 0 && steps[0].Unread:
		steps = steps[1:]
	case len(steps) > 0 && steps[0].ReadBytes > 0:
		if _, err := io.CopyN(io.Discard, in, int64(steps[0].ReadBytes)); err != nil {
			return false, err
		}
		steps = steps[1:]
	default:
		if request, err = s.read(number, in); err != nil {
			return false, err
		}
	}
	for _, step := range steps {
		switch {
		case step.Send != "":
			text := strings.NewReplacer("{CANARY}", s.canary.Addr().String(), "{SELF}", s.listener.Addr().String()).Replace(step.Send)
			err = s.write(c, []byte(text))
		case step.Drip != "":
			err = s.drip(c, step)
		case step.Flood != "":
			chunk := bytes.Repeat([]byte(step.Flood), 1+(32<<10)/len(step.Flood))
			for err == nil {
				err = s.write(c, chunk)
			}
		case step.GzipZeros > 0:
			head := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n",
				strings.TrimSuffix(strings.Repeat("gzip, ", max(1, step.Layers)), ", "), len(s.gzipped))
			if err = s.write(c, []byte(head)); err == nil {
				err = s.write(c, s.gzipped)
			}
		case step.AllBytes:
			all := make([]byte, 256)
			for i := range all {
				all[i] = byte(i)
			}
			err = s.write(c, all)
		case step.EchoRequest:
			err = s.echo(c, request)
		case step.PauseMS > 0:
			err = s.pause(time.Duration(step.PauseMS) * time.Millisecond)
		case step.Raw != "":
			err = s.write(socket, []byte(step.Raw))
		case step.HalfClose:
			err = halfClose(c)
		case step.Hold:
			// Nothing is read, until the other side or the test has enough.
			<-s.ended.Done()
			return false, nil
		case step.Reset:
			if t, ok := socket.(*net.TCPConn); ok {
				err = errors.Join(t.SetLinger(0), t.Close())
			}
			return false, err
		case step.Close:
			return false, nil
		case step.Keep:
			return true, nil
		default:
			err = fmt.Errorf("a step without anything to do: %+v", step)
		}
		if err != nil {
			return false, err
		}
	}
	return request != nil, nil
}

// halfClose ends one direction, and reads what comes in the other.
func halfClose(c net.Conn) error {
	w, ok := c.(interface{ CloseWrite() error })
	if !ok {
		return errors.New("the connection can't be closed by halves")
	}
	if err := w.CloseWrite(); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, c)
	return err
}

// read reads one request, and returns it as it came.
func (s *Server) read(number int, in *bufio.Reader) ([]byte, error) {
	var raw bytes.Buffer
	// A reader of one byte at a time takes nothing of the next request.
	r, err := http.ReadRequest(bufio.NewReaderSize(io.TeeReader(oneByte{in}, &raw), 16))
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.requests = append(s.requests, Request{Conn: number, Header: r.Header, Body: body})
	s.mu.Unlock()
	return raw.Bytes(), nil
}

type oneByte struct{ *bufio.Reader }

func (r oneByte) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	b, err := r.ReadByte()
	if err != nil {
		return 0, err
	}
	p[0] = b
	return 1, nil
}

func (s *Server) write(c net.Conn, p []byte) error {
	n, err := c.Write(p)
	s.sent.Add(int64(n))
	return err
}

func (s *Server) pause(d time.Duration) error {
	over := time.NewTimer(d)
	defer over.Stop()
	select {
	case <-over.C:
		return nil
	case <-s.ended.Done():
		return context.Cause(s.ended)
	}
}

func (s *Server) drip(c net.Conn, step Step) error {
	tick := time.NewTicker(time.Duration(step.EveryMS) * time.Millisecond)
	defer tick.Stop()
	for {
		if err := s.write(c, []byte(step.Drip)); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-s.ended.Done():
			return nil
		}
	}
}

func (s *Server) echo(c net.Conn, request []byte) error {
	head, _, _ := bytes.Cut(request, []byte("\r\n\r\n"))
	_, fields, _ := bytes.Cut(head, []byte("\r\n"))
	var answer bytes.Buffer
	answer.WriteString("HTTP/1.1 200 OK\r\n")
	for line := range bytes.SplitSeq(fields, []byte("\r\n")) {
		fmt.Fprintf(&answer, "X-Echo-%s\r\n", line)
	}
	fmt.Fprintf(&answer, "Content-Length: %d\r\n\r\n", len(request))
	answer.Write(request)
	return s.write(c, answer.Bytes())
}

// gzipZeros packs a run of zeros, layers times over.
func gzipZeros(mib, layers int) []byte {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	zeros := make([]byte, 1<<20)
	for range mib {
		_, _ = z.Write(zeros) // a bytes.Buffer takes all
	}
	_ = z.Close()
	for range layers - 1 {
		var outer bytes.Buffer
		z := gzip.NewWriter(&outer)
		_, _ = z.Write(packed.Bytes())
		_ = z.Close()
		packed = outer
	}
	return packed.Bytes()
}
