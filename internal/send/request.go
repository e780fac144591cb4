package send

import (
	"errors"
	"maps"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// errRequest is why a request is not sent that would be another one on the wire
// than its parts say: a line break in a value begins a header of its own.
var errRequest = errors.New("the request can't be written as HTTP")

// Head is what is the same in all requests for a webhook, written out as
// HTTP/1.1 has it. It is made once for a revision of the webhook: to check and
// sort the headers was a fortieth of what an event costs. It is safe for
// concurrent use.
type Head struct {
	header http.Header // what of it stays the same, for HTTP/2
	start  []byte      // up to the length
	lines  []line      // in the order of their names
	last   bool        // the connection is not to be used again
	err    error       // why it can't be written
}

// line is one header that varies, or some in a row that don't.
type line struct {
	name string // "" for those that don't vary
	text []byte // up to the value
	ours bool   // a value is not sent: see framing
}

// NewHead prepares requests to u with the headers h, which must not be changed
// any more, and those that vary, in the form that [http.Header] keys have. What
// of h is also among those is not sent.
func NewHead(u *url.URL, h http.Header, varying ...string) *Head {
	head := &Head{header: maps.Clone(h)}
	for _, name := range varying {
		delete(head.header, name)
	}
	head.last = httpguts.HeaderValuesContainsToken(head.header["Connection"], "close")
	head.err = head.write(u, varying)
	return head
}

// write appends the request's line and headers (RFC 9112, sections 3 and 5).
func (h *Head) write(u *url.URL, varying []string) error {
	target := u.RequestURI()
	authority, err := httpguts.PunycodeHostPort(u.Host)
	if err != nil || authority == "" || !httpguts.ValidHostHeader(authority) || strings.ContainsFunc(target, control) {
		return errRequest
	}
	h.start = []byte("POST " + target + " HTTP/1.1\r\nHost: " + authority + "\r\nContent-Length: ")
	names := slices.AppendSeq(slices.Clone(varying), maps.Keys(h.header))
	slices.Sort(names)
	fixed := []byte("\r\n") // ends the line of the length
	for _, name := range slices.Compact(names) {
		if !httpguts.ValidHeaderFieldName(name) {
			return errRequest
		}
		values, ok := h.header[name]
		switch {
		case !ok:
			if len(fixed) > 0 {
				h.lines = append(h.lines, line{text: fixed})
				fixed = nil
			}
			h.lines = append(h.lines, line{name: name, text: []byte(name + ": "), ours: framing(name)})
		case !framing(name):
			if fixed, err = appendLines(fixed, []byte(name+": "), values); err != nil {
				return err
			}
		default:
		}
	}
	h.lines = append(h.lines, line{text: append(fixed, "\r\n"...)})
	return nil
}

// append appends the head of a request with those of its headers that vary, and
// a body of the length.
func (h *Head) append(out []byte, varying http.Header, length int) ([]byte, error) {
	if h.err != nil {
		return out, h.err
	}
	out = append(out, h.start...)
	out = strconv.AppendInt(out, int64(length), 10)
	known := 0
	for i := range h.lines {
		l := &h.lines[i]
		if l.name == "" {
			out = append(out, l.text...)
			continue
		}
		values, ok := varying[l.name]
		if !ok {
			continue
		}
		if known++; l.ours {
			continue
		}
		var err error
		if out, err = appendLines(out, l.text, values); err != nil {
			return out, err
		}
	}
	if known != len(varying) {
		return out, errRequest // lest a header is left out that somebody counts on
	}
	return out, nil
}

// appendLines appends the lines of one header. The name has its colon with it.
func appendLines(out, name []byte, values []string) ([]byte, error) {
	for _, value := range values {
		if !httpguts.ValidHeaderFieldValue(value) {
			return out, errRequest
		}
		out = append(out, name...)
		out = append(out, textproto.TrimString(value)...)
		out = append(out, "\r\n"...)
	}
	return out, nil
}

// with is all headers of a request, for HTTP/2.
func (h *Head) with(varying http.Header) http.Header {
	all := make(http.Header, len(h.header)+len(varying))
	maps.Copy(all, h.header)
	maps.Copy(all, varying)
	return all
}

func control(c rune) bool { return c < ' ' || c == 0x7f }

// framing reports whether a header says where a request goes or ends. Those are
// ours alone, however they are spelled.
func framing(name string) bool {
	switch len(name) {
	case len("Host"):
		return strings.EqualFold(name, "Host")
	case len("Trailer"):
		return strings.EqualFold(name, "Trailer")
	case len("Content-Length"):
		return strings.EqualFold(name, "Content-Length")
	case len("Transfer-Encoding"):
		return strings.EqualFold(name, "Transfer-Encoding")
	default:
		return false
	}
}
