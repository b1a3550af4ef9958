"""Commands that show, replay and discard dead letters."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click

from tenantry.cli import output
from tenantry.cli.client import ControlClient, tenant_path
from tenantry.cli.options import complete_topic, example, tenant_argument, with_client
from tenantry.cli.output import CommandError
from tenantry.cli.replay_client import ReplayClient, chosen, given_filter

_AGO: Final = re.compile(r"(\d{1,6})([smhd])", re.ASCII)
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def moment(text: str) -> str:
    """Read a time, or how long ago it was (90s, 15m, 2h, 7d); return it as RFC 3339 in UTC.

    Raises `click.BadParameter`.
    """
    ago = _AGO.fullmatch(text)
    try:
        if ago is not None:
            then = datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        else:
            then = datetime.fromisoformat(text)
        in_utc = then.astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is no time: 2026-01-31T12:00:00Z, or 2h for two hours ago"
        ) from None
    if then.tzinfo is None:
        raise click.BadParameter(f"{text!r} has no zone: 2026-01-31T12:00:00Z is in UTC")
    return in_utc.isoformat().replace("+00:00", "Z")


_FIELDS: Final = (
    "letter_id", "message_id", "topic", "partition", "reason", "error", "first_error", "attempts",
    "replays", "size", "content_type", "published_at", "dead_lettered_at",
)  # fmt: skip


@click.group("dead-letters")
def dead_letters() -> None:
    """Look at messages that could not be stored; replay or discard them."""


def _filters(function: Callable[..., Any]) -> Callable[..., Any]:
    ago = "a time, or 1h for an hour ago."
    for option in (
        click.option("--until", type=moment, metavar="TIME", help=f"Dead before then: {ago}"),
        click.option("--since", type=moment, metavar="TIME", help=f"Dead since then: {ago}"),
        click.option("--topic", shell_complete=complete_topic, help="Only from this topic."),
        click.option("--reason", help="Only for this reason: not_json, expired, …"),
    ):
        function = option(function)
    return function


def _selection(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--dry-run", is_flag=True, help="Change nothing; say what would happen."),
        click.option("--all", "everything", is_flag=True, help="All there are."),
    ):
        function = option(function)
    return click.argument("ids", nargs=-1, metavar="[LETTER]...")(_filters(function))


@dead_letters.command("list", epilog=example("tenantry dead-letters list acme --reason not_json"))
@with_client
@tenant_argument()
@_filters
@click.option("--no-payload", is_flag=True, help="Without the messages' bytes and headers.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
def list_(
    client: ControlClient,
    *,
    as_json: bool,
    tenant_id: str,
    no_payload: bool,
    limit: int,
    **filters: str | None,
) -> None:
    """List a tenant's dead letters, oldest first."""
    params: dict[str, str | int] = {**given_filter(filters)}
    # A table shows the beginning of a body at most.
    if no_payload:
        params["payload"] = "false"
    found = list(client.pages(tenant_path(tenant_id, "dead-letters"), params=params, limit=limit))
    if as_json:
        output.print_json(found)
        return
    columns = ["id", "from", "died", "reason", "tries", "replays", "size"]
    if not no_payload:
        columns.append("payload")
    output.print_table(columns, [_row(one, payload=not no_payload) for one in found])


def _row(letter: Mapping[str, Any], *, payload: bool) -> list[object]:
    row = [
        letter["id"],
        f"{letter['topic']}.{letter['partition']}",
        # To the second, to save room on the line.
        f"{letter['dead_lettered_at'][:19]}Z",
        *(letter[name] for name in ("reason", "attempts", "replays", "size")),
    ]
    return [*row, preview_of(letter)] if payload else row


@dead_letters.command(epilog=example("tenantry dead-letters show acme order-7 --no-payload"))
@with_client
@tenant_argument()
@click.argument("letter")
@click.option("--no-payload", is_flag=True, help="Without the message's bytes and headers.")
def show(
    client: ControlClient, *, as_json: bool, tenant_id: str, letter: str, no_payload: bool
) -> None:
    """Show a dead letter, by its own id or its message's: why it died, and what it holds."""
    path = tenant_path(tenant_id, "dead-letters", quoted(letter))
    found = client.call("GET", path, params={"payload": "false"} if no_payload else None)
    if as_json:
        output.print_json(found)
        return
    output.print_fields({name: found[name] for name in _FIELDS})
    if no_payload:
        return
    for name, value in (found["headers"] or {}).items():
        click.echo(f"header {output.clean(name)}: {output.compact_json(value)}")
    for line in body_lines(found):
        click.echo(line)


@dead_letters.command(
    epilog=example(
        "tenantry dead-letters replay acme --reason handler_failed --since 2h --dry-run",
        "tenantry dead-letters replay acme --reason handler_failed --since 2h",
    )
)
@with_client
@tenant_argument()
@_selection
@click.option("--force", is_flag=True, help="Also those replayed as often as they may be.")
def replay(
    client: ControlClient,
    *,
    as_json: bool,
    tenant_id: str,
    ids: tuple[str, ...],
    everything: bool,
    dry_run: bool,
    force: bool,
    **filters: str | None,
) -> None:
    """Publish dead letters to their own topic and partition again.

    Name them, or give conditions, or --all. A letter that fails again is listed again; a message
    is stored once, however often it is replayed.
    """
    which = chosen(ids, everything=everything, filters=filters)
    work = ReplayClient(client, tenant_id, "replayed", which, {"force": True} if force else {})
    if dry_run:
        work.show_preview(as_json=as_json)
        return
    work.run(as_json=as_json)


@dead_letters.command(epilog=example("tenantry dead-letters discard acme --until 30d --yes"))
@with_client
@tenant_argument()
@_selection
@click.option("--yes", is_flag=True, help="Don't ask.")
def discard(
    client: ControlClient,
    *,
    as_json: bool,
    tenant_id: str,
    ids: tuple[str, ...],
    everything: bool,
    dry_run: bool,
    yes: bool,
    **filters: str | None,
) -> None:
    """Throw dead letters away for good; the journal records that they existed.

    Name them, or give conditions, or --all.
    """
    which = chosen(ids, everything=everything, filters=filters)
    work = ReplayClient(client, tenant_id, "discarded", which)
    if dry_run:
        work.show_preview(as_json=as_json)
        return
    if not ids and not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("discarding needs --yes where nobody can be asked")
        count = work.preview()["count"]
        if not click.confirm(
            f"Discard {count} dead letters of tenant {output.clean(tenant_id)}?", err=True
        ):
            raise CommandError("nothing was discarded")
    work.run(as_json=as_json)


def quoted(letter: str) -> str:
    """Return an id as part of a path. Raises `CommandError` for an id that can't be one."""
    from urllib.parse import quote

    if "/" in letter or letter in {".", ".."}:
        raise CommandError("name a message with such an id by its letter_id, as listed")
    return quote(letter, safe="")


_IN_A_TABLE: Final = 40
_MOST_CHARACTERS: Final = 4000


def preview_of(letter: Mapping[str, Any]) -> str:
    """Return the beginning of a body, for a cell of a table."""
    return _cut(_body_text(letter), _IN_A_TABLE)


def body_lines(letter: Mapping[str, Any]) -> Iterator[str]:
    """Yield a body line by line; control characters are escaped."""
    text = _cut(_body_text(letter), _MOST_CHARACTERS)
    yield ""
    yield from (output.clean(line) for line in text.split("\n"))


def _body_text(letter: Mapping[str, Any]) -> str:
    body = letter.get("body")
    if body is None:
        return f"({letter['size']} bytes, too many to be listed: they are in the queue)"
    return output.body_text(body)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"
