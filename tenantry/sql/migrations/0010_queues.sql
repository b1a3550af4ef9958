-- The embedded broker: queues in this database, for where there is no RabbitMQ.
--
-- A message is a row that is inserted once and deleted once, never updated. Deleted rows must not
-- pile up, so the table is a ring of segments: new rows go to the current one, and a segment that
-- has run empty is truncated before it is current again. Unlike VACUUM, TRUNCATE does not mind a
-- transaction that stays open for hours.

-- Who reads which queue, one at a time. `consumer` is the reader's entry in tenantry.consumers;
-- `delivered` is how far the last one had got that left in order.
CREATE TABLE tenantry.queues (
    id        integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name      text    NOT NULL UNIQUE,
    tenant_id text    NOT NULL,
    topic     text    NOT NULL,
    partition integer NOT NULL,
    consumer  bigint,
    delivered bigint  NOT NULL DEFAULT 0,
    UNIQUE (tenant_id, topic, partition)
) WITH (fillfactor = 50);

-- What a stream does with a routing key.
CREATE TABLE tenantry.bindings (
    stream      text    NOT NULL,
    routing_key text    NOT NULL,
    queue       integer NOT NULL REFERENCES tenantry.queues ON DELETE CASCADE,
    PRIMARY KEY (stream, routing_key)
);
CREATE INDEX ON tenantry.bindings (queue);

-- Readers and how long each may keep its queues. While its session lives a reader also holds the
-- advisory lock (consumers_lock, id), so that the queues of one that was killed are free at once.
CREATE TABLE tenantry.consumers (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    expires_at timestamptz NOT NULL
) WITH (fillfactor = 50);

-- The order within a queue is that of `seq`. It is not the order of commits: a reader must look
-- again at what lies below for as long as a transaction may be open that has taken a lower one.
CREATE SEQUENCE tenantry.queued_seq;

CREATE TABLE tenantry.queued (
    segment         smallint NOT NULL,
    queue           integer  NOT NULL,
    seq             bigint   NOT NULL,
    published_at_ms bigint   NOT NULL,
    id              text,
    content_type    text,
    headers         jsonb,
    body            bytea    NOT NULL
) PARTITION BY LIST (segment);
-- Compressing what is soon deleted costs more than its room.
ALTER TABLE tenantry.queued ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE INDEX ON tenantry.queued (queue, seq);

DO $$
BEGIN
    FOR segment IN 0..3 LOOP
        EXECUTE format(
            'CREATE TABLE tenantry.queued_%s PARTITION OF tenantry.queued FOR VALUES IN (%s)
             WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
                   autovacuum_vacuum_insert_threshold = -1, autovacuum_vacuum_cost_delay = 0)',
            segment, segment);
    END LOOP;
END
$$;

CREATE TABLE tenantry.current_segment (
    one_row boolean  PRIMARY KEY DEFAULT true CHECK (one_row),
    segment smallint NOT NULL
) WITH (fillfactor = 20);
INSERT INTO tenantry.current_segment (segment) VALUES (0);

-- What was rejected, until it is replayed or discarded: apart, for it may lie for long. Topic and
-- partition are those of the queue it was rejected from.
CREATE TABLE tenantry.rejected (
    seq             bigint  PRIMARY KEY,
    tenant_id       text    NOT NULL,
    topic           text    NOT NULL,
    partition       integer NOT NULL,
    published_at_ms bigint  NOT NULL,
    id              text,
    content_type    text,
    headers         jsonb,
    body            bytea   NOT NULL
);
CREATE INDEX ON tenantry.rejected (tenant_id, seq);

-- Puts messages into the queues a stream's keys lead to, all of them or none.
CREATE FUNCTION tenantry.enqueue(
    p_stream text,
    p_keys text[],
    p_ids text[],
    p_bodies bytea[],
    p_content_types text[],
    p_headers jsonb[],
    p_published_at_ms bigint[]
) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    reached integer[];
    taken integer;
    missing text;
