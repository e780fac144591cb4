package postgres

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// A node's transactions hold its advisory lock (7002) shared; whoever ends its lease
// holds it alone. So nothing that a node began before its lease was ended is committed
// after it, and nothing that it begins later is.

var _ store.Nodes = (*Store)(nil)

const (
	sqlNodeShared = `SELECT ` + sqlSet + `, pg_advisory_xact_lock_shared(7002, $1)`
	// sqlNodeAlone waits for the transactions of a node, for lockWait at most. There
	// may be more to free than a usual transaction has time for.
	sqlNodeAlone = `SELECT ` + sqlSet + `, set_config('statement_timeout', '60000', true), set_config('lock_timeout', $2, true), pg_advisory_xact_lock(7002, $1)`
	sqlNoLimit   = `SELECT set_config('lock_timeout', '0', true)`
	// sqlCutOff ends the connections on which a node that is silent has transactions.
	// Those that wait for the lock, or have it alone, are others'.
	sqlCutOff = `SELECT count(pg_terminate_backend(l.pid)) FROM pg_locks l
		WHERE l.locktype = 'advisory' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
			AND l.classid = 7002 AND l.objid::bigint = $1 AND l.objsubid = 2 AND l.mode = 'ShareLock' AND l.granted AND l.pid <> pg_backend_pid()
			AND EXISTS (SELECT 1 FROM nodes WHERE id = $2 AND beat_at <= clock_timestamp() - $3 * interval '1 microsecond')`

	sqlJoin  = `INSERT INTO nodes (name, version, secret_keys) VALUES ($1, $2, $3) RETURNING id`
	sqlLeave = `DELETE FROM nodes WHERE id = $1`
	// sqlEndLease ends the lease of a node that is silent, for a node that has one.
	sqlEndLease  = `DELETE FROM nodes WHERE id = $1 AND beat_at <= clock_timestamp() - $2 * interval '1 microsecond' AND EXISTS (SELECT 1 FROM nodes WHERE id = $3)`
	sqlFreeQueue = `UPDATE queue SET node = NULL WHERE node = $1`
	sqlFreeJobs  = `UPDATE jobs SET node = NULL WHERE node = $1 AND NOT done`

	sqlBeat  = `UPDATE nodes SET beat_at = clock_timestamp() WHERE id = $1 RETURNING beat_at`
	sqlPeers = `SELECT id, name, (extract(epoch FROM clock_timestamp() - beat_at) * 1000000)::bigint FROM nodes WHERE id <> $1 ORDER BY id`
	// What changed: within the time that a transaction may take and more than a
	// second, so that each change is in at least one beat.
	lately            = ` > clock_timestamp() - interval '15 seconds'`
	sqlTenantsChanged = `SELECT id, CASE WHEN removed THEN 0 ELSE config_version END FROM tenants WHERE changed_at` + lately
	sqlLanesChanged   = `SELECT tenant_id, webhook_id, nullif(paused_until, 0), nullif(open_until, 0) FROM lanes WHERE changed_at` + lately
	sqlDiscards       = `SELECT tenant_id, webhook_id FROM jobs WHERE kind = $1 AND NOT done`
	sqlOrphans        = `SELECT count(*) FROM jobs j WHERE NOT j.done AND (j.node IS NULL OR NOT EXISTS (SELECT 1 FROM nodes n WHERE n.id = j.node))`

	sqlSetBreaker = `INSERT INTO lanes (tenant_id, webhook_id, open_until) SELECT tenant_id, id, $3::bigint FROM webhooks WHERE tenant_id = $1 AND id = $2
		ON CONFLICT (tenant_id, webhook_id) DO UPDATE SET open_until = excluded.open_until, changed_at = clock_timestamp()
		WHERE lanes.open_until <> excluded.open_until`
)

const (
	// lockWait is how long whoever ends a lease waits for the transactions of that
	// node, before it ends their connections. The node's process may be halted in
	// the middle of one, and the database would wait for it for ever where it has
	// read a part of a request.
	lockWait = 2 * time.Second
	// attemptsOfEnd is how often that is tried: others may end the same lease.
	attemptsOfEnd = 4
	// endPatience is how long ending a lease may take in all.
	endPatience = time.Minute
)

