-- Several daemons at work on one database: nodes, each with a term of its own, and each tenant one
-- node's at a time.

-- A node's term has the scope `node:NAME`, and a fence of its own: the table of its `slot` in
-- tenantry_fence, so that nobody waits for the writes of any other node when it is fenced off.
ALTER TABLE tenantry.terms ADD COLUMN slot integer UNIQUE;

CREATE TABLE tenantry.nodes (
    name      text        COLLATE "C" PRIMARY KEY,
    version   text        NOT NULL DEFAULT '',
    weight    real        NOT NULL DEFAULT 1 CHECK (weight > 0),
    -- Which machine it runs on, its control socket there, and where its API is reached from others.
    machine   text        NOT NULL DEFAULT '',
    socket    text        NOT NULL DEFAULT '',
    address   text        NOT NULL DEFAULT '',
    -- Whether it has begun to consume since it joined, and whether it is to be empty.
    active    boolean     NOT NULL DEFAULT false,
    draining  boolean     NOT NULL DEFAULT false,
    rate      real        NOT NULL DEFAULT 0,
    joined_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);

-- Whose a tenant is. `epoch` goes up with every change. Without a `node` it is nobody's: its node
-- is lost, or has left; `previous` is who had it before. `wanted` is the node that an operator has
-- chosen for it.
CREATE TABLE tenantry.owners (
    tenant_id text        COLLATE "C" PRIMARY KEY,
    node      text        COLLATE "C",
    epoch     bigint      NOT NULL DEFAULT 1,
    wanted    text        COLLATE "C",
    previous  text        COLLATE "C" NOT NULL DEFAULT '',
    since     timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 80);
CREATE INDEX owners_by_node ON tenantry.owners (node);

INSERT INTO tenantry.channels (purpose, name)
SELECT 'nodes', 'tenantry_' || replace(gen_random_uuid()::text, '-', '');

-- As before (migration 0016), but for the fence, which each node has of its own: its slot is the
-- claim's third part.
CREATE OR REPLACE FUNCTION tenantry.refuse_past_term() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    claim   text := coalesce(current_setting('tenantry.term', true), '');
    slot    text;
    current bigint;
BEGIN
    IF claim = '' THEN
        RETURN;
    END IF;
    IF session_user <> current_user AND NOT pg_has_role(session_user, current_user, 'MEMBER') THEN
        -- A tenant, in a function that it may call: what it says of itself is no daemon's word, and
        -- holds no fence that a takeover would have to wait for.
        RETURN;
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'with a term, writes are made at READ COMMITTED only'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    slot := split_part(claim, '/', 3);
    IF slot = '' THEN
        LOCK TABLE tenantry_fence.terms IN ROW SHARE MODE;
    ELSE
        EXECUTE format('LOCK TABLE tenantry_fence.%I IN ROW SHARE MODE', 'node_' || slot);
    END IF;
    SELECT t.number INTO current FROM tenantry.terms AS t
    WHERE t.scope = split_part(claim, '/', 1);
    IF current IS DISTINCT FROM split_part(claim, '/', 2)::bigint THEN
        RAISE EXCEPTION 'the term % is over: % is the term now',
            split_part(claim, '/', 1) || '/' || split_part(claim, '/', 2), current
            USING ERRCODE = 'TN001';
    END IF;
END
$$;

-- Ends what is being written behind a fence, and lets nothing new pass until the transaction ends.
CREATE FUNCTION tenantry.close_fence(p_slot integer) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    fence text := CASE WHEN p_slot IS NULL THEN 'terms' ELSE 'node_' || p_slot END;
BEGIN
    BEGIN
        PERFORM pg_terminate_backend(l.pid)
        FROM pg_locks AS l
        WHERE l.locktype = 'relation' AND l.relation = ('tenantry_fence.' || fence)::regclass
          AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
          AND l.mode = 'RowShareLock' AND l.granted
          AND l.pid <> pg_backend_pid();
    EXCEPTION WHEN insufficient_privilege THEN
        NULL;  -- another role's: waited for instead
    END;
    EXECUTE format('LOCK TABLE tenantry_fence.%I IN EXCLUSIVE MODE', fence);
END
$$;

-- As before (migration 0016), but for the fence, which is the scope's own.
CREATE OR REPLACE FUNCTION tenantry.take_term(
    p_scope text, p_number bigint, p_beat bigint, p_instance text, p_host text, p_pid integer
) RETURNS SETOF tenantry.terms
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    seen tenantry.terms;
BEGIN
    SELECT * INTO seen FROM tenantry.terms AS t
    WHERE t.scope = p_scope AND t.number = p_number AND t.beat = p_beat;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    PERFORM tenantry.close_fence(seen.slot);
    RETURN QUERY
    UPDATE tenantry.terms AS t
    SET number = t.number + 1, beat = t.beat + 1, held = true, instance = p_instance,
        host = p_host, pid = p_pid, since = clock_timestamp(), renewed_at = clock_timestamp()
    WHERE t.scope = p_scope AND t.number = p_number AND t.beat = p_beat
    RETURNING t.*;
