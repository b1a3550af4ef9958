-- What became of tenants' messages over time: for a day by minutes, for a week by hours.

-- A ring of slots a tenant and step (in minutes): a slot is written over when its time comes again,
-- so a tenant has 1608 rows at most, and one that does nothing has none that change. `at` says of
-- when a slot is. `latencies` counts messages by the bounds of tenantry.metrics.recorder.
CREATE TABLE tenantry.statistics (
    tenant_id     text        COLLATE "C" NOT NULL,
    step          smallint    NOT NULL,
    slot          smallint    NOT NULL,
    at            timestamptz NOT NULL,
    stored        bigint      NOT NULL,
    duplicates    bigint      NOT NULL,
    dead_lettered bigint      NOT NULL,
    backlog       bigint      NOT NULL,
    latencies     integer[]   NOT NULL,
    PRIMARY KEY (tenant_id, step, slot)
) WITH (fillfactor = 70);

-- The totals up to which a tenant's counts are in its statistics already: what a node had not
-- noted when it died is noted by the next.
CREATE TABLE tenantry.statistics_marks (
    tenant_id     text   COLLATE "C" PRIMARY KEY,
    stored        bigint NOT NULL DEFAULT 0,
    duplicates    bigint NOT NULL DEFAULT 0,
    dead_lettered bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

-- What was there before belongs to no minute.
INSERT INTO tenantry.statistics_marks (tenant_id, stored, duplicates, dead_lettered)
SELECT c.tenant_id, c.stored, c.duplicates, c.dead_lettered FROM tenantry.tenant_counters AS c;

-- Notes what became of the messages of some tenants, as of the minute `p_at` is in: how far their
-- counts have come, how much waited, and latencies, `p_bounds` counts a tenant one after another.
-- Tenants of which there is nothing to note are passed over. Nodes that note the same tenant, as it
-- goes from one to the other, do so one after the other.
CREATE FUNCTION tenantry.note_statistics(
    p_at timestamptz, p_tenants text[], p_backlogs bigint[], p_latencies integer[], p_bounds integer
) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    INSERT INTO tenantry.statistics_marks (tenant_id)
    SELECT c.tenant_id FROM tenantry.tenant_counters AS c
    WHERE c.tenant_id = ANY(p_tenants)
      AND NOT EXISTS (SELECT FROM tenantry.statistics_marks AS m
                      WHERE m.tenant_id = c.tenant_id COLLATE "C")
    ORDER BY c.tenant_id COLLATE "C" ON CONFLICT DO NOTHING;
    PERFORM FROM tenantry.statistics_marks AS m
    WHERE m.tenant_id = ANY(p_tenants) ORDER BY m.tenant_id FOR UPDATE;
    WITH given AS (
        SELECT g.tenant_id, g.backlog,
               p_latencies[(g.n - 1) * p_bounds + 1:g.n * p_bounds] AS latencies
        FROM unnest(p_tenants, p_backlogs) WITH ORDINALITY AS g(tenant_id, backlog, n)
    ), counted AS (
        SELECT g.tenant_id, g.backlog, g.latencies, c.stored - m.stored AS stored,
               c.duplicates - m.duplicates AS duplicates,
               c.dead_lettered - m.dead_lettered AS dead_lettered
        FROM given AS g
        JOIN tenantry.statistics_marks AS m ON m.tenant_id = g.tenant_id COLLATE "C"
        JOIN tenantry.tenant_counters AS c ON c.tenant_id = g.tenant_id
    ), noted AS (
        SELECT c.* FROM counted AS c
        WHERE (c.stored, c.duplicates, c.dead_lettered, c.backlog) <> (0, 0, 0, 0)
           OR 0 < ANY(c.latencies)
    ), marked AS (
        UPDATE tenantry.statistics_marks AS m
        SET stored = m.stored + n.stored, duplicates = m.duplicates + n.duplicates,
            dead_lettered = m.dead_lettered + n.dead_lettered
        FROM noted AS n
        WHERE m.tenant_id = n.tenant_id COLLATE "C"
          AND (n.stored, n.duplicates, n.dead_lettered) <> (0, 0, 0)
    )
    INSERT INTO tenantry.statistics AS s
        (tenant_id, step, slot, at, stored, duplicates, dead_lettered, backlog, latencies)
    SELECT n.tenant_id, r.step, r.past % r.slots, to_timestamp(r.past * r.step * 60), n.stored,
           n.duplicates, n.dead_lettered, n.backlog, n.latencies
    FROM noted AS n
    CROSS JOIN (SELECT k.step, k.slots, floor(extract(epoch FROM p_at) / (k.step * 60))::bigint
                FROM (VALUES (1, 1440), (60, 168)) AS k(step, slots)) AS r(step, slots, past)
    ON CONFLICT (tenant_id, step, slot) DO UPDATE
    SET (at, stored, duplicates, dead_lettered, backlog, latencies) = (
        SELECT excluded.at, excluded.stored, excluded.duplicates, excluded.dead_lettered,
               excluded.backlog, excluded.latencies
        WHERE s.at < excluded.at
        UNION ALL
        SELECT s.at, s.stored + excluded.stored, s.duplicates + excluded.duplicates,
               s.dead_lettered + excluded.dead_lettered, greatest(s.backlog, excluded.backlog),
               (SELECT array_agg(coalesce(l.before, 0) + coalesce(l.now, 0) ORDER BY l.n)
                FROM unnest(s.latencies, excluded.latencies) WITH ORDINALITY AS l(before, now, n))
        WHERE s.at >= excluded.at);
END
$$;

-- As before (migration 0031), and with the tenant's statistics.
CREATE OR REPLACE FUNCTION tenantry.forget_removals() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
BEGIN
    DELETE FROM tenantry.removals AS r WHERE r.tenant_id = OLD.tenant_id;
    DELETE FROM tenantry.statistics AS s WHERE s.tenant_id = OLD.tenant_id;
    DELETE FROM tenantry.statistics_marks AS m WHERE m.tenant_id = OLD.tenant_id;
    RETURN NULL;
END
$$;
