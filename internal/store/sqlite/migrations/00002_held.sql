-- +goose Up

-- The deliveries of an event that were handed to the running process and got no
-- row of their own yet, with what a row needs (codec.go): what a process that
-- died was sending is found here. NULL where every delivery got its row at once.
ALTER TABLE events ADD COLUMN held BLOB;

-- The first event whose held deliveries may be without a row: none so far.
INSERT INTO settings SELECT 'held_from', coalesce(max(n), 0) + 1 FROM events;
