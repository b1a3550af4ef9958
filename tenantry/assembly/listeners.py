"""The daemon's listeners, and the application that they serve as the daemon's state changes."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Final

import httpx
from starlette.types import ASGIApp

from tenantry.api.routes.metrics import ALONE, alone
from tenantry.front.messages import WorkWith
from tenantry.front.process import Front
from tenantry.http.identity import Identity
from tenantry.http.listeners import (
    ControlSocketBusyError,
    ListenError,
    Relay,
    SharedRelay,
    TlsFilesError,
)
from tenantry.http.middleware import StartingApp
from tenantry.http.provider import Provider
from tenantry.http.server import ApiServer
from tenantry.metrics.page import MergedPage, Metrics
from tenantry.process import start_checks
from tenantry.process.family import Inherited
from tenantry.process.start_checks import connections, reserved_files
from tenantry.settings import Settings
from tenantry.tracing.lost import read
from tenantry.unixpath import addressed

SIBLING_SECONDS: Final = 2.0
"""How long another process may take to answer; a frozen process is left out."""

NO_HEADERS: Final[Mapping[str, str]] = {}


def ask_siblings(
    family: Inherited, own: Path, path: str, headers: Mapping[str, str] = NO_HEADERS
) -> list[str]:
    """Ask a service's other processes, all at once; return the texts of successful answers."""
    others = [one for one in family.siblings if one != own]
    if not others:
        return []
    with ThreadPoolExecutor(len(others), "siblings") as pool:
        answers = pool.map(lambda one: _ask(one, path, headers), others)
        return [text for text in answers if text]


def _ask(socket_path: Path, path: str, headers: Mapping[str, str]) -> str:
    try:
        with (
            addressed(socket_path) as uds,
            httpx.Client(
                transport=httpx.HTTPTransport(uds=uds, verify=False), timeout=SIBLING_SECONDS
            ) as client,
        ):
            answer = client.get(f"http://localhost{path}", headers=headers)
            return answer.text if answer.is_success else ""
    except (httpx.HTTPError, OSError):
        return ""


class Listeners:
    """The listeners: they answer 503 at first, then serve the last opened application."""

    def __init__(self, settings: Settings, inherited: Inherited | None = None) -> None:
        """With `inherited` sockets, the front and its port belong to the parent."""
        self._settings = settings
        self._inherited = inherited
        self.identity: Final = Identity.of(settings.security.secrets, Provider.of(settings))
        """The accepted issuers of tokens, here and in the front."""
        self._main_app, self._metrics_app = StartingApp(), StartingApp()
        port = settings.metrics.port
        # The control socket, the front, and perhaps a port for metrics.
        share = connections(reserved_files(settings), ways=2 if port is None else 3)
        own = settings.control_socket
        self._front: Front | None = None
        self._metrics: ApiServer | None = None
        self._lost_spans: IO[bytes] | None = None
        if inherited is not None:
            if inherited.lost_spans is not None:
                self._lost_spans = os.fdopen(inherited.lost_spans, "r+b", buffering=0)
            self._api = ApiServer(
                self._main_app,
                socket_path=own,
                shared_control=socket.socket(fileno=inherited.control),
                relay=SharedRelay(inherited.relay),
                max_connections=share,
            )
            if inherited.metrics is not None:
                listening = socket.socket(fileno=inherited.metrics)
                self._metrics = ApiServer(
                    self._metrics_app, listening=listening, max_connections=share
                )
            return
        relay = Relay()
        self._api = ApiServer(self._main_app, socket_path=own, relay=relay, max_connections=share)
        self._front = Front(settings, relay)
        if port is not None:
            self._metrics = ApiServer(
                self._metrics_app, tcp=("127.0.0.1", port), max_connections=share
            )

    def bind(self) -> None:
        """Bind all addresses, or none. Raises `ListenError`, which names the key.

        The control socket comes first: its holder is the daemon of this state directory.
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
        """Return the error with the key of the refused address, and the remedy."""
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
        """Return the servers, in the order in which to run them on threads of their own.

        The front ends last: by then no request waits for the daemon's answer.
        """
        loops: dict[str, ApiServer | Front] = {"api": self._api}
        if self._front is not None:
            loops = {"front": self._front, **loops}
        if self._metrics is not None:
            loops["metrics"] = self._metrics
        return loops

    @property
    def port(self) -> int | None:
        """The port of HTTP on TCP, once bound."""
        if self._front is not None:
            return self._front.port
        return None if self._inherited is None else self._inherited.port

    @property
    def metrics_port(self) -> int | None:
        """The port that serves only metrics, if there is one."""
        return None if self._metrics is None else self._metrics.tcp_port

    def lost_spans(self) -> Mapping[str, int]:
        """Count the front's lost spans, by reason.

        Of several processes that share a front, only the first counts them.
        """
        if self._front is not None:
            file = self._front.lost_spans
        elif self._inherited is not None:
            first = next(iter(self._inherited.siblings), None)
            own = self._settings.control_socket.absolute()
            file = self._lost_spans if first == own else None
        else:
            file = None
        return {} if file is None else read(file)

    def share(self) -> None:
        """Start to accept on the sockets shared with this service's other processes."""
        self._api.share()
        if self._metrics is not None:
            self._metrics.share()

    def others_are_ready(self) -> bool:
        """Return whether another process of this service is ready; may take some seconds."""
        if self._inherited is None:
            return False
        own = self._settings.control_socket.absolute()
        return bool(ask_siblings(self._inherited, own, "/readyz"))

    def with_siblings(self, page: Metrics, node: str) -> Metrics:
        """Merge a page with those of this service's other processes, if there are any."""
        if self._inherited is None:
            return page
        own, family = self._settings.control_socket.absolute(), self._inherited

        def ask(accept: str) -> list[str]:
            return ask_siblings(family, own, "/metrics", {ALONE: "1", "Accept": accept})

        return MergedPage(page, node, ask)

    def open(self, app: ASGIApp, metrics: Metrics) -> None:
        """Serve an application, and metrics where they have a port of their own."""
        self._metrics_app.open(alone(metrics))
        self._main_app.open(app)

    def trust(self, secrets: Sequence[str]) -> None:
        """Accept tokens signed with these secrets, and no others, from now on."""
        self.identity.trust(secrets)
        if self._front is not None:
            self._front.trust(secrets)

    def work_with(self, work: WorkWith) -> None:
        """Let the front do by itself what it can, from now on."""
        if self._front is not None:
            self._front.work_with(work)
