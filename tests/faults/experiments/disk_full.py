"""The database's disk fills up, and gets room again."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psycopg

from tests.faults.rig import Rig
from tests.services_postgres import in_database

PIECE = bytes(64 * 1024)
ROOM = 4_000_000
ROUGHLY = 4_000_000
"""Bytes of the free room that are not allocated in one piece: the database goes on writing."""


def run(rig: Rig, rounds: int) -> None:
    assert rig.postgres is not None
    filler = rig.postgres.directory / "filler"
    _keep_the_log_small(rig.postgres.url)
    rig.start()
    pid = rig.program.process.pid
    gave_up = 0
    with rig.load():
        for number in rig.rounds(rounds):
            rig.wait_for_some()
            # Every other round leaves room for a while: tables are full before the log is.
            fill(filler, leave=number % 2 * (ROOM // 10 if rig.light else ROOM))
            try:
                rig.wait_not_ready()
                rig.program.check_running()
                assert rig.program.status_of("/healthz") == 200
            finally:
                filler.unlink()
            if not rig.postgres.running:
                # Without room for its log PostgreSQL gives up; its supervisor starts it again.
                gave_up += 1
                rig.postgres.start()
            rig.recover(time.monotonic())
            rig.caught_up()
    assert rig.program.process.pid == pid
    rig.figures.notes["database_gave_up"] = gave_up


def _keep_the_log_small(url: str) -> None:
    with psycopg.connect(in_database(url, "postgres"), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET max_wal_size = '48MB'")
        connection.execute("ALTER SYSTEM SET min_wal_size = '32MB'")
        connection.execute("SELECT pg_reload_conf()")


def fill(filler: Path, *, leave: int) -> None:
    """Fill a disk with the file `filler`, except for `leave` bytes."""
    with filler.open("wb", buffering=0) as file:
        disk = os.statvfs(filler)
        # Most of it is allocated in one piece; writing it would take the processor's time.
        os.posix_fallocate(file.fileno(), 0, max(1, disk.f_bavail * disk.f_bsize - ROUGHLY))
        file.seek(0, os.SEEK_END)
        try:
            while True:
                file.write(PIECE)
        except OSError:
            file.truncate(max(0, file.tell() - leave))
