-- Ids are UUIDv7, 16 bytes, so a primary key (tenant_id, id) is in order of
-- time. Times are Unix milliseconds. Every key starts with the tenant.

-- +goose Up

CREATE TABLE tenants (
    id             BLOB PRIMARY KEY,
    name           TEXT NOT NULL,
    created_at     INTEGER NOT NULL,
    updated_at     INTEGER NOT NULL,
    config_version INTEGER NOT NULL
) WITHOUT ROWID;

-- Tenants whose large tables are still to be emptied.
CREATE TABLE removed_tenants (
    id BLOB PRIMARY KEY
) WITHOUT ROWID;

CREATE TABLE webhooks (
    tenant_id BLOB NOT NULL,
    id        BLOB NOT NULL,
    revision  INTEGER NOT NULL,
    data      TEXT NOT NULL, -- JSON
    sealed    BLOB,
    PRIMARY KEY (tenant_id, id)
) WITHOUT ROWID;

-- What a webhook was at each revision; kept after the webhook is deleted.
CREATE TABLE webhook_revisions (
    tenant_id  BLOB NOT NULL,
    webhook_id BLOB NOT NULL,
    revision   INTEGER NOT NULL,
    data       TEXT NOT NULL,
    sealed     BLOB,
    PRIMARY KEY (tenant_id, webhook_id, revision)
) WITHOUT ROWID;

CREATE TABLE lanes (
    tenant_id    BLOB NOT NULL,
    webhook_id   BLOB NOT NULL,
    paused_until INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, webhook_id)
) WITHOUT ROWID;

-- An operator's key has a tenant of 16 zero bytes.
CREATE TABLE keys (
    tenant_id    BLOB NOT NULL,
    id           BLOB NOT NULL,
    hash         BLOB NOT NULL,
    name         TEXT NOT NULL,
    hint         TEXT NOT NULL,
    scopes       TEXT NOT NULL, -- JSON
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER,
    last_used_at INTEGER,
    PRIMARY KEY (tenant_id, id)
) WITHOUT ROWID;
CREATE UNIQUE INDEX keys_hash ON keys (hash);

CREATE TABLE users (
    tenant_id     BLOB NOT NULL,
    id            BLOB NOT NULL,
    email         TEXT NOT NULL,
    role          TEXT NOT NULL,
    password_hash TEXT NOT NULL,
    created_at    INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, id)
) WITHOUT ROWID;
CREATE UNIQUE INDEX users_email ON users (email, tenant_id);

CREATE TABLE sessions (
    tenant_id  BLOB NOT NULL,
    id         BLOB NOT NULL,
    hash       BLOB NOT NULL,
    user_id    BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, id)
) WITHOUT ROWID;
CREATE UNIQUE INDEX sessions_hash ON sessions (hash);
CREATE INDEX sessions_expiry ON sessions (expires_at);

-- A rowid table: bodies would make the tree of a WITHOUT ROWID table deep. The
-- body is last, so that the rest is read without it.
CREATE TABLE events (
    n          INTEGER PRIMARY KEY,
    tenant_id  BLOB NOT NULL,
    id         BLOB NOT NULL,
    type       TEXT NOT NULL,
    ts         INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    given_id   TEXT,
    deliveries BLOB, -- ids, 16 bytes each: the way from an event to its deliveries
    body       BLOB
);
CREATE UNIQUE INDEX events_id ON events (tenant_id, id);

-- kind 0: a request's idempotency key, with the answer that was given.
-- kind 1: an id that a publisher chose; lives as long as its event.
CREATE TABLE event_keys (
    tenant_id  BLOB NOT NULL,
    kind       INTEGER NOT NULL,
    key        TEXT NOT NULL,
    hash       BLOB NOT NULL,
    expires_at INTEGER,
    event_id   BLOB,
    answer     BLOB,
    PRIMARY KEY (tenant_id, kind, key)
) WITHOUT ROWID;
CREATE INDEX event_keys_expiry ON event_keys (expires_at) WHERE expires_at IS NOT NULL;

