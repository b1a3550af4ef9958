-- What must add up: counts that advance in the transaction that changes what they count.
--
-- A tenant's partition holds `stored` rows less those that were `removed` on purpose. Its dead
-- letters were `kept` less those replayed, discarded or missing. Whatever is deleted by hand is
-- deleted behind the counts' back, and shows.
ALTER TABLE tenantry.tenant_counters
    ADD COLUMN removed           bigint NOT NULL DEFAULT 0,
    ADD COLUMN letters_kept      bigint NOT NULL DEFAULT 0,
    ADD COLUMN letters_replayed  bigint NOT NULL DEFAULT 0,
    ADD COLUMN letters_discarded bigint NOT NULL DEFAULT 0,
    ADD COLUMN letters_missing   bigint NOT NULL DEFAULT 0;

-- How a letter was settled. `missing`: it was listed, and a walk along the whole queue has not met it.
ALTER TABLE tenantry.dead_letters
    ADD COLUMN outcome text CHECK (outcome IN ('replayed', 'discarded', 'missing'));

-- Statement triggers: a batch of letters costs one update of the counts, whatever its size. Letters
-- are deleted once they are settled; so deletions are not counted, and one of a listed letter shows.
CREATE FUNCTION tenantry.count_new_letters() RETURNS trigger LANGUAGE plpgsql
SET enable_seqscan = off AS $$
BEGIN
    UPDATE tenantry.tenant_counters AS c
    SET letters_kept = c.letters_kept + counted.n
    FROM (SELECT tenant_id, count(*) AS n FROM added WHERE NOT settled GROUP BY tenant_id) AS counted
    WHERE c.tenant_id = counted.tenant_id;
    RETURN NULL;
END
$$;

CREATE FUNCTION tenantry.count_settled_letters() RETURNS trigger LANGUAGE plpgsql
SET enable_seqscan = off AS $$
BEGIN
    UPDATE tenantry.tenant_counters AS c
    SET letters_kept = c.letters_kept + counted.kept,
        letters_replayed = c.letters_replayed + counted.replayed,
        letters_discarded = c.letters_discarded + counted.discarded,
        letters_missing = c.letters_missing + counted.missing
    FROM (
        SELECT before.tenant_id,
               -- A settled letter that is listed again is another one.
               count(*) FILTER (WHERE before.settled) AS kept,
               count(*) FILTER (WHERE after.settled AND after.outcome = 'replayed') AS replayed,
               count(*) FILTER (WHERE after.settled
                                AND coalesce(after.outcome, 'discarded') = 'discarded') AS discarded,
               count(*) FILTER (WHERE after.settled AND after.outcome = 'missing') AS missing
        FROM before JOIN after ON after.position = before.position
        WHERE before.settled <> after.settled
        GROUP BY before.tenant_id
    ) AS counted
    WHERE c.tenant_id = counted.tenant_id;
    RETURN NULL;
END
$$;

CREATE TRIGGER dead_letters_are_counted AFTER INSERT ON tenantry.dead_letters
    REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION tenantry.count_new_letters();
CREATE TRIGGER settled_letters_are_counted AFTER UPDATE ON tenantry.dead_letters
    REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION tenantry.count_settled_letters();

-- Settles what a walk has not met, then forgets it; gives how many letters were listed.
CREATE FUNCTION tenantry.forget_missing_letters(p_tenant text, p_walk uuid, p_age interval)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    before  timestamptz := clock_timestamp() - p_age;
    missing bigint;
BEGIN
    UPDATE tenantry.dead_letters SET settled = true, outcome = 'missing'
    WHERE tenant_id = p_tenant AND seen_in IS DISTINCT FROM p_walk
      AND dead_lettered_at < before AND NOT settled;
    GET DIAGNOSTICS missing = ROW_COUNT;
    DELETE FROM tenantry.dead_letters
    WHERE tenant_id = p_tenant AND seen_in IS DISTINCT FROM p_walk
      AND dead_lettered_at < before AND settled;
    RETURN missing;
END
$$;

-- Forgets a tenant's letters, which have gone with its queues: they count as discarded.
CREATE FUNCTION tenantry.drop_letters(p_tenant text) RETURNS void LANGUAGE sql AS $$
    UPDATE tenantry.dead_letters SET settled = true, outcome = 'discarded'
    WHERE tenant_id = p_tenant AND NOT settled;
    DELETE FROM tenantry.dead_letters WHERE tenant_id = p_tenant;
$$;

-- What is there now is where the counts begin: rows that went before them are no difference.
DO $$
DECLARE
    tenant record;
    there  bigint;
BEGIN
    FOR tenant IN SELECT tenant_id, stored FROM tenantry.tenant_counters LOOP
        IF to_regclass(format('tenantry.%I', 'messages_' || tenant.tenant_id)) IS NULL THEN
            there := 0;
        ELSE
            EXECUTE format('SELECT count(*) FROM tenantry.%I', 'messages_' || tenant.tenant_id)
            INTO there;
        END IF;
        UPDATE tenantry.tenant_counters AS c
        SET removed = tenant.stored - there,
            letters_kept = (SELECT count(*) FROM tenantry.dead_letters AS d
                            WHERE d.tenant_id = tenant.tenant_id AND NOT d.settled)
        WHERE c.tenant_id = tenant.tenant_id;
    END LOOP;
END
$$;
