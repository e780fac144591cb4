package audit_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/plinqx/hypha/internal/audit"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/store"
)

func TestNote(t *testing.T) {
	somebody := hook.AuditActor{Kind: hook.ActorUser, ID: "usr_1", Name: "ada@example.com"}
	origin := hook.AuditOrigin{Address: "192.0.2.1", RequestID: "r", UserAgent: "u"}
	asked := audit.By(t.Context(), somebody, origin)
	other := hook.AuditActor{Kind: hook.ActorUser, ID: "usr_2"}
	for name, tc := range map[string]struct {
		ctx   context.Context
		given hook.AuditEntry
		want  hook.AuditEntry
	}{
		"nobody asked for it":      {t.Context(), hook.AuditEntry{}, hook.AuditEntry{Actor: hook.AuditActor{Kind: hook.ActorSystem}}},
		"somebody asked for it":    {asked, hook.AuditEntry{}, hook.AuditEntry{Actor: somebody, Origin: origin}},
		"the entry knows who":      {asked, hook.AuditEntry{Actor: other}, hook.AuditEntry{Actor: other, Origin: origin}},
		"in another context":       {audit.Carry(t.Context(), audit.Note(asked, hook.AuditEntry{})), hook.AuditEntry{}, hook.AuditEntry{Actor: hook.AuditActor{Kind: hook.ActorSystem}}},
		"the latest note is meant": {audit.Note(asked, hook.AuditEntry{Action: hook.AuditWebhookCreated}), hook.AuditEntry{Action: hook.AuditWebhookDeleted}, hook.AuditEntry{Action: hook.AuditWebhookDeleted, Actor: somebody, Origin: origin}},
	} {
		if diff := cmp.Diff(&tc.want, store.AuditOf(audit.Note(tc.ctx, tc.given))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	carried := store.AuditOf(audit.Carry(t.Context(), audit.Note(asked, hook.AuditEntry{})))
	if diff := cmp.Diff(&hook.AuditEntry{Actor: somebody, Origin: origin}, carried); diff != "" {
		t.Errorf("carried (-want +got):\n%s", diff)
	}
	if e := store.AuditOf(audit.Carry(asked, t.Context())); e != nil {
		t.Errorf("out of nothing: %+v", e)
	}
	// What the store adds is its own.
	noted := audit.Note(asked, hook.AuditEntry{Changes: make([]hook.AuditChange, 0, 8)})
	store.AuditOf(noted).SetCount("deliveries", 1)
	if e := store.AuditOf(noted); len(e.Changes) != 0 {
		t.Errorf("an entry was changed: %+v", e)
	}
}

func TestDiff(t *testing.T) {
	var d audit.Diff
	at := time.Date(2026, 5, 1, 12, 0, 0, 123e6, time.FixedZone("", 3600))
	d.Changed("same", "a", "a")
	d.Changed("text", "a", "<b> \u202e")
	d.Changed("list", []string{"a b"}, []string{"a", "b"})
	d.Changed("time", time.Time{}, at)
	d.Changed("flag", true, false)
	d.Set("number", int64(7))
	d.Set("nothing", time.Time{})
	d.Secret("secret")
	d.Set("long", strings.Repeat("é", hook.MaxAuditValue+1))
	d.Set("many", []string{strings.Repeat("a", 500), strings.Repeat("b", 12), "c"})
	var got []string
	for _, c := range d {
		got = append(got, c.Field+" "+string(c.From)+" "+string(c.To))
	}
	want := []string{
		`text "a" "\u003cb\u003e ` + "\u202e" + `"`, `list ["a b"] ["a","b"]`, `time null "2026-05-01T11:00:00.123Z"`, "flag true false",
		"number  7", "nothing  null", "secret  ",
		`long  "` + strings.Repeat("é", hook.MaxAuditValue) + `…"`,
		`many  ["` + strings.Repeat("a", 500) + `","bbbbbbbbbbbb","…"]`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
}
