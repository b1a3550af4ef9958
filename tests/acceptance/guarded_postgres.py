"""A PostgreSQL that asks for a password, unlike the server that the tests share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from tests import scratch
from tests.services_postgres import own_server

USER = "guarded"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardedPostgres:
    """A server whose user has this password, and a database that belongs to that user."""

    url: str = field(repr=False)
    password: str = field(repr=False)

    def url_with(self, password: str) -> str:
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(netloc=f"{USER}:{password}@"))


@contextmanager
def guarded_postgres(password: str) -> Iterator[GuardedPostgres]:
    with scratch.directory("tnt-pg-") as directory:
        server = own_server(directory / "pg")
        url = server.start()
        try:
            with psycopg.connect(url, autocommit=True) as connection:
                row = connection.execute("SHOW hba_file").fetchone()
                assert row is not None
                rules = Path(row[0])
                rules.write_text(f"local all {USER} scram-sha-256\n" + rules.read_text())
                connection.execute("SELECT pg_reload_conf()")
                connection.execute(
                    sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                        sql.Identifier(USER), sql.Literal(password)
                    )
                )
                connection.execute(
                    sql.SQL("CREATE DATABASE {0} OWNER {0}").format(sql.Identifier(USER))
                )
            parts = urlsplit(url)._replace(path=f"/{USER}")
            guarded = GuardedPostgres(url=urlunsplit(parts), password=password)
            yield GuardedPostgres(url=guarded.url_with(password), password=password)
        finally:
            server.stop()
