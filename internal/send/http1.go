package send

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/plinqx/hypha/internal/contain"
	"github.com/plinqx/hypha/internal/hook"
)

const (
	// maxCopied is how much is written at once, while nobody reads the answer.
	// So much any socket takes without a reader at its other end.
	maxCopied = 16 << 10
	// maxKeptBuffer is the largest buffer that the next attempt takes over.
	maxKeptBuffer = 4 * maxCopied
	// writeGrace is what a write gets to end in when all of the answer is there:
	// its goroutine may not have run yet.
	writeGrace = spare / 2
)

var (
	// errHead is what follows the last byte that is read of heads.
	errHead = errors.New("the answer's head is too long")
	// errFields is why a head is refused that is short enough.
	errFields = errors.New("the answer's head has too many fields")
	// errVersion is why one is refused that could be read.
	errVersion = errors.New("the answer is not of HTTP/1")
	// errStatus is why one is refused whose status looks like a number to Go.
	errStatus = errors.New("the answer's status is not of three digits")
	// errUnsent is why an exchange failed before it began.
	errUnsent = errors.New("nothing was sent")
)

// work is what an attempt writes and reads with. The next one takes it over.
type work struct {
	out []byte        // what is written first: the head, and as much of the body as fits
	in  *bufio.Reader // reads from the work itself

	guard *contain.Guard

	// Of the exchange.
	c    *conn
	tr   *trace
	left int64 // bytes that may be read yet
}

func newWork() *work {
	w := &work{}
	w.in = bufio.NewReader(w)
	return w
}

// Read is for the buffered reader. It bounds what is read, and notes when that
// begins.
func (w *work) Read(p []byte) (int, error) {
	if w.left <= 0 {
		return 0, errHead
	}
	n, err := w.c.Read(p[:min(int64(len(p)), w.left)])
	w.left -= int64(n)
	if n > 0 && !w.tr.answered() {
		w.tr.start(&w.tr.first)
	}
	return n, err
}

// free lets go of all but the buffers.
func (w *work) free() {
	w.c, w.tr = nil, nil
	if cap(w.out) > maxKeptBuffer {
		w.out = nil
	}
}

// prepare takes what an attempt works with, and writes the request's head there. That
// comes before any connection, of HTTP/2 too: what is no request is not sent.
func (s *Sender) prepare(r *Request) (*work, error) {
	w, ok := s.work.Get().(*work)
	if !ok {
		w = newWork()
		w.guard = s.o.Guard
	}
	var err error
	w.out, err = r.Head.append(w.out[:0], r.Header, len(r.Body))
	return w, err
}

// overHTTP1 makes an attempt on a connection, and keeps that or closes it. One that
// was kept may be closed by the time we write: if nothing was sent, that is
// errUnsent.
func (s *Sender) overHTTP1(ctx context.Context, now time.Time, c *conn, r *Request, w *work, tr *trace) (answer, error) {
	head, rest := len(w.out), r.Body
	n := min(len(rest), max(0, maxCopied-head))
	w.out, rest = append(w.out, rest[:n]...), rest[n:]
	a, fit, err := w.exchangeOrClose(ctx, c, r, rest, tr)
	w.out = w.out[:head] // for another try
	if fit && !r.Head.last && !httpguts.HeaderValuesContainsToken(r.Header["Connection"], "close") {
		s.pool.put(c, now)
	} else {
		c.discard()
	}
	return a, err
}

// exchangeOrClose is exchange, after whose panic the connection is closed.
func (w *work) exchangeOrClose(ctx context.Context, c *conn, r *Request, rest []byte, tr *trace) (a answer, fit bool, err error) {
	ended := false
	defer func() {
		if !ended {
			c.discard()
		}
	}()
	a, fit, err = w.exchange(ctx, c, r, rest, tr)
	ended = true
	return a, fit, err
}

