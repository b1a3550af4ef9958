-- What Apache Iggy can't keep itself: dead letters, and with which password a user was made.

-- name: reject
INSERT INTO tenantry.iggy_rejected
    (tenant_id, topic, partition, made, message_offset, id, published_at_ms, properties, body)
VALUES (%(tenant)s, %(topic)s, %(partition)s, %(made)s, %(offset)s, %(id)s, %(published_at_ms)s,
        %(properties)s, %(body)s)
ON CONFLICT DO NOTHING;

-- name: rejected_beyond
SELECT message_offset FROM tenantry.iggy_rejected
WHERE tenant_id = %(tenant)s AND topic = %(topic)s AND partition = %(partition)s
  AND made = %(made)s AND message_offset >= %(floor)s;

-- name: forget_gone
-- What can't come any more: below the offset, or of a topic that is no more.
DELETE FROM tenantry.iggy_rejected
WHERE tenant_id = %(tenant)s AND topic = %(topic)s AND partition = %(partition)s AND gone
  AND (made <> %(made)s OR message_offset < %(floor)s);

-- name: last_rejected
SELECT coalesce(max(seq), 0) FROM tenantry.iggy_rejected WHERE tenant_id = %(tenant)s AND NOT gone;

-- name: next_rejected
-- Up to so many bytes of bodies and headers; one message always.
SELECT seq, id, topic, partition, body, published_at_ms, properties, died_at
FROM (
    SELECT r.*, sum(size) OVER (ORDER BY seq) - size AS before
    FROM (
        SELECT seq, id, topic, partition, body, published_at_ms, properties, died_at,
               octet_length(body) + octet_length(properties) AS size
        FROM tenantry.iggy_rejected
        WHERE tenant_id = %(tenant)s AND NOT gone AND seq > %(after)s AND seq <= %(last)s
        ORDER BY seq LIMIT %(most)s
    ) AS r
) AS page
WHERE before < %(bytes)s ORDER BY seq;

-- name: remove_rejected
UPDATE tenantry.iggy_rejected SET gone = true, body = '', properties = ''
WHERE tenant_id = %(tenant)s AND NOT gone AND seq = ANY(%(seqs)s::bigint[]);

-- name: drop_rejected
WITH dropped AS (
    DELETE FROM tenantry.iggy_rejected WHERE tenant_id = %(tenant)s RETURNING gone
)
SELECT count(*) FILTER (WHERE NOT gone) FROM dropped;

-- name: count_rejected
SELECT tenant_id, count(*) FROM tenantry.iggy_rejected WHERE NOT gone GROUP BY tenant_id;

-- name: rejected_places
SELECT tenant_id, topic, partition, message_offset FROM tenantry.iggy_rejected;

-- name: record_user
INSERT INTO tenantry.iggy_users (number, made, tenant_id, password_hash)
VALUES (%(number)s, %(at)s, %(tenant)s, %(hash)s)
ON CONFLICT (number, made) DO UPDATE SET password_hash = excluded.password_hash;

-- name: known_users
SELECT number, made, password_hash FROM tenantry.iggy_users;

-- name: known_users_of
SELECT number, made, password_hash FROM tenantry.iggy_users WHERE tenant_id = %(tenant)s;

-- name: forget_users
DELETE FROM tenantry.iggy_users
WHERE tenant_id = %(tenant)s AND number <> ALL(%(kept)s::bigint[]);

-- name: confirmed_producer_hash
SELECT password_hash FROM tenantry.credentials
WHERE tenant_id = %(tenant)s AND password_hash IS NOT NULL;

-- name: confirmed_consumer_hash
SELECT password_hash FROM tenantry.consumer_credentials
WHERE tenant_id = %(tenant)s AND password_hash IS NOT NULL;

-- name: keep_offset
INSERT INTO tenantry.iggy_offsets (tenant_id, topic, partition, made, message_offset)
VALUES (%(tenant)s, %(topic)s, %(partition)s, %(made)s, %(offset)s)
ON CONFLICT (tenant_id, topic, partition, made)
DO UPDATE SET message_offset = excluded.message_offset;

-- name: kept_offset
SELECT message_offset FROM tenantry.iggy_offsets
WHERE tenant_id = %(tenant)s AND topic = %(topic)s AND partition = %(partition)s
  AND made = %(made)s;

-- name: forget_offsets
-- Of whichever of the topics that have had the name.
DELETE FROM tenantry.iggy_offsets WHERE tenant_id = %(tenant)s AND topic = %(topic)s;

-- name: drop_offsets
DELETE FROM tenantry.iggy_offsets WHERE tenant_id = %(tenant)s;
