-- +goose Up

-- Values that a tenant keeps by name.
CREATE TABLE vault (
    tenant_id   BLOB NOT NULL,
    id          BLOB NOT NULL,
    name        TEXT NOT NULL,
    revision    INTEGER NOT NULL,
    description TEXT NOT NULL,
    sealed      BLOB NOT NULL,
    created_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, id)
) WITHOUT ROWID;
CREATE UNIQUE INDEX vault_name ON vault (tenant_id, name);

-- Which webhooks refer to which of them: what is sealed can't be asked.
CREATE TABLE vault_references (
    tenant_id  BLOB NOT NULL,
    name       TEXT NOT NULL,
    webhook_id BLOB NOT NULL,
    PRIMARY KEY (tenant_id, name, webhook_id)
) WITHOUT ROWID;
CREATE INDEX vault_references_webhook ON vault_references (tenant_id, webhook_id);

-- How sealed bytes begin says which key they were sealed under.
CREATE INDEX webhooks_sealed ON webhooks (substr(sealed, 1, 5));
CREATE INDEX webhook_revisions_sealed ON webhook_revisions (substr(sealed, 1, 5));
CREATE INDEX vault_sealed ON vault (substr(sealed, 1, 5));
