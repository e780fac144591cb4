package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

func vaultTests() tests {
	return tests{
		"a vault secret is read as it was written":                  vaultRoundTrip,
		"every change of the vault raises the version by one":       vaultVersions,
		"a change of a vault secret that has moved on":              vaultMoved,
		"a name is given once in a tenant":                          vaultTwice,
		"the vault holds no more than it may":                       vaultFull,
		"a webhook refers to what is there":                         vaultReferences,
		"what is referred to is not deleted":                        vaultInUse,
		"a reference and a deletion at the same time":               vaultRace,
		"another tenant's vault is unknown":                         vaultIsolation,
		"what is sealed is counted and listed by its key":           sealedLists,
		"sealed bytes are replaced only if they are still the same": sealedSwap,
		"resealing beside changes loses none":                       sealedRace,
		"a removed tenant leaves no vault":                          vaultRemoved,
		"a secret's bytes can be of any kind":                       sealedBytes,
		"the vault of a tenant that is not there":                   vaultMissing,
	}
}

func (f *fixture) vaultRow(name string) store.VaultRow {
	return store.VaultRow{
		VaultSecret: hook.VaultSecret{
			ID: f.makeID(), Tenant: f.tenant, Name: name, Revision: 1, Description: "of the ERP ✓", CreatedAt: f.now, UpdatedAt: f.now,
		},
		Sealed: sealedUnder('a', name),
	}
}

// sealedUnder is what looks sealed under a key.
func sealedUnder(key byte, text string) []byte {
	return append([]byte{1, key, key, key, key}, text...)
}

func headOf(key byte) [store.SealedHead]byte {
	return [store.SealedHead]byte(sealedUnder(key, ""))
}

func (f *fixture) addSecret(name string) store.VaultRow {
	f.Helper()
	row := f.vaultRow(name)
	v, err := f.store.InsertVaultSecret(f.ctx, store.NewVaultSecret{VaultRow: row})
	f.must(err)
	f.version[f.tenant] = v
	return row
}

func vaultRoundTrip(_ *testing.T, f *fixture) {
	first, second := f.addSecret("ERP_TOKEN"), f.addSecret("erp_token") // names differ in case
	f.equal("vault", f.config().Vault, []store.VaultRow{first, second})
	second.Revision, second.Description, second.Sealed, second.UpdatedAt = 2, "", sealedUnder('b', "x"), f.now.Add(time.Hour)
	_, err := f.store.UpdateVaultSecret(f.ctx, second)
	f.must(err)
	f.crash()
	f.equal("vault", f.config().Vault, []store.VaultRow{first, second})
}

func vaultVersions(_ *testing.T, f *fixture) {
	row := f.vaultRow("A")
	changed := row
	changed.Revision = 2
	want := f.version[f.tenant]
	for i, change := range []func() (int64, error){
		func() (int64, error) {
			return f.store.InsertVaultSecret(f.ctx, store.NewVaultSecret{VaultRow: row, Max: 1})
		},
		func() (int64, error) { return f.store.UpdateVaultSecret(f.ctx, changed) },
		func() (int64, error) { return f.store.DeleteVaultSecret(f.ctx, f.tenant, row.ID) },
	} {
		got, err := change()
		f.must(err)
		want++
		if got != want || f.config().Version != want {
			f.Fatalf("change %d answered version %d and left %d; want %d", i, got, f.config().Version, want)
		}
	}
}

func vaultMoved(_ *testing.T, f *fixture) {
	row := f.addSecret("A")
	for _, revision := range []int64{1, 3} {
		row.Revision = revision
		_, err := f.store.UpdateVaultSecret(f.ctx, row)
		f.wantMoved(err)
	}
	if got := f.config(); got.Version != f.version[f.tenant] || got.Vault[0].Revision != 1 {
		f.Fatalf("the configuration is %+v", got)
	}
}

func vaultTwice(_ *testing.T, f *fixture) {
	first := f.addSecret("A")
	_, err := f.store.InsertVaultSecret(f.ctx, store.NewVaultSecret{VaultRow: f.vaultRow("A")})
	f.wantCode(err, hook.CodeConflict)
	m := *f
	m.tenant = f.newTenant()
	m.addSecret("A")
	f.equal("vault", f.config().Vault, []store.VaultRow{first})
}

func vaultFull(_ *testing.T, f *fixture) {
	f.addSecret("A")
	f.addSecret("B")
	full := store.NewVaultSecret{VaultRow: f.vaultRow("C"), Max: 2}
	_, err := f.store.InsertVaultSecret(f.ctx, full)
	f.wantCode(err, hook.CodeConflict)
	full.Max = 3
	_, err = f.store.InsertVaultSecret(f.ctx, full)
	f.must(err)
}

