"""`tenantry top`: the daemon and its tenants, live; the busiest first.

On a terminal a thread asks the daemon, so that keys never wait: a daemon or a node that answers
late holds up the figures and nothing else.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from tenantry.cli import output
from tenantry.cli.client import ControlClient
from tenantry.cli.options import example, with_client
from tenantry.cli.output import CommandError
from tenantry.cli.terminal import Terminal
from tenantry.cli.top_screen import ORDERS, Screen, View, pressed, share_of_backlog

if TYPE_CHECKING:
    from rich.console import Console

TIMEOUT: Final = 10.0
OTHER_TIMEOUT: Final = 3.0
"""Seconds another node may take to answer; a late node's tenants are missing from the frame."""

Row = dict[str, Any]
Frame = dict[str, Any]
Look = Callable[[ControlClient], Frame]

COLUMNS: Final = (
    "tenant", "node", "state", "workers", "mailbox", "rate/s", "pending", "unsettled", "held",
    "stored", "dead", "restarts", "p99 ms", "limit/s", "full %",
)  # fmt: skip


@click.command(epilog=example("tenantry top --sort pending", "tenantry top --json | jq .totals"))
@with_client
@click.option(
    "--interval",
    type=click.FloatRange(min=0.2, max=3600),
    default=1.0,
    show_default=True,
    help="Seconds between two frames.",
)
@click.option("--sort", type=click.Choice(list(ORDERS)), default="rate", show_default=True)
def top(client: ControlClient, *, as_json: bool, interval: float, sort: str) -> None:
    """Show the tenants as they work, until `q` or Ctrl-C; with --json or piped, one frame.

    WORKERS are those busy of those allowed, MAILBOX what waits for the tenant's actors, RATE/S the
    messages settled a second over the last ten. P99 MS is from published to committed, in the last
    full minute; LIMIT/S and FULL come from the tenant's limits. The last line lists the keys: they
    sort, filter by id, and show the nodes. If the daemon goes away, the command waits for it.
    """
    found = _look(client, sort)
    if as_json:
        output.print_json(found)
        return
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console(highlight=False)
        if console.is_terminal and not console.is_dumb_terminal:
            live(console, client, lambda c: _look(c, sort), found, interval=interval, sort=sort)
            return
    for line in heading(found):
        click.echo(line)
    output.print_table(COLUMNS, [cells(row) for row in found["tenants"]])


def _look(client: ControlClient, sort: str) -> dict[str, Any]:
    """Ask this daemon for its status, and the other nodes that are not lost for theirs."""
    own = client.call("GET", "/status", timeout=TIMEOUT)
    others: dict[str, Mapping[str, Any] | None] = {}
    for one in own["nodes"]:
        if one["name"] != own["node"] and one["state"] != "lost":
            try:
                asked = {"node": one["name"]}
                others[one["name"]] = client.call(
                    "GET", "/status", params=asked, timeout=OTHER_TIMEOUT
                )
            except CommandError:
                others[one["name"]] = None
    return frame(own, sort, others)


def frame(
    status: Mapping[str, Any],
    sort: str,
    others: Mapping[str, Mapping[str, Any] | None] | None = None,
) -> dict[str, Any]:
    """Make one moment's frame from this node's answer of `/status`, and from those of `others`.

    A node that has not answered has None in `others`.
    """
    others = others or {}
    rows = _rows(status)
    for other in others.values():
        rows += [] if other is None else _rows(other)
    rows.sort(key=ORDERS[sort])
    totals = _summed(rows)
    totals["parked"] = sum(row["parked"] is not None for row in rows)
    return {
        "state": status["state"],
        "ready": status["ready"],
        "reasons": status["reasons"],
        "started_at": status["started_at"],
        "pid": status["pid"],
        "abandoned": status["abandoned"],
        "supervisor": {key: status["tree"][key] for key in ("state", "mailbox")},
        "node": status["node"],
        "nodes": [_node(one, status, others) for one in status["nodes"]],
        "silent_nodes": sorted(name for name, other in others.items() if other is None),
        "totals": totals,
        "tenants": rows,
    }


