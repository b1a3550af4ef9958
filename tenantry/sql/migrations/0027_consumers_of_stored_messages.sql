-- Where the embedded broker is the broker, a tenant's own consumers read what is stored: rows stay, so
-- that nothing is copied, and nothing is taken from the daemon. Rows are given out by their
-- positions, which rise in the order of commits, in batches that are leased until they are settled.

-- How far a topic has been given out. A group begins where the rows end when it is made.
CREATE TABLE tenantry.consumer_groups (
    tenant_id text   COLLATE "C" NOT NULL,
    topic     text   NOT NULL,
    position  bigint NOT NULL,
    PRIMARY KEY (tenant_id, topic)
);

-- What has been given out and is not settled: rows of a topic between two positions, both among them.
-- A lease is its session's; when that has ended, or the time is over, the rows are given out again.
CREATE TABLE tenantry.consumer_leases (
    id             bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id      text        COLLATE "C" NOT NULL,
    topic          text        NOT NULL,
    first_position bigint      NOT NULL,
    last_position  bigint      NOT NULL,
    pid            integer     NOT NULL,
    expires_at     timestamptz NOT NULL,
    FOREIGN KEY (tenant_id, topic) REFERENCES tenantry.consumer_groups ON DELETE CASCADE
);
CREATE INDEX ON tenantry.consumer_leases (tenant_id, topic, first_position);

-- The role whose members may consume: who is in it is a consumer of a tenant of this database.
CREATE FUNCTION tenantry.consumers_group() RETURNS name
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('tenantry_consumers_%s', d.oid)::name
    FROM pg_database AS d WHERE d.datname = current_database()
$$;

-- All roles of tenants, with what they are for. Those that consume have the limits of those that
-- publish.
CREATE OR REPLACE FUNCTION tenantry.tenants_roles() RETURNS TABLE (id oid, role name, kind text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT r.oid, r.rolname, 'reader'
    FROM tenantry.sql_roles AS s JOIN pg_roles AS r ON r.rolname = s.role
    UNION ALL
    SELECT r.oid, r.rolname, 'producer'
    FROM pg_roles AS g
    JOIN pg_auth_members AS m ON m.roleid = g.oid
    JOIN pg_roles AS r ON r.oid = m.member
    WHERE (g.rolname = tenantry.producers_group() AND r.rolname ~ '^tenant_.+_producer$')
       OR (g.rolname = tenantry.consumers_group() AND r.rolname ~ '^tenant_.+_consumer$')
$$;

-- Tells whose consumer has called.
CREATE FUNCTION tenantry.consuming_tenant() RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- Not current_user, which is the owner in here.
    own text := substring(session_user::text FROM '^tenant_(.+)_consumer$');
BEGIN
    IF own IS NULL OR NOT pg_has_role(session_user, tenantry.consumers_group(), 'MEMBER') THEN
        RAISE insufficient_privilege USING
            MESSAGE = format('%s consumes for no tenant', session_user);
    END IF;
    RETURN own;
END
$$;

-- Gives the next rows of a topic to this session, under a lease of a minute: up to `most`, 1000, or
-- 8 MiB, one always. Before those come rows whose lease is over. Nothing is given while all is.
CREATE FUNCTION tenantry.receive(topic text, most integer DEFAULT 100)
RETURNS TABLE (
    lease bigint, "position" bigint, "partition" integer, id text, content_type text, headers jsonb,
    payload jsonb, body bytea
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    whose   text := tenantry.consuming_tenant();
    leaf    text := format('tenantry.%I', 'messages_' || whose);
    after   bigint;
    leased  bigint;
    first   bigint;
    last    bigint;
BEGIN
    -- One at a time, each for a moment; who waits is another consumer of the same tenant's.
    SELECT g.position INTO after FROM tenantry.consumer_groups AS g
    WHERE g.tenant_id = whose AND g.topic = receive.topic FOR UPDATE;
    IF NOT FOUND THEN
        RAISE undefined_object
            USING MESSAGE = format('tenant %s has no topic %s to consume', whose, receive.topic);
    END IF;
    SELECT l.id, l.first_position, l.last_position INTO leased, first, last
    FROM tenantry.consumer_leases AS l
    WHERE l.tenant_id = whose AND l.topic = receive.topic
      AND (l.expires_at < clock_timestamp()
           OR NOT EXISTS (SELECT FROM pg_stat_activity AS a WHERE a.pid = l.pid))
    ORDER BY l.first_position LIMIT 1;
    IF leased IS NOT NULL THEN
        UPDATE tenantry.consumer_leases AS l
        SET pid = pg_backend_pid(), expires_at = clock_timestamp() + interval '1 minute'
        WHERE l.id = leased;
    ELSE
        IF (SELECT count(*) FROM tenantry.consumer_leases AS l
            WHERE l.tenant_id = whose AND l.topic = receive.topic) >= 1000 THEN
            RAISE program_limit_exceeded USING MESSAGE = 'too many batches are not settled';
        END IF;
        EXECUTE format(
            'SELECT min(page.position), max(page.position) FROM (
                 SELECT m.position, sum(m.size) OVER (ORDER BY m.position) - m.size AS before
                 FROM (SELECT r.position,
                              coalesce(octet_length(r.body), octet_length(r.payload::text), 0)
                              + coalesce(octet_length(r.headers::text), 0) AS size
                       FROM %s AS r WHERE r.topic = $1 AND r.position > $2
                       ORDER BY r.position LIMIT $3) AS m
             ) AS page WHERE page.before < 8388608', leaf)
        INTO first, last
        USING receive.topic, after, least(greatest(receive.most, 1), 1000);
        IF last IS NULL THEN
            RETURN;
        END IF;
        INSERT INTO tenantry.consumer_leases AS l
            (tenant_id, topic, first_position, last_position, pid, expires_at)
        VALUES (whose, receive.topic, first, last, pg_backend_pid(),
                clock_timestamp() + interval '1 minute')
        RETURNING l.id INTO leased;
        UPDATE tenantry.consumer_groups AS g SET position = last
        WHERE g.tenant_id = whose AND g.topic = receive.topic;
    END IF;
    RETURN QUERY EXECUTE format(
        'SELECT $1, m.position, m.partition, m.id, m.content_type, m.headers, m.payload, m.body
         FROM %s AS m WHERE m.topic = $2 AND m.position BETWEEN $3 AND $4 ORDER BY m.position', leaf)
    USING leased, receive.topic, first, last;
    IF NOT FOUND THEN
        -- They were deleted meanwhile.
        DELETE FROM tenantry.consumer_leases AS l WHERE l.id = leased;
    END IF;
END
$$;

-- Settles what was given under a lease of this session: it does not come again. Tells whether the
-- lease still held; where not, the rows are another's by now.
CREATE FUNCTION tenantry.settle(lease bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    whose text := tenantry.consuming_tenant();
BEGIN
    DELETE FROM tenantry.consumer_leases AS l
    WHERE l.id = settle.lease AND l.tenant_id = whose AND l.pid = pg_backend_pid();
    RETURN FOUND;
END
$$;

-- A function is everybody's unless it is said otherwise, and these act with their owner's rights.
REVOKE EXECUTE ON FUNCTION tenantry.consuming_tenant, tenantry.receive, tenantry.settle FROM PUBLIC;
