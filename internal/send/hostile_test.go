package send_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/egress"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/send"
	"github.com/plinqx/hypha/internal/send/receivertest"
)

// hostile is a receiver, and what the record of each attempt at it says.
type hostile struct {
	name  string
	steps []receivertest.Step
	http2 *receivertest.HTTP2 // instead of steps
	body  []byte              // of the request; some, if nil
	// silent receivers take an attempt's whole timeout, which is short then.
	silent bool
	// then is how many bytes it has sent before the second attempt begins.
	then int
	// ended is whether the connection has ended by then.
	ended bool
	// heard is how many of its pings we have answered by then.
	heard int

	kind    hook.FailureKind
	status  int
	message string // of the failure, or how it begins
	kept    string // how the kept body begins
	// ahead is the message instead, of a connect failure, where the request comes
	// too late: what the receiver begins with was read, or had ended the connection,
	// before it was sent.
	ahead string
}

// The words of failures, where many receivers come to the same.
const (
	notHTTP   = "the answer is not valid HTTP"
	notHTTP2  = "the answer is not valid HTTP/2"
	tooLong   = "the answer's status line and headers are over 64 KiB"
	tooMany   = "the answer has more than 2048 headers"
	flooded   = "the receiver sent more than 256 KiB for a request, over HTTP/2"
	noAnswer  = "the receiver closed the connection without an answer"
	cutShort  = "the receiver closed the connection before the answer's headers were complete"
	noRoom    = "the receiver takes no request over HTTP/2"
	wasReset  = "the receiver reset the request without an answer"
	badTLS    = "what the receiver sent is not valid TLS"
	handshake = "the TLS handshake failed"
	late      = "no " // answer, or whatever it was that did not come
)

func sends(text string) receivertest.Step             { return receivertest.Step{Send: text} }
func floods(text string) receivertest.Step            { return receivertest.Step{Flood: text} }
func drips(text string) receivertest.Step             { return receivertest.Step{Drip: text, EveryMS: 20} }
func spoken(tls string) receivertest.Step             { return receivertest.Step{TLS: tls} }
func reads(n int) receivertest.Step                   { return receivertest.Step{ReadBytes: n} }
func pauses(ms int) receivertest.Step                 { return receivertest.Step{PauseMS: ms} }
func raw(text string) receivertest.Step               { return receivertest.Step{Raw: text} }
func holds() receivertest.Step                        { return receivertest.Step{Hold: true} }
func closes() receivertest.Step                       { return receivertest.Step{Close: true} }
func resets() receivertest.Step                       { return receivertest.Step{Reset: true} }
func keeps() receivertest.Step                        { return receivertest.Step{Keep: true} }
func halfCloses() receivertest.Step                   { return receivertest.Step{HalfClose: true} }
func unread() receivertest.Step                       { return receivertest.Step{Unread: true} }
func does(s ...receivertest.Step) []receivertest.Step { return s }

const (
	h200    = "HTTP/1.1 200 OK\r\n"
	chunked = h200 + "Transfer-Encoding: chunked\r\n\r\n"
	good    = h200 + "Content-Length: 2\r\n\r\nok"
	bad     = "HTTP/1.1 500 X\r\nContent-Length: 2\r\n\r\nno"
)

