package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// forTenant says whom a command is for.
type forTenant struct {
	Tenant string `help:"Tenant, by its id. Default: the only one, where there is no other." placeholder:"ID" once:""`
}

// changes are the fields of a PATCH.
type changes map[string]any

// question asks for the changes, of which there must be one.
func (c changes) question(path, tenant, flags string) (question, error) {
	if len(c) == 0 {
		return question{}, usageError{errors.New("nothing is to be changed: give " + flags)}
	}
	return question{method: http.MethodPatch, path: path, tenant: tenant, body: c}, nil
}

func at(path, id string) string { return path + "/" + url.PathEscape(id) }

// Tenants

type adminTenants struct {
	List   adminTenantsList   `cmd:"" help:"List the tenants, oldest first."`
	Create adminTenantsCreate `cmd:"" help:"Make a tenant."`
	Get    adminTenantsGet    `cmd:"" help:"Show a tenant."`
	Update adminTenantsUpdate `cmd:"" help:"Rename a tenant."`
	Delete adminTenantsDelete `cmd:"" help:"Delete a tenant, and everything of it: webhooks, events, history, users, keys."`
}

type (
	adminTenantsList   struct{}
	adminTenantsCreate struct {
		Name string `arg:"" help:"What to call it."`
	}
	adminTenantsGet struct {
		ID string `arg:"" help:"The tenant's id."`
	}
	adminTenantsUpdate struct {
		ID   string  `arg:"" help:"The tenant's id."`
		Name *string `help:"What to call it." placeholder:"NAME" once:""`
	}
	adminTenantsDelete struct {
		ID string `arg:"" help:"The tenant's id."`
	}
)

type tenantShown struct {
	ID, Name  string
	CreatedAt *time.Time
}

func tenantColumns() []column[tenantShown] {
	return []column[tenantShown]{
		{"id", func(t *tenantShown) string { return t.ID }},
		{"name", func(t *tenantShown) string { return t.Name }},
		{"created", func(t *tenantShown) string { return moment(t.CreatedAt) }},
	}
}

const tenantsPath = "/tenants"

// Run lists.
func (*adminTenantsList) Run(p *process, a *adminCommand) error {
	c, err := a.open(p)
	if err != nil {
		return err
	}
	found, err := c.list(question{method: http.MethodGet, path: tenantsPath}, 0)
	if err != nil {
		return err
	}
	return showList(c, found, tenantColumns())
}

func (a *adminCommand) showTenant(p *process, q question) error {
	c, err := a.open(p)
	if err != nil {
		return err
	}
	raw, err := c.ask(q)
	if err != nil {
		return err
	}
	return showOne(c, raw, tenantColumns())
}

// Run makes a tenant.
func (t *adminTenantsCreate) Run(p *process, a *adminCommand) error {
	return a.showTenant(p, question{method: http.MethodPost, path: tenantsPath, body: changes{"name": t.Name}})
}

// Run shows a tenant.
func (t *adminTenantsGet) Run(p *process, a *adminCommand) error {
	return a.showTenant(p, question{method: http.MethodGet, path: at(tenantsPath, t.ID)})
}

// Run renames a tenant.
func (t *adminTenantsUpdate) Run(p *process, a *adminCommand) error {
	set := changes{}
	if t.Name != nil {
		set["name"] = *t.Name
	}
	q, err := set.question(at(tenantsPath, t.ID), "", "--name")
	if err != nil {
		return err
	}
	return a.showTenant(p, q)
}

// Run deletes a tenant.
func (t *adminTenantsDelete) Run(p *process, a *adminCommand) error {
	c, err := a.open(p)
	if err != nil {
		return err
	}
	return c.did(question{method: http.MethodDelete, path: at(tenantsPath, t.ID)}, "Deleted the tenant %s.", t.ID)
}

// Users

type adminUsers struct {
	forTenant

	List        adminUsersList        `cmd:"" help:"List the users, oldest first."`
	Create      adminUsersCreate      `cmd:"" help:"Make a user. Unless one is given, the server makes a password and it is printed."`
	Update      adminUsersUpdate      `cmd:"" help:"Change a user's email or role."`
	Delete      adminUsersDelete      `cmd:"" help:"Delete a user. The sessions end."`
	SetPassword adminUsersSetPassword `cmd:"" help:"Give a user another password, asked for at the terminal. The sessions end."`
	SignOut     adminUsersSignOut     `cmd:"" help:"End all sessions of a user."`
}

