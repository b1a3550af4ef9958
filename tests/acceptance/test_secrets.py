"""Passwords can't be read anywhere: not in logs, arguments, the journal or the tables."""

from __future__ import annotations

import secrets
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from tests import preloaded
from tests.acceptance.guarded_postgres import guarded_postgres
from tests.acceptance.program import Program, Tenant
from tests.services_rabbitmq import RabbitHost

BROKER_SECRET = f"broker-{secrets.token_hex(8)}"
DATABASE_SECRET = f"database-{secrets.token_hex(8)}"


def everything_in(url: str) -> str:
    """Return all tables of the program as text, row by row."""
    with psycopg.connect(url) as connection:
        tables = connection.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname IN ('public', 'tenantry')"
        ).fetchall()
        rows: list[str] = []
        for schema, table in tables:
            found = connection.execute(
                sql.SQL("SELECT row.*::text FROM {} AS row").format(sql.Identifier(schema, table))
            )
            rows += [f"{table}: {row[0]}" for row in found]
    return "\n".join(rows)


def command_lines() -> str:
    """Return the arguments of all processes."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found.append((process / "cmdline").read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return "\n".join(found)


def test_no_password_is_logged_stored_or_passed_as_an_argument(rabbitmq: RabbitHost) -> None:
    with guarded_postgres(DATABASE_SECRET) as postgres, Program(rabbitmq, postgres.url) as program:
        admin = program.name("admin")
        program.management.put(
            f"/users/{admin}", json={"password": BROKER_SECRET, "tags": "administrator"}
        ).raise_for_status()
        program.management.put(
            f"/permissions/{rabbitmq.vhost}/{admin}",
            json={"configure": ".*", "write": ".*", "read": ".*"},
        ).raise_for_status()
        host = urlsplit(rabbitmq.url).netloc.rpartition("@")[2]
        management = urlsplit(rabbitmq.management_url).netloc.rpartition("@")[2]
        program.own_interpreter = True  # its arguments are checked, and its front's
        program.settings = {
            "RABBITMQ_URL": f"amqp://{admin}:{BROKER_SECRET}@{host}/{rabbitmq.vhost}",
            "RABBITMQ_MANAGEMENT_URL": f"http://{management}",
            "TENANTRY_LOG_LEVEL": "debug",
        }
        program.start()
        program.own_interpreter = not preloaded.available()
        first = program.create()
        second = program.rotated(first.id)
        by_command = program.cli("tenant", "rotate-credentials", first.id, "--json")
        third = Tenant(
            id=first.id,
            password=by_command.json["credentials"]["password"],
            amqp_url=by_command.json["credentials"]["amqp_url"],
            shown=by_command.json,
        )
        passwords = [first.password, second.password, third.password]
        assert len(set(passwords)) == 3
        forbidden = [BROKER_SECRET, DATABASE_SECRET, *passwords]

        arguments = command_lines()
        assert "tenantry.cli.main" in arguments
        answers = "\n".join(
            program.call("GET", path).text
            for path in ("/info", "/status", f"/tenants/{first.id}", "/tenants", "/events")
        )
        assert program.stop() == 0
        stored = everything_in(postgres.url)
        assert first.id in stored
        state = b"".join(
            path.read_bytes() for path in program.directory.rglob("*") if path.is_file()
        ).decode(errors="replace")
        for name, text in {
            "the log": program.stderr,
            "a process's arguments": arguments,
            "the API's answers": answers,
            "the database": stored,
            "the state directory": state,
        }.items():
            found = [secret for secret in forbidden if secret in text]
            assert not found, f"{len(found)} secrets stand in {name}"
