-- Functions whose work must not depend on what the planner takes tables to be: these are full and
-- empty by turns, and counted now and then.

-- As before (migration 0009). Without a join of what letters were with what they are: planned for
-- one letter and kept, that compares each with each of them.
CREATE OR REPLACE FUNCTION tenantry.count_settled_letters() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
BEGIN
    UPDATE tenantry.tenant_counters AS c
    SET letters_kept = c.letters_kept + counted.kept,
        letters_replayed = c.letters_replayed + counted.replayed,
        letters_discarded = c.letters_discarded + counted.discarded,
        letters_missing = c.letters_missing + counted.missing
    FROM (
        SELECT letter.tenant_id,
               -- A settled letter that is listed again is another one.
               count(*) FILTER (WHERE letter.was_settled) AS kept,
               count(*) FILTER (WHERE letter.settled AND letter.outcome = 'replayed') AS replayed,
               count(*) FILTER (WHERE letter.settled
                                AND coalesce(letter.outcome, 'discarded') = 'discarded')
                   AS discarded,
               count(*) FILTER (WHERE letter.settled AND letter.outcome = 'missing') AS missing
        FROM (
            SELECT state.tenant_id,
                   bool_or(state.settled) FILTER (WHERE state.past) AS was_settled,
                   bool_or(state.settled) FILTER (WHERE NOT state.past) AS settled,
                   max(state.outcome) FILTER (WHERE NOT state.past) AS outcome
            FROM (
                SELECT b.tenant_id, b.position, b.settled, b.outcome, true AS past
                FROM before AS b
                UNION ALL
                SELECT a.tenant_id, a.position, a.settled, a.outcome, false FROM after AS a
            ) AS state
            GROUP BY state.tenant_id, state.position
        ) AS letter
        WHERE letter.was_settled <> letter.settled
        GROUP BY letter.tenant_id
    ) AS counted
    WHERE c.tenant_id = counted.tenant_id;
    RETURN NULL;
END
$$;

-- As before (migration 0035). A subquery that gives a value is looked up for each id; EXISTS may
-- become a hash of all ids that are remembered of the tenant.
CREATE OR REPLACE FUNCTION tenantry.remembered(p_number integer, p_ids text[]) RETURNS text[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off AS $$
DECLARE
    lows bigint[] := ARRAY(SELECT hashtextextended(g.id, 0) FROM unnest(p_ids) AS g(id));
BEGIN
    IF NOT EXISTS (SELECT FROM tenantry_fence.remembered_0 AS r
                   WHERE r.tenant = p_number AND r.low = ANY(lows))
       AND NOT EXISTS (SELECT FROM tenantry_fence.remembered_1 AS r
                       WHERE r.tenant = p_number AND r.low = ANY(lows))
       AND NOT EXISTS (SELECT FROM tenantry_fence.remembered_2 AS r
                       WHERE r.tenant = p_number AND r.low = ANY(lows))
    THEN
        RETURN NULL;
    END IF;
    RETURN (
        SELECT array_agg(given.id)
        FROM (SELECT g.id, hashtextextended(g.id, 0) AS low, hashtextextended(g.id, 1) AS high
              FROM unnest(p_ids) AS g(id) OFFSET 0) AS given
        WHERE (SELECT true FROM tenantry_fence.remembered_0 AS r
               WHERE r.tenant = p_number AND r.low = given.low AND r.high = given.high LIMIT 1)
           OR (SELECT true FROM tenantry_fence.remembered_1 AS r
               WHERE r.tenant = p_number AND r.low = given.low AND r.high = given.high LIMIT 1)
           OR (SELECT true FROM tenantry_fence.remembered_2 AS r
               WHERE r.tenant = p_number AND r.low = given.low AND r.high = given.high LIMIT 1));
END
$$;

-- Both give the first few of many, which an index has in order: nothing is to be sorted for them.
ALTER FUNCTION tenantry.look(text, integer) SET enable_sort = off;
ALTER FUNCTION tenantry.look(text, integer) SET jit = off;
ALTER FUNCTION tenantry.receive(text, integer) SET enable_sort = off;
ALTER FUNCTION tenantry.receive(text, integer) SET jit = off;

-- As before (migration 0033), but keys that are due are found first, and then looked up one by one.
CREATE OR REPLACE FUNCTION tenantry.claim_idempotency_key(
    p_owner bytea, p_key bytea, p_fingerprint bytea, p_keep interval, p_most bigint
) RETURNS bytea
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
    newest bigint;
BEGIN
    SELECT coalesce(max(k.turn), 0) INTO newest
    FROM tenantry.idempotency_keys AS k WHERE k.owner = p_owner;
    DELETE FROM tenantry.idempotency_keys AS k
    WHERE k.number = ANY(ARRAY(
        SELECT oldest.number
        FROM (
            SELECT first.number
            FROM (SELECT f.number, f.claimed_at FROM tenantry.idempotency_keys AS f
                  ORDER BY f.number LIMIT 10) AS first
            WHERE first.claimed_at < clock_timestamp() - p_keep
            UNION
            (SELECT own.number FROM tenantry.idempotency_keys AS own
             WHERE own.owner = p_owner AND own.turn <= newest - p_most
             ORDER BY own.turn LIMIT 10)
        ) AS due
        CROSS JOIN LATERAL (
            SELECT one.number FROM tenantry.idempotency_keys AS one
            WHERE one.number = due.number LIMIT 1 FOR UPDATE SKIP LOCKED
        ) AS oldest));
    INSERT INTO tenantry.idempotency_keys (key, fingerprint, owner, turn)
    VALUES (p_key, p_fingerprint, p_owner, newest + 1)
    ON CONFLICT (key) DO NOTHING;
    RETURN (SELECT k.fingerprint FROM tenantry.idempotency_keys AS k WHERE k.key = p_key);
END
$$;
