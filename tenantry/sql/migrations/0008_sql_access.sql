-- Tenants that read their own rows with SQL, each by a role of its own.
--
-- Such a role may select from public.messages and nothing else; which rows, row-level security
-- decides. Owner and superusers, and so the daemon, are not subject to it. Any other role that was
-- granted rights on the table sees no rows from now on, unless a policy of its own lets it.
CREATE TABLE tenantry.sql_roles (
    role       name        PRIMARY KEY,
    tenant_id  text        COLLATE "C" NOT NULL,
    -- Made for a proof of isolation, and gone after it.
    probe      boolean     NOT NULL DEFAULT false,
    granted_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX sql_roles_tenant ON tenantry.sql_roles (tenant_id);
REVOKE ALL ON SCHEMA tenantry FROM PUBLIC;

-- Whose rows a role may see; NULL, and so none, for any other role. The policies call it with
-- their owner's rights, since no tenant may look into this schema.
CREATE FUNCTION tenantry.tenant_of_role(p_role name) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT r.tenant_id FROM tenantry.sql_roles AS r WHERE r.role = p_role
$$;

ALTER TABLE public.messages ENABLE ROW LEVEL SECURITY;
-- As a subquery it is asked once a statement, and lets PostgreSQL pass over all other partitions.
CREATE POLICY tenants_read_their_own ON public.messages FOR SELECT
    USING (tenant_id = (SELECT tenantry.tenant_of_role(current_user)));

-- No tenant is granted a partition; should somebody grant one, its rows are guarded all the same.
CREATE FUNCTION tenantry.guard_partition(p_leaf text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('ALTER TABLE tenantry.%I ENABLE ROW LEVEL SECURITY', p_leaf);
    EXECUTE format('CREATE POLICY tenants_read_their_own ON tenantry.%I FOR SELECT
                    USING (tenant_id = (SELECT tenantry.tenant_of_role(current_user)))', p_leaf);
END
$$;

DO $$
DECLARE
    leaf name;
BEGIN
    FOR leaf IN
        SELECT c.relname FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'public.messages'::regclass
    LOOP
        PERFORM tenantry.guard_partition(leaf);
    END LOOP;
END
$$;

CREATE OR REPLACE FUNCTION tenantry.create_messages_partition(p_tenant text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    leaf text := 'messages_' || p_tenant;
BEGIN
    -- Two daemons, or two attempts, may make the same partition at once.
    PERFORM pg_advisory_xact_lock(hashtextextended('tenantry.partition.' || p_tenant, 0));
    IF to_regclass(format('tenantry.%I', leaf)) IS NULL THEN
        EXECUTE format('CREATE TABLE tenantry.%I (LIKE public.messages INCLUDING ALL)', leaf);
        PERFORM tenantry.guard_partition(leaf);
        EXECUTE format(
            'ALTER TABLE tenantry.%I ADD CONSTRAINT of_tenant CHECK (tenant_id = %L)', leaf, p_tenant);
        EXECUTE format('CREATE UNIQUE INDEX ON tenantry.%I (position)', leaf);
        EXECUTE format('CREATE INDEX ON tenantry.%I (topic, position)', leaf);
        EXECUTE format(
            'ALTER TABLE public.messages ATTACH PARTITION tenantry.%I FOR VALUES IN (%L)',
            leaf, p_tenant);
        EXECUTE format('ALTER TABLE tenantry.%I DROP CONSTRAINT of_tenant', leaf);
    END IF;
    INSERT INTO tenantry.tenant_counters (tenant_id) VALUES (p_tenant) ON CONFLICT DO NOTHING;
END
$$;

-- Roles belong to the server, not to a database: their names end in the database's number, so that
-- two databases may have a tenant of the same id. 62 bytes at most; PostgreSQL allows 63.
CREATE FUNCTION tenantry.sql_role(p_tenant text) RETURNS name LANGUAGE sql STABLE AS $$
    SELECT format('tenant_%s_sql_%s', p_tenant, d.oid)::name
    FROM pg_catalog.pg_database AS d WHERE d.datname = current_database()
$$;
CREATE FUNCTION tenantry.sql_group() RETURNS name LANGUAGE sql STABLE AS $$
    SELECT format('tenantry_sql_%s', d.oid)::name
    FROM pg_catalog.pg_database AS d WHERE d.datname = current_database()
$$;

-- Makes a role that may log in and read one tenant's rows. Rights hang on a group: as entries of
-- the table itself, each of thousands would make every look at its rights slower.
CREATE FUNCTION tenantry.make_sql_role(
    p_role name, p_tenant text, p_verifier text, p_connections integer, p_probe boolean
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    readers name := tenantry.sql_group();
BEGIN
    IF to_regrole(quote_ident(readers)) IS NULL THEN
        EXECUTE format('CREATE ROLE %I NOLOGIN', readers);
        EXECUTE format('GRANT USAGE ON SCHEMA public TO %I', readers);
        EXECUTE format('GRANT SELECT ON public.messages TO %I', readers);
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), readers);
    END IF;
    EXECUTE format(
        'CREATE ROLE %I LOGIN CONNECTION LIMIT %s PASSWORD %L', p_role, p_connections, p_verifier);
    EXECUTE format('GRANT %I TO %I', readers, p_role);
    -- A role's sessions may be looked at and ended, and what it owns dropped, by its members.
    EXECUTE format('GRANT %I TO CURRENT_USER', p_role);
    -- Where a session begins; it may change these for itself.
    EXECUTE format('ALTER ROLE %I SET statement_timeout = ''30s''', p_role);
    EXECUTE format('ALTER ROLE %I SET lock_timeout = ''5s''', p_role);
    EXECUTE format('ALTER ROLE %I SET idle_in_transaction_session_timeout = ''60s''', p_role);
    EXECUTE format('ALTER ROLE %I SET default_transaction_read_only = on', p_role);
    EXECUTE format('ALTER ROLE %I SET search_path = public', p_role);
    INSERT INTO tenantry.sql_roles (role, tenant_id, probe) VALUES (p_role, p_tenant, p_probe);
END
$$;

-- Gives a tenant its role, or the role it has a new password, of which only the verifier comes
-- here. Sessions that are open stay.
CREATE FUNCTION tenantry.grant_sql_access(p_tenant text, p_verifier text, p_connections integer)
RETURNS name LANGUAGE plpgsql AS $$
DECLARE
    wanted name := tenantry.sql_role(p_tenant);
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('tenantry.sql_roles', 0));
    IF EXISTS (SELECT FROM tenantry.sql_roles WHERE role = wanted)
       AND to_regrole(quote_ident(wanted)) IS NOT NULL THEN
        EXECUTE format('ALTER ROLE %I LOGIN PASSWORD %L', wanted, p_verifier);
    ELSE
        DELETE FROM tenantry.sql_roles WHERE role = wanted;
        PERFORM tenantry.make_sql_role(wanted, p_tenant, p_verifier, p_connections, false);
    END IF;
    RETURN wanted;
END
$$;

-- Drops a role of ours with whatever it has come to own, after ending its sessions.
CREATE FUNCTION tenantry.drop_sql_role(p_role name) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM tenantry.sql_roles WHERE role = p_role;
    IF NOT FOUND OR to_regrole(quote_ident(p_role)) IS NULL THEN
        RETURN;
    END IF;
    PERFORM pg_terminate_backend(a.pid, 5000)
    FROM pg_catalog.pg_stat_activity AS a WHERE a.usename = p_role;
    EXECUTE format('DROP OWNED BY %I', p_role);
    EXECUTE format('DROP ROLE %I', p_role);
END
$$;

-- Takes a tenant's access away, probes included; tells whether it had any.
CREATE FUNCTION tenantry.revoke_sql_access(p_tenant text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    had   boolean := false;
    found record;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('tenantry.sql_roles', 0));
    FOR found IN SELECT role, probe FROM tenantry.sql_roles WHERE tenant_id = p_tenant LOOP
        PERFORM tenantry.drop_sql_role(found.role);
        had := had OR NOT found.probe;
    END LOOP;
    RETURN had;
END
$$;

-- Ends sessions of tenants whose transaction is older than that; gives how many. Whoever reads for
-- long holds up the removal of any partition, and a session may lift its own timeouts.
CREATE FUNCTION tenantry.end_long_sql_transactions(p_age interval) RETURNS bigint
LANGUAGE sql AS $$
    SELECT count(*) FILTER (WHERE pg_terminate_backend(a.pid))
    FROM pg_catalog.pg_stat_activity AS a JOIN tenantry.sql_roles AS r ON r.role = a.usename
    WHERE a.datname = current_database() AND a.xact_start < clock_timestamp() - p_age
$$;
