package api_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/api"
	"github.com/plinqx/hypha/internal/ingest"
	"github.com/plinqx/hypha/internal/store"
)

// instant accepts without doing anything: what is left is the API's own work.
type instant struct{ api.Publisher }

func (instant) Publish(_ context.Context, r ingest.Request) ([]store.AcceptResult, error) {
	out := make([]store.AcceptResult, len(r.Events))
	for i := range r.Events {
		out[i] = store.AcceptResult{PublicID: "evt_01jd6c3v7genxa5fhm2rj8wq4t", Type: r.Events[i].Type, Timestamp: time.Unix(1, 0)}
	}
	return out, nil
}

// discard is an answer that nobody reads.
type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(b []byte) (int, error) { return len(b), nil }
func (d discard) WriteHeader(int)             {}

const kilobyte = 1024

func publishing(t *testing.T) func() {
	s := newServer(t, func(o *api.Options) {
		o.Publisher, o.Logger = instant{}, slog.New(slog.DiscardHandler)
	})
	body := `{"type":"order.paid","data":{"text":"` + strings.Repeat("a", kilobyte) + `","list":[1,2,3]}}`
	reader := strings.NewReader(body)
	req := httptest.NewRequest(http.MethodPost, "/services/events", nil)
	req.Header.Set("Authorization", "Bearer "+adminKey)
	req.Header.Set("Content-Type", "application/json")
	req.ContentLength = int64(len(body))
	return func() {
		reader.Reset(body)
		req.Body = io.NopCloser(reader)
		s.handler.ServeHTTP(discard{http.Header{}}, req)
	}
}

// TestPublishAllocations bounds what the hot path costs beside the commit.
func TestPublishAllocations(t *testing.T) {
	if n := testing.AllocsPerRun(200, publishing(t)); n > 30 {
		t.Errorf("publishing allocates %.0f times, want 30 at most", n)
	}
}
