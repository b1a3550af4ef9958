"""`tenantry tenant import`: creates the tenants of a file, several at once; it can be repeated."""

from __future__ import annotations

import csv
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Self

import click

from tenantry import exact
from tenantry.cli import output
from tenantry.cli.client import ControlClient, tenant_path
from tenantry.cli.options import example, with_client
from tenantry.cli.output import ApiError, CommandError
from tenantry.domain import names
from tenantry.domain.topics import topic_of

if TYPE_CHECKING:
    from tenantry.api.schemas.tenants import TenantCreation

MOST_NAMED: Final = 20
"""Most problems of a file, or failed tenants, that are listed one by one."""

PAUSES: Final = (0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds before each repetition of a call that the daemon could not serve."""

_NOT_NOW: Final = frozenset({429, 503, 504})
_CONFLICT: Final = 409
_COLUMNS: Final = ("id", "name", "topics", "partitions", "workers")
_COMPARED: Final = ("name", "topics", "partitions")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A tenant that a line of the file asks for."""

    line: int
    body: dict[str, Any]

    @property
    def id(self) -> str:
        """The tenant's id."""
        return str(self.body["id"])


@dataclass(slots=True)
class Import:
    """The outcome for the file's tenants."""

    created: list[str] = field(default_factory=list)
    existed: list[str] = field(default_factory=list)
    failed: list[tuple[Wanted, str]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """Tenants that existed, and whose credentials are not in the credentials file."""

    def as_json(self) -> dict[str, Any]:
        """Return the outcome as one JSON document."""
        return {
            "created": len(self.created),
            "existed": len(self.existed),
            "failed": [
                {"line": one.line, "id": one.id, "problem": problem} for one, problem in self.failed
            ],
            "without_credentials": self.unknown,
        }


@click.command(
    "import",
    epilog=example(
        "tenantry tenant import tenants.csv --credentials credentials.jsonl",
        "",
        "with a file like this, or one JSON object a line:",
        "  id,name,topics,partitions,workers",
        "  acme,Acme Ltd,events logs,2,3",
    ),
)
@with_client
@click.argument("file", type=click.File(encoding="utf-8-sig"))
@click.option(
    "--credentials",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the credentials go, a JSON object a line: they are shown this once. Only its owner "
    "may read it; what is in it stays.",
)
@click.option(
    "--no-credentials", is_flag=True, help="Keep none; rotate-credentials makes them later."
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 32),
    default=8,
    show_default=True,
    help="Tenants made at once.",
)
@click.option("--dry-run", is_flag=True, help="Check the file, and tell what would be made.")
def import_(
    client: ControlClient,
    *,
    as_json: bool,
    file: IO[str],
    credentials: Path | None,
    no_credentials: bool,
    concurrency: int,
    dry_run: bool,
) -> None:
    """Create the tenants of a file: CSV with a header, or JSON lines; - is standard input.

    Each tenant needs an id; name, topics (in CSV with spaces between them), partitions and workers
    may be left out. A topic is a name, or as in orders:8:ordered; in JSON also an object, as the
    API takes it. If the file has a mistake, no tenant is created. Tenants that exist are left as
    they are, so that the same command continues where it broke off.
    """
    if (credentials is None) != no_credentials and not dry_run:
        raise click.UsageError(
            "say where the credentials go, which are shown this once: --credentials FILE, "
            "or --no-credentials"
        )
    wanted = read(file)
    there = {one["id"]: one for one in client.pages("/tenants")}
    if dry_run:
        _preview(wanted, there, as_json=as_json)
        return
    with ExitStack() as stack:
        kept = None if credentials is None else stack.enter_context(Credentials.at(credentials))
        done = Import()
        creating = _Creating(client, done, kept)
        for one in wanted:
            if one.id in there:
                creating.exists(one, there[one.id])
        missing = [one for one in wanted if one.id not in there]
        try:
            with output.working("creating tenants", len(missing)) as advance:
                creating.all(missing, advance, at_once=concurrency)
        except BaseException:
            output.notice(
                f"created {len(done.created)} of {len(missing)}: the same command goes on"
            )
            raise
    _tell(done, as_json=as_json)


def read(file: IO[str]) -> list[Wanted]:
    """Read and check the whole file. Raises `click.UsageError`, which names the faulty lines."""
    from pydantic import ValidationError

    from tenantry.api.schemas.tenants import TenantCreation

    problems: list[str] = []
    wanted: list[Wanted] = []
    lines: dict[str, int] = {}
    try:
        for line, given in _rows(file):
            try:
                one = _checked(given, TenantCreation)
            except ValidationError as error:
                problems += [
                    f"line {line}: {'.'.join(map(str, told['loc']))}: {told['msg']}"
                    for told in error.errors()
                ]
            except ValueError as error:
                problems.append(f"line {line}: {error}")
            else:
                if (first := lines.setdefault(one["id"], line)) != line:
                    problems.append(f"line {line}: id {one['id']!r} stands in line {first} already")
                wanted.append(Wanted(line, one))
    except (UnicodeDecodeError, csv.Error) as error:
        raise click.UsageError(f"{file.name}: can't be read: {error}") from error
    if problems:
        more = f"\n… and {len(problems) - MOST_NAMED} more" if len(problems) > MOST_NAMED else ""
        told = "\n".join(output.clean(one) for one in problems[:MOST_NAMED])
        raise click.UsageError(f"{file.name}: nothing was made:\n{told}{more}")
    if not wanted:
        raise click.UsageError(f"{file.name}: there is no tenant in it")
    return wanted


def _rows(file: IO[str]) -> Iterator[tuple[int, object]]:
    """Yield each line's number and the tenant it describes, or its error."""
    numbered = enumerate(file, 1)
    begun, first = next(((n, line) for n, line in numbered if line.strip()), (1, ""))
    if first.lstrip().startswith("{"):
        yield begun, _json(first)
        yield from ((n, _json(line)) for n, line in numbered if line.strip())
        return
    header = [column.strip().lower() for column in next(csv.reader([first]), [])]
    unknown = [column for column in header if column not in _COLUMNS]
    if "id" not in header or unknown or len(set(header)) < len(header):
        raise click.UsageError(
            f"{file.name}: line {begun}: CSV begins with a line of columns, with id among"
            f" them, of: {', '.join(_COLUMNS)}"
        )
    reader = csv.reader((line for _, line in numbered), strict=True)
    for cells in reader:
        if any(cell.strip() for cell in cells):
            yield begun + reader.line_num, _of_csv(header, cells)


def _json(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return ValueError(f"is no JSON: {error}")


def _of_csv(header: Sequence[str], cells: Sequence[str]) -> object:
    if len(cells) > len(header):
        return ValueError(f"has {len(cells)} cells, and the header {len(header)} columns")
    given: dict[str, Any] = {}
    for column, cell in zip(header, cells, strict=False):
        if text := cell.strip():
            given[column] = _topics(text) if column == "topics" else text
            if column in {"partitions", "workers"} and text.isascii() and text.isdigit():
                given[column] = int(text) if len(text) < 10 else text
    return given


def _topics(text: str) -> object:
    try:
        return [topic_of(one) for one in text.split()]
    except ValueError as error:
        return error


def _checked(given: object, model: type[TenantCreation]) -> dict[str, Any]:
    """Return the body of the call that creates a tenant. Raises `ValueError`."""
    if isinstance(given, ValueError):
        raise given
    if not isinstance(given, dict):
        raise ValueError("is no JSON object")  # noqa: TRY004 - of what was read, not of ours
    tenant_id = given.get("id")
    if not isinstance(tenant_id, str) or not names.is_tenant_id(tenant_id):
        raise ValueError("needs an id: 1 to 40 of a-z, 0-9 and inner hyphens")
    if isinstance(given.get("topics"), ValueError):
        raise given["topics"]
    body = {**given, "name": given.get("name", tenant_id)}
    model.model_validate(body)
    for topic in (_name(one) for one in body.get("topics", ())):
        if not names.is_topic(topic):
            raise ValueError(f"{topic!r} is no topic: 1 to 63 of a-z, 0-9, _ and -, not default")
    return body


def _preview(wanted: Sequence[Wanted], there: dict[str, Any], *, as_json: bool) -> None:
    done = Import()
    for one in wanted:
        if one.id in there:
            _compare(one, there[one.id], done)
        else:
            done.created.append(one.id)
    if as_json:
        output.print_json({"dry_run": True, **done.as_json()})
    else:
        click.echo(
            f"{len(done.created)} would be created, {len(done.existed)} exist, "
            f"{len(done.failed)} exist otherwise than the file says"
        )
    _name_failed(done.failed)


def _compare(one: Wanted, found: dict[str, Any], done: Import) -> None:
    """Record a tenant that exists, as a failure if it differs from the wanted one."""
    wanted = {"topics": [], "partitions": 1, **one.body}
    for name in _COMPARED:
        same = wanted[name] == found[name]
        if name == "topics":
            there = {topic["name"]: topic for topic in found["topic_settings"]}
            same = all(_is_so(topic, there.get(_name(topic))) for topic in wanted[name])
        if not same:
            problem = f"exists with {name} {output.clean(found[name])}"
            done.failed.append((one, problem))
            return
    done.existed.append(one.id)


def _name(topic: str | Mapping[str, Any]) -> str:
    return topic if isinstance(topic, str) else topic["name"]


def _is_so(wanted: str | Mapping[str, Any], found: Mapping[str, Any] | None) -> bool:
    """Tell whether a tenant has a topic, with all the settings that are wanted."""
    if isinstance(wanted, str) or found is None:
        return found is not None
    return all(found[name] == value for name, value in wanted.items() if value is not None)


class Credentials:
    """The credentials file; a thread writes a tenant's to the disk before it begins the next."""

    def __init__(self, file: IO[str], path: Path) -> None:
        self._file = file
        self._path = path
        self._lock = threading.Lock()
        self.kept: Final = set[str]()
        """The ids of the tenants that were in the file when it was opened."""
        ends = True
        for line in file:
            ends = line.endswith("\n")
            with suppress(ValueError, TypeError, KeyError):
                self.kept.add(json.loads(line)["id"])
        if not ends:
            file.write("\n")  # an earlier run was cut off in the middle of a line

    @classmethod
    @contextmanager
    def at(cls, path: Path) -> Iterator[Self]:
        """Open the file, readable by its owner only. Raises `CommandError`."""
        try:
            number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise CommandError(f"can't write {path}: {error.strerror}") from error
        file = os.fdopen(number, "r+", encoding="utf-8")
        try:
            if os.fstat(number).st_mode & 0o077:
                raise CommandError(f"others may read {path}: chmod 600 it, or name another file")
            yield cls(file, path)
        finally:
            # A failed write was reported already; credentials reported as written are on disk.
            with suppress(OSError):
                file.close()

    def add(self, made: dict[str, Any]) -> None:
        """Add the credentials of a tenant that was made. From any thread. Raises `CommandError`."""
        line = exact.dumps({"id": made["id"], **made["credentials"]}, ascii_only=True)
        try:
            with self._lock:
                self._file.write(f"{line}\n")
                self._file.flush()
                os.fsync(self._file.fileno())
        except OSError as error:
            raise CommandError(
                f"can't write {self._path}: {error.strerror or error}; tenant {made['id']} was"
                " made, and its credentials are lost: rotate-credentials makes new ones"
            ) from error


@dataclass(frozen=True, slots=True)
class _Creating:
    """Creates tenants, on several threads at once."""

    client: ControlClient
    done: Import
    credentials: Credentials | None

    def all(
        self, missing: Sequence[Wanted], advance: Callable[[int], None], *, at_once: int
    ) -> None:
        """Create the tenants. After an error or Ctrl-C, only those under way are finished."""
        waiting = iter(missing)
        with ThreadPoolExecutor(at_once) as pool:
            under_way = {pool.submit(self.one, one) for one in islice(waiting, at_once)}
            while under_way:
                ended, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                for future in ended:
                    future.result()
                    advance(1)
                under_way |= {pool.submit(self.one, one) for one in islice(waiting, len(ended))}

    def one(self, one: Wanted) -> None:
        """Create a tenant and keep its credentials; or record why the daemon refused it."""
        for pause in (*PAUSES, None):
            try:
                made = self.client.call("POST", "/tenants", one.body)
            except ApiError as error:
                if error.status == _CONFLICT:
                    # Created by a call that had no answer, or by another client just now.
                    self.exists(one, self.client.call("GET", tenant_path(one.id)))
                    return
                if error.status not in _NOT_NOW or pause is None:
                    self.done.failed.append((one, str(error)))
                    return
                time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            else:
                if self.credentials is not None:
                    self.credentials.add(made)
                self.done.created.append(one.id)
                return

    def exists(self, one: Wanted, found: dict[str, Any]) -> None:
        """Record a tenant that exists already."""
        _compare(one, found, self.done)
        if self.credentials is not None and one.id not in self.credentials.kept:
            self.done.unknown.append(one.id)


def _tell(done: Import, *, as_json: bool) -> None:
    """Print what was done. Raises `CommandError` if something failed."""
    if as_json:
        output.print_json(done.as_json())
    else:
        click.echo(
            f"created {len(done.created)}, {len(done.existed)} existed, {len(done.failed)} failed"
        )
    if done.unknown:
        more = f" and {len(done.unknown) - 5} more" if len(done.unknown) > 5 else ""
        output.notice(
            f"of {', '.join(done.unknown[:5])}{more} the file has no credentials: "
            "`tenantry tenant rotate-credentials` makes new ones"
        )
    _name_failed(done.failed)


def _name_failed(failed: Sequence[tuple[Wanted, str]]) -> None:
    if not failed:
        return
    for one, problem in failed[:MOST_NAMED]:
        output.notice(f"line {one.line}: {one.id}: {problem}")
    more = f" ({MOST_NAMED} of them are named)" if len(failed) > MOST_NAMED else ""
    raise CommandError(f"{len(failed)} failed{more}; the same command tries them again")
