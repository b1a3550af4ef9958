-- What is known of messages that are tried again: how often, and why it failed, beyond the life of
-- whoever tries. A row goes when its message is stored or dead-lettered; what is left over (of
-- messages that were purged, say) is swept.
--
-- `key` is the fingerprint of a message, as in tenantry.dead_letters. `attempts` is 0 while a
-- message was only among several of which one may have killed the daemon.
CREATE TABLE tenantry.attempts (
    tenant_id   text        COLLATE "C" NOT NULL,
    key         bytea       NOT NULL,
    attempts    integer     NOT NULL,
    reason      text        NOT NULL,
    first_error text        NOT NULL,
    last_error  text        NOT NULL,
    not_before  timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant_id, key)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_threshold = 500);

-- The error of the first attempt, where it is another than that of the last, which is `error`.
ALTER TABLE tenantry.dead_letters ADD COLUMN first_error text;
