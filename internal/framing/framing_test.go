package framing

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"strings"
	"testing"
	"testing/iotest"
)

const (
	head  = "POST / HTTP/1.1\r\nHost: x\r\n"
	plain = head + "Content-Length: 2\r\n\r\n{}"
	coded = head + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
)

func TestWatch(t *testing.T) {
	for name, tc := range map[string]struct {
		in        string
		ambiguous bool
	}{
		"length":                      {plain, false},
		"chunked":                     {coded, false},
		"one after the other":         {plain + coded + plain, false},
		"length first":                {head + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", true},
		"coding first":                {head + "Transfer-Encoding: chunked\r\nX-A: b\r\nContent-Length: 2\r\n\r\n", true},
		"other letters":               {head + "cOntent-lEngth: 2\r\ntransfer-ENCODING: chunked\r\n\r\n", true},
		"bare line feeds":             {strings.ReplaceAll(head+"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", "\r", ""), true},
		"in the second request":       {plain + head + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", true},
		"before the head ends":        {"POST / HTTP/1.1\nTransfer-Encoding: x\nContent-Length:", true},
		"named alike":                 {head + "X-Content-Length: 2\r\nTransfer-Encoding-X: chunked\r\nContent-Lengths: 3\r\n\r\n", false},
		"named in a value":            {head + "X-A: Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", false},
		"named in a body":             {head + "Content-Length: 40\r\n\r\n{\"Transfer-Encoding: x\n\":1}\n", false},
		"a body of empty lines":       {head + "Transfer-Encoding: chunked\r\n\r\n4\r\n\n\n\n\n\r\n0\r\n\r\n" + plain, false},
		"a long line before":          {head + "X-A: " + strings.Repeat("a", 10_000) + "\r\n" + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", true},
		"nothing":                     {"", false},
		"a request line that is long": {"GET /" + strings.Repeat("content-length:", 1000), false},
	} {
		t.Run(name, func(t *testing.T) {
			var whole watch
			whole.see([]byte(tc.in))
			if whole.ambiguous() != tc.ambiguous {
				t.Errorf("at once: %t, want %t", whole.ambiguous(), tc.ambiguous)
			}
			var bytewise watch
			for i := range len(tc.in) {
				bytewise.see([]byte{tc.in[i]})
			}
			if bytewise.ambiguous() != tc.ambiguous {
				t.Errorf("byte by byte: %t, want %t", bytewise.ambiguous(), tc.ambiguous)
			}
		})
	}
}

// FuzzWatch holds that the answer does not hang on where reads end, and that no
// request is missed which net/http would take with both lengths.
func FuzzWatch(f *testing.F) {
	for _, in := range []string{
		plain + coded,
		head + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
		head + "transfer-encoding: chunked\ncontent-length: 2\n\n",
		head + "X: a\r\n Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		head + "Content-Length: 2\r\n \r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		head + "Content-Length: 2\r\r\n\r\nTransfer-Encoding: chunked\r\n\r\n",
		head + "Content-Length : 2\r\nTransfer-Encoding: chunked\r\n\r\n",
	} {
		f.Add(in, 3)
	}
	f.Fuzz(func(t *testing.T, in string, size int) {
		var whole, parts watch
		whole.see([]byte(in))
		for b := []byte(in); len(b) > 0; {
			n := min(max(1, size), len(b))
			parts.see(b[:n])
			b = b[n:]
		}
		if whole.ambiguous() != parts.ambiguous() {
			t.Errorf("at once %t, in parts %t", whole.ambiguous(), parts.ambiguous())
		}
		if _, err := http.ReadRequest(bufio.NewReader(strings.NewReader(in))); err != nil {
			return
		}
		// The head as net/http read it, before it dropped the length.
		lines := textproto.NewReader(bufio.NewReader(strings.NewReader(in)))
		if _, err := lines.ReadLine(); err != nil {
			t.Fatal(err)
		}
		h, err := lines.ReadMIMEHeader()
		if err != nil {
			t.Fatal(err)
		}
		if h["Content-Length"] != nil && h["Transfer-Encoding"] != nil && !whole.ambiguous() {
			t.Errorf("%q passes, and net/http takes it with both lengths", in)
		}
	})
}

// A server answers 400 and closes, and no handler sees the request.
func TestServer(t *testing.T) {
	for name, tc := range map[string]struct {
		in   string
		want []int
	}{
		"length":    {plain, []int{200}},
		"pipelined": {plain + coded + plain, []int{200, 200, 200}},
		"ambiguous": {head + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n" + plain, []int{400}},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if b, err := io.ReadAll(r.Body); err != nil || string(b) != "{}" {
					t.Errorf("the handler read %q, %v", b, err)
				}
			}))
			s.Listener = Listen(s.Listener)
			s.Start()
			defer s.Close()
			c, err := net.Dial("tcp", s.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			if _, err := io.Copy(c, iotest.OneByteReader(strings.NewReader(tc.in))); err != nil {
				t.Fatal(err)
			}
			r := bufio.NewReader(c)
			for i, want := range tc.want {
				resp, err := http.ReadResponse(r, nil)
				if err != nil {
					t.Fatalf("answer %d: %v", i, err)
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != want {
					t.Errorf("answer %d: %s, want %d; %v", i, resp.Status, want, err)
				}
			}
		})
	}
}

// A client that is refused while it sends gets to read why.
func TestRefusalIsRead(t *testing.T) {
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.Listener = Listen(s.Listener)
	s.Config.MaxHeaderBytes = 1 << 10
	s.Start()
	defer s.Close()
	c, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = io.WriteString(c, head+"X-A: "+strings.Repeat("a", 1<<20)) // all of it or not
	}()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("answered %s", resp.Status)
	}
	_ = c.Close()
	<-sent
}

func TestReadEndsForGood(t *testing.T) {
	ours, theirs := net.Pipe()
	defer func() { _ = ours.Close() }()
	go func() {
		_, _ = io.WriteString(theirs, head+"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n")
		_ = theirs.Close()
	}()
	c := &conn{Conn: ours}
	b := make([]byte, 4096)
	for range 2 {
		if n, err := c.Read(b); n != 0 || !errors.Is(err, ErrAmbiguous) {
			t.Errorf("read %d bytes, %v", n, err)
		}
	}
}
