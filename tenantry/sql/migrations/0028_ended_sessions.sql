-- Until when sessions of a role were begun by a password that holds no more. A server lets in whoever
-- has begun to log in by such a password, and says the last word after it was changed: that session
-- is not there yet when the others are ended, and is ended once it is.
CREATE TABLE tenantry.ended_sessions (
    role        name        PRIMARY KEY,
    begun_until timestamptz NOT NULL
);

-- Ends all sessions of a role, those that are on their way in among them. To be called once the new
-- password is committed, and before anybody is told of it.
CREATE FUNCTION tenantry.end_sessions(p_role name) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO tenantry.ended_sessions AS e (role, begun_until)
    VALUES (p_role, clock_timestamp())
    ON CONFLICT (role) DO UPDATE SET begun_until = excluded.begun_until;
    PERFORM pg_terminate_backend(a.pid) FROM pg_stat_activity AS a WHERE a.usename = p_role;
END
$$;

-- Sessions that were begun until their role's were ended. A server ends a login that takes too long;
-- after twice that time none can come any more, and a clock that was set back does no harm.
CREATE FUNCTION tenantry.late_sessions() RETURNS TABLE (pid integer, role name)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT a.pid, a.usename
    FROM tenantry.ended_sessions AS e JOIN pg_stat_activity AS a ON a.usename = e.role
    WHERE a.backend_start <= e.begun_until
      AND e.begun_until BETWEEN
          clock_timestamp() - 2 * current_setting('authentication_timeout')::interval
          AND clock_timestamp()
$$;
