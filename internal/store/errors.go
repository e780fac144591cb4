package store

import "errors"

// ErrConfigMoved says that the configuration changed since it was read: read it
// again and try once more.
var ErrConfigMoved = errors.New("the tenant's configuration has moved on")

// ErrLocked says that another process has the store.
var ErrLocked = errors.New("another process has this store open")