// hostileHTTP1 is what a receiver can do on a socket, with and without TLS.
func hostileHTTP1() []hostile {
	huge := bytes.Repeat([]byte("x"), 16<<20)
	line := strings.Repeat("y", 1<<10)
	numbered := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "A%d:\r\n", i)
		}
		return b.String()
	}
	p, s, c, tm, tl := hook.FailureProtocol, hook.FailureStatus, hook.FailureConnect, hook.FailureTimeout, hook.FailureTLS
	rows := []hostile{
		// Bodies that do not end. The status has decided; what is kept is bounded.
		{name: "body: endless, with a length", steps: does(sends(h200+"Content-Length: 9000000000000000000\r\n\r\n"), floods("body")), status: 200, kept: "bodybody"},
		{name: "body: endless, until the connection closes", steps: does(sends(h200+"\r\n"), floods("body")), status: 200, kept: "bodybody"},
		{name: "body: endless chunks", steps: does(sends(chunked), floods("4\r\nbody\r\n")), status: 200, kept: "bodybody"},
		{name: "body: one endless chunk", steps: does(sends(chunked+"fffffffffffffff\r\n"), floods("body")), status: 200, kept: "bodybody"},
		{name: "body: endless, of an error", steps: does(sends("HTTP/1.1 500 X\r\n\r\n"), floods("body")), kind: s, status: 500, message: "answered 500 Internal Server Error", kept: "bodybody"},
		{name: "body: endless, over TLS", steps: does(spoken("ok"), sends(h200+"\r\n"), floods("body")), status: 200, kept: "bodybody"},
		{name: "body: dripped", steps: does(sends(h200+"Content-Length: 100000\r\n\r\n"), drips("x")), status: 200, kept: "x"},
		{name: "body: dripped, until the connection closes", steps: does(sends(h200+"\r\n"), drips("x")), status: 200, kept: "x"},
		{name: "body: dripped chunks", steps: does(sends(chunked), drips("1\r\nx\r\n")), status: 200, kept: "x"},
		{name: "body: never comes", steps: does(sends(h200+"Content-Length: 10\r\n\r\n"), holds()), status: 200},
		{name: "body: never comes, in chunks", steps: does(sends(chunked), holds()), status: 200},
		{name: "body: never comes, and it is an error", steps: does(sends("HTTP/1.1 503 X\r\nContent-Length: 10\r\n\r\n"), holds()), kind: s, status: 503, message: "answered 503 Service Unavailable"},
		{name: "body: never comes, over TLS", steps: does(spoken("ok"), sends(h200+"Content-Length: 10\r\n\r\n"), holds()), status: 200},
		{name: "body: shorter than its length", steps: does(sends(h200+"Content-Length: 10\r\n\r\nok"), closes()), status: 200, kept: "ok"},
		{name: "body: longer than its length", steps: does(sends(h200+"Content-Length: 2\r\n\r\nokok"), keeps()), status: 200, kept: "ok"},
		{name: "body: of a 204", steps: does(sends("HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok"), keeps()), status: 204},
		{name: "body: of a 204, chunked and endless", steps: does(sends("HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n"), floods("1\r\nx\r\n")), status: 204},
		{name: "body: of a 304", steps: does(sends("HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\nok"), keeps()), kind: s, status: 304, message: "answered 304 Not Modified: redirects are not followed"},
		{name: "body: cut off by a reset", steps: does(sends(h200+"Content-Length: 10\r\n\r\nok"), resets()), status: 200},
		{name: "body: of control characters", steps: does(sends(h200+"Content-Length: 6\r\n\r\n\x00\x1b[2J\xff"), keeps()), status: 200, kept: "\x00\x1b[2J\xff"},

		// Chunks.
		{name: "chunks: a size that drips", steps: does(sends(chunked), drips("0")), status: 200},
		{name: "chunks: a size without an end", steps: does(sends(chunked), floods("0")), status: 200},
		{name: "chunks: a size beyond 64 bits", steps: does(sends(chunked+"ffffffffffffffffff\r\nok"), keeps()), status: 200},
		{name: "chunks: a negative size", steps: does(sends(chunked+"-2\r\nok\r\n0\r\n\r\n"), keeps()), status: 200},
		{name: "chunks: a size with 0x", steps: does(sends(chunked+"0x2\r\nok\r\n0\r\n\r\n"), keeps()), status: 200},
		{name: "chunks: a size that is none", steps: does(sends(chunked+"zz\r\nok\r\n"), keeps()), status: 200},
		{name: "chunks: no size", steps: does(sends(chunked+"\r\nok\r\n"), keeps()), status: 200},
		{name: "chunks: no line end after one", steps: does(sends(chunked+"2\r\nok2\r\nok\r\n0\r\n\r\n"), keeps()), status: 200, kept: "ok"},
		{name: "chunks: line feeds alone", steps: does(sends(chunked+"2\nok\n0\n\n"), keeps()), status: 200},
		{name: "chunks: no last one", steps: does(sends(chunked+"2\r\nok\r\n"), closes()), status: 200, kept: "ok"},
		{name: "chunks: an extension without an end", steps: does(sends(chunked+"2;a="), floods("y")), status: 200},
		{name: "chunks: many extensions", steps: does(sends(chunked), floods("1;a="+line+"\r\nx\r\n")), status: 200},
		{name: "chunks: of a byte, with extensions", steps: does(sends(chunked), floods("1;aaaaaaaaaaaaaa\r\nx\r\n")), status: 200, kept: "xxxx"},
		{name: "chunks: trailers without an end", steps: does(sends(chunked+"0\r\n"), floods("X: y\r\n")), status: 200},
		{name: "chunks: one trailer without an end", steps: does(sends(chunked+"0\r\nX: "), floods("y")), status: 200},
		{name: "chunks: dripped trailers", steps: does(sends(chunked+"2\r\nok\r\n0\r\n"), drips("X: y\r\n")), status: 200, kept: "ok"},
		{name: "chunks: trailers that would frame", steps: does(sends(chunked + "2\r\nok\r\n0\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n")), status: 200, kept: "ok"},

		// Lengths and encodings that quarrel.
		{name: "length: two", steps: does(sends(h200+"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok!"), keeps()), kind: p, message: notHTTP},
		{name: "length: the same twice", steps: does(sends(h200+"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok"), keeps()), status: 200, kept: "ok"},
		{name: "length: a list of two", steps: does(sends(h200+"Content-Length: 2, 3\r\n\r\nok!"), keeps()), kind: p, message: notHTTP},
		{name: "length: negative", steps: does(sends(h200+"Content-Length: -1\r\n\r\nok"), keeps()), kind: p, message: notHTTP},
		{name: "length: with a plus", steps: does(sends(h200+"Content-Length: +2\r\n\r\nok"), keeps()), kind: p, message: notHTTP},
		{name: "length: hexadecimal", steps: does(sends(h200+"Content-Length: 0x2\r\n\r\nok"), keeps()), kind: p, message: notHTTP},
		{name: "length: blank", steps: does(sends(h200+"Content-Length: \r\n\r\nok"), keeps()), kind: p, message: notHTTP},
		{name: "length: a word", steps: does(sends(h200+"Content-Length: two\r\n\r\nok"), keeps()), kind: p, message: notHTTP},
		{name: "length: beyond 64 bits", steps: does(sends(h200+"Content-Length: 99999999999999999999\r\n\r\nok"), keeps()), kind: p, message: notHTTP},
		{name: "length: a fraction", steps: does(sends(h200+"Content-Length: 2.0\r\n\r\nok"), keeps()), kind: p, message: notHTTP},
		{name: "length: beside chunks", steps: does(sends(h200 + "Content-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")), status: 200, kept: "ok"},
		{name: "encoding: gzip for the transfer", steps: does(sends(h200+"Transfer-Encoding: gzip\r\n\r\nok"), closes()), kind: p, message: notHTTP},
		{name: "encoding: chunked twice", steps: does(sends(h200+"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), keeps()), kind: p, message: notHTTP},
		{name: "encoding: a list of two", steps: does(sends(h200+"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), keeps()), kind: p, message: notHTTP},
		{name: "encoding: identity", steps: does(sends(h200+"Transfer-Encoding: identity\r\n\r\nok"), closes()), kind: p, message: notHTTP},
		{name: "encoding: nearly chunked", steps: does(sends(h200+"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"), keeps()), kind: p, message: notHTTP},
		{name: "encoding: chunked, and a tab", steps: does(sends(h200+"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"), keeps()), kind: p, message: notHTTP},
		{name: "encoding: chunked in HTTP/1.0", steps: does(sends("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"), closes()), status: 200},

		// Packed bodies are kept as they came.
		{name: "packed: a bomb", steps: does(receivertest.Step{GzipZeros: 64}), status: 200, kept: "\x1f\x8b"},
		{name: "packed: a bomb in a bomb", steps: does(receivertest.Step{GzipZeros: 64, Layers: 2}), status: 200, kept: "\x1f\x8b"},
		{name: "packed: gzip that breaks off", steps: does(sends(h200 + "Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00")), status: 200, kept: "\x1f\x8b"},
		{name: "packed: deflate that is none", steps: does(sends(h200 + "Content-Encoding: deflate\r\nContent-Length: 2\r\n\r\nok")), status: 200, kept: "ok"},
		{name: "packed: br that is none", steps: does(sends(h200 + "Content-Encoding: br\r\nContent-Length: 2\r\n\r\nok")), status: 200, kept: "ok"},
		{name: "packed: zstd, gzip, and what nobody knows", steps: does(sends(h200 + "Content-Encoding: zstd, gzip, \x01\r\nContent-Length: 2\r\n\r\nok")), kind: p, message: notHTTP},

		// Heads that do not end, or are none.
		{name: "head: never comes", steps: does(holds()), silent: true, kind: tm, message: late},
		{name: "head: never comes, over TLS", steps: does(spoken("ok"), holds()), silent: true, kind: tm, message: late},
		{name: "head: dripped headers", steps: does(sends(h200), drips("X: y\r\n")), silent: true, kind: tm, message: late},
		{name: "head: a dripped status line", steps: does(drips("H")), silent: true, kind: tm, message: late},
		{name: "head: a status line, and no more", steps: does(sends(h200), holds()), silent: true, kind: tm, message: late},
		{name: "head: endless small headers", steps: does(sends(h200), floods("X: y\r\n")), kind: p, message: tooLong},
		{name: "head: endless headers, over TLS", steps: does(spoken("ok"), sends(h200), floods("X: y\r\n")), kind: p, message: tooLong},
		{name: "head: endless cookies", steps: does(sends(h200), floods("Set-Cookie: a=b\r\n")), kind: p, message: tooLong},
		{name: "head: one huge header", steps: does(sends(h200 + "X: " + strings.Repeat(line, 65) + "\r\n\r\n")), kind: p, message: tooLong},
		{name: "head: an endless value", steps: does(sends(h200+"X: "), floods("y")), kind: p, message: tooLong},
		{name: "head: an endless name", steps: does(sends(h200), floods("y")), kind: p, message: tooLong},
		{name: "head: an endless status line", steps: does(sends("HTTP/1.1 200 "), floods("y")), kind: p, message: tooLong},
		{name: "head: endless folding", steps: does(sends(h200+"X: y\r\n"), floods(" y\r\n")), kind: p, message: tooLong},
		{name: "head: endless line feeds", steps: does(floods("\n")), kind: p, message: notHTTP},
		{name: "head: many headers, all different", steps: does(sends(h200 + numbered(3000) + "\r\n")), kind: p, message: tooMany},
		{name: "head: many headers, all the same", steps: does(sends(h200 + strings.Repeat("A:\r\n", 3000) + "\r\n")), kind: p, message: tooMany},
		{name: "head: many headers, and not too many", steps: does(sends(h200 + strings.Repeat("A:\r\n", 2000) + "Content-Length: 2\r\n\r\nok")), status: 200, kept: "ok"},
		{name: "head: a folded header", steps: does(sends(h200 + "X: a\r\n b\r\nContent-Length: 2\r\n\r\nok")), status: 200, kept: "ok"},
		{name: "head: a folded first header", steps: does(sends(h200+" X: a\r\n\r\n"), keeps()), kind: p, message: notHTTP},
		{name: "head: a NUL in a value", steps: does(sends(h200+"X: a\x00b\r\nContent-Length: 2\r\n\r\nok"), keeps()), kind: p, message: notHTTP},
		{name: "head: an escape in a value", steps: does(sends(h200+"X: \x1b[2J\r\nContent-Length: 2\r\n\r\nok"), keeps()), kind: p, message: notHTTP},
		{name: "head: a bare return in a value", steps: does(sends(h200+"X: a\rY: b\r\nContent-Length: 2\r\n\r\nok"), keeps()), kind: p, message: notHTTP},
		{name: "head: a NUL in a name", steps: does(sends(h200+"X\x00: a\r\nContent-Length: 2\r\n\r\nok"), keeps()), kind: p, message: notHTTP},
		{name: "head: a blank before a colon", steps: does(sends(h200+"Content-Length : 2\r\n\r\nok"), keeps()), status: 200, kept: "ok"},
		{name: "head: a blank in a name", steps: does(sends(h200+"X Y: 2\r\n\r\nok"), keeps()), status: 200, kept: "ok"},
		{name: "head: no name", steps: does(sends(h200+": 2\r\n\r\nok"), keeps()), kind: p, message: notHTTP},
		{name: "head: no colon", steps: does(sends(h200+"nonsense\r\n\r\n"), keeps()), kind: p, message: notHTTP},
		{name: "head: line feeds alone", steps: does(sends("HTTP/1.1 200 OK\nContent-Length: 2\n\nok")), status: 200, kept: "ok"},
		{name: "head: bytes that are no UTF-8", steps: does(sends(h200 + "X: \xff\xfe\r\nContent-Length: 2\r\n\r\nok")), status: 200, kept: "ok"},
		{name: "head: cut off", steps: does(sends(h200+"X: y\r\n"), closes()), kind: c, message: cutShort},
		{name: "head: cut off in the status line", steps: does(sends("HTTP/1.1 2"), closes()), kind: p, message: notHTTP},
		{name: "head: cut off by a reset", steps: does(sends(h200+"X: y\r\n"), pauses(20), resets()), kind: c},

		// Interim answers.
		{name: "interim: endless 100", steps: does(floods("HTTP/1.1 100 Continue\r\n\r\n")), kind: p, message: tooLong},
		{name: "interim: endless 102", steps: does(floods("HTTP/1.1 102 Processing\r\n\r\n")), kind: p, message: tooLong},
		{name: "interim: endless 103", steps: does(floods("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")), kind: p, message: tooLong},
		{name: "interim: endless 199", steps: does(floods("HTTP/1.1 199 X\r\n\r\n")), kind: p, message: tooLong},
		{name: "interim: dripped 102", steps: does(drips("HTTP/1.1 102 Processing\r\n\r\n")), silent: true, kind: tm, message: late},
		{name: "interim: 100, and silence", steps: does(sends("HTTP/1.1 100 Continue\r\n\r\n"), holds()), silent: true, kind: tm, message: late},
		{name: "interim: one, and an end", steps: does(sends("HTTP/1.1 103 X\r\n\r\n"), closes()), kind: c, message: cutShort},
		{name: "interim: with a body", steps: does(sends("HTTP/1.1 103 X\r\nContent-Length: 2\r\n\r\nok"+bad), keeps()), kind: p, message: notHTTP},
		{name: "interim: of each kind, and the answer", steps: does(sends("HTTP/1.1 100 C\r\n\r\nHTTP/1.1 102 P\r\n\r\nHTTP/1.1 103 E\r\nLink: </x>\r\n\r\n" + good)), status: 200, kept: "ok"},
		{name: "switch: 101, and silence", steps: does(sends("HTTP/1.1 101 X\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"), holds()), kind: s, status: 101, message: "answered 101 Switching Protocols"},
		{name: "switch: 101, and traffic", steps: does(sends("HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"), floods("\x81\x05hello")), kind: s, status: 101, message: "answered 101 Switching Protocols"},
		{name: "switch: 101, and an answer", steps: does(sends("HTTP/1.1 101 X\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n"+good), keeps()), kind: s, status: 101, message: "answered 101 Switching Protocols"},

		// Status lines.
		{name: "status: HTTP/0.9", steps: does(sends("<html>ok</html>"), closes()), kind: p},
		{name: "status: HTTP/3.7", steps: does(sends("HTTP/3.7 200 OK\r\nContent-Length: 2\r\n\r\nok"), keeps()), kind: p, message: notHTTP},
		{name: "status: HTTP/2.0", steps: does(sends("HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok"), keeps()), kind: p, message: notHTTP},
		{name: "status: HTTP/0.0", steps: does(sends("HTTP/0.0 200 OK\r\nContent-Length: 2\r\n\r\nok"), keeps()), kind: p, message: notHTTP},
		{name: "status: HTTP/1.10", steps: does(sends("HTTP/1.10 200 OK\r\nContent-Length: 2\r\n\r\nok"), keeps()), kind: p, message: notHTTP},
		{name: "status: HTTP/1.9", steps: does(sends("HTTP/1.9 200 OK\r\nContent-Length: 2\r\n\r\nok")), status: 200, kept: "ok"},
		{name: "status: http/1.1", steps: does(sends("http/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), keeps()), kind: p, message: notHTTP},
		{name: "status: 99", steps: does(sends("HTTP/1.1 99 X\r\n\r\n"), keeps()), kind: p, message: notHTTP},
		{name: "status: 1000", steps: does(sends("HTTP/1.1 1000 X\r\n\r\n"), keeps()), kind: p, message: notHTTP},
		{name: "status: 2000", steps: does(sends("HTTP/1.1 2000 OK\r\n\r\n"), keeps()), kind: p, message: notHTTP},
		{name: "status: -1", steps: does(sends("HTTP/1.1 -1 X\r\n\r\n"), keeps()), kind: p, message: notHTTP},
		{name: "status: -20", steps: does(sends("HTTP/1.1 -20 X\r\n\r\n"), keeps()), kind: p, message: notHTTP},
		{name: "status: +20", steps: does(sends("HTTP/1.1 +20 X\r\n\r\n"), keeps()), kind: p, message: "the answer's status is not of three digits"},
		{name: "status: in quotes", steps: does(sends("HTTP/1.1 \"200\" OK\r\n\r\n"), keeps()), kind: p, message: notHTTP},
		{name: "status: 2OO", steps: does(sends("HTTP/1.1 2OO OK\r\n\r\n"), keeps()), kind: p, message: notHTTP},
		{name: "status: none", steps: does(sends("HTTP/1.1 \r\n\r\n"), keeps()), kind: p, message: notHTTP},
		{name: "status: not even a blank", steps: does(sends("HTTP/1.1\r\n\r\n"), keeps()), kind: p, message: notHTTP},
		{name: "status: 000", steps: does(sends("HTTP/1.1 000 X\r\nContent-Length: 0\r\n\r\n")), kind: s, status: 0, message: "answered 000"},
		{name: "status: 099", steps: does(sends("HTTP/1.1 099 X\r\nContent-Length: 0\r\n\r\n")), kind: s, status: 99, message: "answered 099"},
		{name: "status: 299", steps: does(sends("HTTP/1.1 299 X\r\nContent-Length: 2\r\n\r\nok")), status: 299, kept: "ok"},
		{name: "status: 600", steps: does(sends("HTTP/1.1 600 X\r\nContent-Length: 0\r\n\r\n")), kind: s, status: 600, message: "answered 600"},
		{name: "status: 999", steps: does(sends("HTTP/1.1 999 X\r\nContent-Length: 0\r\n\r\n")), kind: s, status: 999, message: "answered 999"},
		{name: "status: no reason", steps: does(sends("HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok")), status: 200, kept: "ok"},
		{name: "status: a huge reason", steps: does(sends("HTTP/1.1 500 " + strings.Repeat(line, 60) + "\r\nContent-Length: 2\r\n\r\nno")), kind: s, status: 500, message: "answered 500 Internal Server Error", kept: "no"},
		{name: "status: a reason that writes to terminals", steps: does(sends("HTTP/1.1 500 \x1b[2J\x00\r\nContent-Length: 2\r\n\r\nno")), kind: s, status: 500, message: "answered 500 Internal Server Error", kept: "no"},
		{name: "status: another protocol's greeting", steps: does(sends("220 smtp.example.com ESMTP\r\n"), holds()), kind: p, message: notHTTP},
		{name: "status: noise", steps: does(floods("\xde\xad\xbe\xef")), kind: p},

		// When the answer comes, and how the connection ends.
		{name: "order: an answer before anything is read", steps: does(unread(), sends(h200+"Connection: close\r\nContent-Length: 2\r\n\r\nok"), holds()), status: 200, kept: "ok"},
		{name: "order: an answer before all is read", steps: does(reads(100), sends("HTTP/1.1 413 X\r\nContent-Length: 2\r\n\r\nno"), holds()), body: huge, kind: s, status: 413, message: "answered 413 Request Entity Too Large", kept: "no"},
		{name: "order: an early answer, and a reset", steps: does(reads(100), sends("HTTP/1.1 413 X\r\nContent-Length: 2\r\n\r\nno"), pauses(50), resets()), body: huge, kind: s, status: 413, message: "answered 413", kept: "no"},
		{name: "order: an answer, and a reset", steps: does(sends(good), resets()), status: 200},
		{name: "order: an answer, and half a close", steps: does(sends(good), halfCloses()), status: 200, kept: "ok"},
		{name: "order: half a close, and no answer", steps: does(halfCloses()), kind: c, message: noAnswer},
		{name: "order: nothing is ever read", steps: does(unread(), holds()), body: huge, silent: true, kind: tm, message: late},
		{name: "order: nothing is ever read, over TLS", steps: does(spoken("ok"), unread(), holds()), body: huge, silent: true, kind: tm, message: late},
		{name: "order: it accepts and closes", steps: does(unread(), closes()), kind: c, message: noAnswer},
		{name: "order: it accepts and resets", steps: does(unread(), resets()), kind: c},
		{name: "order: it reads some and closes", steps: does(reads(100), closes()), body: huge, kind: c, message: noAnswer},
		{name: "order: it reads all and closes", steps: does(closes()), kind: c, message: noAnswer},
		{name: "order: it reads all and resets", steps: does(resets()), kind: c, message: noAnswer},

		// A kept connection must not carry one delivery's answer to the next.
		{name: "poison: a good answer behind a bad one", steps: does(sends(bad+good), keeps()), kind: s, status: 500, message: "answered 500", kept: "no"},
		{name: "poison: a bad answer behind a good one", steps: does(sends(good+bad), keeps()), status: 200, kept: "ok"},
		{name: "poison: a good answer behind a bad one, over TLS", steps: does(spoken("ok"), sends(bad+good), keeps()), kind: s, status: 500, message: "answered 500", kept: "no"},
		{name: "poison: a good answer, a moment later", steps: does(sends(bad), pauses(20), sends(good), keeps()), then: len(bad + good), kind: s, status: 500, message: "answered 500", kept: "no"},
		{name: "poison: a good answer, a moment later, over TLS", steps: does(spoken("ok"), sends(bad), pauses(20), sends(good), keeps()), then: len(bad + good), kind: s, status: 500, message: "answered 500", kept: "no"},
		{name: "poison: half a good answer", steps: does(sends(bad+h200), keeps()), kind: s, status: 500, message: "answered 500", kept: "no"},
		{name: "poison: a line end, and a good answer", steps: does(sends(bad+"\r\n"+good), keeps()), kind: s, status: 500, message: "answered 500", kept: "no"},
		{name: "poison: garbage", steps: does(sends(good+"\x00garbage"), keeps()), status: 200, kept: "ok"},
		{name: "poison: one byte", steps: does(sends(bad+"H"), keeps()), kind: s, status: 500, message: "answered 500", kept: "no"},
		{name: "poison: an interim answer", steps: does(sends(bad+"HTTP/1.1 103 X\r\n\r\n"), keeps()), kind: s, status: 500, message: "answered 500", kept: "no"},
		{name: "poison: in the body of a 204", steps: does(sends("HTTP/1.1 204 X\r\nContent-Length: 40\r\n\r\n"+bad), keeps()), status: 204},
		{name: "poison: in the body of a 304", steps: does(sends("HTTP/1.1 304 X\r\nContent-Length: 40\r\n\r\n"+good), keeps()), kind: s, status: 304, message: "answered 304"},
		{name: "poison: behind the last chunk", steps: does(sends("HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n"+good), keeps()), kind: s, status: 500, message: "answered 500", kept: "no"},
		{name: "poison: where length and chunks disagree", steps: does(sends("HTTP/1.1 500 X\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"+good), keeps()), kind: s, status: 500, message: "answered 500"},
		{name: "poison: a flood behind the answer", steps: does(sends(bad), floods(good)), kind: s, status: 500, message: "answered 500", kept: "no"},

		// What an answer may ask for, and does not get.
		{name: "asks: to wait for ever", steps: does(sends("HTTP/1.1 503 X\r\nRetry-After: 99999999999999999999\r\nContent-Length: 0\r\n\r\n")), kind: s, status: 503, message: "answered 503"},
		{name: "asks: to wait for less than nothing", steps: does(sends("HTTP/1.1 429 X\r\nRetry-After: -1\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")), kind: s, status: 429, message: "answered 429"},
		{name: "asks: to keep cookies", steps: does(sends(h200 + "Set-Cookie: a=b\r\nSet-Cookie2: c=d\r\nset-cookie: e=f\r\nContent-Length: 2\r\n\r\nok")), status: 200, kept: "ok"},
		{name: "asks: to go to itself", steps: does(sends("HTTP/1.1 302 X\r\nLocation: http://{SELF}/hook\r\nContent-Length: 0\r\n\r\n")), kind: s, status: 302, message: "answered 302 Found: redirects are not followed"},
		{name: "asks: to go nowhere", steps: does(sends("HTTP/1.1 302 X\r\nLocation: \r\nContent-Length: 0\r\n\r\n")), kind: s, status: 302, message: "answered 302 Found: redirects are not followed"},
		{name: "asks: to go to two places", steps: does(sends("HTTP/1.1 302 X\r\nLocation: /a\r\nLocation: http://{CANARY}/\r\nContent-Length: 0\r\n\r\n")), kind: s, status: 302, message: "answered 302 Found: redirects are not followed"},
		{name: "asks: to open a file", steps: does(sends("HTTP/1.1 307 X\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n")), kind: s, status: 307, message: "answered 307"},
		{name: "asks: to refresh elsewhere", steps: does(sends(h200 + "Refresh: 0; url=http://{CANARY}/\r\nContent-Length: 2\r\n\r\nok")), status: 200, kept: "ok"},
		{name: "asks: for another protocol", steps: does(sends(h200 + "Alt-Svc: h3=\":443\"\r\nUpgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 2\r\n\r\nok")), status: 200, kept: "ok"},
		{name: "asks: for credentials", steps: does(sends("HTTP/1.1 401 X\r\nWWW-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n\r\n")), kind: s, status: 401, message: "answered 401 Unauthorized"},
		{name: "asks: for a proxy's credentials", steps: does(sends("HTTP/1.1 407 X\r\nProxy-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n")), kind: s, status: 407, message: "answered 407"},
		{name: "asks: to be asked again", steps: does(sends("HTTP/1.1 408 X\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n")), kind: s, status: 408, message: "answered 408"},

		// TLS.
		{name: "TLS: silence", steps: does(spoken("none"), unread(), holds()), silent: true, kind: tm, message: late},
		{name: "TLS: a dripped handshake", steps: does(spoken("none"), unread(), sends("\x16\x03\x03\x40\x00\x02\x00\x3f\x00"), drips("\x00")), silent: true, kind: tm, message: late},
		{name: "TLS: endless empty records", steps: does(spoken("none"), unread(), floods("\x16\x03\x03\x00\x00")), kind: tl, message: handshake},
		{name: "TLS: endless warnings", steps: does(spoken("none"), unread(), floods("\x15\x03\x03\x00\x02\x01\x5a")), kind: tl, message: handshake},
		{name: "TLS: an endless handshake message", steps: does(spoken("none"), unread(), sends("\x16\x03\x03\x40\x00\x02\xff\xff\xff"+strings.Repeat("x", 16<<10-4)), floods("\x16\x03\x03\x40\x00"+strings.Repeat("x", 16<<10))), kind: tl, message: handshake},
		{name: "TLS: garbage", steps: does(spoken("none"), reads(100), sends("garbage garbage garbage"), holds()), kind: tl, message: "the receiver does not speak TLS on this port"},
		{name: "TLS: plain HTTP on its port", steps: does(spoken("none"), reads(100), sends("HTTP/1.1 400 Bad Request\r\n\r\nThis is not TLS"), closes()), kind: tl, message: "the receiver does not speak TLS on this port"},
		{name: "TLS: on the port of plain HTTP", steps: does(sends("\x15\x03\x01\x00\x02\x02\x46"), closes()), kind: p, message: notHTTP},
		{name: "TLS: an alert", steps: does(spoken("none"), reads(100), sends("\x15\x03\x03\x00\x02\x02\x28"), closes()), kind: tl, message: handshake},
		{name: "TLS: a goodbye at once", steps: does(spoken("none"), reads(100), sends("\x15\x03\x03\x00\x02\x01\x00"), closes()), kind: tl, message: "the receiver closed the connection during the TLS handshake"},
		{name: "TLS: closed in the handshake", steps: does(spoken("none"), reads(100), closes()), kind: tl, message: "the receiver closed the connection during the TLS handshake"},
		{name: "TLS: reset in the handshake", steps: does(spoken("none"), reads(100), resets()), kind: tl, message: "the receiver closed the connection during the TLS handshake"},
		{name: "TLS: 1.1 at most", steps: does(spoken("max1.1")), kind: tl, message: "the TLS handshake failed; TLS 1.2 or newer is needed"},
		{name: "TLS: a certificate for another name", steps: does(spoken("wrong-host")), kind: tl, message: "the certificate is for another name"},
		{name: "TLS: an expired certificate", steps: does(spoken("expired")), kind: tl, message: "the certificate has expired, or is not valid yet"},
		{name: "TLS: a certificate of its own making", steps: does(spoken("self-signed")), kind: tl, message: "the certificate is signed by an unknown authority"},
		{name: "TLS: a huge chain", steps: does(spoken("huge-chain"), sends(good)), kind: tl, message: handshake},
		{name: "TLS: it wants a certificate of ours", steps: does(spoken("client-certificate"), sends(good)), kind: c, message: "the receiver ended the connection with a TLS alert"},
		{name: "TLS: garbage between the records", steps: does(spoken("ok"), raw("garbage garbage garbage"), holds()), kind: p, message: badTLS},
		{name: "TLS: an answer past it", steps: does(spoken("ok"), raw(good), holds()), kind: p, message: badTLS},
		{name: "TLS: an alert past it", steps: does(spoken("ok"), raw("\x15\x03\x03\x00\x02\x02\x28"), holds()), kind: p, message: badTLS},
		{name: "TLS: a record that is too large", steps: does(spoken("ok"), raw("\x17\x03\x03\xff\xff"), holds()), kind: p, message: badTLS},
		{name: "TLS: a new handshake in the open", steps: does(spoken("ok"), raw("\x16\x03\x03\x00\x04\x00\x00\x00\x00"), holds()), kind: p, message: badTLS},
		{name: "TLS: a record that never ends", steps: does(spoken("ok"), raw("\x17\x03\x03\x20\x00"), holds()), silent: true, kind: tm, message: late},
		{name: "TLS: cut off without a goodbye", steps: does(spoken("ok"), sends(h200+"X: y\r\n"), resets()), kind: c},

		// Names.
		{name: "DNS: slow", steps: does(receivertest.Step{DNS: "delay30s"}), silent: true, kind: tm, message: late},
	}
	for _, code := range []int{300, 301, 302, 303, 305, 306, 307, 308, 399} {
		rows = append(rows, hostile{
			name:  fmt.Sprintf("asks: to go to a private place, with %d", code),
			steps: does(sends(fmt.Sprintf("HTTP/1.1 %d X\r\nLocation: http://{CANARY}/latest/meta-data/\r\nContent-Length: 2\r\n\r\nno", code))),
			kind:  s, status: code, message: fmt.Sprintf("answered %d", code), kept: "no",
		})
	}
	return rows
}

// played is what two attempts at a receiver came to.
type played struct {
	attempts [2]*hook.Attempt
	waited   [2]time.Duration
	read     int64 // bytes off the socket
	conns    int64
	canary   int
}

// shortly is the timeout where a receiver uses it up, and soon where it must not:
// shorter than what would end a connection that hangs, long after an attempt.
const (
	shortly = 400 * time.Millisecond
	soon    = 10 * time.Second
)

func (h *hostile) limit() time.Duration {
	if h.silent {
		return shortly
	}
	return soon
}

// metered counts what comes on a socket.
type metered struct {
	*net.TCPConn
	read *atomic.Int64
}

func (m *metered) Read(p []byte) (int, error) {
	n, err := m.TCPConn.Read(p)
	m.read.Add(int64(n))
	return n, err
}

// TestHostileReceivers: whatever a receiver does, an attempt ends in time, reads
// and takes little, says what happened, disturbs no other, and leaves nothing
// behind for the next.
func TestHostileReceivers(t *testing.T) { playHostile(t, hostileHTTP1(), 32) }

// playHostile calls the receivers, so many at a time.
func playHostile(t *testing.T, rows []hostile, atOnce int) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Run("receivers", func(t *testing.T) {
		defer log.SetOutput(log.Writer())                //nolint:forbidigo // restored
		log.SetOutput(io.Discard)                        //nolint:forbidigo // x/net/http2 has a line for some of it, and no other logger
		defer debug.SetGCPercent(debug.SetGCPercent(20)) // what is garbage is not grown
		calls := make([]func(context.Context) played, len(rows))
		for i := range rows {
			calls[i] = prepare(t, &rows[i])
		}
		neighbour := newNeighbour(t)
		grown := watchMemory()
		results := make([]played, len(rows))
		free := make(chan struct{}, atOnce)
		var running sync.WaitGroup
		for i, call := range calls {
			running.Go(func() {
				free <- struct{}{}
				defer func() { <-free }()
				results[i] = call(t.Context())
			})
		}
		running.Wait()
		// The bound is one attempt's; these were many, and the receivers.
		if n := grown(); n >= 16<<20 {
			t.Errorf("memory grew by %d KiB", n>>10)
		}
		neighbour.check(t)
		for i := range rows {
			t.Run(rows[i].name, func(t *testing.T) { rows[i].check(t, &results[i]) })
		}
	})
	await(t, "the goroutines", func() bool { return runtime.NumGoroutine() <= before })
}

// prepare starts the receiver, and returns what calls it.
func prepare(t *testing.T, h *hostile) func(context.Context) played {
	t.Helper()
	body := h.body
	if body == nil {
		body = []byte(`{"id":"evt_1"}`)
	}
	o := egress.Options{Allow: loopback()}
	so := send.Options{}
	var url string
	none := func() int { return 0 }
	canary, open, heard, sent := none, none, none, func() int64 { return 0 }
	if h.http2 != nil {
		r := h.http2.Start(t)
		url, so.TLS, open, heard = r.URL(), r.ClientTLS(), r.Open, r.Heard
	} else {
		r := receivertest.Start(t, h.steps...)
		url, so.TLS, o.Resolver, canary, sent = r.URL, r.ClientTLS(), r, r.CanaryHits, r.Sent
	}
	dial := guard(t, o)
	var read, conns atomic.Int64
	so.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		conns.Add(1)
		return &metered{TCPConn: c.(*net.TCPConn), read: &read}, nil
	}
	s := send.New(so)
	t.Cleanup(s.Close)
	q := request(t, url, body, h.limit())
	return func(ctx context.Context) played {
		var p played
		for i := range p.attempts {
			began := time.Now()
			p.attempts[i] = s.Send(ctx, q)
			p.waited[i] = time.Since(began)
			if i == 0 {
				await(t, "the rest of what it sends", func() bool { return sent() >= int64(h.then) && heard() >= h.heard && (!h.ended || open() == 0) })
			}
		}
		p.read, p.conns, p.canary = read.Load(), conns.Load(), canary()
		return p
	}
}

func (h *hostile) check(t *testing.T, p *played) {
	t.Helper()
	for i, a := range p.attempts {
		if p.waited[i] > h.limit()+time.Second {
			t.Errorf("the caller waited %s", p.waited[i])
		}
		sane(t, a, h.limit())
		message := ""
		if a.Failure != nil {
			message = a.Failure.Message
		}
		if h.ahead != "" && kindOf(a) == hook.FailureConnect && message == h.ahead {
			continue
		}
		if kindOf(a) != h.kind || a.StatusCode != h.status || !strings.HasPrefix(message, h.message) {
			t.Errorf("attempt %d: status %d, %q, %q; want %d, %q, %q", i+1, a.StatusCode, kindOf(a), message, h.status, h.kind, h.message)
		}
		if !bytes.HasPrefix(a.Body, []byte(h.kept)) {
			t.Errorf("attempt %d: kept %.40q, want %q", i+1, a.Body, h.kept)
		}
	}
	if p.read > 2<<20 {
		t.Errorf("two attempts read %d bytes", p.read)
	}
	if p.conns > 2 {
		t.Errorf("two attempts made %d connections", p.conns)
	}
	if p.canary != 0 {
		t.Errorf("the canary was called %d times", p.canary)
	}
}

// neighbour is a good receiver that gets its deliveries meanwhile.
type neighbour struct {
	cancel   context.CancelFunc
	running  sync.WaitGroup
	attempts []*hook.Attempt
}

func newNeighbour(t *testing.T) *neighbour {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	n := &neighbour{cancel: cancel}
	r := receivertest.Start(t)
	s := sender(t, r)
	n.running.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			n.attempts = append(n.attempts, s.Send(t.Context(), request(t, r.URL, []byte("{}"), patience)))
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	return n
}

func (n *neighbour) check(t *testing.T) {
	t.Helper()
	n.cancel()
	n.running.Wait()
	for i, a := range n.attempts {
		if a.Failure != nil {
			t.Fatalf("delivery %d of %d to a good receiver beside them: %s", i+1, len(n.attempts), a.Failure.Message)
		}
	}
}

// watchMemory returns what tells how much the heap has grown at most, garbage
// included.
func watchMemory() func() uint64 {
	now := func() uint64 {
		s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		metrics.Read(s)
		return s[0].Value.Uint64()
	}
	runtime.GC()
	before := now()
	peak := before
	done := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			peak = max(peak, now())
			select {
			case <-tick.C:
			case <-done:
				return
			}
		}
	})
	return func() uint64 {
		close(done)
		watching.Wait()
		return peak - before
	}
}

// badReceivers is the file of receivers to play; another may be named.
func badReceivers() string {
	if path := os.Getenv("HYPHA_BADRECEIVERS"); path != "" {
		return path
	}
	return "testdata/badreceivers.json"
}
