package egress

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestHeaders(t *testing.T) {
	const ok, refused = true, false
	tests := []struct {
		name, value string
		accept      bool
	}{
		{"Authorization", "Bearer abc.def", ok},
		{"X-Api-Key", "k", ok},
		{"X-Custom", "a b  c", ok},
		{"X-Custom", "", ok},
		{"X-Custom", "!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~", ok},
		{"X-Custom", strings.Repeat("v", 4096), ok},
		{strings.Repeat("x", 256), "v", ok},
		{"x!#$%&'*+-.^_`|~9", "v", ok},
		{"Accept", "application/json", ok},
		{"Cookie", "a=b", ok},
		{"X-Request-Id", "1", ok},
		{"Webhooks", "1", ok},
		{"X-Plinqxes", "1", ok},
		{"X-Key", "1", ok},

		// Names that are not tokens.
		{"", "v", refused},
		{strings.Repeat("x", 257), "v", refused},
		{"X A", "v", refused},
		{"X-A ", "v", refused},
		{"X-A\t", "v", refused},
		{"X-A\x00", "v", refused},
		{"X-A:", "v", refused},
		{"X-\u00c4", "v", refused},
		{"X(A)", "v", refused},
		{"X-A\r\nX-B: c\r\n", "v", refused},
		{":path", "v", refused},
		{":method", "v", refused},

		// Values that are not visible ASCII.
		{"X-A", strings.Repeat("v", 4097), refused},
		{"X-A", " v", refused},
		{"X-A", "v ", refused},
		{"X-A", " ", refused},
		{"X-A", "\tv", refused},
		{"X-A", "a\tb", refused},
		{"X-A", "a\rb", refused},
		{"X-A", "a\r\nX-B: c", refused},
		{"X-A", "a\x00", refused},
		{"X-A", "a\x1f", refused},
		{"X-A", "a\x7f", refused},
		{"X-A", "\u00e9", refused},
		{"X-A", "\xff", refused},

		// Names that are ours or the connection's.
		{"Host", "h", refused},
		{"HOST", "h", refused},
		{"Connection", "close", refused},
		{"Keep-Alive", "1", refused},
		{"Upgrade", "h2c", refused},
		{"TE", "trailers", refused},
		{"Trailer", "x", refused},
		{"Transfer-Encoding", "chunked", refused},
		{"Transfer_Encoding", "chunked", refused},
		{"Content-Length", "0", refused},
		{"Content_Length", "0", refused},
		{"Content-Type", "text/plain", refused},
		{"Content-Digest", "x", refused},
		{"Expect", "100-continue", refused},
		{"Proxy-Authorization", "x", refused},
		{"Proxy-Connection", "close", refused},
		{"Forwarded", "for=x", refused},
		{"Via", "x", refused},
		{"Max-Forwards", "0", refused},
		{"X-Forwarded-For", "127.0.0.1", refused},
		{"X_Forwarded_For", "127.0.0.1", refused},
		{"X-Forwarded-Host", "x", refused},
		{"X-Real-IP", "127.0.0.1", refused},
		{"True-Client-IP", "127.0.0.1", refused},
		{"CF-Connecting-IP", "127.0.0.1", refused},
		{"X-Original-URL", "/", refused},
		{"X-Rewrite-URL", "/", refused},
		{"X-HTTP-Method-Override", "DELETE", refused},
		{"X-HTTP-Method", "DELETE", refused},
		{"X-Method-Override", "DELETE", refused},
		{"Accept-Encoding", "gzip", refused},
		{"Range", "bytes=0-", refused},
		{"If-None-Match", "*", refused},
		{"Date", "x", refused},
		{"User-Agent", "x", refused},
		{"Sec-Fetch-Site", "same-origin", refused},
		{"Idempotency-Key", "x", refused},
		{"x-idempotency-key", "x", refused},
		{"Metadata", "true", refused},
		{"Metadata-Flavor", "Google", refused},
		{"X-Google-Metadata-Request", "True", refused},
		{"X-aws-ec2-metadata-token", "x", refused},
		{"X-aliyun-ecs-metadata-token", "x", refused},
		{"X-Hypha-Tenant", "x", refused},
		{"webhook-id", "x", refused},
		{"Webhook-Signature", "x", refused},
		{"X-Plinqx-Signature", "x", refused},
		{"x-plinqx-anything", "x", refused},
		{"X_Plinqx_Event", "x", refused},
	}
	for _, test := range tests {
		problems := CheckHeaders(map[string]string{test.name: test.value}, "X-Plinqx")
		if (len(problems) == 0) != test.accept {
			t.Errorf("%q: %q: problems %v, want accepted: %t", test.name, test.value, problems, test.accept)
		}
	}
}

func TestHeaderPrefixIsASetting(t *testing.T) {
	headers := map[string]string{"X-Acme-Event": "x", "X-Plinqx-Event": "x"}
	problems := CheckHeaders(headers, "X-Acme")
	if len(problems) != 1 || problems[0].Path != "headers.X-Acme-Event" {
		t.Errorf("problems %v, want one, at headers.X-Acme-Event", problems)
	}
}

