package signature_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/plinqx/hypha/signature"
)

// foreignCase is a request for somebody else's verifier, in the form that
// testdata/foreign/verify.mjs reads.
type foreignCase struct {
	ID        string `json:"id"`
	Timestamp string `json:"timestamp"`
	Signature string `json:"signature"`
	Body      string `json:"body"`
	Secret    string `json:"secret"`

	name string
	ok   bool // whether it must verify
}

// payloads are bodies that a library might change on the way to its hash.
func payloads() map[string]string {
	return map[string]string{
		"empty":             "",
		"object":            `{"id":"evt_1","type":"invocation.completed","data":{"n":1}}`,
		"spaces and breaks": "{ \"b\" : 2,\r\n\t\"a\" : 1.0 }\n",
		"U+2028 and U+2029": "{\"t\":\"a\u2028b\u2029c\"}",
		"HTML":              `{"t":"<script>alert('&amp;')</script>"}`,
		"escapes":           `{"t":"\u003c\u2028\ud83d\ude80\/\b"}`,
		"big numbers":       `{"n":[12345678901234567890,1e400,0.1000000000000000055511151231257827,-0]}`,
		"duplicate keys":    `{"a":1,"a":2}`,
		"key order":         `{"z":1,"10":2,"9":3,"a":4}`,
		"other scripts":     `{"t":"Zoë – 日本 – नमस्ते – 🚀👩‍🚀"}`,
		"decomposed":        "{\"t\":\"e\u0301\"}",
		"byte order mark":   "\ufeff{}",
		"NUL":               "{\"t\":\"\x00\"}",
		"dots":              `1.2.3.{"v":"1.2.3"}`,
		"not JSON":          `hello`,
		"63 bytes":          strings.Repeat("a", 63),
		"64 bytes":          strings.Repeat("a", 64),
		"200 KiB":           `{"t":"` + strings.Repeat("0123456789abcdé\u2028", 200<<10/19) + `"}`,
	}
}

// foreignCases signs every payload with secrets of every kind, and spoils each
// of the results once.
func foreignCases(t *testing.T) []foreignCase {
	t.Helper()
	const widest = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+Pw=="
	fresh, err := signature.NewSecret()
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	var cases []foreignCase
	add := func(name string, h http.Header, body, secret string, ok bool) {
		cases = append(cases, foreignCase{
			ID: h.Get("webhook-id"), Timestamp: h.Get("webhook-timestamp"), Signature: h.Get("webhook-signature"),
			Body: body, Secret: secret, name: name, ok: ok,
		})
	}
	for name, payload := range payloads() {
		for _, secrets := range [][]string{{secret24}, {widest}, {plain}, {fresh, secret32, plain}} {
			h := sign(t, newSigner(t, secrets...), "evt_01hf3z5c9k", at, []byte(payload))
			for i, secret := range secrets {
				add(fmt.Sprintf("%s, secret %d of %d", name, i+1, len(secrets)), h, payload, secret, true)
			}
			add(name+", another body", h, payload+" ", secrets[0], false)
			add(name+", a stranger's secret", h, payload, "whsec_"+strings.Repeat("A", 32), false)
			// With v1a behind it, which they don't know, v1 still verifies.
			h = sign(t, signerOf(t, secrets, []string{keyA, keyB}, false), "evt_01hf3z5c9k", at, []byte(payload))
			add(name+", with v1a", h, payload, secrets[0], true)
			other := h.Clone()
			other.Set("webhook-id", "evt_01hf3z5c9l")
			add(name+", another id", other, payload, secrets[0], false)
		}
	}
	file := loadVectors(t)
	for _, v := range file.Vectors {
		if v.asymmetric() {
			continue
		}
		for _, secret := range v.Secrets {
			h := sign(t, newSigner(t, v.Secrets...), v.ID, time.Unix(v.Timestamp, 0), []byte(v.Payload))
			add("vector "+v.Name, h, v.Payload, secret, true)
		}
	}
	for _, n := range file.MustNotVerify {
		add("must not verify: "+n.Name, n.headers(), n.Payload, n.Secret, false)
	}
	return cases
}

