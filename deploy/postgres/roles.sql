-- Roles of SRM's database: what each may do, and its time-outs.
--
--     psql "postgresql://postgres@db.example/srm" -f deploy/postgres/roles.sql
--
-- Run it as a superuser, in SRM's new or existing database. You may run it again: it does all or nothing, and leaves
-- what is right. Then give each role that logs in by password one: \password srm_application.
--
--     srm_owner        owns the schema and runs the migrations: SRM_DATABASE_URL of `srm db upgrade`
--     srm_application  API, reaper and commands: SRM_DATABASE_URL of everything else
--     srm_readonly     people who look (docs/dba.md)

\set ON_ERROR_STOP on
\set QUIET on
BEGIN;
SET LOCAL client_min_messages = warning;
SET LOCAL lock_timeout = '300ms'; -- for each table; if it gives up, run the script again a little later

DO $$
DECLARE role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['srm_owner', 'srm_application', 'srm_readonly'] LOOP
        IF to_regrole(role) IS NULL THEN
            EXECUTE format('CREATE ROLE %I', role);
        END IF;
        EXECUTE format('ALTER ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS', role);
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), role);
    END LOOP;
    EXECUTE format('GRANT CREATE ON DATABASE %I TO srm_owner', current_database()); -- to create the schema
    EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO srm_application', current_database()); -- for imports
END $$;

-- SRM asks for these settings on each connection. pgbouncer drops that request, so the role has them too.
ALTER ROLE srm_application SET statement_timeout = '1500ms';
ALTER ROLE srm_application SET lock_timeout = '1500ms';
ALTER ROLE srm_application SET idle_in_transaction_session_timeout = '1500ms';
ALTER ROLE srm_application SET default_transaction_isolation = 'read committed';
ALTER ROLE srm_application SET timezone = 'UTC';

ALTER ROLE srm_readonly SET default_transaction_read_only = on;
ALTER ROLE srm_readonly SET statement_timeout = '30s';
ALTER ROLE srm_readonly SET idle_in_transaction_session_timeout = '30s';
ALTER ROLE srm_readonly SET lock_timeout = '1s';
GRANT pg_read_all_stats TO srm_readonly; -- to see what others do and wait for

CREATE SCHEMA IF NOT EXISTS srm AUTHORIZATION srm_owner;
ALTER SCHEMA srm OWNER TO srm_owner;
DO $$
DECLARE object text;
BEGIN
    FOR object IN
        SELECT oid::regclass FROM pg_class
        WHERE relnamespace = 'srm'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'S')
          AND relowner <> 'srm_owner'::regrole
        ORDER BY relname <> 'accounts' -- first, as setups lock it first; in another order both would wait for each other
    LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO srm_owner', object);
    END LOOP;
    FOR object IN
        SELECT oid::regprocedure FROM pg_proc
        WHERE pronamespace = 'srm'::regnamespace AND proowner <> 'srm_owner'::regrole
    LOOP
        EXECUTE format('ALTER ROUTINE %s OWNER TO srm_owner', object);
    END LOOP;
END $$;

GRANT USAGE ON SCHEMA srm TO srm_application, srm_readonly;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA srm TO srm_application;
GRANT SELECT ON ALL TABLES IN SCHEMA srm TO srm_readonly;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA srm TO srm_application;
-- Rights on tables and functions of later migrations.
ALTER DEFAULT PRIVILEGES FOR ROLE srm_owner IN SCHEMA srm
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO srm_application;
ALTER DEFAULT PRIVILEGES FOR ROLE srm_owner IN SCHEMA srm GRANT SELECT ON TABLES TO srm_readonly;
ALTER DEFAULT PRIVILEGES FOR ROLE srm_owner IN SCHEMA srm GRANT EXECUTE ON FUNCTIONS TO srm_application;
ALTER DEFAULT PRIVILEGES FOR ROLE srm_owner REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

-- Records can only be added to, and srm_readonly does not see the hashes of keys. Migration 0018 sets these rights where
-- the roles exist before the tables.
DO $$
DECLARE object text; rights text;
BEGIN
    FOR object, rights IN
        SELECT to_regclass('srm.' || name), r FROM (
            VALUES ('alembic_version', 'INSERT, UPDATE, DELETE'), ('operators', 'DELETE'),
                   ('availability', 'DELETE'), ('reaper_state', 'INSERT, DELETE'),
                   ('operator_audit', 'UPDATE, DELETE'), ('session_history', 'UPDATE, DELETE'),
                   ('denials', 'UPDATE, DELETE')
        ) AS never (name, r) WHERE to_regclass('srm.' || name) IS NOT NULL
        UNION ALL
        SELECT oid::regclass, 'INSERT, UPDATE, DELETE' FROM pg_class -- partitions, attached and detached
        WHERE relnamespace = 'srm'::regnamespace AND relkind = 'r' AND relname ~ '^(session_history|denials)_'
    LOOP
        EXECUTE format('REVOKE %s ON %s FROM srm_application', rights, object);
    END LOOP;
    IF to_regclass('srm.operators') IS NOT NULL THEN
        REVOKE SELECT ON srm.operators FROM srm_readonly;
        GRANT SELECT (name, role, created_at, revoked_at) ON srm.operators TO srm_readonly;
    END IF;
END $$;
COMMIT;
