// Package match answers which webhooks of a tenant want an event. It is pure:
// an Index is built once for a configuration and asked for each event.
package match

import (
	"slices"
	"strings"

	"github.com/plinqx/hypha/internal/hook"
)

// Index finds the webhooks that want a type without looking at the others.
type Index struct {
	// by subscription as it is written: an exact type, "prefix.*", or "*"
	subscribers map[string][]*hook.Webhook
}

// New indexes webhooks. Disabled ones get no new events, so they are left out.
func New(webhooks []*hook.Webhook) *Index {
	ix := &Index{subscribers: make(map[string][]*hook.Webhook)}
	for _, w := range webhooks {
		if !w.Enabled {
			continue
		}
		for i, s := range w.Events {
			if slices.Contains(w.Events[:i], s) {
				continue
			}
			ix.subscribers[s] = append(ix.subscribers[s], w)
		}
	}
	return ix
}

// Match lists the webhooks that want an event of this type, each once, oldest
// webhook first. The result may be shared: it must not be changed.
func (ix *Index) Match(eventType string) []*hook.Webhook {
	found, shared := ix.subscribers[eventType], true
	add := func(subscription string) {
		more := ix.subscribers[subscription]
		switch {
		case len(more) == 0:
		case len(found) == 0:
			found = more
		default:
			if shared {
				found, shared = slices.Clone(found), false
			}
			found = append(found, more...)
		}
	}
	for i := range len(eventType) {
		if eventType[i] == '.' {
			add(eventType[:i+1] + "*")
		}
	}
	add("*")
	if shared {
		return found
	}
	slices.SortFunc(found, func(a, b *hook.Webhook) int { return a.ID.Compare(b.ID) })
	return slices.Compact(found)
}

// Wants reports whether a webhook is subscribed to a type, enabled or not.
func Wants(w *hook.Webhook, eventType string) bool {
	return slices.ContainsFunc(w.Events, func(s string) bool {
		if prefix, ok := strings.CutSuffix(s, "*"); ok {
			return strings.HasPrefix(eventType, prefix)
		}
		return s == eventType
	})
}
