-- What the catalogue says of the schema's own safety.

-- name: open_paths
SELECT p.oid::regprocedure::text
FROM pg_catalog.pg_proc AS p
WHERE p.pronamespace = 'tenantry'::regnamespace
  AND 'search_path=pg_catalog, pg_temp' <> ALL (coalesce(p.proconfig, '{}'))
ORDER BY 1 LIMIT 100;

-- name: strangers
-- Whose code would run with the rights of the schema's owner: what lies in the schema, and what its
-- tables, views, defaults, checks, indexes, triggers and policies call, if its owner is neither this
-- user nor the schema's nor a superuser. And whose the fence is: its owner can hold it.
WITH trusted AS (
    SELECT r.oid FROM pg_catalog.pg_roles AS r
    WHERE r.rolsuper OR r.rolname = current_user OR r.oid IN (
        SELECT n.nspowner FROM pg_catalog.pg_namespace AS n WHERE n.nspname = 'tenantry')
), tables AS (
    SELECT c.oid FROM pg_catalog.pg_class AS c
    WHERE c.relnamespace IN ('tenantry'::regnamespace, to_regnamespace('tenantry_fence'))
       OR c.oid = to_regclass('public.messages')
), parts (class, id) AS (
    SELECT 'pg_catalog.pg_class'::regclass, oid FROM tables
    UNION ALL SELECT 'pg_catalog.pg_attrdef'::regclass, d.oid
        FROM pg_catalog.pg_attrdef AS d WHERE d.adrelid IN (SELECT oid FROM tables)
    UNION ALL SELECT 'pg_catalog.pg_constraint'::regclass, c.oid
        FROM pg_catalog.pg_constraint AS c WHERE c.conrelid IN (SELECT oid FROM tables)
    UNION ALL SELECT 'pg_catalog.pg_trigger'::regclass, t.oid
        FROM pg_catalog.pg_trigger AS t WHERE t.tgrelid IN (SELECT oid FROM tables)
    UNION ALL SELECT 'pg_catalog.pg_policy'::regclass, p.oid
        FROM pg_catalog.pg_policy AS p WHERE p.polrelid IN (SELECT oid FROM tables)
    UNION ALL SELECT 'pg_catalog.pg_rewrite'::regclass, r.oid
        FROM pg_catalog.pg_rewrite AS r WHERE r.ev_class IN (SELECT oid FROM tables)
    UNION ALL SELECT 'pg_catalog.pg_proc'::regclass, p.oid
        FROM pg_catalog.pg_proc AS p WHERE p.pronamespace = 'tenantry'::regnamespace
), used (class, id) AS (
    SELECT class, id FROM parts
    UNION SELECT d.refclassid, d.refobjid
    FROM parts JOIN pg_catalog.pg_depend AS d ON d.classid = parts.class AND d.objid = parts.id
), owned (class, id, owner) AS (
    SELECT used.class, used.id, c.relowner FROM used JOIN pg_catalog.pg_class AS c
        ON used.class = 'pg_catalog.pg_class'::regclass AND c.oid = used.id
    UNION ALL SELECT used.class, used.id, p.proowner FROM used JOIN pg_catalog.pg_proc AS p
        ON used.class = 'pg_catalog.pg_proc'::regclass AND p.oid = used.id
    UNION ALL SELECT used.class, used.id, t.typowner FROM used JOIN pg_catalog.pg_type AS t
        ON used.class = 'pg_catalog.pg_type'::regclass AND t.oid = used.id
    UNION ALL SELECT used.class, used.id, o.oprowner FROM used JOIN pg_catalog.pg_operator AS o
        ON used.class = 'pg_catalog.pg_operator'::regclass AND o.oid = used.id
    UNION ALL SELECT 'pg_catalog.pg_namespace'::regclass, n.oid, n.nspowner
        FROM pg_catalog.pg_namespace AS n
        WHERE n.nspname = 'tenantry_fence' AND n.nspowner <> (
            SELECT d.datdba FROM pg_catalog.pg_database AS d WHERE d.datname = current_database())
)
SELECT pg_catalog.pg_describe_object(owned.class, owned.id, 0), r.rolname::text
FROM owned JOIN pg_catalog.pg_roles AS r ON r.oid = owned.owner
WHERE owned.owner NOT IN (SELECT oid FROM trusted)
ORDER BY 1 LIMIT 100;
