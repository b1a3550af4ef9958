-- What tenants may call with database roles of their own: they reach the embedded broker by these
-- functions and by nothing else. The functions run with their owner's rights and see to it that
-- nobody acts for a tenant but its own role, or a role that is a member of it.

-- Tells for which tenant the caller acts: the one asked for, if that may be, else its own.
CREATE FUNCTION tenantry.acting_tenant(p_wanted text) RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
    -- Not current_user, which is the owner in here.
    own text := substring(session_user::text FROM '^tenant_(.+)_producer$');
    role oid;
BEGIN
    IF p_wanted IS NULL OR p_wanted = own THEN
        IF own IS NOT NULL THEN
            RETURN own;
        END IF;
        RAISE insufficient_privilege USING
            MESSAGE = format('%s is no tenant''s role', session_user),
            HINT = 'Name the tenant: tenant => ''acme''. Its role must have been granted to you.';
    END IF;
    SELECT oid INTO role FROM pg_roles WHERE rolname = 'tenant_' || p_wanted || '_producer';
    IF role IS NULL OR NOT pg_has_role(session_user, role, 'MEMBER') THEN
        RAISE insufficient_privilege USING
            MESSAGE = format('%s may not act for tenant %s', session_user, p_wanted);
    END IF;
    RETURN p_wanted;
END
$$;

-- CRC-32 as zlib computes it: what chooses a key's partition over HTTP as well.
CREATE FUNCTION tenantry.crc32(p_text text) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE STRICT SET search_path = pg_catalog AS $$
DECLARE
    bytes bytea := convert_to(p_text, 'UTF8');
    crc bigint := 4294967295;
BEGIN
    FOR i IN 0..length(bytes) - 1 LOOP
        crc := crc # get_byte(bytes, i);
        FOR bit IN 1..8 LOOP
            crc := CASE WHEN crc & 1 = 1 THEN (crc >> 1) # 3988292384 ELSE crc >> 1 END;
        END LOOP;
    END LOOP;
    RETURN crc # 4294967295;
END
$$;

-- Gives the routing key of a message: by its key, or at random where it has none.
CREATE FUNCTION tenantry.routing_key(p_tenant text, p_topic text, p_key text) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    partitions integer;
BEGIN
    IF p_topic = 'default' THEN
        RETURN p_topic;
    END IF;
    SELECT count(*) INTO partitions
    FROM tenantry.queues WHERE tenant_id = p_tenant AND topic = p_topic;
    IF partitions = 0 THEN
        RETURN p_topic;  -- which no queue takes
    END IF;
    RETURN p_topic || '.' || CASE
        WHEN p_key IS NULL THEN floor(random() * partitions)::bigint
        ELSE tenantry.crc32(p_key) % partitions
    END;
END
$$;

-- Publishes JSON to a topic and gives the message's id. The message is there once the caller's
-- transaction commits, and never if it is rolled back: the caller's own rows and its messages
-- are true together. An id that was given before is stored once; without one, one is made.
CREATE FUNCTION tenantry.publish(
    topic text,
    payload jsonb,
    key text DEFAULT NULL,
    id text DEFAULT NULL,
    headers jsonb DEFAULT NULL,
    tenant text DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    IF payload IS NULL THEN
        RAISE null_value_not_allowed USING MESSAGE = 'payload is NULL; JSON''s null is ''null''';
    END IF;
    RETURN tenantry.publish_bytes(
        topic, convert_to(payload::text, 'UTF8'), 'application/json', key, id, headers, tenant);
END
$$;

-- The same for anything that is not JSON.
CREATE FUNCTION tenantry.publish_bytes(
    topic text,
    body bytea,
    content_type text,
    key text DEFAULT NULL,
    id text DEFAULT NULL,
    headers jsonb DEFAULT NULL,
    tenant text DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
    -- The caller's session_user is the same in here, whatever function called this one.
    whose text := tenantry.acting_tenant(tenant);
    named text := coalesce(id, gen_random_uuid()::text);
BEGIN
    PERFORM tenantry.enqueue(
        'tenant_' || whose || '_stream',
        ARRAY[tenantry.routing_key(whose, topic, key)],
        ARRAY[named], ARRAY[body], ARRAY[content_type], ARRAY[headers],
        ARRAY[floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint]);
    RETURN named;
END
$$;

-- Publishes many messages by their routing keys (T.P, or default), all of them or none.
CREATE FUNCTION tenantry.publish_many(
    keys text[],
    ids text[],
    bodies bytea[],
    content_types text[],
    headers jsonb[],
    published_at_ms bigint[],
    tenant text DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    PERFORM tenantry.enqueue(
        'tenant_' || tenantry.acting_tenant(tenant) || '_stream',
        keys, ids, bodies, content_types, headers, published_at_ms);
END
$$;

-- Shows what waits in one of the tenant's queues, oldest first; takes nothing from it.
CREATE FUNCTION tenantry.look(queue_name text, most integer DEFAULT 100)
RETURNS TABLE (
    id text, published_at timestamptz, content_type text, headers jsonb, body bytea
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
    number integer;
    owner text;
BEGIN
    SELECT q.id, q.tenant_id INTO number, owner FROM tenantry.queues AS q WHERE q.name = queue_name;
    IF number IS NULL THEN
        -- The same answer for what is not there and what is another's.
        RAISE insufficient_privilege USING
            MESSAGE = format('%s may not look into %s', session_user, queue_name);
    END IF;
    BEGIN
        PERFORM tenantry.acting_tenant(owner);
    EXCEPTION WHEN insufficient_privilege THEN
        RAISE insufficient_privilege USING
            MESSAGE = format('%s may not look into %s', session_user, queue_name);
    END;
    RETURN QUERY
        SELECT m.id, to_timestamp(m.published_at_ms / 1000.0), m.content_type, m.headers, m.body
        FROM tenantry.queued AS m WHERE m.queue = number ORDER BY m.seq LIMIT least(most, 1000);
END
$$;

-- A function is everybody's unless it is said otherwise, and these act with their owner's rights.
REVOKE EXECUTE ON FUNCTION
    tenantry.acting_tenant, tenantry.publish, tenantry.publish_bytes, tenantry.publish_many,
    tenantry.look
FROM PUBLIC;