// nodeKey is the advisory lock of a node.
func nodeKey(node int64) int32 { return int32(node & 0x7fffffff) }

// Node is this process's incarnation; 0 when it has none.
func (s *Store) Node() int64 { return s.node.Load() }

// Join makes this process a node of a new incarnation. If it was one before, that
// one ends, and what it still held is free.
func (s *Store) Join(ctx context.Context) error {
	if err := s.Leave(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var node int64
	if _, err := one(ctx, s.leases, sqlJoin, []any{s.o.Node, s.o.Version, s.o.SecretKeys}, &node); err != nil {
		return edge(fmt.Errorf("join the nodes: %w", err))
	}
	s.node.Store(node)
	return nil
}

// Leave ends the lease and frees what this node holds.
func (s *Store) Leave(ctx context.Context) error {
	node := s.node.Load()
	if node == 0 {
		return nil
	}
	_, err := s.endLease(ctx, node, patience, func(ctx context.Context, q pgx.Tx) (bool, error) {
		_, err := q.Exec(ctx, sqlLeave, node)
		return true, err
	})
	if err != nil {
		return edge(fmt.Errorf("leave the nodes: %w", err))
	}
	s.node.CompareAndSwap(node, 0)
	return nil
}

// TakeOver ends the lease of a node and frees what it held, if it is silent. Where
// that node's process is halted in the middle of a transaction, its connection is
// ended first.
func (s *Store) TakeOver(ctx context.Context, node int64, silent time.Duration) (bool, error) {
	for n := 1; ; n++ {
		ended, err := s.endLease(ctx, node, lockWait, func(ctx context.Context, q pgx.Tx) (bool, error) {
			tag, err := q.Exec(ctx, sqlEndLease, node, silent.Microseconds(), s.node.Load())
			return tag.RowsAffected() == 1, err
		})
		switch {
		case err == nil:
			return ended, nil
		case n == attemptsOfEnd || ctx.Err() != nil:
		case state(err) == stateDeadlock:
			continue
		case state(err) == stateLockNotAvailable:
			if err = s.cutOff(ctx, node, silent); err == nil {
				continue
			}
		}
		return false, edge(fmt.Errorf("take over from node %d: %w", node, err))
	}
}

// endLease is a transaction in which a node has no other one. If end says that the
// lease was ended, what the node held is free.
func (s *Store) endLease(ctx context.Context, node int64, wait time.Duration, end func(context.Context, pgx.Tx) (bool, error)) (ended bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, endPatience)
	defer cancel()
	err = pgx.BeginFunc(ctx, s.leases, func(q pgx.Tx) error {
		if _, err := q.Exec(ctx, sqlNodeAlone, nodeKey(node), strconv.FormatInt(wait.Milliseconds(), 10)); err != nil {
			return err
		}
		if _, err := q.Exec(ctx, sqlNoLimit); err != nil {
			return err
		}
		if ended, err = end(ctx, q); err != nil || !ended {
			return err
		}
		var b pgx.Batch
		b.Queue(sqlFreeQueue, node)
		b.Queue(sqlFreeJobs, node)
		b.Queue(sqlNotify, noticeOf(s.node.Load()))
		return q.SendBatch(ctx, &b).Close()
	})
	return ended && err == nil, err
}

// cutOff ends the connections on which a node has transactions, if it is silent.
func (s *Store) cutOff(ctx context.Context, node int64, silent time.Duration) error {
	var n int64
	if _, err := one(ctx, s.leases, sqlCutOff, []any{int64(nodeKey(node)), node, silent.Microseconds()}, &n); err != nil {
		return fmt.Errorf("end its connections: %w", err)
	}
	if n > 0 {
		s.logger.WarnContext(ctx, "a node stopped in the middle of a transaction; ended its connection", "node", node, "connections", n)
	}
	return nil
}

