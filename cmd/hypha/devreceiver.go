package main

import (
	_ "embed"
	"html/template"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/plinqx/hypha/signature"
)

//go:embed devpage.html
var devPage string

// devReceiver is what `hypha dev` delivers to, and the page that shows it.
type devReceiver struct {
	listener net.Listener
	http     *http.Server
	page     *template.Template

	mu       sync.Mutex
	api      devAPI
	webhooks []*devWebhook
	arrivals []arrival // newest first
}

type devWebhook struct {
	Path, Name, ID, Secret string
	Arrived                int
}

type arrival struct {
	At       time.Time
	Webhook  string
	Type     string
	Event    string
	Delivery string
	Verified bool
	Answer   int
}

// maxArrivals is how many the page shows, and maxDevBody how much of a request
// is read.
const (
	maxArrivals = 40
	maxDevBody  = 2 << 20
	slowly      = 1500 * time.Millisecond
)

func newDevReceiver() (*devReceiver, error) {
	page, err := template.New("dev").Parse(devPage)
	if err != nil {
		return nil, err
	}
	r := &devReceiver{page: page}
	if r.listener, err = listenLocal(); err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", r.show)
	mux.HandleFunc("POST /well", r.receive(func(int) int { return http.StatusOK }))
	mux.HandleFunc("POST /badly", r.receive(func(n int) int {
		if n%5 == 0 {
			return http.StatusOK
		}
		return http.StatusInternalServerError
	}))
	mux.HandleFunc("POST /slowly", func(w http.ResponseWriter, req *http.Request) {
		select {
		case <-time.After(slowly):
		case <-req.Context().Done():
		}
		r.receive(func(int) int { return http.StatusOK })(w, req)
	})
	r.http = &http.Server{Handler: mux, ReadHeaderTimeout: headerTimeout}
	go func() { _ = r.http.Serve(r.listener) }() // ends with close
	return r, nil
}

func (r *devReceiver) url() string { return "http://" + r.listener.Addr().String() }

func (r *devReceiver) close() { _ = r.http.Close() } // what it held is of no more use

func (r *devReceiver) expect(path, name, id, secret string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.webhooks = append(r.webhooks, &devWebhook{Path: path, Name: name, ID: id, Secret: secret})
}

func (r *devReceiver) shown(api devAPI) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.api = api
}

// receive does what every receiver should: it verifies the signature before it
// believes anything.
func (r *devReceiver) receive(answer func(n int) int) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxDevBody))
		if err != nil {
			return // too large, or gone
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		i := slices.IndexFunc(r.webhooks, func(h *devWebhook) bool { return h.Path == req.URL.Path })
		if i < 0 {
			http.Error(w, "not expected yet", http.StatusServiceUnavailable)
			return
		}
		hook := r.webhooks[i]
		hook.Arrived++
		status := answer(hook.Arrived)
		verified := signature.Verify(req.Header, body, hook.Secret) == nil
		if !verified {
			status = http.StatusUnauthorized
		}
		r.arrivals = slices.Insert(r.arrivals, 0, arrival{
			At: time.Now(), Webhook: hook.Name, Type: req.Header.Get("X-Plinqx-Event"), Event: req.Header.Get(signature.HeaderID),
			Delivery: req.Header.Get("X-Plinqx-Delivery"), Verified: verified, Answer: status,
		})
		r.arrivals = r.arrivals[:min(len(r.arrivals), maxArrivals)]
		w.WriteHeader(status)
		_, _ = io.WriteString(w, http.StatusText(status)+"\n")
	}
}

func (r *devReceiver) show(w http.ResponseWriter, _ *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	w.Header().Set("Refresh", "2")
	_ = r.page.Execute(w, map[string]any{"API": r.api.base, "Key": r.api.key, "Webhooks": r.webhooks, "Arrivals": r.arrivals})
}
