package bench

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	// eventType is the type of the events that the harness publishes, unless
	// they have types of their own.
	eventType = "bench.event"

	// anyEventType subscribes to those of spreadType, which typeDigits number.
	anyEventType = eventType + ".*"
	typeDigits   = 4
)

// spreadType is the type of the events for one webhook of those that events
// are shared out among.
func spreadType(hook int) string { return fmt.Sprintf("%s.%0*d", eventType, typeDigits, hook) }

const (
	// requestTimeout bounds one publish from its first byte to the last of the
	// answer; a server that needs longer has failed it.
	requestTimeout = 30 * time.Second

	// maxIdle is how long a connection may rest before it is replaced instead
	// of used again. Servers close idle connections, usually after a minute,
	// and a publish that meets the closing is lost in the middle: neither
	// accepted nor refused.
	maxIdle = 5 * time.Second
)

// An outcome is what became of one publish.
type outcome struct {
	verdict    verdict
	status     int           // of the answer; 0 if there was none
	retryAfter time.Duration // of a refusal; 0 if the server did not say
	retrySaid  bool          // of a refusal: the server said when to try again
	err        error         // of a failure
}

type verdict int

const (
	accepted verdict = iota // 202
	refused                 // 429 or 503: the server said no, and nothing happened
	failed                  // any other answer, or none: the events may or may not be accepted
)

// A publisher publishes one batch at a time: the events numbered first,
// first+1, …, each marked as sent at the given time. It is used by one
// goroutine.
type publisher interface {
	publish(ctx context.Context, first uint64, sentAt time.Time) outcome
	close()
}

// wirePublisher is a publisher on one keep-alive connection. The request is
// built once; a publish patches the markers and writes it.
type wirePublisher struct {
	address string
	tls     *tls.Config // nil: plain
	run     uint32
	types   int // as in wireEvents
	request []byte
	markers []int // where in request the markers are
	numbers []int // where in request the types' numbers are

	conn     net.Conn
	reader   *wireReader
	lastUsed time.Time
	stop     func() bool // detaches conn from the context
}

// wireEvents says what the events of a wirePublisher are.
type wireEvents struct {
	run          uint32
	eventType    string // of all, if types is 0
	types        int    // event n has the spreadType of n mod types
	batch        int
	payloadBytes int
}

// newWirePublisher prepares publishing to the server at base. A batch of one
// goes to /services/events.
func newWirePublisher(base *url.URL, apiKey string, e wireEvents) *wirePublisher {
	path, body, markers, numbers := "/services/events", []byte(nil), []int(nil), []int(nil)
	if e.types > 0 {
		e.eventType = spreadType(0)
	}
	add := func() {
		body = append(body, `{"type":"`+e.eventType...)
		if e.types > 0 {
			numbers = append(numbers, len(body)-typeDigits)
		}
		body = append(body, `","data":`...)
		var at int
		body, at = appendData(body, e.payloadBytes)
		body = append(body, '}')
		markers = append(markers, at)
	}
	if e.batch == 1 {
		add()
	} else {
		path += "/batch"
		body = append(body, `{"events":[`...)
		for i := range e.batch {
			if i > 0 {
				body = append(body, ',')
			}
			add()
		}
		body = append(body, `]}`...)
	}
	head := "POST " + strings.TrimSuffix(base.EscapedPath(), "/") + path + " HTTP/1.1\r\n" +
		"Host: " + base.Host + "\r\n" +
		"Authorization: Bearer " + apiKey + "\r\n" +
		"User-Agent: hypha-bench\r\n" +
		"Content-Type: application/json\r\n" +
		"Content-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n"
	for _, places := range [][]int{markers, numbers} {
		for i := range places {
			places[i] += len(head)
		}
	}
	p := &wirePublisher{
		run: e.run, types: e.types, request: append([]byte(head), body...), markers: markers, numbers: numbers,
	}
	port := base.Port()
	if base.Scheme == "https" {
		setDefault(&port, "443")
		p.tls = &tls.Config{ServerName: base.Hostname(), MinVersion: tls.VersionTLS12}
	}
	setDefault(&port, "80")
	p.address = net.JoinHostPort(base.Hostname(), port)
	return p
}

func (p *wirePublisher) publish(ctx context.Context, first uint64, sentAt time.Time) outcome {
	for i, at := range p.markers {
		marker{run: p.run, number: first + uint64(i), sentAt: sentAt.UnixNano()}.put(p.request[at:])
	}
	for i, at := range p.numbers {
		putDecimal(p.request[at:at+typeDigits], (first+uint64(i))%uint64(p.types))
	}
	answer, err := p.exchange(ctx)
	if err != nil {
		p.close()
		return outcome{verdict: failed, err: err}
	}
	o := outcome{status: answer.status, retryAfter: answer.retryAfter, retrySaid: answer.retrySaid}
	switch answer.status {
	case http.StatusAccepted:
		o.verdict = accepted
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		o.verdict = refused
	default:
		o.verdict = failed
		o.err = fmt.Errorf("the server answered %d %s to a publish: %.300s", answer.status, http.StatusText(answer.status), answer.body)
	}
	if answer.close {
		p.close()
	}
	return o
}

func (p *wirePublisher) exchange(ctx context.Context) (message, error) {
	now := time.Now()
	if p.conn != nil && now.Sub(p.lastUsed) > maxIdle {
		p.close()
	}
	if p.conn == nil {
		if err := p.dial(ctx); err != nil {
			return message{}, err
		}
	}
	if err := p.conn.SetDeadline(now.Add(requestTimeout)); err != nil {
		return message{}, err
	}
	// The deadline above may have overwritten the one that a cancellation set.
	if err := ctx.Err(); err != nil {
		return message{}, err
	}
	if _, err := p.conn.Write(p.request); err != nil {
		return message{}, fmt.Errorf("publishing: %w", err)
	}
	answer, err := p.reader.readResponse()
	if err != nil {
		return message{}, fmt.Errorf("reading the answer to a publish: %w", err)
	}
	p.lastUsed = time.Now()
	if p.reader.br.Buffered() > 0 {
		return message{}, errors.New("the server sent more than one answer to a publish")
	}
	return answer, nil
}

func (p *wirePublisher) dial(ctx context.Context) error {
	dialer := net.Dialer{Timeout: requestTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", p.address)
	if err != nil {
		return fmt.Errorf("connecting to publish: %w", err)
	}
	if p.tls != nil {
		conn = tls.Client(conn, p.tls)
	}
	p.conn, p.reader = conn, newWireReader(conn)
	p.stop = context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return nil
}

func (p *wirePublisher) close() {
	if p.conn != nil {
		p.stop()
		_ = p.conn.Close() // what was sent has been answered, or has failed already
		p.conn = nil
	}
}
