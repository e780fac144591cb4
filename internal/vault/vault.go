// Package vault is where a tenant's vault secrets are added, changed and deleted,
// and the one room for their rules: what a secret may be, and what a header that
// refers to some may come to. The API comes through here, and so does whatever
// judges the headers of a webhook.
//
// It promises that nobody is shown a value again, and that no webhook refers to a
// secret that is not there. It must not know how requests are made, nor anything of
// HTTP beyond what a header's value may be.
package vault

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/plinqx/hypha/internal/audit"
	"github.com/plinqx/hypha/internal/catalog"
	"github.com/plinqx/hypha/internal/egress"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

const (
	// MaxSecrets is the most that a tenant's vault holds.
	MaxSecrets = 1000
	// MaxReferences is to how many secrets a webhook may refer.
	MaxReferences = egress.MaxHeaders

	maxDescription = 4096 // characters
)

// Options are what a vault needs; all are required.
type Options struct {
	Store   store.Vault
	Catalog *catalog.Catalog
	Now     func() time.Time
	// Shared says that other processes change secrets in the same store: one that
	// is missing here may just have been added there.
	Shared bool
}

// Vault is safe for concurrent use.
type Vault struct {
	Options
}

// New makes a vault.
func New(o Options) *Vault { return &Vault{Options: o} }

// Change is what a caller wants of a secret: a nil field is left as it is. The name
// is that of a new one; it can't be changed.
type Change struct {
	Name, Value, Description *string
}

// List lists a tenant's secrets, oldest first. They must not be changed.
func (v *Vault) List(ctx context.Context, tenant id.Tenant) ([]*hook.VaultSecret, error) {
	held, err := v.Catalog.Vault(ctx, tenant)
	if err != nil {
		return nil, err
	}
	return held.Secrets(), nil
}

// Get answers one secret. It must not be changed.
func (v *Vault) Get(ctx context.Context, tenant id.Tenant, secret id.VaultSecret) (*hook.VaultSecret, error) {
	_, s, err := v.find(ctx, tenant, secret)
	return s, err
}

// find answers a secret, and the configuration that it was found in.
func (v *Vault) find(ctx context.Context, tenant id.Tenant, secret id.VaultSecret) (*catalog.Snapshot, *hook.VaultSecret, error) {
	snap, err := v.Catalog.Tenant(ctx, tenant)
	if err != nil {
		return nil, nil, err
	}
	s, ok := snap.Vault().Secret(secret)
	if !ok && v.Shared {
		if snap, err = v.Catalog.Recheck(ctx, tenant); err != nil {
			return nil, nil, err
		}
		s, ok = snap.Vault().Secret(secret)
	}
	if !ok {
		return nil, nil, hook.NotFound("Vault secret")
	}
	return snap, s, nil
}

// Check lists what is wrong with a change of a secret, or with a new one where held
// is nil. Create and Update refuse the same.
func (v *Vault) Check(held *hook.VaultSecret, c Change) []hook.Detail {
	var s hook.VaultSecret
	if held != nil {
		s = *held
	}
	return apply(&s, c)
}

// Create adds a secret. Name and Value are required.
func (v *Vault) Create(ctx context.Context, tenant id.Tenant, c Change) (*hook.VaultSecret, error) {
	now := v.now()
	s := &hook.VaultSecret{Tenant: tenant, Revision: 1, CreatedAt: now, UpdatedAt: now}
	var problems []hook.Detail
	if c.Name == nil {
		problems = append(problems, hook.Detail{Path: "name", Message: "is required"})
	}
	if c.Value == nil {
		problems = append(problems, hook.Detail{Path: "value", Message: "is required"})
	}
	if problems = append(problems, apply(s, c)...); len(problems) > 0 {
		return nil, hook.Invalid(problems...)
	}
	var err error
	if s.ID, err = id.NewVaultSecret(); err != nil {
		return nil, err
	}
	row, err := v.Catalog.SealVault(s)
	if err != nil {
		return nil, err
	}
	version, err := v.Store.InsertVaultSecret(note(ctx, hook.AuditVaultSecretCreated, nil, s), store.NewVaultSecret{VaultRow: row, Max: MaxSecrets})
	if err != nil {
		return nil, err
	}
	v.Catalog.PutVaultSecret(version, s)
	return s, nil
}

