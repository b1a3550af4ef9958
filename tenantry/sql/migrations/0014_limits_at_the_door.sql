-- What a message may carry: an id and a content type as long as AMQP's, headers that are an object
-- and stay small. Whoever reads a queue reads for many, and must not be handed what can't be held.

-- Puts messages into the queues a stream's keys lead to, all of them or none. An empty id is none.
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
    reached integer[];
    taken integer;
    missing text;
    flaw text;
BEGIN
    -- The transaction's number comes before any `seq`: what a reader knows of open transactions
    -- then tells it which numbers may still turn up.
    PERFORM pg_current_xact_id();
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
    -- Only a reader that sleeps is woken: it then holds this lock alone. One that does not looks
    -- by itself, and can't fall asleep before this transaction has ended.
    PERFORM pg_notify('tenantry_queued', q::text) FROM unnest(reached) AS q
    WHERE NOT pg_try_advisory_xact_lock_shared(19800, q % 1024);
END
$$;

-- The same for anything that is not JSON.
CREATE OR REPLACE FUNCTION tenantry.publish_bytes(
    topic text,
    body bytea,
    content_type text,
    key text DEFAULT NULL,
    id text DEFAULT NULL,
    headers jsonb DEFAULT NULL,
    tenant text DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- The caller's session_user is the same in here, whatever function called this one.
    whose text := tenantry.acting_tenant(tenant);
    named text := coalesce(nullif(id, ''), gen_random_uuid()::text);
BEGIN
    PERFORM tenantry.enqueue(
        'tenant_' || whose || '_stream',
        ARRAY[tenantry.routing_key(whose, topic, key)],
        ARRAY[named], ARRAY[body], ARRAY[content_type], ARRAY[headers],
        ARRAY[floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint]);
    RETURN named;
END
$$;
