package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/plinqx/hypha/internal/auth"
	"github.com/plinqx/hypha/internal/cluster"
	"github.com/plinqx/hypha/internal/contain"
	"github.com/plinqx/hypha/internal/obs"
	"github.com/plinqx/hypha/internal/seal"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/internal/store/postgres"
	"github.com/plinqx/hypha/internal/store/sqlite"
)

// openStore opens the store that the settings name. nodes is nil for the embedded
// one, which a single process has. keys are the fingerprints of those given, which the
// other nodes can ask for.
func openStore(ctx context.Context, s *settings, keys []int64, clock *cluster.Clock, guard *contain.Guard, logger *slog.Logger) (_ store.Store, nodes *postgres.Store, err error) {
	if s.DatabaseURL == "" {
		embedded, err := sqlite.Open(ctx, sqlite.Options{Dir: s.Data, Logger: logger, Guard: guard})
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
	shared, err := postgres.Open(ctx, postgres.Options{URL: s.DatabaseURL, Node: name, Version: obs.Version(), SecretKeys: keys, Logger: logger, Now: clock.Now, Guard: guard})
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

// openKeys takes the keys that are given, or those in the data folder.
func openKeys(given [][]byte, dir string) (*seal.Ring, error) {
	if given == nil {
		var err error
		if given, err = seal.FolderKeys(dir); err != nil {
			return nil, err
		}
	}
	return seal.New(given...)
}

// keyFile is the file in which a new key may be put while the server runs: "" if it
// was given keys otherwise, or shares its store with others, which need it first.
func (s *settings) keyFile() string {
	switch {
	case s.DatabaseURL != "" || s.SecretKey != "":
		return ""
	case s.SecretKeyFile != "":
		return s.SecretKeyFile
	default:
		return filepath.Join(s.Data, seal.FileName)
	}
}

// bootstrap makes an empty store usable, and sees that this server can open what is
// sealed in it. Of nodes that start at the same time, one does, and one after another
// makes sure that it has the keys of the others.
func (v *server) bootstrap(ctx context.Context, nodes *postgres.Store, ring *seal.Ring, b auth.Bootstrap) (made *auth.Bootstrapped, err error) {
	if err := v.rekeyer.Check(ctx); err != nil {
		return nil, err
	}
	if nodes == nil {
		return v.auth.Bootstrap(ctx, b)
	}
	err = nodes.Alone(ctx, func(ctx context.Context) error {
		if err := agreeOnKey(ctx, nodes, ring); err != nil {
			return err
		}
		made, err = v.auth.Bootstrap(ctx, b)
		return err
	})
	return made, err
}

// keySetting is the name under which nodes agree on a key that all of them have: that
// which the one seals with that started last.
const keySetting = "secret_key"

// agreeOnKey refuses keys with which this node and the others would not open what the
// other seals: it must have the key that was agreed on, also where nothing is sealed
// yet, and of each other node the one that seals; and each must have its own.
func agreeOnKey(ctx context.Context, nodes *postgres.Store, ring *seal.Ring) error {
	own := ring.Fingerprints()
	agreed, found, err := nodes.Setting(ctx, keySetting)
	if err != nil {
		return err
	}
	if found && !slices.Contains(own, agreed) {
		return fmt.Errorf("the secret key of the other nodes on this database is not among those given (%s); give every node the key that the first one had", ring.IDs())
	}
	others, err := nodes.KeysOfOthers(ctx)
	if err != nil {
		return err
	}
	for _, n := range others {
		switch {
		case len(n.Keys) == 0: // it seals nothing
		case !slices.Contains(own, n.Keys[0]):
			return fmt.Errorf("the node %s seals with a secret key that is not among those given (%s); every node needs the keys of all others", n.Name, ring.IDs())
		case !slices.Contains(n.Keys, own[0]):
			return fmt.Errorf("the node %s does not have the secret key %s, with which this one would seal; give it to every node behind the keys that they have, and start them, before it comes first anywhere", n.Name, ring.Current())
		}
	}
	return nodes.Settle(ctx, keySetting, own[0])
}

// nodeState is what the metrics show of this node.
func nodeState(c *cluster.Cluster) obs.NodeState {
	s := c.State()
	return obs.NodeState{
		Node: s.Node, Peers: s.Peers, BeatAge: s.BeatAge, MaySend: s.MaySend,
		Takeovers: s.Takeovers, Fences: s.Fences, ClockOffset: s.ClockOffset,
	}
}
