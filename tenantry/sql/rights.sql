-- What a tenant's role has from PUBLIC.

-- name: of_our_own
-- Whether the server is the embedded one, and ours to change: its catalogue serves nobody else.
SELECT r.rolsuper AND current_setting('cluster_name') = 'tenantry'
FROM pg_catalog.pg_roles AS r WHERE r.rolname = current_user;

-- name: open
-- What is open to everybody, and by what statement it is closed.
SELECT what, remedy FROM (
    SELECT 1 AS n, 'temporary tables' AS what,
           format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database()) AS remedy
    WHERE has_database_privilege('public', current_database(), 'TEMPORARY')
    UNION ALL
    SELECT 2, 'tables and functions in the schema public', 'REVOKE CREATE ON SCHEMA public FROM PUBLIC'
    WHERE has_schema_privilege('public', 'public', 'CREATE')
    UNION ALL
    SELECT 3, c.what, c.remedy FROM (
        SELECT 'advisory locks, as many as the server has room for' AS what,
               'run rights_in_the_catalogue.sql' AS remedy
        WHERE has_function_privilege('public', 'pg_catalog.pg_advisory_lock(bigint)', 'EXECUTE')
        UNION ALL SELECT 'large objects, without a limit', 'run rights_in_the_catalogue.sql'
        WHERE has_function_privilege('public', 'pg_catalog.lo_from_bytea(oid, bytea)', 'EXECUTE')
        UNION ALL SELECT 'writing WAL, without a limit', 'run rights_in_the_catalogue.sql'
        WHERE EXISTS (SELECT FROM pg_catalog.pg_proc AS p
                      WHERE p.proname = 'pg_logical_emit_message'
                        AND has_function_privilege('public', p.oid, 'EXECUTE'))
        UNION ALL SELECT 'statistics and sizes of all tables', 'run rights_in_the_catalogue.sql'
        WHERE has_table_privilege('public', 'pg_catalog.pg_stat_all_tables', 'SELECT')
           OR has_column_privilege('public', 'pg_catalog.pg_class', 'reltuples', 'SELECT')
    ) AS c
    UNION ALL
    SELECT 4, format('sessions in the database %I', d.datname),
           format('REVOKE CONNECT ON DATABASE %I FROM PUBLIC', d.datname)
    FROM pg_catalog.pg_database AS d
    WHERE d.datallowconn AND d.datname <> current_database()
      AND has_database_privilege('public', d.oid, 'CONNECT')
    UNION ALL
    SELECT 5, 'prepared transactions, which outlive their sessions', 'max_prepared_transactions = 0'
    WHERE current_setting('max_prepared_transactions')::integer > 0
    UNION ALL
    SELECT 6, 'temporary files of any size', 'ALTER ROLE ... SET temp_file_limit, by a superuser'
    WHERE NOT (SELECT r.rolsuper FROM pg_catalog.pg_roles AS r WHERE r.rolname = current_user)
      AND current_setting('temp_file_limit') = '-1'
) AS found
ORDER BY n, what LIMIT 20;
