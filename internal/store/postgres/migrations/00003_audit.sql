-- +goose Up

-- Who changed what (hook.AuditEntry). Rows are only ever added, and deleted when
-- they are old or with their tenant. The operators' own have a tenant of zeros.
-- actor and object are what is looked for; data has the rest.
CREATE TABLE audit (
    tenant_id uuid NOT NULL,
    id        uuid NOT NULL,
    action    text NOT NULL,
    actor     text NOT NULL,
    object    text NOT NULL,
    data      text NOT NULL, -- JSON
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX audit_age ON audit (id);
