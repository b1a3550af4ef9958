-- Roles in tenants' places, for proofs of isolation.

-- name: may_make_roles
SELECT rolsuper OR rolcreaterole FROM pg_catalog.pg_roles WHERE rolname = current_user;

-- name: lock_roles
SELECT tenantry.hold('sql_roles');

-- name: make_probe
SELECT tenantry.make_sql_role(%(role)s, %(tenant)s, %(verifier)s, %(connections)s, true);

-- name: drop_probe
SELECT tenantry.drop_sql_role(%(role)s);

-- name: drop_probes
SELECT tenantry.drop_sql_role(role) FROM tenantry.sql_roles WHERE probe;

-- name: excess
-- What a tenant's own role has beyond what grant_sql_access gives it.
WITH own AS (
    SELECT r.* FROM pg_catalog.pg_roles AS r
    WHERE r.rolname = tenantry.sql_role(%(tenant)s)
)
SELECT 'SUPERUSER' FROM own WHERE rolsuper
UNION ALL SELECT 'BYPASSRLS' FROM own WHERE rolbypassrls
UNION ALL SELECT 'CREATEROLE' FROM own WHERE rolcreaterole
UNION ALL SELECT 'CREATEDB' FROM own WHERE rolcreatedb
UNION ALL SELECT 'REPLICATION' FROM own WHERE rolreplication
UNION ALL
SELECT format('member of %%s', g.rolname)
FROM own JOIN pg_catalog.pg_auth_members AS m ON m.member = own.oid
         JOIN pg_catalog.pg_roles AS g ON g.oid = m.roleid
WHERE g.rolname <> tenantry.sql_group()
UNION ALL
SELECT 'USAGE on schema tenantry' FROM own
WHERE has_schema_privilege(own.oid, 'tenantry', 'USAGE')
UNION ALL
SELECT format('rights on %%s', c.oid::regclass)
FROM own, pg_catalog.pg_class AS c
WHERE c.relnamespace = 'tenantry'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm')
  AND has_table_privilege(own.oid, c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')
UNION ALL
SELECT 'rights on public.messages' FROM own
WHERE has_table_privilege(own.oid, 'public.messages', 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')
UNION ALL
SELECT format('rights in schema %%I', n.nspname) FROM own, pg_catalog.pg_namespace AS n
WHERE n.nspname ~ '^tenant_.+_sql_[0-9]+$' AND n.nspname <> tenantry.sql_role(%(tenant)s)
  AND has_schema_privilege(own.oid, n.oid, 'USAGE, CREATE')
LIMIT 100;
