"""Statements that a tenant's role must not get anything by: what `test_hostile_sql.py` tries."""

from __future__ import annotations

ATTEMPTS = """
INSERT INTO public.messages (tenant_id, id, position) VALUES ('mine', 'x', 9)
UPDATE public.messages SET topic = 't'
DELETE FROM public.messages
TRUNCATE public.messages
LOCK TABLE public.messages IN ACCESS SHARE MODE
SELECT * FROM public.messages
SELECT * FROM public.messages WHERE tenant_id = 'theirs'
SET row_security = off; SELECT * FROM public.messages
EXPLAIN ANALYZE SELECT * FROM public.messages
EXPLAIN SELECT * FROM tenantry.messages_theirs
COPY public.messages TO STDOUT
SELECT * FROM tenantry.messages_mine
SELECT * FROM tenantry.messages_theirs
SELECT query_to_xml('SELECT * FROM tenantry.messages_theirs', true, true, '')
SELECT table_to_xml('tenantry.messages_theirs', true, true, '')
SELECT schema_to_xml('tenantry', true, true, '') FROM tenantry.events
SELECT ts_stat('SELECT to_tsvector(topic) FROM tenantry.messages_theirs')
SELECT currval('tenantry.queued_seq')
SELECT pg_sequence_last_value('tenantry.queued_seq'), pg_catalog.nextval('tenantry.queued_seq')
ALTER TABLE public.messages DISABLE ROW LEVEL SECURITY
DROP POLICY tenants_read_their_own ON public.messages
CREATE POLICY mine ON public.messages USING (true)
CREATE TRIGGER mine BEFORE INSERT ON public.messages EXECUTE FUNCTION tenantry.check_term()
CREATE RULE mine AS ON SELECT TO public.messages DO INSTEAD SELECT 1
CREATE INDEX ON tenantry.messages_theirs (id)
CREATE STATISTICS public.mine ON id, topic FROM public.messages
COMMENT ON TABLE public.messages IS 'mine'
SECURITY LABEL ON TABLE public.messages IS 'mine'
CREATE TABLE public.mine ()
CREATE VIEW public.mine AS SELECT 1
CREATE SEQUENCE public.mine
CREATE TYPE public.mine AS ENUM ()
CREATE DOMAIN public.mine AS text
CREATE FUNCTION public.hashtext(text, int) RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint'
CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = name, FUNCTION = texteqname)
CREATE CAST (text AS integer) WITH INOUT AS ASSIGNMENT
CREATE AGGREGATE public.mine (integer) (SFUNC = int4pl, STYPE = integer)
CREATE COLLATION public.mine FROM "C"
CREATE TEXT SEARCH CONFIGURATION public.mine (COPY = simple)
CREATE TABLE tenantry.mine ()
CREATE FUNCTION tenantry.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'
CREATE TABLE pg_catalog.mine ()
CREATE SCHEMA mine
CREATE DATABASE mine
CREATE ROLE mine
CREATE EXTENSION vector
CREATE LANGUAGE plperl
CREATE TABLESPACE mine LOCATION '/tmp'
CREATE EVENT TRIGGER mine ON ddl_command_start EXECUTE FUNCTION tenantry.check_term()
CREATE PUBLICATION mine FOR ALL TABLES
CREATE SUBSCRIPTION mine CONNECTION 'dbname=postgres' PUBLICATION mine
CREATE FOREIGN DATA WRAPPER mine
CREATE SERVER mine FOREIGN DATA WRAPPER mine
CREATE ACCESS METHOD mine TYPE TABLE HANDLER heap_tableam_handler
CREATE TRANSFORM FOR integer LANGUAGE sql (FROM SQL WITH FUNCTION prsd_lextype(internal))
SET ROLE {owner}
SET SESSION AUTHORIZATION {owner}
SET ROLE {victim}
SET SESSION AUTHORIZATION {victim}
SELECT set_config('role', '{owner}', false)
SELECT set_config('session_authorization', '{victim}', false)
GRANT {victim} TO CURRENT_USER
GRANT {owner} TO CURRENT_USER
GRANT pg_read_all_data TO CURRENT_USER
GRANT pg_execute_server_program TO CURRENT_USER
ALTER ROLE CURRENT_USER SUPERUSER
ALTER ROLE CURRENT_USER CREATEROLE
ALTER ROLE CURRENT_USER BYPASSRLS
ALTER ROLE CURRENT_USER CONNECTION LIMIT -1
ALTER ROLE CURRENT_USER SET temp_file_limit = -1
ALTER ROLE {victim} SET search_path = public
ALTER ROLE {victim} PASSWORD 'mine'
ALTER ROLE {owner} PASSWORD 'mine'
ALTER ROLE ALL SET search_path = public
ALTER DATABASE {database} SET search_path = public
ALTER SYSTEM SET log_statement = 'all'
ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT SELECT ON TABLES TO PUBLIC
ALTER SCHEMA public RENAME TO mine
ALTER FUNCTION tenantry.tenant_of_role RESET ALL
DROP OWNED BY {victim}
REASSIGN OWNED BY {victim} TO CURRENT_USER
DROP ROLE {victim}
GRANT SELECT ON public.messages TO CURRENT_USER
SET temp_file_limit = -1
SET log_statement = 'all'
SET session_preload_libraries = 'mine'
SET lo_compat_privileges = on
LOAD 'mine'
SELECT pg_read_file('PG_VERSION')
SELECT pg_ls_dir('.')
SELECT pg_stat_file('PG_VERSION')
SELECT lo_import('/etc/passwd')
COPY (SELECT 1) TO PROGRAM 'true'
COPY pg_catalog.pg_class FROM PROGRAM 'true'
COPY (SELECT 1) TO '/tmp/mine'
SELECT * FROM pg_catalog.pg_authid
SELECT * FROM pg_catalog.pg_shadow
SELECT * FROM pg_catalog.pg_statistic
SELECT * FROM pg_catalog.pg_statistic_ext_data
SELECT * FROM pg_catalog.pg_hba_file_rules
SELECT * FROM pg_catalog.pg_file_settings
SELECT * FROM pg_catalog.pg_user_mapping
SELECT * FROM pg_catalog.pg_subscription
SELECT pg_terminate_backend(pid) FROM unnest(ARRAY[{daemon}]) AS d(pid)
SELECT pg_cancel_backend(pid) FROM unnest(ARRAY[{daemon}]) AS d(pid)
SELECT pg_log_backend_memory_contexts({daemon})
SELECT pg_reload_conf()
SELECT pg_rotate_logfile()
SELECT pg_switch_wal()
SELECT pg_create_restore_point('mine')
SELECT pg_create_physical_replication_slot('mine')
SELECT pg_stat_reset()
SELECT pg_replication_origin_create('mine')
SELECT pg_promote()
UPDATE pg_catalog.pg_class SET relacl = NULL
DELETE FROM pg_catalog.pg_policy
CHECKPOINT
"""
"""One a line. Some fail as what they name is not there, which is as good."""

