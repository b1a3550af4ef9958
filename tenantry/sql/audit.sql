-- What an audit compares.

-- name: account
-- Before the rows are counted, in the same snapshot.
SELECT c.position, c.stored, c.duplicates, c.dead_lettered,
       c.removed + coalesce(r.by_age + r.by_rows, 0) AS removed,
       coalesce(r.by_age, 0) AS aged, coalesce(r.by_rows, 0) AS crowded,
       c.letters_kept AS kept, c.letters_replayed AS replayed, c.letters_discarded AS discarded,
       c.letters_missing AS missing, letters.listed, letters.settled
FROM tenantry.tenant_counters AS c
     LEFT JOIN tenantry.removals AS r ON r.tenant_id = c.tenant_id COLLATE "C",
     LATERAL (SELECT count(*) FILTER (WHERE NOT settled) AS listed,
                     count(*) FILTER (WHERE settled AND gone_at IS NULL) AS settled
              FROM tenantry.dead_letters WHERE tenant_id = c.tenant_id) AS letters
WHERE c.tenant_id = %(tenant)s;
