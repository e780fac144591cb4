-- Ids are UUIDv7, whose leading 48 bits are a time: a key (tenant_id, id) is in
-- order of time, and history is cut into spans of time by id alone. Times are
-- Unix milliseconds, but for those that the database takes from its own clock.
--
-- Every key and every unique index starts with the tenant, so that the tables can
-- be spread over machines by it. What can't is the directory: nodes, tenants,
-- settings, and the two tables that say to which tenant a credential or an e-mail
-- address belongs. No foreign key crosses tenants; there is none.

-- +goose Up

-- The directory ---------------------------------------------------------------

-- A row is the lease of a running process, for as long as it renews it. The id is
-- the process's incarnation: new at every start. Whoever declares a process dead
-- deletes its row.
CREATE TABLE nodes (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL,
    version    text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    beat_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- changed_at moves with config_version. era counts the jobs that were started
-- (see jobs). A removed tenant keeps its row until its large tables are empty.
CREATE TABLE tenants (
    id             uuid PRIMARY KEY,
    name           text NOT NULL,
    created_at     bigint NOT NULL,
    updated_at     bigint NOT NULL,
    config_version bigint NOT NULL,
    era            bigint NOT NULL DEFAULT 0,
    removed        boolean NOT NULL DEFAULT false,
    changed_at     timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX tenants_changed ON tenants (changed_at);
CREATE INDEX tenants_removed ON tenants (id) WHERE removed;

-- Whose a credential is, by its SHA-256: an API key (kind 0), a session (kind 1).
-- An operator's key has a tenant of zeros.
CREATE TABLE credentials (
    hash      bytea PRIMARY KEY,
    kind      smallint NOT NULL,
    tenant_id uuid NOT NULL,
    id        uuid NOT NULL
);

CREATE TABLE emails (
    email     text NOT NULL,
    tenant_id uuid NOT NULL,
    user_id   uuid NOT NULL,
    PRIMARY KEY (email, tenant_id)
);

CREATE TABLE settings (
    name  text PRIMARY KEY,
    value bigint NOT NULL
);
-- The oldest schema version that a program may know and still serve this one.
INSERT INTO settings VALUES ('oldest_program', 1);

-- How far the copy of an embedded store is, while it is being made.
CREATE TABLE transfers (
    part   text PRIMARY KEY,
    cursor bytea,
    rows   bigint NOT NULL,
    done   boolean NOT NULL
);

-- Of a tenant: configuration --------------------------------------------------

CREATE TABLE webhooks (
    tenant_id uuid NOT NULL,
    id        uuid NOT NULL,
    revision  bigint NOT NULL,
    data      text NOT NULL, -- JSON
    sealed    bytea,
    PRIMARY KEY (tenant_id, id)
);

-- What a webhook was at each revision; kept after the webhook is deleted.
CREATE TABLE webhook_revisions (
    tenant_id  uuid NOT NULL,
    webhook_id uuid NOT NULL,
    revision   bigint NOT NULL,
    data       text NOT NULL,
    sealed     bytea,
    PRIMARY KEY (tenant_id, webhook_id, revision)
);

-- What all nodes must know of a webhook's queue and is no configuration: until
-- when it is held back, and until when its breaker is open (0: not).
CREATE TABLE lanes (
    tenant_id    uuid NOT NULL,
    webhook_id   uuid NOT NULL,
    paused_until bigint NOT NULL DEFAULT 0,
    open_until   bigint NOT NULL DEFAULT 0,
    changed_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant_id, webhook_id)
);
CREATE INDEX lanes_changed ON lanes (changed_at);

CREATE TABLE api_keys (
    tenant_id    uuid NOT NULL,
    id           uuid NOT NULL,
    hash         bytea NOT NULL,
    name         text NOT NULL,
    hint         text NOT NULL,
    scopes       text NOT NULL, -- JSON
    created_at   bigint NOT NULL,
    expires_at   bigint,
    last_used_at bigint,
    PRIMARY KEY (tenant_id, id)
);

CREATE TABLE users (
    tenant_id     uuid NOT NULL,
    id            uuid NOT NULL,
    email         text NOT NULL,
    role          text NOT NULL,
    password_hash text NOT NULL,
    created_at    bigint NOT NULL,
    PRIMARY KEY (tenant_id, id)
);

CREATE TABLE sessions (
    tenant_id  uuid NOT NULL,
    id         uuid NOT NULL,
    hash       bytea NOT NULL,
    user_id    uuid NOT NULL,
    created_at bigint NOT NULL,
    expires_at bigint NOT NULL,
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX sessions_expiry ON sessions (expires_at);

-- Of a tenant: what waits -----------------------------------------------------

-- kind 0: a request's idempotency key, with the answer that was given.
-- kind 1: an id that a publisher chose; lives as long as its event.
CREATE TABLE event_keys (
    tenant_id  uuid NOT NULL,
    kind       smallint NOT NULL,
    key        text NOT NULL,
    hash       bytea NOT NULL,
    expires_at bigint,
    event_id   uuid,
    answer     bytea,
    PRIMARY KEY (tenant_id, kind, key)
);
CREATE INDEX event_keys_expiry ON event_keys (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX event_keys_event ON event_keys (event_id) WHERE event_id IS NOT NULL;

-- The unfinished deliveries. node is the incarnation that has one in memory; NULL
-- while it is free. A row that is done moves to deliveries.
--
-- The table is empty at one moment and has a million rows at the next, and what the
-- planner believes of it is often wrong. So every index but the primary key has a
-- condition, if need be one that is always true: a statement says by its own
-- conditions which of them it may go by.
CREATE TABLE queue (
    tenant_id    uuid NOT NULL,
    id           uuid NOT NULL,
    webhook_id   uuid NOT NULL,
    event_id     uuid NOT NULL,
    node         bigint,
    era          bigint NOT NULL,
    due_at       bigint NOT NULL,
    expires_at   bigint NOT NULL,
    status       smallint NOT NULL,
    attempts     integer NOT NULL,
    try          integer NOT NULL,
    given_id     text,
    event_type   text NOT NULL,
    trigger      text NOT NULL,
    replay_id    uuid,
    last_at      bigint,
    last_status  integer,
    last_us      bigint,
    last_kind    text,
    last_message text,
    detail       bytea, -- the first attempt, if it was a success
    PRIMARY KEY (tenant_id, id)
) WITH (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX queue_free ON queue (tenant_id, webhook_id, due_at, id) WHERE node IS NULL;
CREATE INDEX queue_held ON queue (node, tenant_id, webhook_id) WHERE node IS NOT NULL;
CREATE INDEX queue_expiry ON queue (tenant_id, webhook_id, expires_at, id) WHERE expires_at > 0;
CREATE INDEX queue_webhook ON queue (tenant_id, webhook_id, id) WHERE era >= 0;

-- Of a tenant: history, in spans of time --------------------------------------

CREATE TABLE events (
    tenant_id  uuid NOT NULL,
    id         uuid NOT NULL,
    ts         bigint NOT NULL,
    type       text NOT NULL,
    given_id   text,
    deliveries bytea, -- ids, 16 bytes each: the way from an event to its deliveries
    body       bytea NOT NULL,
    PRIMARY KEY (tenant_id, id)
) PARTITION BY RANGE (id);

-- The deliveries that are done.
CREATE TABLE deliveries (
    tenant_id    uuid NOT NULL,
    id           uuid NOT NULL,
    webhook_id   uuid NOT NULL,
    event_id     uuid NOT NULL,
    era          bigint NOT NULL,
    expires_at   bigint NOT NULL,
    completed_at bigint NOT NULL,
    last_at      bigint,
    last_us      bigint,
    last_status  integer,
    attempts     integer NOT NULL,
    try          integer NOT NULL,
    status       smallint NOT NULL,
    given_id     text,
    event_type   text NOT NULL,
    trigger      text NOT NULL,
    replay_id    uuid,
    last_kind    text,
    last_message text,
    fail_kind    text,
    fail_message text,
    detail       bytea, -- the first attempt, if it was a success
    PRIMARY KEY (tenant_id, id)
) PARTITION BY RANGE (id);
CREATE INDEX deliveries_webhook ON deliveries (tenant_id, webhook_id, id);
CREATE INDEX deliveries_failed ON deliveries (tenant_id, webhook_id, id) WHERE status = 3;
CREATE INDEX deliveries_failed_all ON deliveries (tenant_id, id) WHERE status = 3;

-- The attempts that are not in their delivery's row.
CREATE TABLE attempts (
    tenant_id   uuid NOT NULL,
    delivery_id uuid NOT NULL,
    number      integer NOT NULL,
    data        bytea NOT NULL,
    PRIMARY KEY (tenant_id, delivery_id, number)
) PARTITION BY RANGE (delivery_id);

-- Of a tenant: jobs and counts ------------------------------------------------

-- Each start of a job begins a new era of its tenant, and a delivery carries the
-- era in which it was last queued or done: a job stands for what is of an era
-- before its own. node is who works it off.
CREATE TABLE jobs (
    tenant_id  uuid NOT NULL,
    id         uuid NOT NULL,
    webhook_id uuid NOT NULL,
    kind       text NOT NULL,
    node       bigint,
    era        bigint NOT NULL,
    created_at bigint NOT NULL,
    total      bigint NOT NULL,
    moved      bigint NOT NULL,
    done       boolean NOT NULL,
    -- How far the pass is, and whether it left something behind.
    cursor_id  uuid NOT NULL,
    passed     boolean NOT NULL,
    PRIMARY KEY (tenant_id, id)
);
CREATE UNIQUE INDEX jobs_running ON jobs (tenant_id, webhook_id, kind) WHERE NOT done;

-- How many deliveries there are now. The webhook of zeros is the whole tenant,
-- here and in counters.
CREATE TABLE gauges (
    tenant_id  uuid NOT NULL,
    webhook_id uuid NOT NULL,
    pending    bigint NOT NULL,
    failed     bigint NOT NULL,
    total      bigint NOT NULL,
    PRIMARY KEY (tenant_id, webhook_id)
) WITH (fillfactor = 50);

-- Finished attempts. level 0: of all time; 1: a day; 2: an hour; 3: a minute.
CREATE TABLE counters (
    tenant_id  uuid NOT NULL,
    webhook_id uuid NOT NULL,
    level      smallint NOT NULL,
    bucket     bigint NOT NULL, -- its first millisecond
    succeeded  bigint NOT NULL,
    failed     bigint NOT NULL,
    latency    bytea NOT NULL,
    PRIMARY KEY (tenant_id, webhook_id, level, bucket)
) WITH (fillfactor = 70);

-- What commits have added to gauges and counters, until it is folded into them: a
-- row for each commit and tenant. So commits of two nodes never wait for the same
-- row.
CREATE TABLE count_log (
    tenant_id uuid NOT NULL,
    node      bigint NOT NULL,
    n         bigint NOT NULL,
    data      bytea NOT NULL,
    PRIMARY KEY (tenant_id, node, n)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