IN_A_CATALOGUE_OF_OURS = """
CREATE TEMP TABLE pg_roles (oid oid)
CREATE FUNCTION pg_temp.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'
CREATE DOMAIN pg_temp.text AS pg_catalog.text
SELECT 1 AS n INTO TEMP mine
DO $$ BEGIN LOOP END LOOP; END $$
SELECT pg_advisory_lock(n) FROM generate_series(1, 40000) AS n
SELECT pg_try_advisory_xact_lock_shared(19800, n) FROM generate_series(1, 40000) AS n
SELECT lo_from_bytea(0, '\\x00')
SELECT lo_creat(-1)
SELECT pg_notify('mine', 'x')
SELECT pg_logical_emit_message(false, 'mine', repeat('x', 1000000))
SELECT * FROM pg_catalog.pg_stat_activity
SELECT * FROM pg_catalog.pg_stat_user_tables
SELECT * FROM pg_catalog.pg_stat_database
SELECT * FROM pg_catalog.pg_statio_all_tables
SELECT pg_stat_get_live_tuples(1)
SELECT relname, reltuples FROM pg_catalog.pg_class
SELECT c FROM pg_catalog.pg_class AS c
SELECT pg_total_relation_size('pg_catalog.pg_class')
SELECT * FROM pg_catalog.pg_locks
"""
"""Where the daemon may change what PUBLIC has in the catalogue itself."""

FOR_TENANTS = ("tenantry.publish(", "tenantry.publish_bytes(", "tenantry.publish_many(",
               "tenantry.look(")  # fmt: skip
SHADOWS = (
    "text",
    "name",
    "text, text",
    "text, integer",
    "text, name",
    "bigint",
    "integer",
    "text[]",
)
