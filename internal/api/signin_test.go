package api_test

import (
	"net/http"
	"testing"

	"github.com/plinqx/hypha/internal/api"
)

// TestCrossSite asks for what changes something as clients and browsers do.
func TestCrossSite(t *testing.T) {
	trusting := http.NewCrossOriginProtection()
	if err := trusting.AddTrustedOrigin("https://hooks.example.com"); err != nil {
		t.Fatal(err)
	}
	s := newServer(t, func(o *api.Options) { o.CrossOrigin = trusting })
	webhook := "/services/webhooks/" + s.newWebhook()
	for _, tc := range []struct {
		name, method string
		headers      []string
		want         int
	}{
		{"a client that is no browser", "PATCH", nil, 200},
		{"a page of this server", "PATCH", []string{"Sec-Fetch-Site: same-origin", "Origin: http://example.com"}, 200},
		{"an address that was typed", "PATCH", []string{"Sec-Fetch-Site: none"}, 200},
		{"an old browser, of this server", "PATCH", []string{"Origin: http://example.com"}, 200}, // the requests' Host
		{"a page of the public address", "PATCH", []string{"Sec-Fetch-Site: same-site", "Origin: https://hooks.example.com"}, 200},
		{"a page of another site", "PATCH", []string{"Sec-Fetch-Site: cross-site", "Origin: https://evil.example"}, 403},
		{"a page of the same site", "PATCH", []string{"Sec-Fetch-Site: same-site", "Origin: https://other.example.com"}, 403},
		{"an old browser, of another site", "PATCH", []string{"Origin: https://evil.example"}, 403},
		{"a page that hides where it is from", "PATCH", []string{"Origin: null"}, 403},
		{"reading, from another site", "GET", []string{"Sec-Fetch-Site: cross-site", "Origin: https://evil.example"}, 200},
	} {
		body := ""
		if tc.method == "PATCH" {
			body = `{"description":"x"}`
		}
		a := s.ask(tc.method, webhook, body, tc.headers...)
		if a.status != tc.want || a.status == 403 && a.text("error.code") != "FORBIDDEN" {
			t.Errorf("%s: %d, want %d\n%s", tc.name, a.status, tc.want, a.body)
		}
		if a.header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: other sites may read it", tc.name)
		}
	}
}
