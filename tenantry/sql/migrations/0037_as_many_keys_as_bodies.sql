-- As before (migration 0011), but for lists of different lengths: a body without a key went nowhere, and
-- the commit confirmed it.
CREATE OR REPLACE FUNCTION tenantry.publish_many(
    keys text[],
    ids text[],
    bodies bytea[],
    content_types text[],
    headers jsonb[],
    published_at_ms bigint[],
    tenant text DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    whose text := tenantry.acting_tenant(tenant);
    count integer := coalesce(cardinality(keys), 0);
BEGIN
    IF coalesce(cardinality(bodies), 0) <> count
       OR greatest(cardinality(ids), cardinality(content_types), cardinality(headers),
                   cardinality(published_at_ms)) > count
    THEN
        RAISE array_subscript_error USING
            MESSAGE = format('there are %s keys and %s bodies', count,
                             coalesce(cardinality(bodies), 0)),
            HINT = 'Give as many bodies as keys; the other lists may be NULL, but not longer.';
    END IF;
    IF count > 0 THEN
        PERFORM tenantry.enqueue(
            'tenant_' || whose || '_stream',
            keys, ids, bodies, content_types, headers, published_at_ms);
    END IF;
END
$$;
