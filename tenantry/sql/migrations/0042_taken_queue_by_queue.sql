-- Messages are taken out of queues by a statement for each queue, since one for all of them joins:
-- planned when the queues were last empty, that reads every message that lies there, for each of
-- those that are wanted.

-- Removes messages of a queue by their numbers; gives those that were still there.
CREATE FUNCTION tenantry.remove_queued(p_queue integer, p_seqs bigint[])
RETURNS SETOF tenantry.queued
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
    first bigint;
    last bigint;
BEGIN
    SELECT min(s.seq), max(s.seq) INTO first, last FROM unnest(p_seqs) AS s(seq);
    -- What is taken at once was given out at once: hardly anything else lies in between.
    RETURN QUERY
        DELETE FROM tenantry.queued AS m
        WHERE m.queue = p_queue AND m.seq BETWEEN first AND last AND m.seq = ANY(p_seqs)
        RETURNING m.*;
END
$$;

-- As before (migration 0034), but queue by queue.
CREATE OR REPLACE FUNCTION tenantry.take(
    p_tenant text, p_topics text[], p_partitions integer[], p_receipts bigint[]
) RETURNS bigint[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
    limited boolean := tenantry.has_backlog_limit(p_tenant);
    wanted record;
    number integer;
    removed record;
    taken bigint[] := '{}';
    size bigint := 0;
BEGIN
    FOR wanted IN
        SELECT r.topic, r.partition, array_agg(r.receipt) AS receipts
        FROM unnest(p_topics, p_partitions, p_receipts) AS r(topic, partition, receipt)
        GROUP BY r.topic, r.partition
    LOOP
        SELECT q.id INTO number FROM tenantry.queues AS q
        WHERE q.tenant_id = p_tenant AND q.topic = wanted.topic AND q.partition = wanted.partition;
        SELECT coalesce(array_agg(m.seq), '{}') AS seqs,
               sum(CASE WHEN limited THEN octet_length(m.body) END) AS size
        INTO removed FROM tenantry.remove_queued(number, wanted.receipts) AS m;
        taken := taken || removed.seqs;
        size := size + coalesce(removed.size, 0);
    END LOOP;
    IF limited AND cardinality(taken) > 0 THEN
        PERFORM tenantry.count_backlog(p_tenant, -cardinality(taken), -size);
    END IF;
    RETURN taken;
END
$$;
