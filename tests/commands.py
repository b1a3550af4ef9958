"""Every command that the program has."""

from __future__ import annotations

from collections.abc import Iterator

import click

from tenantry.cli.main import cli


def commands(
    command: click.Command = cli, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Give every command and group, with the words that call it."""
    yield path, command
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            each = command.get_command(click.Context(command), name)
            assert each is not None
            yield from commands(each, (*path, name))


COMMANDS = dict(commands())

THAT_DO_SOMETHING = {
    path: command
    for path, command in COMMANDS.items()
    if not isinstance(command, click.Group) or command.invoke_without_command
}
"""Without the groups that are there for their commands alone."""
