"""The front's own start and end: words of the daemon come in, a line from each process goes out.

It hears no signals: when to end is the daemon's to say, and the daemon's end is its own.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

import structlog

from tenantry.database.errors import DatabaseError
from tenantry.front.application import FrontApplication
from tenantry.front.means import Means
from tenantry.front.plan import Serve, Stop, WorkWith, read
from tenantry.http.server import ApiServer
from tenantry.process.limits import FRONT_FILES, connections
from tenantry.telemetry import logging

log = structlog.get_logger("front")

LOOK_AGAIN: Final = 2.0
"""Seconds between attempts to open the database."""


def main() -> None:
    """Serve until told to stop, or until the daemon is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    words = sys.stdin.buffer
    first = read(words.readline() or b'{"word": "Stop"}')
    if not isinstance(first, Serve):
        return
    logging.configure(first.log_level, first.log_format)  # type: ignore[arg-type]
    logging.dump_stacks_on_sigusr1()
    app = FrontApplication(socket.socket(fileno=first.relay), first.jwt_secret)
    server = ApiServer(
        app,
        listening=socket.socket(fileno=first.descriptor),
        # Each client may need a connection to the daemon as well.
        max_connections=connections(FRONT_FILES, ways=2),
        tls=None if first.tls is None else (Path(first.tls[0]), Path(first.tls[1])),
    )
    worker = Worker(app, server)
    threading.Thread(target=_listen, args=(words, worker), name="words", daemon=True).start()
    gc.collect()
    gc.freeze()
    server.bind()
    try:
        os.write(sys.stdout.fileno(), b"serving\n")
    except BrokenPipeError:
        return  # the daemon has died meanwhile: nobody is left to serve for
    server.run()
    worker.close()


class Worker:
    """Gets the front its means, once it may have them."""

    def __init__(self, app: FrontApplication, server: ApiServer) -> None:
        self._app = app
        self._server = server
        self._ended = threading.Event()
        self._means: Means | None = None
        self._thread: threading.Thread | None = None

    def work_with(self, plan: WorkWith) -> None:
        """Open what the plan names, for as long as that takes; until then the daemon works."""
        self._thread = threading.Thread(target=self._open, args=(plan,), name="means")
        self._thread.start()

    def stop(self) -> None:
        """Let requests end."""
        self._ended.set()
        self._server.stop(0)

    def close(self) -> None:
        """Close what was opened."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self._means is not None:
            self._means.close()

    def _open(self, plan: WorkWith) -> None:
        while not self._ended.is_set():
            try:
                means = Means(plan)
            except DatabaseError as error:
                log.warning("front.no_database", error=str(error))
                self._ended.wait(LOOK_AGAIN)
            else:
                self._means = means
                self._server.call(partial(self._app.use, means.lanes))
                return


def _listen(words: BinaryIO, worker: Worker) -> None:
    for line in words:
        match read(line):
            case WorkWith() as plan:
                worker.work_with(plan)
            case Stop():
                worker.stop()
                return
    os._exit(0)  # the daemon is gone: nobody is left to ask
