package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/api"
	"github.com/plinqx/hypha/internal/api/openapitest"
)

// transcript writes down what is said between clients, a server and receivers,
// to be kept as a golden file that reads as documentation. Each exchange with
// the API is held against openapi.yaml, and against what all answers have in
// common.
type transcript struct {
	t       *testing.T
	check   *openapitest.Validator
	covered map[string]bool // operations that succeeded once, of the whole test
	base    string
	key     string // of whoever asks, unless a request says otherwise
	out     strings.Builder
	// secrets stand for texts that differ from run to run and that no pattern
	// finds.
	secrets map[string]string
}

// section begins a part of the transcript: a sentence of the contract.
func (tr *transcript) section(format string, args ...any) {
	fmt.Fprintf(&tr.out, "\n## %s\n", fmt.Sprintf(format, args...))
}

// told is an answer of the API.
type told struct {
	status int
	header http.Header
	body   []byte
}

// get reads a member: "error.code", "data.0.id".
func (a told) get(path string) any {
	var v any
	if json.Unmarshal(a.body, &v) != nil {
		return nil
	}
	for name := range strings.SplitSeq(path, ".") {
		switch in := v.(type) {
		case map[string]any:
			v = in[name]
		case []any:
			i, err := strconv.Atoi(name)
			if err != nil || i >= len(in) {
				return nil
			}
			v = in[i]
		default:
			return nil
		}
	}
	return v
}

func (a told) text(path string) string {
	s, _ := a.get(path).(string)
	return s
}

// quietly asks without writing it down.
func (tr *transcript) quietly(want int, method, path, body string, headers ...string) told {
	tr.t.Helper()
	_, a := tr.exchange(method, path, body, headers...)
	if a.status != want {
		tr.t.Fatalf("%s %s = %d, want %d\n%s", method, path, a.status, want, a.body)
	}
	return a
}

// ask asks, and writes it down. Headers are "Name: value"; without a value, the
// header is left out.
func (tr *transcript) ask(want int, method, path, body string, headers ...string) told {
	tr.t.Helper()
	req, a := tr.exchange(method, path, body, headers...)
	fmt.Fprintf(&tr.out, "\n> %s %s\n", method, path)
	tr.headers("> ", req.Header)
	tr.body("> ", body)
	fmt.Fprintf(&tr.out, "< %d %s\n", a.status, http.StatusText(a.status))
	shown := a.header.Clone()
	for _, name := range []string{"Date", "Content-Length", "Cache-Control"} {
		shown.Del(name)
	}
	tr.headers("< ", shown)
	text := string(a.body)
	var indented bytes.Buffer
	if json.Indent(&indented, a.body, "", "  ") == nil {
		text = indented.String()
	}
	tr.body("< ", text)
	if a.status != want {
		tr.t.Fatalf("%s %s = %d, want %d\n%s", method, path, a.status, want, a.body)
	}
	return a
}

