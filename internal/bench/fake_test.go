package bench

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// fake speaks as much of the API as the harness uses, keeps everything in
// memory (and in a file, when it is stopped in good order), and does wrong what
// --fault says:
//
//	drop       every 10th event is accepted and never delivered
//	double     every 10th event is delivered twice
//	refuse     every 10th publish is answered 429
//	mute       every 10th publish is answered 503 without Retry-After
//	broken     every publish is answered 500
//	crash      the server exits at its 50th publish
//	notready   GET /readyz answers 503
//	backwards  what has waited for a webhook is sent newest first
//	forget     what waits for a webhook is not kept when the server stops
//
// A delivery that is answered 503 waits until its webhook is enabled again, and
// so do all after it.
//
// With a database, which is a folder, the first node keeps the webhooks there, and
// the others look for them with each event.
type fake struct {
	fault    string
	data     string
	node     string            // "" without a database
	keys     map[string]string // tenants by their keys
	operator string
	prunes   bool
	client   *http.Client
	queue    chan func()

	mu     sync.Mutex
	state  fakeState
	events int // accepted
	calls  int // publishes
	asked  int // lists up to a time
}

// fakeState is what survives a restart.
type fakeState struct {
	Hooks []*fakeHook
}

type fakeHook struct {
	ID, Tenant, URL string
	Events          []string
	Down            bool
	Waiting         [][]byte
}

func (h *fakeHook) wants(eventType string) bool {
	return slices.ContainsFunc(h.Events, func(e string) bool {
		prefix, all := strings.CutSuffix(e, "*")
		return e == eventType || all && strings.HasPrefix(eventType, prefix)
	})
}

const (
	fakeTenant = "ten_first"
	stateFile  = "state.json"

	// fakeScheme begins the URL of a database, a folder.
	fakeScheme = "fake:"
	keyFile    = "key"
)

// fakeServer is the child process `serve`.
func fakeServer(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	data := flags.String("data", "", "")
	listen := flags.String("listen", "", "")
	egress := flags.String("allow-egress", "", "")
	fault := flags.String("fault", "", "")
	age := flags.Duration("history-age", 0, "")
	node := flags.String("node-name", "", "")
	for _, name := range []string{"max-queued", "retry-schedule", "history-size", "max-connections-per-address"} {
		flags.String(name, "", "")
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	key := os.Getenv("HYPHA_BOOTSTRAP_API_KEY")
	if *data == "" || len(key) != len("hypha_")+43 || *egress != "127.0.0.0/8" {
		return fmt.Errorf("serve: data %q, key %q, egress %q", *data, key, *egress)
	}
	if url := os.Getenv("HYPHA_DATABASE_URL"); url != "" {
		dir, ours := strings.CutPrefix(url, fakeScheme)
		if !ours {
			return errors.New("serve: a setting of another server leaked in")
		}
		if *node == "" {
			return errors.New("serve: a node has no name")
		}
		if err := checkFakeKey(dir); err != nil {
			return err
		}
		*data = dir
	} else if *node != "" {
		return fmt.Errorf("serve: %q is a node of nothing", *node)
	}
	if err := os.MkdirAll(*data, 0o700); err != nil {
		return err
	}
	f := &fake{
		fault: *fault, data: *data, node: *node, keys: map[string]string{key: fakeTenant}, operator: os.Getenv("HYPHA_BOOTSTRAP_OPERATOR_KEY"),
		prunes: *age > 0 && *age < seedAge,
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: 5 * time.Second},
		queue:  make(chan func(), 1<<16),
	}
	if err := f.load(); err != nil {
		return err
	}
	ln, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	fmt.Println("fake server is up")
	return f.serve(ctx, ln)
}

func (f *fake) serve(ctx context.Context, ln net.Listener) error {
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for deliver := range f.queue {
				deliver()
			}
		})
	}
	server := &http.Server{Handler: f.handler()}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	err := server.Shutdown(context.WithoutCancel(ctx))
	close(f.queue)
	wg.Wait()
	if f.fault == "forget" {
		for _, h := range f.state.Hooks {
			h.Waiting = nil
		}
	}
	if f.node != "" {
		// How often a node was asked to publish is for the tests.
		err = errors.Join(err, os.WriteFile(filepath.Join(f.data, f.node+".calls"), []byte(strconv.Itoa(f.calls)), 0o600))
	}
	return errors.Join(err, f.save())
}

// first says whether the webhooks are this node's to keep.
func (f *fake) first() bool { return f.node == "" || f.node == nodeName(1) }

