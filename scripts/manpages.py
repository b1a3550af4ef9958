"""The manual pages, one a command, made from what the command line says of itself.

Call it as `python -m scripts.manpages DIRECTORY`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

import tenantry
from tenantry.cli.main import cli

SEES_ALSO: Final = "The manual is in /usr/share/doc/tenantry/docs."
EXIT_STATUS: Final = (
    ("0", "Done."),
    ("1", "The operation failed; a line on standard error says why."),
    ("2", "Bad usage or configuration."),
    ("3", "The daemon can't be reached."),
    ("130, 141", "Ctrl-C; the reader of the output has gone."),
)
FILES: Final = (
    ("/etc/tenantry/config.toml", "The configuration: every key with its default and its meaning."),
    ("/run/tenantry/control.sock", "The control socket of the daemon that systemd runs."),
    ("/var/lib/tenantry", "Its state, with the embedded PostgreSQL."),
)
ENVIRONMENT: Final = (
    ("TENANTRY_CONFIG", "The configuration file, where --config is not given."),
    ("TENANTRY_CONTROL_SOCKET", "The control socket of the daemon that commands talk to."),
)


def pages() -> Iterator[tuple[str, str]]:
    """Give every page: its name, as `tenantry-tenant-create`, and its text for man(7)."""
    yield from _pages(cli, click.Context(cli, info_name="tenantry", **cli.context_settings))


def _pages(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    yield _path(context).replace(" ", "-"), "\n".join(_page(command, context)) + "\n"
    for name, each in _commands(command, context):
        yield from _pages(each, click.Context(each, info_name=name, parent=context))


def _path(context: click.Context) -> str:
    """Give the words that call a command; click's own has the arguments of those above it, too."""
    above = "" if context.parent is None else f"{_path(context.parent)} "
    return f"{above}{context.info_name}"


def _commands(
    command: click.Command, context: click.Context
) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            each = command.get_command(context, name)
            if each is not None and not each.hidden:
                yield name, each


def _page(command: click.Command, context: click.Context) -> Iterator[str]:
    name = _path(context).replace(" ", "-")
    # No date: the same source makes the same page.
    yield f'.TH {escaped(name.upper())} 1 "" "tenantry {tenantry.__version__}" Tenantry'
    yield ".SH NAME"
    yield f"{escaped(name)} \\- {escaped(_summary(command))}"
    yield ".SH SYNOPSIS"
    pieces = " ".join(command.collect_usage_pieces(context))
    yield f"\\fB{escaped(_path(context))}\\fR {escaped(pieces)}"
    yield ".SH DESCRIPTION"
    yield from paragraphs(command.help or "")
    yield from _list("OPTIONS", _options(command, context))
    yield from _list(
        "COMMANDS",
        (
            (f"{_path(context).replace(' ', '-')}-{each}(1)", f"{_summary(found)}.")
            for each, found in _commands(command, context)
        ),
    )
    if command.epilog:
        yield ".SH EXAMPLE"
        yield from paragraphs(command.epilog.replace("Example:\n", ""))
    yield from _list("EXIT STATUS", EXIT_STATUS)
    if context.parent is None:
        yield from _list("ENVIRONMENT", ENVIRONMENT)
        yield from _list("FILES", FILES)
    yield ".SH SEE ALSO"
    if context.parent is not None:
        yield f".BR {escaped(_path(context.parent).replace(' ', '-'))} (1)"
        yield ".PP"
    yield escaped(SEES_ALSO)


def _summary(command: click.Command) -> str:
    return command.get_short_help_str(limit=10_000).rstrip(".")


def _options(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and isinstance(parameter, click.Option):
            yield record


def _list(
    title: str, entries: Iterator[tuple[str, str]] | tuple[tuple[str, str], ...]
) -> list[str]:
    lines = [
        line
        for term, text in entries
        for line in (".TP", f"\\fB{escaped(term)}\\fR", escaped(" ".join(text.split())))
    ]
    return [f".SH {title}", *lines] if lines else []


def paragraphs(text: str) -> Iterator[str]:
    """Give a help text in man(7)'s words; where click keeps a paragraph's lines, they are kept."""
    text = text.partition("\f")[0].strip()
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text)):
        if number:
            yield ".PP"
        kept = paragraph.startswith("\b\n")
        if kept:
            yield ".nf"
            yield from (escaped(line) for line in paragraph.splitlines()[1:])
            yield ".fi"
        else:
            yield escaped(" ".join(paragraph.split()))


def escaped(text: str) -> str:
    """Give a line of text such that man(7) prints it as it stands."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    return f"\\&{text}" if text.startswith((".", " ")) else text


def write(directory: Path) -> list[Path]:
    """Write all pages into a directory, which is made, and give their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in pages():
        path = directory / f"{name}.1"
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


if __name__ == "__main__":
    write(Path(sys.argv[1]))
