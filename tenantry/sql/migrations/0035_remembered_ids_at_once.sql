-- Gives those of some ids that are remembered of a tenant's removed messages, as before (migration
-- 0031). Nearly always that is none, which one look for all of them tells, at a fraction of the
-- cost of a look for each.
CREATE OR REPLACE FUNCTION tenantry.remembered(p_number integer, p_ids text[]) RETURNS text[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off AS $$
DECLARE
    lows bigint[] := ARRAY(SELECT hashtextextended(g.id, 0) FROM unnest(p_ids) AS g(id));
BEGIN
    IF NOT EXISTS (SELECT FROM tenantry_fence.remembered_0 AS r
                   WHERE r.tenant = p_number AND r.low = ANY(lows))
       AND NOT EXISTS (SELECT FROM tenantry_fence.remembered_1 AS r
                       WHERE r.tenant = p_number AND r.low = ANY(lows))
       AND NOT EXISTS (SELECT FROM tenantry_fence.remembered_2 AS r
                       WHERE r.tenant = p_number AND r.low = ANY(lows))
    THEN
        RETURN NULL;
    END IF;
    RETURN (
        SELECT array_agg(given.id)
        FROM (SELECT g.id, hashtextextended(g.id, 0) AS low, hashtextextended(g.id, 1) AS high
              FROM unnest(p_ids) AS g(id) OFFSET 0) AS given
        WHERE EXISTS (SELECT FROM tenantry_fence.remembered_0 AS r
                      WHERE r.tenant = p_number AND r.low = given.low AND r.high = given.high)
           OR EXISTS (SELECT FROM tenantry_fence.remembered_1 AS r
                      WHERE r.tenant = p_number AND r.low = given.low AND r.high = given.high)
           OR EXISTS (SELECT FROM tenantry_fence.remembered_2 AS r
                      WHERE r.tenant = p_number AND r.low = given.low AND r.high = given.high));
END
$$;
