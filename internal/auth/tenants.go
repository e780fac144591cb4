package auth

import (
	"context"

	"github.com/plinqx/hypha/internal/audit"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
)

// CheckTenantName lists what is wrong with a tenant's name: 1 to 255 characters.
func CheckTenantName(name string) []hook.Detail {
	if p := hook.CheckText(name, 1, maxName, ""); p != "" {
		return []hook.Detail{{Path: "name", Message: p}}
	}
	return nil
}

// CreateTenant makes a tenant.
func (a *Auth) CreateTenant(ctx context.Context, name string) (*hook.Tenant, error) {
	if problems := CheckTenantName(name); len(problems) > 0 {
		return nil, hook.Invalid(problems...)
	}
	return a.insertTenant(ctx, name)
}

func (a *Auth) insertTenant(ctx context.Context, name string) (*hook.Tenant, error) {
	tenantID, err := id.NewTenant()
	if err != nil {
		return nil, err
	}
	now := a.now()
	t := hook.Tenant{ID: tenantID, Name: name, CreatedAt: now, UpdatedAt: now}
	if err := a.o.Store.InsertTenant(noteTenant(ctx, hook.AuditTenantCreated, &t, nil), t); err != nil {
		return nil, err
	}
	return &t, nil
}

// Tenants lists tenants, oldest first, after one (zero: from the first).
func (a *Auth) Tenants(ctx context.Context, after id.Tenant, limit int) ([]hook.Tenant, error) {
	return a.o.Store.Tenants(ctx, after, limit)
}

// Tenant shows one: hook.CodeNotFound if there is none of that id.
func (a *Auth) Tenant(ctx context.Context, tenant id.Tenant) (*hook.Tenant, error) {
	return a.o.Store.Tenant(ctx, tenant)
}

// RenameTenant changes a tenant's name.
func (a *Auth) RenameTenant(ctx context.Context, tenant id.Tenant, name string) (*hook.Tenant, error) {
	t, err := a.o.Store.Tenant(ctx, tenant)
	if err != nil {
		return nil, err
	}
	if problems := CheckTenantName(name); len(problems) > 0 {
		return nil, hook.Invalid(problems...)
	}
	if t.Name == name {
		return t, nil
	}
	var d audit.Diff
	d.Changed("name", t.Name, name)
	return a.rename(noteTenant(ctx, hook.AuditTenantUpdated, t, d), t, name)
}

func (a *Auth) rename(ctx context.Context, t *hook.Tenant, name string) (*hook.Tenant, error) {
	t.Name, t.UpdatedAt = name, a.now()
	if err := a.o.Store.UpdateTenant(ctx, *t); err != nil {
		return nil, err
	}
	a.o.Catalog.PutTenant(*t)
	return t, nil
}

// DeleteTenant removes a tenant and everything of it. Its credentials are
// refused from now on.
func (a *Auth) DeleteTenant(ctx context.Context, tenant id.Tenant) error {
	held := &hook.Tenant{ID: tenant}
	if t, err := a.o.Store.Tenant(ctx, tenant); err == nil { // for its name
		held = t
	}
	if err := a.o.Store.DeleteTenant(noteTenant(ctx, hook.AuditTenantDeleted, held, nil), tenant); err != nil {
		return err
	}
	a.o.Catalog.DeleteTenant(tenant)
	a.forgetSessions(func(s *hook.Session) bool { return s.Tenant == tenant })
	a.mu.Lock()
	defer a.mu.Unlock()
	for hash, k := range a.keys {
		if k.tenant == tenant {
			delete(a.keys, hash)
		}
	}
	return nil
}
