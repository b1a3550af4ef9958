-- What a role has set for itself in one database goes before what it has in all: that is set back,
-- too. And a role that publishes has room on the disk for what one call may bring: a message of
-- 32 MiB is passed on more than once on its way into a queue.

-- As before (migration 0017), but for how much the temporary files of a producer may hold.
CREATE OR REPLACE FUNCTION tenantry.role_settings(p_kind text) RETURNS TABLE (name text, value text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.name, s.value
    FROM (VALUES
        ('reader', 'statement_timeout', '30s', false),
        ('reader', 'lock_timeout', '5s', false),
        ('reader', 'default_transaction_read_only', 'on', false),
        ('producer', 'statement_timeout', '60s', false),
        ('producer', 'lock_timeout', '10s', false),
        ('', 'idle_in_transaction_session_timeout', '60s', false),
        ('', 'transaction_timeout', '60s', false),
        ('', 'max_parallel_workers_per_gather', '0', false),
        ('', 'work_mem', '4MB', false),
        ('', 'temp_file_limit', '256MB', true),
        -- What a tenant gets wrong is its own affair, and its statements may hold its data.
        ('', 'log_min_messages', 'fatal', true),
        ('', 'log_min_error_statement', 'panic', true)
    ) AS s (kind, name, value, privileged)
    WHERE s.kind IN ('', p_kind)
      AND current_setting(s.name, true) IS NOT NULL
      AND (NOT s.privileged
           OR (SELECT r.rolsuper FROM pg_roles AS r WHERE r.rolname = current_user))
$$;

-- Which of the settings that a role is made with it has once more in a database, and in which.
CREATE FUNCTION tenantry.overridden_settings(p_role oid, p_kind text)
RETURNS TABLE (database name, name text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT d.datname, wanted.name
    FROM pg_db_role_setting AS s
    JOIN pg_database AS d ON d.oid = s.setdatabase
    CROSS JOIN unnest(s.setconfig) AS present(setting)
    JOIN tenantry.role_settings(p_kind) AS wanted ON starts_with(present.setting, wanted.name || '=')
    WHERE s.setrole = p_role
$$;

-- As before (migration 0017), but for settings in a database.
CREATE OR REPLACE FUNCTION tenantry.limit_role(p_role name, p_kind text, p_connections integer)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    role    oid := (SELECT r.oid FROM pg_roles AS r WHERE r.rolname = p_role);
    present text[] := coalesce(
        (SELECT s.setconfig FROM pg_db_role_setting AS s
         WHERE s.setrole = role AND s.setdatabase = 0), '{}');
    wanted  record;
BEGIN
    FOR wanted IN
        SELECT s.name, s.value FROM tenantry.role_settings(p_kind) AS s
        WHERE format('%s=%s', s.name, s.value) <> ALL (present)
    LOOP
        EXECUTE format('ALTER ROLE %I SET %I = %L', p_role, wanted.name, wanted.value);
    END LOOP;
    FOR wanted IN SELECT s.database, s.name FROM tenantry.overridden_settings(role, p_kind) AS s LOOP
        EXECUTE format('ALTER ROLE %I IN DATABASE %I RESET %I', p_role, wanted.database, wanted.name);
    END LOOP;
    IF EXISTS (SELECT FROM pg_roles AS r WHERE r.oid = role AND r.rolconnlimit <> p_connections)
    THEN
        EXECUTE format('ALTER ROLE %I CONNECTION LIMIT %s', p_role, p_connections);
    END IF;
    IF NOT pg_has_role(current_user, role, 'USAGE') THEN
        EXECUTE format('GRANT %I TO CURRENT_USER', p_role);
    END IF;
END
$$;

-- As before (migration 0020), but for settings in a database.
CREATE OR REPLACE FUNCTION tenantry.roles_to_mend(
    p_reading integer, p_probing integer, p_publishing integer
) RETURNS TABLE (role name, kind text, tenant text, connections integer)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    reading text[] := ARRAY(
        SELECT format('%s=%s', s.name, s.value) FROM tenantry.role_settings('reader') AS s);
    publishing text[] := ARRAY(
        SELECT format('%s=%s', s.name, s.value) FROM tenantry.role_settings('producer') AS s);
    columns smallint := (
        SELECT count(*) FROM pg_attribute AS a
        WHERE a.attrelid = 'public.messages'::regclass AND a.attnum > 0 AND NOT a.attisdropped);
BEGIN
    RETURN QUERY
    SELECT r.rolname, t.kind, s.tenant_id::text, wanted.connections
    FROM tenantry.tenants_roles() AS t
    JOIN pg_roles AS r ON r.oid = t.id
    LEFT JOIN tenantry.sql_roles AS s ON s.role = t.role
    LEFT JOIN pg_db_role_setting AS d ON d.setrole = t.id AND d.setdatabase = 0
    LEFT JOIN pg_namespace AS own ON own.nspname = t.role
    LEFT JOIN pg_class AS view ON view.relnamespace = own.oid AND view.relname = 'messages'
    CROSS JOIN LATERAL (
        SELECT CASE WHEN s.probe THEN p_probing WHEN t.kind = 'reader' THEN p_reading
                    ELSE p_publishing END AS connections,
               CASE t.kind WHEN 'reader' THEN reading ELSE publishing END AS settings
    ) AS wanted
    WHERE NOT pg_has_role(current_user, t.id, 'USAGE')
       OR r.rolconnlimit <> wanted.connections
       OR NOT coalesce(d.setconfig, '{}') @> wanted.settings
       OR EXISTS (SELECT FROM pg_db_role_setting AS o
                  WHERE o.setrole = t.id AND o.setdatabase <> 0)
          AND EXISTS (SELECT FROM tenantry.overridden_settings(t.id, t.kind))
       OR t.kind = 'reader' AND view.relnatts IS DISTINCT FROM columns
          AND to_regclass(format('tenantry.%I', 'messages_' || s.tenant_id)) IS NOT NULL;
END
$$;
