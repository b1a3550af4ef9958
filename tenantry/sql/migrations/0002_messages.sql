-- Every tenant's messages, each tenant in a partition of its own.
--
-- There is no default partition: a row of an unknown tenant must fail, not hide.

CREATE TABLE public.messages (
    tenant_id    text        NOT NULL,
    id           text        NOT NULL,
    position     bigint      NOT NULL,
    topic        text        NOT NULL,
    partition    integer     NOT NULL,
    payload      jsonb,
    body         bytea,
    content_type text,
    headers      jsonb,
    published_at timestamptz,
    created_at   timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, id),
    CONSTRAINT messages_payload_or_body CHECK ((payload IS NULL) <> (body IS NULL))
) PARTITION BY LIST (tenant_id);

-- One row a tenant: the last position given out, and running totals. Its row lock is what makes
-- positions rise in commit order. Small pages' worth of room keeps its updates in place.
CREATE TABLE tenantry.tenant_counters (
    tenant_id     text   PRIMARY KEY,
    position      bigint NOT NULL DEFAULT 0,
    stored        bigint NOT NULL DEFAULT 0,
    duplicates    bigint NOT NULL DEFAULT 0,
    dead_lettered bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- Makes a tenant's partition unless it is there. It is built beside the table and then attached:
-- CREATE TABLE ... PARTITION OF would lock all tenants out, ATTACH lets them read and write on.
-- The check lets ATTACH skip its scan.
CREATE FUNCTION tenantry.create_messages_partition(p_tenant text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    leaf text := 'messages_' || p_tenant;
BEGIN
    -- Two daemons, or two attempts, may make the same partition at once.
    PERFORM pg_advisory_xact_lock(hashtextextended('tenantry.partition.' || p_tenant, 0));
    IF to_regclass(format('tenantry.%I', leaf)) IS NULL THEN
        EXECUTE format('CREATE TABLE tenantry.%I (LIKE public.messages INCLUDING ALL)', leaf);
        EXECUTE format(
            'ALTER TABLE tenantry.%I ADD CONSTRAINT of_tenant CHECK (tenant_id = %L)', leaf, p_tenant);
        EXECUTE format('CREATE UNIQUE INDEX ON tenantry.%I (position)', leaf);
        EXECUTE format('CREATE INDEX ON tenantry.%I (topic, position)', leaf);
        EXECUTE format(
            'ALTER TABLE public.messages ATTACH PARTITION tenantry.%I FOR VALUES IN (%L)',
            leaf, p_tenant);
        EXECUTE format('ALTER TABLE tenantry.%I DROP CONSTRAINT of_tenant', leaf);
    END IF;
    INSERT INTO tenantry.tenant_counters (tenant_id) VALUES (p_tenant) ON CONFLICT DO NOTHING;
END
$$;

-- Drops a tenant's partition and its totals; gives the number of messages that went with it.
-- Detaching first keeps the lock on the parent table to the moment of the detach.
CREATE FUNCTION tenantry.drop_messages_partition(p_tenant text) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    leaf text := 'messages_' || p_tenant;
    dropped bigint := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('tenantry.partition.' || p_tenant, 0));
    IF to_regclass(format('tenantry.%I', leaf)) IS NOT NULL THEN
        EXECUTE format('SELECT count(*) FROM tenantry.%I', leaf) INTO dropped;
        EXECUTE format('ALTER TABLE public.messages DETACH PARTITION tenantry.%I', leaf);
        EXECUTE format('DROP TABLE tenantry.%I', leaf);
    END IF;
    DELETE FROM tenantry.tenant_counters WHERE tenant_id = p_tenant;
    RETURN dropped;
END
$$;

-- Stores a batch: one call, one round trip, one transaction.
--
-- The tenant's counter row is locked first and until the commit, so that positions are given out
-- and become visible in the same order: a reader that follows them can't be overtaken. Writers of
-- other tenants are not held up.
CREATE FUNCTION tenantry.store_messages(
    p_tenant text,
    p_ids text[],
    p_topics text[],
    p_partitions integer[],
    p_payloads jsonb[],
    p_bodies bytea[],
    p_content_types text[],
    p_headers jsonb[],
    p_published_at timestamptz[],
    p_dead_lettered integer,
    OUT stored integer,
    OUT duplicates integer
)
LANGUAGE plpgsql
-- A plan kept from when the counters were few would read all of them for ever.
SET enable_seqscan = off
AS $$
DECLARE
    base bigint;
    total integer := coalesce(array_length(p_ids, 1), 0);
BEGIN
    SELECT position INTO base
    FROM tenantry.tenant_counters WHERE tenant_id = p_tenant FOR UPDATE;
    IF NOT FOUND THEN
        RAISE undefined_table USING MESSAGE = format('tenant %s has no partition', p_tenant);
    END IF;

    IF total > 0 THEN
        EXECUTE format(
            'INSERT INTO tenantry.%I
                (tenant_id, id, position, topic, partition, payload, body, content_type, headers,
                 published_at, created_at)
             SELECT $1, m.id, $2 + m.n, m.topic, m.partition, m.payload, m.body, m.content_type,
                    m.headers, m.published_at, $11
             FROM unnest($3, $4, $5, $6, $7, $8, $9, $10) WITH ORDINALITY
                AS m(id, topic, partition, payload, body, content_type, headers, published_at, n)
             ON CONFLICT (tenant_id, id) DO NOTHING',
            'messages_' || p_tenant)
        USING p_tenant, base, p_ids, p_topics, p_partitions, p_payloads, p_bodies,
            p_content_types, p_headers, p_published_at, clock_timestamp();
        GET DIAGNOSTICS stored = ROW_COUNT;
    ELSE
        stored := 0;
    END IF;
    duplicates := total - stored;

    UPDATE tenantry.tenant_counters AS c
    SET position = base + total,
        stored = c.stored + store_messages.stored,
        duplicates = c.duplicates + store_messages.duplicates,
        dead_lettered = c.dead_lettered + p_dead_lettered
    WHERE c.tenant_id = p_tenant;
END
$$;