// Update changes a secret. An attempt that begins after it has returned is made with
// the new value; on other nodes it takes up to a second.
func (v *Vault) Update(ctx context.Context, tenant id.Tenant, secret id.VaultSecret, c Change) (*hook.VaultSecret, error) {
	for {
		snap, held, err := v.find(ctx, tenant, secret)
		if err != nil {
			return nil, err
		}
		s := *held
		problems := apply(&s, c)
		if len(problems) == 0 && len(s.Value) > len(held.Value) {
			problems = tooLong(snap, &s)
		}
		if len(problems) > 0 {
			return nil, hook.Invalid(problems...)
		}
		if s == *held {
			return held, nil
		}
		s.Revision++
		s.UpdatedAt = v.now()
		row, err := v.Catalog.SealVault(&s)
		if err != nil {
			return nil, err
		}
		version, err := v.Store.UpdateVaultSecret(note(ctx, hook.AuditVaultSecretUpdated, held, &s), row)
		if errors.Is(err, store.ErrConfigMoved) {
			if _, err = v.Catalog.Refresh(ctx, tenant, snap.Version); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		v.Catalog.PutVaultSecret(version, &s)
		return &s, nil
	}
}

// Delete removes a secret: hook.CodeConflict, naming them, while webhooks refer to
// it.
func (v *Vault) Delete(ctx context.Context, tenant id.Tenant, secret id.VaultSecret) error {
	_, held, err := v.find(ctx, tenant, secret)
	if err != nil {
		return err
	}
	version, err := v.Store.DeleteVaultSecret(note(ctx, hook.AuditVaultSecretDeleted, held, held), tenant, secret)
	if err != nil {
		return err
	}
	v.Catalog.DeleteVaultSecret(version, tenant, held.Name)
	return nil
}

// note tells the audit log of a change: nothing of a value, but that it is another.
func note(ctx context.Context, action hook.AuditAction, held, s *hook.VaultSecret) context.Context {
	var d audit.Diff
	if held == nil {
		d.Set("description", s.Description)
		d.Secret("value")
	} else {
		d.Changed("description", held.Description, s.Description)
		if held.Value != s.Value {
			d.Secret("value")
		}
	}
	return audit.Note(ctx, hook.AuditEntry{
		Tenant: s.Tenant, Action: action, Object: hook.AuditObject{Kind: hook.ObjectVaultSecret, ID: s.ID.String(), Name: s.Name}, Changes: d,
	})
}

func (v *Vault) now() time.Time { return v.Now().UTC().Truncate(time.Millisecond) }

// apply puts a change into a secret and lists all that is wrong with it. No message
// has anything of the value in it.
func apply(s *hook.VaultSecret, c Change) []hook.Detail {
	var problems []hook.Detail
	check := func(path, problem string) {
		if problem != "" {
			problems = append(problems, hook.Detail{Path: path, Message: problem})
		}
	}
	if c.Name != nil {
		if !hook.ValidVaultName(*c.Name) {
			check("name", fmt.Sprintf("must have 1 to %d of A-Z, a-z, 0-9, _ and -", hook.MaxVaultName))
		}
		s.Name = *c.Name
	}
	if c.Value != nil {
		switch value := *c.Value; {
		case value == "":
			check("value", "must not be empty")
		case strings.Trim(value, "*") == "":
			check("value", "is a mask as answers show it, not a value; send the value itself")
		default:
			check("value", egress.CheckHeaderValue(value))
		}
		s.Value = *c.Value
	}
	if c.Description != nil {
		check("description", hook.CheckText(*c.Description, 0, maxDescription, "\n\t"))
		s.Description = *c.Description
	}
	return problems
}

// CheckHeaders lists what is wrong with the references in a webhook's headers, in the
// order of the headers' names.
func CheckHeaders(held *catalog.Vault, headers map[string]string) []hook.Detail {
	var problems []hook.Detail
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		if problem := checkHeader(held, headers[name]); problem != "" {
			problems = append(problems, hook.Detail{Path: "headers." + name, Message: problem})
		}
	}
	if n := len(hook.VaultNames(headers)); n > MaxReferences {
		problems = append(problems, hook.Detail{Path: "headers", Message: fmt.Sprintf("refer to %d vault secrets, and may refer to %d", n, MaxReferences)})
	}
	return problems
}

func checkHeader(held *catalog.Vault, value string) string {
	t, err := hook.ParseTemplate(value)
	if err != nil {
		return err.Error()
	}
	filled, missing := t.Fill(held.Value)
	switch {
	case missing != "":
		return fmt.Sprintf("refers to the vault secret %s, which does not exist; add it to the vault first", missing)
	case len(filled) > egress.MaxFilledLength && len(t.Names()) > 0:
		return fmt.Sprintf("has more than %d bytes once its vault secrets are filled in: shorten it, or them", egress.MaxFilledLength)
	default:
		return ""
	}
}

// tooLong says which webhook has a header that a new value of a secret would make
// too long.
func tooLong(snap *catalog.Snapshot, s *hook.VaultSecret) []hook.Detail {
	lookup := func(name string) (string, bool) {
		if name == s.Name {
			return s.Value, true
		}
		return snap.Vault().Value(name)
	}
	for _, w := range snap.Webhooks() {
		for name, value := range w.Headers {
			t, err := hook.ParseTemplate(value)
			if err != nil || !slices.Contains(t.Names(), s.Name) {
				continue
			}
			if filled, _ := t.Fill(lookup); len(filled) > egress.MaxFilledLength {
				return []hook.Detail{{Path: "value", Message: fmt.Sprintf("would make the header %s of the webhook %s longer than %d bytes", name, w.ID, egress.MaxFilledLength)}}
			}
		}
	}
	return nil
}
