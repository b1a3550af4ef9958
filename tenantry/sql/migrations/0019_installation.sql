-- The name of this installation: what is made outside the database, where others may make the same
-- (users of a RabbitMQ server, roles of this one), carries it. It is made at the first start.
--
-- A copy of the database has the same name, and so is the same installation. Where it is to be one
-- of its own beside the original, DELETE FROM tenantry.installation before its first start.
CREATE TABLE tenantry.installation (
    alone    boolean PRIMARY KEY DEFAULT true CHECK (alone),
    name     text NOT NULL CHECK (name ~ '^[a-z][a-z0-9-]{0,39}$'),
    -- Where it was last seen: a copy on the same server is told from its original by that.
    database oid NOT NULL,
    server   bigint NOT NULL,
    made_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
