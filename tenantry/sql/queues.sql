-- The embedded broker.

-- name: enqueue
SELECT tenantry.enqueue(
    %(stream)s::text, %(keys)b, %(ids)b, %(bodies)b, %(content_types)b, %(headers)b,
    %(published_at_ms)b);

-- Consuming.

-- name: become_consumer
WITH forgotten AS (
    DELETE FROM tenantry.consumers WHERE expires_at < clock_timestamp() - interval '1 day'
)
INSERT INTO tenantry.consumers (expires_at, pid, began_at)
SELECT clock_timestamp() + make_interval(secs => %(lease)s), own.pid, own.backend_start
FROM pg_stat_get_activity(pg_backend_pid()) AS own
RETURNING id;

-- name: renew
-- No row: the lease is another's to give up, and everything with it.
WITH renewed AS (
    UPDATE tenantry.consumers SET expires_at = clock_timestamp() + make_interval(secs => %(lease)s)
    WHERE id = %(consumer)s RETURNING id
)
SELECT coalesce(array_agg(q.id) FILTER (WHERE q.id IS NOT NULL), '{}')
FROM renewed LEFT JOIN tenantry.queues AS q ON q.consumer = renewed.id
GROUP BY renewed.id;

-- name: acquire
-- Others see it at once; it need not outlive the server, with which the reader's session ends. So a
-- start does not wait for the disk once for each tenant.
SELECT name, queue, redelivered_up_to, acquired
FROM (SELECT set_config('synchronous_commit', 'off', true)) AS in_no_hurry,
     tenantry.acquire_queues(%(consumer)s, %(names)s::text[]);

-- name: release
-- As above; of what was given out, that is not told then.
UPDATE tenantry.queues AS q SET consumer = NULL, delivered = greatest(q.delivered, r.delivered)
FROM (SELECT set_config('synchronous_commit', 'off', true)) AS in_no_hurry,
     unnest(%(queues)s::integer[], %(delivered)s::bigint[]) AS r(queue, delivered)
WHERE q.id = r.queue AND q.consumer = %(consumer)s;

-- name: forget_consumer
DELETE FROM tenantry.consumers WHERE id = %(consumer)s;

-- name: channel
SELECT name FROM tenantry.channels WHERE purpose = 'queued';

-- name: ask_for_notify
-- Publishers must see it at once; it need not outlive the server, whose end the reader wakes up from.
UPDATE tenantry.queues AS q SET asleep = true
FROM (SELECT set_config('synchronous_commit', 'off', true)) AS in_no_hurry
WHERE q.id = ANY(%(queues)s::integer[]) AND q.consumer = %(consumer)s;

-- name: no_notify
UPDATE tenantry.queues AS q SET asleep = false
FROM (SELECT set_config('synchronous_commit', 'off', true)) AS in_no_hurry
WHERE q.id = ANY(%(queues)s::integer[]) AND q.consumer = %(consumer)s;

-- name: youngest_transaction
-- All that began to change something before this have lower numbers. A snapshot doesn't tell that:
-- it ends with the last one that has ended, and younger ones may be open.
SELECT pg_current_xact_id()::text::bigint;

-- name: open_transactions
SELECT pg_snapshot_xmin(now)::text::bigint, pg_snapshot_xmax(now)::text::bigint,
       ARRAY(SELECT x::text::bigint FROM pg_snapshot_xip(now) AS x)
FROM pg_current_snapshot() AS now;

-- name: promising
-- Of some queues, where something lies beyond their floors. Of those between them, which may be very
-- many and mostly empty, all that are not: from one to the next by the index, a step for each gap
-- and for each queue that is found.
WITH RECURSIVE lying (queue, high) AS (
    SELECT (SELECT min(m.queue) FROM tenantry.queued AS m
            WHERE m.queue > gap.low AND m.queue < gap.high), gap.high
    FROM unnest(%(lows)b::integer[], %(highs)b::integer[]) AS gap (low, high)
    UNION ALL
    SELECT (SELECT min(m.queue) FROM tenantry.queued AS m
            WHERE m.queue > lying.queue AND m.queue < lying.high), lying.high
    FROM lying WHERE lying.queue IS NOT NULL
)
SELECT known.queue, ahead.last
FROM unnest(%(queues)b::integer[], %(floors)b::bigint[]) AS known (queue, floor)
CROSS JOIN LATERAL (SELECT max(m.seq) AS last FROM tenantry.queued AS m
                    WHERE m.queue = known.queue AND m.seq > known.floor) AS ahead
WHERE ahead.last IS NOT NULL
UNION ALL
SELECT lying.queue, (SELECT max(m.seq) FROM tenantry.queued AS m WHERE m.queue = lying.queue)
FROM lying WHERE lying.queue IS NOT NULL;

