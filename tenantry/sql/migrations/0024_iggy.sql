-- Where Apache Iggy is the broker: what it can't keep itself.

-- What was rejected, until it is replayed or discarded. Iggy has no dead letters, and takes no
-- single message out of a topic. A row is written before its message's offset is passed, and known
-- by its place, `made` being the time at which its topic was made. One that was replayed or
-- discarded stays, empty, until the offset is passed: the message may come once more.
CREATE TABLE tenantry.iggy_rejected (
    tenant_id       text        COLLATE "C" NOT NULL,
    topic           text        NOT NULL,
    partition       integer     NOT NULL,
    made            bigint      NOT NULL,
    message_offset  bigint      NOT NULL,
    seq             bigint      GENERATED ALWAYS AS IDENTITY,
    died_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    id              text,
    published_at_ms bigint      NOT NULL,
    properties      bytea       NOT NULL,
    body            bytea       NOT NULL,
    gone            boolean     NOT NULL DEFAULT false,
    PRIMARY KEY (tenant_id, topic, partition, made, message_offset)
);
CREATE INDEX ON tenantry.iggy_rejected (tenant_id, seq) WHERE NOT gone;

-- With which password users were made: Iggy takes it in clear, and shows nothing of it afterwards.
-- A user is known by its number there and the time it was made at, in microseconds.
CREATE TABLE tenantry.iggy_users (
    number        bigint NOT NULL,
    made          bigint NOT NULL,
    tenant_id     text   NOT NULL,
    password_hash text   NOT NULL,
    PRIMARY KEY (number, made)
);
CREATE INDEX ON tenantry.iggy_users (tenant_id);
