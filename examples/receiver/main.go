// Command receiver shows what a receiver of webhooks has to do: verify the
// signature, answer quickly, and expect the same event twice. It keeps what
// arrived and shows it, and can be broken and mended, to see what Hypha does
// then.
//
//	go run ./examples/receiver -secret your-webhook-secret
//
//	POST /orders           receives
//	GET  /arrived?wait=N   what arrived; waits until it is N attempts
//	POST /break, /mend     answer 500 from now on, or 200 again
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"io"
	"log"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/plinqx/hypha/signature"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:9000", "address to listen on")
	var keys []string
	flag.Func("secret", "the webhook's `secret`, or its public key (whpk_...); while it is rotated, give the flag for the old one too", func(key string) error {
		keys = append(keys, key)
		return nil
	})
	flag.Parse()
	r, err := newReceiver(keys)
	if err != nil {
		log.Fatal(err)
	}
	log.Printf("receiving on http://%s/orders", *listen)
	server := http.Server{Addr: *listen, Handler: r.handler(), ReadHeaderTimeout: 5 * time.Second}
	log.Fatal(server.ListenAndServe())
}

// attempt is one request that came.
type attempt struct {
	Event    string          `json:"event"` // the same on every attempt: what to recognize a repetition by
	Delivery string          `json:"delivery"`
	Verified bool            `json:"verified"`
	Repeated bool            `json:"repeated"`
	Answered int             `json:"answered"`
	Body     json.RawMessage `json:"body"`
}

type receiver struct {
	verifier *signature.Verifier

	mu      sync.Mutex
	more    chan struct{} // closed and made anew when something arrives
	broken  bool
	arrived []attempt
	handled map[string]bool // events that were answered 200
}

func newReceiver(keys []string) (*receiver, error) {
	if len(keys) == 0 {
		return nil, errors.New("-secret is missing: it is the one that the webhook was created with")
	}
	v, err := signature.NewVerifier(keys)
	if err != nil {
		return nil, err
	}
	return &receiver{verifier: v, more: make(chan struct{}), handled: make(map[string]bool)}, nil
}

func (r *receiver) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /orders", r.receive)
	mux.HandleFunc("GET /arrived", r.show)
	mux.HandleFunc("POST /break", func(http.ResponseWriter, *http.Request) { r.set(true) })
	mux.HandleFunc("POST /mend", func(http.ResponseWriter, *http.Request) { r.set(false) })
	return mux
}

func (r *receiver) set(broken bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken = broken
}

// receive is what matters: the body is read whole and verified byte for byte
// before anything in it is believed.
func (r *receiver) receive(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, 2<<20))
	if err != nil {
		return
	}
	a := attempt{
		Event: req.Header.Get("webhook-id"), Delivery: req.Header.Get("X-Plinqx-Delivery"),
		Verified: r.verifier.Verify(req.Header, body) == nil, Answered: http.StatusOK,
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case !a.Verified:
		a.Answered = http.StatusUnauthorized // not from who it says: never act on it
	case r.broken:
		a.Answered = http.StatusInternalServerError
	case r.handled[a.Event]:
		a.Repeated = true // known already: answer 200 again, do nothing
	default:
		r.handled[a.Event] = true
	}
	if json.Valid(body) {
		a.Body = body
	}
	r.arrived = append(r.arrived, a)
	close(r.more)
	r.more = make(chan struct{})
	w.WriteHeader(a.Answered)
}

func (r *receiver) show(w http.ResponseWriter, req *http.Request) {
	want, _ := strconv.Atoi(req.FormValue("wait")) // not a number waits for nothing
	limit := time.After(30 * time.Second)
	for {
		r.mu.Lock()
		arrived, more := r.arrived, r.more
		r.mu.Unlock()
		if len(arrived) < want {
			select {
			case <-more:
				continue
			case <-req.Context().Done():
				return
			case <-limit:
			}
		}
		w.Header().Set("Content-Type", "application/json")
		out := json.NewEncoder(w)
		for _, a := range arrived {
			if err := out.Encode(a); err != nil {
				return
			}
		}
		return
	}
}
