-- Nodes, and whose each tenant is.

-- name: open
SELECT tenantry.open_node(%(name)s::text);

-- name: introduce
UPDATE tenantry.nodes
SET version = %(version)s, weight = %(weight)s, machine = %(machine)s, socket = %(socket)s,
    address = %(address)s, active = false, rate = 0, joined_at = clock_timestamp(),
    progress_seconds = 0, progress_weight = 0, progress_work = 0, progress_batches = 0,
    held_back = false
WHERE name = %(name)s;

-- name: forget_lost
-- Names that nobody has had for long: machines come and go.
DELETE FROM tenantry.nodes AS n USING tenantry.terms AS t
WHERE t.scope = 'node:' || n.name AND NOT t.held AND NOT n.draining
  AND t.renewed_at < clock_timestamp() - make_interval(secs => %(seconds)s);

-- name: channel
SELECT name FROM tenantry.channels WHERE purpose = 'nodes';

-- name: look
-- All nodes there are, with how their terms stand.
SELECT n.name, n.version, n.weight, n.machine, n.socket, n.address, n.active, n.draining, n.rate,
       n.joined_at, t.number, t.beat, t.held, t.instance, t.host, t.pid, t.since,
       extract(epoch FROM clock_timestamp() - t.renewed_at)::float8,
       n.progress_seconds, n.progress_weight, n.progress_work, n.progress_batches,
       n.held_back
FROM tenantry.nodes AS n JOIN tenantry.terms AS t ON t.scope = 'node:' || n.name
ORDER BY n.name;

-- name: count_tenants
SELECT o.node, count(*)
FROM tenantry.owners AS o JOIN tenantry.tenants AS t ON t.id = o.tenant_id
WHERE o.node IS NOT NULL AND t.lifecycle <> 'deleted'
GROUP BY o.node;

-- name: report
UPDATE tenantry.nodes SET active = %(active)s, rate = %(rate)s
WHERE name = %(name)s AND (active, rate) IS DISTINCT FROM (%(active)s, %(rate)s::real);

-- name: tell_progress
UPDATE tenantry.nodes
SET progress_seconds = %(seconds)s, progress_weight = %(weight)s, progress_work = %(work)s,
    progress_batches = %(batches)s, held_back = %(held)s
WHERE name = %(name)s;

-- name: set_draining
WITH changed AS (
    UPDATE tenantry.nodes SET draining = %(draining)s WHERE name = %(name)s RETURNING name
)
SELECT name, tenantry.tell('nodes', name) FROM changed;

-- name: hold
SELECT tenantry.hold('nodes');

-- name: others
-- Nodes that could have the tenants of one that is to be empty.
SELECT 1 FROM tenantry.nodes
WHERE name <> %(name)s AND name = ANY(%(alive)s::text[]) AND active AND NOT draining;

-- name: bury
SELECT tenantry.bury_node(%(name)s::text, %(number)s::bigint, %(beat)s::bigint);

-- name: leave
SELECT tenantry.leave_node(%(name)s::text, %(number)s::bigint);

-- name: tell
SELECT tenantry.tell('nodes', %(name)s::text);

-- name: owned
-- Of tenants that exist: one that is about to be made is known to who makes it.
SELECT o.tenant_id, o.epoch, o.wanted, o.previous
FROM tenantry.owners AS o JOIN tenantry.tenants AS t ON t.id = o.tenant_id
WHERE o.node = %(name)s AND t.lifecycle <> 'deleted';

-- name: unowned
-- Tenants that exist and are no node's, and where an operator wants them.
SELECT t.id, o.wanted
FROM tenantry.tenants AS t LEFT JOIN tenantry.owners AS o ON o.tenant_id = t.id
WHERE o.node IS NULL AND t.lifecycle <> 'deleted'
ORDER BY t.id;

-- name: claim
-- Only what is nobody's, or its own already: of two that claim the same, one gets it.
INSERT INTO tenantry.owners AS o (tenant_id, node)
SELECT w.id, %(name)s FROM unnest(%(ids)s::text[]) AS w (id)
ORDER BY w.id
ON CONFLICT (tenant_id) DO UPDATE
SET node = excluded.node, epoch = o.epoch + 1, since = clock_timestamp()
WHERE o.node IS NULL OR o.node = excluded.node
RETURNING tenant_id, epoch, wanted, previous;

-- name: hand_over
SELECT tenantry.hand_over(%(tenant)s::text, %(source)s::text, %(target)s::text);

-- name: let_go
DELETE FROM tenantry.owners WHERE tenant_id = ANY(%(ids)s::text[]) AND node = %(name)s;

-- name: owners
SELECT tenant_id, node, epoch, wanted, previous FROM tenantry.owners
WHERE tenant_id = ANY(%(ids)s::text[]);

-- name: want
INSERT INTO tenantry.owners AS o (tenant_id, wanted) VALUES (%(tenant)s, %(node)s)
ON CONFLICT (tenant_id) DO UPDATE SET wanted = excluded.wanted;
