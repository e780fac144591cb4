package auth

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
)

// The first tenant and its administrator, unless others are given.
const (
	DefaultTenant = "default"
	DefaultEmail  = "admin@hypha.local"
)

// Bootstrap is what the first start is given. Each may be empty: then the server
// makes it, but for the operator's key, without which there is none.
type Bootstrap struct {
	APIKey      string // 20 to 512 visible ASCII characters
	Email       string
	Password    string // MinPassword to MaxPassword bytes
	OperatorKey string // as APIKey
}

// Bootstrapped is what was made, to be shown once. What was given is in it too.
type Bootstrapped struct {
	Tenant   hook.Tenant
	Email    string
	Password string
	APIKey   string
}

// Bootstrap makes a store usable: on an empty one, the tenant "default" with an
// administrator and an API key. It answers nil if there was a tenant already:
// then nothing is changed, whatever is given. An operator's key that is given
// and unknown is added in either case.
//
// A start that was cut short before it answered is begun anew by the next.
func (a *Auth) Bootstrap(ctx context.Context, b Bootstrap) (*Bootstrapped, error) {
	if err := b.check(); err != nil {
		return nil, err
	}
	if b.OperatorKey != "" {
		if err := a.addOperatorKey(ctx, b.OperatorKey); err != nil {
			return nil, fmt.Errorf("operator key: %w", err)
		}
	}
	if b.Email = normalEmail(b.Email); b.Email == "" {
		b.Email = DefaultEmail
	}
	t, err := a.firstTenant(ctx)
	if err != nil || t == nil {
		return nil, err
	}
	return a.fillFirstTenant(ctx, t, b)
}

func (b *Bootstrap) check() error {
	var problems []error
	for _, k := range []struct{ name, value string }{{"API key", b.APIKey}, {"operator key", b.OperatorKey}} {
		switch {
		case k.value == "":
		case !plausible(k.value):
			problems = append(problems, fmt.Errorf("the %s must have %d to %d visible ASCII characters, without spaces", k.name, minTokenLen, maxTokenLen))
		case isSessionToken(k.value):
			problems = append(problems, fmt.Errorf("the %s must not begin with %s: session tokens do", k.name, sessionPrefix))
		}
	}
	if b.APIKey != "" && b.APIKey == b.OperatorKey {
		problems = append(problems, errors.New("the API key and the operator key must differ: one belongs to a tenant, the other to none"))
	}
	if b.Email != "" {
		if p := checkEmail(b.Email); p != "" {
			problems = append(problems, errors.New("the email "+p))
		}
	}
	if b.Password != "" {
		for _, p := range checkPassword("", cmp.Or(b.Email, DefaultEmail), b.Password) {
			problems = append(problems, errors.New("the password "+p.Message))
		}
	}
	return errors.Join(problems...)
}

func (a *Auth) addOperatorKey(ctx context.Context, key string) error {
	row, err := a.o.Store.KeyByHash(ctx, hashToken(key))
	switch {
	case err == nil && !row.Tenant.IsZero():
		return errors.New("this key is a tenant's API key already; give another")
	case err == nil:
		return nil
	case hook.CodeOf(err) != hook.CodeNotFound:
		return err
	}
	made, err := a.newRow(id.Tenant{}, key, NewKey{Name: "bootstrap", Scopes: []hook.Scope{hook.ScopeOperator}})
	if err != nil {
		return err
	}
	return a.o.Store.InsertOperatorKey(noteNewKey(ctx, hook.AuditOperatorKeyCreated, &made.APIKey, false), made)
}

// unfinished is the name of the first tenant until it has its administrator and
// its key. Nobody else can give a tenant this name: it holds a control
// character.
const unfinished = DefaultTenant + "\t(being made)"

// firstTenant answers the tenant to fill, or nil if there is one that is whole.
func (a *Auth) firstTenant(ctx context.Context) (*hook.Tenant, error) {
	tenants, err := a.o.Store.Tenants(ctx, id.Tenant{}, 2)
	if err != nil {
		return nil, err
	}
	if len(tenants) == 1 && tenants[0].Name == unfinished {
		// An earlier start ended before it told anybody of what it made.
		if err := a.DeleteTenant(ctx, tenants[0].ID); err != nil {
			return nil, err
		}
		tenants = nil
	}
	if len(tenants) > 0 {
		return nil, nil
	}
	return a.insertTenant(ctx, unfinished)
}

func (a *Auth) fillFirstTenant(ctx context.Context, t *hook.Tenant, b Bootstrap) (*Bootstrapped, error) {
	made := &Bootstrapped{Email: b.Email, Password: b.Password, APIKey: b.APIKey}
	var err error
	if made.APIKey == "" {
		if made.APIKey, err = newToken(keyPrefix); err != nil {
			return nil, err
		}
	}
	if made.Password == "" {
		if made.Password, err = newToken(""); err != nil {
			return nil, err
		}
	}
	_, err = a.insertKey(ctx, t.ID, made.APIKey, b.APIKey == "", NewKey{Name: "bootstrap", Scopes: []hook.Scope{hook.ScopeAdmin}})
	if err != nil {
		return nil, fmt.Errorf("API key: %w", err)
	}
	admin := NewUser{Email: b.Email, Role: hook.RoleAdministrator, Password: &made.Password}
	if err := a.insertUser(ctx, t.ID, admin, new(hook.User), b.Password == ""); err != nil {
		return nil, fmt.Errorf("administrator: %w", err)
	}
	whole, err := a.rename(ctx, t, DefaultTenant)
	if err != nil {
		return nil, err
	}
	made.Tenant = *whole
	return made, nil
}
