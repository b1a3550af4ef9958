-- The journal in parts, so that old ones can be archived: taken out as a whole, in a moment.
--
-- A part is what was appended from one position to another. It is told by its number, which is a
-- column of the events, and not by positions: so a part can end wherever the journal is, and the
-- next begin, without a look at a single row.

-- The table that is there becomes the first part as it is. That its events are all of part 1 has to
-- be looked at once. It is, while events are read and appended: two steps, and then only names change.
ALTER TABLE tenantry.events ADD COLUMN IF NOT EXISTS part integer NOT NULL DEFAULT 1;
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_constraint AS c
                   WHERE c.conrelid = 'tenantry.events'::regclass AND c.conname = 'of_part')
    THEN
        ALTER TABLE tenantry.events ADD CONSTRAINT of_part CHECK (part = 1) NOT VALID;
    END IF;
END
$$;

-- step
ALTER TABLE tenantry.events VALIDATE CONSTRAINT of_part;

-- step
-- First the head, as appends do: they hold it when they come to the table.
ALTER TABLE tenantry.journal_head ADD COLUMN part integer NOT NULL DEFAULT 1;
ALTER TABLE tenantry.events RENAME TO events_1;
CREATE TABLE tenantry.events (
    position       bigint      NOT NULL,
    stream         text        COLLATE "C" NOT NULL,
    version        integer     NOT NULL CONSTRAINT events_version_check CHECK (version > 0),
    id             uuid        NOT NULL,
    type           text        NOT NULL,
    schema_version integer     NOT NULL,
    data           jsonb       NOT NULL,
    metadata       jsonb       NOT NULL,
    recorded_at    timestamptz NOT NULL,
    category       text        COLLATE "C" NOT NULL
                   GENERATED ALWAYS AS (split_part(stream, '-', 1)) STORED,
    part           integer     NOT NULL
) PARTITION BY LIST (part);
ALTER TABLE tenantry.events ATTACH PARTITION tenantry.events_1 FOR VALUES IN (1);
CREATE TRIGGER events_append_only
    BEFORE UPDATE OR DELETE OR TRUNCATE ON tenantry.events
    FOR EACH STATEMENT EXECUTE FUNCTION tenantry.refuse_change();

-- The parts there have been. The last one is open: it has no end yet, and is appended to. The
-- others are never written again. Archived are the oldest ones, without a gap: `archive` is where
-- the events are (host:path), `digest` and `events` what is to be found there.
CREATE TABLE tenantry.journal_parts (
    part           integer     PRIMARY KEY,
    first_position bigint      NOT NULL,
    first_at       timestamptz,
    last_position  bigint,
    last_at        timestamptz,
    events         bigint,
    digest         bytea,
    archive        text,
    archived_at    timestamptz
);
INSERT INTO tenantry.journal_parts (part, first_position, first_at)
VALUES (1, 1, (SELECT e.recorded_at FROM tenantry.events AS e ORDER BY e.position LIMIT 1));

-- Where a stream was at the end of an archived part that has events of it: what is kept goes on from
-- there. With the state of a tenant, as snapshots have it, for it can't be folded any more.
CREATE TABLE tenantry.archived_streams (
    stream         text        COLLATE "C" NOT NULL,
    part           integer     NOT NULL,
    version        integer     NOT NULL,
    position       bigint      NOT NULL,
    recorded_at    timestamptz NOT NULL,
    schema_version integer,
    state          jsonb,
    PRIMARY KEY (stream, part)
);
CREATE INDEX archived_streams_part ON tenantry.archived_streams (part);

