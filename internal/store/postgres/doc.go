// Package postgres is the driver of the store for a PostgreSQL server (15 to 18)
// that any number of processes share.
//
// A process is a node. Its incarnation, a number that is new at each start, stands
// in the row of every delivery that it has in memory; what has none is free, and is
// claimed lane by lane. A node's lease is one row that it renews. Whoever finds a
// lease at its end deletes the row and frees what it held (nodes.go). Every write
// asks whether the own row is still there, under a lock that excludes its deletion:
// a node that was declared dead writes nothing any more, until it has joined anew.
//
// Unfinished deliveries stand in the table queue. What is done moves to history,
// which is cut into spans of time; a span that is old is dropped whole (spans.go).
//
// Commits of different nodes wait for each other nowhere: what they count goes into
// a log, a row each, and is folded into the tables later (counts.go). A change of a
// tenant's configuration excludes, by an advisory lock, the commits that it must
// not happen beside (tx.go).
//
// Nothing is kept in a session of the database: what a transaction needs it sets
// for itself. So a proxy that pools transactions may stand between; set
// default_query_exec_mode=exec in the URL if that proxy does not know prepared
// statements.
//
// The package knows tables and statements. It holds no rules of the product
// besides what store.Store promises.
package postgres
