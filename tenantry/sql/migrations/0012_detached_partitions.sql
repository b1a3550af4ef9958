-- A tenant's partition that somebody has detached, by hand, is attached again; what was stored into
-- it meanwhile, by name, is then seen in public.messages, too.

-- Whether a tenant's table is attached to public.messages; NULL where there is none. One whose
-- DETACH ... CONCURRENTLY has not come to its end is not: its rows are hidden already.
CREATE FUNCTION tenantry.partition_attached(p_leaf text) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT EXISTS (
        SELECT FROM pg_catalog.pg_inherits AS i
        WHERE i.inhrelid = c.oid AND i.inhparent = 'public.messages'::regclass
          AND NOT i.inhdetachpending)
    FROM pg_catalog.pg_class AS c
    WHERE c.relnamespace = 'tenantry'::regnamespace AND c.relname = p_leaf
$$;

-- Refuses a detached table with rows of other tenants: as a partition it would show them as this
-- tenant's, and dropped with it they would be lost. By the primary key that is two short looks.
CREATE FUNCTION tenantry.refuse_foreign_rows(p_tenant text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    leaf text := 'messages_' || p_tenant;
    other text;
BEGIN
    EXECUTE format(
        '(SELECT tenant_id FROM tenantry.%1$I WHERE tenant_id < $1 LIMIT 1)
         UNION ALL
         (SELECT tenant_id FROM tenantry.%1$I WHERE tenant_id > $1 LIMIT 1) LIMIT 1', leaf)
    INTO other USING p_tenant;
    IF other IS NOT NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'TN002',
            MESSAGE = format('table tenantry.%I was detached and holds rows of other tenants', leaf),
            DETAIL = format('of %s, say; move them out of it, and it is attached again', other);
    END IF;
END
$$;

-- Brings a detached table to where a new one is before it is attached.
CREATE FUNCTION tenantry.ready_detached_partition(p_tenant text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    leaf text := 'messages_' || p_tenant;
    leaf_id regclass := format('tenantry.%I', leaf);
BEGIN
    PERFORM tenantry.refuse_foreign_rows(p_tenant);
    IF EXISTS (
        SELECT FROM pg_catalog.pg_inherits AS i
        WHERE i.inhrelid = leaf_id AND i.inhparent = 'public.messages'::regclass)
    THEN
        -- Somebody's DETACH ... CONCURRENTLY was broken off. One that goes on is waited for, and
        -- then has nothing left to finalize: an error, and all is well at the next attempt.
        EXECUTE format(
            'ALTER TABLE public.messages DETACH PARTITION tenantry.%I FINALIZE', leaf);
    END IF;
    IF EXISTS (
        SELECT FROM pg_catalog.pg_trigger AS t WHERE t.tgrelid = leaf_id AND t.tgname = 'fenced')
    THEN
        -- As a table by itself it got a fence of its own; a partition has its counters'.
        EXECUTE format('DROP TRIGGER fenced ON tenantry.%I', leaf);
    END IF;
END
$$;

-- Makes a tenant's partition unless it is there, or attaches it again; as before otherwise.
CREATE OR REPLACE FUNCTION tenantry.create_messages_partition(p_tenant text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    leaf text := 'messages_' || p_tenant;
    attached boolean;
BEGIN
    -- Two daemons, or two attempts, may make the same partition at once.
    PERFORM pg_advisory_xact_lock(hashtextextended('tenantry.partition.' || p_tenant, 0));
    attached := tenantry.partition_attached(leaf);
    IF attached IS NULL THEN
        EXECUTE format('CREATE TABLE tenantry.%I (LIKE public.messages INCLUDING ALL)', leaf);
        PERFORM tenantry.guard_partition(leaf);
        EXECUTE format('CREATE UNIQUE INDEX ON tenantry.%I (position)', leaf);
        EXECUTE format('CREATE INDEX ON tenantry.%I (topic, position)', leaf);
    ELSIF NOT attached THEN
        PERFORM tenantry.ready_detached_partition(p_tenant);
    END IF;
    IF attached IS NOT TRUE THEN
        -- The check lets ATTACH skip its scan, which would hold up who creates or drops tenants.
        -- Adding it reads a detached table once; only this tenant's writers wait for that.
        EXECUTE format(
            'ALTER TABLE tenantry.%I ADD CONSTRAINT of_tenant CHECK (tenant_id = %L)', leaf, p_tenant);
        EXECUTE format(
            'ALTER TABLE public.messages ATTACH PARTITION tenantry.%I FOR VALUES IN (%L)',
            leaf, p_tenant);
        EXECUTE format('ALTER TABLE tenantry.%I DROP CONSTRAINT of_tenant', leaf);
    END IF;
    INSERT INTO tenantry.tenant_counters (tenant_id) VALUES (p_tenant) ON CONFLICT DO NOTHING;
END
$$;

-- Drops a tenant's partition, detached or not, and its totals; as before otherwise.
CREATE OR REPLACE FUNCTION tenantry.drop_messages_partition(p_tenant text) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    leaf text := 'messages_' || p_tenant;
    attached boolean;
    dropped bigint := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('tenantry.partition.' || p_tenant, 0));
    attached := tenantry.partition_attached(leaf);
    IF attached IS FALSE THEN
        PERFORM tenantry.refuse_foreign_rows(p_tenant);
    END IF;
    IF attached IS NOT NULL THEN
        EXECUTE format('SELECT count(*) FROM tenantry.%I', leaf) INTO dropped;
        IF attached THEN
            EXECUTE format('ALTER TABLE public.messages DETACH PARTITION tenantry.%I', leaf);
        END IF;
        EXECUTE format('DROP TABLE tenantry.%I', leaf);
    END IF;
    DELETE FROM tenantry.tenant_counters WHERE tenant_id = p_tenant;
    RETURN dropped;
END
$$;
