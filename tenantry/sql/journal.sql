-- The journal's queries. How an append locks and why stands with tenantry.append_events in
-- migrations 0001 and 0040: it is a function so that lock, checks and insert take one round trip.

-- name: append
SELECT event_id, at_position, at_version, at_time
FROM tenantry.append_events(
    %(stream)s::text, %(expected)s::integer, %(ids)s::uuid[], %(types)s::text[],
    %(schema_versions)s::integer[], %(data)s::text[]::jsonb[], %(metadata)s::jsonb,
    %(new_ids)s::boolean)
ORDER BY at_position;

-- name: head
SELECT position FROM tenantry.journal_head;

-- name: channel
SELECT name FROM tenantry.channels WHERE purpose = 'events';

-- name: lock_head
-- Whoever holds this row is alone: no append commits until it lets go.
SELECT position FROM tenantry.journal_head FOR UPDATE;

-- name: read_stream
SELECT position, stream, version, id, type, schema_version, data, metadata, recorded_at
FROM tenantry.events
WHERE stream = %(stream)s AND version > %(after)s
ORDER BY version
LIMIT %(limit)s;

-- name: read_all
-- No lock: positions are committed in order, so nothing can still appear below what is seen.
SELECT position, stream, version, id, type, schema_version, data, metadata, recorded_at
FROM tenantry.events
WHERE position > %(after)s
ORDER BY position
LIMIT %(limit)s;

-- name: read_all_of_parts
-- As read_all, with a look at the parts alone that the next positions are in.
SELECT position, stream, version, id, type, schema_version, data, metadata, recorded_at
FROM tenantry.events
WHERE position > %(after)s AND part BETWEEN %(first)s AND %(last)s
ORDER BY position
LIMIT %(limit)s;

-- name: beginnings
SELECT first_position, part FROM tenantry.journal_parts ORDER BY part;

-- name: read_categories
-- Each category by its own index: a rare category must not cost a walk past all the others.
SELECT position, stream, version, id, type, schema_version, data, metadata, recorded_at
FROM unnest(%(categories)s::text[]) AS wanted (category)
CROSS JOIN LATERAL (
    SELECT e.*
    FROM tenantry.events AS e
    WHERE e.category = wanted.category AND e.position > %(after)s
    ORDER BY e.position
    LIMIT %(limit)s
) AS found
ORDER BY position
LIMIT %(limit)s;

-- name: read_streams
SELECT position, stream, version, id, type, schema_version, data, metadata, recorded_at
FROM unnest(%(streams)s::text[]) AS wanted (stream_name)
CROSS JOIN LATERAL (
    SELECT e.*
    FROM tenantry.events AS e
    WHERE e.stream = wanted.stream_name AND e.position > %(after)s
    ORDER BY e.position
    LIMIT %(limit)s
) AS found
ORDER BY position
LIMIT %(limit)s;

-- name: save_snapshot
-- Of two that save at once the newer one stays, whichever comes last.
INSERT INTO tenantry.snapshots AS kept (stream, version, schema_version, data)
VALUES (%(stream)s, %(version)s, %(schema_version)s, %(data)s::jsonb)
ON CONFLICT (stream) DO UPDATE
SET version = excluded.version, schema_version = excluded.schema_version,
    data = excluded.data, taken_at = excluded.taken_at
WHERE (kept.schema_version, kept.version) <= (excluded.schema_version, excluded.version);

-- name: load_snapshot
SELECT version, schema_version, data FROM tenantry.snapshots WHERE stream = %(stream)s;

-- name: load_base
-- The latest known: whole parts are archived, in order.
SELECT version, schema_version, state FROM tenantry.archived_streams
WHERE stream = %(stream)s
ORDER BY part DESC
LIMIT 1;

-- name: archived_of_stream
-- What is archived of a stream above a version: up to which position, and where.
SELECT max(p.last_position), max(p.last_at), array_agg(p.archive ORDER BY p.part)
FROM tenantry.archived_streams AS a JOIN tenantry.journal_parts AS p ON p.part = a.part
WHERE a.stream = %(stream)s AND a.version > %(after)s;

-- name: archived_of_streams
SELECT max(p.last_position), max(p.last_at), array_agg(p.archive ORDER BY p.part)
FROM tenantry.journal_parts AS p
WHERE p.last_position > %(after)s AND p.part IN (
    SELECT a.part FROM tenantry.archived_streams AS a
    WHERE a.stream = ANY(%(streams)s::text[]) AND a.position > %(after)s);

-- name: archived
SELECT max(p.last_position), max(p.last_at), array_agg(p.archive ORDER BY p.part)
FROM tenantry.journal_parts AS p
WHERE p.archived_at IS NOT NULL AND p.last_position > %(after)s;
