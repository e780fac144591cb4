package bench

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"
)

// A message is what matters of an HTTP/1.1 message (RFC 9112) to a load
// harness. The body is valid until the next read from the same reader.
type message struct {
	status int    // of a response
	method string // of a request
	target string // of a request, as sent

	body       []byte
	close      bool          // the peer will close the connection, or must see it closed
	retryAfter time.Duration // of a response; 0 if absent or not in seconds
	retrySaid  bool          // of a response: it has a Retry-After, in whatever form
}

// A wireReader reads HTTP/1.1 messages from one connection, requests or
// responses, without allocating for those that fit its buffer. The point of it
// is what it leaves out: a harness that shares its processors with the server
// it measures cannot afford net/http on both sides.
type wireReader struct {
	br      *bufio.Reader
	scratch []byte // the body, if it is chunked or larger than the buffer

	// onContinue, if set, is called when a request waits for "100 Continue"
	// before it sends its body (RFC 9110, section 10.1.1).
	onContinue func() error
}

const (
	wireBuffer  = 16 << 10
	maxWireBody = 32 << 20
	maxHeaders  = 256
)

func newWireReader(r io.Reader) *wireReader {
	return &wireReader{br: bufio.NewReaderSize(r, wireBuffer)}
}

// errNoMessage says that the peer closed the connection between two messages.
var errNoMessage = errors.New("the connection was closed before a message began")

// framing is what the header section says about the body.
type framing struct {
	length   int64 // -1: not said
	chunked  bool
	expected bool // "Expect: 100-continue"
}

// readResponse reads one final response to a POST; 1xx responses before it are
// skipped.
func (w *wireReader) readResponse() (message, error) {
	for {
		line, err := w.line()
		if err != nil {
			return message{}, firstLineError(err, len(line))
		}
		// HTTP/1.1 SP 3DIGIT SP reason (RFC 9112, section 4)
		if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.")) || line[8] != ' ' || (len(line) > 12 && line[12] != ' ') {
			return message{}, fmt.Errorf("not an HTTP/1.1 status line: %.60q", line)
		}
		status, ok := decimal(line[9:12])
		if !ok || status < 100 {
			return message{}, fmt.Errorf("not an HTTP status: %.60q", line)
		}
		m := message{status: int(status), close: line[7] == '0'}
		f, err := w.headers(&m)
		if err != nil {
			return message{}, err
		}
		switch {
		case m.status == 101:
			return message{}, errors.New("the server switched protocols, which nobody asked for")
		case m.status < 200:
			continue
		case m.status == 204 || m.status == 304:
			return m, nil // RFC 9112, section 6.3: no body, whatever the header says
		}
		if !f.chunked && f.length < 0 {
			m.close = true // the body ends with the connection
			m.body, err = w.untilEOF()
			return m, err
		}
		m.body, err = w.body(f)
		return m, err
	}
}

// readRequest reads one request.
func (w *wireReader) readRequest() (message, error) {
	line, err := w.line()
	if err != nil {
		return message{}, firstLineError(err, len(line))
	}
	method, rest, ok1 := bytes.Cut(line, []byte{' '})
	target, version, ok2 := bytes.Cut(rest, []byte{' '})
	if !ok1 || !ok2 || !bytes.HasPrefix(version, []byte("HTTP/1.")) || len(version) != len("HTTP/1.1") {
		return message{}, fmt.Errorf("not an HTTP/1.1 request line: %.60q", line)
	}
	m := message{method: "POST", target: string(target), close: version[7] == '0'}
	if string(method) != m.method {
		m.method = string(method)
	}
	f, err := w.headers(&m)
	if err != nil {
		return message{}, err
	}
	if f.length < 0 && !f.chunked {
		return m, nil // RFC 9112, section 6.3: a request without either has no body
	}
	if f.expected && w.onContinue != nil {
		if err := w.onContinue(); err != nil {
			return message{}, err
		}
	}
	m.body, err = w.body(f)
	return m, err
}

func firstLineError(err error, read int) error {
	if errors.Is(err, io.EOF) && read == 0 {
		return errNoMessage
	}
	return fmt.Errorf("reading the first line of a message: %w", err)
}

// line reads up to a line's end and returns the line without it.
func (w *wireReader) line() ([]byte, error) {
	line, err := w.br.ReadSlice('\n')
	if err != nil {
		return line, err
	}
	return bytes.TrimSuffix(line[:len(line)-1], []byte{'\r'}), nil
}

