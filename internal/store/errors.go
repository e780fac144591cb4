package store

import "errors"

// ErrConfigMoved says that the configuration changed since it was read: read it
// again and try once more.
var ErrConfigMoved = errors.New("the tenant's configuration has moved on")

// ErrLocked says that another process has the store.
var ErrLocked = errors.New("another process has this store open")

// ErrFenced says that this node was declared dead by others, who have taken its
// work over: it may go on after it has joined anew.
var ErrFenced = errors.New("this node's lease had ended, and other nodes have taken its work over")