// oneUser is a user of the tenant.
type oneUser struct {
	User string `arg:"" help:"The user's id or email."`
}

type (
	adminUsersList   struct{}
	adminUsersCreate struct {
		Email         string `arg:"" help:"The user's email."`
		Role          string `help:"Administrator, Developer or Viewer." required:"" placeholder:"ROLE" once:""`
		AskPassword   bool   `help:"Ask for a password at the terminal." xor:"password" once:""`
		PasswordStdin bool   `help:"Read a password from the standard input." xor:"password" once:""`
	}
	adminUsersUpdate struct {
		oneUser
		Email *string `help:"The user's email." placeholder:"EMAIL" once:""`
		Role  *string `help:"Administrator, Developer or Viewer. Another role ends the sessions." placeholder:"ROLE" once:""`
	}
	adminUsersDelete      struct{ oneUser }
	adminUsersSetPassword struct {
		oneUser
		PasswordStdin bool `help:"Read the password from the standard input." once:""`
	}
	adminUsersSignOut struct{ oneUser }
)

type userShown struct {
	ID, Email, Role, Password string
	CreatedAt, LastLoginAt    *time.Time
}

func userColumns() []column[userShown] {
	return []column[userShown]{
		{"id", func(u *userShown) string { return u.ID }},
		{"email", func(u *userShown) string { return u.Email }},
		{"role", func(u *userShown) string { return u.Role }},
		{"created", func(u *userShown) string { return moment(u.CreatedAt) }},
		{"last sign-in", func(u *userShown) string { return moment(u.LastLoginAt) }},
	}
}

const usersPath = "/users"

// begin is a client, and the tenant that the command is for.
func (f *forTenant) begin(p *process, a *adminCommand) (*adminClient, string, error) {
	c, err := a.open(p)
	if err != nil {
		return nil, "", err
	}
	tenant, err := c.tenant(f.Tenant)
	return c, tenant, err
}

// begin is that, and the path of the user that is named.
func (u *oneUser) begin(p *process, a *adminCommand, f *forTenant) (c *adminClient, tenant, path string, err error) {
	c, tenant, err = f.begin(p, a)
	if err != nil {
		return nil, "", "", err
	}
	if !strings.Contains(u.User, "@") {
		return c, tenant, at(usersPath, u.User), nil
	}
	found, err := c.list(question{method: http.MethodGet, path: usersPath, tenant: tenant}, 0)
	if err != nil {
		return nil, "", "", err
	}
	for _, raw := range found.Data {
		var one userShown
		if err := json.Unmarshal(raw, &one); err != nil {
			return nil, "", "", err
		}
		if strings.EqualFold(one.Email, u.User) {
			return c, tenant, at(usersPath, one.ID), nil
		}
	}
	return nil, "", "", fmt.Errorf("the tenant %s has no user %s", tenant, printable(u.User))
}

// Run lists.
func (*adminUsersList) Run(p *process, a *adminCommand, of *adminUsers) error {
	c, tenant, err := of.begin(p, a)
	if err != nil {
		return err
	}
	found, err := c.list(question{method: http.MethodGet, path: usersPath, tenant: tenant}, 0)
	if err != nil {
		return err
	}
	return showList(c, found, userColumns())
}

// Run makes a user.
func (u *adminUsersCreate) Run(p *process, a *adminCommand, of *adminUsers) error {
	c, tenant, err := of.begin(p, a)
	if err != nil {
		return err
	}
	body := changes{"email": u.Email, "role": u.Role}
	if u.AskPassword || u.PasswordStdin {
		if body["password"], err = p.password(u.PasswordStdin); err != nil {
			return err
		}
	}
	raw, err := c.ask(question{method: http.MethodPost, path: usersPath, tenant: tenant, body: body})
	if err != nil {
		return err
	}
	var made userShown
	if err := json.Unmarshal(raw, &made); err != nil {
		return err
	}
	if made.Password == "" {
		return showOne(c, raw, userColumns())
	}
	return c.showSecret(raw, made.Password, "Made the user %s (%s), with a password.", printable(made.Email), made.ID)
}

