"""A real Iggy for the tests: one server a run, tenants of unique names a test.

Iggy is published as source and as an image for containers, so it can't be installed here: tests run
where the environment says which one, and are skipped elsewhere.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import on_demand, scratch
from tests.iggy_server import PrivateIggy

SERVER = "IGGY_SERVER"
"""Names the server's program: one is started for the run, on a port and with data of its own."""

ADDRESS = "IGGY_ADDRESS"
"""Names a server that runs, HOST:PORT; its root user is `IGGY_USERNAME`, `IGGY_PASSWORD`."""

URL = "TENANTRY_TEST_IGGY_URL"
"""Tells the workers of a run where its server is."""

NOWHERE = (
    "no Iggy server: set IGGY_SERVER=/path/to/iggy-server, or IGGY_ADDRESS=host:port for one that"
    " runs"
)


class NoServerError(pytest.skip.Exception):
    """A test is skipped for it; an experiment says so."""


class IggyService:
    """The test run's own server, in a temporary directory that goes with it."""

    variables = (URL,)

    def __init__(self) -> None:
        self._directory: Path | None = None
        self._server: PrivateIggy | None = None

    def start(self) -> None:
        """Start the server, unless it runs or the environment names one."""
        if os.environ.get(URL):
            return
        if address := os.environ.get(ADDRESS):
            user = os.environ.get("IGGY_USERNAME", "iggy")
            password = os.environ.get("IGGY_PASSWORD", "iggy")
            os.environ[URL] = f"iggy://{user}:{password}@{address}"
            return
        self._directory = scratch.made("tenantry-test-iggy-")
        self._server = PrivateIggy(Path(os.environ[SERVER]), self._directory)
        self._server.start()
        os.environ[URL] = self._server.url

    def stop(self) -> None:
        """Stop the server this object started, and remove its data."""
        if self._server is not None:
            os.environ.pop(URL, None)
            self._server.stop()
            self._server = None
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None


def given() -> bool:
    """Tell whether the environment names a server."""
    return bool(os.environ.get(SERVER) or os.environ.get(ADDRESS))


def url() -> str:
    """Give the URL of the run's server; without one the test is skipped."""
    if not given():
        raise NoServerError(NOWHERE)
    on_demand.ensure("iggy")
    return os.environ[URL]


@contextmanager
def own_server(certificate: tuple[Path, Path] | None = None) -> Iterator[PrivateIggy]:
    """Run a server beside the run's, which may be killed; with a `certificate` behind TLS."""
    program = os.environ.get(SERVER)
    if not program:
        raise NoServerError(NOWHERE)
    with scratch.directory("tnt-iggy-") as directory:
        server = PrivateIggy(Path(program), directory / "server", certificate=certificate)
        try:
            server.start()
            yield server
        finally:
            server.stop()
