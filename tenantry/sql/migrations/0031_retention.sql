-- Stored messages that are removed as they are too old or too many, counted, and their ids
-- remembered for a while.

-- What was removed of a tenant's messages, and why. A row of its own beside the counters, which
-- whoever stores holds until the commit: removing waits for nobody that stores, nor the reverse.
-- `number` stands for the tenant among the ids that are remembered; another tenant of its id has
-- another. Beyond `up_to` nothing was removed.
CREATE TABLE tenantry.removals (
    tenant_id text        COLLATE "C" PRIMARY KEY,
    number    integer     GENERATED ALWAYS AS IDENTITY UNIQUE,
    by_age    bigint      NOT NULL DEFAULT 0,
    by_rows   bigint      NOT NULL DEFAULT 0,
    up_to     bigint      NOT NULL DEFAULT 0,
    latest    timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE TRIGGER owned BEFORE INSERT OR UPDATE ON tenantry.removals
FOR EACH ROW EXECUTE FUNCTION tenantry.check_owner();

-- The tenant's number in tenantry.removals while ids of its removed messages are remembered: who
-- stores looks there only if there is one, and reads this in the row that it locks anyway.
ALTER TABLE tenantry.tenant_counters ADD COLUMN remembers integer;

-- Ids of removed messages: two hashes of each, by the tenant's number. A slice takes those of half
-- a day, and is emptied as a whole when it is needed again, so an id is remembered for a day and
-- two hours at least. Tenants could name the tables of the schema tenantry, and so hold up emptying.
CREATE TABLE tenantry.remembered_slices (
    slice  smallint PRIMARY KEY,
    period bigint   NOT NULL
);
INSERT INTO tenantry.remembered_slices (slice, period) VALUES (0, 0), (1, 1), (2, 2);

DO $$
BEGIN
    FOR part IN 0..2 LOOP
        -- Nothing in it ever changes: what VACUUM does there, TRUNCATE does as well.
        EXECUTE format(
            'CREATE TABLE tenantry_fence.remembered_%s (
                 tenant integer NOT NULL, low bigint NOT NULL, high bigint NOT NULL
             ) WITH (autovacuum_enabled = false)', part);
        EXECUTE format('CREATE INDEX ON tenantry_fence.remembered_%s (tenant, low)', part);
    END LOOP;
END
$$;

-- Gives those of some ids that are remembered of a tenant's removed messages.
CREATE FUNCTION tenantry.remembered(p_number integer, p_ids text[]) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
    SELECT array_agg(given.id)
    FROM (SELECT g.id, hashtextextended(g.id, 0) AS low, hashtextextended(g.id, 1) AS high
          FROM unnest(p_ids) AS g(id) OFFSET 0) AS given
    WHERE EXISTS (SELECT FROM tenantry_fence.remembered_0 AS r
                  WHERE r.tenant = p_number AND r.low = given.low AND r.high = given.high)
       OR EXISTS (SELECT FROM tenantry_fence.remembered_1 AS r
                  WHERE r.tenant = p_number AND r.low = given.low AND r.high = given.high)
       OR EXISTS (SELECT FROM tenantry_fence.remembered_2 AS r
                  WHERE r.tenant = p_number AND r.low = given.low AND r.high = given.high)
$$;

-- Gives those of some ids that are remembered of a tenant, by its name; of most nothing is.
CREATE FUNCTION tenantry.remembered_of(p_tenant text, p_ids text[]) RETURNS SETOF text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
    known integer;
BEGIN
    SELECT c.remembers INTO known FROM tenantry.tenant_counters AS c WHERE c.tenant_id = p_tenant;
    IF known IS NOT NULL THEN
        RETURN QUERY SELECT unnest(tenantry.remembered(known, p_ids));
    END IF;
END
$$;

-- Stores a batch, as before (migration 0002); and stores nothing whose id is remembered.
--
-- Messages may be removed while this looks: their ids are found neither by the look at what is
-- remembered, which comes too early, nor by the insert, which comes too late. So what is inserted
-- is looked at again where anything of the tenant was removed in between.
CREATE OR REPLACE FUNCTION tenantry.store_messages(
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
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
-- A plan kept from when the counters were few would read all of them for ever.
SET enable_seqscan = off
AS $$
DECLARE
    base bigint;
    known integer;
    total integer := coalesce(array_length(p_ids, 1), 0);
    removed bigint;
    gone text[];
    again integer;
BEGIN
    SELECT position, remembers INTO base, known
    FROM tenantry.tenant_counters WHERE tenant_id = p_tenant FOR UPDATE;
    IF NOT FOUND THEN
        RAISE undefined_table USING MESSAGE = format('tenant %s has no partition', p_tenant);
    END IF;
    IF known IS NOT NULL THEN
        SELECT r.up_to INTO removed FROM tenantry.removals AS r WHERE r.number = known;
        gone := tenantry.remembered(known, p_ids);
    END IF;

    IF total > 0 THEN
        EXECUTE format(
            'INSERT INTO tenantry.%I
                (tenant_id, id, position, topic, partition, payload, body, content_type, headers,
                 published_at, created_at)
             SELECT $1, m.id, $2 + m.n, m.topic, m.partition, m.payload, m.body, m.content_type,
                    m.headers, m.published_at, $11
             FROM unnest($3, $4, $5, $6, $7, $8, $9, $10) WITH ORDINALITY
                AS m(id, topic, partition, payload, body, content_type, headers, published_at, n)'
            || CASE WHEN gone IS NULL THEN '' ELSE ' WHERE NOT (m.id = ANY($12))' END
            || ' ON CONFLICT (tenant_id, id) DO NOTHING',
            'messages_' || p_tenant)
        USING p_tenant, base, p_ids, p_topics, p_partitions, p_payloads, p_bodies,
            p_content_types, p_headers, p_published_at, clock_timestamp(), gone;
        GET DIAGNOSTICS stored = ROW_COUNT;
        IF known IS NOT NULL AND EXISTS (SELECT FROM tenantry.removals AS r
                                         WHERE r.number = known AND r.up_to > removed) THEN
            gone := tenantry.remembered(known, p_ids);
            IF gone IS NOT NULL THEN
                EXECUTE format('DELETE FROM tenantry.%I WHERE tenant_id = $1 AND id = ANY($2)
                                AND position > $3', 'messages_' || p_tenant)
                USING p_tenant, gone, base;
                GET DIAGNOSTICS again = ROW_COUNT;
                stored := stored - again;
            END IF;
        END IF;
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

-- Whose messages are limited in age or number: tenants are many, and most are not.
CREATE INDEX tenants_with_retention ON tenantry.tenants (id)
WHERE state #>> '{limits,retention_seconds}' IS NOT NULL
   OR state #>> '{limits,retention_rows}' IS NOT NULL;

-- Notes that a tenant's messages are about to be removed for the first time in days: whoever stores
-- after this looks at the ids that are remembered.
CREATE FUNCTION tenantry.begin_removing(p_tenant text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
    given integer;
BEGIN
    PERFORM FROM tenantry.tenant_counters AS c WHERE c.tenant_id = p_tenant FOR UPDATE;
    INSERT INTO tenantry.removals AS r (tenant_id) VALUES (p_tenant)
    ON CONFLICT (tenant_id) DO UPDATE SET latest = clock_timestamp()
    RETURNING r.number INTO given;
    UPDATE tenantry.tenant_counters AS c SET remembers = given WHERE c.tenant_id = p_tenant;
END
$$;

-- Removes the first of a tenant's messages, `p_most` of them at most, that are beyond its limits,
-- and remembers their ids. `more` are due at once, or the next one in `due` seconds (NULL: when
-- there are too many). `ready` is false where something is to be done before: `begin_removing`, or
-- `turn_remembered`.
--
-- Positions rise in the order of storing, so what is too old or too much is what comes first. The
-- limits are read here, in the transaction that removes: what was lifted removes nothing more.
CREATE FUNCTION tenantry.remove_messages(
    p_tenant text, p_most integer,
    OUT ready boolean, OUT aged integer, OUT crowded integer, OUT more boolean, OUT due float8
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
    leaf      text := 'messages_' || p_tenant;
    claim     text := coalesce(current_setting('tenantry.term', true), '');
    seconds   bigint;
    most_rows bigint;
    known     integer;
    held      bigint;
    start     bigint;
    latest    timestamptz;
    part      smallint;
    period    bigint;
    places    bigint[];
    stamps    timestamptz[];
    cutoff    timestamptz;
    too_old   integer := 0;
    too_many  bigint := 0;
    goes      integer;
    gone      integer;
BEGIN
    ready := true; aged := 0; crowded := 0; more := false;
    PERFORM tenantry.refuse_past_term();
    IF starts_with(claim, 'node:') THEN
        -- Held to the end: who is handed the tenant finds this done, or not begun.
        PERFORM FROM tenantry.owners AS o
        WHERE o.tenant_id = p_tenant AND o.node = substr(split_part(claim, '/', 1), 6) FOR SHARE;
        IF NOT FOUND THEN
            RETURN;
        END IF;
    END IF;
    SELECT (t.state #>> '{limits,retention_seconds}')::bigint,
           (t.state #>> '{limits,retention_rows}')::bigint
    INTO seconds, most_rows
    FROM tenantry.tenants AS t WHERE t.id = p_tenant AND t.lifecycle IN ('active', 'paused');
    SELECT c.remembers, c.stored - c.removed - coalesce(r.by_age + r.by_rows, 0),
           coalesce(r.up_to, 0), r.latest
    INTO known, held, start, latest
    FROM tenantry.tenant_counters AS c
    LEFT JOIN tenantry.removals AS r ON r.tenant_id = c.tenant_id COLLATE "C"
    WHERE c.tenant_id = p_tenant;
    IF NOT FOUND OR (seconds IS NULL AND most_rows IS NULL) THEN
        RETURN;
    END IF;

    too_many := greatest(0, held - most_rows);
    IF seconds IS NOT NULL THEN
        cutoff := clock_timestamp() - seconds * interval '1 second';
        EXECUTE format('SELECT ARRAY[created_at] FROM tenantry.%I WHERE position > $1
                        ORDER BY position LIMIT 1', leaf) INTO stamps USING start;
        due := greatest(0, extract(epoch FROM stamps[1] - cutoff));
    END IF;
    IF coalesce(too_many, 0) = 0 AND (due IS NULL OR due > 0) THEN
        RETURN;
    END IF;
    SELECT s.slice, s.period INTO part, period
    FROM tenantry.remembered_slices AS s ORDER BY s.period DESC LIMIT 1;
    IF known IS NULL OR latest < clock_timestamp() - interval '50 hours'
       OR period < floor(extract(epoch FROM clock_timestamp()) / 46800) THEN
        ready := false;
        RETURN;
    END IF;

    EXECUTE format('SELECT array_agg(f.position), array_agg(f.created_at)
                    FROM (SELECT position, created_at FROM tenantry.%I WHERE position > $1
                          ORDER BY position LIMIT $2) AS f', leaf)
    INTO places, stamps USING start, p_most;
    IF places IS NULL THEN
        -- Fewer are there than were counted: somebody has deleted some by hand.
        RETURN;
    END IF;
    IF cutoff IS NOT NULL THEN
        -- The last that is too old, and all before it, whatever the clock was then.
        SELECT coalesce(max(s.n), 0) INTO too_old
        FROM unnest(stamps) WITH ORDINALITY AS s(at, n) WHERE s.at < cutoff;
    END IF;
    goes := least(cardinality(places), greatest(too_old, coalesce(too_many, 0)));
    EXECUTE format(
        'WITH gone AS (DELETE FROM tenantry.%I WHERE position > $1 AND position <= $2 RETURNING id),
              kept AS (INSERT INTO tenantry_fence.%I (tenant, low, high)
                       SELECT $3, hashtextextended(g.id, 0), hashtextextended(g.id, 1)
                       FROM gone AS g)
         SELECT count(*) FROM gone', leaf, 'remembered_' || part)
    INTO gone USING start, places[goes], known;
    aged := least(gone, too_old);
    crowded := gone - aged;
    more := goes = p_most;
    UPDATE tenantry.removals AS r
    SET by_age = r.by_age + aged, by_rows = r.by_rows + crowded, latest = clock_timestamp(),
        up_to = places[goes]
    WHERE r.tenant_id = p_tenant;
END
$$;

-- Empties the oldest slice, if its turn has come to take what is removed now. Everybody who stores
-- waits behind this, so it waits for a moment only, and is to be tried again.
CREATE FUNCTION tenantry.turn_remembered() RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    now_is bigint := floor(extract(epoch FROM clock_timestamp()) / 46800);
    oldest smallint;
BEGIN
    PERFORM tenantry.hold('remembered');
    IF (SELECT max(s.period) FROM tenantry.remembered_slices AS s) >= now_is THEN
        RETURN false;
    END IF;
    SELECT s.slice INTO oldest FROM tenantry.remembered_slices AS s ORDER BY s.period LIMIT 1;
    SET LOCAL lock_timeout = '100ms';
    EXECUTE format('TRUNCATE tenantry_fence.%I', 'remembered_' || oldest);
    UPDATE tenantry.remembered_slices AS s SET period = now_is WHERE s.slice = oldest;
    RETURN true;
END
$$;

-- Has nothing looked up any more for tenants of which no id is remembered: none was removed for as
-- long as three slices take. Two hours before, `remove_messages` wants `begin_removing` again.
CREATE FUNCTION tenantry.forget_removed(p_tenants text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
BEGIN
    PERFORM FROM tenantry.tenant_counters AS c
    WHERE c.tenant_id = ANY(p_tenants) ORDER BY c.tenant_id FOR UPDATE;
    UPDATE tenantry.tenant_counters AS c SET remembers = NULL
    FROM tenantry.removals AS r
    WHERE r.tenant_id = c.tenant_id COLLATE "C" AND c.tenant_id = ANY(p_tenants)
      AND r.latest < clock_timestamp() - interval '52 hours' AND c.remembers IS NOT NULL;
END
$$;

-- What has gone with a tenant's counters.
CREATE FUNCTION tenantry.forget_removals() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
BEGIN
    DELETE FROM tenantry.removals AS r WHERE r.tenant_id = OLD.tenant_id;
    RETURN NULL;
END
$$;

CREATE TRIGGER removals_go_with_it AFTER DELETE ON tenantry.tenant_counters
FOR EACH ROW EXECUTE FUNCTION tenantry.forget_removals();

-- As before (migration 0018), but for what was removed.
CREATE OR REPLACE FUNCTION tenantry.set_aside(p_tenant text, p_incarnation integer) RETURNS boolean
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
           coalesce(c.dead_lettered, 0),
           coalesce(c.removed, 0) + coalesce(r.by_age + r.by_rows, 0)
    FROM (VALUES (1)) AS one
    LEFT JOIN counted AS c ON true
    LEFT JOIN tenantry.removals AS r ON r.tenant_id = p_tenant;
    RETURN true;
END
$$;
