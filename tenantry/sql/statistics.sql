-- What became of tenants' messages over time.

-- name: note
SELECT tenantry.note_statistics(%(at)s::timestamptz, %(tenants)s::text[], %(backlogs)s::bigint[],
                                %(latencies)s::integer[], %(bounds)s);

-- name: read
SELECT at, stored, duplicates, dead_lettered, backlog, latencies
FROM tenantry.statistics
WHERE tenant_id = %(tenant)s AND step = %(step)s AND at >= %(start)s AND at < %(end)s
ORDER BY at;
