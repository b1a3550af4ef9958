-- Calls of publishing that were refused.

-- name: add
-- In one order, as several processes may count the same tenants'. Of a tenant that is no more
-- nothing is counted.
INSERT INTO tenantry.refused_publishes AS r (tenant_id, incarnation, reason, count)
SELECT g.tenant_id, g.incarnation, g.reason, g.count
FROM unnest(%(tenants)s::text[], %(incarnations)s::integer[], %(reasons)s::text[],
            %(counts)s::bigint[]) AS g(tenant_id, incarnation, reason, count)
JOIN tenantry.tenant_counters AS c
  ON c.tenant_id = g.tenant_id AND c.incarnation = g.incarnation
ORDER BY g.tenant_id COLLATE "C", g.incarnation, g.reason
ON CONFLICT (tenant_id, incarnation, reason) DO UPDATE SET count = r.count + excluded.count;

-- name: totals
SELECT r.tenant_id, r.reason, r.count
FROM tenantry.refused_publishes AS r
JOIN tenantry.tenant_counters AS c
  ON c.tenant_id = r.tenant_id COLLATE "default" AND c.incarnation = r.incarnation;