// Run changes a user.
func (u *adminUsersUpdate) Run(p *process, a *adminCommand, of *adminUsers) error {
	set := changes{}
	if u.Email != nil {
		set["email"] = *u.Email
	}
	if u.Role != nil {
		set["role"] = *u.Role
	}
	if _, err := set.question("", "", "--email or --role"); err != nil {
		return err
	}
	c, tenant, path, err := u.begin(p, a, &of.forTenant)
	if err != nil {
		return err
	}
	raw, err := c.ask(question{method: http.MethodPatch, path: path, tenant: tenant, body: set})
	if err != nil {
		return err
	}
	return showOne(c, raw, userColumns())
}

// Run deletes a user.
func (u *adminUsersDelete) Run(p *process, a *adminCommand, of *adminUsers) error {
	c, tenant, path, err := u.begin(p, a, &of.forTenant)
	if err != nil {
		return err
	}
	return c.did(question{method: http.MethodDelete, path: path, tenant: tenant}, "Deleted the user %s.", printable(u.User))
}

// Run gives a user another password.
func (u *adminUsersSetPassword) Run(p *process, a *adminCommand, of *adminUsers) error {
	// Before anybody types: what is wrong with the rest.
	c, tenant, path, err := u.begin(p, a, &of.forTenant)
	if err != nil {
		return err
	}
	password, err := p.password(u.PasswordStdin)
	if err != nil {
		return err
	}
	return c.did(question{method: http.MethodPatch, path: path, tenant: tenant, body: changes{"password": password}},
		"Changed the password of %s, and ended the sessions.", printable(u.User))
}

// Run signs a user out.
func (u *adminUsersSignOut) Run(p *process, a *adminCommand, of *adminUsers) error {
	c, tenant, path, err := u.begin(p, a, &of.forTenant)
	if err != nil {
		return err
	}
	return c.did(question{method: http.MethodPost, path: path + "/sign-out", tenant: tenant}, "Ended the sessions of %s.", printable(u.User))
}

// Keys, of tenants and of operators

type adminKeys struct {
	forTenant

	List   adminKeysList   `cmd:"" help:"List the API keys, oldest first."`
	Create adminKeysCreate `cmd:"" help:"Make an API key, and print it."`
	Update adminKeysUpdate `cmd:"" help:"Change an API key's name or end."`
	Delete adminKeysDelete `cmd:"" help:"Revoke an API key."`
}

type adminOperatorKeys struct {
	List   adminOperatorKeysList   `cmd:"" help:"List the operators' keys, oldest first."`
	Create adminOperatorKeysCreate `cmd:"" help:"Make an operator's key, and print it."`
	Update adminOperatorKeysUpdate `cmd:"" help:"Change an operator's key's name or end."`
	Delete adminOperatorKeysDelete `cmd:"" help:"Revoke an operator's key."`
}

// keyFields are what a new key is made of.
type keyFields struct {
	Name    string `arg:"" help:"What to call it."`
	Expires string `help:"When it ends: a time such as 2027-01-01T00:00:00Z, a duration such as 720h, or never." default:"never" placeholder:"WHEN" once:""`
}

// keyChanges are what can be changed of a key.
type keyChanges struct {
	ID      string  `arg:"" help:"The key's id."`
	Name    *string `help:"What to call it." placeholder:"NAME" once:""`
	Expires *string `help:"When it ends: a time such as 2027-01-01T00:00:00Z, a duration such as 720h, or never." placeholder:"WHEN" once:""`
}

// oneKey is a key by its id.
type oneKey struct {
	ID string `arg:"" help:"The key's id."`
}

type (
	adminKeysList   struct{}
	adminKeysCreate struct {
		keyFields
		Scope []string `help:"What it allows, such as events:write; may be given several times. Default: everything in the tenant." placeholder:"SCOPE" once:""`
	}
	adminKeysUpdate struct{ keyChanges }
	adminKeysDelete struct{ oneKey }

	adminOperatorKeysList   struct{}
	adminOperatorKeysCreate struct{ keyFields }
	adminOperatorKeysUpdate struct{ keyChanges }
	adminOperatorKeysDelete struct{ oneKey }
)

