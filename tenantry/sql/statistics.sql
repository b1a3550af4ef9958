-- What became of tenants' messages over time.

-- name: note
SELECT tenantry.note_statistics(%(at)s::timestamptz, %(tenants)s::text[], %(backlogs)s::bigint[],
                                %(latencies)s::integer[], %(bounds)s);

-- name: forget_gone
-- Of a tenant that went as the marks were made: its deletion had looked for one before that.
DELETE FROM tenantry.statistics_marks AS m
WHERE m.tenant_id = ANY(%(tenants)s::text[])
  AND NOT EXISTS (SELECT FROM tenantry.tenant_counters AS c
                  WHERE c.tenant_id = m.tenant_id COLLATE "default");

-- name: read
SELECT at, stored, duplicates, dead_lettered, backlog, latencies
FROM tenantry.statistics
WHERE tenant_id = %(tenant)s AND step = %(step)s AND at >= %(start)s AND at < %(end)s
ORDER BY at;