-- name: fetch
-- What lies in queues beyond their floors and is not in hand, up to so many messages of each, and
-- so many bytes of bodies, ids and headers of all: no answer is larger, but for one message; where
-- they are to fit as a whole, not even that. Headers are not read here, but passed on as text. What
-- can still turn up between what is given here is of transactions with lower numbers than this
-- one, which got its own after its snapshot (see youngest_transaction). Removing dead rows from a
-- page is logged: with such a number the commit would wait for the disk then, and the reader for it.
SELECT n, seq, published_at_ms, id, content_type, headers, body, size,
       (SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint),
       (SELECT pg_current_xact_id()::text::bigint)
FROM (SELECT set_config('synchronous_commit', 'off', true)) AS in_no_hurry, (
    SELECT wanted.n, m.*, sum(m.size) OVER (ROWS UNBOUNDED PRECEDING) AS bytes
    FROM unnest(%(queues)s::integer[], %(floors)s::bigint[], %(most)s::integer[])
        WITH ORDINALITY AS wanted(queue, floor, most, n)
    JOIN tenantry.queues AS q ON q.id = wanted.queue AND q.consumer = %(consumer)s
    CROSS JOIN LATERAL (
        SELECT seq, published_at_ms, id, content_type, headers::text AS headers, body,
               octet_length(body) + coalesce(octet_length(id), 0)
                   + coalesce(octet_length(headers::text), 0) AS size
        FROM tenantry.queued AS ready
        WHERE ready.queue = wanted.queue AND ready.seq > wanted.floor
            AND ready.seq NOT IN (SELECT unnest(%(in_hand)b))
        ORDER BY ready.seq
        LIMIT wanted.most
    ) AS m
) AS found
WHERE bytes - size < %(bytes)s AND bytes <= coalesce(%(whole)s::bigint, bytes)
ORDER BY n, seq;

-- name: acknowledge
WITH gone AS (
    SELECT m.queue, count(*) AS messages, sum(octet_length(m.body)) AS size
    FROM (SELECT r.queue, array_agg(r.seq) AS seqs
          FROM unnest(%(queues)b, %(seqs)b) AS r(queue, seq) GROUP BY r.queue) AS wanted
    CROSS JOIN LATERAL tenantry.remove_queued(wanted.queue, wanted.seqs) AS m
    GROUP BY m.queue
)
SELECT tenantry.count_backlog(q.tenant_id, -sum(gone.messages)::bigint, -sum(gone.size)::bigint)
FROM gone JOIN tenantry.queues AS q ON q.id = gone.queue
GROUP BY q.tenant_id HAVING tenantry.has_backlog_limit(q.tenant_id);

-- name: reject
WITH put AS (
    INSERT INTO tenantry.rejected
        (seq, tenant_id, topic, partition, published_at_ms, id, content_type, headers, body)
    SELECT m.seq, q.tenant_id, q.topic, q.partition, m.published_at_ms, m.id, m.content_type,
           m.headers, m.body
    FROM (SELECT r.queue, array_agg(r.seq) AS seqs
          FROM unnest(%(queues)b, %(seqs)b) AS r(queue, seq) GROUP BY r.queue) AS wanted
    JOIN tenantry.queues AS q ON q.id = wanted.queue
    CROSS JOIN LATERAL tenantry.remove_queued(wanted.queue, wanted.seqs) AS m
    RETURNING tenant_id, octet_length(body) AS size
)
SELECT tenantry.count_backlog(put.tenant_id, -count(*), -sum(put.size))
FROM put GROUP BY put.tenant_id HAVING tenantry.has_backlog_limit(put.tenant_id);

-- Dead letters.

-- name: begin_browse
-- No row: another session walks, and has not ended.
INSERT INTO tenantry.walks AS w (tenant_id, pid, began_at)
SELECT %(tenant)s, own.pid, own.backend_start FROM pg_stat_get_activity(pg_backend_pid()) AS own
ON CONFLICT (tenant_id) DO UPDATE SET pid = excluded.pid, began_at = excluded.began_at
WHERE tenantry.session_has_ended(w.pid, w.began_at)
RETURNING true;

-- name: end_browse
DELETE FROM tenantry.walks AS w USING pg_stat_get_activity(pg_backend_pid()) AS own
WHERE w.tenant_id = %(tenant)s AND w.pid = own.pid AND w.began_at = own.backend_start;

-- name: last_rejected
SELECT coalesce(max(seq), 0) FROM tenantry.rejected WHERE tenant_id = %(tenant)s;

