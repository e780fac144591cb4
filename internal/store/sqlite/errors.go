package sqlite

import (
	"context"
	"errors"
	"time"

	sqlite "modernc.org/sqlite"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/store"
)

// Primary result codes of SQLite that mean something here
// (https://www.sqlite.org/rescode.html).
const (
	codeError      = 1
	codeBusy       = 5
	codeLocked     = 6
	codeNoMemory   = 7
	codeReadOnly   = 8
	codeIO         = 10
	codeFull       = 13
	codeCantOpen   = 14
	codeConstraint = 19
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
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return hook.Unavailable(retrySoon, err, "The store had no turn for this in time")
	}
	switch resultCode(err) {
	case codeFull:
		return hook.Unavailable(retryFull, err, "The store's disk is full")
	case codeBusy, codeLocked, codeNoMemory:
		return hook.Unavailable(retrySoon, err, "The store is busy")
	case codeIO, codeCantOpen, codeReadOnly:
		return hook.Unavailable(retryFull, err, "The store can't be reached")
	default:
		return err
	}
}

// resultCode is SQLite's primary result code; 0 if the error is not SQLite's.
func resultCode(err error) int {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return 0
	}
	return e.Code() & 0xff
}

// exists turns a broken uniqueness into a conflict.
func exists(err error, what string) error {
	if resultCode(err) == codeConstraint {
		return hook.Conflict("%s exists already", what)
	}
	return err
}
