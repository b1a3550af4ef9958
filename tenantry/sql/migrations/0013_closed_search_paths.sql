-- What is called here must be what was meant, whoever calls and whatever else there is.
--
-- PostgreSQL looks for tables and types in pg_temp first unless it stands last, and takes of two
-- functions of one name the one whose arguments fit better, in whichever schema of the path it is.
-- So the path of each function of this schema is pg_catalog and then pg_temp, and every other name
-- is written out in full. It is called after all migrations, so that none has to think of it; gives
-- how many functions there were.
CREATE FUNCTION tenantry.close_search_paths() RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    one    regprocedure;
    closed integer := 0;
BEGIN
    FOR one IN
        SELECT p.oid::regprocedure FROM pg_proc AS p
        WHERE p.pronamespace = 'tenantry'::regnamespace
          AND 'search_path=pg_catalog, pg_temp' <> ALL (coalesce(p.proconfig, '{}'))
          AND pg_has_role(p.proowner, 'USAGE')
    LOOP
        EXECUTE format('ALTER ROUTINE %s SET search_path = pg_catalog, pg_temp', one);
        closed := closed + 1;
    END LOOP;
    RETURN closed;
END
$$;
