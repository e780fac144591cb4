package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// badInput is a row of testdata/badinputs*.json: one request that nobody should
// send, or that looks as if nobody should, and what has to come of it.
type badInput struct {
	Group, ID, Level, Why string

	Method, Path string
	// Headers are besides the credentials; in the groups about credentials they
	// are all there is.
	Headers map[string]string
	Body    json.RawMessage
	Raw     string
	RawB64  string `json:"raw_b64"`
	// Gen makes the body, or the rest of the request: see generate.
	Gen string
	// Wire is the whole request as it goes over the connection.
	Wire string
	// HalfClose ends our side of the connection after the request.
	HalfClose bool `json:"half_close"`
	Repeat    int

	ExpectStatus []int `json:"expect_status"`
	// ExpectCode is the error's code, ExpectPath the path of one of its details,
	// ExpectAllow the header Allow.
	ExpectCode  string `json:"expect_code"`
	ExpectPath  string `json:"expect_path"`
	ExpectAllow string `json:"expect_allow"`

	// What has to come of it besides the answer. DeliveryExpect is looked at in
	// TestBlockedAtDelivery; PortalCheck is for a browser.
	Then                 string
	DeliverCheck         string         `json:"deliver_check"`
	DeliveryExpect       string         `json:"delivery_expect"`
	PortalCheck          string         `json:"portal_check"`
	ReadbackMasked       bool           `json:"readback_masked"`
	ReadbackMustNotEqual map[string]any `json:"readback_must_not_equal"`
	MaxSeconds           float64        `json:"max_seconds"`
	MaxRows              int            `json:"max_rows"`
}

func readBadInputs(t *testing.T, name string) []badInput {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields() // a row that asks for what is not checked is no row
	var rows []badInput
	if err := dec.Decode(&rows); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return rows
}

// badRig is a server that gets bad input, and what is needed to tell how it
// fares.
type badRig struct {
	p        *programProcess
	c        client
	receiver *arrivals
	front    *httptest.Server // where the receiver is reached
	secret   string           // of the receiver's webhook
	readOnly string           // a key
	vars     map[string]string
	unknown  *strings.Replacer // turns the other tenant's ids into nobody's
	webhooks int               // how many there have to be
}

// The one address that the server may reach besides the public ones. It is not
// the first of the loopback's, so that every name and spelling of that one is
// refused as it is anywhere else.
const badReceiverHost = "127.0.0.2"

func newBadRig(t *testing.T, store ...string) *badRig {
	t.Helper()
	b := &badRig{}
	b.p = startProgram(t, append(store,
		"HYPHA_BOOTSTRAP_API_KEY="+testKey, "HYPHA_BOOTSTRAP_OPERATOR_KEY="+operatorKey,
		"HYPHA_BOOTSTRAP_EMAIL="+testEmail, "HYPHA_BOOTSTRAP_PASSWORD="+testPassword,
	), "serve", "--listen", "127.0.0.1:0", "--allow-egress", badReceiverHost+"/32", "--log-level", "debug")
	b.c = client{b.p.url, testKey}
	b.receiver = newArrivals(t, nil)
	listener, err := net.Listen("tcp", badReceiverHost+":0")
	if err != nil {
		t.Fatal(err)
	}
	second := &httptest.Server{Listener: listener, Config: &http.Server{Handler: b.receiver.Config.Handler}}
	second.Start()
	t.Cleanup(second.Close)
	b.front = second
	var webhook string
	webhook, b.secret = b.c.createWebhook(t, second.URL, "*")
	b.webhooks = 1

	var key struct{ Key string }
	b.c.must(t, http.MethodPost, "/api-keys", `{"name":"reader","scopes":["webhooks:read"]}`, &key)
	b.readOnly = key.Key
	var session struct{ Token string }
	b.c.must(t, http.MethodPost, "/auth/login", map[string]string{"email": testEmail, "password": testPassword}, &session)

	var tenant struct{ ID string }
	client{b.p.url, operatorKey}.must(t, http.MethodPost, "/tenants", `{"name":"other"}`, &tenant)
	otherKey := b.keyOf(t, tenant.ID)
	other := client{b.p.url, otherKey}
	otherWebhook, _ := other.createWebhook(t, "https://hooks.example.com/in", "other.*")
	var otherEvent struct{ ID string }
	other.must(t, http.MethodPost, "/events", `{"type":"a.b","data":{}}`, &otherEvent)
	b.vars = map[string]string{
		"INGEST": "/services/events", "KEY": testKey, "READONLY_KEY": b.readOnly, "WEBHOOK_ID": webhook,
		"KEY_UPPERCASED": strings.ToUpper(testKey), "KEY_LAST_CHAR_CHANGED": testKey[:len(testKey)-1] + "x",
		"SESSION": "session=" + session.Token, "SESSION_TOKEN": session.Token, "OTHER_TENANT_KEY": otherKey,
		"OTHER_TENANT_WEBHOOK_ID": otherWebhook, "OTHER_TENANT_EVENT_ID": otherEvent.ID, "OTHER_TENANT_ID": tenant.ID,
		"CNAME_TO_LOCALHOST": "cname.hooks.example.com", "NAT64_HOST": "nat64.hooks.example.com",
		"RECEIVER": second.URL,
	}
	const nobody = "01jd6c3v7genxa5fhm2rj8wq4t"
	b.unknown = strings.NewReplacer(otherWebhook, "wh_"+nobody, otherEvent.ID, "evt_"+nobody)
	return b
}

