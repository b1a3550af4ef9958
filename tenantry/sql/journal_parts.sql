-- The parts of the journal (migration 0040): listed, archived, restored.

-- name: listed
SELECT p.part, p.first_position, p.last_position,
       coalesce(p.first_at, (SELECT e.recorded_at FROM tenantry.events AS e
                             WHERE e.part = p.part ORDER BY e.position LIMIT 1)),
       CASE WHEN h.part = p.part AND h.position >= p.first_position
            THEN h.recorded_at ELSE p.last_at END,
       coalesce(p.events, h.position - p.first_position + 1),
       h.part = p.part, encode(p.digest, 'hex'), p.archive, p.archived_at
FROM tenantry.journal_parts AS p CROSS JOIN tenantry.journal_head AS h
ORDER BY p.part;

-- name: begin
SELECT tenantry.begin_part(%(most)s);

-- name: lines
SELECT position, line FROM tenantry.event_lines
WHERE part = %(part)s AND position > %(after)s
ORDER BY position
LIMIT %(limit)s;

-- name: lock
-- Who archives or restores a part has the rows of all; a second one need not wait to be told no.
SELECT part FROM tenantry.journal_parts ORDER BY part FOR UPDATE NOWAIT;

-- name: digest
-- By the index of positions: what is aggregated comes in their order.
SELECT count(*),
       encode(sha256(coalesce(string_agg(sha256(convert_to(line, 'UTF8')), ''::bytea
                                         ORDER BY position), ''::bytea)), 'hex')
FROM tenantry.event_lines WHERE part = %(part)s;

-- name: streams
SELECT stream, max(version), max(position), max(recorded_at)
FROM tenantry.events WHERE part = %(part)s GROUP BY stream ORDER BY stream;

-- name: tenants_events
SELECT position, stream, version, id, type, schema_version, data, metadata, recorded_at
FROM tenantry.events
WHERE part = %(part)s AND category = %(category)s AND position > %(after)s
ORDER BY position
LIMIT %(limit)s;

-- name: keep_streams
INSERT INTO tenantry.archived_streams
    (part, stream, version, position, recorded_at, schema_version, state)
SELECT %(part)s, * FROM unnest(
    %(streams)s::text[], %(versions)s::integer[], %(positions)s::bigint[],
    %(times)s::timestamptz[], %(schemas)s::integer[], %(states)s::text[]::jsonb[]);

-- name: archived
UPDATE tenantry.journal_parts
SET digest = decode(%(digest)s, 'hex'), archive = %(archive)s, archived_at = clock_timestamp()
WHERE part = %(part)s;

-- name: forget_streams
DELETE FROM tenantry.archived_streams WHERE part = %(part)s;

-- name: restored
UPDATE tenantry.journal_parts SET digest = NULL, archive = NULL, archived_at = NULL
WHERE part = %(part)s;
