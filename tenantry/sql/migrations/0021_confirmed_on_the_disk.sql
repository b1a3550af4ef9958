-- The commit is what confirms a message that a tenant publishes with SQL, so it waits for the disk,
-- whatever the database, the role or the session has set (enqueue, as before but for that).

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
