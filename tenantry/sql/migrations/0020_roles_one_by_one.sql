-- Roles are mended one by one: one that its own open transaction holds keeps no other waiting.
DROP FUNCTION tenantry.mend_roles;

-- The roles of tenants that are not as one is made today.
CREATE FUNCTION tenantry.roles_to_mend(p_reading integer, p_probing integer, p_publishing integer)
RETURNS TABLE (role name, kind text, tenant text, connections integer)
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
       OR t.kind = 'reader' AND view.relnatts IS DISTINCT FROM columns
          AND to_regclass(format('tenantry.%I', 'messages_' || s.tenant_id)) IS NOT NULL;
END
$$;

-- Brings a role to what one is made with today.
CREATE FUNCTION tenantry.mend_role(
    p_role name, p_kind text, p_tenant text, p_connections integer
) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM tenantry.limit_role(p_role, p_kind, p_connections);
    IF p_kind = 'reader' AND tenantry.show_messages(p_role, p_tenant) AND EXISTS (
        -- As an earlier version made it.
        SELECT FROM pg_db_role_setting AS d JOIN pg_roles AS r ON r.oid = d.setrole
        WHERE r.rolname = p_role AND 'search_path=public' = ANY (d.setconfig))
    THEN
        EXECUTE format('ALTER ROLE %I SET search_path = %I', p_role, p_role);
    END IF;
END
$$;

-- Takes from those who read the rights on the table itself that an earlier version gave them.
CREATE FUNCTION tenantry.withdraw_messages() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    readers name := tenantry.sql_group();
BEGIN
    IF EXISTS (
        SELECT FROM pg_class AS c, aclexplode(c.relacl) AS granted
        WHERE c.oid = 'public.messages'::regclass
          AND granted.grantee = to_regrole(quote_ident(readers)))
    THEN
        EXECUTE format('REVOKE ALL ON public.messages FROM %I', readers);
        EXECUTE format('REVOKE ALL ON SCHEMA public FROM %I', readers);
    END IF;
END
$$;
