package postgres

import (
	"context"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// channel is where nodes tell each other that there is something to look at, with
// NOTIFY. What it is, the next beat says.
const channel = "hypha"

// noticeOf is what a node sends.
func noticeOf(node int64) string { return strconv.FormatInt(node, 10) }

const (
	// listenAgain is how long after the connection for notices was lost another one
	// is made; listenCheck how long one is trusted on which nothing is heard.
	listenAgain = 3 * time.Second
	listenCheck = 30 * time.Second
)

// Notices sends a value soon after another node changed something.
func (s *Store) Notices() <-chan struct{} { return s.notices }

// listen hears the other nodes until ctx ends, on a connection of its own. Where it
// can't, nothing is said: whoever beats learns all of it a moment later.
func (s *Store) listen(ctx context.Context) {
	for {
		again, err := s.hear(ctx)
		if ctx.Err() != nil {
			return
		}
		s.logger.DebugContext(ctx, "notices of other nodes are not heard", "err", err, "again", again)
		if !again {
			<-ctx.Done()
			return
		}
		timer := time.NewTimer(listenAgain)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// hear listens until something fails, and says whether to try again.
func (s *Store) hear(ctx context.Context) (again bool, err error) {
	c, err := pgx.ConnectConfig(ctx, s.pool.Config().ConnConfig)
	if err != nil {
		return true, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = c.Close(ctx) // it may be lost
	}()
	// Behind a proxy that pools connections, the server that listens is not ours for
	// long. It is told by the number of the process that it names.
	var server uint32
	if _, err := one(ctx, c, "SELECT pg_backend_pid()::bigint", nil, &server); err != nil || server != c.PgConn().PID() {
		return err != nil, err
	}
	if _, err := c.Exec(ctx, "LISTEN "+channel); err != nil {
		return true, err
	}
	s.notice() // of what was said before
	for {
		if err := s.hearOne(ctx, c); err != nil {
			return true, err
		}
	}
}

// hearOne waits for a notice. When none comes for long it asks whether the server is
// still there.
func (s *Store) hearOne(ctx context.Context, c *pgx.Conn) error {
	waiting, cancel := context.WithTimeout(ctx, listenCheck)
	defer cancel()
	n, err := c.WaitForNotification(waiting)
	switch {
	case err == nil:
		if n.Payload != noticeOf(s.node.Load()) {
			s.notice()
		}
		return nil
	case waiting.Err() == nil || ctx.Err() != nil:
		return err
	}
	asking, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return c.Ping(asking)
}

// notice sends a value, unless one waits to be taken.
func (s *Store) notice() {
	select {
	case s.notices <- struct{}{}:
	default:
	}
}
