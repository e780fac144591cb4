package send

import (
	"errors"
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

// appendHead appends a request's line and headers as HTTP/1.1 writes them
// (RFC 9112, sections 3 and 5). The names scratch is for the order of the
// headers, which is that of their names; it is returned to be used again.
func appendHead(out []byte, names []string, u *url.URL, h http.Header, length int) ([]byte, []string, error) {
	target := u.RequestURI()
	authority, err := httpguts.PunycodeHostPort(u.Host)
	if err != nil || authority == "" || !httpguts.ValidHostHeader(authority) || strings.ContainsFunc(target, control) {
		return out, names, errRequest
	}
	out = append(out, "POST "...)
	out = append(out, target...)
	out = append(out, " HTTP/1.1\r\nHost: "...)
	out = append(out, authority...)
	out = append(out, "\r\nContent-Length: "...)
	out = strconv.AppendInt(out, int64(length), 10)
	out = append(out, "\r\n"...)
	names = names[:0]
	for name := range h {
		if !httpguts.ValidHeaderFieldName(name) {
			return out, names, errRequest
		}
		if !framing(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		for _, value := range h[name] {
			if !httpguts.ValidHeaderFieldValue(value) {
				return out, names, errRequest
			}
			out = append(out, name...)
			out = append(out, ": "...)
			out = append(out, textproto.TrimString(value)...)
			out = append(out, "\r\n"...)
		}
	}
	return append(out, "\r\n"...), names, nil
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
