"""The program as its users run it: a subprocess, its signals, its socket, its exit codes."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, unquote, urlsplit

import httpx
import pika
import psycopg
import pytest
from psycopg import sql

from tests import preloaded, scratch
from tests.services_rabbitmq import RabbitHost
from tests.waiting import DEADLINE, eventually

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "tenantry.cli.main")
LOOK = 5.0
"""Seconds that a request may take if the daemon may be frozen, or not there."""

OWN_VARIABLES = (
    "TENANTRY_", "BROKER_URL", "RABBITMQ_", "DATABASE_URL", "STATE_DIRECTORY", "RUNTIME_DIRECTORY",
    "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "PG",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str
    seconds: float = 0.0

    @property
    def json(self) -> Any:
        """The JSON document on stdout, which must hold nothing else."""
        return json.loads(self.stdout)

    @property
    def complaint(self) -> str:
        """The line for people on stderr, beside lines of the log; there must be just one."""
        lines = [line for line in self.stderr.splitlines() if not line.startswith("{")]
        assert len(lines) == 1, self.stderr
        assert "Traceback" not in self.stderr, self.stderr
        return lines[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A tenant that was made; `amqp_url` is its own URL of the broker, of whichever kind."""

    id: str
    password: str = field(repr=False)
    amqp_url: str = field(repr=False)
    shown: dict[str, Any] = field(repr=False)

    @property
    def stream(self) -> str:
        return f"tenant_{self.id}_stream"

    @property
    def queue(self) -> str:
        return f"tenant_{self.id}_queue"

    @property
    def dead_letters(self) -> str:
        return f"tenant_{self.id}_dead_letters"

    @property
    def user(self) -> str:
        return f"tenant_{self.id}_producer"