func TestGoVerifier(t *testing.T) {
	for _, c := range foreignCases(t) {
		if err := goVerify(c); (err == nil) != c.ok {
			t.Errorf("%s: %v, want ok = %v", c.name, err, c.ok)
		}
		// The same case through our own verifier must come out the same.
		seconds, err := strconv.ParseInt(c.Timestamp, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		h := standardHeaders(c.ID, c.Timestamp, c.Signature)
		if err := verifierAt(t, time.Unix(seconds, 0), c.Secret).Verify(h, []byte(c.Body)); (err == nil) != c.ok {
			t.Errorf("%s, our verifier: %v, want ok = %v", c.name, err, c.ok)
		}
	}
}

// goVerify leaves the timestamp unjudged, so that old vectors count.
func goVerify(c foreignCase) error {
	wh, err := standardwebhooks.NewWebhook(c.Secret)
	if !strings.HasPrefix(c.Secret, "whsec_") {
		wh, err = standardwebhooks.NewWebhookRaw([]byte(c.Secret))
	}
	if err != nil {
		return err
	}
	return wh.VerifyIgnoringTimestamp([]byte(c.Body), standardHeaders(c.ID, c.Timestamp, c.Signature))
}

// The other way round: what the foreign library signs, we verify.
func TestGoSigner(t *testing.T) {
	wh, err := standardwebhooks.NewWebhook(secret32)
	if err != nil {
		t.Fatal(err)
	}
	for name, payload := range payloads() {
		sig, err := wh.Sign("evt_1", attempt, []byte(payload))
		if err != nil {
			t.Fatal(err)
		}
		h := standardHeaders("evt_1", "1700000000", sig)
		if err := verifierAt(t, attempt, secret32).Verify(h, []byte(payload)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Other libraries accept the demonstrated collision; that is why this package
// signs and verifies no id with a dot.
func TestCollisionIsReal(t *testing.T) {
	for _, n := range loadVectors(t).CollisionDemo {
		c := foreignCase{ID: n.ID, Timestamp: n.Timestamp, Signature: n.Signature, Body: n.Payload, Secret: n.Secret}
		if err := goVerify(c); err != nil {
			t.Errorf("%s: the foreign library refuses it: %v", n.Name, err)
		}
	}
}

// TestNodeVerifier installs the JavaScript library as its lock file pins it and
// has it judge what we sign. It needs node and npm.
func TestNodeVerifier(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata", "foreign"))); err != nil {
		t.Fatal(err)
	}
	run := func(stdin []byte, name string, args ...string) []byte {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir = dir
		cmd.Stdin = bytes.NewReader(stdin)
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		if err := cmd.Run(); err != nil {
			t.Fatalf("%s: %v (node and npm must be installed)\n%s%s", cmd, err, &stdout, &stderr)
		}
		return stdout.Bytes()
	}
	run(nil, "npm", "ci", "--omit=dev", "--ignore-scripts")

	cases := foreignCases(t)
	var in bytes.Buffer
	lines := json.NewEncoder(&in)
	lines.SetEscapeHTML(false)
	for _, c := range cases {
		if err := lines.Encode(c); err != nil {
			t.Fatal(err)
		}
	}
	verdicts := json.NewDecoder(bytes.NewReader(run(in.Bytes(), "node", "verify.mjs")))
	for i, c := range cases {
		var verdict struct {
			OK    bool   `json:"ok"`
			Error string `json:"error"`
		}
		if err := verdicts.Decode(&verdict); err != nil {
			t.Fatalf("verdict %d of %d: %v", i+1, len(cases), err)
		}
		if verdict.OK != c.ok {
			t.Errorf("%s: ok = %v (%s), want %v", c.name, verdict.OK, verdict.Error, c.ok)
		}
		if !c.ok && verdict.Error != "No matching signature found" {
			t.Errorf("%s: refused for another reason: %s", c.name, verdict.Error)
		}
	}
	if verdicts.More() {
		t.Error("there are more verdicts than cases")
	}
}

// What ParseSecret accepts, and NewSecret makes, loads everywhere.
func TestSecretsLoadInGoVerifier(t *testing.T) {
	for n := range 100 {
		key := bytes.Repeat([]byte{0xFB}, n)
		s := "whsec_" + base64.StdEncoding.EncodeToString(key)
		_, err := signature.ParseSecret(s)
		if want := n >= 24 && n <= 64; (err == nil) != want {
			t.Errorf("%d bytes: %v, want ok = %v", n, err, want)
		}
		if _, foreign := standardwebhooks.NewWebhook(s); err == nil && foreign != nil {
			t.Errorf("%d bytes: the foreign library refuses it: %v", n, foreign)
		}
	}
}
