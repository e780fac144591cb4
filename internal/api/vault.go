package api

import (
	"net/http"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/rekey"
	"github.com/plinqx/hypha/internal/seal"
	"github.com/plinqx/hypha/internal/vault"
)

// vaultSecretView is a vault secret. There is no field for its value.
type vaultSecretView struct {
	ID          id.VaultSecret `json:"id"`
	Name        string         `json:"name"`
	Description string         `json:"description"`
	CreatedAt   instant        `json:"createdAt"`
	UpdatedAt   instant        `json:"updatedAt"`
}

func viewVaultSecret(s *hook.VaultSecret) vaultSecretView {
	return vaultSecretView{ID: s.ID, Name: s.Name, Description: s.Description, CreatedAt: instant(s.CreatedAt), UpdatedAt: instant(s.UpdatedAt)}
}

func (c *call) vaultSecretID() (id.VaultSecret, error) {
	s, err := id.ParseVaultSecret(c.param("secret"))
	if err != nil {
		return s, hook.NotFound("Vault secret")
	}
	return s, nil
}

func (a *api) listVaultSecrets(c *call) (reply, error) {
	q := newQuery(c)
	limit, after := q.limit(), q.cursor()
	if err := q.err(); err != nil {
		return reply{}, err
	}
	all, err := a.o.Vault.List(c.Context(), c.tenant())
	if err != nil {
		return reply{}, err
	}
	rows, next := pageOf(all, func(s *hook.VaultSecret) [16]byte { return s.ID }, after, limit)
	out := page[vaultSecretView]{Data: make([]vaultSecretView, len(rows)), NextCursor: q.next(next)}
	for i, s := range rows {
		out.Data[i] = viewVaultSecret(s)
	}
	return reply{status: http.StatusOK, value: out}, nil
}

func (a *api) createVaultSecret(c *call) (reply, error) {
	wanted, err := decode(a, c, a.o.MaxBody, func(o *object) vault.Change {
		o.require("name", "value")
		return vault.Change{Name: o.text("name"), Value: o.text("value"), Description: o.text("description")}
	}, func(wanted vault.Change) []hook.Detail { return a.o.Vault.Check(nil, wanted) })
	if err != nil {
		return reply{}, err
	}
	s, err := a.o.Vault.Create(c.Context(), c.tenant(), wanted)
	if err != nil {
		return reply{}, err
	}
	c.w.Header().Set("Location", "/services/vault/"+s.ID.String())
	return reply{status: http.StatusCreated, value: viewVaultSecret(s)}, nil
}

func (a *api) getVaultSecret(c *call) (reply, error) {
	secret, err := c.vaultSecretID()
	if err != nil {
		return reply{}, err
	}
	s, err := a.o.Vault.Get(c.Context(), c.tenant(), secret)
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusOK, value: viewVaultSecret(s)}, nil
}

func (a *api) updateVaultSecret(c *call) (reply, error) {
	secret, err := c.vaultSecretID()
	if err != nil {
		return reply{}, err
	}
	// Before the body: what is not there has no fields to be wrong.
	held, err := a.o.Vault.Get(c.Context(), c.tenant(), secret)
	if err != nil {
		return reply{}, err
	}
	change, err := decode(a, c, a.o.MaxBody, func(o *object) vault.Change {
		return vault.Change{Value: o.text("value"), Description: o.text("description")}
	}, func(change vault.Change) []hook.Detail { return a.o.Vault.Check(held, change) })
	if err != nil {
		return reply{}, err
	}
	s, err := a.o.Vault.Update(c.Context(), c.tenant(), secret, change)
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusOK, value: viewVaultSecret(s)}, nil
}

func (a *api) deleteVaultSecret(c *call) (reply, error) {
	secret, err := c.vaultSecretID()
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusNoContent}, a.o.Vault.Delete(c.Context(), c.tenant(), secret)
}

// secretKeyView is one of the server's keys: its id, and never the key.
type secretKeyView struct {
	ID      seal.KeyID `json:"id"`
	Current bool       `json:"current"`
	Held    bool       `json:"held"`
	InUse   int64      `json:"inUse"`
}

func viewSecretKeys(keys []rekey.Key) []secretKeyView {
	out := make([]secretKeyView, len(keys))
	for i, k := range keys {
		out[i] = secretKeyView(k)
	}
	return out
}

type secretKeysView struct {
	Keys []secretKeyView `json:"keys"`
}

func (a *api) listSecretKeys(c *call) (reply, error) { return a.secretKeys(c, http.StatusOK) }

func (a *api) secretKeys(c *call, status int) (reply, error) {
	keys, err := a.o.SecretKeys.Keys(c.Context())
	if err != nil {
		return reply{}, err
	}
	return reply{status: status, value: secretKeysView{viewSecretKeys(keys)}}, nil
}

func (a *api) createSecretKey(c *call) (reply, error) {
	if err := a.noBody(c); err != nil {
		return reply{}, err
	}
	if _, err := a.o.SecretKeys.NewKey(c.Context()); err != nil {
		return reply{}, err
	}
	return a.secretKeys(c, http.StatusCreated)
}

type rekeyView struct {
	Resealed   int64 `json:"resealed"`
	Unreadable int64 `json:"unreadable"`
	More       bool  `json:"more"`
	secretKeysView
}

func (a *api) rekey(c *call) (reply, error) {
	if err := a.noBody(c); err != nil {
		return reply{}, err
	}
	done, err := a.o.SecretKeys.Rekey(c.Context())
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusOK, value: rekeyView{
		Resealed: done.Resealed, Unreadable: done.Unreadable, More: done.More, secretKeysView: secretKeysView{viewSecretKeys(done.Keys)},
	}}, nil
}
