-- What lies in tenants' dead-letter queues, to be listed without touching the queues: one row a
-- dead letter, written before its message is rejected.
--
-- The queue has the message, this table what is known of it. A row is settled when its message
-- has been replayed or discarded, and goes once the message has left the queue. `seen_in` is the last walk along
-- the queue that has met the message.
CREATE TABLE tenantry.dead_letters (
    tenant_id        text        COLLATE "C" NOT NULL,
    position         bigint      GENERATED ALWAYS AS IDENTITY,
    id               uuid        NOT NULL,
    fingerprint      bytea       NOT NULL,
    message_id       text,
    topic            text        NOT NULL,
    partition        integer     NOT NULL,
    reason           text        NOT NULL,
    error            text        NOT NULL,
    attempts         integer     NOT NULL,
    size             bigint      NOT NULL,
    body             bytea,
    content_type     text,
    headers          text,
    published_at     timestamptz,
    dead_lettered_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_in          uuid,
    settled          boolean     NOT NULL DEFAULT false,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, fingerprint)
);
CREATE INDEX dead_letters_position ON tenantry.dead_letters (tenant_id, position)
    WHERE NOT settled;
