-- +goose Up

-- The deliveries of an event that were handed to the running process and got no
-- row of their own yet, with what a row needs (codec.go): what a process that
-- died was sending is found here. NULL where every delivery got its row at once.
ALTER TABLE events ADD COLUMN held BLOB;

-- The first event whose held deliveries may be without a row.
INSERT INTO settings VALUES ('held_from', 0);
