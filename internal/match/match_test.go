package match_test

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/match"
)

func TestWants(t *testing.T) {
	for _, tc := range []struct {
		subscription, eventType string
		want                    bool
	}{
		{"invocation.completed", "invocation.completed", true},
		{"invocation.completed", "invocation.failed", false},
		{"invocation.completed", "Invocation.completed", false},
		{"invocation.*", "invocation.completed", true},
		{"invocation.*", "invocation.step.completed", true},
		{"invocation.*", "invocation", false},
		{"invocation.*", "invocations.completed", false},
		{"*", "anything", true},
		{"a.b.*", "a.b", false},
		{"a.b.*", "a.b.c", true},
	} {
		w := &hook.Webhook{Events: []string{tc.subscription}, Enabled: true}
		if got := match.Wants(w, tc.eventType); got != tc.want {
			t.Errorf("%s wants %s: %t", tc.subscription, tc.eventType, got)
		}
		if got := len(match.New([]*hook.Webhook{w}).Match(tc.eventType)) == 1; got != tc.want {
			t.Errorf("%s matches %s: %t", tc.subscription, tc.eventType, got)
		}
	}
}

// The index must find what asking every webhook would find: each once, in order.
func TestMatchIsWantsOfAll(t *testing.T) {
	segment := rapid.SampledFrom([]string{"a", "b", "c"})
	eventType := rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(segment, 1, 4).Draw(t, "segments"), ".")
	})
	subscription := rapid.Custom(func(t *rapid.T) string {
		switch rapid.IntRange(0, 4).Draw(t, "form") {
		case 0:
			return "*"
		case 1, 2:
			return eventType.Draw(t, "prefix") + ".*"
		default:
			return eventType.Draw(t, "exact")
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		var all []*hook.Webhook
		for i := range rapid.IntRange(0, 8).Draw(t, "webhooks") {
			all = append(all, &hook.Webhook{
				ID:      id.Webhook{0: byte(i)},
				Events:  rapid.SliceOfN(subscription, 1, 4).Draw(t, "events"),
				Enabled: rapid.Bool().Draw(t, "enabled"),
			})
		}
		ix := match.New(all)
		for range 3 { // asking must not disturb the index
			et := eventType.Draw(t, "type")
			var want []*hook.Webhook
			for _, w := range all {
				if w.Enabled && match.Wants(w, et) {
					want = append(want, w)
				}
			}
			got := ix.Match(et)
			if len(got) != len(want) {
				t.Fatalf("%s: %d webhooks, want %d", et, len(got), len(want))
			}
			for i := range got {
				if got[i] != want[i] {
					t.Fatalf("%s: place %d is %s", et, i, got[i].ID)
				}
			}
		}
	})
}
