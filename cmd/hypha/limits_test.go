package main

import (
	"net/http"
	"testing"
)

// Whoever guesses is held by network, which a trusted proxy tells; others go on.
func TestGuessesAreHeldByNetwork(t *testing.T) {
	s := startServer(t, func(s *settings) { s.StrangerRate, s.TrustedProxies = 0.1, []string{"127.0.0.0/8"} })
	guess := func(client, token string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url()+"/services/webhooks", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Forwarded-For", client)
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	if got := guess("203.0.113.9", testKey); got != http.StatusOK {
		t.Fatal(got)
	}
	for _, tc := range []struct {
		name, client, token string
		want                int
	}{
		{"a guess", "203.0.113.7", "hypha_guess", http.StatusUnauthorized},
		{"the next one", "203.0.113.7", "hypha_guess", http.StatusTooManyRequests},
		{"one that says it is from elsewhere", "198.51.100.1, 203.0.113.7", "hypha_guess", http.StatusTooManyRequests},
		{"from another network", "203.0.113.8", "hypha_guess", http.StatusUnauthorized},
		{"a key that is known, beside who guesses", "203.0.113.7", testKey, http.StatusOK},
	} {
		if got := guess(tc.client, tc.token); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
	}
	series, _ := scrape(t, s.url())
	if got := series[`hypha_rate_limited_total{limit="strangers"}`]; got != 2 {
		t.Errorf("%v were counted, want 2", got)
	}
}
