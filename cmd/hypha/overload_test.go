package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// One tenant publishes far more than a real server can take, from many
// connections that come again at once when they are refused. It is refused in a
// form that programs understand, and quickly; another tenant that publishes now
// and then is not; what was accepted arrives; and memory stays bounded.
// With HYPHA_SOAK=1 it goes on twenty times as long.
func TestOverload(t *testing.T) {
	const (
		connections = 96
		perBatch    = 100 // events of a request
		mostMemory  = 600 << 20
	)
	enough := 100 // requests of the flood that are accepted
	if os.Getenv("HYPHA_SOAK") != "" {
		enough *= 20
	}
	receiver := newArrivals(t, nil)
	p := startProgram(t, []string{"HYPHA_BOOTSTRAP_API_KEY=" + testKey, "HYPHA_BOOTSTRAP_OPERATOR_KEY=" + operatorKey},
		"serve", "--listen", "127.0.0.1:0", "--data", t.TempDir(), "--allow-egress", "127.0.0.0/8")
	flood := client{p.url, testKey}
	other := secondTenant(t, p.url)
	for _, c := range []client{flood, other} {
		c.createWebhook(t, receiver.URL, "live.*")
	}
	// Rows to write that nobody waits for.
	for i := range 4 {
		id, _ := flood.createWebhook(t, receiver.URL, "live.*")
		flood.must(t, http.MethodPatch, "/webhooks/"+id, map[string]any{"enabled": true, "pausedUntil": time.Now().Add(time.Duration(i+1) * time.Hour).UTC().Format(time.RFC3339)}, nil)
	}
	events := func(prefix string, n int) (body string, ids []string) {
		var b strings.Builder
		for i := range n {
			ids = append(ids, fmt.Sprintf("%s-%d", prefix, i))
			if i > 0 {
				b.WriteByte(',')
			}
			fmt.Fprintf(&b, `{"type":"live.test","id":%q,"data":{}}`, ids[i])
		}
		return `{"events":[` + b.String() + `]}`, ids
	}

	var (
		mu       sync.Mutex
		accepted []string
		statuses = map[int]int{}
		acks     []time.Duration
		took     []time.Duration // of the other tenant
		unlucky  int             // likewise
		done     = make(chan struct{})
		once     sync.Once
		next     atomic.Int64
	)
	ended := func() bool {
		select {
		case <-done:
			return true
		default:
			return false
		}
	}
	post := func(c client, body string) (status int, retryAfter string, took time.Duration, err error) {
		req, err := http.NewRequest(http.MethodPost, c.base+"/services/events/batch", strings.NewReader(body))
		if err != nil {
			return 0, "", 0, err
		}
		req.Header.Set("Authorization", "Bearer "+c.key)
		req.Header.Set("Content-Type", "application/json")
		begin := time.Now()
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, "", 0, err
		}
		return resp.StatusCode, resp.Header.Get("Retry-After"), time.Since(begin), resp.Body.Close()
	}
	var wg sync.WaitGroup
	for range connections {
		wg.Go(func() {
			body, ids := "", []string(nil)
			for !ended() {
				if body == "" {
					body, ids = events(fmt.Sprintf("flood-%d", next.Add(1)), perBatch)
				}
				status, retryAfter, ack, err := post(flood, body)
				if err != nil {
					t.Errorf("publish: %v", err)
					once.Do(func() { close(done) })
					return
				}
				mu.Lock()
				statuses[status]++
				switch status {
				case http.StatusAccepted:
					acks, accepted, body = append(acks, ack), append(accepted, ids...), ""
				case http.StatusTooManyRequests, http.StatusServiceUnavailable:
					if retryAfter == "" || retryAfter == "0" {
						t.Errorf("%d with Retry-After %q", status, retryAfter)
					}
				default:
					t.Errorf("publish: %d", status)
				}
				if len(acks) >= enough && len(took) >= 20 {
					once.Do(func() { close(done) })
				}
				mu.Unlock()
			}
		})
	}
	wg.Go(func() {
		for !ended() {
			body, ids := events(fmt.Sprintf("other-%d", next.Add(1)), 1)
			status, _, ack, err := post(other, body)
			mu.Lock()
			switch {
			case err != nil || status != http.StatusAccepted && status != http.StatusServiceUnavailable:
				t.Errorf("the other tenant: %d, %v", status, err)
			case status == http.StatusAccepted:
				took, accepted = append(took, ack), append(accepted, ids...)
			default:
				unlucky++ // it can happen on a machine that stands still
			}
			mu.Unlock()
		}
	})
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	series, _ := scrape(t, p.url)
	memory := series["process_resident_memory_bytes"]
	p99 := func(d []time.Duration) time.Duration { return d[len(d)*99/100] }
	slices.Sort(acks)
	slices.Sort(took)
	t.Logf("%v; acks: p50 %v, p99 %v of %d; the other tenant: p99 %v of %d, %d refused; %.0f MiB", statuses, acks[len(acks)/2], p99(acks), len(acks), p99(took), len(took), unlucky, memory/(1<<20))
	if statuses[http.StatusTooManyRequests]+statuses[http.StatusServiceUnavailable] == 0 {
		t.Error("nothing was refused: it was not too much")
	}
	// The bounds are one second and a fraction of it; a machine that does something
	// else too has its time.
	if got := p99(acks); got > 5*time.Second {
		t.Errorf("an acknowledgement took %v", got)
	}
	if got := p99(took); got > 3*time.Second {
		t.Errorf("an acknowledgement of the other tenant took %v", got)
	}
	if unlucky > len(took)/4 {
		t.Errorf("the other tenant was refused %d times, and accepted %d times", unlucky, len(took))
	}
	if memory > mostMemory {
		t.Errorf("the server has %.0f MiB", memory/(1<<20))
	}
	receiver.await(t, "the arrival of every accepted event", func(got []arrived) bool {
		if len(got) < len(accepted) {
			return false
		}
		there := make(map[string]bool, len(got))
		for _, a := range got {
			there[a.header.Get("webhook-id")] = true
		}
		for _, id := range accepted {
			if !there[id] {
				return false
			}
		}
		return true
	})
	if err := p.stop(t); err != nil {
		t.Errorf("it did not stop cleanly: %v\n%s", err, p.stderr)
	}
}

// secondTenant makes a tenant besides the first, with a key.
func secondTenant(t *testing.T, url string) client {
	t.Helper()
	var tenant struct{ ID string }
	client{url, operatorKey}.must(t, http.MethodPost, "/tenants", map[string]any{"name": "other"}, &tenant)
	req, err := http.NewRequest(http.MethodPost, url+"/services/api-keys", strings.NewReader(`{"name":"other's"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+operatorKey)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Hypha-Tenant", tenant.ID)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var key struct{ Key string }
	if err := json.NewDecoder(resp.Body).Decode(&key); err != nil || resp.StatusCode != http.StatusCreated {
		t.Fatalf("create a key: %s, %v", resp.Status, err)
	}
	return client{url, key.Key}
}