func (w *wireReader) headers(m *message) (framing, error) {
	f := framing{length: -1}
	for range maxHeaders {
		line, err := w.line()
		if err != nil {
			return f, fmt.Errorf("reading a header line: %w", noEOF(err))
		}
		if len(line) == 0 {
			return f, nil
		}
		name, value, ok := bytes.Cut(line, []byte{':'})
		if !ok {
			return f, fmt.Errorf("not a header line: %.60q", line)
		}
		value = bytes.Trim(value, " \t")
		// The lengths tell most headers apart without folding a byte.
		switch len(name) {
		case len("Content-Length"):
			if bytes.EqualFold(name, []byte("Content-Length")) {
				n, ok := decimal(value)
				if !ok || len(value) == 0 || len(value) > 18 || (f.length >= 0 && f.length != int64(n)) {
					return f, fmt.Errorf("not one content length: %.60q", line)
				}
				f.length = int64(n)
			}
		case len("Transfer-Encoding"):
			if bytes.EqualFold(name, []byte("Transfer-Encoding")) {
				if !bytes.EqualFold(value, []byte("chunked")) {
					return f, fmt.Errorf("unknown transfer encoding: %.60q", line)
				}
				f.chunked = true
			}
		case len("Connection"):
			if bytes.EqualFold(name, []byte("Connection")) {
				for option := range bytes.SplitSeq(value, []byte{','}) {
					option = bytes.TrimSpace(option)
					if bytes.EqualFold(option, []byte("close")) {
						m.close = true
					} else if bytes.EqualFold(option, []byte("keep-alive")) {
						m.close = false
					}
				}
			}
		case len("Retry-After"):
			if bytes.EqualFold(name, []byte("Retry-After")) && len(value) > 0 {
				m.retrySaid = true
				if len(value) >= 7 {
					break // a date, or longer than anybody waits
				}
				if seconds, ok := decimal(value); ok {
					m.retryAfter = time.Duration(seconds) * time.Second
				}
			}
		case len("Expect"):
			if bytes.EqualFold(name, []byte("Expect")) && bytes.EqualFold(value, []byte("100-continue")) {
				f.expected = true
			}
		}
	}
	return f, fmt.Errorf("more than %d header lines", maxHeaders)
}

// body reads a body that is framed by length or by chunks; chunks win
// (RFC 9112, section 6.3).
func (w *wireReader) body(f framing) ([]byte, error) {
	if f.chunked {
		return w.chunks()
	}
	if f.length <= int64(w.br.Size()) {
		n := int(f.length)
		body, err := w.br.Peek(n)
		if err != nil {
			return nil, fmt.Errorf("reading a body of %d bytes: %w", n, noEOF(err))
		}
		_, err = w.br.Discard(n)
		return body, err
	}
	w.scratch = w.scratch[:0]
	if err := w.gather(f.length); err != nil {
		return nil, err
	}
	return w.scratch, nil
}

func (w *wireReader) chunks() ([]byte, error) {
	w.scratch = w.scratch[:0]
	for {
		line, err := w.line()
		if err != nil {
			return nil, fmt.Errorf("reading the size of a chunk: %w", noEOF(err))
		}
		size, err := chunkSize(line)
		if err != nil {
			return nil, err
		}
		if size == 0 {
			break
		}
		if err := w.gather(size); err != nil {
			return nil, err
		}
		if line, err = w.line(); err != nil {
			return nil, fmt.Errorf("reading the end of a chunk: %w", noEOF(err))
		}
		if len(line) != 0 {
			return nil, fmt.Errorf("a chunk of %d bytes goes on after its end: %.60q", size, line)
		}
	}
	for range maxHeaders { // the trailer section
		line, err := w.line()
		if err != nil {
			return nil, fmt.Errorf("reading a trailer line: %w", noEOF(err))
		}
		if len(line) == 0 {
			return w.scratch, nil
		}
	}
	return nil, fmt.Errorf("more than %d trailer lines", maxHeaders)
}

func chunkSize(line []byte) (int64, error) {
	digits, _, _ := bytes.Cut(line, []byte{';'})
	digits = bytes.TrimRight(digits, " \t")
	if len(digits) == 0 || len(digits) > 8 {
		return 0, fmt.Errorf("not the size of a chunk: %.60q", line)
	}
	var size int64
	for _, c := range digits {
		switch {
		case c >= '0' && c <= '9':
			size = size<<4 | int64(c-'0')
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			size = size<<4 | int64(c|0x20-'a'+10)
		default:
			return 0, fmt.Errorf("not the size of a chunk: %.60q", line)
		}
	}
	return size, nil
}

// gather appends n bytes to the scratch.
func (w *wireReader) gather(n int64) error {
	have := len(w.scratch)
	if int64(have)+n > maxWireBody {
		return fmt.Errorf("a body of more than %d bytes", maxWireBody)
	}
	w.scratch = append(w.scratch, make([]byte, n)...)
	if _, err := io.ReadFull(w.br, w.scratch[have:]); err != nil {
		return fmt.Errorf("reading %d bytes of a body: %w", n, noEOF(err))
	}
	return nil
}

func (w *wireReader) untilEOF() ([]byte, error) {
	w.scratch = w.scratch[:0]
	body, err := io.ReadAll(io.LimitReader(w.br, maxWireBody+1))
	if err != nil {
		return nil, fmt.Errorf("reading a body that ends with the connection: %w", err)
	}
	if len(body) > maxWireBody {
		return nil, fmt.Errorf("a body of more than %d bytes", maxWireBody)
	}
	return body, nil
}

// noEOF turns an end of the stream in the middle of a message into what it is.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
