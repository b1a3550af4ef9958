"""The embedded PostgreSQL: what it keeps, what it survives, whom it lets in."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from tenantry.database import rundir
from tenantry.database.embedded import EmbeddedPostgres, EmbeddedPostgresError
from tenantry.database.pool import Database
from tests import scratch
from tests.services_postgres import own_server
from tests.waiting import DEADLINE


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A short directory, as a real one is; pytest's own would be too long for a socket."""
    directory = scratch.short("tenantry-emb-")
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def server(state_dir: Path) -> Iterator[EmbeddedPostgres]:
    one = own_server(state_dir / "pg")
    yield one
    one.stop()


@pytest.fixture
def new_server(state_dir: Path) -> Iterator[EmbeddedPostgres]:
    """One that has to make its data first."""
    one = EmbeddedPostgres(state_dir / "pg")
    yield one
    one.stop()


def ask(url: str, question: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(question.encode()).fetchone()
        return None if row is None else row[0]


def started_at(url: str) -> object:
    return ask(url, "SELECT pg_postmaster_start_time()::text")


def postmaster(data_dir: Path) -> psutil.Process:
    return psutil.Process(int((data_dir / "postmaster.pid").read_text().splitlines()[0]))


def test_a_restart_keeps_the_data(server: EmbeddedPostgres) -> None:
    url = server.start()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
    first = started_at(url)
    server.stop()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)
    assert server.start() == url
    assert started_at(url) != first
    assert ask(url, "SELECT n FROM kept") == 7


def test_a_directory_above_that_somebody_shuts_keeps_it_neither_from_stopping_nor_from_starting(
    new_server: EmbeddedPostgres, state_dir: Path
) -> None:
    """As root it runs as another user, who passes through no directory that is root's alone."""
    new_server.start()
    state_dir.chmod(0o700)
    new_server.stop()
    state_dir.chmod(0o700)
    assert ask(new_server.start(), "SELECT 1") == 1


