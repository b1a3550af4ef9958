"""`tenantry top` on a terminal: a thread asks the daemon, so that keys never wait.

If the daemon or another node answers late, only the figures wait for it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from tenantry.cli import output
from tenantry.cli.client import ControlClient
from tenantry.cli.output import CommandError
from tenantry.cli.terminal import Terminal
from tenantry.cli.top_screen import Screen, View, pressed

if TYPE_CHECKING:
    from rich.console import Console

Frame = dict[str, Any]
Look = Callable[[ControlClient], Frame]


class Looks:
    """The last frame, and the last error since then. One thread calls `run`."""

    def __init__(
        self,
        client: ControlClient,
        look: Look,
        found: Frame,
        *,
        interval: float,
        wake: Callable[[], None],
    ) -> None:
        self.seen: tuple[Frame, str | None] = (found, None)
        self.failure: BaseException | None = None
        self._client = client
        self._look = look
        self._interval = interval
        self._wake = wake
        self._stopped = threading.Event()

    def run(self) -> None:
        """Ask for frames until `stop`."""
        try:
            while not self._stopped.wait(self._interval):
                try:
                    self.seen = self._look(self._client), None
                except CommandError as error:
                    self.seen = self.seen[0], str(error)
                self._wake()
        except BaseException as error:  # noqa: BLE001 - raised where it is seen
            self.failure = error
            self._wake()

    def stop(self) -> None:
        """End `run` now, whatever it waits for."""
        self._stopped.set()
        self._client.abort()


def live(
    console: Console, client: ControlClient, look: Look, found: Frame, *, interval: float, sort: str
) -> None:
    """Show frames until the operator quits."""
    keyboard = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
    with closing(Terminal(console, keyboard)) as terminal:
        looks = Looks(client, look, found, interval=interval, wake=terminal.wake)
        screen = Screen(has_keys=terminal.has_keys, ascii_only=not output.takes("…é漢"))
        view = View(sort=sort)
        try:
            with _looking(looks):
                while not view.left:
                    with terminal.taken():
                        view = _show(terminal, screen, looks, view)
                    if terminal.suspended:
                        os.kill(os.getpid(), signal.SIGSTOP)  # until `fg`
        except (KeyboardInterrupt, EOFError):
            return  # the operator quits


def _show(terminal: Terminal, screen: Screen, looks: Looks, view: View) -> View:
    """Draw what is new until the operator quits or suspends the program."""
    while not view.left and not terminal.suspended:
        if looks.failure is not None:
            raise looks.failure
        drawn = screen.draw(looks.seen[0], view, looks.seen[1], *terminal.size)
        terminal.draw(drawn.lines)
        for key in terminal.wait():
            view = pressed(view, key, drawn)
    return view


@contextmanager
def _looking(looks: Looks) -> Iterator[None]:
    thread = threading.Thread(target=looks.run, name="looks")
    thread.start()
    try:
        yield
    finally:
        looks.stop()
        thread.join()