type keyShown struct {
	ID, Name, Hint, Key              string
	Scopes                           []string
	CreatedAt, ExpiresAt, LastUsedAt *time.Time
}

func operatorKeyColumns() []column[keyShown] {
	return []column[keyShown]{
		{"id", func(k *keyShown) string { return k.ID }},
		{"name", func(k *keyShown) string { return k.Name }},
		{"begins with", func(k *keyShown) string { return k.Hint }},
		{"created", func(k *keyShown) string { return moment(k.CreatedAt) }},
		{"expires", func(k *keyShown) string { return moment(k.ExpiresAt) }},
		{"last used", func(k *keyShown) string { return moment(k.LastUsedAt) }},
	}
}

func keyColumns() []column[keyShown] {
	return append(operatorKeyColumns(), column[keyShown]{"scopes", func(k *keyShown) string { return strings.Join(k.Scopes, " ") }})
}

const (
	keysPath         = "/api-keys"
	operatorKeysPath = "/operator-keys"
)

func (k *keyFields) body() (changes, error) {
	ends, err := expiry(k.Expires)
	return changes{"name": k.Name, "expiresAt": ends}, err
}

// made asks for a key and prints it.
func (c *adminClient) made(q question, what string) error {
	raw, err := c.ask(q)
	if err != nil {
		return err
	}
	var k keyShown
	if err := json.Unmarshal(raw, &k); err != nil {
		return err
	}
	return c.showSecret(raw, k.Key, "Made the %s %s (%s).", what, printable(k.Name), k.ID)
}

func (k *keyChanges) set() (changes, error) {
	set := changes{}
	if k.Name != nil {
		set["name"] = *k.Name
	}
	if k.Expires != nil {
		ends, err := expiry(*k.Expires)
		if err != nil {
			return nil, err
		}
		set["expiresAt"] = ends
	}
	return set, nil
}

// update asks for the changes, and shows the key as it is then.
func (k *keyChanges) update(begin func() (*adminClient, string, error), path string, columns []column[keyShown]) error {
	set, err := k.set()
	if err != nil {
		return err
	}
	q, err := set.question(at(path, k.ID), "", "--name or --expires")
	if err != nil {
		return err
	}
	c, tenant, err := begin()
	if err != nil {
		return err
	}
	q.tenant = tenant
	raw, err := c.ask(q)
	if err != nil {
		return err
	}
	return showOne(c, raw, columns)
}

// Run lists.
func (*adminKeysList) Run(p *process, a *adminCommand, of *adminKeys) error {
	c, tenant, err := of.begin(p, a)
	if err != nil {
		return err
	}
	found, err := c.list(question{method: http.MethodGet, path: keysPath, tenant: tenant}, 0)
	if err != nil {
		return err
	}
	return showList(c, found, keyColumns())
}

// Run makes a key.
func (k *adminKeysCreate) Run(p *process, a *adminCommand, of *adminKeys) error {
	body, err := k.body()
	if err != nil {
		return err
	}
	if len(k.Scope) > 0 {
		body["scopes"] = k.Scope
	}
	c, tenant, err := of.begin(p, a)
	if err != nil {
		return err
	}
	return c.made(question{method: http.MethodPost, path: keysPath, tenant: tenant, body: body}, "API key")
}

// Run changes a key.
func (k *adminKeysUpdate) Run(p *process, a *adminCommand, of *adminKeys) error {
	return k.update(func() (*adminClient, string, error) { return of.begin(p, a) }, keysPath, keyColumns())
}

// Run revokes a key.
func (k *adminKeysDelete) Run(p *process, a *adminCommand, of *adminKeys) error {
	c, tenant, err := of.begin(p, a)
	if err != nil {
		return err
	}
	return c.did(question{method: http.MethodDelete, path: at(keysPath, k.ID), tenant: tenant}, "Revoked the API key %s.", k.ID)
}

