-- +goose Up

ALTER TABLE users ADD COLUMN updated_at bigint;
ALTER TABLE users ADD COLUMN last_login_at bigint;
ALTER TABLE sessions ADD COLUMN last_used_at bigint;
CREATE INDEX sessions_user ON sessions (tenant_id, user_id, id);
