-- The read model of tenants, and the credentials' hashes.

-- name: get
SELECT state FROM tenantry.tenants WHERE id = %(id)s;

-- name: get_many
-- No lock: whoever writes here holds the journal's head.
SELECT id, state FROM tenantry.tenants WHERE id = ANY(%(ids)s::text[]);

-- name: page
SELECT state FROM tenantry.tenants
WHERE lifecycle <> 'deleted' AND id > %(after)s
ORDER BY id
LIMIT %(limit)s;

-- name: search
SELECT id, state ->> 'name', lifecycle FROM tenantry.tenants
WHERE lifecycle <> 'deleted'
  AND strpos(lower(id || E'\n' || (state ->> 'name')), lower(%(text)s::text)) > 0
ORDER BY id;

-- name: bases
-- The states with which begins what is kept of tenants, where older events are archived; of these
-- streams, or of all. The latest known of each: whole parts are archived, in order.
SELECT DISTINCT ON (stream) stream, version, schema_version, state FROM tenantry.archived_streams
WHERE state IS NOT NULL AND (%(streams)s::text[] IS NULL OR stream = ANY(%(streams)s::text[]))
ORDER BY stream, part DESC;

-- name: put
INSERT INTO tenantry.tenants (id, version, lifecycle, state, created_at, updated_at)
SELECT * FROM unnest(
    %(ids)s::text[], %(versions)s::integer[], %(lifecycles)s::text[],
    %(states)s::text[]::jsonb[], %(created)s::timestamptz[], %(updated)s::timestamptz[])
ON CONFLICT (id) DO UPDATE
SET version = excluded.version, lifecycle = excluded.lifecycle, state = excluded.state,
    created_at = excluded.created_at, updated_at = excluded.updated_at;

-- name: clear
-- Not TRUNCATE: readers keep seeing the old rows until the new ones are committed.
DELETE FROM tenantry.tenants;

-- name: save_checkpoint
INSERT INTO tenantry.projection_checkpoints (name, shape, position)
VALUES (%(name)s, %(shape)s, %(position)s)
ON CONFLICT (name) DO UPDATE
SET shape = excluded.shape, position = excluded.position, updated_at = excluded.updated_at;

-- name: is_current
-- A row's version is the number of its tenant's events, and never more: where the sums agree no
-- event has been missed. Of archived events the last one's version tells how many there were.
-- One statement, one snapshot: no lock.
SELECT EXISTS (SELECT FROM tenantry.projection_checkpoints
               WHERE name = %(name)s AND shape = %(shape)s)
   AND (SELECT count(*) FROM tenantry.events WHERE category = %(category)s)
     + (SELECT coalesce(sum(version), 0) FROM (
            SELECT DISTINCT ON (stream) version FROM tenantry.archived_streams
            WHERE state IS NOT NULL ORDER BY stream, part DESC) AS archived)
     = (SELECT coalesce(sum(version), 0) FROM tenantry.tenants);

-- name: propose_producer_credentials
INSERT INTO tenantry.credentials (tenant_id, pending_hash) VALUES (%(id)s, %(hash)s)
ON CONFLICT (tenant_id) DO UPDATE SET pending_hash = excluded.pending_hash;

-- name: confirm_producer_credentials
UPDATE tenantry.credentials
SET password_hash = pending_hash, pending_hash = NULL, set_at = clock_timestamp()
WHERE tenant_id = ANY(%(ids)s::text[]) AND pending_hash IS NOT NULL;

-- name: load_producer_credentials
SELECT password_hash FROM tenantry.credentials
WHERE tenant_id = %(id)s AND password_hash IS NOT NULL;

-- name: all_producer_credentials
SELECT tenant_id, password_hash FROM tenantry.credentials WHERE password_hash IS NOT NULL;

-- name: remove_producer_credentials
DELETE FROM tenantry.credentials WHERE tenant_id = ANY(%(ids)s::text[]);

-- name: propose_consumer_credentials
INSERT INTO tenantry.consumer_credentials (tenant_id, pending_hash) VALUES (%(id)s, %(hash)s)
ON CONFLICT (tenant_id) DO UPDATE SET pending_hash = excluded.pending_hash;

-- name: confirm_consumer_credentials
UPDATE tenantry.consumer_credentials
SET password_hash = pending_hash, pending_hash = NULL, set_at = clock_timestamp()
WHERE tenant_id = ANY(%(ids)s::text[]) AND pending_hash IS NOT NULL;

-- name: load_consumer_credentials
SELECT password_hash FROM tenantry.consumer_credentials
WHERE tenant_id = %(id)s AND password_hash IS NOT NULL;

-- name: all_consumer_credentials
SELECT tenant_id, password_hash FROM tenantry.consumer_credentials WHERE password_hash IS NOT NULL;

-- name: remove_consumer_credentials
DELETE FROM tenantry.consumer_credentials WHERE tenant_id = ANY(%(ids)s::text[]);
