package catalog

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// Vault is a tenant's vault secrets at one moment. It never changes: one that is
// the same pointer as before has the same secrets with the same values.
type Vault struct {
	byName map[string]*hook.VaultSecret
}

func newVault(held map[string]*hook.VaultSecret) *Vault {
	byName := make(map[string]*hook.VaultSecret, len(held)+1)
	maps.Copy(byName, held)
	return &Vault{byName}
}

// same reports whether two vaults hold the same.
func (v *Vault) same(other *Vault) bool {
	return maps.EqualFunc(v.byName, other.byName, func(a, b *hook.VaultSecret) bool { return a.ID == b.ID && a.Revision == b.Revision })
}

// Value answers the value of a secret.
func (v *Vault) Value(name string) (value string, ok bool) {
	s, ok := v.byName[name]
	if !ok {
		return "", false
	}
	return s.Value, true
}

// Named answers the secret of a name. It must not be changed.
func (v *Vault) Named(name string) (*hook.VaultSecret, bool) {
	s, ok := v.byName[name]
	return s, ok
}

// Secret answers a secret by its id. It must not be changed.
func (v *Vault) Secret(secret id.VaultSecret) (*hook.VaultSecret, bool) {
	for _, s := range v.byName {
		if s.ID == secret {
			return s, true
		}
	}
	return nil, false
}

// Secrets lists all, oldest first.
func (v *Vault) Secrets() []*hook.VaultSecret {
	return slices.SortedFunc(maps.Values(v.byName), func(a, b *hook.VaultSecret) int { return a.ID.Compare(b.ID) })
}

// Vault answers the tenant's vault.
func (s *Snapshot) Vault() *Vault { return s.vault }

// Vault answers a tenant's vault as this process knows it.
func (c *Catalog) Vault(ctx context.Context, tenant id.Tenant) (*Vault, error) {
	s, err := c.Tenant(ctx, tenant)
	if err != nil {
		return nil, err
	}
	return s.vault, nil
}

// PutVaultSecret holds a secret that was added or changed. Requests that are made
// from now on have its new value.
func (c *Catalog) PutVaultSecret(version int64, v *hook.VaultSecret) {
	c.change(v.Tenant, version, func(s *Snapshot) {
		s.vault = newVault(s.vault.byName)
		s.vault.byName[v.Name] = v
	})
}

// DeleteVaultSecret forgets a secret.
func (c *Catalog) DeleteVaultSecret(version int64, tenant id.Tenant, name string) {
	c.change(tenant, version, func(s *Snapshot) {
		s.vault = newVault(s.vault.byName)
		delete(s.vault.byName, name)
	})
}

// SealVault makes the row that is stored of a vault secret.
func (c *Catalog) SealVault(v *hook.VaultSecret) (store.VaultRow, error) {
	sealed, err := c.box.Seal([]byte(v.Value), VaultOwner(v.Tenant, v.ID, v.Name))
	if err != nil {
		return store.VaultRow{}, fmt.Errorf("seal vault secret %s: %w", v.ID, err)
	}
	row := store.VaultRow{VaultSecret: *v, Sealed: sealed}
	row.Value = ""
	return row, nil
}

// OpenVault makes the vault secret of a stored row.
func (c *Catalog) OpenVault(row *store.VaultRow) (*hook.VaultSecret, error) {
	v := row.VaultSecret
	plain, err := c.box.Open(row.Sealed, VaultOwner(v.Tenant, v.ID, v.Name))
	if err != nil {
		return nil, fmt.Errorf("value of vault secret %s: %w (does the server have all keys that it had before?)", v.ID, err)
	}
	v.Value = string(plain)
	return &v, nil
}

// VaultOwner binds the sealed value of a vault secret to it and to its name, by
// which it is used.
func VaultOwner(tenant id.Tenant, secret id.VaultSecret, name string) []byte {
	owner := append([]byte("vault\n"), tenant[:]...)
	return append(append(owner, secret[:]...), name...)
}
