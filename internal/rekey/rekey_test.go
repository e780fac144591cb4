package rekey_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/catalog"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/rekey"
	"github.com/plinqx/hypha/internal/seal"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/internal/store/sqlite"
)

func key(fill byte) []byte { return bytes.Repeat([]byte{fill}, seal.KeySize) }

func ring(t *testing.T, fills ...byte) *seal.Ring {
	t.Helper()
	var keys [][]byte
	for _, fill := range fills {
		keys = append(keys, key(fill))
	}
	r, err := seal.New(keys...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// filled is a store with so many webhooks, one of which has changed and one of which
// is deleted, and as many vault secrets, of two tenants, sealed with the ring.
func filled(t *testing.T, r *seal.Ring, n int) *sqlite.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), sqlite.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	c := catalog.New(s, r)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, tenant := range []id.Tenant{{1}, {2}} {
		must(s.InsertTenant(t.Context(), hook.Tenant{ID: tenant, Name: "acme"}))
		for i := range n {
			w := &hook.Webhook{
				Tenant: tenant, ID: id.Webhook{tenant[0], byte(i), byte(i >> 8)}, Revision: 1, Name: "one", URL: "https://example.com/", Enabled: true,
				Headers: map[string]string{"X-Key": fmt.Sprint("header ", i)}, Secrets: []hook.Secret{{Value: fmt.Sprint("secret ", i)}},
			}
			row, err := c.Seal(w)
			must(err)
			_, err = s.InsertWebhook(t.Context(), row)
			must(err)
			switch i {
			case 1:
				w.Revision++
				row, err = c.Seal(w)
				must(err)
				_, err = s.UpdateWebhook(t.Context(), row)
				must(err)
			case 2:
				_, err = s.DeleteWebhook(t.Context(), store.DeleteWebhookParams{Tenant: tenant, Webhook: w.ID, Job: id.Replay{byte(i)}, Now: time.Now()})
				must(err)
			}
			v, err := c.SealVault(&hook.VaultSecret{Tenant: tenant, ID: id.VaultSecret{tenant[0], byte(i), byte(i >> 8)}, Name: fmt.Sprint("S", i), Revision: 1, Value: fmt.Sprint("value ", i)})
			must(err)
			_, err = s.InsertVaultSecret(t.Context(), store.NewVaultSecret{VaultRow: v})
			must(err)
		}
	}
	return s
}

// rows is how many sealed rows a filled store has.
func rows(n int) int64 { return 2 * int64(3*n) } // less one webhook, and one revision more

// opens reads all that a filled store has with a ring.
func opens(t *testing.T, s *sqlite.Store, r *seal.Ring) {
	t.Helper()
	c := catalog.New(s, r)
	for _, tenant := range []id.Tenant{{1}, {2}} {
		snap, err := c.Tenant(t.Context(), tenant)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range snap.Webhooks() {
			want := fmt.Sprint("header ", int(w.ID[1])+int(w.ID[2])<<8)
			if w.Headers["X-Key"] != want {
				t.Errorf("the webhook's header is %q, want %q", w.Headers["X-Key"], want)
			}
			for revision := range w.Revision {
				row, err := s.WebhookRevision(t.Context(), tenant, w.ID, revision+1)
				if err != nil {
					t.Fatal(err)
				}
				if was, err := c.Open(row); err != nil || was.Headers["X-Key"] != want {
					t.Errorf("revision %d: %v", revision+1, err)
				}
			}
		}
		for _, v := range snap.Vault().Secrets() {
			if want := fmt.Sprint("value ", v.Name[1:]); v.Value != want {
				t.Errorf("the secret is %q, want %q", v.Value, want)
			}
		}
	}
}

func TestRekey(t *testing.T) {
	if store.SealedHead != seal.HeadSize {
		t.Fatalf("the store looks at %d bytes, and %d say which key it is", store.SealedHead, seal.HeadSize)
	}
	const n = 70 // more than a chunk
	old, both := ring(t, 1), ring(t, 2, 1)
	s := filled(t, old, n)
	r := rekey.New(rekey.Options{Store: s, Ring: both})
	keys, err := r.Keys(t.Context())
	if want := []rekey.Key{{ID: both.Current(), Current: true, Held: true}, {ID: old.Current(), Held: true, InUse: rows(n)}}; err != nil || !slices.Equal(keys, want) {
		t.Fatalf("before: %+v, %v; want %+v", keys, err, want)
	}
	opens(t, s, both)
	got, err := r.Rekey(t.Context())
	if err != nil || got.Resealed != rows(n) || got.Unreadable != 0 || got.More {
		t.Fatalf("%+v, %v; want %d", got, err, rows(n))
	}
	if want := []rekey.Key{{ID: both.Current(), Current: true, Held: true, InUse: rows(n)}, {ID: old.Current(), Held: true}}; !slices.Equal(got.Keys, want) {
		t.Errorf("afterwards: %+v; want %+v", got.Keys, want)
	}
	opens(t, s, ring(t, 2))
	if again, err := r.Rekey(t.Context()); err != nil || again.Resealed != 0 || !slices.Equal(again.Keys, got.Keys) {
		t.Errorf("again: %+v, %v", again, err)
	}
	if err := rekey.New(rekey.Options{Store: s, Ring: ring(t, 2)}).Check(t.Context()); err != nil {
		t.Errorf("without the old key: %v", err)
	}
}

