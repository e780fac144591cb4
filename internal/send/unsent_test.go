package send

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestUnsent: where nothing can be sent on a new connection, the reason is what the
// receiver began with. HTTP/2 has words alone for that, which this holds it to.
func TestUnsent(t *testing.T) {
	reset := errors.New("reset")
	acknowledged := func(f *http2.Framer) error {
		for {
			frame, err := f.ReadFrame()
			if err != nil {
				return err
			}
			if settings, ok := frame.(*http2.SettingsFrame); ok && settings.IsAck() {
				return nil
			}
		}
	}
	for _, test := range []struct {
		name   string
		begins func(c net.Conn, f *http2.Framer) error
		ready  func(cc *http2.ClientConn) bool // it has been read
		cut    error                           // what the connection itself said
		want   error
	}{
		{"what is not HTTP/2", func(c net.Conn, _ *http2.Framer) error {
			_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			return err
		}, closed, nil, errFrames},
		{"a reset", func(c net.Conn, _ *http2.Framer) error { return c.Close() }, closed, reset, reset},
		{"no room for a stream", func(_ net.Conn, f *http2.Framer) error {
			return errors.Join(f.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 0}), acknowledged(f))
		}, full, nil, errNoRoom},
		{"no room for the head", func(_ net.Conn, f *http2.Framer) error {
			return errors.Join(f.WriteSettings(http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: 1}), acknowledged(f))
		}, nil, nil, errNoRoom},
		{"a farewell", func(_ net.Conn, f *http2.Framer) error {
			return errors.Join(f.WriteSettings(), f.WriteGoAway(0, http2.ErrCodeNo, nil))
		}, full, nil, errNoRoom},
	} {
		t.Run(test.name, func(t *testing.T) {
			ours, theirs := sockets(t)
			began, ended := make(chan error, 1), make(chan struct{})
			go func() {
				defer close(ended)
				_, err := io.CopyN(io.Discard, theirs, int64(len(http2.ClientPreface)))
				if err == nil {
					err = test.begins(theirs, http2.NewFramer(theirs, theirs))
				}
				began <- err
				_, _ = io.Copy(io.Discard, theirs)
			}()
			defer func() {
				_ = ours.Close()
				<-ended
			}()
			transport, err := newTransport()
			if err != nil {
				t.Fatal(err)
			}
			c := newConn(ours)
			c.plain = &plaintext{Conn: tls.Client(ours, &tls.Config{ServerName: "a", MinVersion: tls.VersionTLS12})}
			if c.frames, err = transport.NewClientConn(ours); err != nil {
				t.Fatal(err)
			}
			if err := <-began; err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(10 * time.Second); test.ready != nil && !test.ready(c.frames); runtime.Gosched() {
				if time.Now().After(end) {
					t.Fatal("it was not read")
				}
			}
			if test.cut != nil {
				c.plain.cut.Store(&test.cut)
			}
			q, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://a.example/", http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.frames.RoundTrip(q)
			if err == nil {
				t.Fatal("it was sent")
			}
			if got := c.unsent(err); !errors.Is(got, test.want) {
				t.Errorf("%q comes to %q, want %q", err, got, test.want)
			}
		})
	}
}

// sockets are the two ends of a connection.
func sockets(t *testing.T) (ours, theirs net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if ours, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if theirs, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = ours.Close()
		_ = theirs.Close()
	})
	return ours, theirs
}

func closed(cc *http2.ClientConn) bool { return cc.State().Closed }
func full(cc *http2.ClientConn) bool   { return !cc.CanTakeNewRequest() }