func vaultReferences(_ *testing.T, f *fixture) {
	f.addSecret("A")
	f.addSecret("B")
	w := f.webhookRow(f.tenant)
	w.Vault = []string{"A", "C"}
	_, err := f.store.InsertWebhook(f.ctx, w)
	f.wantMoved(err)
	w.Vault = []string{"A", "B"}
	v, err := f.store.InsertWebhook(f.ctx, w)
	f.must(err)
	w.Revision++
	w.Vault = []string{"B", "a"}
	_, err = f.store.UpdateWebhook(f.ctx, w)
	f.wantMoved(err)
	if c := f.config(); c.Version != v || len(c.Webhooks) != 3 {
		f.Fatalf("the configuration is %+v", c)
	}
	w.Vault = []string{"B"}
	_, err = f.store.UpdateWebhook(f.ctx, w)
	f.must(err)
	for _, got := range f.config().Webhooks {
		if got.ID == w.ID && got.Revision != 2 {
			f.Fatalf("the webhook is %+v", got)
		}
	}
}

func vaultInUse(_ *testing.T, f *fixture) {
	a, b := f.addSecret("A"), f.addSecret("B")
	var users []store.WebhookRow
	for range store.NamedWebhooks + 2 {
		w := f.webhookRow(f.tenant)
		w.Vault = []string{"A", "B"}
		_, err := f.store.InsertWebhook(f.ctx, w)
		f.must(err)
		users = append(users, w)
	}
	before := f.config().Version
	_, err := f.store.DeleteVaultSecret(f.ctx, f.tenant, a.ID)
	f.wantCode(err, hook.CodeConflict)
	if !strings.Contains(err.Error(), users[0].ID.String()) || !strings.Contains(err.Error(), "and others") || f.config().Version != before {
		f.Fatalf("the conflict is %v", err)
	}
	for i, w := range users {
		if i == 0 {
			_, err = f.store.DeleteWebhook(f.ctx, store.DeleteWebhookParams{Tenant: f.tenant, Webhook: w.ID, Job: f.makeID(), Now: f.now})
		} else {
			w.Revision, w.Vault = 2, []string{"B"}
			_, err = f.store.UpdateWebhook(f.ctx, w)
		}
		f.must(err)
	}
	_, err = f.store.DeleteVaultSecret(f.ctx, f.tenant, a.ID)
	f.must(err)
	_, err = f.store.DeleteVaultSecret(f.ctx, f.tenant, a.ID)
	f.wantCode(err, hook.CodeNotFound)
	w := users[1]
	w.Revision, w.Vault = 3, nil
	_, err = f.store.UpdateWebhook(f.ctx, w)
	f.must(err)
	_, err = f.store.DeleteVaultSecret(f.ctx, f.tenant, b.ID)
	f.wantCode(err, hook.CodeConflict)
	if strings.Contains(err.Error(), w.ID.String()) {
		f.Fatalf("the conflict is %v", err)
	}
	f.equal("vault", f.config().Vault, []store.VaultRow{b})
}

// vaultRace creates a webhook that refers to a secret, and deletes the secret, at the
// same time: one of the two is refused.
func vaultRace(_ *testing.T, f *fixture) {
	const rounds = 20
	for range rounds {
		secret, w := f.addSecret("A"), f.webhookRow(f.tenant)
		w.Vault = []string{"A"}
		var wg sync.WaitGroup
		var inserted, deleted error
		wg.Go(func() { _, inserted = f.store.InsertWebhook(f.ctx, w) })
		wg.Go(func() { _, deleted = f.store.DeleteVaultSecret(f.ctx, f.tenant, secret.ID) })
		wg.Wait()
		switch {
		case inserted == nil:
			f.wantCode(deleted, hook.CodeConflict)
			_, err := f.store.DeleteWebhook(f.ctx, store.DeleteWebhookParams{Tenant: f.tenant, Webhook: w.ID, Job: f.makeID(), Now: f.now})
			f.must(err)
			_, err = f.store.DeleteVaultSecret(f.ctx, f.tenant, secret.ID)
			f.must(err)
		case errors.Is(inserted, store.ErrConfigMoved):
			f.must(deleted)
		default:
			f.Fatalf("the webhook: %v; the secret: %v", inserted, deleted)
		}
	}
}

func vaultIsolation(_ *testing.T, f *fixture) {
	row := f.addSecret("A")
	config := f.config()
	m := *f
	m.tenant = f.newTenant()
	theirs := row
	theirs.Tenant, theirs.Revision = m.tenant, 2
	_, err := f.store.UpdateVaultSecret(f.ctx, theirs)
	f.wantCode(err, hook.CodeNotFound)
	_, err = f.store.DeleteVaultSecret(f.ctx, m.tenant, row.ID)
	f.wantCode(err, hook.CodeNotFound)
	w := f.webhookRow(m.tenant)
	w.Vault = []string{"A"}
	_, err = f.store.InsertWebhook(f.ctx, w)
	f.wantMoved(err)
	if got := m.config().Vault; len(got) > 0 {
		f.Fatalf("the other's vault is %+v", got)
	}
	f.equal("configuration", f.config(), config)
}

