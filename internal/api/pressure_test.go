package api_test

import (
	"io"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/api"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
)

// untouched is a body that nobody may read.
type untouched struct{ t *testing.T }

func (u untouched) Read([]byte) (int, error) {
	u.t.Error("the body was read")
	return 0, io.EOF
}

// An event that could not be taken in is refused before anything is done for it.
func TestRefusedAtTheDoor(t *testing.T) {
	var full error
	var asked []id.Tenant
	s := newServer(t, func(o *api.Options) {
		o.Admit = func(tenant id.Tenant) error { asked = append(asked, tenant); return full }
	})
	full = hook.Unavailable(1500*time.Millisecond, nil, "Come back later")
	for _, target := range []string{"/services/events", "/services/events/batch"} {
		req := httptest.NewRequest("POST", target, untouched{t})
		req.Header.Set("Authorization", "Bearer "+adminKey)
		req.Header.Set("Content-Type", "application/json")
		a := s.send(req, "")
		if a.status != 503 || a.header.Get("Retry-After") != "2" || a.text("error.message") != "Come back later" {
			t.Errorf("%s = %d, Retry-After %q\n%s", target, a.status, a.header.Get("Retry-After"), a.body)
		}
	}
	s.must(401, "POST", "/services/events", `{}`, "Authorization: ") // who may not come in is told that
	full = nil
	s.must(202, "POST", "/services/events", `{"type":"a.b","data":1}`)
	s.must(201, "POST", "/services/webhooks", `{"name":"w","url":"https://example.com/","events":["*"]}`) // nobody is asked
	if len(asked) != 3 || asked[0] != s.tenant {
		t.Errorf("asked for %v", asked)
	}
}

// A tenant that sends a lot, slowly, leaves room for another.
func TestBodiesOfOneTenantLeaveRoomForAnother(t *testing.T) {
	refused := map[bool]int{}
	s := newServer(t, func(o *api.Options) {
		o.MaxBodies = 1 << 20
		o.NoRoom = func(ofTenant bool) { refused[ofTenant]++ }
	})
	_, key := s.newTenant()
	answered := make(chan int)
	var bodies []*io.PipeWriter
	const slow = 7 // times 64 KiB
	for range slow {
		r, w := io.Pipe()
		bodies = append(bodies, w)
		req := httptest.NewRequest("POST", "/services/events", r)
		req.Header.Set("Authorization", "Bearer "+adminKey)
		req.Header.Set("Content-Type", "application/json")
		req.ContentLength = 1 << 20
		go func() {
			rec := httptest.NewRecorder()
			s.handler.ServeHTTP(rec, req)
			answered <- rec.Code
		}()
		if _, err := w.Write([]byte("{" + strings.Repeat(" ", 40_000))); err != nil { // it has been read
			t.Fatal(err)
		}
	}
	event := func(size int) string { return `{"type":"a.b","data":"` + strings.Repeat("a", size) + `"}` }
	a := s.must(429, "POST", "/services/events", event(200_000))
	if a.text("error.code") != "RATE_LIMITED" || a.header.Get("Retry-After") != "1" || refused[true] != 1 || refused[false] != 0 {
		t.Errorf("Retry-After %q, counted %v\n%s", a.header.Get("Retry-After"), refused, a.body)
	}
	s.must(202, "POST", "/services/events", event(200_000), "Authorization: Bearer "+key)
	for _, w := range bodies {
		if err := w.CloseWithError(io.ErrUnexpectedEOF); err != nil {
			t.Fatal(err)
		}
	}
	for range slow {
		<-answered
	}
	s.must(202, "POST", "/services/events", event(200_000))
}
