-- Removing stored messages, and remembering their ids.

-- name: limited
-- By an index that has these tenants only.
SELECT t.id, (t.state #>> '{limits,retention_seconds}')::bigint,
       (t.state #>> '{limits,retention_rows}')::bigint,
       coalesce(greatest(0, c.stored - c.removed - coalesce(r.by_age + r.by_rows, 0)
                            - (t.state #>> '{limits,retention_rows}')::bigint), 0),
       coalesce(r.by_age, 0), coalesce(r.by_rows, 0)
FROM tenantry.tenants AS t
JOIN tenantry.tenant_counters AS c ON c.tenant_id = t.id COLLATE "default"
LEFT JOIN tenantry.removals AS r ON r.tenant_id = t.id
WHERE t.lifecycle IN ('active', 'paused')
  AND (t.state #>> '{limits,retention_seconds}' IS NOT NULL
       OR t.state #>> '{limits,retention_rows}' IS NOT NULL);

-- name: remove
SELECT ready, aged, crowded, more, due FROM tenantry.remove_messages(%(tenant)s, %(most)s);

-- name: turn
SELECT tenantry.turn_remembered();

-- name: begin
SELECT tenantry.begin_removing(%(tenant)s);

-- name: long_past
-- An id is remembered for as long as three slices take at most; see migration 0031.
SELECT r.tenant_id FROM tenantry.removals AS r
JOIN tenantry.tenant_counters AS c ON c.tenant_id = r.tenant_id COLLATE "default"
WHERE r.latest < clock_timestamp() - interval '52 hours' AND c.remembers IS NOT NULL;

-- name: forget
SELECT tenantry.forget_removed(%(ids)s::text[]);
