-- What each idempotency key was first used for, so that it is not used for anything else.
--
-- Both columns are hashes: of the call and its key, and of the call's body. No answer is kept, and
-- so no password. Rows are forgotten in the order they came: by age, or when there are too many.
CREATE TABLE tenantry.idempotency_keys (
    number      bigint      GENERATED ALWAYS AS IDENTITY UNIQUE,
    key         bytea       PRIMARY KEY,
    fingerprint bytea       NOT NULL,
    claimed_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Keeps what a key is used for, unless it is kept already; gives the fingerprint that is kept.
-- Each call forgets up to ten of the oldest rows, if their time has come: more than it adds.
CREATE FUNCTION tenantry.claim_idempotency_key(
    p_key bytea, p_fingerprint bytea, p_keep interval, p_most bigint
) RETURNS bytea
LANGUAGE plpgsql AS $$
DECLARE
    newest bigint;
BEGIN
    SELECT max(k.number) INTO newest FROM tenantry.idempotency_keys AS k;
    DELETE FROM tenantry.idempotency_keys AS k
    WHERE k.number IN (
        SELECT oldest.number
        FROM tenantry.idempotency_keys AS oldest
        WHERE oldest.number IN (
            SELECT first.number FROM tenantry.idempotency_keys AS first
            ORDER BY first.number LIMIT 10)
          AND (oldest.claimed_at < clock_timestamp() - p_keep OR oldest.number <= newest - p_most)
        FOR UPDATE SKIP LOCKED);
    INSERT INTO tenantry.idempotency_keys (key, fingerprint) VALUES (p_key, p_fingerprint)
    ON CONFLICT (key) DO NOTHING;
    RETURN (SELECT k.fingerprint FROM tenantry.idempotency_keys AS k WHERE k.key = p_key);
END
$$;
