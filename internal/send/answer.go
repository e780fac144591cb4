package send

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/plinqx/hypha/internal/hook"
)

// answer is what came back, and is ours to change.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// readBody reads the first limit bytes of a body and then some, to leave the
// connection clean. The size is what the answer said, or -1: it decides nothing
// but how much room is made. Whatever goes wrong ends the reading and nothing
// else; whole is whether the body's end was reached.
func readBody(body io.Reader, size int64, limit int) (kept []byte, whole bool) {
	if size < 0 {
		size = 512
	}
	kept = make([]byte, 0, min(size, int64(limit)))
	for len(kept) < limit {
		kept = slices.Grow(kept, 1)
		n, err := body.Read(kept[len(kept):min(cap(kept), limit)])
		kept = kept[:len(kept)+n]
		if err != nil {
			return kept, errors.Is(err, io.EOF)
		}
	}
	_, err := io.CopyN(io.Discard, body, int64(maxBody-limit))
	return kept, errors.Is(err, io.EOF)
}

// keptHeader is what is kept of an answer's headers: no cookies, and no more
// than hook.MaxKeptBody bytes as they were sent, the short ones first. So a
// giant costs only itself, and it is always the same ones that stay. The answer
// has no use for its headers any more.
func keptHeader(h http.Header, hide Redactor) http.Header {
	delete(h, "Set-Cookie")
	delete(h, "Set-Cookie2")
	whole := 0
	for name, values := range h {
		whole += headerSize(name, values)
	}
	if whole > hook.MaxKeptBody {
		dropLargest(h)
	}
	for _, values := range h {
		for i, v := range values {
			// Whoever shows a header writes text; a receiver sends any bytes.
			values[i] = strings.ToValidUTF8(hide.text(v), "\uFFFD")
		}
	}
	return h
}

func headerSize(name string, values []string) int {
	size := 0
	for _, v := range values {
		size += len(name) + len(": \r\n") + len(v)
	}
	return size
}

// dropLargest leaves the short ones, as many as there is room for.
func dropLargest(h http.Header) {
	type field struct {
		name string
		size int
	}
	fields := make([]field, 0, len(h))
	for name, values := range h {
		fields = append(fields, field{name, headerSize(name, values)})
	}
	slices.SortFunc(fields, func(a, b field) int {
		return cmp.Or(a.size-b.size, strings.Compare(a.name, b.name))
	})
	room := hook.MaxKeptBody
	for _, f := range fields {
		if room -= f.size; room < 0 {
			delete(h, f.name)
		}
	}
}

// minRedacted is the length from which a value is looked for in an answer:
// shorter ones would be found everywhere.
const minRedacted = 4

const redacted = "****"

// Redactor hides values of ours in what a receiver sent back. It is made once
// for a webhook, and used for each of its attempts.
type Redactor []string

// NewRedactor makes one that looks for the values as they stand, without the
// scheme that a credential begins with ("Bearer "), and as an echo in JSON, in
// HTML or in a form would write them.
func NewRedactor(values []string) Redactor {
	var all []string
	for _, v := range values {
		all = append(all, v)
		if _, credential, ok := strings.Cut(v, " "); ok {
			all = append(all, credential)
		}
	}
	var r Redactor
	for _, v := range all {
		if len(v) < minRedacted {
			continue
		}
		r = append(r, v)
		if !strings.ContainsFunc(v, needsEscape) {
			continue
		}
		quoted := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(v)
		r = append(r, quoted,
			strings.ReplaceAll(quoted, "/", `\/`),
			strings.NewReplacer("&", `\u0026`, "<", `\u003c`, ">", `\u003e`).Replace(quoted),
			strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&#34;", "'", "&#39;").Replace(v),
			url.QueryEscape(v), url.PathEscape(v))
	}
	// The long ones first, lest a value that begins another leaves the rest of
	// that one standing.
	slices.SortFunc(r, func(a, b string) int { return cmp.Or(len(b)-len(a), strings.Compare(a, b)) })
	return slices.Compact(r)
}

func needsEscape(c rune) bool {
	return (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && c != '-' && c != '_' && c != '.'
}

func (r Redactor) body(b []byte) []byte {
	for _, v := range r {
		if len(v) <= len(b) && bytes.Contains(b, []byte(v)) {
			b = bytes.ReplaceAll(b, []byte(v), []byte(redacted))
		}
	}
	return b
}

func (r Redactor) text(s string) string {
	for _, v := range r {
		s = strings.ReplaceAll(s, v, redacted)
	}
	return s
}

// reach is how far a value that begins inside of what is kept may stand out of
// it.
func (r Redactor) reach() int {
	if len(r) == 0 {
		return 0
	}
	return min(len(r[0]), maxBody-hook.MaxKeptBody)
}
