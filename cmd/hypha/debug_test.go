package main

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// Neither the API nor the profiles can be reached by a webhook, also where the network
// that they are in is allowed.
func TestOwnListenersAreOutOfReach(t *testing.T) {
	v := startServer(t, func(s *settings) { s.DebugListen = "127.0.0.1:0" })
	profiles := "http://" + v.debug.listener.Addr().String()
	resp, err := http.Get(profiles + "/debug/pprof/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	for _, url := range []string{v.url() + "/services/events", profiles + "/debug/pprof/heap"} {
		a := ask(t, v.url(), "POST", "/services/webhooks", hookOf(url, "*"), "Authorization: Bearer "+testKey)
		if a.status != http.StatusBadRequest || a.text("error.details.0.path") != "url" {
			t.Errorf("%s: %d %s", url, a.status, a.body)
		}
	}
	other := newArrivals(t, nil)
	if a := ask(t, v.url(), "POST", "/services/webhooks", hookOf(other.URL, "*"), "Authorization: Bearer "+testKey); a.status != http.StatusCreated {
		t.Errorf("another port: %d %s", a.status, a.body)
	}
}

// A page that a browser has open can have a name of its own lead to any address, and
// read what is there: but it is asked for by that name.
func TestProfilesAreAskedForByAddress(t *testing.T) {
	for host, want := range map[string]int{
		"127.0.0.1:6060": 200, "127.0.0.1": 200, "[::1]:6060": 200, "localhost:6060": 200, "10.1.2.3:6060": 200,
		"rebound.example:6060": 403, "localhost.example": 403, "127.0.0.1.example:6060": 403, "": 403,
	} {
		r := httptest.NewRequest(http.MethodGet, "/debug/pprof/cmdline", nil)
		r.Host = host
		w := httptest.NewRecorder()
		profiles().ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("%q: %d, want %d", host, w.Code, want)
		}
	}
}
