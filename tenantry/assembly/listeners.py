"""Everything the daemon listens on, and what stands behind it as the daemon changes its state."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from contextlib import ExitStack

from starlette.types import ASGIApp

from tenantry.api.routes.metrics import alone
from tenantry.front.messages import WorkWith
from tenantry.front.process import Front
from tenantry.http.listeners import ControlSocketBusyError, ListenError, Relay, TlsFilesError
from tenantry.http.middleware import StartingApp
from tenantry.http.server import ApiServer
from tenantry.metrics.page import MetricsPage
from tenantry.process import start_checks
from tenantry.process.start_checks import connections, reserved_files
from tenantry.settings import Settings


class Listeners:
    """The listeners: they answer 503 at first, then serve the application that was opened last."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        relay = Relay()
        self._main_app, self._metrics_app = StartingApp(), StartingApp()
        port = settings.metrics.port
        # The control socket, the front, and perhaps a port for metrics.
        share = connections(reserved_files(settings), ways=2 if port is None else 3)
        self._api = ApiServer(
            self._main_app, socket_path=settings.control_socket, relay=relay, max_connections=share
        )
        self._front = Front(settings, relay)
        self._metrics = (
            None
            if port is None
            else ApiServer(self._metrics_app, tcp=("127.0.0.1", port), max_connections=share)
        )

    def bind(self) -> None:
        """Take every address, or none. Raises `ListenError`, which names the key.

        The control socket comes first: its holder is the daemon of this state.
        """
        with ExitStack() as taken:
            for key, one in (
                ("control.socket", self._api),
                ("server.port", self._front),
                ("metrics.port", self._metrics),
            ):
                if one is None:
                    continue
                try:
                    one.bind()
                except ListenError as error:
                    raise self._named(key, error) from error
                taken.callback(one.stop)
            taken.pop_all()

    def _named(self, key: str, error: ListenError) -> ListenError:
        """Say which key a refused address has come from, and what to do."""
        cause = error.__cause__
        help_ = start_checks.remedy(cause)
        if isinstance(error, TlsFilesError):
            help_ = "" if isinstance(cause, FileNotFoundError) else help_
            _, private = self._settings.server.tls or (None, None)
            key = "server.tls_key" if error.file == private else "server.tls_cert"
        elif key == "server.port" and (
            isinstance(cause, socket.gaierror | UnicodeError)
            or getattr(cause, "errno", None) == errno.EADDRNOTAVAIL
        ):
            key = "server.host"
        if isinstance(error, ControlSocketBusyError):
            return type(error)(f"{key}: {error}")
        return ListenError(start_checks.line(key, str(error), help_))

    def loops(self) -> Mapping[str, ApiServer | Front]:
        """Give what is to be run on threads of their own, in this order.

        The front ends last: what hangs on the daemon's answers has then come to its end.
        """
        loops: dict[str, ApiServer | Front] = {"front": self._front, "api": self._api}
        if self._metrics is not None:
            loops["metrics"] = self._metrics
        return loops

    @property
    def port(self) -> int | None:
        """The port of HTTP on TCP, once bound."""
        return self._front.port

    @property
    def metrics_port(self) -> int | None:
        """The port that serves metrics alone, if there is one."""
        return None if self._metrics is None else self._metrics.tcp_port

    def open(self, app: ASGIApp, metrics: MetricsPage) -> None:
        """Serve an application, and metrics where they have a port of their own."""
        self._metrics_app.open(alone(metrics))
        self._main_app.open(app)

    def work_with(self, work: WorkWith) -> None:
        """Have the front do by itself what it can, from now on."""
        self._front.work_with(work)
