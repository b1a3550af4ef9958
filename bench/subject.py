"""The daemon as a subject: started as a subprocess, driven over its control socket."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg

from bench.load import Filler, wait_until
from tenantry.domain import names


class Subject:
    """A running daemon."""

    def __init__(
        self, process: subprocess.Popen[bytes], socket: Path, broker: Mapping[str, str], db: str
    ) -> None:
        self._process = process
        self.killed = False
        self._rabbit = broker.get("RABBITMQ_URL", "")
        self._db = db
        self._counts: psycopg.Connection[Any] | None = None
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://localhost", timeout=60
        )

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        return self._process.pid

    def call(self, method: str, path: str, **kwargs: Any) -> Any:
        """Call the API; return the JSON of its response."""
        answer = self._http.request(method, path, **kwargs)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def create(self, tenant: str, **settings: Any) -> str:
        """Create a tenant; return the URL with which its own clients publish."""
        made = {"id": tenant, "name": tenant, **settings}
        credentials = self.call("POST", "/tenants", json=made)["credentials"]
        return next(value for name, value in credentials.items() if name.endswith("_url"))

    def ready(self) -> bool:
        """Tell whether the daemon serves and is ready."""
        if self._process.poll() is not None:
            raise RuntimeError("the daemon ended")
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def peak_rss_mb(self) -> float:
        """Give the largest resident set so far, in MB."""
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
        return float("nan")

    def size_of(self, path: str) -> int:
        """Return the size of a response in bytes."""
        answer = self._http.get(path)
        answer.raise_for_status()
        return len(answer.content)

    def kill(self) -> None:
        """End the daemon with SIGKILL."""
        self._process.kill()
        self._process.wait()
        self.killed = True

    def stored(self) -> int:
        """Count the committed messages of all tenants."""
        return sum(self.stored_of(None).values())

    def stored_of(self, tenants: Iterable[str] | None) -> dict[str, int]:
        """Count the committed messages, by tenant; with None of all tenants.

        On a connection that stays open: a new one each time would take the processor time of some
        hundred messages.
        """
        if self._counts is None:
            self._counts = psycopg.connect(self._db, autocommit=True)
        rows = self._counts.execute(
            "SELECT tenant_id, stored FROM tenantry.tenant_counters"
            " WHERE %(only)s::text[] IS NULL OR tenant_id = ANY(%(only)s)",
            {"only": None if tenants is None else list(tenants)},
        ).fetchall()
        return dict(rows)

    def close(self) -> None:
        """Close the connections to the database and to the daemon."""
        self._http.close()
        if self._counts is not None:
            self._counts.close()

    def drain_backlog(self, tenants: int, count: int) -> float:
        """Queue `count` messages for `tenants`, let the daemon store them; messages a second."""
        ids = [f"bench-{tenants}-{number}" for number in range(tenants)]
        for tenant in ids:
            self.call("POST", "/tenants", json={"id": tenant, "name": tenant})
            self.call("POST", f"/tenants/{tenant}/pause")
        before = self.stored()
        Filler(self._rabbit, [(names.exchange_name(one), "default") for one in ids], count).run()
        started = time.perf_counter()
        for tenant in ids:
            self.call("POST", f"/tenants/{tenant}/resume")
        wait_until(lambda: self.stored() - before >= count, timeout=600)
        rate = count / (time.perf_counter() - started)
        for tenant in ids:
            self.call("DELETE", f"/tenants/{tenant}")
        return rate

    def latencies(self, rate: int, seconds: int) -> list[float]:
        """Publish at a steady rate; milliseconds from publishing to commit, sorted."""
        self.call("POST", "/tenants", json={"id": "steady", "name": "steady"})
        Filler(
            self._rabbit, [(names.exchange_name("steady"), "default")], rate * seconds, rate
        ).run()
        with psycopg.connect(self._db) as connection:
            rows = connection.execute(
                "SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin) - published_at) * 1000"
                " FROM tenantry.messages_steady"
            ).fetchall()
        self.call("DELETE", "/tenants/steady")
        return sorted(float(row[0]) for row in rows)


@contextmanager
def running(directory: Path, broker: Mapping[str, str], db: str) -> Iterator[Subject]:
    """Start a daemon on these services; stop it with SIGTERM, and check that it has drained.

    A daemon that was killed is not stopped again. `broker` holds the variables that name the
    broker; without any, it is the embedded one. A second daemon in the same directory takes over
    the state of the first.
    """
    directory.mkdir(exist_ok=True)
    environ = {
        **os.environ,
        "BROKER_URL": "",
        "RABBITMQ_URL": "",
        "RABBITMQ_MANAGEMENT_URL": "",
        **broker,
        "DATABASE_URL": db,
        "TENANTRY_STATE_DIR": str(directory),
        "TENANTRY_SERVER_PORT": "0",
        "TENANTRY_LOG_FORMAT": "json",
    }
    environ.pop("PYTHONDONTWRITEBYTECODE", None)  # modules stay compiled, as for users
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tenantry.cli.main", "run"], env=environ, stderr=log
        )
        subject = Subject(process, directory / "control.sock", broker, db)
        try:
            wait_until(subject.ready, timeout=180)
            yield subject
            if subject.killed:
                return
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
            assert code == 0, f"the daemon ended with {code}"
        except BaseException:
            print((directory / "log").read_text()[-3000:], file=sys.stderr)
            raise
        finally:
            subject.close()
            if process.poll() is None:
                process.kill()
                process.wait()
