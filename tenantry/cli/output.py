"""How commands print, and how they report a failure.

JSON, tables and trees go to stdout, notices and progress to stderr. On a terminal rich draws them;
piped, they are plain aligned text without colours or boxes. Text from elsewhere is shown with its
control characters escaped, and never as markup. A failure is one clear line on stderr and one of
the exit codes below.
"""

from __future__ import annotations

import base64
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

import click

from tenantry import exact

if TYPE_CHECKING:
    from rich.table import Table
    from rich.tree import Tree

DONE: Final = 0
FAILED: Final = 1
BAD_USAGE: Final = 2
UNREACHABLE: Final = 3
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141


class CommandError(Exception):
    """The operation failed; the user reads the message."""

    exit_code: ClassVar[int] = FAILED


class DaemonUnreachableError(CommandError):
    """Nothing answers on the control socket."""

    exit_code: ClassVar[int] = UNREACHABLE


class ApiError(CommandError):
    """The daemon answered with a problem; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def print_json(value: object) -> None:
    """Print one JSON document."""
    text = exact.dumps(value, indent=2)
    click.echo(text if takes(text) else exact.dumps(value, indent=2, ascii_only=True))


def compact_json(value: object) -> str:
    """Return a value as JSON on one line, in ASCII, so that nothing in it can break the line."""
    return exact.dumps(value, ascii_only=True)


def clean(value: object) -> str:
    """Return a cell's text: `-` for None, yes or no for a bool, control characters escaped."""
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


def body_text(body: str) -> str:
    """Decode a body, which the API writes in base64, to text; if it is none, keep the base64."""
    try:
        return base64.b64decode(body).decode()
    except UnicodeDecodeError:
        return f"base64:{body}"


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
    """Make a rich table of rows."""
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
    """Return every cell's text, and which columns are numeric."""
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
    """Turns a tree's node into text: its name, and the rest of its line."""

    def __call__(self, node: Mapping[str, Any]) -> tuple[str, str]:
        """Return the name and the rest of the line."""


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
def working(description: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show on a terminal's stderr what is under way, for how long, and how much of a `total`.

    Yields a function to call with the amount of each advance. Other output goes where it always
    does.
    """
    if not sys.stderr.isatty():
        yield lambda _count: None
        return
    from rich import progress
    from rich.console import Console

    amount: tuple[progress.ProgressColumn, ...] = (progress.SpinnerColumn(),)
    if total is not None:
        amount = progress.BarColumn(), progress.MofNCompleteColumn()
    with progress.Progress(
        *amount,
        progress.TextColumn("{task.description}", markup=False),
        progress.TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    ) as shown:
        task = shown.add_task(description, total=total)
        yield lambda count: shown.advance(task, count)


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


_ASCII: Final = "ascii, the rest escaped"


class OutputError(CommandError):
    """Standard output takes no more."""


class _Output(io.TextIOWrapper):
    """Standard output: characters its encoding lacks are escaped; a failure is one clear line."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding; if it is ASCII, under a name that click does not take for a mistake."""
        real = super().encoding
        return _ASCII if real.lower() in {"ascii", "us-ascii", "ansi_x3.4-1968"} else real

    def write(self, text: str, /) -> int:
        """Write a text. Raises `OutputError`."""
        try:
            return super().write(text)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _output_error(error) from error

    def flush(self) -> None:
        """Write what is buffered. Raises `OutputError`."""
        try:
            super().flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _output_error(error) from error


def prepare() -> None:
    """Make sure that the process has its three streams, and that any text can be printed."""
    for number, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        # The next file or socket would take the number of a closed stream. Printing to a closed
        # output still fails; log lines to a closed stderr are lost.
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    closed = sys.stdout is None
    if closed:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    # Not if a test has replaced the stream.
    if (closed or sys.stdout is sys.__stdout__) and isinstance(sys.stdout, io.TextIOWrapper):
        encoding, at_once = sys.stdout.encoding, sys.stdout.line_buffering
        through = sys.stdout.write_through
        sys.stdout = sys.__stdout__ = _Output(  # type: ignore[misc]
            sys.stdout.detach(),
            encoding=encoding,
            errors="backslashreplace",
            line_buffering=at_once,
            write_through=through,
        )


def give_up_output() -> None:
    """Throw away unwritten output: the interpreter would try to write it again when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def takes(text: str) -> bool:
    """Tell whether standard output's encoding has all characters of a text."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode("ascii" if encoding == _ASCII else encoding)
    except UnicodeEncodeError:
        return False
    return True


def _output_error(error: OSError) -> OutputError:
    return OutputError(f"can't write to standard output: {error.strerror or error}")
