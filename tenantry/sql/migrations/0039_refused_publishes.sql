-- How many calls of publishing were refused over HTTP, and why: any node answers them, and the
-- tenant's own shows them.

-- Written once in some seconds by whoever has refused any. Of a former tenant of the id nothing is
-- shown any more; what is written as it goes is left behind, and goes with the next one.
CREATE TABLE tenantry.refused_publishes (
    tenant_id   text    COLLATE "C" NOT NULL,
    incarnation integer NOT NULL,
    reason      text    NOT NULL,
    count       bigint  NOT NULL,
    PRIMARY KEY (tenant_id, incarnation, reason)
) WITH (fillfactor = 50);

-- As before (migration 0036), but for what was refused.
CREATE OR REPLACE FUNCTION tenantry.forget_removals() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
BEGIN
    DELETE FROM tenantry.removals AS r WHERE r.tenant_id = OLD.tenant_id;
    DELETE FROM tenantry.refused_publishes AS r WHERE r.tenant_id = OLD.tenant_id;
    INSERT INTO tenantry.statistics_marks AS m (tenant_id) VALUES (OLD.tenant_id)
    ON CONFLICT (tenant_id) DO UPDATE SET stored = m.stored;
    DELETE FROM tenantry.statistics AS s WHERE s.tenant_id = OLD.tenant_id;
    DELETE FROM tenantry.statistics_marks AS m WHERE m.tenant_id = OLD.tenant_id;
    RETURN NULL;
END
$$;
