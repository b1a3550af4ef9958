"""Commands that read the journal and the stored messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import click

from tenantry import exact
from tenantry.cli import output
from tenantry.cli.client import PAGE, ControlClient, tenant_path
from tenantry.cli.options import (
    complete_tenant,
    complete_topic,
    example,
    tenant_argument,
    with_client,
)

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

LONG_POLL: Final = 20
"""Seconds the daemon may hold the call of `--follow` until an event comes."""


class Events(click.Group):
    """Prints the journal, unless a word of `COMMANDS` in the tenant's place names a subcommand."""

    COMMANDS: Final = ("archive", "parts", "restore")
    allow_interspersed_args = True

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the subcommands' names."""
        return list(self.COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the subcommand of this name, if there is one."""
        if cmd_name not in self.COMMANDS:
            return None
        from tenantry.cli import archiving

        named: click.Command = getattr(archiving, cmd_name)
        return named

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Make the context of the subcommand that the first word names, or of this command."""
        named = self.get_command(click.Context(self), args[0]) if args else None
        if named is not None:
            return named.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments as a command without subcommands does."""
        return click.Command.parse_args(self, ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Print the journal."""
        return click.Command.invoke(self, ctx)


def _complete_tenant_or_word(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    words = [CompletionItem(one) for one in Events.COMMANDS if one.startswith(incomplete)]
    return words + complete_tenant(context, parameter, incomplete)


@click.group(
    cls=Events,
    no_args_is_help=False,
    subcommand_metavar="",
    epilog=example(
        "tenantry events acme --follow",
        "tenantry events archive --before 2026-01-01 --to /srv/archive",
        "tenantry events acme --archive /srv/archive",
    ),
)
@with_client
@click.argument(
    "tenant_id", metavar="[TENANT]", required=False, shell_complete=_complete_tenant_or_word
)
@click.option(
    "--follow", "-f", is_flag=True, help="Go on with what happens from now, until Ctrl-C."
)
@click.option("--limit", type=click.IntRange(min=1), help="How many at most.  [default: all]")
@click.option(
    "--archive",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Read archived events instead: of this directory, or this file. Takes no daemon.",
)
def events(
    client: ControlClient,
    *,
    as_json: bool,
    tenant_id: str | None,
    follow: bool,
    limit: int | None,
    archive: Path | None,
) -> None:
    """Print the journal, oldest first.

    With a TENANT, only what happened to it. With --json it is one list; with --follow as well, one
    object a line as they come.

    Old events can be archived: `tenantry events archive` writes them to files and removes them,
    `events restore` brings them back, `events parts` lists the parts of the journal. (For a tenant
    with such a name: `tenantry events -- archive`.)
    """
    path = tenant_path(tenant_id, "events") if tenant_id is not None else "/events"
    found: Iterable[Mapping[str, Any]]
    if archive is not None:
        from tenantry.cli.archiving import archived_events

        if follow:
            raise click.UsageError("--follow goes on with what happens: --archive is of the past")
        found = islice(archived_events(client, archive, tenant_id), limit)
    elif follow:
        _follow(client, path, limit, as_json=as_json)
        return
    else:
        found = client.pages(path, limit=limit, seen=_tell_of_archived)
    if as_json:
        output.print_json(list(found))
        return
    for event in found:
        click.echo(_event_line(event))


def _follow(client: ControlClient, path: str, limit: int | None, *, as_json: bool) -> None:
    cursor: str | None = None
    left = limit
    while left is None or left > 0:
        query: dict[str, str | int] = {
            "limit": PAGE if left is None else min(PAGE, left),
            "wait": LONG_POLL,
        }
        if cursor is not None:
            query["cursor"] = cursor
        page = client.call("GET", path, params=query, timeout=LONG_POLL + 15.0)
        _tell_of_archived(page)
        cursor = page["next_cursor"] or cursor
        for event in page["data"]:
            click.echo(output.compact_json(event) if as_json else _event_line(event))
        if left is not None:
            left -= len(page["data"])


def _tell_of_archived(page: Mapping[str, Any]) -> None:
    """Report the archived events that are missing before a first page."""
    if archived := page.get("archived"):
        places = ", ".join(output.clean(one) for one in archived["archives"])
        output.notice(
            f"events up to position {archived['until_position']}, recorded by "
            f"{archived['until']}, are archived: {places}"
        )


def _event_line(event: Mapping[str, Any]) -> str:
    actor = event.get("metadata", event).get("actor")
    return "  ".join(
        (
            output.clean(event["recorded_at"]),
            f"{event['position']:>6}",
            output.clean(f"{event['stream']}@{event['version']}"),
            output.clean(event["type"]),
            output.compact_json(event["data"]),
            output.clean(f"by {actor}"),
        )
    )


@click.command(epilog=example("tenantry messages acme --topic events --order desc --limit 10"))
@with_client
@tenant_argument(required=False)
@click.option("--id", "message_id", help="Only the message with this id; needs a TENANT.")
@click.option(
    "--incarnation",
    type=click.IntRange(min=1),
    help="What was retained of this one of the tenants that have had the id; needs a TENANT.",
)
@click.option("--topic", shell_complete=complete_topic, help="Only messages of this topic.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--order", type=click.Choice(["asc", "desc"]), default="asc", show_default=True)
def messages(
    client: ControlClient,
    *,
    as_json: bool,
    tenant_id: str | None,
    message_id: str | None,
    incarnation: int | None,
    topic: str | None,
    limit: int,
    order: str,
) -> None:
    """Print a tenant's stored messages; without a TENANT all tenants', by tenant and position."""
    of: dict[str, str | int] = {} if incarnation is None else {"incarnation": incarnation}
    if of and tenant_id is None:
        raise click.UsageError("--incarnation needs a TENANT")
    if message_id is not None:
        if tenant_id is None or not message_id:
            raise click.UsageError("--id takes a message's id, and a TENANT before it")
        path = tenant_path(tenant_id, "messages", quote(message_id, safe=""))
        found = [client.call("GET", path, params=of)]
    else:
        params: dict[str, str | int] = {"order": order, **of}
        named = {"tenant_id": tenant_id, "topic": topic}
        params |= {name: value for name, value in named.items() if value is not None}
        found = list(client.pages("/messages", params=params, limit=limit, sparse=True))
    if as_json:
        output.print_json(found if message_id is None else found[0])
        return
    fields = ("tenant_id", "position", "id", "topic", "partition", "created_at")
    output.print_table(
        ("tenant", "position", "id", "topic", "partition", "created", "payload"),
        [(*(one[name] for name in fields), _payload(one)) for one in found],
    )


def _payload(message: Mapping[str, Any]) -> str:
    """Show a payload as JSON; a body as text, or in base64 if it is no text."""
    body = message.get("body")
    return exact.dumps(message.get("payload")) if body is None else output.body_text(body)
