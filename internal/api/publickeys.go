package api

import (
	"context"
	"net/http"
	"sort"
	"time"

	"github.com/plinqx/hypha/internal/catalog"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/signature"
)

// keysPath is where receivers find the keys that signatures of version v1a are
// verified with. Anybody may ask.
const keysPath = "/.well-known/hypha/keys.json"

// publicly answers those who ask without a credential. A tenant whose
// configuration is in memory costs the store nothing; the rest is bounded for each
// network, so that a flood of ids that nothing has is no load, is kept nowhere, and
// keeps no others from their keys.
type publicly struct {
	// turn is held by whoever reads which tenants there are, and guards what
	// follows.
	turn   chan struct{}
	asked  time.Time
	only   id.Tenant // the one tenant of this server
	number int       // how many there are: 0, 1, or 2 for more
}

// onlyFor is how long it is believed that there is one tenant.
const onlyFor = time.Second

func newPublicly() *publicly { return &publicly{turn: make(chan struct{}, 1)} }

// oneTenant answers the tenant of a server that has no other.
func (a *api) oneTenant(ctx context.Context) (id.Tenant, error) {
	p := a.publicly
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return id.Tenant{}, ctx.Err()
	}
	if now := a.o.Now(); p.asked.IsZero() || now.Sub(p.asked) >= onlyFor || now.Before(p.asked) {
		tenants, err := a.o.Auth.Tenants(ctx, id.Tenant{}, 2)
		if err != nil {
			return id.Tenant{}, err
		}
		p.asked, p.number, p.only = now, len(tenants), id.Tenant{}
		if p.number == 1 {
			p.only = tenants[0].ID
		}
	}
	switch p.number {
	case 0:
		return id.Tenant{}, hook.NotFound("Tenant")
	case 1:
		return p.only, nil
	default:
		return id.Tenant{}, hook.Invalid(hook.Detail{Path: "tenant", Message: "is required: this server has several tenants; it is the id of the one whose webhooks sign, ten_…"})
	}
}

// publicTenant answers the configuration of the tenant that is asked for.
func (a *api) publicTenant(c *call, name string) (*catalog.Snapshot, error) {
	ctx := c.Context()
	var tenant id.Tenant
	var err error
	if name == "" {
		tenant, err = a.oneTenant(ctx)
	} else if tenant, err = id.ParseTenant(name); err != nil {
		err = hook.NotFound("Tenant")
	}
	if err != nil {
		return nil, err
	}
	if snap, ok := a.o.Catalog.HeldTenant(tenant); ok {
		return snap, nil
	}
	if err := a.limits.mayRead(c.network()); err != nil {
		return nil, err
	}
	return a.o.Catalog.Tenant(ctx, tenant)
}

// keySetView is a JSON Web Key set (RFC 7517, 5), which may have members besides
// keys.
type keySetView struct {
	Keys       []webKeyView `json:"keys"`
	NextCursor *string      `json:"nextCursor"`
}

// webKeyView is a public key (RFC 8037, 2), and the same as Standard Webhooks
// writes it.
type webKeyView struct {
	Type      string `json:"kty"`
	Curve     string `json:"crv"`
	X         string `json:"x"`
	Use       string `json:"use"`
	Algorithm string `json:"alg"`
	ID        string `json:"kid"`
	Whpk      string `json:"whpk"`
}

// keyPosition is where a key stands in the list: the first 16 of its id's 43
// characters. It tells nothing of the webhook.
func keyPosition(k *hook.SigningKey) (position [16]byte) {
	copy(position[:], k.ID)
	return position
}

func (a *api) publicKeys(c *call) (reply, error) {
	q := newQuery(c)
	tenant, _ := q.text("tenant")
	kid, one := q.text("kid")
	limit, after := int(q.integer("limit", 1, maxLimit, maxLimit)), q.cursor()
	if err := q.err(); err != nil {
		return reply{}, err
	}
	snap, err := a.publicTenant(c, tenant)
	if err != nil {
		return reply{}, err
	}
	keys := snap.SigningKeys()
	if one {
		keys = keys[sort.Search(len(keys), func(i int) bool { return keys[i].ID >= kid }):]
	}
	keys = keys[sort.Search(len(keys), func(i int) bool { p := keyPosition(keys[i]); return string(p[:]) > string(after[:]) }):]
	now := a.o.Now()
	out := keySetView{Keys: []webKeyView{}}
	var last [16]byte
	for _, k := range keys {
		if one && k.ID != kid {
			break
		}
		if !k.SignsAt(now) {
			continue
		}
		if len(out.Keys) == limit {
			out.NextCursor = q.next(last)
			break
		}
		public, err := signature.ParsePublicKey(k.Public)
		if err != nil {
			return reply{}, err
		}
		out.Keys = append(out.Keys, webKeyView{Type: "OKP", Curve: "Ed25519", X: public.X(), Use: "sig", Algorithm: "EdDSA", ID: k.ID, Whpk: k.Public})
		last = keyPosition(k)
	}
	c.w.Header()["Cache-Control"] = a.constants.fiveMinutes
	return reply{status: http.StatusOK, value: out}, nil
}
