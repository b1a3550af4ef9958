-- What every role has because it is in PUBLIC, and a tenant's has no use for.
--
-- Run by the daemon as the owner of the database and the schema. Whoever else needs one of these
-- rights is granted it by name: GRANT TEMPORARY ON DATABASE app TO reports.
DO $$
DECLARE
    one record;
BEGIN
    FOR one IN
        SELECT format('TEMPORARY ON DATABASE %I', d.datname) AS what
        FROM pg_catalog.pg_database AS d
        WHERE d.datname = current_database() AND has_database_privilege('public', d.oid, 'TEMPORARY')
          AND pg_has_role(d.datdba, 'USAGE')
        UNION ALL
        SELECT 'CREATE ON SCHEMA public' FROM pg_catalog.pg_namespace AS n
        WHERE n.nspname = 'public' AND has_schema_privilege('public', n.oid, 'CREATE')
          AND pg_has_role(n.nspowner, 'USAGE')
        UNION ALL
        SELECT format('ALL ON SCHEMA %I', n.nspname) FROM pg_catalog.pg_namespace AS n
        WHERE n.nspname IN ('tenantry', 'tenantry_fence')
          AND has_schema_privilege('public', n.oid, 'USAGE, CREATE')
        UNION ALL
        -- By ALTER DEFAULT PRIVILEGES, say: those who publish may name what is in the schema.
        SELECT format('ALL ON TABLE tenantry.%I', c.relname) FROM pg_catalog.pg_class AS c
        WHERE c.relnamespace = 'tenantry'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm')
          AND has_table_privilege('public', c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')
        UNION ALL
        -- The policies call it for whoever reads.
        SELECT format('EXECUTE ON FUNCTION %s', p.oid::regprocedure) FROM pg_catalog.pg_proc AS p
        WHERE p.pronamespace = 'tenantry'::regnamespace AND p.proname <> 'tenant_of_role'
          AND has_function_privilege('public', p.oid, 'EXECUTE')
    LOOP
        EXECUTE format('REVOKE %s FROM PUBLIC', one.what);
    END LOOP;
END
$$
