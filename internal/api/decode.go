package api

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/plinqx/hypha/internal/hook"
)

// maxDepth is how deep a body may be nested. Nobody's data is; what reads it
// later may be recursive.
const maxDepth = 128

// reader reads bodies. It is kept between requests.
type reader struct {
	body []byte
	buf  *bytes.Buffer
	dec  *jsontext.Decoder
	// members is the room for an object's members, asked for the names that it is
	// asked for.
	members []member
	asked   []string
}

// usualFields is how many fields an object of a request has at most, in most.
const usualFields = 8

func newReader() *reader {
	buf := new(bytes.Buffer)
	return &reader{buf: buf, dec: jsontext.NewDecoder(buf), asked: make([]string, 0, usualFields)}
}

// What a reader held for a larger body, or more members, is not kept for the
// next request.
const (
	keptBody    = 64 << 10
	keptMembers = 64
)

// release gives back what a call holds. No slice of the body may be used after.
func (a *api) release(c *call) {
	if c.held > 0 {
		a.bodies.release(c.holder(), c.held)
	}
	r := c.reader
	if r == nil || cap(r.body) > keptBody || cap(r.members) > keptMembers {
		return
	}
	clear(r.members)
	*r.buf = bytes.Buffer{}
	r.dec.Reset(r.buf)
	a.readers.Put(r)
}

// readBody reads a JSON body of at most limit bytes into the call's reader.
func (a *api) readBody(c *call, limit int64) error {
	if err := checkMediaType(c.Header); err != nil {
		return err
	}
	if c.ContentLength > limit {
		return tooLarge(limit)
	}
	r, _ := a.readers.Get().(*reader)
	c.reader = r
	var err error
	if r.body, err = a.readAll(c, http.MaxBytesReader(c.w, c.Body, limit), limit, r.body[:0]); err != nil {
		var over *http.MaxBytesError
		if errors.As(err, &over) {
			return tooLarge(limit)
		}
		if code := hook.CodeOf(err); code == hook.CodeUnavailable || code == hook.CodeRateLimited {
			return err
		}
		broken := malformed("", "The body could not be read to its end: it is shorter than was said, or not in well-formed chunks")
		broken.Cause = err
		return broken
	}
	return nil
}

func tooLarge(limit int64) error {
	return &hook.Error{Code: hook.CodePayloadTooLarge, Message: fmt.Sprintf("The body is larger than %d bytes", limit)}
}

// firstRoom is the most that is made for a body before any of it came: a client
// may say that it sends a lot, and then send nothing, on many connections.
const firstRoom = 4 << 10

// readAll reads src, the call's body of at most limit bytes, to its end,
// appending to b. Room is made, and held against what all bodies may take, as
// the body comes.
func (a *api) readAll(c *call, src io.Reader, limit int64, b []byte) ([]byte, error) {
	if c.ContentLength >= 0 {
		limit = c.ContentLength
	}
	room := int64(firstRoom)
	for {
		room = max(512, min(room, limit+1-int64(len(b)))) // one more, to see the end
		if err := a.bodies.hold(c.holder(), room); err != nil {
			return b, err
		}
		c.held += room
		b = slices.Grow(b, int(room))
		// What was kept of another body may have more room than is held for this one.
		for full := len(b) + int(room); len(b) < full; {
			n, err := src.Read(b[len(b):full])
			b = b[:len(b)+n]
			if errors.Is(err, io.EOF) {
				return b, nil
			}
			if err != nil {
				return b, err
			}
		}
		room = int64(len(b))
	}
}

// checkMediaType takes JSON in UTF-8, not compressed.
func checkMediaType(h http.Header) error {
	refuse := func(message string) error {
		return &hook.Error{Code: hook.CodeUnsupportedMediaType, Message: message}
	}
	for _, e := range h["Content-Encoding"] {
		if e != "" && !strings.EqualFold(e, "identity") {
			return refuse("The body must not be compressed: send it without Content-Encoding")
		}
	}
	given := h["Content-Type"]
	if len(given) == 1 && given[0] == "application/json" {
		return nil
	}
	if len(given) != 1 {
		return refuse("The request must have one Content-Type: application/json")
	}
	media, params, err := mime.ParseMediaType(given[0])
	if err != nil || media != "application/json" {
		return refuse("Content-Type must be application/json")
	}
	if charset, ok := params["charset"]; ok && !strings.EqualFold(charset, "utf-8") {
		return refuse("The body must be in UTF-8 (RFC 8259, 8.1)")
	}
	return nil
}