-- name: next_rejected
-- Up to so many bytes of bodies, ids and headers; one message always.
SELECT seq, id, topic, partition, body, content_type, headers, published_at_ms
FROM (
    SELECT r.*, sum(size) OVER (ORDER BY seq) - size AS before
    FROM (
        SELECT seq, id, topic, partition, body, content_type, headers::text AS headers,
               published_at_ms,
               octet_length(body) + coalesce(octet_length(id), 0)
                   + coalesce(octet_length(headers::text), 0) AS size
        FROM tenantry.rejected
        WHERE tenant_id = %(tenant)s AND seq > %(after)s AND seq <= %(last)s
        ORDER BY seq LIMIT %(most)s
    ) AS r
) AS page
WHERE before < %(bytes)s ORDER BY seq;

-- name: put_rejected
-- What another broker has given, of a tenant that has queues here.
INSERT INTO tenantry.rejected
    (seq, tenant_id, topic, partition, published_at_ms, id, content_type, headers, body)
SELECT nextval('tenantry.queued_seq'), %(tenant)s, %(topic)s, %(partition)s,
       %(published_at_ms)s, nullif(%(id)s, ''), %(content_type)s, %(headers)s::jsonb, %(body)b
WHERE EXISTS (SELECT FROM tenantry.queues AS q WHERE q.tenant_id = %(tenant)s);

-- name: remove_rejected
DELETE FROM tenantry.rejected WHERE tenant_id = %(tenant)s AND seq = ANY(%(seqs)s::bigint[]);

-- Administration.

-- name: lock_topology
SELECT tenantry.hold('topology.' || %(tenant)s);

-- name: ensure_queues
INSERT INTO tenantry.queues (name, tenant_id, topic, partition)
SELECT w.name, %(tenant)s, w.topic, w.partition
FROM unnest(%(names)s::text[], %(topics)s::text[], %(partitions)s::integer[])
    AS w(name, topic, partition)
WHERE NOT EXISTS (SELECT FROM tenantry.queues AS q WHERE q.name = w.name)
ON CONFLICT DO NOTHING;

-- name: ensure_bindings
INSERT INTO tenantry.bindings (stream, routing_key, queue)
SELECT %(stream)s, w.key, q.id
FROM unnest(%(queues)s::text[], %(keys)s::text[]) AS w(name, key)
JOIN tenantry.queues AS q ON q.name = w.name
ON CONFLICT DO NOTHING;

-- name: close_exchange
DELETE FROM tenantry.bindings WHERE stream = %(stream)s;

-- name: publishing
-- Who has put something into a queue, whichever, and has not ended. Sessions of this user, who
-- publishes for all, and of superusers are waited for only. (Of a role that is no more nobody is a member.)
SELECT l.virtualtransaction, a.pid, a.usename::text, a.usename <> current_user AND NOT r.rolsuper
FROM pg_locks AS l
JOIN pg_stat_activity AS a ON a.pid = l.pid
JOIN pg_roles AS r ON r.oid = a.usesysid
LEFT JOIN pg_roles AS tenant ON tenant.rolname = %(user)s
WHERE l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND l.granted
  AND l.relation = 'tenantry.queued'::regclass
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.pid <> pg_backend_pid()
  AND (r.rolsuper OR a.usename = current_user OR pg_has_role(r.oid, tenant.oid, 'MEMBER'));

-- name: remove_queues
-- Readers are told by the minus that the queue has gone.
WITH gone AS (DELETE FROM tenantry.queues WHERE tenant_id = %(tenant)s RETURNING id)
SELECT id, tenantry.tell('queued', '-' || id) FROM gone;

-- name: drop_messages
WITH messages AS (
    DELETE FROM tenantry.queued WHERE queue = ANY(%(queues)s::integer[]) RETURNING 1
), letters AS (
    DELETE FROM tenantry.rejected WHERE tenant_id = %(tenant)s RETURNING 1
)
SELECT (SELECT count(*) FROM messages) + (SELECT count(*) FROM letters);

-- name: queue_counts
SELECT q.tenant_id, coalesce(sum(waiting.messages), 0)::bigint, coalesce(max(letters.messages), 0)
FROM tenantry.queues AS q
LEFT JOIN (SELECT queue, count(*) AS messages FROM tenantry.queued GROUP BY queue) AS waiting
    ON waiting.queue = q.id
LEFT JOIN (SELECT tenant_id, count(*) AS messages FROM tenantry.rejected GROUP BY tenant_id)
    AS letters ON letters.tenant_id = q.tenant_id
GROUP BY q.tenant_id;

-- name: limit_tenant
SELECT tenantry.limit_tenant(
    %(tenant)s, %(connections)s::integer, %(messages)s::bigint, %(bytes)s::bigint);