-- Each event as a line of an archive: JSON, always the same for the same event.
CREATE VIEW tenantry.event_lines AS
SELECT e.part, e.position, format(
    '{"position": %s, "stream": %s, "version": %s, "id": "%s", "type": %s, "schema_version": %s, '
    '"recorded_at": "%s", "metadata": %s, "data": %s}',
    e.position, to_json(e.stream), e.version, e.id, to_json(e.type), e.schema_version,
    to_char(e.recorded_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
    e.metadata, e.data) AS line
FROM tenantry.events AS e;

-- Makes the table of a part, with everything the others have, and gives its name.
CREATE FUNCTION tenantry.make_part(p_part integer) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    leaf text := 'events_' || p_part;
BEGIN
    EXECUTE format('CREATE TABLE tenantry.%I (LIKE tenantry.events INCLUDING ALL)', leaf);
    EXECUTE format(
        'ALTER TABLE tenantry.%I ADD PRIMARY KEY (position), ADD UNIQUE (id),
         ADD UNIQUE (stream, version), ADD CONSTRAINT of_part CHECK (part = %s)', leaf, p_part);
    EXECUTE format('CREATE INDEX ON tenantry.%I (category, position)', leaf);
    EXECUTE format('CREATE INDEX ON tenantry.%I (stream, position)', leaf);
    EXECUTE format(
        'CREATE TRIGGER events_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON tenantry.%I
         FOR EACH STATEMENT EXECUTE FUNCTION tenantry.refuse_change()', leaf);
    RETURN leaf;
END
$$;

-- Attaches the table of the next part but one: a part is begun whose table was attached before.
--
-- For a moment after a commit others see its rows and not yet its tables: an append would be told of
-- a part, and find none.
CREATE FUNCTION tenantry.attach_spare_part(p_part integer) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('ALTER TABLE tenantry.events ATTACH PARTITION tenantry.%I FOR VALUES IN (%s)',
                   tenantry.make_part(p_part), p_part);
END
$$;
SELECT tenantry.attach_spare_part(2);

-- Ends the open part and begins the next, if it has so many events, or began in a month (UTC) that
-- is over. Gives the new part's number, or NULL where there was nothing to do.
--
-- Appends wait for a moment. While another does the same, or archives or restores a part and so has
-- the rows of all of them, there is nothing to do either.
CREATE FUNCTION tenantry.begin_part(p_most bigint) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    head  tenantry.journal_head;
    ended tenantry.journal_parts;
BEGIN
    SELECT * INTO ended FROM tenantry.journal_parts AS p
    WHERE p.last_position IS NULL FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    SELECT * INTO STRICT head FROM tenantry.journal_head AS h FOR UPDATE;
    SELECT e.recorded_at INTO ended.first_at
    FROM tenantry.events AS e WHERE e.part = ended.part ORDER BY e.position LIMIT 1;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    IF head.position - ended.first_position + 1 < p_most
       AND date_trunc('month', ended.first_at, 'UTC') >= date_trunc('month', clock_timestamp(), 'UTC')
    THEN
        RETURN NULL;
    END IF;
    PERFORM tenantry.attach_spare_part(head.part + 2);
    UPDATE tenantry.journal_parts AS p
    SET first_at = ended.first_at, last_position = head.position, last_at = head.recorded_at,
        events = head.position - p.first_position + 1
    WHERE p.part = head.part;
    INSERT INTO tenantry.journal_parts (part, first_position)
    VALUES (head.part + 1, head.position + 1);
    UPDATE tenantry.journal_head AS h SET part = head.part + 1;
    RETURN head.part + 1;
END
$$;

-- As before (migration 0016), in parts: it appends to the open one, and looks there first. A stream
-- that has no event in it is looked for in those before, and in what is known of archived ones. So
-- what an append costs does not grow with the parts, but for the first of a stream in one.
--
-- p_new_ids says that the ids were made just now: nobody has appended them, none is looked for.
DROP FUNCTION tenantry.append_events(text, integer, uuid[], text[], integer[], jsonb[], jsonb);
CREATE FUNCTION tenantry.append_events(
    p_stream          text,
    p_expected        integer,
    p_ids             uuid[],
    p_types           text[],
    p_schema_versions integer[],
    p_data            jsonb[],
    p_metadata        jsonb,
    p_new_ids         boolean DEFAULT false
) RETURNS TABLE (event_id uuid, at_position bigint, at_version integer, at_time timestamptz)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    head   bigint;
    moment timestamptz;
    latest integer;
    actual integer;
    fresh  integer[];
BEGIN
    SELECT h.position, h.recorded_at, h.part INTO STRICT head, moment, latest
    FROM tenantry.journal_head AS h FOR UPDATE;
    moment := greatest(moment, clock_timestamp());

    IF p_new_ids THEN
        fresh := ARRAY(SELECT generate_series(1, cardinality(p_ids)));
    ELSE
        SELECT array_agg(first.n ORDER BY first.n) INTO fresh
        FROM (
            SELECT min(given.n)::integer AS n
            FROM unnest(p_ids) WITH ORDINALITY AS given (id, n)
            WHERE (SELECT e.position FROM tenantry.events AS e WHERE e.id = given.id LIMIT 1) IS NULL
            GROUP BY given.id
        ) AS first;
        IF fresh IS NULL THEN
            RETURN;
        END IF;
    END IF;

    SELECT e.version INTO actual FROM tenantry.events AS e
    WHERE e.part = latest AND e.stream = p_stream ORDER BY e.version DESC LIMIT 1;
    IF actual IS NULL AND latest > 1 THEN
        SELECT e.version INTO actual FROM tenantry.events AS e
        WHERE e.stream = p_stream ORDER BY e.version DESC LIMIT 1;
        IF actual IS NULL THEN
            SELECT a.version INTO actual FROM tenantry.archived_streams AS a
            WHERE a.stream = p_stream ORDER BY a.part DESC LIMIT 1;
        END IF;
    END IF;
    actual := coalesce(actual, 0);
    IF actual <> p_expected THEN
        RETURN QUERY SELECT NULL::uuid, NULL::bigint, actual, NULL::timestamptz;
        RETURN;
    END IF;

    RETURN QUERY
    INSERT INTO tenantry.events AS e
        (position, stream, version, id, type, schema_version, data, metadata, recorded_at, part)
    SELECT head + taken.o, p_stream, actual + taken.o, p_ids[taken.n], p_types[taken.n],
           p_schema_versions[taken.n], p_data[taken.n], p_metadata, moment, latest
    FROM unnest(fresh) WITH ORDINALITY AS taken (n, o)
    RETURNING e.id, e.position, e.version, e.recorded_at;

    head := head + cardinality(fresh);
    UPDATE tenantry.journal_head AS h SET position = head, recorded_at = moment;
    -- Delivered at commit: who hears it can read the events.
    PERFORM tenantry.tell('events', head::text);
END
$$;

-- The new tables are written only under the term, like every table of daemons.
SELECT tenantry.fence_tables();
