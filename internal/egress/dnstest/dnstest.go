// Package dnstest is a name server for tests, on the loopback interface, over UDP
// and TCP. What it answers is the test's to say, and may change from one question
// to the next. It must not know who asks.
package dnstest

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// Question is what is asked.
type Question struct {
	Name string // in lower case, without the trailing dot
	IPv6 bool   // AAAA; A otherwise
	// Before is how often this was asked before, over UDP or TCP.
	Before int
	TCP    bool
}

// Answer is what it leads to. The zero value is a name without addresses.
type Answer struct {
	Aliases   []string // a chain: the name is an alias for the first, that for the second, ...
	Addresses []string // of the last in the chain; those of the other family are left out
	Missing   bool     // there is no such name
	Failing   bool     // the server can't say
	Truncated bool     // over UDP: ask again over TCP
}

// Zone answers questions. It may be called by several goroutines at once.
type Zone func(Question) Answer

// Static is a zone of names that lead where they lead, and no others.
func Static(names map[string]Answer) Zone {
	return func(q Question) Answer {
		a, ok := names[q.Name]
		if !ok {
			return Answer{Missing: true}
		}
		return a
	}
}

// Server is a name server. It ends with its test.
type Server struct {
	zone    Zone
	udp     net.PacketConn
	tcp     net.Listener
	running sync.WaitGroup

	mu     sync.Mutex
	before map[Question]int
	open   map[net.Conn]struct{}
	closed bool
}

// Start starts a name server.
func Start(tb testing.TB, zone Zone) *Server {
	tb.Helper()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	// A port of its own: the two are told apart by who asks.
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	s := &Server{zone: zone, udp: udp, tcp: tcp, before: make(map[Question]int), open: make(map[net.Conn]struct{})}
	s.running.Go(s.serveUDP)
	s.running.Go(s.serveTCP)
	tb.Cleanup(func() {
		_ = udp.Close()
		_ = tcp.Close()
		s.mu.Lock()
		s.closed = true
		for c := range s.open {
			_ = c.Close()
		}
		s.mu.Unlock()
		s.running.Wait()
	})
	return s
}

// Addresses are where it is asked over UDP and over TCP.
func (s *Server) Addresses() (udp, tcp string) {
	return s.udp.LocalAddr().String(), s.tcp.Addr().String()
}

// Resolver asks this server alone.
func (s *Server) Resolver() *net.Resolver { return Resolver(s.Addresses()) }

// Resolver asks the server with these addresses alone.
func Resolver(udp, tcp string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		if strings.HasPrefix(network, "tcp") {
			return d.DialContext(ctx, "tcp", tcp)
		}
		return d.DialContext(ctx, "udp", udp)
	}}
}

// Asked is how often anything was asked of a name.
func (s *Server) Asked(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.before[Question{Name: name}] + s.before[Question{Name: name, IPv6: true}]
}

func (s *Server) serveUDP() {
	buf := make([]byte, 1500)
	for {
		n, from, err := s.udp.ReadFrom(buf)
		if err != nil {
			return
		}
		if answer, err := s.answer(buf[:n], false); err == nil {
			_, _ = s.udp.WriteTo(answer, from) // who asks, asks again
		}
	}
}

func (s *Server) serveTCP() {
	for {
		c, err := s.tcp.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		if s.closed {
			_ = c.Close()
		} else {
			s.open[c] = struct{}{}
			s.running.Go(func() {
				_ = s.converse(c) // ends when either side closes
				_ = c.Close()
				s.mu.Lock()
				defer s.mu.Unlock()
				delete(s.open, c)
			})
		}
		s.mu.Unlock()
	}
}

// converse answers messages, each with its length before it (RFC 1035, 4.2.2).
func (s *Server) converse(c net.Conn) error {
	for {
		var length [2]byte
		if _, err := io.ReadFull(c, length[:]); err != nil {
			return err
		}
		question := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(c, question); err != nil {
			return err
		}
		answer, err := s.answer(question, true)
		if err != nil {
			return err
		}
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return err
		}
	}
}

func (s *Server) answer(question []byte, tcp bool) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(question); err != nil {
		return nil, err
	}
	if len(m.Questions) != 1 {
		return nil, errors.New("not one question")
	}
	q := m.Questions[0]
	asked := Question{Name: strings.TrimSuffix(strings.ToLower(q.Name.String()), "."), IPv6: q.Type == dnsmessage.TypeAAAA}
	s.mu.Lock()
	before := s.before[asked]
	s.before[asked]++
	s.mu.Unlock()
	asked.Before, asked.TCP = before, tcp
	a := s.zone(asked)

	m.Header = dnsmessage.Header{ID: m.ID, Response: true, RecursionAvailable: true}
	m.Additionals = nil
	switch {
	case a.Failing:
		m.RCode = dnsmessage.RCodeServerFailure
	case a.Missing:
		m.RCode = dnsmessage.RCodeNameError
	case a.Truncated && !tcp:
		m.Truncated = true
		return m.Pack()
	}
	head := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET} // with a TTL of 0
	for _, alias := range a.Aliases {
		to, err := dnsmessage.NewName(alias + ".")
		if err != nil {
			return nil, err
		}
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.CNAMEResource{CNAME: to}})
		head.Name = to
	}
	for _, text := range a.Addresses {
		switch addr := netip.MustParseAddr(text); {
		case addr.Is4() && q.Type == dnsmessage.TypeA:
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: addr.As4()}})
		case addr.Is6() && q.Type == dnsmessage.TypeAAAA:
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}})
		}
	}
	return m.Pack()
}
