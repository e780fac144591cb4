package api

import (
	"net/http"
	"slices"
	"time"

	"github.com/plinqx/hypha/internal/auth"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
)

// The endpoints about the server and about who uses it.

type stateView struct {
	Status string `json:"status"`
}

func (a *api) healthz(*call) (reply, error) {
	return reply{status: http.StatusOK, value: stateView{"ok"}}, nil
}

// readyz says no for a moment at a time: whoever asks is to ask again.
func (a *api) readyz(c *call) (reply, error) {
	err := a.o.Ready(c.Context())
	if err == nil {
		return reply{status: http.StatusOK, value: stateView{"ready"}}, nil
	}
	if hook.CodeOf(err) != hook.CodeUnavailable {
		err = hook.Unavailable(time.Second, err, "The server is not ready to take traffic")
	}
	return reply{}, err
}

func (a *api) document(*call) (reply, error) {
	return reply{status: http.StatusOK, raw: openAPI, contentType: "application/yaml"}, nil
}

// pageOf is the part of a sorted list after a position, and where to go on.
func pageOf[T any](list []T, position func(T) [16]byte, after [16]byte, limit int) (rows []T, next [16]byte) {
	if i := slices.IndexFunc(list, func(v T) bool {
		p := position(v)
		return string(p[:]) > string(after[:])
	}); i >= 0 {
		list = list[i:]
	} else {
		list = nil
	}
	if len(list) <= limit {
		return list, next
	}
	return list[:limit], position(list[limit-1])
}

func (a *api) listKeys(c *call) (reply, error) {
	q := newQuery(c)
	limit, after := q.limit(), q.cursor()
	if err := q.err(); err != nil {
		return reply{}, err
	}
	keys, err := a.o.Auth.Keys(c.Context(), c.tenant())
	if err != nil {
		return reply{}, err
	}
	rows, next := pageOf(keys, func(k hook.APIKey) [16]byte { return k.ID }, after, limit)
	out := page[keyView]{Data: make([]keyView, len(rows)), NextCursor: q.next(next)}
	for i := range rows {
		out.Data[i] = viewKey(&rows[i])
	}
	return reply{status: http.StatusOK, value: out}, nil
}

func (a *api) createKey(c *call) (reply, error) {
	wanted, err := decode(a, c, a.o.MaxBody, func(o *object) auth.NewKey {
		o.require("name")
		var k auth.NewKey
		if s := o.text("name"); s != nil {
			k.Name = *s
		}
		if list := o.texts("scopes", len(hook.TenantScopes())); list != nil {
			k.Scopes = make([]hook.Scope, len(*list))
			for i, s := range *list {
				k.Scopes[i] = hook.Scope(s)
			}
		}
		if t := o.timeOrNull("expiresAt"); t != nil {
			k.ExpiresAt = *t
		}
		return k
	}, func(k auth.NewKey) []hook.Detail { return a.o.Auth.CheckKey(c.principal, k) })
	if err != nil {
		return reply{}, err
	}
	made, err := a.o.Auth.CreateKey(c.Context(), c.principal, wanted)
	if err != nil {
		return reply{}, err
	}
	v := viewKey(&made.APIKey)
	v.Key = made.Secret
	return reply{status: http.StatusCreated, value: v}, nil
}

func (c *call) keyID() (id.Key, error) {
	k, err := id.ParseKey(c.param("key"))
	if err != nil {
		return k, hook.NotFound("API key")
	}
	return k, nil
}

func (a *api) getKey(c *call) (reply, error) {
	key, err := c.keyID()
	if err != nil {
		return reply{}, err
	}
	k, err := a.o.Auth.Key(c.Context(), c.tenant(), key)
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusOK, value: viewKey(k)}, nil
}

func (a *api) decodeKeyChange(c *call) (auth.KeyChange, error) {
	return decode(a, c, a.o.MaxBody, func(o *object) auth.KeyChange {
		return auth.KeyChange{Name: o.text("name"), ExpiresAt: o.timeOrNull("expiresAt")}
	}, a.o.Auth.CheckKeyChange)
}

func (a *api) updateKey(c *call) (reply, error) {
	key, err := c.keyID()
	if err != nil {
		return reply{}, err
	}
	change, err := a.decodeKeyChange(c)
	if err != nil {
		return reply{}, err
	}
	k, err := a.o.Auth.UpdateKey(c.Context(), c.tenant(), key, change)
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusOK, value: viewKey(k)}, nil
}

func (a *api) deleteKey(c *call) (reply, error) {
	key, err := c.keyID()
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusNoContent}, a.o.Auth.DeleteKey(c.Context(), c.tenant(), key)
}

func (a *api) listTenants(c *call) (reply, error) {
	q := newQuery(c)
	limit, after := q.limit(), q.cursor()
	if err := q.err(); err != nil {
		return reply{}, err
	}
	// One more, to know whether there is more.
	rows, err := a.o.Auth.Tenants(c.Context(), after, limit+1)
	if err != nil {
		return reply{}, err
	}
	rows, next := pageOf(rows, func(t hook.Tenant) [16]byte { return t.ID }, [16]byte{}, limit)
	out := page[tenantView]{Data: make([]tenantView, len(rows)), NextCursor: q.next(next)}
	for i := range rows {
		out.Data[i] = viewTenant(&rows[i])
	}
	return reply{status: http.StatusOK, value: out}, nil
}

// decodeTenant reads what a tenant is made of: its name.
func (a *api) decodeTenant(c *call, required bool) (*string, error) {
	return decode(a, c, a.o.MaxBody, func(o *object) *string {
		if required {
			o.require("name")
		}
		return o.text("name")
	}, func(name *string) []hook.Detail {
		if name == nil {
			return nil
		}
		return auth.CheckTenantName(*name)
	})
}

func (a *api) createTenant(c *call) (reply, error) {
	name, err := a.decodeTenant(c, true)
	if err != nil {
		return reply{}, err
	}
	t, err := a.o.Auth.CreateTenant(c.Context(), *name)
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusCreated, value: viewTenant(t)}, nil
}

func (c *call) tenantID() (id.Tenant, error) {
	t, err := id.ParseTenant(c.param("tenant"))
	if err != nil {
		return t, hook.NotFound("Tenant")
	}
	return t, nil
}

func (a *api) getTenant(c *call) (reply, error) {
	tenant, err := c.tenantID()
	if err != nil {
		return reply{}, err
	}
	t, err := a.o.Auth.Tenant(c.Context(), tenant)
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusOK, value: viewTenant(t)}, nil
}

func (a *api) updateTenant(c *call) (reply, error) {
	tenant, err := c.tenantID()
	if err != nil {
		return reply{}, err
	}
	name, err := a.decodeTenant(c, false)
	if err != nil {
		return reply{}, err
	}
	t, err := a.o.Auth.Tenant(c.Context(), tenant)
	if err == nil && name != nil {
		t, err = a.o.Auth.RenameTenant(c.Context(), tenant, *name)
	}
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusOK, value: viewTenant(t)}, nil
}

func (a *api) deleteTenant(c *call) (reply, error) {
	tenant, err := c.tenantID()
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusNoContent}, a.o.Auth.DeleteTenant(c.Context(), tenant)
}
