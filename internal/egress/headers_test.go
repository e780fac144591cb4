package egress

import (
	"fmt"
	"strings"
	"testing"
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
