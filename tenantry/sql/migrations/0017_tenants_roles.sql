-- What a tenant's role may do, and what it may hold up.
--
-- A role that reads has a schema of its own, with a view of its own partition: it locks nothing that
-- others use, and names nothing of theirs. The policies on public.messages and on its partitions
-- stay, should somebody grant rights on them.

-- The role whose members may publish: who is in it is a tenant of this database.
CREATE FUNCTION tenantry.producers_group() RETURNS name
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('tenantry_producers_%s', d.oid)::name
    FROM pg_database AS d WHERE d.datname = current_database()
$$;

-- All roles of tenants, with what they are for.
CREATE FUNCTION tenantry.tenants_roles() RETURNS TABLE (id oid, role name, kind text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT r.oid, r.rolname, 'reader'
    FROM tenantry.sql_roles AS s JOIN pg_roles AS r ON r.rolname = s.role
    UNION ALL
    SELECT r.oid, r.rolname, 'producer'
    FROM pg_roles AS g
    JOIN pg_auth_members AS m ON m.roleid = g.oid
    JOIN pg_roles AS r ON r.oid = m.member
    WHERE g.rolname = tenantry.producers_group() AND r.rolname ~ '^tenant_.+_producer$'
$$;

-- What a role's sessions begin with. A session may lift most of it for itself; what counts is seen
-- to from outside. What it can't lift takes a superuser to set, and is left out without one.
CREATE FUNCTION tenantry.role_settings(p_kind text) RETURNS TABLE (name text, value text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.name, s.value
    FROM (VALUES
        ('reader', 'statement_timeout', '30s', false),
        ('reader', 'lock_timeout', '5s', false),
        ('reader', 'default_transaction_read_only', 'on', false),
        ('reader', 'temp_file_limit', '256MB', true),
        ('producer', 'statement_timeout', '60s', false),
        ('producer', 'lock_timeout', '10s', false),
        ('producer', 'temp_file_limit', '64MB', true),
        ('', 'idle_in_transaction_session_timeout', '60s', false),
        ('', 'transaction_timeout', '60s', false),
        ('', 'max_parallel_workers_per_gather', '0', false),
        ('', 'work_mem', '4MB', false),
        -- What a tenant gets wrong is its own affair, and its statements may hold its data.
        ('', 'log_min_messages', 'fatal', true),
        ('', 'log_min_error_statement', 'panic', true)
    ) AS s (kind, name, value, privileged)
    WHERE s.kind IN ('', p_kind)
      AND current_setting(s.name, true) IS NOT NULL
      AND (NOT s.privileged
           OR (SELECT r.rolsuper FROM pg_roles AS r WHERE r.rolname = current_user))
$$;

-- Brings a role to its settings and its number of connections, where they differ. It also makes us a member again: a role's sessions are looked at and ended by its members,
-- and in a PostgreSQL before 16 a role may throw its members out.
CREATE FUNCTION tenantry.limit_role(p_role name, p_kind text, p_connections integer)
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
    IF EXISTS (SELECT FROM pg_roles AS r WHERE r.oid = role AND r.rolconnlimit <> p_connections)
    THEN
        EXECUTE format('ALTER ROLE %I CONNECTION LIMIT %s', p_role, p_connections);
    END IF;
    IF NOT pg_has_role(current_user, role, 'USAGE') THEN
        EXECUTE format('GRANT %I TO CURRENT_USER', p_role);
    END IF;
END
$$;

-- Gives a role that reads its schema and the view in it, named as the table is; tells whether
-- anything was missing. Without a partition there is nothing to show yet.
--
-- The view reads with its owner's rights. Its condition is the policy's: shown to another role, by
-- mistake, it shows nothing.
CREATE FUNCTION tenantry.show_messages(p_role name, p_tenant text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    leaf regclass := to_regclass(format('tenantry.%I', 'messages_' || p_tenant));
    view regclass := to_regclass(format('%I.messages', p_role));
    made boolean := false;
BEGIN
    IF to_regnamespace(quote_ident(p_role)) IS NULL THEN
        EXECUTE format('CREATE SCHEMA %I', p_role);
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', p_role, p_role);
        made := true;
    END IF;
    IF leaf IS NOT NULL AND (view IS NULL OR (
        SELECT array_agg(a.attname ORDER BY a.attnum) FROM pg_attribute AS a
        WHERE a.attrelid = view AND a.attnum > 0
    ) <> (
        SELECT array_agg(a.attname ORDER BY a.attnum) FROM pg_attribute AS a
        WHERE a.attrelid = leaf AND a.attnum > 0 AND NOT a.attisdropped
    )) THEN
        IF view IS NOT NULL THEN
            EXECUTE format('DROP VIEW %I.messages', p_role);
        END IF;
        EXECUTE format(
            'CREATE VIEW %I.messages WITH (security_barrier) AS SELECT m.* FROM %s AS m
             WHERE m.tenant_id = (SELECT tenantry.tenant_of_role(current_user))', p_role, leaf);
        EXECUTE format('GRANT SELECT ON %I.messages TO %I', p_role, p_role);
        made := true;
    END IF;
    RETURN made;
END
$$;

-- Makes a role that may log in and read one tenant's rows (as before, migration 0008, but for how
-- it gets to them).
CREATE OR REPLACE FUNCTION tenantry.make_sql_role(
    p_role name, p_tenant text, p_verifier text, p_connections integer, p_probe boolean
) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    readers name := tenantry.sql_group();
BEGIN
    IF to_regrole(quote_ident(readers)) IS NULL THEN
        EXECUTE format('CREATE ROLE %I NOLOGIN', readers);
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), readers);
    END IF;
    EXECUTE format('CREATE ROLE %I LOGIN PASSWORD %L', p_role, p_verifier);
    EXECUTE format('GRANT %I TO %I', readers, p_role);
    -- A role's sessions may be looked at and ended, and what it owns dropped, by its members.
    EXECUTE format('GRANT %I TO CURRENT_USER', p_role);
    PERFORM tenantry.limit_role(p_role, 'reader', p_connections);
    EXECUTE format('ALTER ROLE %I SET search_path = %I', p_role, p_role);
    INSERT INTO tenantry.sql_roles (role, tenant_id, probe) VALUES (p_role, p_tenant, p_probe);
    PERFORM tenantry.show_messages(p_role, p_tenant);
END
$$;

-- Lets nobody log in any more with a tenant's roles that read; what is open stays open. To be
-- committed before their sessions are ended: whoever is thrown out comes again at once.
CREATE FUNCTION tenantry.lock_out_sql_roles(p_tenant text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    one name;
BEGIN
    PERFORM tenantry.hold('sql_roles');
    FOR one IN
        SELECT r.rolname FROM tenantry.sql_roles AS s JOIN pg_roles AS r ON r.rolname = s.role
        WHERE s.tenant_id = p_tenant AND r.rolcanlogin
    LOOP
        EXECUTE format('ALTER ROLE %I NOLOGIN', one);
    END LOOP;
END
$$;

-- Drops a role of ours with its schema and whatever it has come to own, after ending its sessions.
CREATE OR REPLACE FUNCTION tenantry.drop_sql_role(p_role name) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM tenantry.sql_roles WHERE role = p_role;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF to_regrole(quote_ident(p_role)) IS NOT NULL THEN
        IF NOT pg_has_role(current_user, p_role, 'USAGE') THEN
            EXECUTE format('GRANT %I TO CURRENT_USER', p_role);
        END IF;
        PERFORM pg_terminate_backend(a.pid, 5000)
        FROM pg_stat_activity AS a WHERE a.usename = p_role;
        EXECUTE format('DROP OWNED BY %I', p_role);
    END IF;
    EXECUTE format('DROP SCHEMA IF EXISTS %I CASCADE', p_role);
    EXECUTE format('DROP ROLE IF EXISTS %I', p_role);
END
$$;

-- Brings all roles of tenants to what such a role is made with today; names those that differed.
-- Roles that were made by an earlier version lose their rights on public.messages.
CREATE FUNCTION tenantry.mend_roles(p_reading integer, p_probing integer, p_publishing integer)
RETURNS SETOF name LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    readers name := tenantry.sql_group();
    reading text[] := ARRAY(
        SELECT format('%s=%s', s.name, s.value) FROM tenantry.role_settings('reader') AS s);
    publishing text[] := ARRAY(
        SELECT format('%s=%s', s.name, s.value) FROM tenantry.role_settings('producer') AS s);
    one     record;
BEGIN
    PERFORM tenantry.hold('sql_roles'), tenantry.hold('roles');
    IF to_regrole(quote_ident(readers)) IS NOT NULL
       AND has_any_column_privilege(readers, 'public.messages', 'SELECT') THEN
        EXECUTE format('REVOKE ALL ON public.messages FROM %I', readers);
        EXECUTE format('REVOKE ALL ON SCHEMA public FROM %I', readers);
    END IF;
    FOR one IN
        SELECT t.role, t.kind, s.tenant_id,
               CASE WHEN s.probe THEN p_probing WHEN t.kind = 'reader' THEN p_reading
                    ELSE p_publishing END AS connections,
               coalesce(d.setconfig, '{}') AS setconfig, r.rolconnlimit,
               pg_has_role(current_user, t.id, 'USAGE') AS ours
        FROM tenantry.tenants_roles() AS t
        JOIN pg_roles AS r ON r.oid = t.id
        LEFT JOIN tenantry.sql_roles AS s ON s.role = t.role
        LEFT JOIN pg_db_role_setting AS d ON d.setrole = t.id AND d.setdatabase = 0
    LOOP
        IF NOT one.ours OR one.rolconnlimit <> one.connections
           OR NOT one.setconfig @> (CASE one.kind WHEN 'reader' THEN reading ELSE publishing END)
        THEN
            PERFORM tenantry.limit_role(one.role, one.kind, one.connections);
            RETURN NEXT one.role;
        END IF;
        IF one.kind = 'reader' AND tenantry.show_messages(one.role, one.tenant_id) THEN
            IF 'search_path=public' = ANY (one.setconfig) THEN
                EXECUTE format('ALTER ROLE %I SET search_path = %I', one.role, one.role);
            END IF;
            RETURN NEXT one.role;
        END IF;
    END LOOP;
END
$$;

DROP FUNCTION tenantry.end_long_sql_transactions;
