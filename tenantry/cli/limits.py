"""`tenantry tenant limits`: a tenant's limits on what all tenants share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import click

from tenantry.cli import output
from tenantry.cli.client import ControlClient, tenant_path
from tenantry.cli.options import example, tenant_argument, with_client
from tenantry.domain.limits import parse_span

LIFT: Final = "none"

_SIZE: Final = re.compile(r"(\d{1,15})\s*(B|kB|MB|GB|TB|KiB|MiB|GiB|TiB)", re.ASCII | re.IGNORECASE)
_POWERS: Final = {"b": 0, "k": 1, "m": 2, "g": 3, "t": 4}

_Callback = Callable[[click.Context, click.Parameter, str | None], object]

_LEFT: Final = object()
"""Stands for an option that was not given; None is the value of one that lifts its limit."""


def _number(_context: click.Context, _parameter: click.Parameter, given: str | None) -> object:
    if given is None:
        return _LEFT
    return None if given == LIFT else _whole(given)


def _parts(read: Mapping[str, Callable[[str], int | None]], wanted: str) -> _Callback:
    """Make a callback that reads values with commas between them, told apart by their form."""

    def callback(_context: click.Context, _parameter: click.Parameter, given: str | None) -> object:
        if given is None:
            return _LEFT
        if given == LIFT:
            return None
        found: dict[str, int] = {}
        for one in given.split(","):
            values = ((name, reader(one)) for name, reader in read.items())
            name, value = next((pair for pair in values if pair[1] is not None), ("", None))
            if value is None or name in found:
                raise click.BadParameter(f"{given!r} is not {wanted}")
            found[name] = value
        return found

    return callback


def _count(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None


def _whole(text: str) -> int:
    if (value := _count(text)) is None:
        raise click.BadParameter(f"{text!r} is no whole number; {LIFT!r} lifts the limit")
    return value


def _size(text: str) -> int | None:
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return None
    unit = match[2].lower()
    factor: int = (1024 if "i" in unit else 1000) ** _POWERS[unit[0]]
    return int(match[1]) * factor


_backlog: Final = _parts(
    {"messages": _count, "bytes": _size}, "a number of messages, a size like 64MiB, or both"
)
_retention: Final = _parts(
    {"rows": _count, "age": parse_span}, "an age like 7d, a number of rows, or both"
)


def _option(
    name: str, told: str, read: _Callback = _number, metavar: str = "N"
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(name, callback=read, metavar=metavar, help=told)


@click.command(
    epilog=example(
        "tenantry tenant limits acme --rate 500 --burst 2000 --backlog 100000,256MiB",
        "tenantry tenant limits acme --retention 30d --rate none",
    )
)
@with_client
@tenant_argument()
@_option("--weight", "Its share while tenants compete, 1 to 1000.")
@_option("--rate", "Messages stored a second at most.")
@_option("--burst", "Messages stored at once after a pause.")
@_option(
    "--backlog",
    "What may wait in its queues: messages, a size like 64MiB, or both.",
    _backlog,
    "MESSAGES,SIZE",
)
@_option("--connections", "Connections of its broker user.")
@_option("--channels", "Channels of its broker user.")
@_option("--workers-min", "The fewest workers; their number follows the load.")
@_option("--workers-max", "The most workers; their number follows the load.")
@_option(
    "--retention",
    "What is kept of its stored messages: an age like 7d, a number of rows, or both.",
    _retention,
    "AGE,ROWS",
)
def limits(client: ControlClient, *, as_json: bool, tenant_id: str, **given: Any) -> None:
    """Show or change a tenant's limits; in force at once.

    Limits without an option stay as they are; `none` lifts one. Without options all are shown.
    """
    changes = {name: value for name, value in given.items() if value is not _LEFT}
    if changes:
        path = tenant_path(tenant_id, "limits")
        with output.working("changing limits"):
            found = client.call("PUT", path, changes)
    else:
        found = client.call("GET", tenant_path(tenant_id))
    if as_json:
        output.print_json(found["limits"])
        return
    output.print_fields(shown(found["limits"]))


def shown(told: Mapping[str, Any]) -> dict[str, object]:
    """Return limits as lines: grouped ones by their full names, `none` where there is no limit."""
    lines: dict[str, object] = {}
    for name, parts in (("backlog", ("messages", "bytes")), ("retention", ("age", "rows"))):
        group = told[name] or {}
        lines |= {f"{name}_{part}": group.get(part) for part in parts}
    flat = {name: value for name, value in told.items() if name not in {"backlog", "retention"}}
    return {name: LIFT if value is None else value for name, value in (flat | lines).items()}
