package auth

import (
	"context"

	"github.com/plinqx/hypha/internal/hook"
)

type localKey struct{}

// ByAdminSocket says that a request comes through the admin socket, from whom: the
// account, as the audit log names it. It is for whoever listens there, and for nobody
// who reads what was sent: the request then has an operator's authority.
func ByAdminSocket(ctx context.Context, account string) context.Context {
	return context.WithValue(ctx, localKey{}, account)
}

// CameByAdminSocket reports whether ByAdminSocket has said so.
func CameByAdminSocket(ctx context.Context) bool {
	_, ok := ctx.Value(localKey{}).(string)
	return ok
}

// Local answers the principal of a request that came by the admin socket: an operator,
// without a key. hook.CodeUnauthorized for any other request.
func (a *Auth) Local(ctx context.Context) (*Principal, error) {
	account, ok := ctx.Value(localKey{}).(string)
	if !ok {
		return nil, errUnauthorized()
	}
	return &Principal{Scopes: []hook.Scope{hook.ScopeOperator}, Operator: true, local: account, now: a.o.Now}, nil
}
