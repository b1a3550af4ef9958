-- Attempts at messages whose handlers fail.

-- name: known
-- What is known of messages that were delivered before. One that is listed as a dead letter was
-- judged already, and only its rejection was lost; unless a walk has met it in the queue, or it is
-- being replayed: then this is the replay.
SELECT key, attempts, reason, first_error, last_error,
       greatest(0, extract(epoch FROM not_before - clock_timestamp()))::float8 AS seconds,
       false AS judged
FROM tenantry.attempts
WHERE tenant_id = %(tenant)s AND key = ANY(%(keys)s::bytea[])
UNION ALL
SELECT fingerprint, attempts, reason, coalesce(first_error, error), error, 0, true
FROM tenantry.dead_letters AS letter
WHERE tenant_id = %(tenant)s AND fingerprint = ANY(%(keys)s::bytea[]) AND NOT settled
  AND died_at IS NULL AND (intent IS NULL OR work <> 'replay' OR failed >= replays)
  AND (SELECT true FROM tenantry.attempts AS known
       WHERE known.tenant_id = letter.tenant_id AND known.key = letter.fingerprint) IS NULL;

-- name: note
-- An attempt has a number: noted twice, it counts once. Before an attempt that may kill the daemon
-- that very end is noted as its outcome; whatever comes of it else is noted over it.
INSERT INTO tenantry.attempts AS known
    (tenant_id, key, attempts, reason, first_error, last_error, not_before)
SELECT %(tenant)s, given.key, given.attempts, given.reason, given.error, given.error,
       clock_timestamp() + given.seconds * interval '1 second'
FROM unnest(%(keys)s::bytea[], %(attempts)s::integer[], %(reasons)s::text[], %(errors)s::text[],
            %(seconds)s::float8[]) AS given(key, attempts, reason, error, seconds)
ON CONFLICT (tenant_id, key) DO UPDATE
SET attempts = excluded.attempts, reason = excluded.reason, last_error = excluded.last_error,
    first_error = CASE WHEN excluded.attempts <= 1 OR known.attempts = 0
                       THEN excluded.first_error ELSE known.first_error END,
    not_before = excluded.not_before, updated_at = clock_timestamp()
RETURNING key, first_error;

-- name: forget
DELETE FROM tenantry.attempts WHERE tenant_id = %(tenant)s AND key = ANY(%(keys)s::bytea[]);

-- name: sweep
DELETE FROM tenantry.attempts WHERE updated_at < clock_timestamp() - %(age)s::interval;
