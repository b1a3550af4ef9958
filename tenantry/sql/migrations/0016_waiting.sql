-- What we wait for is our own: rows that only we can lock, and tables that only we can name.
--
-- Any role that may connect can hold any advisory lock for as long as it likes, and as many as
-- there is room for. And a table that a role can name it can lock, whatever its rights: to
-- prepare a statement is enough, and lasts until the transaction ends. Tenants can name the tables
-- of the schema tenantry, for they call its functions; those of tenantry_fence they can't.

-- The fence of tenantry.terms: whoever writes under a term locks this table, see refuse_past_term.
CREATE TABLE tenantry_fence.terms ();

-- Refuses what is done in a session whose term has been taken by another, until the transaction
-- ends. A session says which term it has in its setting `tenantry.term`, as scope/number; one that
-- says nothing is no daemon's. For what changes no table of ours, roles for example; those that do
-- have a trigger, check_term.
--
-- It must see what was committed before it got the lock, which a transaction that began to read
-- earlier would not in the stricter levels of isolation.
CREATE FUNCTION tenantry.refuse_past_term() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    claim   text := coalesce(current_setting('tenantry.term', true), '');
    current bigint;
BEGIN
    IF claim = '' THEN
        RETURN;
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'with a term, writes are made at READ COMMITTED only'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    LOCK TABLE tenantry_fence.terms IN ROW SHARE MODE;
    SELECT t.number INTO current FROM tenantry.terms AS t
    WHERE t.scope = split_part(claim, '/', 1);
    IF current IS DISTINCT FROM split_part(claim, '/', 2)::bigint THEN
        RAISE EXCEPTION 'the term % is over: % is the term now', claim, current
            USING ERRCODE = 'TN001';
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION tenantry.check_term() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF coalesce(current_setting('tenantry.term', true), '') <> '' THEN
        PERFORM tenantry.refuse_past_term();
    END IF;
    RETURN NULL;
END
$$;

-- As before (migration 0006), but for the table that is locked.
CREATE OR REPLACE FUNCTION tenantry.take_term(
    p_scope text, p_number bigint, p_beat bigint, p_instance text, p_host text, p_pid integer
) RETURNS SETOF tenantry.terms
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM tenantry.terms AS t
    WHERE t.scope = p_scope AND t.number = p_number AND t.beat = p_beat;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    BEGIN
        PERFORM pg_terminate_backend(l.pid)
        FROM pg_locks AS l
        WHERE l.locktype = 'relation' AND l.relation = 'tenantry_fence.terms'::regclass
          AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
          AND l.mode = 'RowShareLock' AND l.granted
          AND l.pid <> pg_backend_pid();
    EXCEPTION WHEN insufficient_privilege THEN
        NULL;  -- another role's: waited for instead
    END;
    LOCK TABLE tenantry_fence.terms IN EXCLUSIVE MODE;
    RETURN QUERY
    UPDATE tenantry.terms AS t
    SET number = t.number + 1, beat = t.beat + 1, held = true, instance = p_instance,
        host = p_host, pid = p_pid, since = clock_timestamp(), renewed_at = clock_timestamp()
    WHERE t.scope = p_scope AND t.number = p_number AND t.beat = p_beat
    RETURNING t.*;
END
$$;

-- Names of what one transaction at a time may do.
CREATE TABLE tenantry.locks (
    name text COLLATE "C" PRIMARY KEY
);

