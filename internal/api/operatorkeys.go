package api

import (
	"net/http"

	"github.com/plinqx/hypha/internal/auth"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
)

// The endpoints of the operators' keys.

type operatorKeyView struct {
	ID         id.Key   `json:"id"`
	Name       string   `json:"name"`
	Hint       string   `json:"hint"`
	CreatedAt  instant  `json:"createdAt"`
	ExpiresAt  *instant `json:"expiresAt"`
	LastUsedAt *instant `json:"lastUsedAt"`
	Key        string   `json:"key,omitempty"`
}

func viewOperatorKey(k *hook.APIKey) operatorKeyView {
	return operatorKeyView{
		ID: k.ID, Name: k.Name, Hint: k.Hint, CreatedAt: instant(k.CreatedAt), ExpiresAt: orNull(k.ExpiresAt), LastUsedAt: orNull(k.LastUsedAt),
	}
}

func (c *call) operatorKeyID() (id.Key, error) {
	k, err := id.ParseKey(c.param("operatorKey"))
	if err != nil {
		return k, hook.NotFound("operator key")
	}
	return k, nil
}

func (a *api) listOperatorKeys(c *call) (reply, error) {
	q := newQuery(c)
	limit, after := q.limit(), q.cursor()
	if err := q.err(); err != nil {
		return reply{}, err
	}
	keys, err := a.o.Auth.OperatorKeys(c.Context())
	if err != nil {
		return reply{}, err
	}
	rows, next := pageOf(keys, func(k hook.APIKey) [16]byte { return k.ID }, after, limit)
	out := page[operatorKeyView]{Data: make([]operatorKeyView, len(rows)), NextCursor: q.next(next)}
	for i := range rows {
		out.Data[i] = viewOperatorKey(&rows[i])
	}
	return reply{status: http.StatusOK, value: out}, nil
}

func (a *api) createOperatorKey(c *call) (reply, error) {
	wanted, err := decode(a, c, a.o.MaxBody, func(o *object) auth.NewKey {
		o.require("name")
		var k auth.NewKey
		if s := o.text("name"); s != nil {
			k.Name = *s
		}
		if t := o.timeOrNull("expiresAt"); t != nil {
			k.ExpiresAt = *t
		}
		return k
	}, a.o.Auth.CheckOperatorKey)
	if err != nil {
		return reply{}, err
	}
	made, err := a.o.Auth.CreateOperatorKey(c.Context(), wanted)
	if err != nil {
		return reply{}, err
	}
	v := viewOperatorKey(&made.APIKey)
	v.Key = made.Secret
	return reply{status: http.StatusCreated, value: v}, nil
}

func (a *api) getOperatorKey(c *call) (reply, error) {
	key, err := c.operatorKeyID()
	if err != nil {
		return reply{}, err
	}
	k, err := a.o.Auth.OperatorKey(c.Context(), key)
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusOK, value: viewOperatorKey(k)}, nil
}

func (a *api) updateOperatorKey(c *call) (reply, error) {
	key, err := c.operatorKeyID()
	if err != nil {
		return reply{}, err
	}
	change, err := a.decodeKeyChange(c)
	if err != nil {
		return reply{}, err
	}
	k, err := a.o.Auth.UpdateOperatorKey(c.Context(), key, change)
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusOK, value: viewOperatorKey(k)}, nil
}

func (a *api) deleteOperatorKey(c *call) (reply, error) {
	key, err := c.operatorKeyID()
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusNoContent}, a.o.Auth.DeleteOperatorKey(c.Context(), c.principal, key)
}
