package api_test

import (
	"net/http"
	"slices"
	"testing"

	"github.com/go-chi/chi/v5"
	"github.com/google/go-cmp/cmp"
)

// TestContractHasEveryRoute holds the routes against the document, both ways.
func TestContractHasEveryRoute(t *testing.T) {
	s := newServer(t, nil)
	routes, ok := s.handler.(chi.Routes)
	if !ok {
		t.Fatalf("the handler is a %T, which can't be walked", s.handler)
	}
	var served []string
	err := chi.Walk(routes, func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		if method != http.MethodHead {
			served = append(served, method+" "+route)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(served)
	if diff := cmp.Diff(s.check.Operations(), served); diff != "" {
		t.Errorf("in openapi.yaml (-), served (+):\n%s", diff)
	}
}