// Beat renews this node's lease and reads what has happened meanwhile, in one round
// trip.
func (s *Store) Beat(ctx context.Context) (*store.Pulse, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	p := &store.Pulse{}
	err := s.beat(ctx, s.node.Load(), p)
	if err != nil {
		return nil, edge(fmt.Errorf("renew the lease: %w", err))
	}
	return p, nil
}

func (s *Store) beat(ctx context.Context, node int64, p *store.Pulse) error {
	var b pgx.Batch
	b.Queue(sqlNodeShared, nodeKey(node))
	alive := false
	b.Queue(sqlBeat, node).Query(func(rows pgx.Rows) error {
		_, err := pgx.ForEachRow(rows, []any{&p.Now}, func() error {
			alive = true
			return nil
		})
		return err
	})
	var peer store.Peer
	var micros int64
	queueEach(&b, sqlPeers, []any{node}, []any{&peer.Node, &peer.Name, &micros}, func() {
		peer.Silent = time.Duration(micros) * time.Microsecond
		p.Peers = append(p.Peers, peer)
	})
	var tenant store.TenantChange
	queueEach(&b, sqlTenantsChanged, nil, []any{(*[16]byte)(&tenant.Tenant), &tenant.Version}, func() {
		p.Tenants = append(p.Tenants, tenant)
	})
	var key store.LaneKey
	var paused, open pgtype.Int8
	queueEach(&b, sqlLanesChanged, nil, []any{(*[16]byte)(&key.Tenant), (*[16]byte)(&key.Webhook), &paused, &open}, func() {
		p.Lanes = append(p.Lanes, store.LaneChange{LaneKey: key, PausedUntil: fromMillis(paused), BreakerUntil: fromMillis(open)})
	})
	queueEach(&b, sqlDiscards, []any{string(store.JobDiscard)}, []any{(*[16]byte)(&key.Tenant), (*[16]byte)(&key.Webhook)}, func() {
		p.Discards = append(p.Discards, key)
	})
	queueEach(&b, sqlOrphans, nil, []any{&p.Orphans}, func() {})
	if err := s.leases.SendBatch(ctx, &b).Close(); err != nil {
		s.reconnect(err)
		return err
	}
	if !alive {
		return store.ErrFenced
	}
	return nil
}

// queueEach queues a query, and calls row for each row of its answer, with the
// columns in to.
func queueEach(b *pgx.Batch, text string, args, to []any, row func()) {
	b.Queue(text, args...).Query(func(rows pgx.Rows) error {
		_, err := pgx.ForEachRow(rows, to, func() error {
			row()
			return nil
		})
		return err
	})
}

// Release frees what is this node's of a webhook and is not held.
func (s *Store) Release(ctx context.Context, tenant id.Tenant, webhook id.Webhook, held func(id.Delivery) bool) error {
	return s.commit(ctx, []id.Tenant{tenant}, func(ctx context.Context, t *tx) error {
		var given []id.Delivery
		var d id.Delivery
		err := t.each(ctx, sqlMine, []any{t.node, uuid(tenant), uuid(webhook)}, []any{(*[16]byte)(&d)}, func() error {
			if held == nil || !held(d) {
				given = append(given, d)
			}
			return nil
		})
		if err != nil || len(given) == 0 {
			return err
		}
		_, err = t.execByID(ctx, sqlFreeMine, sameTenant(tenant, len(given)), uuids(given), t.node)
		return err
	})
}

// SetBreaker tells the other nodes until when the breaker of a webhook is open. A
// webhook that was deleted has none.
func (s *Store) SetBreaker(ctx context.Context, tenant id.Tenant, webhook id.Webhook, until time.Time) error {
	return s.write(ctx, []id.Tenant{tenant}, func(ctx context.Context, t *tx) error {
		n, err := t.exec(ctx, sqlSetBreaker, uuid(tenant), uuid(webhook), millisOrNull(until).Int64)
		if n > 0 {
			t.notify()
		}
		return err
	})
}
