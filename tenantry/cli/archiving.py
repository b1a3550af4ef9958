"""Commands for old events: archive them, read archives, restore them, list the parts."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from tenantry import exact, failpoints
from tenantry.cli import output
from tenantry.cli.client import ControlClient
from tenantry.cli.options import example, load_settings, with_client
from tenantry.cli.output import CommandError, DaemonUnreachableError
from tenantry.domain import names
from tenantry.journal import archives
from tenantry.journal.archives import Archive, ArchiveError

PART_SECONDS: Final = 600.0
"""Seconds the daemon may take to read a whole part, and to remove it."""

LINES: Final = 500
CHUNK_BYTES: Final = 400_000
"""Bytes of lines in one call that puts them back; as JSON within JSON they grow."""


def _moment(_context: click.Context, _parameter: click.Parameter, given: str) -> datetime:
    """Read a time, or a date, which means its first moment (UTC)."""
    try:
        read = datetime.fromisoformat(given)
        return (read if read.tzinfo else read.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{given!r} is no time: 2026-01-31, or 2026-01-31T12:00:00Z"
        ) from None


@click.command(epilog=example("tenantry events archive --before 2026-01-01 --to /srv/archive"))
@with_client
@click.option(
    "--before",
    required=True,
    callback=_moment,
    metavar="TIME",
    help="Archive what was recorded before this date or time.",
)
@click.option(
    "--to",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where the files go, on this machine.  [default: archive in the state directory]",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be archived.")
def archive(
    client: ControlClient, *, as_json: bool, before: datetime, directory: Path | None, dry_run: bool
) -> None:
    """Write old events to files, read these back, and remove the events from the journal.

    Whole parts of the journal are archived, oldest first: a part goes once all its events were
    recorded before TIME. A part begins each month, and after a million events; the open one is
    ended if all its events are old enough. Nothing is removed before its file is complete, on the
    disk, and has been read back. Tenants stay as they are; calls that need the events say where
    they are.
    """
    failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
    target = (
        (load_settings(None, client=True).state_dir / "archive") if directory is None else directory
    )
    target = target.absolute()
    parts = client.call("GET", "/events/parts")["data"]
    due = _due(parts, before)
    if due and due[-1]["state"] == "open" and not dry_run:
        parts = client.call("POST", "/events/parts")["data"]
        due = _due(parts, before)
    done = []
    for part in due:
        if part["state"] == "open" and not dry_run:
            break  # another command has just begun this part
        if dry_run:
            done.append({**part, "file": str(target / archives.file_name(part["part"]))})
        else:
            done.append(_archive(client, part, target))
        if not as_json:
            click.echo(_line("would archive" if dry_run else "archived", done[-1]))
    kept = [one for one in parts if one["state"] != "archived"][len(due) :]
    if as_json:
        told = {"before": before.isoformat(), "dry_run": dry_run, "archived": done, "kept": kept}
        output.print_json(told)
    elif not done:
        click.echo(_nothing(kept))


def _due(parts: list[dict[str, Any]], before: datetime) -> list[dict[str, Any]]:
    """Return the parts that may be archived, oldest first."""
    due = []
    for part in parts:
        if part["state"] == "archived":
            continue
        if part["last_at"] is None or datetime.fromisoformat(part["last_at"]) >= before:
            break
        due.append(part)
    return due


def _archive(client: ControlClient, part: dict[str, Any], directory: Path) -> dict[str, Any]:
    try:
        with output.working(f"archiving part {part['part']}"):
            written = archives.write(directory, part, _lines(client, part["part"]))
    except ArchiveError as error:
        raise CommandError(f"{error}; part {part['part']} stays in the journal") from error
    place = f"{socket.gethostname()}:{written.file}"
    body = {"digest": written.summary.digest, "archive": place}
    client.call("POST", f"/events/parts/{part['part']}/archive", body, timeout=PART_SECONDS)
    return archives.summary_as_json(written)


def _lines(client: ControlClient, part: int) -> Iterator[str]:
    after = 0
    while True:
        query: dict[str, str | int] = {"after": after, "limit": LINES}
        page = client.call("GET", f"/events/parts/{part}/lines", params=query)
        if not page["data"]:
            return
        yield from page["data"]
        after = page["last_position"]


def _line(done: str, part: Mapping[str, Any]) -> str:
    positions = f"{part['first_position']} to {part['last_position'] or 'now'}"
    return output.clean(
        f"{done} part {part['part']}: {part['events']:,} events, positions {positions}, recorded "
        f"{part['first_at']} to {part['last_at']}: {part['file']}"
    )


def _nothing(kept: list[dict[str, Any]]) -> str:
    oldest = kept[0]
    if oldest["last_at"] is None:
        return "nothing to archive: the journal has no events"
    return (
        f"nothing to archive: the last event of part {oldest['part']}, the oldest that is kept, "
        f"was recorded at {oldest['last_at']}, and a part goes as a whole"
    )


@click.command(epilog=example("tenantry events restore /srv/archive"))
@with_client
@click.argument("place", metavar="PATH", type=click.Path(path_type=Path))
def restore(client: ControlClient, *, as_json: bool, place: Path) -> None:
    """Bring archived events back into the journal, from a directory or a file of it.

    The part archived last comes back first; from a directory, one part after the other, up to the
    first that it lacks. The files stay.
    """
    done = []
    found = {one.summary.part: one for one in _found(place)}
    parts = client.call("GET", "/events/parts")["data"]
    waiting = [one for one in parts if one["state"] == "archived"]
    if not waiting:
        raise CommandError("no part of the journal is archived: there is nothing to restore")
    for part in reversed(waiting):
        if (one := found.get(part["part"])) is None:
            break
        _restore(client, one, part)
        done.append({**part, "file": str(one.file)})
        if not as_json:
            click.echo(_line("restored", done[-1]))
    if not done:
        raise CommandError(
            f"part {waiting[-1]['part']} was archived last, to {waiting[-1]['archive']}, and has "
            f"to come back first: it is not in {place}"
        )
    if as_json:
        output.print_json({"restored": done})


def _restore(client: ControlClient, archive: Archive, part: Mapping[str, Any]) -> None:
    _check(archive, part)
    number = part["part"]
    with output.working(f"restoring part {number}"):
        last = 0
        for lines in _chunks(archive):
            body = {"after": last, "lines": lines}
            last = client.call("PUT", f"/events/parts/{number}/lines", body)["last_position"]
        client.call("POST", f"/events/parts/{number}/restore", timeout=PART_SECONDS)


def _chunks(archive: Archive) -> Iterator[list[str]]:
    lines: list[str] = []
    size = 0
    for line in archive.lines():
        if lines and (len(lines) == LINES or size + len(line) > CHUNK_BYTES):
            yield lines
            lines, size = [], 0
        lines.append(line)
        size += len(line)
    if lines:
        yield lines


def _check(archive: Archive, part: Mapping[str, Any] | None) -> None:
    """Raise `CommandError` unless an archive agrees with its summary and with the database."""
    try:
        archive.check()
    except ArchiveError as error:
        raise CommandError(str(error)) from error
    if part is not None and part["digest"] not in (None, archive.summary.digest):
        raise CommandError(
            f"{archive.file} is not what was archived of part {part['part']}, to "
            f"{part['archive']}: it has been changed, or is another journal's"
        )


def _found(place: Path) -> list[Archive]:
    try:
        return archives.find(place)
    except ArchiveError as error:
        raise CommandError(str(error)) from error


def archived_events(
    client: ControlClient, place: Path, tenant_id: str | None
) -> Iterator[dict[str, Any]]:
    """Yield the events of archives, oldest first, of one tenant or all, in the API's form.

    Each archive is checked before its first event is yielded, and if a daemon can be asked, against
    the database's digest as well. Raises `CommandError`.
    """
    found = _found(place)
    try:
        parts = client.call("GET", "/events/parts")["data"]
    except DaemonUnreachableError:
        parts = []
        output.notice("no daemon answers: the archives are held against their own summaries alone")
    known = {one["part"]: one for one in parts}
    streams = None if tenant_id is None else set(names.streams_of(tenant_id))
    for archive in found:
        _check(archive, known.get(archive.summary.part))
        for line in archive.lines():
            event = exact.loads(line)
            if streams is None or event["stream"] in streams:
                yield _shown(event)


def _shown(event: dict[str, Any]) -> dict[str, Any]:
    metadata = event["metadata"]
    wanted = ("actor", "correlation_id", "causation_id", "trace_id")
    return {
        **{name: event[name] for name in ("position", "stream", "version", "id")},
        "tenant_id": event["data"].get("tenant_id"),
        **{name: event[name] for name in ("type", "schema_version", "data")},
        **{name: metadata.get(name) for name in wanted},
        "recorded_at": event["recorded_at"],
    }


@click.command(epilog=example("tenantry events parts"))
@with_client
def parts(client: ControlClient, *, as_json: bool) -> None:
    """List the parts of the journal: the archived ones and where they are, and those still kept."""
    found = client.call("GET", "/events/parts")
    if as_json:
        output.print_json(found["data"])
        return
    fields = ("part", "state", "events", "first_position", "last_position", "first_at", "last_at")
    output.print_table(
        ("part", "state", "events", "from", "to", "first", "last", "archive"),
        [(*(one[name] for name in fields), one["archive"]) for one in found["data"]],
    )
