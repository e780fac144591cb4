package send

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/plinqx/hypha/internal/hook"
)

func TestKeptHeader(t *testing.T) {
	long := strings.Repeat("y", 5000)
	many := slices.Repeat([]string{"y"}, 9000)
	tests := []struct {
		name string
		in   http.Header
		kept []string
	}{
		{"all, if there is room", http.Header{"A": {"1"}, "B": {"2", "3"}}, []string{"A", "B"}},
		{"no cookies", http.Header{"A": {"1"}, "Set-Cookie": {"a=b"}, "Set-Cookie2": {"a=b"}}, []string{"A"}},
		{"the short ones first", http.Header{"A": {long}, "B": {long}, "C": {long}, "D": {long}, "Retry-After": {"5"}}, []string{"A", "B", "C", "Retry-After"}},
		{"one of many lines counts them all", http.Header{"A": many, "Retry-After": {"5"}}, []string{"Retry-After"}},
	}
	for _, test := range tests {
		if got := slices.Sorted(maps.Keys(keptHeader(test.in, nil))); !slices.Equal(got, test.kept) {
			t.Errorf("%s: kept %v, want %v", test.name, got, test.kept)
		}
	}
	if got := keptHeader(http.Header{"A": {"a\xff\xfeb"}}, nil).Get("A"); !utf8.ValidString(got) {
		t.Errorf("kept %q", got)
	}
}

func TestReadBody(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(0, 2*maxBody).Draw(t, "size")
		limit := rapid.IntRange(1, maxBody).Draw(t, "limit")
		body := bytes.Repeat([]byte("0123456789"), size/10+1)[:size]
		r := bytes.NewReader(body)
		got, whole := readBody(iotest.HalfReader(r), int64(rapid.IntRange(-1, 3*maxBody).Draw(t, "announced")), limit)
		if !bytes.Equal(got, body[:min(size, limit)]) {
			t.Fatalf("kept %d bytes", len(got))
		}
		if read := size - r.Len(); read > maxBody {
			t.Fatalf("read %d bytes", read)
		}
		if size < maxBody && r.Len() > 0 {
			t.Fatalf("left %d bytes of a short body", r.Len())
		}
		if whole != (size < maxBody) {
			t.Fatalf("of %d bytes the whole, it says: %t", size, whole)
		}
	})
}

func TestRedactor(t *testing.T) {
	secret := `Bearer a/b+"c"\d&e<f>`
	form, err := json.Marshal(secret)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, in, want string }{
		{"as it stands", "x " + secret + " y", "x **** y"},
		{"without its scheme", `token=a/b+"c"\d&e<f>;`, "token=****;"},
		{"in JSON of Go", string(form), `"****"`},
		{"in JSON of PHP", `"Bearer a\/b+\"c\"\\d&e<f>"`, `"****"`},
		{"in HTML", "Bearer a/b+&#34;c&#34;\\d&amp;e&lt;f&gt;", "****"},
		{"in a query", "Bearer+a%2Fb%2B%22c%22%5Cd%26e%3Cf%3E", "****"},
		{"twice", secret + secret, "********"},
		{"one that begins another", "abcdefgh abcd", "**** ****"},
		{"what is too short to tell", "abc", "abc"},
	}
	r := NewRedactor([]string{secret, "abcd", "abcdefgh", "abc", ""})
	for _, test := range tests {
		if got := string(r.body([]byte(test.in))); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
		if got := r.text(test.in); got != test.want {
			t.Errorf("%s, in a header: %q, want %q", test.name, got, test.want)
		}
	}
}

// TestRedactorAtTheEnd: what is kept ends somewhere; a value that stands across
// the end must not be left in halves.
func TestRedactorAtTheEnd(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		secret := rapid.StringMatching(`[a-f/"]{12,60}`).Draw(t, "secret")
		at := hook.MaxKeptBody - rapid.IntRange(0, 80).Draw(t, "before the end")
		body := []byte(strings.Repeat(".", at) + secret + strings.Repeat(".", 100))
		hide := NewRedactor([]string{secret})
		got, _ := readBody(bytes.NewReader(body), -1, hook.MaxKeptBody+hide.reach())
		got = hide.body(got)
		got = got[:min(len(got), hook.MaxKeptBody)]
		if strings.ContainsAny(string(got), secret) {
			t.Fatalf("kept %q", got[at-10:])
		}
	})
}

func TestJudge(t *testing.T) {
	for status, want := range map[int]string{
		200: "", 204: "", 299: "",
		0: "answered 000", 199: "answered 199", 301: "answered 301 Moved Permanently: redirects are not followed",
		300: "answered 300 Multiple Choices: redirects are not followed", 399: "answered 399: redirects are not followed",
		404: "answered 404 Not Found", 600: "answered 600", 999: "answered 999",
		-1: "the answer's status is not of three digits", 1000: "the answer's status is not of three digits",
	} {
		got := ""
		if f := judge(status); f != nil {
			got = f.Message
		}
		if got != want {
			t.Errorf("%d: %q, want %q", status, got, want)
		}
	}
}