_SUMMED: Final = (
    "workers_busy", "workers_current", "mailbox", "rate", "unsettled", "held", "stored",
    "duplicates", "dead_lettered", "restarts",
)  # fmt: skip


def _summed(rows: Sequence[Row]) -> dict[str, Any]:
    known = [row["pending"] for row in rows if row["pending"] is not None]
    return {
        **{name: sum(row[name] for row in rows) for name in _SUMMED},
        "pending": sum(known) if known or not rows else None,
    }


def _node(
    seen: Mapping[str, Any],
    status: Mapping[str, Any],
    others: Mapping[str, Mapping[str, Any] | None],
) -> Row:
    """Describe a node; its figures are None if it has not answered, or was not asked."""
    name = seen["name"]
    told = status if name == status["node"] else others.get(name)
    silent = told is None and name in others
    if told is None:
        return {**seen, "silent": silent, "tenants": None, "pending": None} | dict.fromkeys(_SUMMED)
    rows = _rows(told)
    return {**seen, "silent": silent, "tenants": len(rows), **_summed(rows)}


def _rows(status: Mapping[str, Any]) -> list[Row]:
    actors = {one["name"]: one for one in status["tree"]["children"] if one["kind"] == "Tenant"}
    return [
        {**_row(tenant, actors.get(name)), "node": status["node"]}
        for name, tenant in status["tenants"].items()
    ]


def _row(tenant: Mapping[str, Any], actor: Mapping[str, Any] | None) -> Row:
    below = [] if actor is None else actor["children"]
    everybody = [] if actor is None else [actor, *below]
    stuck = [one["name"] for one in everybody if one["state"] == "stuck"]
    return {
        **tenant,
        "state": "starting" if actor is None else actor["state"],
        "stuck": stuck,
        "workers_busy": sum(one["state"] == "busy" for one in below),
        "mailbox": sum(one["mailbox"] for one in everybody),
        # All children of a kind report the same number, that of their kind.
        "restarts": sum({one["kind"]: one["restarts"] for one in everybody}.values()),
    }


def heading(found: Mapping[str, Any]) -> list[str]:
    """Return the lines above the table."""
    totals = found["totals"]
    ready = "ready" if found["ready"] else f"not ready: {'; '.join(found['reasons'])}"
    lines = [
        f"tenantry, pid {found['pid']}: {found['state']}, {output.clean(ready)}",
        (
            f"{len(found['tenants'])} tenants, {totals['parked']} parked;"
            f" {totals['workers_busy']} of {totals['workers_current']} workers busy;"
            f" {totals['rate']:,.1f} messages/s; {output.clean(totals['pending'])} pending,"
            f" {totals['unsettled']} unsettled; {totals['mailbox']} in mailboxes,"
            f" {found['supervisor']['mailbox']} in the supervisor's"
        ),
    ]
    if len(found["nodes"]) > 1:
        beside = ", ".join(f"{one['name']} ({one['state']})" for one in found["nodes"])
        lines.append(output.clean(f"nodes: {beside}"))
    if found["silent_nodes"]:
        lines.append(output.clean(f"nodes that don't answer: {', '.join(found['silent_nodes'])}"))
    if found["abandoned"]:
        lines.append(f"threads that hang: {output.clean(found['abandoned'])}")
    return lines


def cells(row: Row) -> Sequence[object]:
    """Return a tenant's cells, in the order of `COLUMNS`."""
    state = row["state"]
    if row["stuck"]:
        state = f"{state}, stuck: {', '.join(row['stuck'])}"
    elif state == "active" and not row["consuming"]:
        state = "active, not consuming"
    return (
        row["tenant_id"],
        row["node"],
        state,
        f"{row['workers_busy']}/{row['workers_current']}",
        row["mailbox"],
        float(row["rate"]),
        row["pending"],
        row["unsettled"],
        row["held"],
        row["stored"],
        row["dead_lettered"],
        row["restarts"],
        row.get("latency_p99_ms"),
        row.get("rate_limit"),
        share_of_backlog(row),
    )


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