-- name: recount_backlog
SELECT tenantry.recount_backlog(%(tenant)s);

-- name: limited
SELECT tenant_id, connections, backlog_messages, backlog_bytes FROM tenantry.broker_limits;

-- name: surveyed_queues
-- A lease that lapses is no queue's loss while its reader, which is late, may still renew it: that is
-- so until another takes the queue, or the reader's session ends.
SELECT q.name, q.tenant_id, c.id IS NOT NULL
FROM tenantry.queues AS q
LEFT JOIN (
    SELECT id FROM tenantry.consumers
    WHERE expires_at > clock_timestamp()
       OR (pid IS NOT NULL AND NOT tenantry.session_has_ended(pid, began_at))
) AS c ON c.id = q.consumer;

-- name: surveyed_bindings
SELECT b.stream, q.name, b.routing_key
FROM tenantry.bindings AS b JOIN tenantry.queues AS q ON q.id = b.queue;

-- name: surveyed_users
-- Roles are the whole server's: a tenant's role is in the group of the database where it is one.
-- Whoever may not read what is kept of passwords takes them to be right.
SELECT r.rolname, r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolbypassrls, c.password_hash,
       coalesce((SELECT pg_has_role(r.oid, g.oid, 'MEMBER') FROM pg_roles AS g WHERE g.rolname = part.part),
                false),
       shobj_description(r.oid, 'pg_authid'),
       ARRAY(
           SELECT g.rolname::text FROM pg_auth_members AS m JOIN pg_roles AS g ON g.oid = m.roleid
           WHERE m.member = r.oid AND g.rolname ~ '^tenantry_(producers|consumers)_'
             AND g.rolname <> part.part)
FROM pg_roles AS r
CROSS JOIN LATERAL (
    SELECT CASE WHEN r.rolname ~ '_producer$' THEN %(producer)s ELSE %(consumer)s END::text
) AS part (part)
LEFT JOIN (
    SELECT format('tenant_%%s_producer', tenant_id), password_hash FROM tenantry.credentials
    UNION ALL
    SELECT format('tenant_%%s_consumer', tenant_id), password_hash
    FROM tenantry.consumer_credentials
) AS c (role, password_hash) ON r.rolname = c.role
WHERE r.rolname ~ '^tenant_.+_(producer|consumer)$';

-- name: surveyed_passwords
SELECT rolname, coalesce(rolpassword, '') FROM pg_authid
WHERE rolname ~ '^tenant_.+_(producer|consumer)$';

-- What a tenant's own consumers read.

-- name: ensure_group
-- From here on: what is stored already was stored before there was a group.
INSERT INTO tenantry.consumer_groups (tenant_id, topic, position)
SELECT %(tenant)s, t.topic,
       coalesce((SELECT c.position FROM tenantry.tenant_counters AS c
                 WHERE c.tenant_id = %(tenant)s), 0)
FROM unnest(%(topics)s::text[]) AS t (topic)
ON CONFLICT DO NOTHING;

-- name: remove_group
DELETE FROM tenantry.consumer_groups WHERE tenant_id = %(tenant)s;

-- The ring of segments.

-- name: sweep
-- Messages of queues that are no more: a transaction has outlived its tenant. From queue to queue
-- by the index, however many messages lie in between.
WITH RECURSIVE lying (queue) AS (
    SELECT min(m.queue) FROM tenantry.queued AS m
    UNION ALL
    SELECT (SELECT min(m.queue) FROM tenantry.queued AS m WHERE m.queue > lying.queue)
    FROM lying WHERE lying.queue IS NOT NULL
), gone AS (
    DELETE FROM tenantry.queued AS m
    WHERE m.queue = ANY(ARRAY(
        SELECT l.queue FROM lying AS l
        WHERE NOT EXISTS (SELECT FROM tenantry.queues AS q WHERE q.id = l.queue)))
    RETURNING 1
)
SELECT count(*) FROM gone;

-- name: segments
SELECT s.segment, pg_relation_size(('tenantry.queued_' || s.segment)::regclass),
       s.segment = c.segment
FROM generate_series(0, 3) AS s(segment), tenantry.current_segment AS c
ORDER BY s.segment;

-- name: holders
-- Who keeps a segment from being truncated, and for how many seconds its transaction has been open.
SELECT a.pid, a.usename::text, extract(epoch FROM clock_timestamp() - a.xact_start)::integer
FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.granted
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.relation = ('tenantry.queued_' || %(segment)s)::regclass
ORDER BY a.xact_start LIMIT 5;

-- name: make_current
UPDATE tenantry.current_segment SET segment = %(segment)s;
