package store

import "errors"

// ErrConfigMoved says that the configuration changed since it was read: read it
// again and try once more.
var ErrConfigMoved = errors.New("the tenant's configuration has moved on")

// ErrLastAdministrator says that a tenant would be left without an administrator.
var ErrLastAdministrator = errors.New("the tenant would have no administrator")

// ErrTooMany says that a tenant has as many of something as it may have.
var ErrTooMany = errors.New("the tenant has no room for more of these")

// ErrPasswordMoved says that a password is another than it was when it was read.
var ErrPasswordMoved = errors.New("the password was changed meanwhile")

// ErrLocked says that another process has the store.
var ErrLocked = errors.New("another process has this store open")

// ErrFenced says that this node was declared dead by others, who have taken its
// work over: it may go on after it has joined anew.
var ErrFenced = errors.New("this node's lease had ended, and other nodes have taken its work over")
