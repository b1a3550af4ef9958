-- The index of dead letters.

-- name: keep
-- A letter that is listed stays as it is. One that is settled is another now: the same message has
-- come again. What was known of its attempts is known of the letter now.
WITH over AS (
    DELETE FROM tenantry.attempts
    WHERE tenant_id = %(tenant)s AND key = ANY(%(fingerprints)s::bytea[])
)
INSERT INTO tenantry.dead_letters AS kept
    (tenant_id, id, fingerprint, message_id, topic, partition, reason, error, first_error, attempts,
     size, body, content_type, headers, published_at)
SELECT %(tenant)s, given.*
FROM unnest(
    %(ids)s::uuid[], %(fingerprints)s::bytea[], %(message_ids)s::text[], %(topics)s::text[],
    %(partitions)s::integer[], %(reasons)s::text[], %(errors)s::text[], %(first_errors)s::text[],
    %(attempts)s::integer[], %(sizes)s::bigint[], %(bodies)s::bytea[], %(content_types)s::text[],
    %(headers)s::text[], %(published)s::timestamptz[]) AS given
ON CONFLICT (tenant_id, fingerprint) DO UPDATE
SET id = CASE WHEN kept.settled THEN excluded.id ELSE kept.id END,
    dead_lettered_at =
        CASE WHEN kept.settled THEN excluded.dead_lettered_at ELSE kept.dead_lettered_at END,
    reason = excluded.reason, error = excluded.error, first_error = excluded.first_error,
    attempts = excluded.attempts, settled = false, outcome = NULL
RETURNING fingerprint, id;

-- name: page
SELECT id, tenant_id, position, message_id, topic, partition, reason, error,
       coalesce(first_error, error) AS first_error, attempts, size, body, content_type, headers,
       published_at, dead_lettered_at, candidates
FROM (
    SELECT letters.*, count(*) OVER () AS candidates,
           sum(length) OVER (ORDER BY position) - length AS before
    FROM (
        SELECT *, coalesce(octet_length(body), 0) AS length
        FROM tenantry.dead_letters
        WHERE tenant_id = %(tenant)s AND position > %(after)s AND NOT settled
        ORDER BY position
        LIMIT %(limit)s
    ) AS letters
) AS measured
WHERE before = 0 OR before + length <= %(bytes)s
ORDER BY position;

-- name: named
SELECT id FROM tenantry.dead_letters
WHERE tenant_id = %(tenant)s AND NOT settled
  AND (id::text = ANY(%(names)s::text[]) OR message_id = ANY(%(names)s::text[]));

-- name: find
UPDATE tenantry.dead_letters SET seen_in = %(walk)s
WHERE tenant_id = %(tenant)s AND fingerprint = ANY(%(fingerprints)s::bytea[])
RETURNING fingerprint, id, settled;

-- name: settle
UPDATE tenantry.dead_letters SET settled = true, outcome = %(outcome)s
WHERE tenant_id = %(tenant)s AND id = ANY(%(ids)s::uuid[]) AND NOT settled;

-- name: forget
DELETE FROM tenantry.dead_letters
WHERE tenant_id = %(tenant)s AND id = ANY(%(ids)s::uuid[]) AND settled;

-- name: forget_missing
SELECT tenantry.forget_missing_letters(%(tenant)s, %(walk)s, %(age)s);

-- name: drop
SELECT tenantry.drop_letters(%(tenant)s);