// keyOf makes an API key for a tenant, as its operator.
func (b *badRig) keyOf(t *testing.T, tenant string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.p.url+"/services/api-keys", strings.NewReader(`{"name":"first"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+operatorKey)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Hypha-Tenant", tenant)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var made struct{ Key string }
	if err := json.NewDecoder(resp.Body).Decode(&made); err != nil || made.Key == "" {
		t.Fatalf("no key for the tenant: %s, %v", resp.Status, err)
	}
	return made.Key
}

// expand puts in what a row's text stands for: {KEY}, and @@repeat:c:n@@.
func (b *badRig) expand(s string) string {
	for name, value := range b.vars {
		s = strings.ReplaceAll(s, "{"+name+"}", value)
	}
	return repeated.ReplaceAllStringFunc(s, func(match string) string {
		m := repeated.FindStringSubmatch(match)
		n, _ := strconv.Atoi(m[2]) // digits, by the expression
		return strings.Repeat(m[1], n)
	})
}

var repeated = regexp.MustCompile(`(?s)@@repeat:(.+?):([0-9]+)@@`)

// body is what a row sends, nil if nothing.
func (b *badRig) body(t *testing.T, row *badInput) []byte {
	t.Helper()
	switch {
	case row.Gen != "":
		return generate(t, row.Gen)
	case row.RawB64 != "":
		raw, err := base64.StdEncoding.DecodeString(row.RawB64)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	case row.Raw != "":
		return []byte(b.expand(row.Raw))
	case row.Body != nil:
		return []byte(b.expand(string(row.Body)))
	default:
		return nil
	}
}

// generate makes the bodies that would be too long to write down.
func generate(t *testing.T, gen string) []byte {
	t.Helper()
	kind, rest, _ := strings.Cut(gen, ":")
	n, err := strconv.Atoi(rest[strings.LastIndexByte(rest, ':')+1:])
	if err != nil && kind != "smuggle" {
		t.Fatalf("gen %q: %v", gen, err)
	}
	list := func(write func(i int) string) string {
		parts := make([]string, n)
		for i := range parts {
			parts[i] = write(i)
		}
		return strings.Join(parts, ",")
	}
	switch kind {
	case "smuggle":
		return []byte("0\r\n\r\n")
	case "gzip":
		var buf bytes.Buffer
		w := gzip.NewWriter(&buf)
		if _, err := io.CopyN(w, zeros{}, int64(n)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return buf.Bytes()
	case "subscriptions":
		return fmt.Appendf(nil, `{"name":"n","url":"https://hooks.example.com/in","events":[%s]}`, list(func(i int) string { return fmt.Sprintf(`"t.e%d"`, i) }))
	case "headers":
		return fmt.Appendf(nil, `{"name":"n","url":"https://hooks.example.com/in","events":["t.e"],"headers":{%s}}`, list(func(i int) string { return fmt.Sprintf(`"X-H%d":"v"`, i) }))
	case "batch":
		return fmt.Appendf(nil, `{"events":[%s]}`, list(func(int) string { return `{"type":"a.b","data":1}` }))
	case "members":
		return fmt.Appendf(nil, `{"type":"a.b","data":{},%s}`, list(func(i int) string { return fmt.Sprintf(`"m%d":1`, i) }))
	case "nested": // arrays in data, this deep
		return fmt.Appendf(nil, `{"type":"a.b","data":%s%s}`, strings.Repeat("[", n), strings.Repeat("]", n))
	case "nested-objects":
		return fmt.Appendf(nil, `{"type":"a.b","data":%s1%s}`, strings.Repeat(`{"a":`, n), strings.Repeat("}", n))
	default:
		t.Fatalf("nothing makes %q", gen)
		return nil
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// wire is a row's request as it goes over the connection. Nothing is mended: a
// path with spaces goes out with spaces.
func (b *badRig) wire(t *testing.T, row *badInput) []byte {
	t.Helper()
	host := strings.TrimPrefix(b.p.url, "http://")
	if row.Wire != "" {
		return []byte(strings.ReplaceAll(b.expand(row.Wire), "{HOST}", host))
	}
	body := b.body(t, row)
	headers := map[string]string{"Host": host, "Connection": "close"}
	own := row.Group == "auth_refuse" || row.Group == "csrf_refuse"
	if !own {
		headers["Authorization"] = "Bearer " + testKey
	}
	if body != nil {
		headers["Content-Type"] = "application/json"
		headers["Content-Length"] = strconv.Itoa(len(body))
	}
	if row.Gen == "smuggle:cl.te" {
		headers["Transfer-Encoding"] = "chunked"
	}
	for name, value := range row.Headers {
		headers[http.CanonicalHeaderKey(name)] = b.expand(value)
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "%s %s HTTP/1.1\r\n", row.Method, b.expand(row.Path))
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		fmt.Fprintf(&out, "%s: %s\r\n", name, headers[name])
	}
	out.WriteString("\r\n")
	out.Write(body)
	return out.Bytes()
}

// answered is what came back.
type answered struct {
	status int
	header http.Header
	body   []byte
}

func (a *answered) String() string {
	return fmt.Sprintf("%d %v\n%.2000s", a.status, a.header, a.body)
}

// exchange sends bytes and reads one answer.
func exchange(address, method string, wire []byte, halfClose bool, limit time.Duration) (*answered, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return nil, err
	}
	// The server may answer and close before it has read all: its answer counts.
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(wire)
		if tcp, ok := conn.(*net.TCPConn); ok && err == nil && halfClose {
			err = tcp.CloseWrite()
		}
		sent <- err
	}()
	r := bufio.NewReader(conn)
	for {
		resp, err := http.ReadResponse(r, &http.Request{Method: method})
		if err != nil {
			return nil, errors.Join(err, <-sent)
		}
		if resp.StatusCode < http.StatusOK {
			continue
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return nil, err
		}
		_ = conn.Close()
		_ = errors.Join(<-sent) // the answer came, whatever became of the rest
		return &answered{resp.StatusCode, resp.Header, body}, nil
	}
}

func (b *badRig) send(t *testing.T, row *badInput, wire []byte) *answered {
	t.Helper()
	limit := 30 * time.Second
	if row.MaxSeconds > 0 {
		// Ten times, since this machine may be busy: what is looked for is a
		// server that does work without bound.
		limit = time.Duration(10 * row.MaxSeconds * float64(time.Second))
	}
	method := row.Method
	if row.Wire != "" {
		method, _, _ = strings.Cut(row.Wire, " ")
	}
	if method == http.MethodConnect {
		method = http.MethodGet // the answer has a body all the same
	}
	a, err := exchange(strings.TrimPrefix(b.p.url, "http://"), method, wire, row.HalfClose, limit)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	return a
}

// run sends a row and checks what came of it.
func (b *badRig) run(t *testing.T, row *badInput) {
	t.Helper()
	before := b.count(t)
	wire := b.wire(t, row)
	a := b.send(t, row, wire)
	if !slices.Contains(row.ExpectStatus, a.status) {
		t.Errorf("%s: got %s, want %v (%s)\nsent %.500q", row.Why, a, row.ExpectStatus, row.Level, wire)
	}
	checkAnswer(t, row, a)
	path, _, _ := strings.Cut(row.Path, "?")
	if row.Method == http.MethodPost && path == "/services/webhooks" && a.status == http.StatusCreated {
		b.webhooks++
		b.readBack(t, row, a)
	}
	if row.MaxRows > 0 && a.status == http.StatusOK {
		var list struct{ Data []json.RawMessage }
		if err := json.Unmarshal(a.body, &list); err != nil || len(list.Data) > row.MaxRows {
			t.Errorf("%d rows, want at most %d; %v", len(list.Data), row.MaxRows, err)
		}
	}
	if row.Group == "tenant_isolation" {
		nobodys := b.send(t, row, []byte(b.unknown.Replace(string(wire))))
		if a.status != nobodys.status || !bytes.Equal(a.body, nobodys.body) {
			t.Errorf("another tenant's answers %s\nnobody's answers %s", a, nobodys)
		}
	}
	var published struct {
		ID         string
		Deliveries int
		Duplicate  bool
	}
	if a.status == http.StatusAccepted && row.Method == http.MethodPost {
		if err := json.Unmarshal(a.body, &published); err != nil {
			t.Errorf("%v: %s", err, a)
		}
	}
	for range row.Repeat - 1 {
		again, first := b.send(t, row, wire), published
		if err := json.Unmarshal(again.body, &published); err != nil || again.status != a.status || !published.Duplicate || published.ID != first.ID || published.Deliveries != first.Deliveries {
			t.Errorf("sent again: %s\nfirst: %s", again, a)
		}
	}
	if row.DeliverCheck != "" {
		b.delivered(t, published.ID, wire)
	}
	switch row.Then {
	case "":
	case "list length unchanged":
		if after := b.count(t); after != before {
			t.Errorf("there were %d webhooks, and are %d", before, after)
		}
	case "1 event stored, 1 delivery per endpoint":
		var list struct {
			Data []struct{ WebhookID string }
		}
		b.c.must(t, http.MethodGet, "/webhooks/deliveries?eventId="+published.ID, nil, &list)
		seen := map[string]bool{}
		for _, d := range list.Data {
			if seen[d.WebhookID] {
				t.Errorf("webhook %s gets it twice", d.WebhookID)
			}
			seen[d.WebhookID] = true
		}
		if len(list.Data) != published.Deliveries || len(list.Data) == 0 {
			t.Errorf("%d deliveries, and %d were answered", len(list.Data), published.Deliveries)
		}
	default:
		t.Errorf("nothing checks that %q", row.Then)
	}
}

// checkAnswer holds an answer against what the contract says of all of them.
func checkAnswer(t *testing.T, row *badInput, a *answered) {
	t.Helper()
	text := string(a.body)
	if a.status >= http.StatusBadRequest {
		for _, inner := range []string{"goroutine ", ".go:", "jsontext", "json: ", "sqlite", "SQL", "127.0.0.1", testKey} {
			if strings.Contains(text, inner) && !strings.Contains(row.Wire+row.Path, inner) {
				t.Errorf("the answer tells of the inside: %q in %s", inner, a)
			}
		}
	}
	if a.header.Get("X-Request-Id") == "" {
		// It never came to a handler: what is not HTTP is refused before.
		if row.Wire == "" && row.Gen == "" || a.status < 400 {
			t.Errorf("no X-Request-Id: %s", a)
		}
		return
	}
	if a.header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("no nosniff: %s", a)
	}
	if a.status < http.StatusBadRequest || row.Method == http.MethodHead {
		return
	}
	if got := a.header.Get("Content-Type"); got != "application/json" {
		t.Errorf("Content-Type %q: %s", got, a)
	}
	var v struct {
		Error struct {
			Message, Code string
			Details       []struct{ Path, Message string }
		}
	}
	dec := json.NewDecoder(bytes.NewReader(a.body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&v); err != nil || v.Error.Message == "" || v.Error.Code == "" {
		t.Errorf("not the shape of an error (%v): %s", err, a)
	}
	statuses := map[string]int{
		"VALIDATION_ERROR": 400, "UNAUTHORIZED": 401, "FORBIDDEN": 403, "NOT_FOUND": 404, "METHOD_NOT_ALLOWED": 405, "CONFLICT": 409,
		"PAYLOAD_TOO_LARGE": 413, "UNSUPPORTED_MEDIA_TYPE": 415, "RATE_LIMITED": 429, "INTERNAL_ERROR": 500, "UNAVAILABLE": 503,
	}
	if statuses[v.Error.Code] != a.status || a.status >= http.StatusInternalServerError {
		t.Errorf("code %q: %s", v.Error.Code, a)
	}
	if v.Error.Code == "VALIDATION_ERROR" && len(v.Error.Details) == 0 {
		t.Errorf("no details: %s", a)
	}
	if (a.status == http.StatusMethodNotAllowed) != (a.header.Get("Allow") != "") || row.ExpectAllow != "" && row.ExpectAllow != a.header.Get("Allow") {
		t.Errorf("Allow %q, want %q: %s", a.header.Get("Allow"), row.ExpectAllow, a)
	}
	if row.ExpectCode != "" && row.ExpectCode != v.Error.Code {
		t.Errorf("code %s, want %s", v.Error.Code, row.ExpectCode)
	}
	if row.ExpectPath != "" && !slices.ContainsFunc(v.Error.Details, func(d struct{ Path, Message string }) bool { return d.Path == row.ExpectPath }) {
		t.Errorf("no detail names %q: %s", row.ExpectPath, a)
	}
}

// readBack reads a webhook that was taken, and compares it with what was asked
// for.
func (b *badRig) readBack(t *testing.T, row *badInput, made *answered) {
	t.Helper()
	var asked, first, shown map[string]any
	if err := json.Unmarshal(made.body, &first); err != nil {
		t.Fatal(err)
	}
	b.c.must(t, http.MethodGet, fmt.Sprintf("/webhooks/%v", first["id"]), nil, &shown)
	if err := json.Unmarshal(b.body(t, row), &asked); err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{"name", "url", "description", "timeoutMs"} {
		if want, ok := asked[field]; ok && (shown[field] != want || first[field] != want) {
			t.Errorf("%s: asked for %.200q, made %.200q, shown %.200q", field, want, first[field], shown[field])
		}
	}
	if _, ok := shown["secret"]; ok {
		t.Errorf("the secret is shown: %v", shown)
	}
	for field, not := range row.ReadbackMustNotEqual {
		if shown[field] == not {
			t.Errorf("%s is %v, which somebody asked for", field, not)
		}
	}
	if row.ReadbackMasked {
		whole := fmt.Sprint(shown)
		if secret, ok := asked["secret"].(string); ok && strings.Contains(whole+string(made.body), secret) {
			t.Errorf("the secret that was given is shown: %v", shown)
		}
		headers, _ := asked["headers"].(map[string]any)
		for name, value := range headers {
			if got := shown["headers"].(map[string]any)[name]; got == value || got == nil {
				t.Errorf("header %s is shown as %v", name, got)
			}
		}
	}
}

// delivered waits until the receiver has an event, and compares its data with
// what was sent.
func (b *badRig) delivered(t *testing.T, event string, wire []byte) {
	t.Helper()
	_, body, _ := bytes.Cut(wire, []byte("\r\n\r\n"))
	var sent, got struct{ Data json.RawMessage }
	if err := json.Unmarshal(body, &sent); err != nil {
		t.Fatal(err)
	}
	var one arrived
	b.receiver.await(t, "the delivery of "+event, func(all []arrived) bool {
		i := slices.IndexFunc(all, func(a arrived) bool { return a.header.Get("webhook-id") == event })
		if i >= 0 {
			one = all[i]
		}
		return i >= 0
	})
	if err := json.Unmarshal(one.body, &got); err != nil || !bytes.Equal(sent.Data, got.Data) {
		t.Errorf("data %.300q arrived as %.300q, %v", sent.Data, got.Data, err)
	}
	verifier, err := standardwebhooks.NewWebhook(b.secret)
	if err != nil {
		t.Fatal(err)
	}
	if err := verifier.Verify(one.body, one.header); err != nil {
		t.Error(err)
	}
}

func (b *badRig) count(t *testing.T) int {
	t.Helper()
	var list struct {
		Data  []json.RawMessage
		Total int
	}
	b.c.must(t, http.MethodGet, "/webhooks", nil, &list)
	if list.Total != len(list.Data) {
		t.Errorf("total %d of a list of %d", list.Total, len(list.Data))
	}
	return list.Total
}

// goroutines reads how many there are from the metrics.
func (b *badRig) goroutines(t *testing.T) int {
	t.Helper()
	resp, err := http.Get(b.p.url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "go_goroutines "); ok {
			n, err := strconv.Atoi(value)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("the metrics do not tell the goroutines")
	return 0
}

// healthy sees that the server is as well as it was.
func (b *badRig) healthy(t *testing.T, goroutines int) {
	t.Helper()
	resp, err := http.Get(b.p.url + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("readyz: %s", resp.Status)
	}
	if got := b.count(t); got != b.webhooks {
		t.Errorf("there are %d webhooks, and %d were made", got, b.webhooks)
	}
	var made struct{ ID string }
	const fresh = `{"type":"fresh.event","data":{"still":"here"}}`
	b.c.must(t, http.MethodPost, "/events", fresh, &made)
	b.delivered(t, made.ID, []byte("\r\n\r\n"+fresh))
	b.front.CloseClientConnections()
	http.DefaultClient.CloseIdleConnections()
	const slack = 16 // connections that are being closed
	eventually(t, fmt.Sprintf("no more than %d goroutines", goroutines+slack), func() bool { return b.goroutines(t) <= goroutines+slack })
	log := b.p.stderr.String()
	for _, bad := range []string{"panic", "level=ERROR", testKey, operatorKey, b.readOnly, testPassword, b.secret, b.vars["SESSION_TOKEN"]} {
		if i := strings.Index(log, bad); i >= 0 {
			t.Errorf("the log has %q: %.2000s", bad, log[max(0, i-200):])
		}
	}
}

// stall opens connections that say a part of a request and then nothing.
func (b *badRig) stall(t *testing.T) (release func()) {
	t.Helper()
	var conns []net.Conn
	for i, part := range []string{
		"", "POST", "POST /services/events HTTP/1.1\r\n", "POST /services/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + testKey,
		"POST /services/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + testKey + "\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n{",
		"POST /services/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + testKey + "\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
		"PATCH /services/webhooks/" + b.vars["WEBHOOK_ID"] + " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + testKey + "\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n",
	} {
		for range 5 {
			conn, err := net.Dial("tcp", strings.TrimPrefix(b.p.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(conn, part); err != nil {
				t.Fatalf("part %d: %v", i, err)
			}
			conns = append(conns, conn)
		}
	}
	return func() {
		for _, conn := range conns {
			_ = conn.Close()
		}
	}
}

// What is bad is refused in the contract's words, what only looks bad works, and
// afterwards the server is as well as before. Meanwhile others keep connections
// open and say nothing.
func TestBadInputs(t *testing.T) {
	for _, store := range []struct {
		name string
		env  func(t *testing.T) []string
	}{
		{"in a folder", func(t *testing.T) []string { return []string{"HYPHA_DATA=" + t.TempDir()} }},
		{"in PostgreSQL", func(t *testing.T) []string {
			return []string{"HYPHA_DATABASE_URL=" + databases.Database(t), "HYPHA_SECRET_KEY=" + strings.Repeat("5a", 32)}
		}},
	} {
		t.Run(store.name, func(t *testing.T) { badInputs(t, newBadRig(t, store.env(t)...)) })
	}
}

func badInputs(t *testing.T, b *badRig) {
	t.Helper()
	warm := b.goroutines(t)
	release := b.stall(t)
	defer release()
	for _, file := range []string{"badinputs.json", "badinputs-more.json"} {
		for _, row := range readBadInputs(t, file) {
			t.Run(row.Group+"/"+row.ID, func(t *testing.T) { b.run(t, &row) })
		}
	}
	release()
	b.healthy(t, warm)
}
