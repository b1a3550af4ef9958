-- Sessions of tenants' roles, wherever on the server they are.

-- name: withdraw_messages
SELECT tenantry.withdraw_messages();

-- name: change_roles
SELECT tenantry.hold('sql_roles'), tenantry.hold('roles');

-- name: roles_to_mend
SELECT role::text, kind, tenant, connections
FROM tenantry.roles_to_mend(%(reading)s, %(probing)s, %(publishing)s) ORDER BY role;

-- name: mend_role
SELECT tenantry.mend_role(%s, %s, %s, %s);

-- name: sessions
SELECT a.pid, a.usename::text,
       a.xact_start < clock_timestamp() - %(longest)s::interval,
       (a.xact_start < clock_timestamp() - %(grace)s::interval OR a.wait_event = 'ClientWrite')
           AND pg_notification_queue_usage() > %(notices)s::float8
FROM pg_catalog.pg_stat_activity AS a
WHERE a.pid <> pg_backend_pid() AND (
    EXISTS (SELECT FROM tenantry.sql_roles AS s WHERE s.role = a.usename)
    OR a.usename ~ '^tenant_.+_(producer|consumer)$' AND EXISTS (
        SELECT FROM pg_catalog.pg_auth_members AS m
        WHERE m.member = a.usesysid
          AND m.roleid IN (to_regrole(quote_ident(tenantry.producers_group())),
                           to_regrole(quote_ident(tenantry.consumers_group())))))
ORDER BY a.pid;

-- name: late
SELECT pid, role::text FROM tenantry.late_sessions();

-- name: forget_ended
DELETE FROM tenantry.ended_sessions WHERE begun_until < clock_timestamp() - interval '1 hour';

-- name: holding_many
SELECT l.pid, count(*) FROM pg_catalog.pg_locks AS l
WHERE l.pid = ANY(%(pids)s::integer[])
GROUP BY l.pid HAVING count(*) > %(most)s;

-- name: in_the_way
-- Of whom sessions of other roles have waited for a while, directly or behind another who waits.
SELECT DISTINCT blocker.pid
FROM (SELECT DISTINCT l.pid FROM pg_catalog.pg_locks AS l
      WHERE NOT l.granted AND l.waitstart < clock_timestamp() - %(grace)s::interval) AS waiting
JOIN pg_catalog.pg_stat_activity AS w ON w.pid = waiting.pid
CROSS JOIN LATERAL unnest(pg_catalog.pg_blocking_pids(waiting.pid)) AS blocker(pid)
JOIN pg_catalog.pg_stat_activity AS b ON b.pid = blocker.pid
WHERE blocker.pid = ANY(%(pids)s::integer[]) AND b.usesysid <> w.usesysid;

-- name: prepared
-- Transactions that outlive their sessions, where the server allows them.
SELECT x.gid, x.owner::text FROM pg_catalog.pg_prepared_xacts AS x
WHERE x.database = current_database() AND x.prepared < clock_timestamp() - %(longest)s::interval
  AND EXISTS (SELECT FROM tenantry.tenants_roles() AS t WHERE t.role = x.owner);
