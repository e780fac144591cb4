package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/pgtest"
)

// What follows runs real processes on a real PostgreSQL, and strikes one or the
// other. The long forms run with HYPHA_SOAK=1.

const (
	nodeSlots    = 32
	nodeWebhooks = 3
)

// fleet is some nodes on one database, and what was published to them.
type fleet struct {
	t        *testing.T
	database string
	receiver *arrivals
	nodes    []*programProcess

	next     atomic.Int64
	acks     atomic.Int64
	mu       sync.Mutex
	accepted []string
	statuses map[int]int

	stop chan struct{}
	wg   sync.WaitGroup
}

func newFleet(t *testing.T, database string, nodes int) *fleet {
	t.Helper()
	f := &fleet{t: t, database: database, receiver: newArrivals(t, nil), statuses: map[int]int{}, stop: make(chan struct{})}
	for i := range nodes {
		f.nodes = append(f.nodes, f.start(i))
	}
	for i := range nodeWebhooks {
		client{f.nodes[0].url, testKey}.createWebhook(t, fmt.Sprintf("%s/%d", f.receiver.URL, i), "nodes.*")
	}
	return f
}

func (f *fleet) start(i int) *programProcess {
	f.t.Helper()
	return startProgram(f.t, []string{"HYPHA_BOOTSTRAP_API_KEY=" + testKey, "HYPHA_DATABASE_URL=" + f.database, "HYPHA_SECRET_KEY=" + strings.Repeat("5a", 32)},
		"serve", "--listen", "127.0.0.1:0", "--node-name", fmt.Sprintf("node-%d", i), "--allow-egress", "127.0.0.0/8",
		"--slots", fmt.Sprint(nodeSlots), "--retry-schedule", "100ms,200ms,500ms,1s,2s,5s,5s,5s,5s,5s")
}

// publish publishes until the end, each publisher to one node after the other.
func (f *fleet) publish(publishers int) {
	for i := range publishers {
		f.wg.Go(func() {
			for at := i; ; at++ {
				select {
				case <-f.stop:
					return
				default:
				}
				f.publishOne(f.url(at % len(f.nodes)))
			}
		})
	}
}

func (f *fleet) url(i int) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.nodes[i].url
}

func (f *fleet) publishOne(url string) {
	id := fmt.Sprintf("n-%07d", f.next.Add(1))
	status, retryAfter := f.ask(http.MethodPost, url+"/services/events", fmt.Sprintf(`{"type":"nodes.test","id":%q,"data":{"n":1}}`, id))
	f.mu.Lock()
	defer f.mu.Unlock()
	f.statuses[status]++
	switch status {
	case http.StatusAccepted:
		f.accepted = append(f.accepted, id)
		f.acks.Add(1)
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		if retryAfter == "" {
			f.t.Errorf("%d without a Retry-After", status)
		}
	case 0: // killed, or frozen
	default:
		f.t.Errorf("publish: %d", status)
	}
}

// ask asks one node, which may be frozen or gone: then the status is 0. A client that
// gives up may have been served all the same.
func (f *fleet) ask(method, url, body string) (status int, retryAfter string) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		f.t.Error(err)
		return 0, ""
	}
	req.Header.Set("Authorization", "Bearer "+testKey)
	req.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, ""
	}
	_, err = io.Copy(io.Discard, answer.Body)
	if err := errors.Join(err, answer.Body.Close()); err != nil {
		return 0, ""
	}
	return answer.StatusCode, answer.Header.Get("Retry-After")
}

// awaitAcks waits for so many answers of 202 from now on.
func (f *fleet) awaitAcks(n int64) {
	f.t.Helper()
	until := f.acks.Load() + n
	eventually(f.t, fmt.Sprintf("%d more accepted events", n), func() bool { return f.acks.Load() >= until })
}