// Run lists.
func (*adminOperatorKeysList) Run(p *process, a *adminCommand) error {
	c, err := a.open(p)
	if err != nil {
		return err
	}
	found, err := c.list(question{method: http.MethodGet, path: operatorKeysPath}, 0)
	if err != nil {
		return err
	}
	return showList(c, found, operatorKeyColumns())
}

// Run makes a key.
func (k *adminOperatorKeysCreate) Run(p *process, a *adminCommand) error {
	body, err := k.body()
	if err != nil {
		return err
	}
	c, err := a.open(p)
	if err != nil {
		return err
	}
	return c.made(question{method: http.MethodPost, path: operatorKeysPath, body: body}, "operator key")
}

// Run changes a key.
func (k *adminOperatorKeysUpdate) Run(p *process, a *adminCommand) error {
	return k.update(func() (*adminClient, string, error) {
		c, err := a.open(p)
		return c, "", err
	}, operatorKeysPath, operatorKeyColumns())
}

// Run revokes a key.
func (k *adminOperatorKeysDelete) Run(p *process, a *adminCommand) error {
	c, err := a.open(p)
	if err != nil {
		return err
	}
	return c.did(question{method: http.MethodDelete, path: at(operatorKeysPath, k.ID)}, "Revoked the operator key %s.", k.ID)
}

// Secret keys

type adminSecretKeys struct {
	List   adminSecretKeysList   `cmd:"" help:"Show which keys there are, and how much is sealed under each."`
	Create adminSecretKeysCreate `cmd:"" help:"Put a new key before the others, to seal from now on. hypha admin rekey seals the rest anew."`
}

type (
	adminSecretKeysList   struct{}
	adminSecretKeysCreate struct{}
	adminRekeyCommand     struct{}
)

type secretKeyShown struct {
	ID            string
	Current, Held bool
	InUse         int64
}

func secretKeyColumns() []column[secretKeyShown] {
	return []column[secretKeyShown]{
		{"id", func(k *secretKeyShown) string { return k.ID }},
		{"state", func(k *secretKeyShown) string {
			switch {
			case k.Current:
				return "seals"
			case !k.Held:
				return "missing"
			case k.InUse > 0:
				return "opens"
			default:
				return "not needed"
			}
		}},
		{"in use", func(k *secretKeyShown) string { return fmt.Sprint(k.InUse) }},
	}
}

const secretKeysPath = "/secret-keys"

// showSecretKeys prints the keys of an answer.
func (c *adminClient) showSecretKeys(raw json.RawMessage) error {
	if c.json {
		return c.printRaw(raw)
	}
	var said struct{ Keys []json.RawMessage }
	if err := json.Unmarshal(raw, &said); err != nil {
		return err
	}
	return showList(c, &page{Data: said.Keys}, secretKeyColumns())
}

func (a *adminCommand) secretKeys(p *process, method string) error {
	c, err := a.open(p)
	if err != nil {
		return err
	}
	raw, err := c.ask(question{method: method, path: secretKeysPath})
	if err != nil {
		return err
	}
	return c.showSecretKeys(raw)
}

// Run shows the keys.
func (*adminSecretKeysList) Run(p *process, a *adminCommand) error {
	return a.secretKeys(p, http.MethodGet)
}

// Run makes a key.
func (*adminSecretKeysCreate) Run(p *process, a *adminCommand) error {
	return a.secretKeys(p, http.MethodPost)
}

// Run seals anew until all is done, and says how far it is: the server answers each
// half minute.
func (*adminRekeyCommand) Run(p *process, a *adminCommand) error {
	c, err := a.open(p)
	if err != nil {
		return err
	}
	for total := int64(0); ; {
		raw, err := c.ask(question{method: http.MethodPost, path: secretKeysPath + "/rekey"})
		if err != nil {
			return fmt.Errorf("%w (what is done is done; the same command goes on)", err)
		}
		var done struct {
			Resealed, Unreadable int64
			More                 bool
		}
		if err := json.Unmarshal(raw, &done); err != nil {
			return err
		}
		total += done.Resealed
		if !done.More || c.json {
			if err := c.showSecretKeys(raw); err != nil {
				return err
			}
		}
		fmt.Fprintf(c.stderr, "Sealed anew: %d.\n", total)
		switch {
		case !done.More && done.Unreadable > 0:
			return fmt.Errorf("%d can't be read, and stay as they are; the server's log says which", done.Unreadable)
		case !done.More:
			return nil
		case done.Resealed == 0:
			return errors.New("the server had no time to seal anything anew; its log says more")
		}
	}
}