// decode reads a body that is one JSON object: read takes its members, and
// whatever is left is unknown. Check lists what is wrong with what was read. All
// problems come together.
func decode[T any](a *api, c *call, limit int64, read func(*object) T, check func(T) []hook.Detail) (T, error) {
	var none T
	if err := a.readBody(c, limit); err != nil {
		return none, err
	}
	var problems problems
	o, err := c.reader.object(&problems)
	if err != nil {
		return none, err
	}
	v := read(o)
	o.end()
	if check != nil {
		for _, d := range check(v) {
			problems.addNew(d)
		}
	}
	return v, problems.err()
}

// noBody reads the body of an endpoint that takes none: nothing, or {}.
func (a *api) noBody(c *call) error {
	if c.bodiless() {
		return nil
	}
	_, err := decode(a, c, a.o.MaxBody, func(*object) struct{} { return struct{}{} }, nil)
	return err
}

// bodiless reports whether a request has no body, or one without a byte.
func (c *call) bodiless() bool {
	if c.ContentLength >= 0 {
		return c.ContentLength == 0
	}
	// Of unknown length, it may still be empty.
	var first [1]byte
	n, err := io.ReadFull(c.Body, first[:])
	if n == 0 && errors.Is(err, io.EOF) {
		return true
	}
	c.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(first[:n]), c.Body), c.Body}
	return false
}

// problems are what is wrong with a request.
type problems []hook.Detail

func (p *problems) add(path, format string, args ...any) {
	*p = append(*p, hook.Detail{Path: path, Message: fmt.Sprintf(format, args...)})
}

// addNew adds a problem of a path that has none yet: a field that could not be
// read is not said to be missing as well.
func (p *problems) addNew(d hook.Detail) {
	if !slices.ContainsFunc(*p, func(old hook.Detail) bool { return old.Path == d.Path }) {
		*p = append(*p, d)
	}
}

func (p problems) err() error {
	if len(p) == 0 {
		return nil
	}
	return hook.Invalid(p...)
}

// object is one JSON object of a body.
type object struct {
	path     string // in front of its members' names: "" or "events[3]."
	members  []member
	problems *problems
	asked    []string
}

type member struct {
	name  []byte
	value jsontext.Value
	taken bool
}

// object reads the whole body as one object.
func (r *reader) object(p *problems) (*object, error) {
	if err := r.begin(); err != nil {
		return nil, err
	}
	o := &object{problems: p, members: r.members[:0], asked: r.asked[:0]}
	for {
		name, more, err := r.name()
		if err != nil {
			return nil, err
		}
		if !more {
			break
		}
		value, err := r.value()
		if err != nil {
			return nil, err
		}
		o.members = append(o.members, member{name: name, value: value})
	}
	r.members = o.members
	return o, r.finish()
}

// begin opens the body's object.
func (r *reader) begin() error {
	if len(r.body) == 0 {
		return malformed("", "The body is empty; send a JSON object")
	}
	if tooDeep(r.body) {
		return malformed("", fmt.Sprintf("The body is nested deeper than %d levels", maxDepth))
	}
	*r.buf = *bytes.NewBuffer(r.body)
	r.dec.Reset(r.buf)
	if kind := r.dec.PeekKind(); kind != '{' && kind != 0 {
		return malformed("", "The body must be a JSON object")
	}
	_, err := r.dec.ReadToken()
	return syntax(err)
}

// finish sees that nothing follows the object.
func (r *reader) finish() error {
	if _, err := r.dec.ReadToken(); !errors.Is(err, io.EOF) {
		if err == nil {
			return malformed("", "Something follows the JSON object")
		}
		return syntax(err)
	}
	return nil
}

// name reads the next member's name in the object that is open, or its end.
func (r *reader) name() (name []byte, more bool, err error) {
	if r.dec.PeekKind() == '}' {
		_, err := r.dec.ReadToken()
		return nil, false, syntax(err)
	}
	raw, err := r.value()
	if err != nil {
		return nil, false, err
	}
	return unquote(raw), true, nil
}