func vaultMissing(_ *testing.T, f *fixture) {
	row := f.vaultRow("A")
	_, err := f.store.UpdateVaultSecret(f.ctx, row)
	f.wantCode(err, hook.CodeNotFound)
	row.Tenant = f.makeID()
	_, err = f.store.InsertVaultSecret(f.ctx, store.NewVaultSecret{VaultRow: row})
	f.wantCode(err, hook.CodeNotFound)
	_, err = f.store.DeleteVaultSecret(f.ctx, row.Tenant, row.ID)
	f.wantCode(err, hook.CodeNotFound)
}

func vaultRemoved(_ *testing.T, f *fixture) {
	f.addSecret("A")
	f.must(f.store.DeleteTenant(f.ctx, f.tenant))
	if rows := f.sealed(store.SealedVault, 'a', 9); len(rows) > 0 {
		f.Fatalf("there is still %+v", rows)
	}
}

func (f *fixture) sealed(kind store.SealedKind, key byte, limit int) (all []store.SealedRow) {
	f.Helper()
	q := store.SealedQuery{Kind: kind, Head: headOf(key), Limit: limit}
	for {
		rows, err := f.store.SealedRows(f.ctx, q)
		f.must(err)
		all = append(all, rows...)
		if len(rows) < limit {
			return all
		}
		q.After = rows[len(rows)-1].SealedPosition
	}
}

// sealedLists has webhooks of two tenants, one changed and one deleted, under two keys.
func sealedLists(_ *testing.T, f *fixture) {
	var want []store.SealedRow
	revisions := 0
	for _, tenant := range []id.Tenant{f.tenant, f.newTenant()} {
		for i := range 5 {
			w := f.webhookRow(tenant)
			w.Sealed = sealedUnder('a', fmt.Sprint("one ", i))
			_, err := f.store.InsertWebhook(f.ctx, w)
			f.must(err)
			revisions++
			if i == 1 {
				w.Revision, w.Sealed = 2, sealedUnder('b', "changed")
				_, err = f.store.UpdateWebhook(f.ctx, w)
				f.must(err)
				continue
			}
			if i == 2 {
				_, err = f.store.DeleteWebhook(f.ctx, store.DeleteWebhookParams{Tenant: tenant, Webhook: w.ID, Job: f.makeID(), Now: f.now})
				f.must(err)
				continue
			}
			want = append(want, store.SealedRow{SealedPosition: store.SealedPosition{Tenant: tenant, ID: w.ID}, Kind: store.SealedWebhook, Sealed: w.Sealed})
		}
	}
	secret := f.addSecret("A")
	for _, limit := range []int{1, 2, 3, 100} {
		f.equal("webhooks", f.sealed(store.SealedWebhook, 'a', limit), want)
		if got := f.sealed(store.SealedRevision, 'a', limit); len(got) != revisions || !slices.IsSortedFunc(got, func(a, b store.SealedRow) int {
			return cmpPositions(a.SealedPosition, b.SealedPosition)
		}) || got[0].Revision != 1 {
			f.Fatalf("revisions, %d at a time: %+v", limit, got)
		}
		if got := f.sealed(store.SealedRevision, 'b', limit); len(got) != 2 || got[0].Revision != 2 {
			f.Fatalf("revisions under the other key, %d at a time: %+v", limit, got)
		}
	}
	f.equal("vault", f.sealed(store.SealedVault, 'a', 9), []store.SealedRow{
		{SealedPosition: store.SealedPosition{Tenant: f.tenant, ID: secret.ID}, Kind: store.SealedVault, Name: "A", Sealed: secret.Sealed},
	})
	got := map[byte]int64{}
	for _, kind := range store.SealedKinds() {
		counts, err := f.store.SealedCounts(f.ctx, kind)
		f.must(err)
		var counted [][store.SealedHead]byte
		for _, c := range counts {
			got[c.Head[1]] += c.Rows
			counted = append(counted, c.Head)
		}
		heads, err := f.store.SealedHeads(f.ctx, kind)
		f.must(err)
		f.equal("heads of "+string(kind), heads, counted)
	}
	if got['a'] != int64(len(want)+revisions+1) || got['b'] != 4 {
		f.Fatalf("counted %v", got)
	}
}

