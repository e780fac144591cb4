-- +goose Up

-- What batches have changed of gauges and counters, one row for each, until it is
-- folded into those tables (fold.go).
CREATE TABLE count_log (
    n    INTEGER PRIMARY KEY,
    data BLOB NOT NULL
);