// exchange asks, and holds the exchange against the contract.
func (tr *transcript) exchange(method, path, body string, headers ...string) (*http.Request, told) {
	tr.t.Helper()
	req, err := http.NewRequestWithContext(tr.t.Context(), method, tr.base+path, strings.NewReader(body))
	if err != nil {
		tr.t.Fatal(err)
	}
	if body == "" {
		req.Body, req.ContentLength = http.NoBody, 0
	} else {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Authorization", "Bearer "+tr.key)
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Del(name)
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	resp, err := http.DefaultTransport.RoundTrip(req) // a redirect is an answer
	if err != nil {
		tr.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	a := told{status: resp.StatusCode, header: resp.Header}
	if a.body, err = io.ReadAll(resp.Body); err != nil {
		tr.t.Fatal(err)
	}
	operation := operationOf(tr.check.Operations(), method, req.URL.Path)
	if operation != "" {
		// The validator looks for the path at the document's server.
		plain := req.Clone(req.Context())
		plain.URL.Scheme, plain.URL.Host, plain.Host = "", "", ""
		tr.check.CheckExchange(tr.t, plain, []byte(body), resp, a.body)
		if a.status < http.StatusBadRequest {
			tr.covered[operation] = true
		}
	}
	if a.header.Get("X-Content-Type-Options") != "nosniff" || a.header.Get("X-Request-Id") == "" ||
		a.header.Get("Referrer-Policy") != "no-referrer" || a.header.Get("Content-Security-Policy") != "default-src 'none'; frame-ancestors 'none'" || a.header.Get("Cache-Control") == "" {
		tr.t.Errorf("%s %s: the headers of every answer are missing: %v", method, path, a.header)
	}
	for _, name := range []string{"Referrer-Policy", "Content-Security-Policy"} {
		a.header.Del(name) // they are always the same, and nothing to read
	}
	return req, a
}

// operationOf finds the operation of the document that a path belongs to; one
// that has the path's own words wins over one that has a parameter there.
func operationOf(operations []string, method, path string) string {
	best, fewest := "", 1000
	for _, op := range operations {
		m, pattern, _ := strings.Cut(op, " ")
		parts, want := strings.Split(path, "/"), strings.Split(pattern, "/")
		if m != method || len(parts) != len(want) {
			continue
		}
		params, fits := 0, true
		for i := range want {
			if strings.HasPrefix(want[i], "{") && parts[i] != "" {
				params++
			} else if want[i] != parts[i] {
				fits = false
			}
		}
		if fits && params < fewest {
			best, fewest = op, params
		}
	}
	return best
}

func (tr *transcript) headers(mark string, h http.Header) {
	for _, name := range slices.Sorted(maps.Keys(h)) {
		for _, value := range h[name] {
			fmt.Fprintf(&tr.out, "%s%s: %s\n", mark, name, value)
		}
	}
}

// body writes a body down as it stands, without the rest of lines that are long.
func (tr *transcript) body(mark, text string) {
	if text == "" {
		return
	}
	const longest = 400
	tr.out.WriteString(strings.TrimSpace(mark) + "\n")
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if len(line) > longest {
			line = line[:longest] + "…"
		}
		tr.out.WriteString(strings.TrimRight(mark+line, " ") + "\n")
	}
}

// arrival writes down what a receiver got, and what it answered.
func (tr *transcript) arrival(a arrived, answered string) {
	fmt.Fprintf(&tr.out, "\n→ POST %s\n", a.path)
	tr.headers("→ ", a.header)
	tr.body("→ ", string(a.body))
	if answered != "" {
		fmt.Fprintf(&tr.out, "← %s\n", answered)
	}
}

// save compares the transcript with its golden file.
func (tr *transcript) save(name, title string) {
	tr.t.Helper()
	text := "# " + title + "\n\n> to the API, < from it; → to a receiver, ← from it.\n" + tr.out.String()
	golden(tr.t, "contract/"+name, []byte(placeholders(text, tr.secrets)))
}

// placeholders puts stable texts for what differs from run to run. One id has
// one placeholder, in the order in which they appear.
func placeholders(text string, secrets map[string]string) string {
	// The longest first, for one may begin with another.
	for _, secret := range slices.SortedFunc(maps.Keys(secrets), func(a, b string) int { return len(b) - len(a) }) {
		text = strings.ReplaceAll(text, secret, secrets[secret])
	}
	for _, p := range []struct{ pattern, name string }{
		{`\b(wh|evt|dlv|key|ten|usr|rpl|ses|aud|vlt)_[0-7][0-9a-hjkmnp-tv-z]{25}\b`, ""},
		{`\bhypha_[A-Za-z0-9_-]{43}`, "<API key %d>"},
		{`\bwhsec_[A-Za-z0-9+/]{43}=`, "<secret %d>"},
		{`\bwhpk_[A-Za-z0-9+/]{43}=`, "<public key %d>"},
		{`"x": "[A-Za-z0-9_-]{43}"`, `"x": "<the same key>"`},
		{`"(id|kid)": "[A-Za-z0-9_-]{43}"`, `"$1": "<the key's thumbprint>"`},
		{`\bkid=[A-Za-z0-9_-]{43}`, "kid=<the key's thumbprint>"},
		{`"id": "[0-9a-f]{8}"`, `"id": "<key's id>"`},
		{`"(nextCursor)": "([^"]+)"`, `"$1": "<cursor>"`},
		{`cursor=[A-Za-z0-9_-]{20,}`, "cursor=<cursor>"},
		{`"(requestId)": ?"[^"]+"`, `"$1": "<request id>"`},
		{`"(token)": "([^"]+)"`, `"$1": "<session token>"`},
		{`"(password)": "[A-Za-z0-9_-]{43}"`, `"$1": "<the password>"`},
		{`__Host-hypha=[A-Za-z0-9_-]{20,}`, "__Host-hypha=<session token>"},
		{`__Host-hypha-oidc=[A-Za-z0-9_-]{20,}`, "__Host-hypha-oidc=<sealed>"},
		{`"(hint)": "([^"]+)"`, `"$1": "<the key's first characters>"`},
		{`"(durationMs|dns|connect|tls|firstByte)": [0-9.]+`, `"$1": <ms>`},
		{`"(p50|p95|p99)": [0-9.]*[1-9][0-9.]*`, `"$1": <ms>`},
		{`v1,[A-Za-z0-9+/]{43}=`, "v1,<signature>"},
		{`v1a,[A-Za-z0-9+/]{86}==`, "v1a,<signature>"},
		{`\b[0-9a-f]{64}\b`, "<signature in hex>"},
		{`\b[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT`, "<date>"},
		{`\b1[7-9][0-9]{8}\b`, "<Unix time>"},
		{`127\.0\.0\.1:[0-9]+`, "127.0.0.1:<port>"},
		{`X-Request-Id: [A-Z2-7]{26}`, "X-Request-Id: <request id>"},
		{`Hypha-Webhooks/[^\s"]+`, "Hypha-Webhooks/<version>"},
	} {
		expression := regexp.MustCompile(p.pattern)
		switch {
		case p.name == "":
			seen, next := map[string]string{}, map[string]int{}
			text = expression.ReplaceAllStringFunc(text, func(id string) string {
				if _, ok := seen[id]; !ok {
					kind, _, _ := strings.Cut(id, "_")
					next[kind]++
					seen[id] = fmt.Sprintf("%s_%d", kind, next[kind])
				}
				return seen[id]
			})
		case strings.Contains(p.name, "%d"):
			seen := map[string]string{}
			text = expression.ReplaceAllStringFunc(text, func(s string) string {
				if _, ok := seen[s]; !ok {
					seen[s] = fmt.Sprintf(p.name, len(seen)+1)
				}
				return seen[s]
			})
		default:
			text = expression.ReplaceAllString(text, p.name)
		}
	}
	// Times of this run; what a publisher said of other years stays.
	return regexp.MustCompile(`[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]+\.[0-9]{3}Z`).ReplaceAllStringFunc(text, func(s string) string {
		at, err := time.Parse(time.RFC3339, s)
		if err != nil || time.Since(at).Abs() > 400*24*time.Hour {
			return s
		}
		return "<time>"
	})
}

// operation is one of the document.
type operation struct {
	method, path, id, scope string
	public                  bool // nobody is asked for credentials
}

func (o operation) String() string { return o.method + " " + o.path }

// operationsOf reads the operations, and the scope that each of them names, from
// the document's text.
func operationsOf(t *testing.T) []operation {
	t.Helper()
	var out []operation
	path := ""
	_, paths, _ := strings.Cut(string(api.OpenAPI()), "\npaths:\n")
	paths, _, _ = strings.Cut(paths, "\ncomponents:\n")
	scope := regexp.MustCompile("Scope:\\s+`([a-z:]+)`")
	for i, part := range regexp.MustCompile(`(?m)^  (?:/\S+:|  (?:get|post|patch|put|delete):)$`).FindAllStringIndex(paths, -1) {
		text := strings.TrimSuffix(strings.TrimSpace(paths[part[0]:part[1]]), ":")
		if strings.HasPrefix(text, "/") {
			path = text
			continue
		}
		method := strings.ToUpper(text)
		rest := paths[part[1]:]
		if end := regexp.MustCompile(`(?m)^  (?:/|  (?:get|post|patch|put|delete):$)`).FindStringIndex(rest); end != nil {
			rest = rest[:end[0]]
		}
		op := operation{method: method, path: path, public: strings.Contains(rest, "security: []")}
		if m := regexp.MustCompile(`operationId: (\w+)`).FindStringSubmatch(rest); m != nil {
			op.id = m[1]
		}
		if m := scope.FindStringSubmatch(rest); m != nil {
			op.scope = m[1]
		}
		if op.id == "" || op.path == "" {
			t.Fatalf("the document's part %d has no operation: %s", i, rest)
		}
		out = append(out, op)
	}
	return out
}
