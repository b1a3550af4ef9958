"""`tenantry tenant stats`: what became of a tenant's messages, in lines of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import click

from tenantry.cli import output
from tenantry.cli.client import ControlClient, tenant_path
from tenantry.cli.options import example, tenant_argument, with_client

WIDTH: Final = 40
"""Columns of a sparkline."""

BARS: Final = "▁▂▃▄▅▆▇█"
PLAIN: Final = ".:-=+*#@"

_LINES: Final = (
    ("stored/s", "rate"),
    ("duplicates", "duplicates"),
    ("dead-lettered", "dead_lettered"),
    ("backlog", "backlog"),
    ("p50 ms", "latency_p50_ms"),
    ("p99 ms", "latency_p99_ms"),
)


@click.command(epilog=example("tenantry tenant stats acme --window 24h"))
@with_client
@tenant_argument()
@click.option("--window", default="1h", show_default=True, help="How far back: 1m to 7d.")
def stats(client: ControlClient, *, as_json: bool, tenant_id: str, window: str) -> None:
    """Show what became of a tenant's messages over time: rates, latency, backlog.

    They are kept for a day by minutes, and for a week by hours. A line goes from the past to now;
    its highest point is the maximum.
    """
    found = client.call("GET", tenant_path(tenant_id, "stats"), params={"window": window})
    if as_json:
        output.print_json(found)
        return
    points, total = found["points"], found["total"]
    bars = BARS if output.takes(BARS) else PLAIN
    click.echo(f"{output.clean(found['start'])} to {output.clean(found['end'])}")
    click.echo(f"{'':13} {'in all':>12} {'most':>11} {'':{WIDTH}}".rstrip())
    for name, field in _LINES:
        values = [point[field] for point in points]
        most = max((one for one in values if one is not None), default=None)
        line = sparkline(values, bars, WIDTH)
        click.echo(f"{name:13} {_number(total[field]):>12} {_number(most):>11} {line}".rstrip())


def sparkline(values: Sequence[float | None], bars: str, width: int) -> str:
    """Draw values in at most `width` columns: each shows its highest value, or a blank for none."""
    columns = min(width, len(values))
    bounds = [len(values) * column // columns for column in range(columns + 1)]
    highest = [
        max((one for one in values[start:end] if one is not None), default=None)
        for start, end in pairwise(bounds)
    ]
    most = max((one for one in highest if one is not None), default=0.0) or 1.0
    return "".join(
        " " if one is None else bars[min(len(bars) - 1, int(one / most * len(bars)))]
        for one in highest
    )


def _number(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}"
