-- A tenant created again under a used id is another one: an incarnation of its own, counted from 1.
--
-- The counters tell whose partition it is, and since when there is that tenant: who reads a page
-- learns in the same snapshot whether the rows are those of the tenant that is meant.
ALTER TABLE tenantry.tenant_counters
    ADD COLUMN incarnation integer NOT NULL DEFAULT 1,
    ADD COLUMN since timestamptz;

UPDATE tenantry.tenant_counters AS c SET incarnation = made.times, since = made.last
FROM (
    SELECT e.data ->> 'tenant_id' AS tenant_id, count(*)::integer AS times,
           max(e.recorded_at) AS last
    FROM tenantry.events AS e WHERE e.category = 'tenant' AND e.type = 'TenantCreated'
    GROUP BY 1
) AS made
WHERE made.tenant_id = c.tenant_id AND made.times > 1;

-- What was kept of tenants whose ids are used again: a table each, tenantry.retained_ID_N, and what
-- was counted of it. None of them is part of public.messages: ids and positions are the living's.
CREATE TABLE tenantry.retained (
    tenant_id     text        COLLATE "C" NOT NULL,
    incarnation   integer     NOT NULL,
    stored        bigint      NOT NULL,
    duplicates    bigint      NOT NULL,
    dead_lettered bigint      NOT NULL,
    removed       bigint      NOT NULL,
    set_aside_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant_id, incarnation)
);

-- Moves a former tenant's partition, if it was retained, out of the next one's way, and its counts.
CREATE FUNCTION tenantry.set_aside(p_tenant text, p_incarnation integer) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    leaf     text := 'messages_' || p_tenant;
    attached boolean;
BEGIN
    attached := tenantry.partition_attached(leaf);
    IF attached IS NULL THEN
        DELETE FROM tenantry.tenant_counters WHERE tenant_id = p_tenant;
        RETURN false;
    END IF;
    IF attached THEN
        EXECUTE format('ALTER TABLE public.messages DETACH PARTITION tenantry.%I', leaf);
    ELSE
        PERFORM tenantry.ready_detached_partition(p_tenant);
    END IF;
    EXECUTE format('ALTER TABLE tenantry.%I RENAME TO %I', leaf,
                   format('retained_%s_%s', p_tenant, p_incarnation));
    WITH counted AS (
        DELETE FROM tenantry.tenant_counters WHERE tenant_id = p_tenant RETURNING *
    )
    INSERT INTO tenantry.retained
        (tenant_id, incarnation, stored, duplicates, dead_lettered, removed)
    SELECT p_tenant, p_incarnation, coalesce(c.stored, 0), coalesce(c.duplicates, 0),
           coalesce(c.dead_lettered, 0), coalesce(c.removed, 0)
    FROM (VALUES (1)) AS one LEFT JOIN counted AS c ON true;
    RETURN true;
END
$$;

-- Makes room for another tenant of the id, before the journal says that there is one: at no moment
-- do a former's rows lie where the next one's are looked for.
--
-- It waits until the second in which the former ended is over. The time at which a token was issued
-- may be whole seconds; so one issued before the end is older than the next tenant, to the second.
CREATE FUNCTION tenantry.vacate(p_tenant text, p_incarnation integer, p_ended timestamptz)
RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_sleep(least(1, greatest(0, extract(
        epoch FROM date_trunc('second', p_ended) + interval '1 second' - clock_timestamp()))));
    PERFORM tenantry.hold('partition.' || p_tenant);
    DELETE FROM tenantry.walks WHERE tenant_id = p_tenant;
    RETURN tenantry.set_aside(p_tenant, p_incarnation);
END
$$;

-- Makes the partition of a tenant's incarnation unless it is there, and notes whose it is.
CREATE FUNCTION tenantry.open_partition(p_tenant text, p_incarnation integer, p_since timestamptz)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    former integer;
BEGIN
    IF EXISTS (SELECT FROM tenantry.tenant_counters AS c
               WHERE c.tenant_id = p_tenant AND c.incarnation < p_incarnation)
    THEN
        PERFORM tenantry.hold('partition.' || p_tenant);
        SELECT c.incarnation INTO former FROM tenantry.tenant_counters AS c
        WHERE c.tenant_id = p_tenant AND c.incarnation < p_incarnation;
        IF FOUND THEN
            PERFORM tenantry.set_aside(p_tenant, former);
        END IF;
    END IF;
    PERFORM tenantry.create_messages_partition(p_tenant);
    UPDATE tenantry.tenant_counters AS c SET incarnation = p_incarnation, since = p_since
    WHERE c.tenant_id = p_tenant
      AND (c.incarnation, c.since) IS DISTINCT FROM (p_incarnation, p_since);
END
$$;
