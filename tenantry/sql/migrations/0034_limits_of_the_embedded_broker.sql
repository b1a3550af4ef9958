-- What the embedded broker holds a tenant to: connections, and what may wait in its queues.

CREATE TABLE tenantry.broker_limits (
    tenant_id        text COLLATE "C" PRIMARY KEY,
    connections      integer,
    backlog_messages bigint,
    backlog_bytes    bigint
);

-- What lies in the queues of a tenant whose backlog is limited: the sum of its rows. Who publishes
-- and who takes changes whichever of them nobody else is changing, so that nobody waits for a
-- transaction that a tenant keeps open.
CREATE TABLE tenantry.backlog_parts (
    tenant_id text   COLLATE "C" NOT NULL,
    part      bigint GENERATED ALWAYS AS IDENTITY,
    messages  bigint NOT NULL,
    bytes     bigint NOT NULL,
    PRIMARY KEY (tenant_id, part)
) WITH (fillfactor = 50);

CREATE FUNCTION tenantry.has_backlog_limit(p_tenant text) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (
        SELECT FROM tenantry.broker_limits AS l
        WHERE l.tenant_id = p_tenant
          AND (l.backlog_messages IS NOT NULL OR l.backlog_bytes IS NOT NULL))
$$;

-- Counts messages that have come or gone.
CREATE FUNCTION tenantry.count_backlog(p_tenant text, p_messages bigint, p_bytes bigint)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- In the stricter levels a row that has changed since the snapshot can't be changed.
    IF current_setting('transaction_isolation') = 'read committed' THEN
        UPDATE tenantry.backlog_parts AS b
        SET messages = b.messages + p_messages, bytes = b.bytes + p_bytes
        WHERE b.tenant_id = p_tenant AND b.part = (
            SELECT f.part FROM tenantry.backlog_parts AS f WHERE f.tenant_id = p_tenant
            ORDER BY f.part LIMIT 1 FOR UPDATE SKIP LOCKED);
        IF FOUND THEN
            RETURN;
        END IF;
    END IF;
    INSERT INTO tenantry.backlog_parts (tenant_id, messages, bytes)
    VALUES (p_tenant, p_messages, p_bytes);
END
$$;

-- Refuses messages that would be beyond a tenant's limit, and counts them otherwise. What other
-- transactions have put in and not committed is not seen.
CREATE FUNCTION tenantry.admit_to_backlog(
    p_tenant text, p_messages bigint, p_bytes bigint, p_most_messages bigint, p_most_bytes bigint
) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    lying record;
BEGIN
    SELECT coalesce(sum(b.messages), 0) AS messages, coalesce(sum(b.bytes), 0) AS bytes INTO lying
    FROM tenantry.backlog_parts AS b WHERE b.tenant_id = p_tenant;
    IF lying.messages + p_messages > p_most_messages THEN
        RAISE EXCEPTION USING
            ERRCODE = 'TN003',
            MESSAGE = format('the backlog of tenant %s is full: %s messages wait, of at most %s',
                             p_tenant, lying.messages, p_most_messages),
            HINT = 'Publish again once some of them are stored, fewer at once, or have'
                   ' backlog.messages raised.';
    ELSIF lying.bytes + p_bytes > p_most_bytes THEN
        RAISE EXCEPTION USING
            ERRCODE = 'TN003',
            MESSAGE = format('the backlog of tenant %s is full: %s bytes wait, of at most %s',
                             p_tenant, lying.bytes, p_most_bytes),
            HINT = 'Publish again once some of them are stored, less at once, or have'
                   ' backlog.bytes raised.';
    END IF;
    PERFORM tenantry.count_backlog(p_tenant, p_messages, p_bytes);
END
$$;