def test_it_is_safe_durable_and_private_and_sees_none_of_our_environment(
    new_server: EmbeddedPostgres, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENANTRY_JWT_SECRET", "s3cret")
    monkeypatch.setenv("LC_ALL", "xx_XX.nonsense")
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGDATA", "/nowhere")
    url = new_server.start()
    assert ask(url, "SHOW fsync") == "on"
    assert ask(url, "SHOW synchronous_commit") == "on"
    assert ask(url, "SHOW full_page_writes") == "on"
    assert ask(url, "SHOW wal_segment_size") == "4MB", "while one is created nothing commits"
    assert (ask(url, "SHOW min_wal_size"), ask(url, "SHOW max_wal_size")) == ("80MB", "1GB")
    assert ask(url, "SHOW max_connections") == "200"
    assert ask(url, "SHOW listen_addresses") == ""
    assert ask(url, "SHOW server_encoding") == "UTF8"
    assert stat.S_IMODE((state_dir / "pg").stat().st_mode) == 0o700
    socket = Path(str(ask(url, "SHOW unix_socket_directories")).strip('"')) / ".s.PGSQL.5432"
    assert stat.S_IMODE(socket.stat().st_mode) == 0o700
    assert list(new_server.log_dir.glob("*.log"))
    assert not postmaster(state_dir / "pg").net_connections("inet")
    assert "TENANTRY_JWT_SECRET" not in postmaster(state_dir / "pg").environ()


def test_psql_understands_the_url(server: EmbeddedPostgres) -> None:
    psql = shutil.which("psql")
    if psql is None:
        pytest.skip("psql is not installed")
    done = subprocess.run(
        [psql, server.start(), "-Atc", "SELECT 6 * 7"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "42\n"


def test_stopping_is_harmless_before_starting_and_twice(server: EmbeddedPostgres) -> None:
    server.stop()
    url = server.start()
    assert server.start() == url
    server.stop()
    server.stop()


def test_the_server_of_a_killed_program_is_taken_over(
    server: EmbeddedPostgres, state_dir: Path
) -> None:
    program = f"""
        import os, signal
        from pathlib import Path
        from tenantry.database.embedded import EmbeddedPostgres
        print(EmbeddedPostgres(Path({str(state_dir / "pg")!r})).start(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    url = done.stdout.strip()
    running = started_at(url)
    assert server.start() == url
    assert started_at(url) == running
    server.stop()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)


def test_the_last_of_several_users_stops_it(server: EmbeddedPostgres, state_dir: Path) -> None:
    url = server.start()
    other = EmbeddedPostgres(state_dir / "pg")
    assert other.start() == url
    server.stop()
    assert ask(url, "SELECT 1") == 1
    other.stop()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)


def test_a_killed_server_comes_back_with_what_was_committed(
    server: EmbeddedPostgres, state_dir: Path
) -> None:
    url = server.start()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
    process = postmaster(state_dir / "pg")
    process.kill()
    process.wait(DEADLINE)
    # At once, while the orphans of the killed one are still about.
    assert server.start() == url
    assert ask(url, "SELECT n FROM kept") == 7


def test_a_dead_servers_number_that_another_program_has_now_is_no_obstacle(
    server: EmbeddedPostgres, state_dir: Path
) -> None:
    server.start()
    pid_file = state_dir / "pg" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    server.stop()
    pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    assert ask(server.start(), "SELECT 1") == 1


def test_a_path_too_long_for_a_socket_gets_a_private_directory(state_dir: Path) -> None:
    data_dir = state_dir / ("long-" * 20) / 'with "quotes", it\'s $HOME' / "pg"
    data_dir.parent.mkdir(parents=True)
    one = own_server(data_dir)
    url = one.start()
    try:
        socket_dir = Path(str(ask(url, "SHOW unix_socket_directories")).strip('"'))
        assert data_dir not in (socket_dir, *socket_dir.parents)
        status = socket_dir.stat()
        assert stat.S_IMODE(status.st_mode) == 0o700
        assert status.st_uid == data_dir.stat().st_uid
        assert ask(url, "SHOW data_directory") == str(data_dir)
    finally:
        one.stop()
    assert not socket_dir.exists()


def test_whatever_its_directory_is_called_the_url_reaches_the_server(state_dir: Path) -> None:
    data_dir = state_dir / "a b,c+d%20#e?f&g='h\"i\\jü" / "pg"
    data_dir.parent.mkdir()
    one = own_server(data_dir)
    url = one.start()
    try:
        assert ask(url, "SHOW data_directory") == str(data_dir)
        database = Database(url)
        assert ask(database.url_for("postgres", "any"), "SHOW data_directory") == str(data_dir)
    finally:
        one.stop()


def test_a_private_directory_that_somebody_else_has_taken_is_refused(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    places = state_dir / "t"
    places.mkdir()
    monkeypatch.setattr(rundir, "_bases", lambda: [places])
    data_dir = state_dir / ("long-" * 25)
    trap = rundir.socket_dir(data_dir, None)
    assert trap.parent == places
    trap.chmod(0o777)
    with pytest.raises(OSError, match="not ours alone"):
        rundir.socket_dir(data_dir, None)


def test_where_no_place_is_left_for_a_socket_the_remedy_is_said(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (state_dir / "file").touch()
    monkeypatch.setattr(rundir, "_bases", lambda: [state_dir / "none", state_dir / "file"])
    with pytest.raises(OSError, match="XDG_RUNTIME_DIR or TMPDIR"):
        rundir.socket_dir(state_dir / ("long-" * 25), None)


def test_half_made_data_of_an_interrupted_start_is_made_anew(
    new_server: EmbeddedPostgres, state_dir: Path
) -> None:
    (state_dir / ".pg.new").mkdir()
    (state_dir / ".pg.new" / "PG_VERSION").write_text("18\n")
    (state_dir / "pg").mkdir()
    assert ask(new_server.start(), "SELECT 1") == 1
    assert not (state_dir / ".pg.new").exists()


def test_somebody_elses_directory_is_left_alone(
    new_server: EmbeddedPostgres, state_dir: Path
) -> None:
    (state_dir / "pg").mkdir()
    (state_dir / "pg" / "letter.txt").write_text("dear")
    with pytest.raises(EmbeddedPostgresError, match="neither empty nor"):
        new_server.start()
    assert (state_dir / "pg" / "letter.txt").read_text() == "dear"


def test_a_server_that_cannot_start_says_why_in_one_line(
    server: EmbeddedPostgres, state_dir: Path
) -> None:
    server.start()
    server.stop()
    with (state_dir / "pg" / "postgresql.conf").open("a") as file:
        file.write("colour = red\n")
    with pytest.raises(EmbeddedPostgresError, match="did not start") as caught:
        server.start()
    assert "\n" not in str(caught.value)
    assert "FATAL: configuration file" in str(caught.value)


def test_data_of_an_unknown_version_is_refused(server: EmbeddedPostgres, state_dir: Path) -> None:
    server.start()
    server.stop()
    (state_dir / "pg" / "PG_VERSION").write_text("9\n")
    with pytest.raises(EmbeddedPostgresError, match="needs PostgreSQL 9"):
        server.start()
