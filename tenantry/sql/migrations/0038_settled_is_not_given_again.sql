-- What is being settled, or was a moment ago, is not given out again.

-- Gives the next rows of a topic to this session, under a lease of a minute: up to `most`, 1000, or
-- 8 MiB, one always. Before those come rows whose lease is over. Nothing is given while all is.
CREATE OR REPLACE FUNCTION tenantry.receive(topic text, most integer DEFAULT 100)
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
    this    bigint;
    size    bigint;
    total   bigint := 0;
BEGIN
    -- One at a time, each for a moment; who waits is another consumer of the same tenant's.
    SELECT g.position INTO after FROM tenantry.consumer_groups AS g
    WHERE g.tenant_id = whose AND g.topic = receive.topic FOR UPDATE;
    IF NOT FOUND THEN
        RAISE undefined_object
            USING MESSAGE = format('tenant %s has no topic %s to consume', whose, receive.topic);
    END IF;
    -- Whose session has ended may have settled it since this statement began, and who is late may be
    -- settling it in an open transaction: such a lease is passed over, and not waited for.
    SELECT l.id, l.first_position, l.last_position INTO leased, first, last
    FROM tenantry.consumer_leases AS l
    WHERE l.tenant_id = whose AND l.topic = receive.topic
      AND (l.expires_at < clock_timestamp()
           OR NOT EXISTS (SELECT FROM pg_stat_activity AS a WHERE a.pid = l.pid))
    ORDER BY l.first_position LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF leased IS NOT NULL THEN
        UPDATE tenantry.consumer_leases AS l
        SET pid = pg_backend_pid(), expires_at = clock_timestamp() + interval '1 minute'
        WHERE l.id = leased;
    ELSE
        IF (SELECT count(*) FROM tenantry.consumer_leases AS l
            WHERE l.tenant_id = whose AND l.topic = receive.topic) >= 1000 THEN
            RAISE program_limit_exceeded USING MESSAGE = 'too many batches are not settled';
        END IF;
        -- Rows are read a few at a time: those that don't fit are not all measured.
        FOR this, size IN EXECUTE format(
            'SELECT r.position,
                    coalesce(octet_length(r.body), octet_length(r.payload::text), 0)
                    + coalesce(octet_length(r.headers::text), 0)
             FROM %s AS r WHERE r.topic = $1 AND r.position > $2
             ORDER BY r.position LIMIT $3', leaf)
        USING receive.topic, after, least(greatest(receive.most, 1), 1000)
        LOOP
            EXIT WHEN total >= 8388608;
            first := coalesce(first, this);
            last := this;
            total := total + size;
        END LOOP;
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