func TestMissingKeyIsNamed(t *testing.T) {
	old := ring(t, 1)
	s := filled(t, old, 3)
	r := rekey.New(rekey.Options{Store: s, Ring: ring(t, 2)})
	err := r.Check(t.Context())
	if err == nil || !strings.Contains(err.Error(), old.Current().String()) || !strings.Contains(err.Error(), ring(t, 2).Current().String()) {
		t.Errorf("another key: %v", err)
	}
	got, err := r.Rekey(t.Context())
	if err != nil || got.Resealed != 0 || got.Unreadable != rows(3) {
		t.Errorf("%+v, %v", got, err)
	}
	if want := (rekey.Key{ID: old.Current(), InUse: rows(3)}); got != nil && !slices.Contains(got.Keys, want) {
		t.Errorf("%+v", got.Keys)
	}
	opens(t, s, old)
}

// broken is a store that fails after some calls, as a process that is killed does.
type broken struct {
	rekey.Store
	left int
}

var errBroken = errors.New("killed")

func (b *broken) Reseal(ctx context.Context, rows []store.Resealed) (int64, error) {
	if b.left--; b.left < 0 {
		return 0, errBroken
	}
	return b.Store.Reseal(ctx, rows)
}

// Broken off after each chunk, and begun again.
func TestRekeyGoesOn(t *testing.T) {
	const n = 70
	both := ring(t, 2, 1)
	s := filled(t, ring(t, 1), n)
	for calls := 1; ; calls++ {
		b := &broken{Store: s, left: 1}
		got, err := rekey.New(rekey.Options{Store: b, Ring: both}).Rekey(t.Context())
		opens(t, s, both)
		if err == nil {
			if calls < 7 || got.Keys[1].InUse != 0 {
				t.Errorf("%d calls: %+v", calls, got)
			}
			break
		}
		if !errors.Is(err, errBroken) || calls > 20 {
			t.Fatal(err)
		}
	}
	opens(t, s, ring(t, 2))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second) // as much as is left for the answer
	defer cancel()
	other := rekey.New(rekey.Options{Store: s, Ring: ring(t, 3, 2)})
	if got, err := other.Rekey(ctx); err != nil || !got.More || got.Resealed != 0 || len(got.Keys) != 2 {
		t.Errorf("no time: %+v, %v", got, err)
	}
}

// Several nodes rekey while others change what is sealed. Nothing is lost, and in the
// end all is under the new key.
func TestRekeyBesideChanges(t *testing.T) {
	const n = 40
	old, both := ring(t, 1), ring(t, 2, 1)
	s := filled(t, old, n)
	c := catalog.New(s, old) // a node that seals with the old key still
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if _, err := rekey.New(rekey.Options{Store: s, Ring: both}).Rekey(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Go(func() {
		for i := range n {
			secret := id.VaultSecret{1, byte(i), byte(i >> 8)}
			row, err := c.SealVault(&hook.VaultSecret{Tenant: id.Tenant{1}, ID: secret, Name: fmt.Sprint("S", i), Revision: 2, Value: fmt.Sprint("changed ", i)})
			if err == nil {
				_, err = s.UpdateVaultSecret(t.Context(), row)
			}
			if err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	if _, err := rekey.New(rekey.Options{Store: s, Ring: both}).Rekey(t.Context()); err != nil {
		t.Fatal(err)
	}
	held, err := catalog.New(s, ring(t, 2)).Vault(t.Context(), id.Tenant{1})
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if v, _ := held.Value(fmt.Sprint("S", i)); v != fmt.Sprint("changed ", i) {
			t.Errorf("S%d is %q", i, v)
		}
	}
}

func fileText(keys [][]byte) (text string) {
	for _, k := range keys {
		text += hex.EncodeToString(k) + "\n"
	}
	return text
}

func TestNewKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	write := func(fills ...byte) {
		var keys [][]byte
		for _, fill := range fills {
			keys = append(keys, key(fill))
		}
		if err := os.WriteFile(path, []byte(fileText(keys)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(1)
	running := ring(t, 1)
	old := running.Current()
	s := filled(t, running, 3)
	r := rekey.New(rekey.Options{Store: s, Ring: running, KeyFile: path})
	made, err := r.NewKey(t.Context())
	if err != nil || made == old || running.Current() != made || !running.Has(old) {
		t.Fatalf("made %s, %v; the ring is %v", made, err, running.IDs())
	}
	fromFile, err := seal.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	started, err := seal.New(fromFile...)
	if err != nil || !slices.Equal(started.IDs(), running.IDs()) {
		t.Fatalf("the file has %v, %v", started.IDs(), err)
	}
	opens(t, s, started) // as a server that was killed here would
	if got, err := r.Rekey(t.Context()); err != nil || got.Resealed != rows(3) {
		t.Fatalf("%+v, %v", got, err)
	}
	opens(t, s, started)

	write(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
	if all, err := seal.ReadFile(path); err != nil || os.WriteFile(path, []byte(fileText(append([][]byte{fromFile[0]}, all...))), 0o600) != nil {
		t.Fatal(err)
	}
	if _, err := r.NewKey(t.Context()); hook.CodeOf(err) != hook.CodeConflict || running.Current() != made {
		t.Errorf("a seventeenth key: %v", err)
	}
	write(5) // somebody has put other keys in the file
	if _, err := r.NewKey(t.Context()); err == nil || !strings.Contains(err.Error(), made.String()) || running.Current() != made {
		t.Errorf("the file lacks a key in use: %v", err)
	}
	if left, err := seal.ReadFile(path); err != nil || len(left) != 1 {
		t.Errorf("the file has %d keys, %v", len(left), err)
	}
	if _, err := rekey.New(rekey.Options{Store: s, Ring: running}).NewKey(t.Context()); hook.CodeOf(err) != hook.CodeConflict {
		t.Errorf("keys that are given otherwise: %v", err)
	}
}
