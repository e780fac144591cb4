package auth

import (
	"context"
	"errors"
	"fmt"
	"net/mail"
	"slices"
	"strings"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// The bounds of users. MaxEmail is in bytes: far beyond any address.
const (
	MaxEmail = 320
	maxUsers = 1000 // of a tenant
)

// NewUser is what a user is made of.
type NewUser struct {
	Email string
	Role  hook.Role
	// Password has MinPassword to MaxPassword bytes; nil for one that the server
	// makes.
	Password *string
}

// UserChange is what is to be changed of a user: a nil field stays.
type UserChange struct {
	Email    *string
	Role     *hook.Role
	Password *string
}

// MadeUser is a new user. Password is what the server made, "" if one was given; it
// is nowhere else.
type MadeUser struct {
	hook.User
	Password string
}

// CheckUser lists what is wrong with a user that somebody wants to make.
func (a *Auth) CheckUser(u NewUser) []hook.Detail {
	return a.CheckUserChange(UserChange{Email: &u.Email, Role: &u.Role, Password: u.Password})
}

// CheckUserChange lists what is wrong with a change.
func (*Auth) CheckUserChange(c UserChange) []hook.Detail {
	var problems []hook.Detail
	email := ""
	if c.Email != nil {
		if p := checkEmail(*c.Email); p != "" {
			problems = append(problems, hook.Detail{Path: "email", Message: p})
		}
		email = *c.Email
	}
	if c.Role != nil && !slices.Contains(hook.Roles(), *c.Role) {
		problems = append(problems, hook.Detail{Path: "role", Message: "must be one of " + roleList()})
	}
	if c.Password != nil {
		problems = append(problems, checkPassword("password", email, *c.Password)...)
	}
	return problems
}

func roleList() string {
	var names []string
	for _, r := range hook.Roles() {
		names = append(names, string(r))
	}
	return strings.Join(names, ", ")
}

func normalEmail(email string) string { return strings.ToLower(strings.TrimSpace(email)) }

// checkEmail says what is wrong with an address, "" if nothing is. It is kept in
// lower case, and found however it is written.
func checkEmail(email string) string {
	if p := hook.CheckText(email, 1, MaxEmail, ""); p != "" {
		return p
	}
	email = normalEmail(email)
	if len(email) > MaxEmail {
		return fmt.Sprintf("must have at most %d bytes", MaxEmail)
	}
	if addr, err := mail.ParseAddress(email); err != nil || addr.Address != email {
		return "must be an address such as name@example.com"
	}
	return ""
}

// checkPassword lists what is wrong with a password of a user with an address.
func checkPassword(path, email, password string) []hook.Detail {
	switch n := len(password); {
	case n < MinPassword || n > MaxPassword:
		return []hook.Detail{{Path: path, Message: fmt.Sprintf("must have %d to %d bytes", MinPassword, MaxPassword)}}
	case email != "" && normalEmail(password) == normalEmail(email):
		return []hook.Detail{{Path: path, Message: "must not be the email: that is what is guessed first"}}
	default:
		return nil
	}
}

// CreateUser makes a user of a tenant: hook.CodeConflict if it has one of this
// address, or as many as it may have.
func (a *Auth) CreateUser(ctx context.Context, tenant id.Tenant, n NewUser) (*MadeUser, error) {
	if problems := a.CheckUser(n); len(problems) > 0 {
		return nil, hook.Invalid(problems...)
	}
	made := &MadeUser{}
	if n.Password == nil {
		password, err := newToken("")
		if err != nil {
			return nil, err
		}
		made.Password, n.Password = password, &password
	}
	if err := a.insertUser(ctx, tenant, n, &made.User, made.Password != ""); err != nil {
		return nil, err
	}
	return made, nil
}

func (a *Auth) insertUser(ctx context.Context, tenant id.Tenant, n NewUser, made *hook.User, secretShown bool) error {
	hash, err := a.passwords.hash(ctx, *n.Password)
	if err != nil {
		return err
	}
	userID, err := id.NewUser()
	if err != nil {
		return err
	}
	now := a.now()
	*made = hook.User{ID: userID, Tenant: tenant, Email: normalEmail(n.Email), Role: n.Role, PasswordHash: hash, CreatedAt: now, UpdatedAt: now}
	return userError(a.o.Store.InsertUser(noteNewUser(ctx, made, secretShown), *made, maxUsers))
}

// userError says what the store refuses in words for whoever asked.
func userError(err error) error {
	switch {
	case errors.Is(err, store.ErrLastAdministrator):
		return hook.Conflict("This is the tenant's last administrator; make another user one first")
	case errors.Is(err, store.ErrTooMany):
		return hook.Conflict("This tenant has %d users, which is the most it may have; delete one first", maxUsers)
	case hook.CodeOf(err) == hook.CodeConflict:
		return hook.Conflict("This tenant has a user with this email already")
	default:
		return err
	}
}

// Users lists a tenant's users, oldest first, after one (zero: from the first).
func (a *Auth) Users(ctx context.Context, tenant id.Tenant, after id.User, limit int) ([]hook.User, error) {
	return a.o.Store.Users(ctx, tenant, after, limit)
}

// User shows one: hook.CodeNotFound if the tenant has none of that id.
func (a *Auth) User(ctx context.Context, tenant id.Tenant, user id.User) (*hook.User, error) {
	return a.o.Store.User(ctx, tenant, user)
}

// UpdateUser changes a user. Another role and another password end the user's
// sessions. hook.CodeConflict: another user has the address, or the tenant would
// have no administrator.
func (a *Auth) UpdateUser(ctx context.Context, tenant id.Tenant, user id.User, c UserChange) (*hook.User, error) {
	// Before the rules: what is not there has none.
	now, err := a.o.Store.User(ctx, tenant, user)
	if err != nil {
		return nil, err
	}
	if problems := a.CheckUserChange(c); len(problems) > 0 {
		return nil, hook.Invalid(problems...)
	}
	change := store.UserChange{Tenant: tenant, User: user, Now: a.now(), Role: c.Role}
	email := now.Email
	if c.Email != nil {
		email = normalEmail(*c.Email)
		change.Email = &email
	}
	if c.Password != nil {
		if problems := checkPassword("password", email, *c.Password); len(problems) > 0 {
			return nil, hook.Invalid(problems...)
		}
		hash, err := a.passwords.hash(ctx, *c.Password)
		if err != nil {
			return nil, err
		}
		change.PasswordHash = &hash
	}
	diff := userDiff(now, &change)
	if len(diff) == 0 {
		return now, nil
	}
	changed, err := a.o.Store.UpdateUser(noteChangedUser(ctx, hook.AuditUserUpdated, now, diff), change)
	if err != nil {
		return nil, userError(err)
	}
	a.forgetSessionsOf(user)
	return changed, nil
}

// DeleteUser removes a user: the sessions are refused from now on. hook.CodeConflict
// for the tenant's last administrator.
func (a *Auth) DeleteUser(ctx context.Context, tenant id.Tenant, user id.User) error {
	held, err := a.o.Store.User(ctx, tenant, user)
	if err != nil {
		return err
	}
	if err := a.o.Store.DeleteUser(noteChangedUser(ctx, hook.AuditUserDeleted, held, nil), tenant, user); err != nil {
		return userError(err)
	}
	a.forgetSessionsOf(user)
	return nil
}
