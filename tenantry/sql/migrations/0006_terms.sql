-- Who may write: of several daemons on this database the one that holds the term.
--
-- A term is about a scope; there is one, `daemon`, for all there is. Its number goes up whenever it
-- is taken, so that what an earlier holder still sends can be told apart. `beat` goes up whenever
-- it is renewed: others look at it, and measure by their own clocks for how long it has stood still.
CREATE TABLE tenantry.terms (
    scope      text        COLLATE "C" PRIMARY KEY,
    number     bigint      NOT NULL DEFAULT 0,
    beat       bigint      NOT NULL DEFAULT 0,
    held       boolean     NOT NULL DEFAULT false,
    instance   text        NOT NULL DEFAULT '',
    host       text        NOT NULL DEFAULT '',
    pid        integer     NOT NULL DEFAULT 0,
    since      timestamptz NOT NULL DEFAULT clock_timestamp(),
    renewed_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
INSERT INTO tenantry.terms (scope) VALUES ('daemon');

-- Takes a term from whoever holds it, if it is still as the caller has seen it; gives it as it is
-- then, or no row. Only for callers who know that the holder is gone or has lapsed.
--
-- The lock is the fence. Every write of a holder takes ROW SHARE on this table before it looks at
-- the number, and keeps it until its commit (see `check_term`). EXCLUSIVE waits for all of them and
-- lets no new one pass: what has looked before commits before the number changes, what looks after
-- sees the new number and fails. Writers that would keep us waiting, a frozen client's open
-- transaction say, are ended. Reading the table, as backups do, is in nobody's way.
CREATE FUNCTION tenantry.take_term(
    p_scope text, p_number bigint, p_beat bigint, p_instance text, p_host text, p_pid integer
) RETURNS SETOF tenantry.terms
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM tenantry.terms AS t
    WHERE t.scope = p_scope AND t.number = p_number AND t.beat = p_beat;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    BEGIN
        PERFORM pg_terminate_backend(l.pid)
        FROM pg_locks AS l
        WHERE l.locktype = 'relation' AND l.relation = 'tenantry.terms'::regclass
          AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
          AND l.mode IN ('RowShareLock', 'RowExclusiveLock') AND l.granted
          AND l.pid <> pg_backend_pid();
    EXCEPTION WHEN insufficient_privilege THEN
        NULL;  -- another role's: waited for instead
    END;
    LOCK TABLE tenantry.terms IN EXCLUSIVE MODE;
    RETURN QUERY
    UPDATE tenantry.terms AS t
    SET number = t.number + 1, beat = t.beat + 1, held = true, instance = p_instance,
        host = p_host, pid = p_pid, since = clock_timestamp(), renewed_at = clock_timestamp()
    WHERE t.scope = p_scope AND t.number = p_number AND t.beat = p_beat
    RETURNING t.*;
END
$$;

-- Refuses a write of a session whose term has been taken by another. A session says which it has in
-- its setting `tenantry.term`, as scope/number; one that says nothing is no daemon's.
--
-- It must see what was committed before it got the lock, which a transaction that began to read
-- earlier would not in the stricter levels of isolation.
CREATE FUNCTION tenantry.check_term() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    claim   text := coalesce(current_setting('tenantry.term', true), '');
    current bigint;
BEGIN
    IF claim = '' THEN
        RETURN NULL;
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'with a term, writes are made at READ COMMITTED only'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    LOCK TABLE tenantry.terms IN ROW SHARE MODE;
    SELECT t.number INTO current FROM tenantry.terms AS t
    WHERE t.scope = split_part(claim, '/', 1);
    IF current IS DISTINCT FROM split_part(claim, '/', 2)::bigint THEN
        RAISE EXCEPTION 'the term % is over: % is the term now', claim, current
            USING ERRCODE = 'TN001';
    END IF;
    RETURN NULL;
END
$$;

-- Puts every table of this schema behind the fence that is not; gives how many there were. It is
-- called after all migrations, so that none has to think of it.
--
-- Messages have no fence of their own: whatever stores or drops some also writes to the counters.
-- The parts of a partitioned table have their parent's.
CREATE FUNCTION tenantry.fence_tables() RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    one    regclass;
    fenced integer := 0;
BEGIN
    FOR one IN
        SELECT c.oid::regclass
        FROM pg_class AS c
        WHERE c.relnamespace = 'tenantry'::regnamespace AND c.relkind IN ('r', 'p')
          AND NOT c.relispartition AND c.relname NOT IN ('terms', 'schema_migrations')
          AND NOT EXISTS (
              SELECT FROM pg_trigger AS t
              WHERE t.tgrelid = c.oid AND t.tgfoid = 'tenantry.check_term()'::regprocedure)
    LOOP
        EXECUTE format(
            'CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s
             FOR EACH STATEMENT EXECUTE FUNCTION tenantry.check_term()', one);
        fenced := fenced + 1;
    END LOOP;
    RETURN fenced;
END
$$;
