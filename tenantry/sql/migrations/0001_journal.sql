-- The journal and what is derived from it. (The schema itself is made with the table of
-- migrations.) Every name is written out in full, so that nobody's search_path has a say.

CREATE TABLE tenantry.events (
    position       bigint      PRIMARY KEY,
    stream         text        COLLATE "C" NOT NULL,
    version        integer     NOT NULL CHECK (version > 0),
    id             uuid        NOT NULL UNIQUE,
    type           text        NOT NULL,
    schema_version integer     NOT NULL,
    data           jsonb       NOT NULL,
    metadata       jsonb       NOT NULL,
    recorded_at    timestamptz NOT NULL,
    category       text        COLLATE "C" NOT NULL
                   GENERATED ALWAYS AS (split_part(stream, '-', 1)) STORED,
    UNIQUE (stream, version)
);
CREATE INDEX events_category_position ON tenantry.events (category, position);
CREATE INDEX events_stream_position ON tenantry.events (stream, position);

-- What has happened stays: the table only grows.
CREATE FUNCTION tenantry.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the journal is append-only: % of tenantry.events is refused', TG_OP
        USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER events_append_only
    BEFORE UPDATE OR DELETE OR TRUNCATE ON tenantry.events
    FOR EACH STATEMENT EXECUTE FUNCTION tenantry.refuse_change();

-- The journal's head: the last position given out, and when.
--
-- Every append locks this one row until it commits. So positions are dense and rise in commit
-- order, and a reader who has seen position N has seen all below N. (An identity column would
-- hand out its values in the order of the INSERTs: a slower transaction's lower position would
-- appear behind the reader's back.) Times rise with positions for the same reason.
CREATE TABLE tenantry.journal_head (
    only_row    boolean     PRIMARY KEY DEFAULT true CHECK (only_row),
    position    bigint      NOT NULL,
    recorded_at timestamptz NOT NULL
) WITH (fillfactor = 10);
INSERT INTO tenantry.journal_head (position, recorded_at) VALUES (0, clock_timestamp());

CREATE FUNCTION tenantry.refuse_rewind() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.position >= OLD.position THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'the head of the journal only moves on'
        USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER journal_head_moves_on
    BEFORE UPDATE OR DELETE ON tenantry.journal_head
    FOR EACH ROW EXECUTE FUNCTION tenantry.refuse_rewind();

-- Appends events to a stream, all or none, in one round trip.
--
-- p_expected is the version the stream must have, NULL for any. Events whose id the journal holds
-- are passed over. Returns a row for each event recorded; or, where the version is another, one
-- row without a position that holds the stream's actual version.
--
-- The lock comes first: under READ COMMITTED each statement after it sees what was committed
-- before it was granted. As one statement with the lock it would see the stream as it was before
-- the wait.
--
-- Plans are kept for a session: one made while the table was small would walk through all of it
-- when it is large. Hence the index is insisted upon, and ids are looked up one by one.
CREATE FUNCTION tenantry.append_events(
    p_stream          text,
    p_expected        integer,
    p_ids             uuid[],
    p_types           text[],
    p_schema_versions integer[],
    p_data            jsonb[],
    p_metadata        jsonb
) RETURNS TABLE (event_id uuid, at_position bigint, at_version integer, at_time timestamptz)
LANGUAGE plpgsql SET enable_seqscan = off AS $$
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
    PERFORM pg_notify('tenantry_events', head::text);
END
$$;

-- A stream's folded state as of a version, so that a long stream need not be read from its start.
CREATE TABLE tenantry.snapshots (
    stream         text        COLLATE "C" PRIMARY KEY,
    version        integer     NOT NULL,
    schema_version integer     NOT NULL,
    data           jsonb       NOT NULL,
    taken_at       timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- The tenants as they are: a read model, written in the transaction that appends the events. It
-- can be thrown away at any time and rebuilt from them.
CREATE TABLE tenantry.tenants (
    id         text        COLLATE "C" PRIMARY KEY,
    version    integer     NOT NULL,
    lifecycle  text        NOT NULL,
    state      jsonb       NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
CREATE INDEX tenants_existing ON tenantry.tenants (id) WHERE lifecycle <> 'deleted';

-- In which shape each read model is written, and how far the journal was when it was last built
-- from the start.
CREATE TABLE tenantry.projection_checkpoints (
    name       text        PRIMARY KEY,
    shape      integer     NOT NULL,
    position   bigint      NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Salted hashes in the broker's own format, never a password: enough to give a broker that has
-- lost its users theirs back.
CREATE TABLE tenantry.credentials (
    tenant_id     text        COLLATE "C" PRIMARY KEY,
    password_hash text        NOT NULL,
    set_at        timestamptz NOT NULL DEFAULT clock_timestamp()
);
