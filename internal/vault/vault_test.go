package vault_test

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/catalog"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/registry"
	"github.com/plinqx/hypha/internal/seal"
	"github.com/plinqx/hypha/internal/store/sqlite"
	"github.com/plinqx/hypha/internal/vault"
)

// node is a vault and a registry as one process has them; several may share a store.
type node struct {
	*vault.Vault
	hooks   *registry.Registry
	catalog *catalog.Catalog
}

type rig struct {
	*testing.T
	store  *sqlite.Store
	ring   *seal.Ring
	tenant id.Tenant
	node
}

type anyURL struct{}

func (anyURL) CheckURL(raw string) (*url.URL, error) { return url.Parse(raw) }

func newRig(t *testing.T) *rig {
	t.Helper()
	s, err := sqlite.Open(t.Context(), sqlite.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	ring, err := seal.New(bytes.Repeat([]byte{7}, seal.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{T: t, store: s, ring: ring, tenant: id.Tenant{1}}
	for _, tenant := range []id.Tenant{r.tenant, {2}} {
		if err := s.InsertTenant(t.Context(), hook.Tenant{ID: tenant, Name: "acme"}); err != nil {
			t.Fatal(err)
		}
	}
	r.node = r.another()
	return r
}

// another is a second process on the same store.
func (r *rig) another() node {
	c := catalog.New(r.store, r.ring)
	return node{
		catalog: c,
		Vault:   vault.New(vault.Options{Store: r.store, Catalog: c, Now: time.Now, Shared: true}),
		hooks: registry.New(registry.Options{
			Store: r.store, Catalog: c, URLs: anyURL{}, HeaderPrefix: "X-Plinqx", Now: time.Now, Discard: func(id.Tenant, id.Replay) {}, Shared: true,
		}),
	}
}

func (r *rig) add(name, value string) *hook.VaultSecret {
	r.Helper()
	s, err := r.Create(r.Context(), r.tenant, vault.Change{Name: &name, Value: &value})
	if err != nil {
		r.Fatal(err)
	}
	return s
}

func hookWith(headers map[string]string) registry.Change {
	return registry.Change{Name: new("one"), URL: new("https://example.com/"), Events: &[]string{"a.b"}, Headers: &headers}
}

// problems are the details of a refusal.
func problems(t *testing.T, err error) []string {
	t.Helper()
	var out []string
	if e, ok := err.(*hook.Error); ok && e.Code == hook.CodeValidation { //nolint:errorlint // it is made here
		for _, d := range e.Details {
			out = append(out, d.Path+" "+d.Message)
		}
	} else if err != nil {
		t.Errorf("unexpected error: %v", err)
	}
	return out
}

func TestRules(t *testing.T) {
	r := newRig(t)
	for i, tc := range []struct {
		name, value, description string
		wrong                    []string // paths
	}{
		{"ERP_token-1", "s3cret", "", nil},
		{strings.Repeat("n", 64), strings.Repeat("v", 4096), strings.Repeat("é", 4096), nil},
		{"one", "x", "two\nlines", nil},
		{"spaces", "a b  c", "", nil},
		{"stars", "**a**", "", nil},
		{"braces", "{{vault.ERP_token-1}}", "", nil}, // text, where it is filled in
		{"", "x", "", []string{"name"}},
		{"a.b", "x", "", []string{"name"}},
		{"a b", "x", "", []string{"name"}},
		{"ä", "x", "", []string{"name"}},
		{strings.Repeat("n", 65), "x", "", []string{"name"}},
		{"v0", "", "", []string{"value"}},
		{"v1", strings.Repeat("v", 4097), "", []string{"value"}},
		{"v2", "****", "", []string{"value"}},
		{"v3", "********", "", []string{"value"}},
		{"v4", "a\nb", "", []string{"value"}},
		{"v5", "a\tb", "", []string{"value"}},
		{"v6", "a\x00b", "", []string{"value"}},
		{"v7", "é", "", []string{"value"}},
		{"v8", " a", "", []string{"value"}},
		{"v9", "a ", "", []string{"value"}},
		{"d", "x", strings.Repeat("é", 4097), []string{"description"}},
		{"", "****", "a\x00", []string{"name", "value", "description"}},
	} {
		_, err := r.Create(t.Context(), r.tenant, vault.Change{Name: &tc.name, Value: &tc.value, Description: &tc.description})
		got := problems(t, err)
		if len(got) != len(tc.wrong) {
			t.Errorf("%d: %q; want %q", i, got, tc.wrong)
		}
		for j := range got {
			if !strings.HasPrefix(got[j], tc.wrong[j]+" ") || len(tc.value) > 5 && strings.Contains(got[j], tc.value) {
				t.Errorf("%d: %q; want %q", i, got, tc.wrong)
			}
		}
	}
	if got := problems(t, errOf(r.Create(t.Context(), r.tenant, vault.Change{}))); len(got) != 2 {
		t.Errorf("nothing is required: %q", got)
	}
}

func errOf(_ any, err error) error { return err }

func TestChange(t *testing.T) {
	r := newRig(t)
	s := r.add("A", "first")
	before, err := r.catalog.Vault(t.Context(), r.tenant)
	if err != nil {
		t.Fatal(err)
	}
	if same, err := r.Update(t.Context(), r.tenant, s.ID, vault.Change{Value: new("first")}); err != nil || same.Revision != 1 {
		t.Errorf("nothing changed, and it is %+v, %v", same, err)
	}
	changed, err := r.Update(t.Context(), r.tenant, s.ID, vault.Change{Value: new("second")})
	if err != nil || changed.Revision != 2 || changed.Name != "A" {
		t.Fatalf("%+v, %v", changed, err)
	}
	after, _ := r.catalog.Vault(t.Context(), r.tenant)
	if v, _ := after.Value("A"); v != "second" || after == before {
		t.Errorf("the catalogue has %q", v)
	}
	// A change of something else leaves what was worked out with the vault.
	if _, err := r.hooks.Create(t.Context(), r.tenant, hookWith(nil)); err != nil {
		t.Fatal(err)
	}
	if later, _ := r.catalog.Vault(t.Context(), r.tenant); later != after {
		t.Error("a new webhook made another vault")
	}
	if _, err := r.catalog.Refresh(t.Context(), r.tenant, 1<<40); err != nil {
		t.Fatal(err)
	}
	if later, _ := r.catalog.Vault(t.Context(), r.tenant); later != after {
		t.Error("what was read again is another vault")
	}
	if problems(t, errOf(r.Update(t.Context(), r.tenant, s.ID, vault.Change{Value: new("****")}))) == nil {
		t.Error("the mask is taken for a value")
	}
	if _, err := r.Update(t.Context(), id.Tenant{2}, s.ID, vault.Change{Value: new("theirs")}); hook.CodeOf(err) != hook.CodeNotFound {
		t.Errorf("another tenant's: %v", err)
	}
	if err := r.Delete(t.Context(), id.Tenant{2}, s.ID); hook.CodeOf(err) != hook.CodeNotFound {
		t.Errorf("another tenant's: %v", err)
	}
	if err := r.Delete(t.Context(), r.tenant, s.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Get(t.Context(), r.tenant, s.ID); hook.CodeOf(err) != hook.CodeNotFound {
		t.Errorf("afterwards: %v", err)
	}
	row, err := r.store.TenantConfig(t.Context(), r.tenant)
	if err != nil || len(row.Vault) != 0 {
		t.Errorf("the store has %v, %v", row, err)
	}
}

// Two processes change the same secret, each another field: neither change is lost.
func TestConfigurationMoves(t *testing.T) {
	r := newRig(t)
	s, other := r.add("A", "first"), r.another()
	if _, err := other.Get(t.Context(), r.tenant, s.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Update(t.Context(), r.tenant, s.ID, vault.Change{Value: new("mine")}); err != nil {
		t.Fatal(err)
	}
	got, err := other.Update(t.Context(), r.tenant, s.ID, vault.Change{Description: new("theirs")})
	if err != nil || got.Value != "mine" || got.Description != "theirs" || got.Revision != 3 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestReferences(t *testing.T) {
	r := newRig(t)
	a := r.add("A", "alpha")
	r.add("LONG", strings.Repeat("v", 4096))
	for _, tc := range []struct {
		value, want string
	}{
		{"{{vault.A}}", ""},
		{"Bearer {{vault.A}}", ""},
		{"{{name}} {{ x }}", ""},
		{"{{vault.LONG}}{{vault.LONG}}", ""},
		{"{{vault.LONG}}{{vault.LONG}}x", "8192"},
		{"{{vault.B}}", "vault secret B"},
		{"{{vault.a}}", "vault secret a"},
		{"{{ vault.A }}", "{{vault.NAME}}"},
		{"{{vault.A", "{{vault.NAME}}"},
	} {
		made, err := r.hooks.Create(t.Context(), r.tenant, hookWith(map[string]string{"Authorization": tc.value}))
		got := problems(t, err)
		if (tc.want == "") != (err == nil) || tc.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], "headers.Authorization ") || !strings.Contains(got[0], tc.want)) {
			t.Errorf("create %q: %q; want %q", tc.value, got, tc.want)
		}
		if err == nil {
			if err := r.hooks.Delete(t.Context(), r.tenant, made.Webhook.ID); err != nil {
				t.Error(err)
			}
		}
		plain, err := r.hooks.Create(t.Context(), r.tenant, hookWith(nil))
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.hooks.Update(t.Context(), r.tenant, plain.Webhook.ID, registry.Change{Headers: &map[string]string{"X-Key": tc.value}})
		if got := problems(t, err); (tc.want == "") != (err == nil) || tc.want != "" && !strings.Contains(got[0], tc.want) {
			t.Errorf("update to %q: %q; want %q", tc.value, got, tc.want)
		}
		if err := r.hooks.Delete(t.Context(), r.tenant, plain.Webhook.ID); err != nil {
			t.Error(err)
		}
	}
	many := map[string]string{}
	for i := range vault.MaxReferences + 1 {
		name := fmt.Sprint("N", i)
		r.add(name, "x")
		many[fmt.Sprint("X-", i/2)] += "{{vault." + name + "}}"
	}
	if got := problems(t, errOf(r.hooks.Create(t.Context(), r.tenant, hookWith(many)))); len(got) != 1 || !strings.HasPrefix(got[0], "headers refer to 33") {
		t.Errorf("too many: %q", got)
	}

	used, err := r.hooks.Create(t.Context(), r.tenant, hookWith(map[string]string{"Authorization": "{{vault.A}}{{vault.LONG}}"}))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Delete(t.Context(), r.tenant, a.ID); hook.CodeOf(err) != hook.CodeConflict || !strings.Contains(err.Error(), used.Webhook.ID.String()) {
		t.Errorf("in use: %v", err)
	}
	if _, err := r.Update(t.Context(), r.tenant, a.ID, vault.Change{Value: new(strings.Repeat("a", 4095))}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.hooks.Update(t.Context(), r.tenant, used.Webhook.ID, registry.Change{Headers: &map[string]string{"X-Key": "{{vault.N1}}{{vault.A}}{{vault.LONG}}"}}); err != nil {
		t.Fatal(err)
	}
	n1 := secretNamed(t, r, "N1")
	got := problems(t, errOf(r.Update(t.Context(), r.tenant, n1.ID, vault.Change{Value: new("xx")})))
	if len(got) != 1 || !strings.HasPrefix(got[0], "value would make the header X-Key of the webhook "+used.Webhook.ID.String()) {
		t.Errorf("a value that makes a header too long: %q", got)
	}
	if _, err := r.Update(t.Context(), r.tenant, n1.ID, vault.Change{Value: new("y")}); err != nil {
		t.Errorf("one of the same length: %v", err)
	}
}

func secretNamed(t *testing.T, r *rig, name string) *hook.VaultSecret {
	t.Helper()
	all, err := r.List(t.Context(), r.tenant)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(s *hook.VaultSecret) bool { return s.Name == name })
	return all[i]
}

// Two processes: one makes a webhook refer to a secret, which the other deletes. Both
// know of the same configuration before. No webhook may refer to nothing.
func TestReferenceAndDeletion(t *testing.T) {
	r := newRig(t)
	other := r.another()
	for round := range 10 {
		name := fmt.Sprint("S", round)
		s := r.add(name, "x")
		target, err := r.hooks.Create(t.Context(), r.tenant, hookWith(nil))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := other.catalog.Refresh(t.Context(), r.tenant, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := other.catalog.Refresh(t.Context(), r.tenant, 1<<40); err != nil {
			t.Fatal(err)
		}
		refer := map[string]string{"X-Key": "{{vault." + name + "}}"}
		var wg sync.WaitGroup
		var created, updated, deleted error
		wg.Go(func() { _, created = other.hooks.Create(context.Background(), r.tenant, hookWith(refer)) })
		wg.Go(func() {
			_, updated = other.hooks.Update(context.Background(), r.tenant, target.Webhook.ID, registry.Change{Headers: &refer})
		})
		wg.Go(func() { deleted = r.Delete(context.Background(), r.tenant, s.ID) })
		wg.Wait()
		if deleted != nil && hook.CodeOf(deleted) != hook.CodeConflict {
			t.Fatal(deleted)
		}
		for _, err := range []error{created, updated} {
			if got := problems(t, err); deleted == nil && (len(got) != 1 || !strings.Contains(got[0], name)) {
				t.Errorf("round %d: the secret is gone, and a webhook refers to it: %v", round, err)
			}
		}
		if deleted != nil && created != nil && updated != nil {
			t.Errorf("round %d: nobody refers to it, and it is not deleted: %v", round, deleted)
		}
	}
}