-- Makes the count of a tenant's backlog right, and one row of it: what was put in while its limit was
-- about to be set is in it then, and what was taken out otherwise than by taking is not.
CREATE FUNCTION tenantry.recount_backlog(p_tenant text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- One at a time, or both would add what is missing. No tenant can lock this row.
    PERFORM FROM tenantry.broker_limits AS l WHERE l.tenant_id = p_tenant FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    -- Both sums are of one moment.
    INSERT INTO tenantry.backlog_parts (tenant_id, messages, bytes)
    SELECT p_tenant, lying.messages - counted.messages, lying.bytes - counted.bytes
    FROM (SELECT count(*) AS messages, coalesce(sum(octet_length(m.body)), 0) AS bytes
          FROM tenantry.queues AS q JOIN tenantry.queued AS m ON m.queue = q.id
          WHERE q.tenant_id = p_tenant) AS lying,
         (SELECT coalesce(sum(b.messages), 0) AS messages, coalesce(sum(b.bytes), 0) AS bytes
          FROM tenantry.backlog_parts AS b WHERE b.tenant_id = p_tenant) AS counted
    WHERE lying.messages <> counted.messages OR lying.bytes <> counted.bytes;
    IF (SELECT count(*) FROM tenantry.backlog_parts AS b WHERE b.tenant_id = p_tenant) > 1 THEN
        WITH gone AS (
            DELETE FROM tenantry.backlog_parts AS b
            WHERE b.tenant_id = p_tenant AND b.part IN (
                SELECT f.part FROM tenantry.backlog_parts AS f WHERE f.tenant_id = p_tenant
                FOR UPDATE SKIP LOCKED)
            RETURNING b.messages, b.bytes
        )
        INSERT INTO tenantry.backlog_parts (tenant_id, messages, bytes)
        SELECT p_tenant, sum(gone.messages), sum(gone.bytes) FROM gone HAVING count(*) > 0;
    END IF;
END
$$;

-- Sets what a tenant is held to; null is no limit.
CREATE FUNCTION tenantry.limit_tenant(
    p_tenant text, p_connections integer, p_messages bigint, p_bytes bigint
) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF p_connections IS NULL AND p_messages IS NULL AND p_bytes IS NULL THEN
        DELETE FROM tenantry.broker_limits WHERE tenant_id = p_tenant;
    ELSE
        INSERT INTO tenantry.broker_limits AS l
            (tenant_id, connections, backlog_messages, backlog_bytes)
        VALUES (p_tenant, p_connections, p_messages, p_bytes)
        ON CONFLICT (tenant_id) DO UPDATE
        SET connections = excluded.connections, backlog_messages = excluded.backlog_messages,
            backlog_bytes = excluded.backlog_bytes;
    END IF;
    IF p_messages IS NULL AND p_bytes IS NULL THEN
        DELETE FROM tenantry.backlog_parts WHERE tenant_id = p_tenant;
    END IF;
END
$$;

-- As before (migration 0021), but for the backlog.
CREATE OR REPLACE FUNCTION tenantry.enqueue(
    p_stream text,
    p_keys text[],
    p_ids text[],
    p_bodies bytea[],
    p_content_types text[],
    p_headers jsonb[],
    p_published_at_ms bigint[]
) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- What is read in such a transaction may be long past.
    past boolean := current_setting('transaction_isolation') <> 'read committed';
    reached integer[];
    sleeping integer[];
    taken integer;
    missing text;
    flaw text;
    -- The exchange is tenant_ID_stream.
    whose text := substr(p_stream, 8, greatest(length(p_stream) - 14, 0));
    most_messages bigint;
    most_bytes bigint;
BEGIN
    -- The transaction's number comes before any `seq`: what a reader knows of open transactions
    -- then tells it which numbers may still turn up.
    PERFORM pg_current_xact_id();
    IF current_setting('synchronous_commit') IN ('off', 'local') THEN
        -- To the end of the caller's transaction.
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    SELECT found.flaw INTO flaw
    FROM unnest(p_bodies, p_ids, p_content_types, p_headers) AS m(body, id, content_type, headers)
    CROSS JOIN LATERAL (SELECT CASE
        WHEN octet_length(m.body) > 33554432 THEN 'a message is larger than 32 MiB'
        WHEN octet_length(m.id) > 255 THEN 'an id is longer than 255 bytes'
        WHEN octet_length(m.content_type) > 255 THEN 'a content type is longer than 255 bytes'
        WHEN m.headers IS NULL THEN NULL
        WHEN jsonb_typeof(m.headers) <> 'object' THEN 'headers must be a JSON object'
        -- A number may be short in here and very long as text, which is what is read.
        WHEN pg_column_size(m.headers) > 65536 OR octet_length(m.headers::text) > 65536
            THEN 'headers are larger than 64 KiB'
        WHEN jsonb_path_exists(
                m.headers,
                'strict $.**{32 to last} ? (@.type() == "object" || @.type() == "array")')
            THEN 'headers have more than 32 levels within one another'
    END) AS found(flaw)
    WHERE found.flaw IS NOT NULL
    LIMIT 1;
    IF flaw IS NOT NULL THEN
        RAISE program_limit_exceeded USING MESSAGE = flaw;
    END IF;
    SELECT l.backlog_messages, l.backlog_bytes INTO most_messages, most_bytes
    FROM tenantry.broker_limits AS l WHERE l.tenant_id = whose;
    IF most_messages IS NOT NULL OR most_bytes IS NOT NULL THEN
        PERFORM tenantry.admit_to_backlog(
            whose, cardinality(p_keys),
            (SELECT coalesce(sum(octet_length(b.body)), 0) FROM unnest(p_bodies) AS b(body)),
            most_messages, most_bytes);
    END IF;
    IF past THEN
        -- Fails if they have gone, with their tenant; else they wait for this transaction.
        PERFORM FROM tenantry.bindings AS b
        WHERE b.stream = p_stream AND b.routing_key = ANY(p_keys) FOR KEY SHARE;
    END IF;
    WITH put AS (
        INSERT INTO tenantry.queued
            (segment, queue, seq, published_at_ms, id, content_type, headers, body)
        SELECT (SELECT segment FROM tenantry.current_segment), b.queue,
               nextval('tenantry.queued_seq'),
               -- A time PostgreSQL can show, up to the year 9999.
               greatest(0, least(m.published_at_ms, 253370764800000)),
               nullif(m.id, ''), m.content_type, m.headers, m.body
        FROM unnest(p_keys, p_ids, p_bodies, p_content_types, p_headers, p_published_at_ms)
            WITH ORDINALITY AS m(key, id, body, content_type, headers, published_at_ms, n)
        JOIN tenantry.bindings AS b ON b.stream = p_stream AND b.routing_key = m.key
        ORDER BY m.n
        RETURNING queue
    )
    SELECT array_agg(DISTINCT queue), count(*) INTO reached, taken FROM put;
    IF taken < cardinality(p_keys) THEN
        SELECT m.key INTO missing FROM unnest(p_keys) AS m(key)
        WHERE NOT EXISTS (SELECT FROM tenantry.bindings AS b
                          WHERE b.stream = p_stream AND b.routing_key = m.key)
        LIMIT 1;
        RAISE undefined_object
            USING MESSAGE = format('no queue of %s takes the key %s', p_stream, left(missing, 300));
    END IF;
    -- Only a reader that sleeps is told: NOTIFY makes commits wait for one another. One that is
    -- seen awake here looks by itself for as long as this transaction is open.
    SELECT array_agg(q.id) INTO sleeping
    FROM tenantry.queues AS q WHERE q.id = ANY(reached) AND (q.asleep OR past);
    IF sleeping IS NOT NULL THEN
        PERFORM tenantry.tell('queued', q::text) FROM unnest(sleeping) AS q;
    END IF;
END
$$;

-- As before (migration 0010), but for the backlog.
CREATE OR REPLACE FUNCTION tenantry.take(
    p_tenant text, p_topics text[], p_partitions integer[], p_receipts bigint[]
) RETURNS bigint[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    limited boolean := EXISTS (
        SELECT FROM tenantry.broker_limits AS l
        WHERE l.tenant_id = p_tenant
          AND (l.backlog_messages IS NOT NULL OR l.backlog_bytes IS NOT NULL));
    queues integer[];
    taken bigint[];
    size bigint;
BEGIN
    SELECT array_agg(q.id ORDER BY r.n) INTO queues
    FROM unnest(p_topics, p_partitions) WITH ORDINALITY AS r(topic, partition, n)
    LEFT JOIN tenantry.queues AS q
        ON q.tenant_id = p_tenant AND q.topic = r.topic AND q.partition = r.partition;
    WITH gone AS (
        DELETE FROM tenantry.queued AS m
        USING unnest(queues, p_receipts) AS r(queue, seq)
        WHERE m.queue = r.queue AND m.seq = r.seq
        RETURNING m.seq, CASE WHEN limited THEN octet_length(m.body) END AS size
    )
    SELECT coalesce(array_agg(gone.seq), '{}'), sum(gone.size) INTO taken, size FROM gone;
    IF limited AND cardinality(taken) > 0 THEN
        PERFORM tenantry.count_backlog(p_tenant, -cardinality(taken), -size);
    END IF;
    RETURN taken;
END
$$;

-- As before (migration 0022), but for the limits of connections.
CREATE OR REPLACE FUNCTION tenantry.roles_to_mend(
    p_reading integer, p_probing integer, p_publishing integer
) RETURNS TABLE (role name, kind text, tenant text, connections integer)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    reading text[] := ARRAY(
        SELECT format('%s=%s', s.name, s.value) FROM tenantry.role_settings('reader') AS s);
    publishing text[] := ARRAY(
        SELECT format('%s=%s', s.name, s.value) FROM tenantry.role_settings('producer') AS s);
    columns smallint := (
        SELECT count(*) FROM pg_attribute AS a
        WHERE a.attrelid = 'public.messages'::regclass AND a.attnum > 0 AND NOT a.attisdropped);
BEGIN
    RETURN QUERY
    SELECT r.rolname, t.kind, s.tenant_id::text, wanted.connections
    FROM tenantry.tenants_roles() AS t
    JOIN pg_roles AS r ON r.oid = t.id
    LEFT JOIN tenantry.sql_roles AS s ON s.role = t.role
    LEFT JOIN tenantry.broker_limits AS l
        ON t.kind = 'producer'
        AND l.tenant_id = substring(t.role FROM '^tenant_(.+)_(?:producer|consumer)$')
    LEFT JOIN pg_db_role_setting AS d ON d.setrole = t.id AND d.setdatabase = 0
    LEFT JOIN pg_namespace AS own ON own.nspname = t.role
    LEFT JOIN pg_class AS view ON view.relnamespace = own.oid AND view.relname = 'messages'
    CROSS JOIN LATERAL (
        SELECT CASE WHEN s.probe THEN p_probing WHEN t.kind = 'reader' THEN p_reading
                    ELSE coalesce(l.connections, p_publishing) END AS connections,
               CASE t.kind WHEN 'reader' THEN reading ELSE publishing END AS settings
    ) AS wanted
    WHERE NOT pg_has_role(current_user, t.id, 'USAGE')
       OR r.rolconnlimit <> wanted.connections
       OR NOT coalesce(d.setconfig, '{}') @> wanted.settings
       OR EXISTS (SELECT FROM pg_db_role_setting AS o
                  WHERE o.setrole = t.id AND o.setdatabase <> 0)
          AND EXISTS (SELECT FROM tenantry.overridden_settings(t.id, t.kind))
       OR t.kind = 'reader' AND view.relnatts IS DISTINCT FROM columns
          AND to_regclass(format('tenantry.%I', 'messages_' || s.tenant_id)) IS NOT NULL;
END
$$;