BEGIN
    -- The transaction's number comes before any `seq`: what a reader knows of open transactions
    -- then tells it which numbers may still turn up.
    PERFORM pg_current_xact_id();
    IF EXISTS (SELECT FROM unnest(p_bodies) AS b(body) WHERE octet_length(b.body) > 33554432) THEN
        RAISE program_limit_exceeded USING MESSAGE = 'a message is larger than 32 MiB';
    END IF;
    WITH put AS (
        INSERT INTO tenantry.queued
            (segment, queue, seq, published_at_ms, id, content_type, headers, body)
        SELECT (SELECT segment FROM tenantry.current_segment), b.queue,
               nextval('tenantry.queued_seq'), m.published_at_ms, m.id, m.content_type, m.headers,
               m.body
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
            USING MESSAGE = format('no queue of %s takes the key %s', p_stream, missing);
    END IF;
    -- Only a reader that sleeps is woken: it then holds this lock alone. One that does not looks
    -- by itself, and can't fall asleep before this transaction has ended.
    PERFORM pg_notify('tenantry_queued', q::text) FROM unnest(reached) AS q
    WHERE NOT pg_try_advisory_xact_lock_shared(19800, q % 1024);
END
$$;

-- Tells whether a reader's session has ended, by the lock it holds as long as it lives.
CREATE FUNCTION tenantry.consumer_has_gone(p_consumer bigint) RETURNS boolean
LANGUAGE sql SET search_path = pg_catalog AS $$
    SELECT pg_try_advisory_xact_lock(hashtextextended('tenantry.consumer.' || p_consumer, 0))
$$;

-- Makes a consumer the reader of queues: of all, or of none where one is not there, or
-- is another's, who is alive and has renewed its lease in time. What may have been delivered to an earlier reader is told.
CREATE FUNCTION tenantry.acquire_queues(p_consumer bigint, p_names text[])
RETURNS TABLE (name text, queue integer, redelivered_up_to bigint, acquired boolean)
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    taken boolean;
    found integer;
BEGIN
    -- In one order, lest two wait for each other.
    PERFORM FROM tenantry.queues AS q WHERE q.name = ANY(p_names) ORDER BY q.id FOR UPDATE;
    SELECT bool_or(NOT tenantry.consumer_has_gone(c.id)) INTO taken
    FROM (SELECT DISTINCT q.consumer FROM tenantry.queues AS q
          WHERE q.name = ANY(p_names) AND q.consumer <> p_consumer) AS others
    JOIN tenantry.consumers AS c ON c.id = others.consumer
    WHERE c.expires_at > clock_timestamp();
    RETURN QUERY
        SELECT q.name, q.id,
               CASE WHEN q.consumer IS NULL THEN q.delivered
                    ELSE (SELECT last_value FROM tenantry.queued_seq) END,
               taken IS NOT TRUE
        FROM tenantry.queues AS q WHERE q.name = ANY(p_names);
    GET DIAGNOSTICS found = ROW_COUNT;
    IF taken IS NOT TRUE AND found = cardinality(p_names) THEN
        UPDATE tenantry.queues AS q SET consumer = p_consumer WHERE q.name = ANY(p_names);
    END IF;
END
$$;

-- Takes delivered messages out of a tenant's queues, by their receipts; gives those that were
-- still there. Who uses them in the same transaction uses each message once: one that somebody
-- else has taken before is not given.
CREATE FUNCTION tenantry.take(
    p_tenant text, p_topics text[], p_partitions integer[], p_receipts bigint[]
) RETURNS bigint[]
LANGUAGE plpgsql SET search_path = pg_catalog
-- The tables are small and empty by turns; a plan made for one state must not serve the other.
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    queues integer[];
    taken bigint[];
BEGIN
    SELECT array_agg(q.id ORDER BY r.n) INTO queues
    FROM unnest(p_topics, p_partitions) WITH ORDINALITY AS r(topic, partition, n)
    LEFT JOIN tenantry.queues AS q
        ON q.tenant_id = p_tenant AND q.topic = r.topic AND q.partition = r.partition;
    WITH gone AS (
        DELETE FROM tenantry.queued AS m
        USING unnest(queues, p_receipts) AS r(queue, seq)
        WHERE m.queue = r.queue AND m.seq = r.seq
        RETURNING m.seq
    )
    SELECT coalesce(array_agg(seq), '{}') INTO taken FROM gone;
    RETURN taken;
END
$$;

-- Stores a batch and takes it out of its queues, in one transaction: what is not there any more
-- has been stored by another and is counted as a duplicate.
CREATE FUNCTION tenantry.store_taken(
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
    p_receipts bigint[],
    OUT stored integer,
    OUT duplicates integer
)
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    taken bigint[] := tenantry.take(p_tenant, p_topics, p_partitions, p_receipts);
    missing integer := cardinality(p_receipts) - cardinality(taken);
BEGIN
    IF missing > 0 THEN
        SELECT coalesce(array_agg(m.id ORDER BY n), '{}'),
               coalesce(array_agg(m.topic ORDER BY n), '{}'),
               coalesce(array_agg(m.partition ORDER BY n), '{}'),
               coalesce(array_agg(m.payload ORDER BY n), '{}'),
               coalesce(array_agg(m.body ORDER BY n), '{}'),
               coalesce(array_agg(m.content_type ORDER BY n), '{}'),
               coalesce(array_agg(m.headers ORDER BY n), '{}'),
               coalesce(array_agg(m.published_at ORDER BY n), '{}')
        INTO p_ids, p_topics, p_partitions, p_payloads, p_bodies, p_content_types, p_headers,
             p_published_at
        FROM unnest(p_ids, p_topics, p_partitions, p_payloads, p_bodies, p_content_types,
                    p_headers, p_published_at, p_receipts) WITH ORDINALITY
            AS m(id, topic, partition, payload, body, content_type, headers, published_at,
                 receipt, n)
        WHERE m.receipt = ANY(taken);
    END IF;
    SELECT s.stored, s.duplicates + missing INTO stored, duplicates
    FROM tenantry.store_messages(
        p_tenant, p_ids, p_topics, p_partitions, p_payloads, p_bodies, p_content_types,
        p_headers, p_published_at, p_dead_lettered) AS s;
    IF missing > 0 THEN
        UPDATE tenantry.tenant_counters AS c SET duplicates = c.duplicates + missing
        WHERE c.tenant_id = p_tenant;
    END IF;
END
$$;