END
$$;

-- Makes a place for a node of a name, if there is none: its term, and its fence.
CREATE FUNCTION tenantry.open_node(p_name text) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    place integer;
BEGIN
    PERFORM tenantry.hold('nodes');
    SELECT t.slot INTO place FROM tenantry.terms AS t WHERE t.scope = 'node:' || p_name;
    IF place IS NULL THEN
        SELECT coalesce(max(t.slot), 0) + 1 INTO place FROM tenantry.terms AS t;
        EXECUTE format('CREATE TABLE IF NOT EXISTS tenantry_fence.%I ()', 'node_' || place);
        INSERT INTO tenantry.terms (scope, slot) VALUES ('node:' || p_name, place);
    END IF;
    INSERT INTO tenantry.nodes (name) VALUES (p_name) ON CONFLICT DO NOTHING;
    RETURN place;
END
$$;

-- Fences a node off that was seen to have lapsed, and makes its tenants nobody's; tells whether it
-- was still as it was seen.
CREATE FUNCTION tenantry.bury_node(p_name text, p_number bigint, p_beat bigint) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    seen tenantry.terms;
BEGIN
    PERFORM tenantry.refuse_past_term();
    SELECT * INTO seen FROM tenantry.terms AS t
    WHERE t.scope = 'node:' || p_name AND t.number = p_number AND t.beat = p_beat AND t.held;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM tenantry.close_fence(seen.slot);
    UPDATE tenantry.terms AS t SET number = t.number + 1, beat = t.beat + 1, held = false
    WHERE t.scope = seen.scope AND t.number = p_number AND t.beat = p_beat;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE tenantry.nodes AS n SET active = false, rate = 0 WHERE n.name = p_name;
    UPDATE tenantry.owners AS o SET node = NULL, previous = p_name, since = clock_timestamp()
    WHERE o.node = p_name;
    PERFORM tenantry.tell('nodes', p_name);
    RETURN true;
END
$$;

-- Gives back the term of a node that does nothing any more, and makes its tenants nobody's. A node
-- that is to be empty is remembered: it will be back.
CREATE FUNCTION tenantry.leave_node(p_name text, p_number bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE tenantry.terms AS t SET beat = t.beat + 1, held = false
    WHERE t.scope = 'node:' || p_name AND t.number = p_number AND t.held;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    UPDATE tenantry.owners AS o SET node = NULL, previous = p_name, since = clock_timestamp()
    WHERE o.node = p_name;
    UPDATE tenantry.nodes AS n SET active = false, rate = 0 WHERE n.name = p_name;
    DELETE FROM tenantry.nodes AS n WHERE n.name = p_name AND NOT n.draining;
    PERFORM tenantry.tell('nodes', p_name);
END
$$;

-- Gives a tenant from one node to another; the epoch, or nothing where it was not that node's. The
-- counters are locked first, as by whoever stores: what is being stored is committed before.
CREATE FUNCTION tenantry.hand_over(p_tenant text, p_from text, p_to text) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    reached bigint;
BEGIN
    PERFORM FROM tenantry.tenant_counters AS c WHERE c.tenant_id = p_tenant FOR UPDATE;
    UPDATE tenantry.owners AS o
    SET node = p_to, epoch = o.epoch + 1, previous = p_from, since = clock_timestamp()
    WHERE o.tenant_id = p_tenant AND o.node = p_from
    RETURNING o.epoch INTO reached;
    IF FOUND THEN
        PERFORM tenantry.tell('nodes', coalesce(p_to, p_from));
    END IF;
    RETURN reached;
END
$$;

-- Refuses what a node would write for a tenant that is another's. Whoever stores has locked the
-- counters by now, as a hand-over does: one of the two comes first.
CREATE FUNCTION tenantry.check_owner() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    claim text := coalesce(current_setting('tenantry.term', true), '');
    owner text;
BEGIN
    IF starts_with(claim, 'node:') THEN
        SELECT o.node INTO owner FROM tenantry.owners AS o WHERE o.tenant_id = NEW.tenant_id;
        IF owner <> substr(split_part(claim, '/', 1), 6) THEN
            RAISE EXCEPTION 'tenant % is node %''s', NEW.tenant_id, owner USING ERRCODE = 'TN001';
        END IF;
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER owned BEFORE INSERT OR UPDATE ON tenantry.tenant_counters
FOR EACH ROW EXECUTE FUNCTION tenantry.check_owner();
CREATE TRIGGER owned BEFORE INSERT OR UPDATE ON tenantry.credentials
FOR EACH ROW EXECUTE FUNCTION tenantry.check_owner();
CREATE TRIGGER owned BEFORE INSERT OR UPDATE ON tenantry.consumer_credentials
FOR EACH ROW EXECUTE FUNCTION tenantry.check_owner();