// value reads a value whole: its very bytes, in the body.
func (r *reader) value() (jsontext.Value, error) {
	v, err := r.dec.ReadValue()
	if err != nil {
		return nil, syntax(err)
	}
	end := r.dec.InputOffset()
	return r.body[end-int64(len(v)) : end : end], nil
}

// unquote is the text of a valid JSON string.
func unquote(raw jsontext.Value) []byte {
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw[1 : len(raw)-1]
	}
	text, err := jsontext.AppendUnquote(nil, raw)
	if err != nil {
		return raw // it was read without error: this can't be
	}
	return text
}

func malformed(path, message string) *hook.Error {
	return &hook.Error{Code: hook.CodeValidation, Message: "The request is not valid; see details", Details: []hook.Detail{{Path: path, Message: message}}}
}

// syntax says where a body is not JSON, or is JSON that two readers may read
// differently (RFC 8259, 4 and 8.2).
func syntax(err error) error {
	if err == nil {
		return nil
	}
	var at *jsontext.SyntacticError
	if !errors.As(err, &at) {
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			return malformed("", "The body ends before the JSON object does")
		}
		return malformed("", "The body is not valid JSON")
	}
	path := fieldPath(at.JSONPointer)
	switch {
	case errors.Is(at, jsontext.ErrDuplicateName):
		return malformed(path, "is given twice")
	case errors.Is(at, io.ErrUnexpectedEOF):
		return malformed("", "The body ends before the JSON object does")
	case at.Err != nil:
		return malformed(path, fmt.Sprintf("The body is not valid JSON at byte %d: %s", at.ByteOffset, at.Err))
	default:
		return malformed(path, fmt.Sprintf("The body is not valid JSON at byte %d", at.ByteOffset))
	}
}

// maxPath bounds a path in an answer: names can be as long as a body.
const maxPath = 200

// fieldPath is a JSON Pointer as details write it: "events[2].data".
func fieldPath(p jsontext.Pointer) string {
	var b strings.Builder
	for token := range p.Tokens() {
		if _, err := strconv.ParseUint(token, 10, 32); err == nil && b.Len() > 0 {
			b.WriteString("[" + token + "]")
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('.')
		}
		b.WriteString(token)
	}
	return shorten(b.String())
}

func shorten(s string) string {
	if len(s) <= maxPath {
		return s
	}
	return strings.ToValidUTF8(s[:maxPath], "") + "..."
}

