package main

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/api"
	"github.com/plinqx/hypha/internal/commit"
	"github.com/plinqx/hypha/internal/contain"
	"github.com/plinqx/hypha/internal/lane"
)

// scrape reads the metrics of a server: the value of each series, by its name
// with its labels as they stand.
func scrape(t *testing.T, url string) (series map[string]float64, text string) {
	t.Helper()
	resp, err := http.Get(url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("metrics: %s, %v", resp.Status, err)
	}
	series = map[string]float64{}
	for line := range strings.Lines(string(raw)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		at := strings.LastIndexByte(line, ' ')
		value, err := strconv.ParseFloat(strings.TrimSpace(line[at+1:]), 64)
		if err != nil {
			t.Fatalf("metrics: %q", line)
		}
		series[line[:at]] = value
	}
	return series, string(raw)
}

// Whoever looks at the metrics sees which of five webhooks hangs, fails, works,
// pauses and is switched off, as numbers, and no names.
func TestMetricsTellTheStateOfLanes(t *testing.T) {
	v := startServer(t, func(s *settings) { s.MaxAge = time.Hour })
	hang, ill := make(chan struct{}), atomic.Bool{}
	defer close(hang)
	ill.Store(true)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		switch {
		case r.URL.Path == "/hanging":
			<-hang
		case r.URL.Path == "/failing" && ill.Load():
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	t.Cleanup(receiver.Close)
	c := client{v.url(), testKey}
	var ids []string
	for _, name := range []string{"hanging", "failing", "healthy", "paused", "disabled"} {
		id, _ := c.createWebhook(t, receiver.URL+"/"+name, name+".*")
		ids = append(ids, id)
	}
	c.must(t, http.MethodPatch, "/webhooks/"+ids[3], map[string]any{"pausedUntil": time.Now().Add(time.Hour).UTC().Format(time.RFC3339)}, nil)
	publish := func(kind string, n int) {
		for range n {
			var made struct{ ID string }
			c.must(t, http.MethodPost, "/events", fmt.Sprintf(`{"type":"%s.test","data":{}}`, kind), &made)
			ids = append(ids, made.ID)
		}
	}
	publish("hanging", 10)
	publish("failing", 12) // ten in a row open a breaker
	publish("healthy", 3)
	publish("paused", 1)
	publish("disabled", 1)
	c.must(t, http.MethodPatch, "/webhooks/"+ids[4], map[string]any{"enabled": false}, nil)

	want := map[string]float64{
		`hypha_lanes{state="sending"}`:      1,
		`hypha_lanes{state="breaker_open"}`: 1,
		`hypha_lanes{state="idle"}`:         1,
		`hypha_lanes{state="paused"}`:       1,
		`hypha_lanes{state="disabled"}`:     1,
		`hypha_lanes{state="waiting"}`:      0,
		`hypha_lanes{state="discarding"}`:   0,
		`hypha_lanes{state="unknown"}`:      0,
		`hypha_lane_in_flight_limit_count`:  5,
		`hypha_deliveries_in_memory`:        6, // four of the hanging one's are in flight
		`hypha_attempts_in_flight`:          4,
		`hypha_lanes_hungry`:                0,
		`hypha_tenants_sending`:             1,
		`hypha_tenants_waiting`:             0,
		`hypha_breaker_opened_total`:        1,
		`hypha_breaker_closed_total`:        0,
		`hypha_outcomes_unrecorded`:         0,
		`hypha_commit_waiting_rows`:         0,
		`hypha_commit_accepts_total`:        27,
	}
	for _, where := range contain.Places() {
		want[fmt.Sprintf("hypha_panics_total{where=%q}", where)] = 0
	}
	for _, why := range commit.Reasons() {
		want[fmt.Sprintf("hypha_publish_refused_total{reason=%q}", why)] = 0
	}
	var got map[string]float64
	var text string
	matches := func() bool {
		got, text = scrape(t, v.url())
		for name, value := range want {
			if n, ok := got[name]; !ok || n != value {
				return false
			}
		}
		// The probe of the failing one may be in flight or not.
		return got["hypha_lanes_at_limit"] >= 1 && got["hypha_lanes_spilled"] >= 1
	}
	deadline := time.Now().Add(30 * time.Second)
	for !matches() {
		if time.Now().After(deadline) {
			for name, value := range want {
				if n, ok := got[name]; !ok || n != value {
					t.Errorf("%s is %v, want %v", name, n, value)
				}
			}
			t.Fatalf("the metrics do not become what is the case:\n%s", grep(text, "hypha_"))
		}
	}
	// Limits are a histogram: one lane is down to a single attempt.
	if one, all := got[`hypha_lane_in_flight_limit_bucket{le="1"}`], got[`hypha_lane_in_flight_limit_bucket{le="64"}`]; one != 1 || all != 5 {
		t.Errorf("%v lanes may have one in flight, %v 64 at most; want 1 and 5", one, all)
	}

	ill.Store(false)
	eventually(t, "the breaker closes", func() bool {
		got, text = scrape(t, v.url())
		return got["hypha_breaker_closed_total"] == 1 && got[`hypha_lanes{state="breaker_open"}`] == 0
	})

	// Nothing in the metrics names anybody.
	for _, id := range append(ids, strings.TrimPrefix(receiver.URL, "http://"), "hanging", testKey) {
		if strings.Contains(text, id) {
			t.Errorf("the metrics name %s", id)
		}
	}
	if id := regexp.MustCompile(`[a-z]+_[0-9a-hjkmnp-tv-z]{26}`).FindString(text); id != "" {
		t.Errorf("the metrics name %s", id)
	}
	checkLabels(t, got)
}

// checkLabels holds the labels to closed sets.
func checkLabels(t *testing.T, series map[string]float64) {
	t.Helper()
	states := []string{"unknown"}
	for _, s := range lane.States() {
		states = append(states, string(s))
	}
	var limits []string
	for _, l := range api.Limits() {
		limits = append(limits, string(l))
	}
	allowed := map[string][]string{
		"limit": limits,
		"state": states, "reason": refusals(), "where": places(), "why": refusedConnections(), "success": {"true", "false"}, "written": {"true", "false"},
		"le": nil, "quantile": nil, "version": nil, // numbers, and that of Go
		"route": nil, "status": nil, "result": nil,
	}
	label := regexp.MustCompile(`([a-z_]+)="([^"]*)"`)
	for _, name := range slices.Sorted(maps.Keys(series)) {
		for _, m := range label.FindAllStringSubmatch(name, -1) {
			values, ok := allowed[m[1]]
			if !ok || values != nil && !slices.Contains(values, m[2]) {
				t.Errorf("%s: %s is not of a closed set", name, m[0])
			}
			if m[1] == "route" && m[2] != "" && !strings.HasPrefix(m[2], "/") {
				t.Errorf("%s: not a route", name)
			}
		}
	}
}

// grep keeps the lines that hold a text.
func grep(text, want string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if strings.Contains(line, want) && !strings.HasPrefix(line, "#") {
			b.WriteString(line)
		}
	}
	return b.String()
}
