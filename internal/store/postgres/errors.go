package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/store"
)

// SQLSTATE codes that mean something here
// (https://www.postgresql.org/docs/current/errcodes-appendix.html).
const (
	stateDiskFull          = "53100"
	stateReadOnly          = "25006"
	stateUnique            = "23505"
	stateCheck             = "23514"
	stateNoTable           = "42P01"
	stateSerialization     = "40001"
	stateDeadlock          = "40P01"
	stateLockNotAvailable  = "55P03"
	stateQueryCanceled     = "57014"
	classConnection        = "08"
	classResources         = "53"
	classOperator          = "57"
	classSystem            = "58"
	classIdleInTransaction = "25P03"
)

const (
	retrySoon = time.Second
	retryFull = 5 * time.Second
)

// edge turns an error into one that may leave the package: what can pass is
// hook.CodeUnavailable; the rest stays as it is, and callers see an internal
// error.
func edge(err error) error {
	var known *hook.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known), errors.Is(err, store.ErrConfigMoved), errors.Is(err, store.ErrLocked):
		return err
	case errors.Is(err, store.ErrFenced):
		return hook.Unavailable(retrySoon, err, "This node is joining the others anew; try again")
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return hook.Unavailable(retrySoon, err, "The database did not answer in time")
	}
	var e *pgconn.PgError
	if !errors.As(err, &e) {
		if pgconn.Timeout(err) || connectionLost(err) {
			return hook.Unavailable(retrySoon, err, "The database can't be reached")
		}
		return err
	}
	switch code := e.Code; {
	case code == stateDiskFull:
		return hook.Unavailable(retryFull, err, "The database's disk is full")
	case code == stateReadOnly:
		return hook.Unavailable(retryFull, err, "The database is read-only")
	case code == stateSerialization, code == stateDeadlock, code == stateLockNotAvailable, code == stateQueryCanceled, code[:2] == classResources:
		return hook.Unavailable(retrySoon, err, "The database is busy")
	case code[:2] == classConnection, code[:2] == classOperator, code[:2] == classSystem, code == classIdleInTransaction:
		return hook.Unavailable(retrySoon, err, "The database can't be reached")
	default:
		return err
	}
}

// connectionLost reports whether an error is of the connection, not of what was
// asked: pgx answers those without a SQLSTATE.
func connectionLost(err error) bool {
	var connect *pgconn.ConnectError
	return errors.As(err, &connect) || pgconn.SafeToRetry(err) || isNetwork(err)
}

// state is an error's SQLSTATE, "" if the database did not answer one.
func state(err error) string {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// exists turns a broken uniqueness into a conflict.
func exists(err error, what string) error {
	if state(err) == stateUnique {
		return hook.Conflict("%s exists already", what)
	}
	return err
}
