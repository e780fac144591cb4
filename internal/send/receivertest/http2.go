package receivertest

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// HTTP2 is a receiver that says frames of its own choice to each request, and
// those that the protocol asks for besides. It is set up before it starts.
type HTTP2 struct {
	// Settings are those that it begins with.
	Settings []http2.Setting
	// Begin, if it is set, is what it says instead of its settings.
	Begin func(*Frames) error
	// Answer is what it says to a request that came whole. After an error it
	// closes the connection; after none it goes on.
	Answer func(f *Frames, stream uint32) error
	// Early answers when the request's head has come.
	Early bool
	// Deaf reads no more once it answers.
	Deaf bool
	// Given is shown the sender's settings.
	Given func(*http2.SettingsFrame)

	url                   string
	client                *tls.Config
	conns, open, requests atomic.Int64
	heard                 atomic.Int64
	ended                 context.Context
}

// Frames writes frames to one connection.
type Frames struct {
	*http2.Framer
	// Conn is below the frames.
	Conn net.Conn
	// Ended is closed when the test is over.
	Ended <-chan struct{}
}

// Start starts it. It ends with its test.
func (r *HTTP2) Start(tb testing.TB) *HTTP2 {
	tb.Helper()
	server, client := certificates(tb, "h2")
	ended, end := context.WithCancel(context.Background())
	l := listen(tb)
	r.url, r.client, r.ended = "https://"+l.Addr().String()+"/hook", client, ended
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				stop := context.AfterFunc(ended, func() { _ = c.Close() })
				defer stop()
				defer func() { _ = c.Close() }()
				r.serve(tls.Server(c, server))
			})
		}
	})
	tb.Cleanup(func() {
		end()
		_ = l.Close()
		running.Wait()
	})
	return r
}

// URL is where it is reached.
func (r *HTTP2) URL() string { return r.url }

// ClientTLS trusts the authority that signs its certificate.
func (r *HTTP2) ClientTLS() *tls.Config { return r.client }

// Conns is how many connections were made to it.
func (r *HTTP2) Conns() int { return int(r.conns.Load()) }

// Open is how many of them have not ended.
func (r *HTTP2) Open() int { return int(r.open.Load()) }

// Requests is how many requests it answered.
func (r *HTTP2) Requests() int { return int(r.requests.Load()) }

// Heard is how many of its pings were answered: whatever it said before one of
// those has been read.
func (r *HTTP2) Heard() int { return int(r.heard.Load()) }

// serve reads on while it answers, so that who floods hears of the end.
func (r *HTTP2) serve(c *tls.Conn) {
	r.conns.Add(1)
	r.open.Add(1)
	defer r.open.Add(-1)
	if _, err := io.CopyN(io.Discard, c, int64(len(http2.ClientPreface))); err != nil {
		return
	}
	says := &Frames{Framer: http2.NewFramer(c, nil), Conn: c, Ended: r.ended.Done()}
	var answering sync.WaitGroup
	defer answering.Wait()
	defer func() { _ = c.NetConn().Close() }()
	if r.Begin != nil {
		answering.Go(func() {
			if r.Begin(says) != nil {
				_ = c.NetConn().Close()
			}
		})
	} else if says.WriteSettings(r.Settings...) != nil {
		return
	}
	// Two that write do so with a framer each: a frame is one write.
	f := http2.NewFramer(c, c)
	var frames sync.Mutex
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return
		}
		stream := uint32(0)
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if frame.IsAck() {
				continue
			}
			if r.Given != nil {
				r.Given(frame)
			}
			if r.Begin == nil { // lest this comes first
				err = f.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if frame.IsAck() {
				r.heard.Add(1)
			} else {
				err = f.WritePing(true, frame.Data)
			}
		case *http2.HeadersFrame:
			if r.Early {
				stream = frame.StreamID
			}
		case *http2.DataFrame:
			if frame.StreamEnded() && !r.Early {
				stream = frame.StreamID
			}
		default:
		}
		if err != nil {
			return
		}
		if stream == 0 || r.Answer == nil {
			continue
		}
		r.requests.Add(1)
		answering.Go(func() {
			frames.Lock()
			defer frames.Unlock()
			if r.Answer(says, stream) != nil {
				_ = c.NetConn().Close()
			}
		})
		if r.Deaf {
			<-r.ended.Done()
			return
		}
	}
}

// Block packs fields as a head, none of them to be referred to later.
func Block(fields ...string) []byte {
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	for i := 0; i+1 < len(fields); i += 2 {
		_ = e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1], Sensitive: true}) // a bytes.Buffer takes all
	}
	return block.Bytes()
}

// Head sends an answer's head: names and values by turns, the status first.
func (f *Frames) Head(stream uint32, more bool, fields ...string) error {
	return f.WriteHeaders(http2.HeadersFrameParam{
		StreamID: stream, BlockFragment: Block(fields...), EndHeaders: true, EndStream: !more,
	})
}

// Status sends the head of an answer that has nothing but its status.
func (f *Frames) Status(stream uint32, status string, more bool) error {
	return f.Head(stream, more, ":status", status)
}

// Say sends what is no frame.
func (f *Frames) Say(text string) error {
	_, err := io.WriteString(f.Conn, text)
	return err
}

// Pause waits for so many milliseconds.
func (f *Frames) Pause(ms int) error {
	over := time.NewTimer(time.Duration(ms) * time.Millisecond)
	defer over.Stop()
	select {
	case <-over.C:
		return nil
	case <-f.Ended:
		return io.EOF
	}
}

// Forever does something again and again until it fails.
func Forever(do func() error) error {
	for {
		if err := do(); err != nil {
			return err
		}
	}
}
