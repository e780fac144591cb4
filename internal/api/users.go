package api

import (
	"net/http"

	"github.com/plinqx/hypha/internal/auth"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
)

// The endpoints of a tenant's users.

func (c *call) userID() (id.User, error) {
	u, err := id.ParseUser(c.param("user"))
	if err != nil {
		return u, hook.NotFound("User")
	}
	return u, nil
}

func (a *api) listUsers(c *call) (reply, error) {
	q := newQuery(c)
	limit, after := q.limit(), q.cursor()
	if err := q.err(); err != nil {
		return reply{}, err
	}
	// One more, to know whether there is more.
	rows, err := a.o.Auth.Users(c.Context(), c.tenant(), after, limit+1)
	if err != nil {
		return reply{}, err
	}
	rows, next := pageOf(rows, func(u hook.User) [16]byte { return u.ID }, [16]byte{}, limit)
	out := page[*userView]{Data: make([]*userView, len(rows)), NextCursor: q.next(next)}
	for i := range rows {
		out.Data[i] = viewUser(&rows[i])
	}
	return reply{status: http.StatusOK, value: out}, nil
}

func (o *object) role(name string) *hook.Role {
	s := o.text(name)
	if s == nil {
		return nil
	}
	return (*hook.Role)(s)
}

func (a *api) createUser(c *call) (reply, error) {
	wanted, err := decode(a, c, a.o.MaxBody, func(o *object) auth.NewUser {
		o.require("email", "role")
		u := auth.NewUser{Password: o.text("password")}
		if s := o.text("email"); s != nil {
			u.Email = *s
		}
		if r := o.role("role"); r != nil {
			u.Role = *r
		}
		return u
	}, a.o.Auth.CheckUser)
	if err != nil {
		return reply{}, err
	}
	made, err := a.o.Auth.CreateUser(c.Context(), c.tenant(), wanted)
	if err != nil {
		return reply{}, err
	}
	v := viewUser(&made.User)
	v.Password = made.Password
	return reply{status: http.StatusCreated, value: v}, nil
}

func (a *api) getUser(c *call) (reply, error) {
	user, err := c.userID()
	if err != nil {
		return reply{}, err
	}
	u, err := a.o.Auth.User(c.Context(), c.tenant(), user)
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusOK, value: viewUser(u)}, nil
}

func (a *api) updateUser(c *call) (reply, error) {
	user, err := c.userID()
	if err != nil {
		return reply{}, err
	}
	change, err := decode(a, c, a.o.MaxBody, func(o *object) auth.UserChange {
		return auth.UserChange{Email: o.text("email"), Role: o.role("role"), Password: o.text("password")}
	}, a.o.Auth.CheckUserChange)
	if err != nil {
		return reply{}, err
	}
	u, err := a.o.Auth.UpdateUser(c.Context(), c.tenant(), user, change)
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusOK, value: viewUser(u)}, nil
}

func (a *api) signOutUser(c *call) (reply, error) {
	user, err := c.userID()
	if err != nil {
		return reply{}, err
	}
	if err := a.noBody(c); err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusNoContent}, a.o.Auth.SignOutUser(c.Context(), c.tenant(), user)
}

func (a *api) deleteUser(c *call) (reply, error) {
	user, err := c.userID()
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusNoContent}, a.o.Auth.DeleteUser(c.Context(), c.tenant(), user)
}
