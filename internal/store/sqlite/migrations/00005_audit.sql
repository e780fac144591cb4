-- +goose Up

-- Who changed what (hook.AuditEntry). Rows are only ever added, and deleted when
-- they are old or with their tenant. The operators' own have a tenant of 16 zero
-- bytes. actor and object are what is looked for; data has the rest.
CREATE TABLE audit (
    tenant_id BLOB NOT NULL,
    id        BLOB NOT NULL,
    action    TEXT NOT NULL,
    actor     TEXT NOT NULL,
    object    TEXT NOT NULL,
    data      TEXT NOT NULL, -- JSON
    PRIMARY KEY (tenant_id, id)
) WITHOUT ROWID;
CREATE INDEX audit_age ON audit (id);