// check ends the publishing, waits for all that was accepted, and answers how many
// deliveries came twice.
func (f *fleet) check() (deliveries, doubled int) {
	f.t.Helper()
	close(f.stop)
	f.wg.Wait()
	times := map[string]int{}
	counted := 0
	got := f.receiver.await(f.t, "the arrival of every accepted event at every webhook", func(got []arrived) bool {
		for _, a := range got[counted:] {
			times[a.path+" "+a.header.Get("webhook-id")]++
		}
		counted = len(got)
		for _, id := range f.accepted {
			for i := range nodeWebhooks {
				if times[fmt.Sprintf("/%d %s", i, id)] == 0 {
					return false
				}
			}
		}
		return true
	})
	for _, n := range times {
		doubled += n - 1
	}
	for i, n := range f.nodes {
		if err := n.stop(f.t); err != nil {
			f.t.Errorf("node %d did not stop cleanly: %v", i, err)
		}
		if out := n.stderr.String(); strings.Contains(out, "panic") || strings.Contains(out, "level=ERROR") {
			f.t.Errorf("node %d was not well:\n%s", i, out)
		}
	}
	f.t.Logf("%d events accepted, %d deliveries, %d came twice; answers %v", len(f.accepted), len(got), doubled, f.statuses)
	return len(got), doubled
}

// takenOver waits until another node says that it has taken the work of one over,
// and answers for how long that had been silent, by the database's clock.
func (f *fleet) takenOver(victim int, before []int) time.Duration {
	f.t.Helper()
	silent := regexp.MustCompile(fmt.Sprintf(`work was taken over.*name=node-%d .*silent=(\S+)`, victim))
	var said string
	eventually(f.t, fmt.Sprintf("somebody takes over node-%d", victim), func() bool {
		for i, n := range f.nodes {
			if i == victim {
				continue
			}
			if found := silent.FindStringSubmatch(n.stderr.String()[before[i]:]); found != nil {
				said = found[1]
				return true
			}
		}
		return false
	})
	d, err := time.ParseDuration(said)
	if err != nil {
		f.t.Fatal(err)
	}
	return d
}

func (f *fleet) logged() (at []int) {
	for _, n := range f.nodes {
		at = append(at, len(n.stderr.String()))
	}
	return at
}

func strike(t *testing.T, p *programProcess, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(-p.cmd.Process.Pid, s); err != nil {
		t.Fatal(err)
	}
}

// Nodes are killed, and frozen and thawed, at random instants. Nothing that was
// accepted may be lost, no more may come twice than the struck node had in flight,
// and what it had is taken over within 10 s.
func TestNodesThatAreStruckLoseNothing(t *testing.T) {
	rounds := 2
	if os.Getenv("HYPHA_SOAK") != "" {
		rounds = 20
	}
	f := newFleet(t, pgtest.Own(t, nil).Database(t), 3)
	f.publish(9)
	for round := range rounds {
		f.awaitAcks(1 + rand.Int64N(300))
		victim := rand.IntN(len(f.nodes))
		before := f.logged()
		if round%2 == 0 {
			f.nodes[victim].kill(t)
		} else {
			strike(t, f.nodes[victim], syscall.SIGSTOP)
		}
		if silent := f.takenOver(victim, before); silent > 10*time.Second {
			t.Errorf("node-%d had been silent for %v when its work was taken over; want 10 s at most", victim, silent)
		}
		if round%2 == 0 {
			started := f.start(victim)
			f.mu.Lock()
			f.nodes[victim] = started
			f.mu.Unlock()
			continue
		}
		strike(t, f.nodes[victim], syscall.SIGCONT)
		eventually(t, "the thawed node joins the others anew", func() bool {
			return strings.Contains(f.nodes[victim].stderr.String()[before[victim]:], "joined the other nodes anew")
		})
	}
	f.awaitAcks(100)
	if _, doubled := f.check(); doubled > rounds*nodeSlots {
		t.Errorf("%d deliveries came twice over %d strikes; at most %d were in flight", doubled, rounds, rounds*nodeSlots)
	}
}

// trouble is something that happens to a database, and ends.
type trouble struct {
	name       string
	leave, ret func() error
}