-- Waits until no other transaction holds a name, and holds it until this one ends. Like all that
-- is done under a term, it is done under the present one only.
CREATE FUNCTION tenantry.hold(p_name text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    LOOP
        PERFORM FROM tenantry.locks AS l WHERE l.name = p_name FOR UPDATE;
        EXIT WHEN FOUND;
        INSERT INTO tenantry.locks (name) VALUES (p_name) ON CONFLICT DO NOTHING;
    END LOOP;
    -- After the wait: it may have lasted beyond the term.
    PERFORM tenantry.refuse_past_term();
END
$$;

-- Makes a tenant's partition unless it is there, or attaches it again; as before (migration 0012)
-- otherwise.
CREATE OR REPLACE FUNCTION tenantry.create_messages_partition(p_tenant text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    leaf text := 'messages_' || p_tenant;
    attached boolean := tenantry.partition_attached(leaf);
BEGIN
    IF attached IS NOT TRUE THEN
        -- Two daemons, or two attempts, may make the same partition at once.
        PERFORM tenantry.hold('partition.' || p_tenant);
        attached := tenantry.partition_attached(leaf);
    END IF;
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

-- Drops a tenant's partition, detached or not, and its totals; as before (migration 0012)
-- otherwise.
CREATE OR REPLACE FUNCTION tenantry.drop_messages_partition(p_tenant text) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    leaf text := 'messages_' || p_tenant;
    attached boolean;
    dropped bigint := 0;
BEGIN
    PERFORM tenantry.hold('partition.' || p_tenant);
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
    DELETE FROM tenantry.locks WHERE name IN (
        SELECT l.name FROM tenantry.locks AS l
        WHERE l.name IN ('partition.' || p_tenant, 'topology.' || p_tenant,
                         'dead_letters.' || p_tenant)
        FOR UPDATE SKIP LOCKED);
    RETURN dropped;
END
$$;

-- As before (migration 0008), but for what is waited for.
CREATE OR REPLACE FUNCTION tenantry.grant_sql_access(
    p_tenant text, p_verifier text, p_connections integer
) RETURNS name
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    wanted name := tenantry.sql_role(p_tenant);
BEGIN
    PERFORM tenantry.hold('sql_roles');
    IF EXISTS (SELECT FROM tenantry.sql_roles WHERE role = wanted)
       AND to_regrole(quote_ident(wanted)) IS NOT NULL THEN
        EXECUTE format('ALTER ROLE %I LOGIN PASSWORD %L', wanted, p_verifier);
    ELSE
        DELETE FROM tenantry.sql_roles WHERE role = wanted;
        PERFORM tenantry.make_sql_role(wanted, p_tenant, p_verifier, p_connections, false);
    END IF;
    RETURN wanted;
END
$$;

CREATE OR REPLACE FUNCTION tenantry.revoke_sql_access(p_tenant text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    had   boolean := false;
    found record;
BEGIN
    PERFORM tenantry.hold('sql_roles');
    FOR found IN SELECT role, probe FROM tenantry.sql_roles WHERE tenant_id = p_tenant LOOP
        PERFORM tenantry.drop_sql_role(found.role);
        had := had OR NOT found.probe;
    END LOOP;
    RETURN had;
END
$$;

-- Tells whether a session of ours has ended. Of one that belongs to another role, and so doesn't
-- show when it began, nothing is known.
CREATE FUNCTION tenantry.session_has_ended(p_pid integer, p_began_at timestamptz) RETURNS boolean
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT p_pid IS NOT NULL AND NOT EXISTS (
        SELECT FROM pg_stat_get_activity(p_pid) AS a
        WHERE a.backend_start IS NULL OR a.backend_start = p_began_at)
$$;

-- The session of a reader: its queues are free as soon as that has ended.
ALTER TABLE tenantry.consumers
    ADD COLUMN pid      integer,
    ADD COLUMN began_at timestamptz;
DROP FUNCTION tenantry.consumer_has_gone;

-- Whose dead letters are being walked along, and by which session.
CREATE TABLE tenantry.walks (
    tenant_id text        COLLATE "C" PRIMARY KEY,
    pid       integer     NOT NULL,
    began_at  timestamptz NOT NULL
);

-- Notifications: on channels whose names nobody else knows, for anybody may listen and notify.
CREATE TABLE tenantry.channels (
    purpose text PRIMARY KEY,
    name    text NOT NULL
);
INSERT INTO tenantry.channels (purpose, name)
SELECT p, format('tenantry_%s_%s', p, replace(gen_random_uuid()::text, '-', ''))
FROM unnest(ARRAY['queued', 'events']) AS p;

-- Tells those who listen for a purpose, with the commit. What the commit would fail for, a full
-- queue of notifications, is kept far from: anybody can fill it who listens and does not hear. Those
-- who listen look by themselves as well, if not as often.
CREATE FUNCTION tenantry.tell(p_purpose text, p_what text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF pg_notification_queue_usage() < 0.1 THEN
        PERFORM pg_notify(c.name, p_what) FROM tenantry.channels AS c WHERE c.purpose = p_purpose;
    END IF;
END
$$;

-- As before (migration 0001), but for how it is told.
CREATE OR REPLACE FUNCTION tenantry.append_events(
    p_stream          text,
    p_expected        integer,
    p_ids             uuid[],
    p_types           text[],
    p_schema_versions integer[],
    p_data            jsonb[],
    p_metadata        jsonb
) RETURNS TABLE (event_id uuid, at_position bigint, at_version integer, at_time timestamptz)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
    head   bigint;
    moment timestamptz;
    actual integer;
    fresh  integer[];
BEGIN
    SELECT h.position, h.recorded_at INTO STRICT head, moment
    FROM tenantry.journal_head AS h FOR UPDATE;
    moment := greatest(moment, clock_timestamp());

    SELECT array_agg(first.n ORDER BY first.n) INTO fresh
    FROM (
        SELECT min(given.n)::integer AS n
        FROM unnest(p_ids) WITH ORDINALITY AS given (id, n)
        WHERE (SELECT e.position FROM tenantry.events AS e WHERE e.id = given.id) IS NULL
        GROUP BY given.id
    ) AS first;
    IF fresh IS NULL THEN
        RETURN;
    END IF;

    SELECT coalesce(max(e.version), 0) INTO actual
    FROM tenantry.events AS e WHERE e.stream = p_stream;
    IF actual <> p_expected THEN
        RETURN QUERY SELECT NULL::uuid, NULL::bigint, actual, NULL::timestamptz;
        RETURN;
    END IF;

    RETURN QUERY
    INSERT INTO tenantry.events AS e
        (position, stream, version, id, type, schema_version, data, metadata, recorded_at)
    SELECT head + taken.o, p_stream, actual + taken.o, p_ids[taken.n], p_types[taken.n],
           p_schema_versions[taken.n], p_data[taken.n], p_metadata, moment
    FROM unnest(fresh) WITH ORDINALITY AS taken (n, o)
    RETURNING e.id, e.position, e.version, e.recorded_at;

    head := head + cardinality(fresh);
    UPDATE tenantry.journal_head AS h SET position = head, recorded_at = moment;
    -- Delivered at commit: who hears it can read the events.
    PERFORM tenantry.tell('events', head::text);
END
$$;

-- Whether a queue's reader wants to be told of new messages; one that doesn't looks by itself.
ALTER TABLE tenantry.queues ADD COLUMN asleep boolean NOT NULL DEFAULT false;

-- As before (migration 0010), but for how a reader is known to live. It is awake at first.
CREATE OR REPLACE FUNCTION tenantry.acquire_queues(p_consumer bigint, p_names text[])
RETURNS TABLE (name text, queue integer, redelivered_up_to bigint, acquired boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    taken boolean;
    found integer;
BEGIN
    -- In one order, lest two wait for each other.
    PERFORM FROM tenantry.queues AS q WHERE q.name = ANY(p_names) ORDER BY q.id FOR UPDATE;
    SELECT bool_or(NOT tenantry.session_has_ended(c.pid, c.began_at)) INTO taken
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
        UPDATE tenantry.queues AS q SET consumer = p_consumer, asleep = false
        WHERE q.name = ANY(p_names);
    END IF;
END
$$;

-- As before (migration 0014), but for whom it tells, and how.
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
