package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

const (
	// patience is how long a transaction may take. One that is broken off may have
	// been committed all the same.
	patience = 10 * time.Second
	// attemptsOfTx is how often a transaction that the database gave up for
	// another one's sake is tried.
	attemptsOfTx = 5
	// lockKeys is how many advisory locks the tenants share: a commit of any
	// number of tenants takes no more.
	lockKeys = 256
)

// sqlBegin is the first statement of every writing transaction. It sets, for the
// transaction alone: that a client that stops in the middle loses it before its
// lease ends, and how plans are made. Then it takes the locks: of the node, so that it
// can't be declared dead meanwhile, and of the tenants.
//
// Plans must hold whatever the statistics of a table say, which may be from when it
// was empty: then all that is not ruled out costs the same. So they go by an index,
// and none is compiled; and what is asked for in an order goes down an index that has
// it (byOrder: nothing is sorted), while what is asked for by its id is looked up, row
// by row (byID: no index is walked through). A statement's plan is made when a
// connection first runs it, and kept.
//
// The classes of advisory locks: 7001 tenants, 7002 nodes, 7003 folding of counts,
// 7004 spans, 7005 starts.
const (
	sqlSet = `set_config('idle_in_transaction_session_timeout', '4000', true), set_config('statement_timeout', '9000', true),
		set_config('plan_cache_mode', 'force_generic_plan', true), set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true),
		set_config('enable_sort', 'off', true), set_config('jit', 'off', true)`
	byOrder = `set_config('enable_bitmapscan', 'off', true), set_config('enable_indexscan', 'on', true), set_config('enable_indexonlyscan', 'on', true)`
	byID    = `set_config('enable_bitmapscan', 'on', true), set_config('enable_indexscan', 'off', true), set_config('enable_indexonlyscan', 'off', true)`

	sqlBeginShared = `SELECT ` + sqlSet + `, ` + byOrder + `, pg_advisory_xact_lock_shared(7002, $1), (SELECT count(pg_advisory_xact_lock_shared(7001, k)) FROM unnest($2::int[]) k)`
	sqlBeginAlone  = `SELECT ` + sqlSet + `, ` + byOrder + `, pg_advisory_xact_lock_shared(7002, $1), (SELECT count(pg_advisory_xact_lock(7001, k)) FROM unnest($2::int[]) k)`
	// sqlBeginApply begins what asks for everything by its id.
	sqlBeginApply = `SELECT ` + sqlSet + `, ` + byID + `, pg_advisory_xact_lock_shared(7002, $1), (SELECT count(pg_advisory_xact_lock_shared(7001, k)) FROM unnest($2::int[]) k)`
	sqlByID       = `SELECT ` + byID
	sqlByOrder    = `SELECT ` + byOrder
	sqlNodeLives  = `SELECT EXISTS (SELECT 1 FROM nodes WHERE id = $1)`
	sqlVersions   = `SELECT t.id, t.config_version, t.era FROM unnest($1::uuid[]) AS v(id) JOIN tenants t ON t.id = v.id WHERE NOT t.removed`
)

// tenantState is what a transaction must know of a tenant. A tenant that is not
// there has none.
type tenantState struct {
	version, era int64
}

// tx is a writing transaction.
type tx struct {
	s    *Store
	conn *pgxpool.Conn
	// node is this process's incarnation.
	node    int64
	tenants map[id.Tenant]tenantState
	tally   tally
	// audit is the entry that goes with what is written (audit.go); nil without one.
	audit *hook.AuditEntry
	// first are the answers of statements that were sent with the first round.
	first []func(pgx.BatchResults) error
	// last are statements that go with the commit.
	last pgx.Batch
}

// write runs f in a transaction beside which no configuration of the tenants
// changes and no job of theirs starts. f may run several times.
func (s *Store) write(ctx context.Context, tenants []id.Tenant, f func(context.Context, *tx) error) error {
	return s.transact(ctx, s.pool, sqlBeginShared, tenants, nil, f)
}

// commit is write for what the committer asks for: it has connections of its own, so
// that it never waits for those who read.
func (s *Store) commit(ctx context.Context, tenants []id.Tenant, f func(context.Context, *tx) error) error {
	return s.transact(ctx, s.commits, sqlBeginShared, tenants, nil, f)
}

