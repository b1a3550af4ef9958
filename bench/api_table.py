"""The figures of the HTTP API as tables."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from bench.api import BATCH, LIMIT

_LOADS = (
    ("pages_bare", f"(a) a bare FastAPI handler, a constant as large as a page of {LIMIT}"),
    ("pages", f"(b) GET /messages?limit={LIMIT}"),
    ("busy", "(b) the same, while messages are stored at full speed"),
    ("posts_bare", "(c) a bare FastAPI handler that takes the same bytes"),
    ("posts", f"(d) POST /tenants/ID/messages, {BATCH} messages a request"),
    ("posts_consumed", "(d) the same, while what is published is stored"),
)
_BARE = {"pages": "pages_bare", "busy": "pages_bare", "posts": "posts_bare"}
_BARE |= {"posts_consumed": "posts_bare"}


def show(figures: dict[str, float]) -> None:
    """Print the measured figures."""
    console = Console(width=120)
    table = Table(title="HTTP on loopback TCP, wrk with 16 connections, 250-byte JSON payloads")
    for heading in ("", "requests/s", "of bare", "messages/s", "median ms", "p99 ms"):
        table.add_column(heading, justify="left" if not heading else "right")
    for key, label in _LOADS:
        if f"{key}_per_s" not in figures:
            continue
        rate = figures[f"{key}_per_s"]
        bare = _BARE.get(key)
        table.add_row(
            label,
            f"{rate:,.0f}",
            f"{rate / figures[f'{bare}_per_s']:.2f}" if bare else "",
            f"{rate * (BATCH if 'posts' in key else LIMIT):,.0f}" if bare else "",
            f"{figures[f'{key}_p50_ms']:.1f}",
            f"{figures[f'{key}_p99_ms']:.1f}",
        )
    console.print(table)
    if "ingestion_alone" in figures:
        console.print(
            f"messages stored a second: {figures['ingestion_alone']:,.0f} while nobody reads,"
            f" {figures['ingestion_beside']:,.0f} beside the pages"
        )
    if "deep_rows" in figures:
        _show_depth(console, figures)


def _show_depth(console: Console, figures: dict[str, float]) -> None:
    table = Table(
        title=f"The first page of {LIMIT} against the last, {figures['deep_rows']:,.0f} rows,"
        " one connection"
    )
    for heading in ("", "first, median ms", "last, median ms", "times"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, label in (
        ("asc_all", "oldest first"),
        ("asc_topic", "oldest first, one topic of three"),
        ("desc_all", "newest first"),
        ("desc_topic", "newest first, one topic of three"),
    ):
        first, last = figures[f"first_{name}_ms"], figures[f"last_{name}_ms"]
        table.add_row(label, f"{first:.2f}", f"{last:.2f}", f"{last / first:.2f}")
    console.print(table)
