-- The index of dead letters.

-- name: lock
-- Letters of a tenant are matched by one at a time: two workers may have the same message. Which
-- are the first is read from an index then: else all of the tenant's may be sorted, for each message.
-- (Servers before 18 take a sort that can't be avoided to be so expensive that they would compile it.)
SELECT tenantry.hold('dead_letters.' || %(tenant)s), clock_timestamp(),
       set_config('enable_sort', 'off', true), set_config('jit', 'off', true);

-- name: rows
-- A message with an id has one dead letter. Of one without there may be a million that are the
-- same: of each way in which it stands with these the first ones are given, as many as there are
-- messages, and the last of all, by whose number the next one goes. What is given twice is the same.
SELECT id AS was, id, fingerprint, copy, settled, replays, failed,
       intent, work, died_at, seen_in, recorded, reason, error, first_error,
       attempts, dead_lettered_at
FROM (
    SELECT * FROM tenantry.dead_letters
    WHERE tenant_id = %(tenant)s AND fingerprint = ANY(%(named)s::bytea[])
    UNION ALL
    SELECT * FROM tenantry.dead_letters
    WHERE tenant_id = %(tenant)s AND id = ANY(%(ids)s::uuid[])
    UNION ALL
    SELECT found.*
    FROM unnest(%(alike)s::bytea[], %(died)s::timestamptz[], %(most)s::integer[])
         AS given (fingerprint, died_at, most),
    LATERAL (
        (SELECT * FROM tenantry.dead_letters AS d
         WHERE d.tenant_id = %(tenant)s AND d.fingerprint = given.fingerprint
         ORDER BY d.copy DESC LIMIT 1)
        UNION ALL
        (SELECT * FROM tenantry.dead_letters AS d
         WHERE d.tenant_id = %(tenant)s AND d.fingerprint = given.fingerprint
           AND d.message_id IS NULL AND NOT d.settled AND d.failed = 0
           AND d.died_at = given.died_at
           AND (%(browse)s::uuid IS NULL OR d.seen_in IS DISTINCT FROM %(browse)s::uuid)
           AND d.id <> ALL(%(ids)s::uuid[])
         ORDER BY d.copy LIMIT given.most)
        UNION ALL
        (SELECT * FROM tenantry.dead_letters AS d
         WHERE d.tenant_id = %(tenant)s AND d.fingerprint = given.fingerprint
           AND d.message_id IS NULL AND NOT d.settled AND d.failed = 0
           AND d.died_at IS NULL
           AND (%(browse)s::uuid IS NOT NULL OR d.intent IS NULL)
           AND (%(browse)s::uuid IS NULL OR d.seen_in IS DISTINCT FROM %(browse)s::uuid)
           AND d.id <> ALL(%(ids)s::uuid[])
         ORDER BY d.copy LIMIT given.most)
        UNION ALL
        (SELECT * FROM tenantry.dead_letters AS d
         WHERE %(browse)s::uuid IS NOT NULL
           AND d.tenant_id = %(tenant)s AND d.fingerprint = given.fingerprint
           AND d.message_id IS NULL AND NOT d.settled AND d.intent IS NOT NULL
           AND d.seen_in IS DISTINCT FROM %(browse)s::uuid
           AND d.id <> ALL(%(ids)s::uuid[])
         ORDER BY d.copy LIMIT given.most)
        UNION ALL
        (SELECT * FROM tenantry.dead_letters AS d
         WHERE %(browse)s::uuid IS NOT NULL
           AND d.tenant_id = %(tenant)s AND d.fingerprint = given.fingerprint
           AND d.message_id IS NULL AND d.settled AND d.died_at = given.died_at
           AND d.seen_in IS DISTINCT FROM %(browse)s::uuid
           AND d.id <> ALL(%(ids)s::uuid[])
         ORDER BY d.copy LIMIT given.most)
        UNION ALL
        (SELECT * FROM tenantry.dead_letters AS d
         WHERE %(browse)s::uuid IS NOT NULL AND given.died_at IS NULL
           AND d.tenant_id = %(tenant)s AND d.fingerprint = given.fingerprint
           AND d.message_id IS NULL AND d.settled AND d.died_at IS NULL
           AND d.seen_in IS DISTINCT FROM %(browse)s::uuid
           AND d.id <> ALL(%(ids)s::uuid[])
         ORDER BY d.copy LIMIT given.most)
    ) AS found
) AS known;

-- name: attempts_over
-- What was known of a message's attempts is known of its letter now.
DELETE FROM tenantry.attempts
WHERE tenant_id = %(tenant)s AND key = ANY(%(fingerprints)s::bytea[]);

-- name: add
INSERT INTO tenantry.dead_letters
    (tenant_id, id, fingerprint, copy, replays, died_at, seen_in, recorded, reason, error,
     first_error, attempts, dead_lettered_at, message_id, topic, partition, size, body,
     content_type, headers, published_at)
SELECT %(tenant)s, given.*
FROM unnest(
    %(id)s::uuid[], %(fingerprint)s::bytea[], %(copy)s::integer[], %(replays)s::integer[],
    %(died_at)s::timestamptz[], %(seen_in)s::uuid[], %(recorded)s::boolean[], %(reason)s::text[],
    %(error)s::text[], %(first_error)s::text[], %(attempts)s::integer[],
    %(dead_lettered_at)s::timestamptz[], %(message_ids)s::text[], %(topics)s::text[], %(partitions)s::integer[], %(sizes)s::bigint[],
    %(bodies)s::bytea[], %(content_types)s::text[], %(headers)s::text[],
    %(published)s::timestamptz[]) AS given;

-- name: change
UPDATE tenantry.dead_letters AS letter
SET died_at = given.died_at, seen_in = given.seen_in, reason = given.reason, error = given.error,
    first_error = given.first_error, attempts = given.attempts
FROM unnest(
    %(was)s::uuid[], %(died_at)s::timestamptz[], %(seen_in)s::uuid[], %(reason)s::text[],
    %(error)s::text[], %(first_error)s::text[], %(attempts)s::integer[])
    AS given (was, died_at, seen_in, reason, error, first_error, attempts)
WHERE letter.tenant_id = %(tenant)s AND letter.id = given.was;

-- name: relist
UPDATE tenantry.dead_letters AS letter
SET id = given.id, replays = given.replays, failed = given.failed, settled = false,
    outcome = NULL, gone_at = NULL, died_at = given.died_at, seen_in = given.seen_in,
    intent = CASE WHEN NOT letter.settled THEN letter.intent END,
    recorded = given.recorded, reason = given.reason, error = given.error,
    first_error = given.first_error, attempts = given.attempts, dead_lettered_at = given.dead_lettered_at, size = given.size,
    body = given.body, content_type = given.content_type, headers = given.headers,
    published_at = given.published_at
FROM unnest(
    %(was)s::uuid[], %(id)s::uuid[], %(replays)s::integer[], %(failed)s::integer[],
    %(died_at)s::timestamptz[], %(seen_in)s::uuid[], %(recorded)s::boolean[], %(reason)s::text[],
    %(error)s::text[], %(first_error)s::text[], %(attempts)s::integer[],
    %(dead_lettered_at)s::timestamptz[], %(sizes)s::bigint[], %(bodies)s::bytea[], %(content_types)s::text[], %(headers)s::text[],
    %(published)s::timestamptz[])
    AS given (was, id, replays, failed, died_at, seen_in, recorded, reason, error, first_error,
              attempts, dead_lettered_at, size, body, content_type, headers, published_at)
WHERE letter.tenant_id = %(tenant)s AND letter.id = given.was;

-- name: to_the_end
-- Of the list, where its readers still come by. A statement of its own: the counting of letters
-- knows a row that changes by its position. And one for each, since one for all would give positions
-- by chance.
UPDATE tenantry.dead_letters SET position = DEFAULT
WHERE tenant_id = %(tenant)s AND id = %(id)s;

-- name: count_dead
UPDATE tenantry.tenant_counters SET dead_lettered = dead_lettered + %(fresh)s
WHERE tenant_id = %(tenant)s;

-- name: begin
UPDATE tenantry.dead_letters
SET intent = %(intent)s, work = %(work)s,
    replays = replays + CASE WHEN %(work)s = 'replay' THEN 1 ELSE 0 END
WHERE tenant_id = %(tenant)s AND id = ANY(%(ids)s::uuid[]) AND NOT settled AND intent IS NULL;

-- name: withdraw
UPDATE tenantry.dead_letters
SET intent = NULL,
    replays = replays - CASE WHEN work = 'replay' AND failed < replays THEN 1 ELSE 0 END
WHERE tenant_id = %(tenant)s AND id = ANY(%(ids)s::uuid[]) AND NOT settled
  AND intent IS NOT NULL;

-- name: settle
-- The bytes go at once: they would outlive the message.
UPDATE tenantry.dead_letters
SET settled = true, outcome = CASE work WHEN 'replay' THEN 'replayed' ELSE 'discarded' END,
    body = CASE WHEN work = 'replay' AND failed >= replays THEN body END,
    headers = CASE WHEN work = 'replay' AND failed >= replays THEN headers END
WHERE tenant_id = %(tenant)s AND id = ANY(%(ids)s::uuid[]) AND NOT settled
  AND intent IS NOT NULL;

-- name: came_back
-- Their replay has failed already: settled a moment ago, and listed again. A statement of its own,
-- so that both are counted.
UPDATE tenantry.dead_letters SET settled = false, outcome = NULL, intent = NULL
WHERE tenant_id = %(tenant)s AND id = ANY(%(ids)s::uuid[]) AND settled
  AND work = 'replay' AND failed >= replays AND outcome = 'replayed';

-- name: intended
SELECT id FROM tenantry.dead_letters
WHERE tenant_id = %(tenant)s AND intent = %(intent)s
ORDER BY id;

-- name: recorded
UPDATE tenantry.dead_letters SET recorded = true
WHERE tenant_id = %(tenant)s AND id = ANY(%(ids)s::uuid[]) AND NOT recorded;

-- name: gone
UPDATE tenantry.dead_letters SET gone_at = clock_timestamp()
WHERE tenant_id = %(tenant)s AND id = ANY(%(ids)s::uuid[]) AND settled AND gone_at IS NULL;

-- name: gone_unmet
UPDATE tenantry.dead_letters SET gone_at = clock_timestamp()
WHERE tenant_id = %(tenant)s AND settled AND gone_at IS NULL
  AND seen_in IS DISTINCT FROM %(browse)s;

-- name: missing
UPDATE tenantry.dead_letters SET settled = true, outcome = 'missing'
WHERE tenant_id = %(tenant)s AND NOT settled AND seen_in IS DISTINCT FROM %(browse)s
  AND dead_lettered_at < clock_timestamp() - %(age)s::interval;

-- name: forget_missing
-- At once: if its message is met after all, it is to be listed, not removed.
DELETE FROM tenantry.dead_letters
WHERE tenant_id = %(tenant)s AND settled AND outcome = 'missing';

-- name: sweep
DELETE FROM tenantry.dead_letters WHERE gone_at < clock_timestamp() - %(age)s::interval;

-- name: page
SELECT id, tenant_id, position, message_id, topic, partition, reason, error,
       coalesce(first_error, error) AS first_error, attempts, replays, size, body, content_type, headers, published_at, dead_lettered_at, candidates
FROM (
    SELECT letters.*, count(*) OVER () AS candidates,
           sum(length) OVER (ORDER BY position) - length AS before
    FROM (
        SELECT *, coalesce(octet_length(body), 0) AS length
        FROM tenantry.dead_letters
        WHERE tenant_id = %(tenant)s AND position > %(after)s AND NOT settled
          AND (%(names)s::text[] IS NULL OR id::text = ANY(%(names)s) OR message_id = ANY(%(names)s))
          AND (%(reason)s::text IS NULL OR reason = %(reason)s)
          AND (%(topic)s::text IS NULL OR topic = %(topic)s)
          AND (%(since)s::timestamptz IS NULL OR dead_lettered_at >= %(since)s)
          AND (%(until)s::timestamptz IS NULL OR dead_lettered_at < %(until)s)
        ORDER BY position
        LIMIT %(limit)s
    ) AS letters
) AS measured
WHERE before = 0 OR before + length <= %(bytes)s
ORDER BY position;

-- name: preview
SELECT topic, partition, count(*), count(*) FILTER (WHERE replays >= %(most)s), clock_timestamp()
FROM tenantry.dead_letters
WHERE tenant_id = %(tenant)s AND NOT settled
  AND (%(names)s::text[] IS NULL OR id::text = ANY(%(names)s) OR message_id = ANY(%(names)s))
  AND (%(reason)s::text IS NULL OR reason = %(reason)s)
  AND (%(topic)s::text IS NULL OR topic = %(topic)s)
  AND (%(since)s::timestamptz IS NULL OR dead_lettered_at >= %(since)s)
  AND (%(until)s::timestamptz IS NULL OR dead_lettered_at < %(until)s)
GROUP BY GROUPING SETS ((topic, partition), ())
-- All of them first. (Servers before 18 take a topic that is asked for to be the same in all rows.)
ORDER BY grouping(topic) DESC, topic, partition;

-- name: named
SELECT id FROM tenantry.dead_letters
WHERE tenant_id = %(tenant)s AND NOT settled
  AND (id::text = ANY(%(names)s::text[]) OR message_id = ANY(%(names)s::text[]));

-- name: counts
SELECT tenant_id, count(*) FROM tenantry.dead_letters
WHERE tenant_id = ANY(%(tenants)s::text[]) AND NOT settled
GROUP BY tenant_id;

-- name: unfinished
SELECT DISTINCT tenant_id FROM tenantry.dead_letters
WHERE NOT settled AND (intent IS NOT NULL OR NOT recorded);