// exchange writes what is ready and the rest of the body, and reads the answer.
// It reports whether the connection is fit for another request; if not, it is to
// be closed.
func (w *work) exchange(ctx context.Context, c *conn, r *Request, rest []byte, tr *trace) (a answer, fit bool, err error) {
	if err := ctx.Err(); err != nil {
		return answer{}, false, err
	}
	w.c, w.tr, w.left = c, tr, maxHeader
	w.in.Reset(w)
	end := tr.began.Add(r.Timeout)
	if err := c.SetDeadline(end); err != nil && tr.kept {
		return answer{}, false, errUnsent
	}
	stop := context.AfterFunc(ctx, c.breakOff)
	defer func() {
		// If it has begun to break off, the connection is of no use any more.
		fit = stop() && fit
	}()

	sent, err := c.write(w.out)
	if err != nil && !sent && tr.kept && !isTimeout(err) {
		return answer{}, false, errUnsent
	}
	out := writing{err: err, ended: true}
	switch {
	case err != nil:
		lastWords(c, end)
	case len(rest) > 0:
		// A receiver may answer before it has read all, and read no more then.
		out = writing{done: make(chan error, 1)}
		go func(done chan<- error) {
			defer func() {
				if p := recover(); p != nil {
					done <- w.guard.Caught(contain.Delivery, "the writing of a request", p, "tenant", r.Tenant)
					c.discard() // no answer is to be waited for
				}
			}()
			_, err := c.write(rest)
			if err != nil {
				lastWords(c, end)
			}
			tr.end(&tr.wrote)
			done <- err
		}(out.done)
	default:
		tr.end(&tr.wrote)
	}

	resp, err := w.readHead() //nolint:bodyclose // closing would read the body to its end, however long
	if err != nil {
		// The first of the two errors says why; closing brings the other.
		out.look()
		c.discard()
		if out.err != nil && (!tr.answered() || isTimeout(err)) {
			err = out.err
		}
		out.wait()
		return answer{}, false, err
	}
	a = answer{status: resp.StatusCode, header: resp.Header}
	fit = a.status != http.StatusSwitchingProtocols
	if fit {
		// The status has decided. The body gets a moment of its own.
		if buffered := int64(w.in.Buffered()); resp.ContentLength < 0 || resp.ContentLength > buffered {
			w.left = maxWireBody
			_ = c.SetDeadline(time.Now().Add(bodyLimit(tr, r.Timeout))) // if it's closed, reading will tell
		}
		a.body, fit = readBody(resp.Body, resp.ContentLength, hook.MaxKeptBody+r.Redact.reach())
	}
	fit = fit && !resp.Close && c.settled(w.in) && out.within(writeGrace)
	if !fit {
		c.discard()
		out.wait()
	}
	return a, fit, nil
}

// readHead reads the answer's head, and the interim ones before it (RFC 9110,
// section 15.2). A 101 is an answer: nothing follows it that is HTTP.
func (w *work) readHead() (*http.Response, error) {
	for {
		resp, err := http.ReadResponse(w.in, nil)
		switch {
		case err != nil && w.left <= 0:
			return nil, errHead // the parser takes the end for a broken line
		case err != nil:
			return nil, err
		case resp.ProtoMajor != 1:
			return nil, errVersion
		case resp.Status[0] < '0' || resp.Status[0] > '9':
			return nil, errStatus
		case int(maxHeader-w.left) > maxFields*minField && fields(resp.Header) > maxFields:
			return nil, errFields // counted only if there can be so many
		}
		if resp.StatusCode < 100 || resp.StatusCode > 199 || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp, nil
		}
	}
}

// fields counts the lines of a head.
func fields(h http.Header) int {
	n := 0
	for _, values := range h {
		n += len(values)
	}
	return n
}

// lastWords gives an answer a moment to be read that came before the receiver
// hung up on our writing.
func lastWords(c *conn, end time.Time) {
	soon := time.Now().Add(spare)
	if soon.After(end) {
		soon = end
	}
	_ = c.SetReadDeadline(soon) // if it's closed there is nothing to read either
}

// writing is a write that goes on while the answer is read.
type writing struct {
	done  chan error
	ended bool
	err   error // once it has ended
}

// look takes notice if it has ended.
func (w *writing) look() {
	if w.ended {
		return
	}
	select {
	case w.err = <-w.done:
		w.ended = true
	default:
	}
}

// within reports whether it ends so soon, and as it should.
func (w *writing) within(limit time.Duration) bool {
	if w.look(); !w.ended {
		late := time.NewTimer(limit)
		defer late.Stop()
		select {
		case w.err = <-w.done:
			w.ended = true
		case <-late.C:
		}
	}
	return w.ended && w.err == nil
}

// wait waits for its end, which closing the connection brings.
func (w *writing) wait() {
	if !w.ended {
		w.err = <-w.done
		w.ended = true
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}
