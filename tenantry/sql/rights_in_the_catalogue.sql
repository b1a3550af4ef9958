-- What every role may call and read of PostgreSQL itself, though it tells of others or takes what is
-- everybody's: advisory locks, large objects, notifications, WAL, statistics, sizes, locks held.
--
-- Only a superuser can take these from PUBLIC. The daemon does so on the embedded server. On a
-- server of yours run this file in the daemon's database, as a superuser:
--
--     psql -d app -v ON_ERROR_STOP=1 -f rights_in_the_catalogue.sql
--
-- Statistics stay with pg_read_all_stats, and so with pg_monitor. Whoever else needs one of these
-- is granted it by name: GRANT EXECUTE ON FUNCTION pg_advisory_lock(bigint) TO app. It is done again
-- after an upgrade of the server: that makes a new catalogue.
DO $$
DECLARE
    one record;
    columns text;
BEGIN
    FOR one IN
        SELECT p.oid::regprocedure AS it, p.proname ~ '^pg_stat_|_size$|^pg_lock_status$' AS tells
        FROM pg_catalog.pg_proc AS p
        WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f'
          -- The names first: there are thousands of functions, and each one's rights take a look.
          AND CASE WHEN p.proname ~ '^(pg_(try_)?advisory_|lo_|pg_stat_|pg_(relation|table|indexes|total_relation|database|tablespace)_size$)'
               OR p.proname IN (
                   'loread', 'lowrite', 'pg_notify', 'pg_logical_emit_message', 'pg_lock_status',
                   'pg_blocking_pids', 'pg_safe_snapshot_blocking_pids', 'pg_prepared_xact',
                   'pg_get_replication_slots', 'pg_relation_filenode', 'pg_relation_filepath')
              THEN has_function_privilege('public', p.oid, 'EXECUTE') ELSE false END
    LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', one.it);
        IF one.tells THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO pg_read_all_stats', one.it);
        END IF;
    END LOOP;
    FOR one IN
        SELECT c.oid::regclass AS it FROM pg_catalog.pg_class AS c
        WHERE c.relnamespace = 'pg_catalog'::regnamespace AND c.relkind = 'v'
          AND (c.relname ~ '^pg_stat(io)?_'
               OR c.relname IN ('pg_locks', 'pg_prepared_xacts', 'pg_replication_slots'))
          AND has_table_privilege('public', c.oid, 'SELECT')
    LOOP
        EXECUTE format('REVOKE ALL ON %s FROM PUBLIC', one.it);
        EXECUTE format('GRANT SELECT ON %s TO pg_read_all_stats', one.it);
    END LOOP;
    -- How many rows and pages the tables have is all that its other columns don't tell.
    IF has_table_privilege('public', 'pg_catalog.pg_class', 'SELECT') THEN
        SELECT string_agg(quote_ident(a.attname), ', ') INTO columns FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid = 'pg_catalog.pg_class'::regclass AND NOT a.attisdropped
          AND a.attname NOT IN ('relpages', 'reltuples', 'relallvisible', 'relallfrozen')
          AND (a.attnum > 0 OR a.attname IN ('tableoid', 'ctid', 'xmin'));
        REVOKE SELECT ON pg_catalog.pg_class FROM PUBLIC;
        EXECUTE format('GRANT SELECT (%s) ON pg_catalog.pg_class TO PUBLIC', columns);
        GRANT SELECT ON pg_catalog.pg_class TO pg_read_all_stats;
    END IF;
    IF has_language_privilege('public', 'plpgsql', 'USAGE') THEN
        REVOKE USAGE ON LANGUAGE plpgsql FROM PUBLIC;
    END IF;
    IF has_database_privilege('public', 'template1', 'CONNECT') THEN
        REVOKE CONNECT ON DATABASE template1 FROM PUBLIC;
    END IF;
END
$$
