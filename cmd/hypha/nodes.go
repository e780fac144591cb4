package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/plinqx/hypha/internal/auth"
	"github.com/plinqx/hypha/internal/catalog"
	"github.com/plinqx/hypha/internal/cluster"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/obs"
	"github.com/plinqx/hypha/internal/seal"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/internal/store/postgres"
	"github.com/plinqx/hypha/internal/store/sqlite"
)

// openStore opens the store that the settings name. nodes is nil for the embedded
// one, which a single process has.
func openStore(ctx context.Context, s *settings, clock *cluster.Clock, logger *slog.Logger) (_ store.Store, nodes *postgres.Store, err error) {
	if s.DatabaseURL == "" {
		embedded, err := sqlite.Open(ctx, sqlite.Options{Dir: s.Data, Logger: logger})
		if errors.Is(err, store.ErrLocked) {
			return nil, nil, fmt.Errorf("%w; stop that server, or name another folder with --data", err)
		}
		if err != nil {
			return nil, nil, err
		}
		return embedded, nil, nil
	}
	name := s.NodeName
	if name == "" {
		if name, err = os.Hostname(); err != nil {
			return nil, nil, fmt.Errorf("the machine has no name (--node-name gives one): %w", err)
		}
	}
	shared, err := postgres.Open(ctx, postgres.Options{URL: s.DatabaseURL, Node: name, Version: obs.Version(), Logger: logger, Now: clock.Now})
	if err != nil {
		return nil, nil, fmt.Errorf("--database-url: %w", err)
	}
	return shared, shared, nil
}

// where says where the data is, for people: of a URL, what is no secret.
func (s *settings) where() string {
	if s.DatabaseURL == "" {
		return s.Data
	}
	c, err := pgconn.ParseConfig(s.DatabaseURL)
	if err != nil {
		return "postgresql"
	}
	return "postgresql://" + net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port))) + "/" + c.Database
}

// keySetting is the name under which nodes agree on the key that seals secrets.
const keySetting = "secret_key"

// bootstrap makes an empty store usable. Of nodes that start at the same time, one
// does, and one after another makes sure that it has the key of the others.
func (v *server) bootstrap(ctx context.Context, nodes *postgres.Store, box *seal.Box, configs *catalog.Catalog, b auth.Bootstrap) (made *auth.Bootstrapped, err error) {
	if nodes == nil {
		return v.auth.Bootstrap(ctx, b)
	}
	err = nodes.Alone(ctx, func(ctx context.Context) error {
		if err := checkKey(ctx, nodes, box, configs); err != nil {
			return err
		}
		made, err = v.auth.Bootstrap(ctx, b)
		return err
	})
	return made, err
}

// checkKey refuses a key that is not the one that secrets in the database are sealed
// with. A database whose secrets came from elsewhere (hypha store copy) has agreed on
// no key yet: it is tried on one of them.
func checkKey(ctx context.Context, nodes *postgres.Store, box *seal.Box, configs *catalog.Catalog) error {
	agreed, found, err := nodes.Setting(ctx, keySetting)
	if err != nil {
		return err
	}
	if !found {
		if err := openOne(ctx, nodes, configs); err != nil {
			return err
		}
		if agreed, err = nodes.Settle(ctx, keySetting, box.Fingerprint()); err != nil {
			return err
		}
	}
	if agreed != box.Fingerprint() {
		return errOtherKey()
	}
	return nil
}

func errOtherKey() error {
	return errors.New("--secret-key is not the key that the secrets in this database are sealed with; give every node the key that the first one had")
}

// openOne opens the secrets of any webhook.
func openOne(ctx context.Context, nodes *postgres.Store, configs *catalog.Catalog) error {
	const page = 100
	var after id.Tenant
	for {
		tenants, err := nodes.Tenants(ctx, after, page)
		if err != nil {
			return err
		}
		for _, t := range tenants {
			after = t.ID
			config, err := nodes.TenantConfig(ctx, t.ID)
			if err != nil {
				return err
			}
			if len(config.Webhooks) == 0 {
				continue
			}
			_, err = configs.Open(&config.Webhooks[0])
			if errors.Is(err, seal.ErrOpen) {
				return errOtherKey()
			}
			return err
		}
		if len(tenants) < page {
			return nil
		}
	}
}

// nodeState is what the metrics show of this node.
func nodeState(c *cluster.Cluster) obs.NodeState {
	s := c.State()
	return obs.NodeState{
		Node: s.Node, Peers: s.Peers, BeatAge: s.BeatAge, MaySend: s.MaySend,
		Takeovers: s.Takeovers, Fences: s.Fences, ClockOffset: s.ClockOffset,
	}
}
