// Package proxytest plays a forward proxy for tests: an HTTP one that takes
// CONNECT, with or without TLS, or a SOCKS5 one. It does what it is asked, except
// that every name leads to one address, so that nothing leaves the loopback
// interface. It must not know who asks.
package proxytest

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"sync"
	"testing"
)

// Options say what a proxy is like.
type Options struct {
	SOCKS bool
	TLS   *tls.Config // of the proxy itself; nil for none
	// User and Password are what it wants to be shown; none if empty.
	User, Password string
	// To is where every name leads, "host:port"; with "" as host and port were asked for.
	To string
}

// Server is a proxy on the loopback interface. It ends with its test.
type Server struct {
	o        Options
	listener net.Listener
	ended    context.Context
	running  sync.WaitGroup

	mu    sync.Mutex
	open  map[net.Conn]struct{}
	asked []string
	conns int
}

// Start starts a proxy.
func Start(tb testing.TB, o Options) *Server {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	ended, end := context.WithCancel(context.Background())
	s := &Server{o: o, listener: l, ended: ended, open: make(map[net.Conn]struct{})}
	s.running.Go(s.accept)
	tb.Cleanup(func() {
		end()
		_ = l.Close()
		s.Cut()
		s.running.Wait()
	})
	return s
}

// URL is where it is reached, with its user and password.
func (s *Server) URL() string {
	u := url.URL{Scheme: "http", Host: s.listener.Addr().String()}
	switch {
	case s.o.SOCKS:
		u.Scheme = "socks5"
	case s.o.TLS != nil:
		u.Scheme = "https"
	}
	if s.o.User != "" {
		u.User = url.UserPassword(s.o.User, s.o.Password)
	}
	return u.String()
}

// Address is its host and port.
func (s *Server) Address() string { return s.listener.Addr().String() }

// Asked are the destinations that it was asked for, as they were written.
func (s *Server) Asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.asked...)
}

// Conns is how many connections were made to it.
func (s *Server) Conns() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns
}

// Cut breaks off all connections.
func (s *Server) Cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		_ = c.Close()
	}
}

func (s *Server) accept() {
	for {
		c, err := s.listener.Accept()
		if err != nil {
			return
		}
		if s.keep(c) {
			s.running.Go(func() {
				defer s.forget(c)
				s.serve(c)
			})
		}
	}
}

// keep sees that a connection ends with the proxy.
func (s *Server) keep(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended.Err() != nil {
		_ = c.Close()
		return false
	}
	s.conns++
	s.open[c] = struct{}{}
	return true
}

func (s *Server) forget(c net.Conn) {
	_ = c.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}

func (s *Server) serve(c net.Conn) {
	if s.o.TLS != nil {
		c = tls.Server(c, s.o.TLS)
	}
	in := bufio.NewReader(c)
	var out net.Conn
	var err error
	if s.o.SOCKS {
		out, err = s.socks(c, in)
	} else {
		out, err = s.connect(c, in)
	}
	if err != nil {
		return
	}
	defer func() { _ = out.Close() }()
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(c, out) // either end may go
		_ = c.Close()
	})
	_, _ = io.Copy(out, in)
	_ = out.Close()
	back.Wait()
}

// reach notes what was asked for, and connects to where it leads.
func (s *Server) reach(target string) (net.Conn, error) {
	s.mu.Lock()
	s.asked = append(s.asked, target)
	s.mu.Unlock()
	var d net.Dialer
	return d.DialContext(s.ended, "tcp", cmp.Or(s.o.To, target))
}

func (s *Server) connect(c net.Conn, in *bufio.Reader) (net.Conn, error) {
	r, err := http.ReadRequest(in)
	if err != nil {
		return nil, err
	}
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte(s.o.User+":"+s.o.Password))
	switch {
	case r.Method != http.MethodConnect || r.RequestURI != r.Host:
		_, _ = io.WriteString(c, "HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
		return nil, errors.New("not CONNECT")
	case s.o.User != "" && r.Header.Get("Proxy-Authorization") != want:
		_, _ = io.WriteString(c, "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n")
		return nil, errors.New("not authenticated")
	}
	out, err := s.reach(r.Host)
	if err != nil {
		_, _ = io.WriteString(c, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
		return nil, err
	}
	_, err = io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n")
	return out, err
}

// socks is RFC 1928 with the one method, and RFC 1929.
func (s *Server) socks(c net.Conn, in *bufio.Reader) (net.Conn, error) {
	if _, err := counted(in, 1); err != nil { // the methods that are offered
		return nil, err
	}
	method := byte(0)
	if s.o.User != "" {
		method = 2
	}
	if _, err := c.Write([]byte{5, method}); err != nil {
		return nil, err
	}
	if method == 2 {
		user, err := counted(in, 1)
		if err != nil {
			return nil, err
		}
		password, err := counted(in, 0)
		if err != nil {
			return nil, err
		}
		if string(user) != s.o.User || string(password) != s.o.Password {
			_, _ = c.Write([]byte{1, 1})
			return nil, errors.New("not authenticated")
		}
		if _, err := c.Write([]byte{1, 0}); err != nil {
			return nil, err
		}
	}
	head := make([]byte, 4)
	if _, err := io.ReadFull(in, head); err != nil {
		return nil, err
	}
	var host string
	switch head[3] {
	case 3:
		name, err := counted(in, 0)
		if err != nil {
			return nil, err
		}
		host = string(name)
	case 1, 4:
		raw := make([]byte, map[byte]int{1: 4, 4: 16}[head[3]])
		if _, err := io.ReadFull(in, raw); err != nil {
			return nil, err
		}
		addr, _ := netip.AddrFromSlice(raw)
		host = addr.String()
	default:
		return nil, errors.New("no such type of address")
	}
	var port [2]byte
	if _, err := io.ReadFull(in, port[:]); err != nil {
		return nil, err
	}
	out, err := s.reach(net.JoinHostPort(host, strconv.Itoa(int(binary.BigEndian.Uint16(port[:])))))
	reply := []byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	if err != nil {
		reply[1] = 5 // refused
	}
	if _, failed := c.Write(reply); failed != nil || err != nil {
		return nil, errors.Join(err, failed)
	}
	return out, nil
}

// counted reads what begins with its length, after skip bytes.
func counted(in *bufio.Reader, skip int) ([]byte, error) {
	if _, err := in.Discard(skip); err != nil {
		return nil, err
	}
	n, err := in.ReadByte()
	if err != nil {
		return nil, err
	}
	b := make([]byte, n)
	_, err = io.ReadFull(in, b)
	return b, err
}

// Serve has each connection to an address of the loopback interface served by a
// function, and closed then, until the test ends: for what a Server does not do. Nobody
// listens there if serve is nil.
func Serve(tb testing.TB, serve func(net.Conn)) (address string) {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	address = l.Addr().String()
	if serve == nil {
		if err := l.Close(); err != nil {
			tb.Fatal(err)
		}
		return address
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				serve(c)
				_ = c.Close()
			})
		}
	})
	tb.Cleanup(func() {
		_ = l.Close()
		running.Wait()
	})
	return address
}
