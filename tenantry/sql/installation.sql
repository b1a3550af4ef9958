-- Who this installation is.

-- name: here
-- The server's number is made with its data; 0 where it is nobody's to know.
SELECT d.oid::bigint,
       CASE WHEN has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')
            THEN (SELECT system_identifier FROM pg_catalog.pg_control_system()) ELSE 0 END
FROM pg_catalog.pg_database AS d WHERE d.datname = current_database();

-- name: make
INSERT INTO tenantry.installation (name, database, server)
VALUES (%(name)s, %(database)s, %(server)s) ON CONFLICT DO NOTHING;

-- name: find
SELECT name, database::bigint, server FROM tenantry.installation FOR UPDATE;

-- name: original
-- The database that the name was made in, where that is another one of this very server.
SELECT d.datname FROM pg_catalog.pg_database AS d
WHERE d.oid = %(made_in)s AND d.oid <> %(database)s
  AND %(made_on)s = %(server)s AND %(server)s <> 0;

-- name: settle
UPDATE tenantry.installation
SET name = %(name)s, database = %(database)s, server = %(server)s;

-- name: keep_cursor_key
-- The first one stays.
UPDATE tenantry.installation SET cursor_key = coalesce(cursor_key, %(key)s) RETURNING cursor_key;

-- name: cursor_key
SELECT cursor_key FROM tenantry.installation;

-- name: disown_roles
DELETE FROM tenantry.sql_roles;