// The audit log

type adminAudit struct {
	Tenant string `help:"Tenant whose log it is, by its id. Default: the operators' own log." placeholder:"ID" once:""`

	List   adminAuditList   `cmd:"" help:"Show entries, newest first."`
	Export adminAuditExport `cmd:"" help:"Print all entries as JSON lines, oldest first."`
}

// span is from when to when.
type span struct {
	Since string `help:"From when on: a time such as 2027-01-01T00:00:00Z, or a duration back from now, such as 24h." placeholder:"WHEN" once:""`
	Until string `help:"Until when, likewise." placeholder:"WHEN" once:""`
}

type (
	adminAuditList struct {
		span
		Actor  string `help:"Of this user or key alone, by its id, or by its kind if it has none: local, system, anonymous." placeholder:"ID" once:""`
		Action string `help:"This action alone, such as webhook.updated." placeholder:"ACTION" once:""`
		Object string `help:"About this object alone, by its id." placeholder:"ID" once:""`
		Limit  int    `help:"How many at most; 0 is all." default:"50" placeholder:"N" once:""`
	}
	adminAuditExport struct{ span }
)

type auditShown struct {
	At            *time.Time
	Actor, Object struct{ Kind, ID, Name string }
	Action        string
	Address       string
	Changes       []struct{ Field string }
}

func auditColumns() []column[auditShown] {
	return []column[auditShown]{
		{"at", func(e *auditShown) string { return moment(e.At) }},
		{"actor", func(e *auditShown) string { return strings.TrimSpace(e.Actor.Kind + " " + e.Actor.Name) }},
		{"action", func(e *auditShown) string { return e.Action }},
		{"object", func(e *auditShown) string { return strings.TrimSpace(e.Object.ID + " " + e.Object.Name) }},
		{"address", func(e *auditShown) string { return e.Address }},
		{"fields", func(e *auditShown) string {
			fields := make([]string, len(e.Changes))
			for i, change := range e.Changes {
				fields[i] = change.Field
			}
			return strings.Join(fields, " ")
		}},
	}
}

func (s *span) query() (url.Values, error) {
	q := url.Values{}
	for name, text := range map[string]string{"since": s.Since, "until": s.Until} {
		if text == "" {
			continue
		}
		when, err := instantOf(text, earlier)
		if err != nil {
			return nil, usageError{fmt.Errorf("--%s: %q is no time such as 2027-01-01T00:00:00Z, nor a duration such as 24h", name, text)}
		}
		q.Set(name, when.Format(time.RFC3339Nano))
	}
	return q, nil
}

// Run lists.
func (l *adminAuditList) Run(p *process, a *adminCommand, of *adminAudit) error {
	query, err := l.query()
	if err != nil {
		return err
	}
	if l.Limit < 0 {
		return usageError{errors.New("--limit: must be 0 at least")}
	}
	for name, text := range map[string]string{"actor": l.Actor, "action": l.Action, "object": l.Object} {
		if text != "" {
			query.Set(name, text)
		}
	}
	c, err := a.open(p)
	if err != nil {
		return err
	}
	found, err := c.list(question{method: http.MethodGet, path: "/audit", tenant: of.Tenant, query: query}, l.Limit)
	if err != nil {
		return err
	}
	return showList(c, found, auditColumns())
}

// Run exports.
func (e *adminAuditExport) Run(p *process, a *adminCommand, of *adminAudit) error {
	query, err := e.query()
	if err != nil {
		return err
	}
	c, err := a.open(p)
	if err != nil {
		return err
	}
	resp, err := c.send(question{method: http.MethodGet, path: "/audit/export", tenant: of.Tenant, query: query})
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.Copy(p.stdout, resp.Body); err != nil {
		return fmt.Errorf("the log is not whole: %w", err)
	}
	return nil
}
