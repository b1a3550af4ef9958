-- name: look
SELECT number, beat, held, instance, host, pid, since
FROM tenantry.terms
WHERE scope = %(scope)s;

-- name: take
SELECT number, beat, held, instance, host, pid, since
FROM tenantry.take_term(
    %(scope)s::text, %(number)s::bigint, %(beat)s::bigint, %(instance)s::text, %(host)s::text,
    %(pid)s::integer);

-- name: renew
UPDATE tenantry.terms
SET beat = beat + 1, renewed_at = clock_timestamp()
WHERE scope = %(scope)s AND number = %(number)s AND held;

-- name: release
UPDATE tenantry.terms
SET beat = beat + 1, held = false
WHERE scope = %(scope)s AND number = %(number)s AND held;