-- due_at is NULL once a delivery is done. era is the number of jobs that had
-- been started when the delivery was last queued or done: a job stands for the
-- rows of an era before its own.
CREATE TABLE deliveries (
    tenant_id    BLOB NOT NULL,
    id           BLOB NOT NULL,
    webhook_id   BLOB NOT NULL,
    event_id     BLOB NOT NULL,
    given_id     TEXT,
    event_type   TEXT NOT NULL,
    status       INTEGER NOT NULL,
    attempts     INTEGER NOT NULL,
    try          INTEGER NOT NULL,
    trigger      TEXT NOT NULL,
    era          INTEGER NOT NULL,
    replay_id    BLOB,
    due_at       INTEGER,
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER NOT NULL,
    completed_at INTEGER,
    last_at      INTEGER,
    last_status  INTEGER,
    last_us      INTEGER,
    last_kind    TEXT,
    last_message TEXT,
    fail_kind    TEXT,
    fail_message TEXT,
    detail       BLOB, -- the first attempt, if it was a success
    PRIMARY KEY (tenant_id, id)
) WITHOUT ROWID;
CREATE INDEX deliveries_webhook ON deliveries (tenant_id, webhook_id, id);
CREATE INDEX deliveries_queue ON deliveries (tenant_id, webhook_id, due_at, id) WHERE due_at IS NOT NULL;
CREATE INDEX deliveries_expiry ON deliveries (tenant_id, webhook_id, expires_at, id) WHERE due_at IS NOT NULL;
CREATE INDEX deliveries_failed ON deliveries (tenant_id, webhook_id, id) WHERE status = 3;
CREATE INDEX deliveries_failed_all ON deliveries (tenant_id, id) WHERE status = 3;

-- The attempts that are not in their delivery's row.
CREATE TABLE attempts (
    tenant_id   BLOB NOT NULL,
    delivery_id BLOB NOT NULL,
    number      INTEGER NOT NULL,
    data        BLOB NOT NULL,
    PRIMARY KEY (tenant_id, delivery_id, number)
) WITHOUT ROWID;

CREATE TABLE jobs (
    tenant_id  BLOB NOT NULL,
    id         BLOB NOT NULL,
    webhook_id BLOB NOT NULL,
    kind       TEXT NOT NULL,
    era        INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    total      INTEGER NOT NULL,
    moved      INTEGER NOT NULL,
    done       INTEGER NOT NULL,
    -- How far the pass is, and whether it left something behind.
    cursor_due INTEGER NOT NULL,
    cursor_id  BLOB NOT NULL,
    passed     INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, id)
) WITHOUT ROWID;
CREATE UNIQUE INDEX jobs_running ON jobs (tenant_id, webhook_id, kind) WHERE done = 0;

-- How many deliveries there are now. The webhook of 16 zero bytes is the whole
-- tenant, here and in counters.
CREATE TABLE gauges (
    tenant_id  BLOB NOT NULL,
    webhook_id BLOB NOT NULL,
    pending    INTEGER NOT NULL,
    failed     INTEGER NOT NULL,
    total      INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, webhook_id)
) WITHOUT ROWID;

-- Finished attempts. level 0: of all time; 1: a day; 2: an hour; 3: a minute.
CREATE TABLE counters (
    tenant_id  BLOB NOT NULL,
    webhook_id BLOB NOT NULL,
    level      INTEGER NOT NULL,
    bucket     INTEGER NOT NULL, -- its first millisecond
    succeeded  INTEGER NOT NULL,
    failed     INTEGER NOT NULL,
    latency    BLOB,
    PRIMARY KEY (tenant_id, webhook_id, level, bucket)
) WITHOUT ROWID;

CREATE TABLE settings (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO settings VALUES ('era', 0);