// inTime is how long a node may take to say that it can't work, and that it can again.
const inTime = 10 * time.Second

// suffers goes through a trouble under load: no node is ready while it lasts, and all
// are again when it has ended.
func (f *fleet) suffers(trouble trouble) {
	f.t.Helper()
	away := 3 * time.Second
	if os.Getenv("HYPHA_SOAK") != "" {
		away = time.Minute
	}
	f.awaitAcks(100)
	if err := trouble.leave(); err != nil {
		f.t.Fatal(trouble.name, err)
	}
	red := f.awaitReadiness(http.StatusServiceUnavailable, "while the database is "+trouble.name)
	timer := time.NewTimer(away)
	<-timer.C
	accepted := f.acks.Load()
	if err := trouble.ret(); err != nil {
		f.t.Fatal(trouble.name, err)
	}
	green := f.awaitReadiness(http.StatusOK, "after the database was "+trouble.name)
	eventually(f.t, "events are accepted again after the database was "+trouble.name, func() bool { return f.acks.Load() > accepted+20 })
	f.t.Logf("%s: not ready after %v, ready again after %v", trouble.name, red.Round(100*time.Millisecond), green.Round(100*time.Millisecond))
}

// awaitReadiness waits until all nodes answer so to whoever asks whether they are
// ready, and answers how long that took.
func (f *fleet) awaitReadiness(want int, when string) time.Duration {
	f.t.Helper()
	began := time.Now()
	for i := range f.nodes {
		eventually(f.t, fmt.Sprintf("node-%d answers %d %s", i, want, when), func() bool {
			status, _ := f.ask(http.MethodGet, f.nodes[i].url+"/readyz", "")
			return status == want
		})
	}
	took := time.Since(began)
	if took > inTime {
		f.t.Errorf("%s it took %v until all nodes answered %d; want %v at most", when, took, want, inTime)
	}
	return took
}

// nobodyIsTakenOver checks that no node was declared dead because the database was
// away.
func (f *fleet) nobodyIsTakenOver() {
	f.t.Helper()
	for i, n := range f.nodes {
		if out := n.stderr.String(); strings.Contains(out, "work was taken over") {
			f.t.Errorf("node-%d took over a peer because the database was away:\n%s", i, out)
		}
	}
}

// The database stops under load, as in a crash and in order, freezes, can't be
// written, and lets nobody in. What was accepted is delivered, what can't be is
// refused, and nobody needs a restart.
func TestDatabaseTroubleLosesNothing(t *testing.T) {
	server := pgtest.Own(t, nil)
	f := newFleet(t, server.Database(t), 2)
	f.publish(6)
	for _, trouble := range []trouble{
		{"killed", func() error { return server.Stop(true) }, server.Start},
		{"stopped", func() error { return server.Stop(false) }, server.Start},
		{"frozen", server.Freeze, server.Thaw},
		{"read-only", func() error {
			return errors.Join(
				server.Set(t.Context(), f.database, "default_transaction_read_only", "on"), server.DropConnections(t.Context(), f.database))
		}, func() error { return server.Set(t.Context(), f.database, "default_transaction_read_only", "") }},
		{"out of connections", func() error { return server.LimitConnections(t.Context(), 0) },
			func() error { return server.LimitConnections(t.Context(), -1) }},
	} {
		f.suffers(trouble)
	}
	f.check()
	f.nobodyIsTakenOver()
}

// The database dies, and its standby takes its place.
func TestDatabaseFailoverLosesNothing(t *testing.T) {
	primary := pgtest.Own(t, nil)
	database := primary.Database(t)
	standby := primary.Standby(t)
	either, err := primary.Either(database, standby)
	if err != nil {
		t.Fatal(err)
	}
	f := newFleet(t, either, 2)
	f.publish(6)
	f.suffers(trouble{"failing over", func() error { return primary.Stop(true) }, func() error { return standby.Promote(t.Context()) }})
	f.check()
	f.nobodyIsTakenOver()
}
