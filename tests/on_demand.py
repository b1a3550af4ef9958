"""The services of a test run, each started when the first test asks for it.

A run's controller starts them, as it outlives its workers, and they end with it. A worker asks
for one by name and is told the variables that say where it is.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import Protocol

ENVIRONMENT = "TENANTRY_TEST_SERVICES"
"""Tells workers how to ask the controller: a port on 127.0.0.1, and the key to it."""

LONGEST_START = 110.0
"""Seconds a service may take to start on a machine with much else to do."""


class Service(Protocol):
    @property
    def variables(self) -> tuple[str, ...]:
        """The environment variables that say where it is, once it runs."""

    def start(self) -> object: ...

    def stop(self) -> None: ...


class Services:
    """The controller's side. `close` stops what was started, in any state."""

    def __init__(self, services: Mapping[str, Service]) -> None:
        self._services = services
        self._guards = {name: threading.Lock() for name in services}
        self._key = secrets.token_hex(16)
        self._listener = Listener(("127.0.0.1", 0), backlog=64, authkey=self._key.encode())
        self._answering: list[threading.Thread] = []
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="services", daemon=True)
        os.environ[ENVIRONMENT] = f"{self._listener.address[1]} {self._key}"
        self._thread.start()

    def close(self) -> None:
        os.environ.pop(ENVIRONMENT, None)
        self._closed = True
        with suppress(OSError, EOFError, AuthenticationError):
            Client(self._listener.address, authkey=self._key.encode()).close()  # wakes the thread
        self._thread.join(LONGEST_START)
        self._listener.close()
        for thread in self._answering:
            thread.join(LONGEST_START)
        for service in self._services.values():
            service.stop()

    def _run(self) -> None:
        while not self._closed:
            try:
                asking = self._listener.accept()
            except (OSError, EOFError, AuthenticationError):
                continue
            thread = threading.Thread(target=self._answer, args=[asking], daemon=True)
            self._answering.append(thread)
            thread.start()

    def _answer(self, asking: Connection) -> None:
        with asking, suppress(OSError, EOFError):
            name = asking.recv()
            service = self._services[name]
            try:
                with self._guards[name]:
                    service.start()
            except Exception as error:  # noqa: BLE001 - told to the test that has asked
                asking.send(f"{type(error).__name__}: {error}")
                return
            found = {one: os.environ[one] for one in service.variables if one in os.environ}
            asking.send(found)


def ensure(name: str) -> None:
    """See that a service of the run is started and its variables are set; cheap the next time.

    Nothing where nobody has said that services are to be had: what is set is taken as it is.
    """
    address = os.environ.get(ENVIRONMENT)
    if address is None or name in _told:
        return
    port, key = address.split()
    with Client(("127.0.0.1", int(port)), authkey=key.encode()) as asking:
        asking.send(name)
        if not asking.poll(LONGEST_START):
            raise TimeoutError(f"{name} has not been started within {LONGEST_START:g} s")
        found = asking.recv()
    if isinstance(found, str):
        raise RuntimeError(f"{name} can't be started: {found}")  # noqa: TRY004 - as it was told
    os.environ.update(found)
    _told.add(name)


_told: set[str] = set()
