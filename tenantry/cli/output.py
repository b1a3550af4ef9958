"""What commands print: JSON, tables and trees on stdout; notices and progress on stderr.

On a terminal it is rich's; piped, it is plain aligned text without colours or boxes. Text that
came from elsewhere is shown with its control characters escaped, and never as markup.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import click

from tenantry.cli import exact, streams

if TYPE_CHECKING:
    from rich.table import Table
    from rich.tree import Tree


def print_json(value: object) -> None:
    """Print one JSON document."""
    text = exact.dumps(value, indent=2)
    click.echo(text if streams.takes(text) else exact.dumps(value, indent=2, ascii_only=True))


def compact_json(value: object) -> str:
    """Give a value as JSON on one line, in ASCII, so that nothing in it can break the line."""
    return exact.dumps(value, ascii_only=True)


def clean(value: object) -> str:
    """Give a cell's text: nothing for None, yes and no, control characters escaped."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.1f}"
    if isinstance(value, (list, tuple)):
        return ", ".join(clean(one) for one in value) or "-"
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in str(value)
    )


def notice(text: str) -> None:
    """Tell the user something on stderr."""
    click.echo(text, err=True)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their columns' names; columns of numbers are right-aligned."""
    if sys.stdout.isatty():
        from rich.console import Console

        Console(highlight=False).print(table(columns, rows))
        return
    cells, right = _cells(columns, rows)
    _print_plain([[column.upper() for column in columns], *cells], right)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """Make rich's table of rows."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    cells, right = _cells(columns, rows)
    made = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for column, numeric in zip(columns, right, strict=True):
        made.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        made.add_row(*(Text(cell) for cell in row))
    return made


def _cells(
    columns: Sequence[str], rows: Sequence[Sequence[object]]
) -> tuple[list[list[str]], list[bool]]:
    """Give every cell's text, and which columns are numbers."""
    cells = [[clean(cell) for cell in row] for row in rows]
    right = [
        bool(rows)
        and all(isinstance(row[index], (int, float, type(None))) for row in rows)
        and not any(isinstance(row[index], bool) for row in rows)
        for index in range(len(columns))
    ]
    return cells, right


def print_fields(fields: Mapping[str, object]) -> None:
    """Print names and values, one pair a line."""
    width = max(len(name) for name in fields)
    for name, value in fields.items():
        click.echo(f"{click.style(name.ljust(width), dim=True)}  {clean(value)}")


class Node(Protocol):
    """Makes a tree's node into text: its name, and what is said about it."""

    def __call__(self, node: Mapping[str, Any]) -> tuple[str, str]:
        """Give the name and the rest of the line."""


def print_tree(root: Mapping[str, Any], label: Node) -> None:
    """Print a tree of nodes, each with `children`."""
    if not sys.stdout.isatty():
        for depth, node in _walk(root, 0):
            name, rest = label(node)
            click.echo(f"{'  ' * depth}{clean(name)}  {clean(rest)}")
        return
    from rich.console import Console

    Console(highlight=False).print(_branch(root, label, None))


@contextmanager
def working(description: str) -> Iterator[None]:
    """Show on a terminal's stderr that something is under way, and for how long."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        progress.add_task(description, total=None)
        yield


def _print_plain(lines: Sequence[Sequence[str]], right: Sequence[bool]) -> None:
    widths = [max(len(line[index]) for line in lines) for index in range(len(right))]
    for line in lines:
        padded = (
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(line, widths, right, strict=True)
        )
        click.echo("  ".join(padded).rstrip())


def _walk(node: Mapping[str, Any], depth: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
    yield depth, node
    for child in node.get("children", ()):
        yield from _walk(child, depth + 1)


def _branch(node: Mapping[str, Any], label: Node, parent: Tree | None) -> Tree:
    from rich.text import Text
    from rich.tree import Tree

    name, rest = label(node)
    text = Text.assemble((clean(name), "bold"), "  ", (clean(rest), "dim"))
    branch = Tree(text) if parent is None else parent.add(text)
    for child in node.get("children", ()):
        _branch(child, label, branch)
    return branch
