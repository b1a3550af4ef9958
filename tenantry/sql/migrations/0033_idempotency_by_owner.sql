-- Idempotency keys are bounded for each that has some: one tenant's many don't push out others'.
--
-- `owner` is a hash of what a key is for, a tenant's publishing say; `turn` counts its keys.
ALTER TABLE tenantry.idempotency_keys
    ADD COLUMN owner bytea  NOT NULL DEFAULT '',
    ADD COLUMN turn  bigint NOT NULL DEFAULT 0;
CREATE INDEX idempotency_keys_of_owner ON tenantry.idempotency_keys (owner, turn);

-- As the one without an owner (migration 0003), which programs of an earlier version still call;
-- and forgets up to ten of the owner's keys that are more than `p_most`.
CREATE FUNCTION tenantry.claim_idempotency_key(
    p_owner bytea, p_key bytea, p_fingerprint bytea, p_keep interval, p_most bigint
) RETURNS bytea
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
    newest bigint;
BEGIN
    SELECT coalesce(max(k.turn), 0) INTO newest
    FROM tenantry.idempotency_keys AS k WHERE k.owner = p_owner;
    DELETE FROM tenantry.idempotency_keys AS k
    WHERE k.number IN (
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
        JOIN tenantry.idempotency_keys AS oldest ON oldest.number = due.number
        FOR UPDATE OF oldest SKIP LOCKED);
    INSERT INTO tenantry.idempotency_keys (key, fingerprint, owner, turn)
    VALUES (p_key, p_fingerprint, p_owner, newest + 1)
    ON CONFLICT (key) DO NOTHING;
    RETURN (SELECT k.fingerprint FROM tenantry.idempotency_keys AS k WHERE k.key = p_key);
END
$$;