func TestHeaderProblemsComeTogether(t *testing.T) {
	problems := CheckHeaders(map[string]string{
		"Host":                   "h",
		"X-A\n":                  "v",
		"x-b":                    "v",
		"X-B":                    "v",
		"X-Secret":               "hush\n",
		"X-Ok":                   "v",
		strings.Repeat("y", 300): "v",
	}, "X-Plinqx")
	want := []string{"headers.Host", `headers."X-A\n"`, "headers.X-Secret", "headers.x-b", `headers.` + strings.Repeat("y", 64) + "..."}
	var got []string
	for _, p := range problems {
		got = append(got, p.Path)
		if strings.Contains(p.Message, "hush") {
			t.Errorf("the message %q holds the value", p.Message)
		}
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("paths:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestHeaderCount(t *testing.T) {
	headers := map[string]string{}
	for i := range MaxHeaders {
		headers[fmt.Sprintf("X-%d", i)] = "v"
	}
	if problems := CheckHeaders(headers, "X-Plinqx"); problems != nil {
		t.Errorf("%d headers: %v", MaxHeaders, problems)
	}
	headers["X-One-More"] = "v"
	if problems := CheckHeaders(headers, "X-Plinqx"); len(problems) != 1 || problems[0].Path != "headers" {
		t.Errorf("%d headers: %v, want one problem at headers", MaxHeaders+1, problems)
	}
	for i := range 1000 {
		headers[fmt.Sprintf("Bad %d", i)] = "v"
	}
	if problems := CheckHeaders(headers, "X-Plinqx"); len(problems) != MaxHeaders+1 {
		t.Errorf("%d problems, want %d: an answer does not grow with the request", len(problems), MaxHeaders+1)
	}
}

func TestCredential(t *testing.T) {
	for name, want := range map[string]bool{
		"Authorization": true, "AUTHORIZATION": true, "X-Auth": true, "X-Api-Key": true, "api_key": true, "ApiKey": true,
		"X-Auth-Token": true, "X-CSRFToken": true, "Client-Secret": true, "X-Password": true, "Cookie": true,
		"Ocp-Apim-Subscription-Key": true, "X-Functions-Key": true, "Signature": true, "X-Hub-Signature-256": true,
		"X-Session-Id": true, "X-Amz-Credential": true, "X-Basic-Pass": true,
		"Accept": false, "X-Custom": false, "X-Request-Id": false, "X-Keyboard": false, "X-Compass": false, "X-Signal": false,
	} {
		if Credential(name) != want {
			t.Errorf("Credential(%q) = %t, want %t", name, !want, want)
		}
	}
}

// FuzzCheckHeaders holds that a header that is taken is one header of a request and
// changes nothing else of it, for a reader that is as lenient as net/http's; and
// that what is said of one that is not names no value.
func FuzzCheckHeaders(f *testing.F) {
	for name, value := range map[string]string{
		"X-Api-Key": "abc", "Authorization": "Bearer abcdefgh", "Host": "a", "content_length": "5", "Transfer-Encoding": "chunked",
		"X A": "1", "X-A:": "1", "X-B\r\nHost": "a", "": "1", "X-Plinqx-Event": "1", "webhook_id": "1", "X-Empty": "", "Cookie": "a=b; c=d",
	} {
		f.Add(name, value)
	}
	for _, value := range []string{" a", "a ", "a\tb", "a\r\nHost: b", "a\n", "a\x00", "gr\u00fc\u00dfe", strings.Repeat("a", MaxHeaderValueLength+1)} {
		f.Add("X-A", value)
	}
	f.Fuzz(func(t *testing.T, name, value string) {
		problems := CheckHeaders(map[string]string{name: value}, "X-Plinqx")
		for _, p := range problems {
			if !utf8.ValidString(p.Path) || len(p.Path) > 1<<10 {
				t.Errorf("the path %q", p.Path)
			}
			if len(value) > 32 && !strings.Contains(name, value) && strings.Contains(p.Path+p.Message, value) {
				t.Errorf("the value stands in %q", p.Message)
			}
		}
		if len(problems) > 0 {
			return
		}
		const body = "{}"
		wire := "POST / HTTP/1.1\r\nHost: example.com\r\n" + name + ": " + value + "\r\nContent-Length: 2\r\n\r\n" + body
		in := bufio.NewReader(strings.NewReader(wire))
		r, err := http.ReadRequest(in)
		if err != nil {
			t.Fatalf("%q: %q was taken, and makes no request: %v", name, value, err)
		}
		got, err := io.ReadAll(r.Body)
		if err != nil || string(got) != body || in.Buffered() > 0 {
			t.Errorf("%q: %q was taken, and makes the body %q, %v", name, value, got, err)
		}
		if r.Host != "example.com" || r.ContentLength != 2 || r.TransferEncoding != nil || r.Close {
			t.Errorf("%q: %q was taken, and makes %+v", name, value, r)
		}
		key := textproto.CanonicalMIMEHeaderKey(name)
		if values := r.Header[key]; len(r.Header) != 2 || len(values) != 1 || values[0] != value {
			t.Errorf("%q: %q was taken, and makes %q", name, value, r.Header)
		}
		if again := CheckHeaders(map[string]string{key: value}, "X-Plinqx"); again != nil {
			t.Errorf("%q was taken, and %q is not: %+v", name, key, again)
		}
	})
}
