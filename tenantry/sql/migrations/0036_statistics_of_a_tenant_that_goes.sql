-- As before (migration 0032), but for who notes the tenant's statistics at this very moment: what is
-- not committed yet would not be seen here, and be the next tenant's of the id. Whoever notes them
-- holds the tenant's mark, which is waited for; who waits for this one finds no counters any more.
CREATE OR REPLACE FUNCTION tenantry.forget_removals() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
BEGIN
    DELETE FROM tenantry.removals AS r WHERE r.tenant_id = OLD.tenant_id;
    INSERT INTO tenantry.statistics_marks AS m (tenant_id) VALUES (OLD.tenant_id)
    ON CONFLICT (tenant_id) DO UPDATE SET stored = m.stored;
    DELETE FROM tenantry.statistics AS s WHERE s.tenant_id = OLD.tenant_id;
    DELETE FROM tenantry.statistics_marks AS m WHERE m.tenant_id = OLD.tenant_id;
    RETURN NULL;
END
$$;