func cmpPositions(a, b store.SealedPosition) int {
	if c := bytes.Compare(a.Tenant[:], b.Tenant[:]); c != 0 {
		return c
	}
	if c := bytes.Compare(a.ID[:], b.ID[:]); c != 0 {
		return c
	}
	return int(a.Revision - b.Revision)
}

func sealedSwap(_ *testing.T, f *fixture) {
	f.addSecret("A")
	w := f.webhookRow(f.tenant)
	w.Sealed = sealedUnder('a', "first")
	_, err := f.store.InsertWebhook(f.ctx, w)
	f.must(err)
	var rows []store.Resealed
	for _, kind := range store.SealedKinds() {
		for _, r := range f.sealed(kind, 'a', 9) {
			rows = append(rows, store.Resealed{SealedRow: r, New: sealedUnder('b', string(r.Sealed[5:]))})
		}
	}
	if len(rows) != 3 {
		f.Fatalf("there are %d rows", len(rows))
	}
	stale := slices.Clone(rows)
	for i := range stale {
		stale[i].Sealed = sealedUnder('a', "something else")
	}
	version := f.config().Version
	n, err := f.store.Reseal(f.ctx, stale)
	f.must(err)
	if n != 0 {
		f.Fatalf("%d were replaced that had changed", n)
	}
	n, err = f.store.Reseal(f.ctx, rows)
	f.must(err)
	if n != 3 {
		f.Fatalf("%d were replaced; want 3", n)
	}
	f.crash()
	c := f.config()
	if c.Version != version || !bytes.Equal(c.Vault[0].Sealed, sealedUnder('b', "A")) || c.Vault[0].Revision != 1 {
		f.Fatalf("the configuration is %+v", c)
	}
	revision, err := f.store.WebhookRevision(f.ctx, f.tenant, w.ID, 1)
	f.must(err)
	if !bytes.Equal(revision.Sealed, sealedUnder('b', "first")) {
		f.Fatalf("the revision is sealed as %q", revision.Sealed)
	}
	n, err = f.store.Reseal(f.ctx, rows)
	f.must(err)
	if n != 0 {
		f.Fatalf("%d were replaced again", n)
	}
	if rest := f.sealed(store.SealedWebhook, 'a', 9); len(rest) > 0 {
		f.Fatalf("under the old key there is still %+v", rest)
	}
}

// sealedRace reseals while webhooks and secrets are changed: what was written last
// is there in the end.
func sealedRace(_ *testing.T, f *fixture) {
	const rounds = 15
	w, secret := f.webhookRow(f.tenant), f.addSecret("A")
	w.Sealed = sealedUnder('a', "0")
	_, err := f.store.InsertWebhook(f.ctx, w)
	f.must(err)
	for n := int64(2); n < rounds; n++ {
		text := fmt.Sprint(n)
		rows := append(f.sealed(store.SealedWebhook, 'a', 9), f.sealed(store.SealedVault, 'a', 9)...)
		var anew []store.Resealed
		for _, r := range rows {
			anew = append(anew, store.Resealed{SealedRow: r, New: sealedUnder('b', string(r.Sealed[5:]))})
		}
		var wg sync.WaitGroup
		var failed [2]error
		wg.Go(func() {
			w.Revision, w.Sealed = n, sealedUnder('a', text)
			secret.Revision, secret.Sealed = n, sealedUnder('a', text)
			_, err := f.store.UpdateWebhook(f.ctx, w)
			_, other := f.store.UpdateVaultSecret(f.ctx, secret)
			failed[0] = errors.Join(err, other)
		})
		wg.Go(func() { _, failed[1] = f.store.Reseal(f.ctx, anew) })
		wg.Wait()
		f.must(errors.Join(failed[:]...))
		c := f.config()
		for _, got := range c.Webhooks {
			if got.ID == w.ID && string(got.Sealed[5:]) != text {
				f.Fatalf("after change %d the webhook is sealed as %q", n, got.Sealed)
			}
		}
		if string(c.Vault[0].Sealed[5:]) != text {
			f.Fatalf("after change %d the secret is sealed as %q", n, c.Vault[0].Sealed)
		}
	}
}

func sealedBytes(_ *testing.T, f *fixture) {
	row := f.vaultRow("A")
	row.Sealed = []byte{1, 0, 255, 0, 254, 0, 0, 253}
	_, err := f.store.InsertVaultSecret(f.ctx, store.NewVaultSecret{VaultRow: row})
	f.must(err)
	head := [store.SealedHead]byte(row.Sealed)
	rows, err := f.store.SealedRows(f.ctx, store.SealedQuery{Kind: store.SealedVault, Head: head, Limit: 9})
	f.must(err)
	if len(rows) != 1 || !bytes.Equal(rows[0].Sealed, row.Sealed) {
		f.Fatalf("listed %+v", rows)
	}
}
