-- What the daemon's group has stored on Apache Iggy, while the group is deleted and made anew. On the
-- server it would stand under the name of a consumer, and whoever reads a tenant's topics may store
-- offsets under any: one that is too far would cost messages.
CREATE TABLE tenantry.iggy_offsets (
    tenant_id       text   COLLATE "C" NOT NULL,
    topic           text   NOT NULL,
    partition       integer NOT NULL,
    made            bigint NOT NULL,
    message_offset  bigint NOT NULL,
    PRIMARY KEY (tenant_id, topic, partition, made)
);
