"""What no role of a tenant's may do in the database, whatever it is for; all of it is harmless."""

from __future__ import annotations

from typing import Final

from tenantry.isolation.checks import Action

FORBIDDEN: Final[tuple[tuple[Action, str, str], ...]] = (
    ("read", "public.messages", "SELECT FROM public.messages LIMIT 1"),
    ("read", "public.messages (without row security)",
     "SET LOCAL row_security = off; SELECT FROM public.messages LIMIT 1"),
    ("write", "public.messages", "DELETE FROM public.messages WHERE false"),
    ("configure", "public.messages (its row security)",
     "ALTER TABLE public.messages DISABLE ROW LEVEL SECURITY"),
    ("read", "tenantry.events", "SELECT FROM tenantry.events LIMIT 1"),
    ("read", "tenantry.credentials", "SELECT FROM tenantry.credentials LIMIT 1"),
    ("read", "tenantry.dead_letters", "SELECT FROM tenantry.dead_letters LIMIT 1"),
    ("read", "pg_statistic", "SELECT FROM pg_catalog.pg_statistic LIMIT 1"),
    ("read", "pg_authid", "SELECT FROM pg_catalog.pg_authid LIMIT 1"),
    ("read", "files of the server", "SELECT pg_catalog.pg_read_file('PG_VERSION')"),
    ("configure", "programs of the server", "COPY (SELECT 1) TO PROGRAM 'true'"),
    ("configure", "the schema public", "CREATE TABLE public.isolation_probe ()"),
    ("configure", "the schema tenantry", "CREATE TABLE tenantry.isolation_probe ()"),
    ("configure", "the database's schemas", "CREATE SCHEMA isolation_probe"),
    ("configure", "roles", "CREATE ROLE isolation_probe"),
    ("configure", "its role's rights", "ALTER ROLE CURRENT_USER BYPASSRLS"),
)  # fmt: skip
"""Action, target, statement."""
