-- +goose Up

-- Values that a tenant keeps by name.
CREATE TABLE vault (
    tenant_id   uuid NOT NULL,
    id          uuid NOT NULL,
    name        text NOT NULL,
    revision    bigint NOT NULL,
    description text NOT NULL,
    sealed      bytea NOT NULL,
    created_at  bigint NOT NULL,
    updated_at  bigint NOT NULL,
    PRIMARY KEY (tenant_id, id)
);
CREATE UNIQUE INDEX vault_name ON vault (tenant_id, name);

-- Which webhooks refer to which of them: what is sealed can't be asked.
CREATE TABLE vault_references (
    tenant_id  uuid NOT NULL,
    name       text NOT NULL,
    webhook_id uuid NOT NULL,
    PRIMARY KEY (tenant_id, name, webhook_id)
);
CREATE INDEX vault_references_webhook ON vault_references (tenant_id, webhook_id);

-- How sealed bytes begin says which key they were sealed under.
CREATE INDEX webhooks_sealed ON webhooks (substring(sealed FROM 1 FOR 5), tenant_id, id);
CREATE INDEX webhook_revisions_sealed ON webhook_revisions (substring(sealed FROM 1 FOR 5), tenant_id, webhook_id, revision);
CREATE INDEX vault_sealed ON vault (substring(sealed FROM 1 FOR 5), tenant_id, id);

-- The keys that a node has, by their fingerprints; the first one seals.
ALTER TABLE nodes ADD COLUMN secret_keys bigint[];
