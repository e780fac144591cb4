package main

import (
	"database/sql"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	_ "modernc.org/sqlite" // to look at what is on disk
)

// A real process under load is killed with SIGKILL at random instants. Every
// event that was answered with 202 must reach every webhook, and no more may
// come twice than was in flight: sent, and not recorded yet.
// With HYPHA_SOAK=1 it is killed 500 times.
func TestKilledAgainAndAgainItLosesNothing(t *testing.T) {
	kills := 20
	if os.Getenv("HYPHA_SOAK") != "" {
		kills = 500
	}
	const (
		webhooks   = 3
		publishers = 12
		slots      = 48
	)
	receiver := newArrivals(t, nil)
	dir := t.TempDir()
	start := func() *programProcess {
		return startProgram(t, []string{"HYPHA_BOOTSTRAP_API_KEY=" + testKey}, "serve", "--listen", "127.0.0.1:0", "--data", dir,
			"--allow-egress", "127.0.0.0/8", "--slots", fmt.Sprint(slots), "--retry-schedule", "100ms,200ms,500ms,1s,2s,5s,5s,5s")
	}
	p := start()
	for i := range webhooks {
		client{p.url, testKey}.createWebhook(t, fmt.Sprintf("%s/%d", receiver.URL, i), "crash.*")
	}

	var (
		mu       sync.Mutex
		accepted []string
		acks     atomic.Int64
		next     atomic.Int64
	)
	for range kills {
		// Between two kills: after so many answers, wherever the server is then.
		until := acks.Load() + 1 + rand.Int64N(400)
		reached := make(chan struct{})
		var once sync.Once
		stop := make(chan struct{})
		var wg sync.WaitGroup
		c := client{p.url, testKey}
		for range publishers {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					id := fmt.Sprintf("crash-%06d", next.Add(1))
					status, err := c.do(http.MethodPost, "/events", fmt.Sprintf(`{"type":"crash.test","id":%q,"data":{"n":1}}`, id), nil)
					if err != nil && status == 0 {
						return // killed
					}
					if status != http.StatusAccepted {
						t.Errorf("publish: %d, %v", status, err)
						return
					}
					mu.Lock()
					accepted = append(accepted, id)
					mu.Unlock()
					if acks.Add(1) >= until {
						once.Do(func() { close(reached) })
					}
				}
			})
		}
		<-reached
		p.kill(t)
		close(stop)
		wg.Wait()
		if out := p.stderr.String(); strings.Contains(out, "panic") || strings.Contains(out, "level=ERROR") {
			t.Fatalf("the server was not well:\n%s", out)
		}
		p = start()
	}

	times := func(got []arrived) map[string]int {
		n := make(map[string]int, len(got))
		for _, a := range got {
			n[a.path+" "+a.header.Get("webhook-id")]++
		}
		return n
	}
	got := receiver.await(t, "the arrival of every accepted event at every webhook", func(got []arrived) bool {
		if len(got) < len(accepted)*webhooks {
			return false
		}
		n := times(got)
		for _, id := range accepted {
			for i := range webhooks {
				if n[fmt.Sprintf("/%d %s", i, id)] == 0 {
					return false
				}
			}
		}
		return true
	})
	if err := p.stop(t); err != nil {
		t.Errorf("the last server did not stop cleanly: %v", err)
	}
	doubled := 0
	for _, n := range times(got) {
		doubled += n - 1
	}
	t.Logf("%d events accepted over %d kills, %d deliveries, %d came twice", len(accepted), kills, len(got), doubled)
	if most := kills * slots; doubled > most {
		t.Errorf("%d deliveries came twice; at most %d were in flight", doubled, most)
	}
	checkIntegrity(t, dir)
}

func checkIntegrity(t *testing.T, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.db"))
	if err != nil || len(files) != 1 {
		t.Fatalf("store files: %v, %v", files, err)
	}
	db, err := sql.Open("sqlite", "file:"+files[0]+"?mode=ro")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	var verdict string
	if err := db.QueryRow("PRAGMA integrity_check").Scan(&verdict); err != nil || verdict != "ok" {
		t.Errorf("integrity check: %q, %v", verdict, err)
	}
}