func (f *fake) load() error {
	text, err := os.ReadFile(filepath.Join(f.data, stateFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	return json.Unmarshal(text, &f.state)
}

func (f *fake) save() error {
	if !f.first() {
		return nil
	}
	text, err := json.Marshal(f.state)
	if err != nil {
		return err
	}
	// Others may be reading it.
	path := filepath.Join(f.data, stateFile)
	return errors.Join(os.WriteFile(path+".new", text, 0o600), os.Rename(path+".new", path))
}

// checkFakeKey keeps a new database's key, and compares that of one that is there.
func checkFakeKey(dir string) error {
	key := os.Getenv("HYPHA_SECRET_KEY")
	if b, err := hex.DecodeString(key); err != nil || len(b) != 32 {
		return fmt.Errorf("the secret key is %q", key)
	}
	known, err := os.ReadFile(filepath.Join(dir, keyFile))
	if err != nil {
		return os.WriteFile(filepath.Join(dir, keyFile), []byte(key), 0o600)
	}
	if string(known) != key {
		return errors.New("the database is sealed with another key")
	}
	return nil
}

func (f *fake) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if f.fault == "notready" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("POST /services/webhooks", f.createWebhook)
	mux.HandleFunc("PATCH /services/webhooks/{id}", f.changeWebhook)
	mux.HandleFunc("DELETE /services/webhooks/{id}", func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.state.Hooks = slices.DeleteFunc(f.state.Hooks, func(h *fakeHook) bool { return h.ID == r.PathValue("id") })
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("POST /services/events", f.publish)
	mux.HandleFunc("POST /services/events/batch", f.publish)
	mux.HandleFunc("POST /services/tenants", func(w http.ResponseWriter, r *http.Request) {
		fakeAnswer(w, http.StatusCreated, map[string]string{"id": "ten_second"})
	})
	mux.HandleFunc("POST /services/api-keys", func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.keys["hypha_second"] = r.Header.Get("X-Hypha-Tenant")
		fakeAnswer(w, http.StatusCreated, map[string]string{"key": "hypha_second"})
	})
	mux.HandleFunc("GET /services/webhooks/stats", func(w http.ResponseWriter, _ *http.Request) {
		fakeAnswer(w, http.StatusOK, map[string]int{"totalDeliveries": 1})
	})
	mux.HandleFunc("GET /services/", f.list)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		manages := r.URL.Path == "/services/tenants" || r.Header.Get("X-Hypha-Tenant") != ""
		if r.URL.Path != "/readyz" && (manages && key != f.operator || !manages && f.tenantOf(r) == "") {
			fakeAnswer(w, http.StatusUnauthorized, map[string]string{"error": "Invalid or expired API key"})
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func fakeAnswer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func (f *fake) tenantOf(r *http.Request) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.keys[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
}

func (f *fake) createWebhook(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Name, URL string
		Events    []string
	}
	err := json.NewDecoder(r.Body).Decode(&body)
	if err != nil || body.Name == "" || len(body.Events) != 1 || !strings.HasPrefix(body.Events[0], "bench.") {
		fakeAnswer(w, http.StatusBadRequest, map[string]string{"error": "what?"})
		return
	}
	h := &fakeHook{Tenant: f.tenantOf(r), URL: body.URL, Events: body.Events}
	f.mu.Lock()
	defer f.mu.Unlock()
	h.ID = fmt.Sprintf("wh_%d", len(f.state.Hooks)+1)
	f.state.Hooks = append(f.state.Hooks, h)
	if err := f.save(); err != nil {
		fakeAnswer(w, http.StatusInternalServerError, map[string]string{"error": err.Error()})
		return
	}
	fakeAnswer(w, http.StatusCreated, map[string]string{"id": h.ID, "secret": "whsec_"})
}

func (f *fake) changeWebhook(w http.ResponseWriter, r *http.Request) {
	var body struct{ Enabled bool }
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		fakeAnswer(w, http.StatusBadRequest, map[string]string{"error": err.Error()})
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, h := range f.state.Hooks {
		if h.ID == r.PathValue("id") && body.Enabled {
			waiting := h.Waiting
			h.Down, h.Waiting = false, nil
			if f.fault == "backwards" {
				slices.Reverse(waiting)
			}
			for _, body := range waiting {
				f.send(h, body)
			}
		}
	}
	fakeAnswer(w, http.StatusOK, map[string]string{"id": r.PathValue("id")})
}

func (f *fake) publish(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.calls++
	n := f.calls
	f.mu.Unlock()
	switch {
	case f.fault == "broken":
		fakeAnswer(w, http.StatusInternalServerError, map[string]string{"error": "no luck"})
		return
	case f.fault == "refuse" && n%10 == 0:
		w.Header().Set("Retry-After", "0")
		fakeAnswer(w, http.StatusTooManyRequests, map[string]string{"error": "slow down"})
		return
	case f.fault == "mute" && n%10 == 0:
		fakeAnswer(w, http.StatusServiceUnavailable, map[string]string{"error": "not now"})
		return
	case f.fault == "crash" && n == 50:
		fmt.Fprintln(os.Stderr, "fake server crashes as it was told to")
		os.Exit(3)
	}
	type event struct {
		Type string          `json:"type"`
		Data json.RawMessage `json:"data"`
	}
	var body struct {
		event
		Events []event `json:"events"`
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		fakeAnswer(w, http.StatusBadRequest, map[string]string{"error": err.Error()})
		return
	}
	if r.URL.Path == "/services/events" {
		body.Events = []event{body.event}
	}
	tenant := f.tenantOf(r)
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.first() {
		if err := f.load(); err != nil {
			fakeAnswer(w, http.StatusInternalServerError, map[string]string{"error": err.Error()})
			return
		}
	}
	for _, e := range body.Events {
		if err := f.accept(tenant, e.Type, e.Data); err != nil {
			fakeAnswer(w, http.StatusBadRequest, map[string]string{"error": err.Error()})
			return
		}
	}
	fakeAnswer(w, http.StatusAccepted, map[string]string{"id": fmt.Sprintf("evt_%d", f.events)})
}

// accept takes an event in. f.mu is held.
func (f *fake) accept(tenant, eventType string, data json.RawMessage) error {
	f.events++
	times := 1
	switch {
	case f.fault == "drop" && f.events%10 == 0:
		times = 0
	case f.fault == "double" && f.events%10 == 0:
		times = 2
	}
	body, err := json.Marshal(map[string]any{
		"id": fmt.Sprintf("evt_%d", f.events), "type": eventType, "timestamp": "2024-01-01T00:00:00.000Z", "data": data, "metadata": nil,
	})
	if err != nil {
		return err
	}
	for _, h := range f.state.Hooks {
		for range times {
			if h.Tenant == tenant && h.wants(eventType) {
				f.send(h, body)
			}
		}
	}
	return nil
}

// send sends a delivery, or lets it wait. f.mu is held.
func (f *fake) send(h *fakeHook, body []byte) {
	if h.Down {
		h.Waiting = append(h.Waiting, body)
		return
	}
	f.queue <- func() {
		res, err := f.client.Post(h.URL, "application/json", bytes.NewReader(body))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		if res.StatusCode == http.StatusServiceUnavailable {
			f.mu.Lock()
			defer f.mu.Unlock()
			h.Down = true
			h.Waiting = append(h.Waiting, body)
		}
	}
}

// list answers any list: with something, unless it is asked for what has grown
// too old a third time. A first page may be empty and not the last.
func (f *fake) list(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	page := map[string]any{"data": []map[string]string{{"id": "wh_1"}}, "nextCursor": "more"}
	query := r.URL.Query()
	if query.Has("until") && query.Get("limit") == "1" {
		f.asked++
		gone := f.prunes && f.asked > 2
		switch {
		case gone && !query.Has("cursor"):
			page["data"] = []string{}
		case gone:
			page = map[string]any{"data": []string{}, "nextCursor": nil}
		}
	}
	fakeAnswer(w, http.StatusOK, page)
}

// fakeSeed is the child process `bench-seed`.
func fakeSeed(args []string) error {
	flags := flag.NewFlagSet("bench-seed", flag.ContinueOnError)
	data := flags.String("data", "", "")
	deliveries := flags.Int("deliveries", 0, "")
	webhooks := flags.Int("webhooks", 0, "")
	payload := flags.Int("payload", 0, "")
	age := flags.Duration("age", 0, "")
	flags.String("fanout", "", "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if dir, ok := strings.CutPrefix(os.Getenv("HYPHA_DATABASE_URL"), fakeScheme); ok {
		if *data != "" {
			return errors.New("bench-seed: a folder and a database")
		}
		if err := checkFakeKey(dir); err != nil {
			return err
		}
		*data = dir
	}
	if err := os.MkdirAll(*data, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(*data, "store"), make([]byte, 100**deliveries), 0o600); err != nil {
		return err
	}
	until := time.Now()
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"deliveries": *deliveries, "events": *deliveries / 10, "failed": 1, "webhooks": *webhooks, "payload": *payload,
		"from": until.Add(-*age), "until": until,
	})
}
