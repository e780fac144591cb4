package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// childEnv makes this test binary the child process that the harness starts.
const childEnv = "BENCH_TEST_CHILD"

func TestMain(m *testing.M) {
	// A fuzzing worker inherits the variable too, but is started with flags.
	if os.Getenv(childEnv) == "" || strings.HasPrefix(os.Args[1], "-") {
		for name, value := range map[string]string{
			childEnv:             "1",
			"HYPHA_DATABASE_URL": "postgres://production", // must not reach a server
		} {
			if err := os.Setenv(name, value); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var err error
	switch args := os.Args[2:]; os.Args[1] {
	case "bench-receiver":
		err = RunReceiver(ctx, args, os.Stdin, os.Stdout)
	case "bench-relay":
		err = RunRelay(ctx, args, os.Stdin, os.Stdout)
	case "serve":
		err = fakeServer(ctx, args)
	case "harness":
		err = Run(ctx, Options{Self: os.Args[0], TempDir: args[0], Publishers: 1, Duration: time.Hour}, os.Stdout)
	default:
		err = fmt.Errorf("unknown command %q", os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// fakeServer speaks as much of the API as the harness uses, keeps everything in
// memory, and does wrong what --fault says:
//
//	drop       every 10th event is accepted and never delivered
//	double     every 10th event is delivered twice
//	refuse     every 10th publish is answered 429
//	broken     every publish is answered 500
//	crash      the server exits at its 50th publish
//	notready   GET /readyz answers 503
func fakeServer(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	data := flags.String("data", "", "")
	listen := flags.String("listen", "", "")
	egress := flags.String("allow-egress", "", "")
	faultFlag := flags.String("fault", "", "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	key := os.Getenv("HYPHA_BOOTSTRAP_API_KEY")
	if *data == "" || len(key) != len("hypha_")+43 || *egress != "127.0.0.0/8" {
		return fmt.Errorf("serve: data %q, key %q, egress %q", *data, key, *egress)
	}
	if v := os.Getenv("HYPHA_DATABASE_URL"); v != "" {
		return errors.New("serve: a setting of another server leaked in")
	}
	if err := os.Mkdir(*data, 0o700); err != nil {
		return err
	}
	ln, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	fmt.Println("fake server is up")

	type event struct {
		Type string          `json:"type"`
		Data json.RawMessage `json:"data"`
	}
	var (
		fault  = *faultFlag
		mu     sync.Mutex
		hooks  []string
		events atomic.Uint64
		calls  atomic.Uint64
		queue  = make(chan func(), 1<<16)
		wg     sync.WaitGroup
		client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: 5 * time.Second}
	)
	for range 32 {
		wg.Go(func() {
			for deliver := range queue {
				deliver()
			}
		})
	}
	accept := func(e event) string {
		n := events.Add(1)
		id := fmt.Sprintf("evt_%d", n)
		times := 1
		switch {
		case fault == "drop" && n%10 == 0:
			times = 0
		case fault == "double" && n%10 == 0:
			times = 2
		}
		body, err := json.Marshal(map[string]any{"id": id, "type": e.Type, "timestamp": "2024-01-01T00:00:00.000Z", "data": e.Data, "metadata": nil})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return id
		}
		mu.Lock()
		defer mu.Unlock()
		for _, u := range hooks {
			for range times {
				queue <- func() {
					res, err := client.Post(u, "application/json", bytes.NewReader(body))
					if err != nil {
						fmt.Fprintln(os.Stderr, err)
						return
					}
					_, _ = io.Copy(io.Discard, res.Body)
					_ = res.Body.Close()
				}
			}
		}
		return id
	}
	answer := func(w http.ResponseWriter, status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v)
	}
	publish := func(w http.ResponseWriter, r *http.Request) {
		n := calls.Add(1)
		switch {
		case fault == "broken":
			answer(w, http.StatusInternalServerError, map[string]string{"error": "no luck"})
			return
		case fault == "refuse" && n%10 == 0:
			w.Header().Set("Retry-After", "0")
			answer(w, http.StatusTooManyRequests, map[string]string{"error": "slow down"})
			return
		case fault == "crash" && n == 50:
			fmt.Fprintln(os.Stderr, "fake server crashes as it was told to")
			os.Exit(3)
		}
		var body struct {
			event
			Events []event `json:"events"`
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			answer(w, http.StatusBadRequest, map[string]string{"error": err.Error()})
			return
		}
		if r.URL.Path == "/services/events" {
			answer(w, http.StatusAccepted, map[string]string{"id": accept(body.event)})
			return
		}
		ids := []string{}
		for _, e := range body.Events {
			ids = append(ids, accept(e))
		}
		answer(w, http.StatusAccepted, map[string]any{"data": ids})
	}

	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if fault == "notready" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("POST /services/webhooks", func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			Name, URL string
			Events    []string
		}
		err := json.NewDecoder(r.Body).Decode(&body)
		if err != nil || body.Name == "" || len(body.Events) != 1 || body.Events[0] != "bench.event" {
			answer(w, http.StatusBadRequest, map[string]string{"error": "what?"})
			return
		}
		mu.Lock()
		defer mu.Unlock()
		hooks = append(hooks, body.URL)
		answer(w, http.StatusCreated, map[string]string{"id": fmt.Sprintf("wh_%d", len(hooks)), "secret": "whsec_"})
	})
	mux.HandleFunc("DELETE /services/webhooks/{id}", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("POST /services/events", publish)
	mux.HandleFunc("POST /services/events/batch", publish)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" && r.Header.Get("Authorization") != "Bearer "+key {
			answer(w, http.StatusUnauthorized, map[string]string{"error": "Invalid or expired API key"})
			return
		}
		mux.ServeHTTP(w, r)
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	err = server.Shutdown(context.WithoutCancel(ctx))
	close(queue)
	wg.Wait()
	return err
}