class Program:
    """A daemon with a state directory of its own. At the end it is killed if it still runs."""

    def __init__(self, host: RabbitHost | None, database_url: str) -> None:
        """Without a `host` the daemon has its embedded broker."""
        self.broker = host
        self.database_url = database_url
        self.directory = scratch.short("tnt-")
        self.socket = self.directory / "control.sock"
        self.log = self.directory / "stderr.log"
        self.config = self.directory / "config.toml"
        self.config.touch()
        self.settings: dict[str, str] = {}
        self._tag = secrets.token_hex(3)
        self._test = 0
        self.frozen = False
        self.own_interpreter = not preloaded.available()
        """Whether each process loads the program itself, as in production."""
        self._process: subprocess.Popen[bytes] | preloaded.Popen | None = None
        parts = urlsplit(host.management_url if host else "")
        self.management = httpx.Client(
            base_url=f"http://{parts.hostname}:{parts.port}/api" if host else "",
            auth=(unquote(parts.username or ""), unquote(parts.password or "")),
            timeout=DEADLINE,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        self._remove_users()
        self.management.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def name(self, word: str) -> str:
        """Make a tenant's id that no other test has: all tests share the broker's users."""
        return f"{word}-{self._tag}{self._test:02}"

    def next_test(self) -> None:
        """Change the names of tenants, for the next of the tests that share the daemon."""
        self._test += 1

    # The process.

    def environment(self, **settings: str) -> dict[str, str]:
        """Return a daemon's environment, free of the caller's own configuration."""
        inherited = {
            key: value for key, value in os.environ.items() if not key.startswith(OWN_VARIABLES)
        }
        return {
            **inherited,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), inherited.get("PYTHONPATH")))),
            "TENANTRY_CONFIG": str(self.config),
            "TENANTRY_STATE_DIR": str(self.directory),
            "TENANTRY_SERVER_PORT": "0",
            "RABBITMQ_URL": self.broker.url if self.broker else "",
            "RABBITMQ_MANAGEMENT_URL": self.broker.management_url if self.broker else "",
            "DATABASE_URL": self.database_url,
            **self.settings,
            **settings,
        }

    def spawn(self, **settings: str) -> subprocess.Popen[bytes] | preloaded.Popen:
        """Start the daemon and wait for nothing."""
        assert not self.running
        self.frozen = False
        with self.log.open("ab") as log:
            start = subprocess.Popen if self.own_interpreter else preloaded.Popen
            self._process = start(
                [*COMMAND, "run"],
                cwd=self.directory,
                env=self.environment(**settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self._process

    def start(self, **settings: str) -> Self:
        """Start the daemon and wait until it consumes."""
        self.spawn(**settings)
        self.wait_ready()
        return self

    def wait_ready(self, timeout: float = DEADLINE) -> None:
        eventually(lambda: self.status_of("/readyz") == 200, timeout=timeout, what="readyz 200")

    def run(self, **settings: str) -> Ended:
        """Run the daemon until it ends by itself."""
        return self._run([*COMMAND, "run"], self.environment(**settings))

    def cli(self, *arguments: str, timeout: float = DEADLINE, **settings: str) -> Ended:
        """Run another command of the program beside the daemon."""
        return self._run([*COMMAND, *arguments], self.environment(**settings), timeout=timeout)

    @contextmanager
    def beside(
        self, *arguments: str, out: Path
    ) -> Iterator[subprocess.Popen[bytes] | preloaded.Popen]:
        """Run another command, which prints to `out`, beside the block; kill it at the end."""
        start = subprocess.Popen if self.own_interpreter else preloaded.Popen
        with out.open("wb") as stream:
            process = start(
                [*COMMAND, *arguments],
                cwd=self.directory,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def _run(
        self, command: list[str], environment: dict[str, str], timeout: float = DEADLINE
    ) -> Ended:
        began = time.monotonic()
        if self.own_interpreter:
            ended = subprocess.run(
                command,
                cwd=self.directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        else:
            ended = preloaded.run(command, cwd=self.directory, env=environment, timeout=timeout)
        return Ended(
            code=ended.returncode,
            stdout=ended.stdout,
            stderr=ended.stderr,
            seconds=time.monotonic() - began,
        )

    @property
    def process(self) -> subprocess.Popen[bytes] | preloaded.Popen:
        assert self._process is not None, "the daemon was not started"
        return self._process

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def check_running(self) -> None:
        assert self.running, f"the daemon has ended with {self.process.returncode}"

    def send(self, number: int) -> None:
        self.check_running()
        self.process.send_signal(number)

    def freeze(self) -> None:
        """Stop the daemon's process until SIGCONT."""
        self.send(signal.SIGSTOP)
        self.frozen = True

    def wait(self, timeout: float = DEADLINE) -> int:
        """Wait for the daemon's end and return its exit code."""
        return self.process.wait(timeout)

    def stop(self, number: int = signal.SIGTERM, timeout: float = DEADLINE) -> int:
        self.send(number)
        return self.wait(timeout)

    def kill(self) -> None:
        """Kill the daemon as a fault would; harmless if it has ended."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        if self._process is not None:
            self._process.wait(DEADLINE)

    @property
    def stderr(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def check_no_traceback(self) -> None:
        """Fail if the daemon has logged a traceback, and show it."""
        if "Traceback" in self.stderr:
            lines = [line for line in self.stderr.splitlines() if "Traceback" in line]
            pytest.fail("\n".join(lines).replace("\\n", "\n"))

    @property
    def logged(self) -> list[str]:
        """The lines on stderr from all runs; the last one may be half written, and is left out."""
        return [line for line in self.stderr.splitlines(keepends=True) if line.endswith("\n")]

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the log's events of this name, from all runs."""
        entries = [json.loads(line) for line in self.logged if line.startswith("{")]
        return [entry for entry in entries if entry["event"] == name]

    def wait_logged(self, name: str, count: int = 1) -> list[dict[str, Any]]:
        def look() -> list[dict[str, Any]]:
            found = self.events(name)
            return found if len(found) >= count else []

        return eventually(look, what=f"the log's event {name}")

    # The API on the control socket.

    def call(
        self, method: str, path: str, body: object = None, *, timeout: float = DEADLINE
    ) -> httpx.Response:
        """Make a request on a new connection. Raises `httpx.TransportError` if no answer comes."""
        request = httpx.Request(method, f"http://localhost{path}", json=body)
        connection = _OnSocket(self.socket, timeout)
        try:
            target = request.url.raw_path.decode()
            connection.request(method, target, request.content, dict(request.headers))
            answer = connection.getresponse()
            return httpx.Response(
                answer.status, headers=answer.getheaders(), content=answer.read(), request=request
            )
        except TimeoutError as error:
            raise httpx.ReadTimeout(str(error)) from error
        except (OSError, HTTPException) as error:
            raise httpx.NetworkError(repr(error)) from error
        finally:
            connection.close()

    def call_until_taken(self, method: str, path: str, body: object = None) -> httpx.Response:
        """Make a request, again while it is refused for now, as a client does that is told so."""

        def send() -> httpx.Response | None:
            answer = self.call(method, path, body)
            for_now = answer.status_code == 503 and "retry-after" in answer.headers
            return None if for_now else answer

        return eventually(send, what=f"{method} {path} taken")

    def get(self, path: str) -> Any:
        answer = self.call("GET", path)
        assert answer.status_code == 200, (answer.status_code, answer.text)
        return answer.json()

    def status_of(self, path: str) -> int | None:
        """Return the status of a GET; None if no answer comes."""
        self.check_running()
        try:
            return self.call("GET", path, timeout=LOOK).status_code
        except httpx.TransportError:
            return None

    def create(self, word: str = "acme", **fields: Any) -> Tenant:
        """Make a tenant through the API."""
        body = {"name": word, "id": self.name(word), **fields}
        answer = self.call("POST", "/tenants", body)
        assert answer.status_code == 201, (answer.status_code, answer.text)
        return tenant_of(answer.json())

    def rotated(self, tenant_id: str) -> Tenant:
        answer = self.call("POST", f"/tenants/{tenant_id}/credentials/rotate")
        assert answer.status_code == 200, (answer.status_code, answer.text)
        return tenant_of(answer.json())

    def runtime(self, tenant: Tenant) -> dict[str, Any]:
        found: dict[str, Any] = self.get("/status")["tenants"][tenant.id]
        return found

    # The broker, as its administrator sees it.

    @property
    def host(self) -> RabbitHost:
        assert self.broker is not None, "the broker is the embedded one"
        return self.broker

    def connect_admin(self) -> pika.BlockingConnection:
        return pika.BlockingConnection(pika.URLParameters(self.host.url))

    def ready_messages(self, *queues: str) -> int:
        """Count the messages ready in queues, by asking the queues themselves."""
        if self.broker is None:
            return self._lying_in(queues)
        with self.connect_admin() as connection:
            channel = connection.channel()
            return sum(
                channel.queue_declare(queue, passive=True).method.message_count for queue in queues
            )

    def broker_objects(self, tenant_id: str) -> list[str]:
        """Return the names of all objects on the broker that contain the tenant's name."""
        vhost = quote(self.host.vhost, safe="")
        found = []
        for path in (f"/queues/{vhost}", f"/exchanges/{vhost}", "/users"):
            listed = self.management.get(path).raise_for_status().json()
            found += [one["name"] for one in listed if f"tenant_{tenant_id}_" in one["name"]]
        return found

    def daemon_connections(self) -> list[str]:
        """Return the daemon's connections; none before the management API lists both kinds."""
        listed = self.management.get(
            f"/vhosts/{quote(self.host.vhost, safe='')}/connections"
        ).raise_for_status()
        ours = {
            one["name"]: str(one.get("client_properties", {}).get("connection_name"))
            for one in listed.json()
        }
        kinds = ("tenantry consuming", "tenantry publishing")
        if not all(any(name.startswith(kind) for name in ours.values()) for kind in kinds):
            return []
        return [one for one, name in ours.items() if name.startswith("tenantry")]

    def _lying_in(self, queues: tuple[str, ...]) -> int:
        with psycopg.connect(self.database_url) as connection:
            row = connection.execute(
                "SELECT count(*) FROM tenantry.queued AS m JOIN tenantry.queues AS q"
                " ON q.id = m.queue WHERE q.name = ANY(%s)",
                [list(queues)],
            ).fetchone()
            assert row is not None
            return int(row[0])

    def _remove_roles(self) -> None:
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            query = "SELECT rolname FROM pg_roles WHERE rolname LIKE %s"
            for (role,) in connection.execute(query, [f"%-{self._tag}%"]).fetchall():
                connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))

    def _remove_users(self) -> None:
        if self.broker is None:
            if self.database_url:  # else it was the daemon's own database, which is gone
                self._remove_roles()
            return
        for user in self.management.get("/users").raise_for_status().json():
            if f"-{self._tag}" in user["name"]:
                self.management.delete(f"/users/{quote(user['name'], safe='')}")


class _OnSocket(HTTPConnection):
    """Speaks HTTP over a socket of the file system; a client of httpx costs four times as much."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def tenant_of(shown: dict[str, Any]) -> Tenant:
    credentials = shown["credentials"]
    return Tenant(
        id=shown["id"],
        password=credentials["password"],
        amqp_url=credentials.get("amqp_url")
        or credentials.get("iggy_url")
        or credentials["postgres_url"],
        shown=shown,
    )


@contextmanager
def in_background(work: Any) -> Iterator[threading.Thread]:
    """Run a function on a thread beside the block; join the thread at the end."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(DEADLINE)