// tooDeep reports whether brackets nest deeper than maxDepth. It is asked before
// the text is known to be JSON; of what is none it may say either.
func tooDeep(body []byte) bool {
	if bytes.Count(body, []byte("{"))+bytes.Count(body, []byte("[")) <= maxDepth {
		return false
	}
	depth, inString := 0, false
	for i := 0; i < len(body); i++ {
		switch c := body[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return true
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return false
}

// take answers a member's value, nil if it was not given.
func (o *object) take(name string) jsontext.Value {
	o.asked = append(o.asked, name)
	for i := range o.members {
		if m := &o.members[i]; string(m.name) == name {
			m.taken = true
			return m.value
		}
	}
	return nil
}

func (o *object) add(name, format string, args ...any) { o.problems.add(o.path+name, format, args...) }

// require notes that a member is missing.
func (o *object) require(names ...string) {
	for _, name := range names {
		if !slices.ContainsFunc(o.members, func(m member) bool { return string(m.name) == name }) {
			o.add(name, "is required")
		}
	}
}

// end notes the members that nobody asked for.
func (o *object) end() {
	for i := range o.members {
		m := &o.members[i]
		if m.taken {
			continue
		}
		message := "is not a field of this request"
		for _, known := range o.asked {
			if strings.EqualFold(known, string(m.name)) {
				message = "is not a field of this request; did you mean " + known + "?"
			}
		}
		if len(*o.problems) > 2*maxDetails {
			return
		}
		o.problems.add(shorten(o.path+string(m.name)), "%s", message)
	}
}

// text reads a string; nil if it was not given or is none.
func (o *object) text(name string) *string {
	raw := o.take(name)
	if raw == nil {
		return nil
	}
	if raw.Kind() != '"' {
		o.add(name, "must be a string")
		return nil
	}
	s := string(unquote(raw))
	return &s
}

// integer reads a whole number, written without fraction and exponent.
func (o *object) integer(name string) *int64 {
	raw := o.take(name)
	if raw == nil {
		return nil
	}
	if raw.Kind() != '0' || bytes.ContainsAny(raw, ".eE") {
		o.add(name, "must be an integer")
		return nil
	}
	n, err := strconv.ParseInt(string(raw), 10, 64)
	if err != nil {
		o.add(name, "is out of range")
		return nil
	}
	return &n
}

// boolean reads true or false.
func (o *object) boolean(name string) *bool {
	raw := o.take(name)
	if raw == nil {
		return nil
	}
	kind := raw.Kind()
	if kind != 't' && kind != 'f' {
		o.add(name, "must be true or false")
		return nil
	}
	b := kind == 't'
	return &b
}

// texts reads an array of strings of at most most elements.
func (o *object) texts(name string, most int) *[]string {
	raw := o.take(name)
	if raw == nil {
		return nil
	}
	if raw.Kind() != '[' {
		o.add(name, "must be an array of strings")
		return nil
	}
	list, bad := []string{}, false
	dec := jsontext.NewDecoder(bytes.NewReader(raw))
	_, _ = dec.ReadToken() // the text is known to be valid
	for i := 0; dec.PeekKind() != ']'; i++ {
		v, err := dec.ReadValue()
		if err != nil {
			o.add(name, "must be an array of strings")
			return nil
		}
		if i >= most {
			o.add(name, "must have at most %d elements", most)
			return nil
		}
		if v.Kind() != '"' {
			o.add(fmt.Sprintf("%s[%d]", name, i), "must be a string")
			bad = true
			continue
		}
		list = append(list, string(unquote(v)))
	}
	if bad {
		return nil
	}
	return &list
}

// textMap reads an object of strings of at most most members.
func (o *object) textMap(name string, most int) *map[string]string {
	raw := o.take(name)
	if raw == nil {
		return nil
	}
	if raw.Kind() != '{' {
		o.add(name, "must be an object of strings")
		return nil
	}
	out, bad := map[string]string{}, false
	dec := jsontext.NewDecoder(bytes.NewReader(raw))
	_, _ = dec.ReadToken() // the text is known to be valid
	for dec.PeekKind() != '}' {
		n, err := dec.ReadValue()
		if err != nil {
			o.add(name, "must be an object of strings")
			return nil
		}
		key := string(unquote(n))
		v, err := dec.ReadValue()
		if err != nil {
			o.add(name, "must be an object of strings")
			return nil
		}
		if len(out) >= most {
			o.add(name, "must have at most %d members", most)
			return nil
		}
		if v.Kind() != '"' {
			o.add(name+"."+shorten(key), "must be a string")
			bad = true
			continue
		}
		out[key] = string(unquote(v))
	}
	if bad {
		return nil
	}
	return &out
}

// time reads a time; see parseTime.
func (o *object) time(name string) *time.Time {
	raw := o.take(name)
	if raw == nil {
		return nil
	}
	if raw.Kind() == '"' {
		if t, ok := parseTime(string(unquote(raw))); ok {
			return &t
		}
	}
	o.add(name, "must be a time as in RFC 3339, such as 2026-01-31T12:00:00Z")
	return nil
}

// timeOrNull reads a time, or null, which is the zero time.
func (o *object) timeOrNull(name string) *time.Time {
	for i := range o.members {
		if m := &o.members[i]; string(m.name) == name && m.value.Kind() == 'n' {
			o.take(name)
			return new(time.Time)
		}
	}
	return o.time(name)
}

// parseTime reads a time of RFC 3339, of the years 1 to 9999 in UTC. The zero
// time is none: here it says that there was none.
func parseTime(s string) (time.Time, bool) {
	var t time.Time
	// Package time takes a comma before the fraction, as ISO 8601 does.
	if err := t.UnmarshalText([]byte(s)); err != nil || strings.Contains(s, ",") {
		return time.Time{}, false
	}
	// It takes offsets of 24 hours, and of 60 minutes, too (5.6: 23 and 59).
	if _, offset := t.Zone(); offset <= -24*60*60 || offset >= 24*60*60 || strings.HasSuffix(s, ":60") {
		return time.Time{}, false
	}
	t = t.UTC()
	return t, t.Year() >= 1 && t.Year() <= 9999 && !t.IsZero()
}