// writeAlone runs f in a transaction that changes a tenant's configuration, or
// starts a job: no other one of this tenant runs beside it.
func (s *Store) writeAlone(ctx context.Context, tenant id.Tenant, f func(context.Context, *tx) error) error {
	return s.transact(ctx, s.pool, sqlBeginAlone, []id.Tenant{tenant}, nil, f)
}

// transact runs f in a transaction, again if the database gave it up for another
// one's sake. more queues statements that go with the first round trip; their
// answers are read before f runs.
func (s *Store) transact(ctx context.Context, pool *pgxpool.Pool, begin string, tenants []id.Tenant, more func(*tx, *pgx.Batch), f func(context.Context, *tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for n := 1; ; n++ {
		t := &tx{s: s, node: s.node.Load(), tenants: make(map[id.Tenant]tenantState, len(tenants)), audit: store.AuditOf(ctx)}
		err := t.run(ctx, pool, begin, tenants, more, f)
		if err == nil {
			s.o.Guard.OrEnd("what the store has in memory", func() { s.counted(t) }) // it is committed
			return nil
		}
		s.reconnect(err)
		again := state(err) == stateDeadlock || state(err) == stateSerialization || errors.Is(err, errAgain) || s.mendSpans(ctx, err)
		if !again || n == attemptsOfTx || ctx.Err() != nil {
			return edge(err)
		}
	}
}

// reconnect lets go of all connections when one was lost, or turned out to lead to
// a server that is no primary any more: the others lead to the same one.
func (s *Store) reconnect(err error) {
	if code := state(err); code == stateReadOnly || code != "" && (code[:2] == classOperator || code[:2] == classConnection) || code == "" && connectionLost(err) {
		for _, pool := range [...]*pgxpool.Pool{s.pool, s.commits, s.leases} {
			pool.Reset()
		}
	}
}

// errAgain is what f returns to be run again in a new transaction, which sees what
// others have committed meanwhile.
var errAgain = errors.New("another transaction was faster")

func (t *tx) run(ctx context.Context, pool *pgxpool.Pool, begin string, tenants []id.Tenant, more func(*tx, *pgx.Batch), f func(context.Context, *tx) error) (err error) {
	if t.conn, err = pool.Acquire(ctx); err != nil {
		return fmt.Errorf("get a connection: %w", err)
	}
	// A connection that is in a transaction is closed, not used again; the
	// database ends the transaction then.
	defer t.conn.Release()
	var b pgx.Batch
	b.Queue("BEGIN")
	b.Queue(begin, int32(t.node&0x7fffffff), lockKeysOf(tenants))
	b.Queue(sqlNodeLives, t.node)
	b.Queue(sqlVersions, uuids(tenants))
	if more != nil {
		more(t, &b)
	}
	if err := t.readFirst(t.conn.SendBatch(ctx, &b)); err != nil {
		t.rollback(ctx)
		return err
	}
	if err := f(ctx, t); err != nil {
		t.rollback(ctx)
		return err
	}
	return t.commit(ctx)
}

func (t *tx) readFirst(r pgx.BatchResults) error {
	err := t.readState(r)
	for i := 0; err == nil && i < len(t.first); i++ {
		err = t.first[i](r)
	}
	if closed := r.Close(); err == nil {
		err = closed
	}
	return err
}

func (t *tx) readState(r pgx.BatchResults) error {
	for range 2 { // BEGIN, and the locks
		if _, err := r.Exec(); err != nil {
			return fmt.Errorf("begin: %w", err)
		}
	}
	var lives bool
	if err := r.QueryRow().Scan(&lives); err != nil {
		return fmt.Errorf("look for the own node: %w", err)
	}
	if !lives {
		return store.ErrFenced
	}
	rows, err := r.Query()
	if err != nil {
		return fmt.Errorf("read the tenants' versions: %w", err)
	}
	var tenant id.Tenant
	var v tenantState
	_, err = pgx.ForEachRow(rows, []any{(*[16]byte)(&tenant), &v.version, &v.era}, func() error {
		t.tenants[tenant] = v
		return nil
	})
	return err
}

// has reports whether a tenant of the transaction is there.
func (t *tx) has(tenant id.Tenant) bool {
	_, ok := t.tenants[tenant]
	return ok
}

// need is hook.CodeNotFound if the transaction's tenant is not there.
func (t *tx) need(tenant id.Tenant) error {
	if !t.has(tenant) {
		return hook.NotFound("Tenant")
	}
	return nil
}

// rollback ends the transaction without a trace. Where that can't be said to the
// database, the connection is not used again.
func (t *tx) rollback(ctx context.Context) {
	if t.conn.Conn().PgConn().TxStatus() == 'I' || t.conn.Conn().IsClosed() {
		return
	}
	_, _ = t.conn.Exec(ctx, "ROLLBACK")
}

// commit writes what was counted, and the entry of the audit log, and commits, with
// one round trip. After an error
// the statements that follow it are not run: it commits all or nothing.
func (t *tx) commit(ctx context.Context) error {
	if !t.tally.empty() {
		tenants, numbers, data := t.tally.encode(t.s)
		t.last.Queue("INSERT INTO count_log (tenant_id, node, n, data) SELECT tenant_id, $2, n, data FROM unnest($1::uuid[], $3::bigint[], $4::bytea[]) AS v(tenant_id, n, data)",
			tenants, t.node, numbers, data)
	}
	if err := t.record(); err != nil {
		t.rollback(ctx)
		return err
	}
	t.last.Queue("COMMIT")
	return t.send(ctx, &t.last)
}

// send sends statements whose answers are of no interest, in one round trip.
func (t *tx) send(ctx context.Context, b *pgx.Batch) error { return t.conn.SendBatch(ctx, b).Close() }

// exec runs a statement and says how many rows it changed.
func (t *tx) exec(ctx context.Context, text string, args ...any) (int64, error) {
	tag, err := t.conn.Exec(ctx, text, args...)
	return tag.RowsAffected(), err
}

// execByID is exec in a transaction that asks for things in their order, for a
// statement that asks by id.
func (t *tx) execByID(ctx context.Context, text string, args ...any) (n int64, err error) {
	var b pgx.Batch
	b.Queue(sqlByID)
	b.Queue(text, args...).Exec(func(tag pgconn.CommandTag) error {
		n = tag.RowsAffected()
		return nil
	})
	b.Queue(sqlByOrder)
	return n, t.send(ctx, &b)
}

// each calls row for each row of a query, with its columns in to.
func (t *tx) each(ctx context.Context, text string, args, to []any, row func() error) error {
	return each(ctx, t.conn, text, args, to, row)
}

// one reads one row into to, and says whether there was any.
func (t *tx) one(ctx context.Context, text string, args []any, to ...any) (bool, error) {
	return one(ctx, t.conn, text, args, to...)
}

// querier is a connection, a transaction or a pool.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

func each(ctx context.Context, q querier, text string, args, to []any, row func() error) error {
	rows, err := q.Query(ctx, text, args...)
	if err != nil {
		return err
	}
	_, err = pgx.ForEachRow(rows, to, row)
	return err
}

func one(ctx context.Context, q querier, text string, args []any, to ...any) (bool, error) {
	found := false
	err := each(ctx, q, text, args, to, func() error {
		found = true
		return nil
	})
	return found, err
}

// read runs f on one snapshot. It finds the tenant's name and nothing of a tenant
// that was removed: hook.CodeNotFound.
func (s *Store) read(ctx context.Context, tenant id.Tenant, f func(context.Context, pgx.Tx) error) error {
	return s.snapshot(ctx, func(ctx context.Context, q pgx.Tx) error {
		found, err := one(ctx, q, "SELECT 1 FROM tenants WHERE id = $1 AND NOT removed", []any{uuid(tenant)}, new(int))
		if err == nil && !found {
			err = hook.NotFound("Tenant")
		}
		if err != nil {
			return err
		}
		return f(ctx, q)
	})
}

// snapshot runs f on one snapshot of the database.
func (s *Store) snapshot(ctx context.Context, f func(context.Context, pgx.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return edge(pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly},
		func(q pgx.Tx) error { return f(ctx, q) }))
}

// lockKeysOf are the advisory locks of tenants, each once and in order: two
// transactions that want the same ones never wait for each other in a circle.
func lockKeysOf(tenants []id.Tenant) []int32 {
	keys := make([]int32, 0, len(tenants))
	for _, tenant := range tenants {
		keys = append(keys, lockKey(tenant))
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// lockKey is taken from the random end of an id: the same on every node.
func lockKey(tenant id.Tenant) int32 { return int32(tenant[15]) % lockKeys }

func isNetwork(err error) bool {
	var n net.Error
	return errors.As(err, &n) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}
