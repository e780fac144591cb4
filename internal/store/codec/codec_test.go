package codec_test

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/internal/store/codec"
)

func drawAttempt(t *rapid.T) hook.Attempt {
	micros := rapid.Map(rapid.Int64Range(0, 1<<40), func(n int64) time.Duration { return time.Duration(n) * time.Microsecond })
	a := hook.Attempt{
		Number: rapid.IntRange(1, 1<<30).Draw(t, "number"), Trigger: hook.Trigger(rapid.String().Draw(t, "trigger")),
		StartedAt: time.UnixMilli(rapid.Int64Range(0, 1<<45).Draw(t, "started")).UTC(), Duration: micros.Draw(t, "duration"),
		Timings:  hook.Timings{DNS: micros.Draw(t, "dns"), Connect: micros.Draw(t, "connect"), TLS: micros.Draw(t, "tls"), FirstByte: micros.Draw(t, "first byte")},
		Revision: rapid.Int64().Draw(t, "revision"), StatusCode: rapid.IntRange(0, 999).Draw(t, "status"),
		Body: rapid.SliceOf(rapid.Byte()).Draw(t, "body"),
	}
	if rapid.Bool().Draw(t, "failed") {
		a.Failure = &hook.Failure{Kind: hook.FailureKind(rapid.String().Draw(t, "kind")), Message: rapid.String().Draw(t, "message")}
	}
	a.Header = http.Header(rapid.MapOf(rapid.String(), rapid.SliceOfN(rapid.String(), 1, 3)).Draw(t, "header"))
	return a
}

func TestAttemptsComeBackAsTheyWere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := drawAttempt(t)
		got, err := codec.DecodeAttempt(codec.EncodeAttempt(&want))
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); err != nil || diff != "" {
			t.Fatalf("%v (-want +got):\n%s", err, diff)
		}
	})
}

func TestAnswersComeBackAsRepetitions(t *testing.T) {
	want := []store.AcceptResult{
		{PublicID: "a", Type: "b.c", Timestamp: time.UnixMilli(1700000000000).UTC(), Deliveries: 3},
		{PublicID: "d", Type: "e.f", Timestamp: time.UnixMilli(0).UTC()},
	}
	got, err := codec.DecodeAnswer(codec.EncodeAnswer(want))
	for i := range want {
		want[i].Duplicate = true
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Fatalf("%v (-want +got):\n%s", err, diff)
	}
}

func TestWebhooksComeBackAsTheyWere(t *testing.T) {
	want := hook.Webhook{
		Name: "orders", URL: "https://example.com/", Events: []string{"a.*"}, Enabled: true, Timeout: 3 * time.Second, Description: "d",
		DisabledReason: hook.DisabledGone, CreatedAt: time.UnixMilli(1).UTC(), UpdatedAt: time.UnixMilli(2).UTC(),
	}
	text, err := codec.EncodeWebhook(&want)
	if err != nil {
		t.Fatal(err)
	}
	var got hook.Webhook
	err = codec.DecodeWebhook(text, &got)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Fatalf("%v (-want +got):\n%s", err, diff)
	}
	if err := codec.DecodeWebhook("{", &got); err == nil {
		t.Error("half a webhook was read")
	}
}

// What is cut short, or of a form that nobody knows, is an error, whatever it is.
func TestWhatIsDamagedIsSaidToBe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := drawAttempt(t)
		a.Body = nil
		whole := codec.EncodeAttempt(&a)
		cut := rapid.IntRange(0, len(whole)-1).Draw(t, "cut")
		if _, err := codec.DecodeAttempt(whole[:cut]); !errors.Is(err, codec.ErrDamaged) {
			t.Fatalf("%d of %d bytes: %v", cut, len(whole), err)
		}
	})
	if _, err := codec.DecodeAttempt([]byte{250}); !errors.Is(err, codec.ErrDamaged) {
		t.Errorf("another form: %v", err)
	}
	if _, err := codec.DecodeAnswer([]byte{1, 200}); !errors.Is(err, codec.ErrDamaged) {
		t.Errorf("an answer that is cut short: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(codec.EncodeAttempt(&hook.Attempt{Number: 1, Header: http.Header{"A": {"b"}}, Body: []byte("c")}))
	f.Add(codec.EncodeAnswer([]store.AcceptResult{{PublicID: "a"}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		// Whatever can be read must come back with little memory, and can be
		// written and read again.
		if a, err := codec.DecodeAttempt(b); err == nil {
			again, err := codec.DecodeAttempt(codec.EncodeAttempt(&a))
			if err != nil || !cmp.Equal(again, a, cmpopts.EquateEmpty()) {
				t.Errorf("%+v was read, and %+v again: %v", a, again, err)
			}
		}
		if results, err := codec.DecodeAnswer(b); err == nil {
			again, err := codec.DecodeAnswer(codec.EncodeAnswer(results))
			if err != nil || !cmp.Equal(again, results, cmpopts.EquateEmpty()) {
				t.Errorf("%+v was read, and %+v again: %v", results, again, err)
			}
		}
		codec.SplitIDs(b)
		d := codec.Decoder{Rest: b}
		_ = id.Tenant(d.ID())
	})
}
