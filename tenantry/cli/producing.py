"""Commands that publish as tenants: the multi-tenant producer and the proof of isolation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from tenantry.cli import output
from tenantry.cli.client import ControlClient, tenant_path
from tenantry.cli.failures import FAILED, CommandError
from tenantry.cli.options import example, json_option, tenant_argument, with_client

if TYPE_CHECKING:
    from tenantry.producer import IsolationReport, ProduceResult, TenantAccess, TenantNames

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0}
MAX_INTERVAL: Final = 3600.0


def _seconds(_context: click.Context, _parameter: click.Parameter, value: str) -> float:
    """Read a span of time."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m)", value.strip(), re.ASCII)
    seconds = float(match[1]) * _UNITS[match[2]] if match else -1.0
    if not 0 <= seconds <= MAX_INTERVAL:
        raise click.BadParameter(
            f"{value!r} is no span of time up to an hour, as in 1ms, 0.5s or 2s."
        )
    return seconds


def _address(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """Check a HOST:PORT."""
    if value is None:
        return None
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})", value, re.ASCII)
    if match is None or not 1 <= int(match[2]) <= 65535:
        raise click.BadParameter(f"{value!r} is no address, as in broker.example.org:5672.")
    return value


_address_option = click.option(
    "--amqp-address",
    callback=_address,
    metavar="HOST:PORT",
    help="Where tenants connect.  [default: as their credentials say]",
)


@click.command(
    epilog=example("tenantry produce --tenants 5 --messages-per-batch 100 --interval 10ms")
)
@with_client
@json_option
@click.option("--tenants", type=click.IntRange(1, 10_000), default=3, show_default=True,
              envvar="TENANTS_COUNT", show_envvar=True, help="Tenants.")  # fmt: skip
@click.option("--producers", type=click.IntRange(1, 1000), default=3, show_default=True,
              envvar="PRODUCERS_COUNT", show_envvar=True,
              help="Producers per tenant and topic.")  # fmt: skip
@click.option("--partitions", type=click.IntRange(1, 64), default=3, show_default=True,
              envvar="PARTITIONS_COUNT", show_envvar=True,
              help="Partitions per topic of a tenant that is created.")  # fmt: skip
@click.option("--ensure-access/--no-ensure-access", default=True, show_default=True,
              envvar="ENSURE_ACCESS", show_envvar=True,
              help="Prove that each tenant reaches its own stream and no other.")  # fmt: skip
@click.option("--message-batches-limit", type=click.IntRange(1, 1_000_000), default=10,
              show_default=True, help="Batches per producer.")  # fmt: skip
@click.option("--messages-per-batch", type=click.IntRange(1, 10_000), default=10,
              show_default=True, help="Messages per batch.")  # fmt: skip
@click.option("--interval", callback=_seconds, metavar="TIME", default="1ms", show_default=True,
              help="The pause between a producer's batches.")  # fmt: skip
@_address_option
def produce(
    client: ControlClient,
    *,
    as_json: bool,
    tenants: int,
    producers: int,
    partitions: int,
    ensure_access: bool,
    message_batches_limit: int,
    messages_per_batch: int,
    interval: float,
    amqp_address: str | None,
) -> None:
    """Publish as many tenants at once, and count.

    Each tenant has its own user. Tenants 1, 2, ... are created where they don't exist; an existing
    one gets a new password. By default 3 tenants x 3 topics x 3 producers x 10 batches x 10
    messages are sent. With --json the lines go to stderr. Exits with 1 if a message was not
    confirmed or a tenant reaches another's objects.
    """
    from tenantry.producer import ProducerError, ProducerOptions
    from tenantry.producer import produce as run

    _log_quietly()
    options = ProducerOptions(
        tenants=tenants,
        producers=producers,
        partitions=partitions,
        ensure_access=ensure_access,
        batches=message_batches_limit,
        batch_size=messages_per_batch,
        interval=interval,
        amqp_address=amqp_address,
    )
    try:
        with progress_of(options.messages) as (say, advance):
            result = run(options, client, say=output.notice if as_json else say, progress=advance)
    except ProducerError as error:
        raise CommandError(str(error)) from error
    if as_json:
        output.print_json(result_document(result))
    if not result.succeeded:
        raise click.exceptions.Exit(FAILED)


@contextmanager
def progress_of(
    messages: int,
) -> Iterator[tuple[Callable[[str], None], Callable[[int], None]]]:
    """Give a `say` for lines on stdout, and a bar on a terminal's stderr to advance."""
    import sys

    if not sys.stderr.isatty():
        yield click.echo, lambda _count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    with Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    ) as bar:
        task = bar.add_task("", total=messages)
        yield click.echo, lambda count: bar.advance(task, count)


def result_document(result: ProduceResult) -> dict[str, Any]:
    """Put a run's result into a document."""
    return {
        "tenants": {
            tenant_id: {"sent": one.sent, "confirmed": one.confirmed, "failed": one.failed}
            for tenant_id, one in result.tallies.items()
        },
        "sent": result.total.sent,
        "confirmed": result.total.confirmed,
        "failed": result.total.failed,
        "isolated": None if result.isolation is None else result.isolation.holds,
    }


@click.command(
    "verify-isolation",
    epilog=example("tenantry verify-isolation acme globex --credentials credentials.json"),
)
@with_client
@json_option
@tenant_argument(many=True)
@click.option(
    "--credentials",
    "credentials_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help='A JSON file {"ID": {"username", "password", "amqp_url" or "postgres_url"}} to use, so '
    "that no password is changed.",
)
@_address_option
def verify_isolation(
    client: ControlClient,
    *,
    as_json: bool,
    tenant_ids: tuple[str, ...],
    credentials_file: Path | None,
    amqp_address: str | None,
) -> None:
    """Prove that tenants can't reach one another.

    Each tenant (all, if none is named) connects with its own credentials and tries to write and
    to read what is its own and what is every other tenant's. No message is left behind or taken.
    Exits with 1 on any leak.

    THE PASSWORDS OF THESE TENANTS ARE ROTATED to get at their credentials, so their producers need
    the new ones afterwards. With --credentials no password is changed.
    """
    from tenantry.producer import ProducerError
    from tenantry.producer import verify_isolation as verify
    from tenantry.producer.access import every_tenant

    _log_quietly()
    given = None if credentials_file is None else read_credentials(credentials_file)
    try:
        everybody = every_tenant(client)
        accesses = _accesses(client, everybody, tenant_ids, given)
        say = output.notice if as_json else click.echo
        with output.working("examining"):
            report = verify(accesses, everybody, say=say, amqp_address=amqp_address)
    except ProducerError as error:
        raise CommandError(str(error)) from error
    if as_json:
        output.print_json(_report_document(report))
    if not report.holds:
        raise click.exceptions.Exit(FAILED)


def _accesses(
    client: ControlClient,
    everybody: list[TenantNames],
    tenant_ids: tuple[str, ...],
    given: Mapping[str, Mapping[str, str]] | None,
) -> list[TenantAccess]:
    from tenantry.producer import TenantAccess
    from tenantry.producer.access import credentials_of, rotate

    known = {one.tenant_id: one for one in everybody}
    for tenant_id in tenant_ids:
        if tenant_id not in known:
            client.call("GET", tenant_path(tenant_id))  # says so, if there is none
            raise CommandError(f"tenant {tenant_id} has no objects on the broker now")
        if given is not None and tenant_id not in given:
            raise CommandError(f"the credentials file has no entry for tenant {tenant_id}")
    wanted = list(dict.fromkeys(tenant_ids)) or [
        tenant_id for tenant_id in known if given is None or tenant_id in given
    ]
    if not wanted:
        raise CommandError("there is no tenant to examine")
    return [
        TenantAccess(
            names=known[tenant_id],
            credentials=rotate(client, tenant_id)
            if given is None
            else credentials_of(given[tenant_id]),
        )
        for tenant_id in wanted
    ]


def read_credentials(file: Path) -> dict[str, dict[str, str]]:
    """Read a file of credentials. Raises `click.UsageError`, which does not repeat its content."""
    wanted = ("username", "password")
    urls = ("amqp_url", "postgres_url")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or not all(
        isinstance(one, dict)
        and all(isinstance(one.get(key), str) for key in wanted)
        and any(isinstance(one.get(key), str) for key in urls)
        for one in found.values()
    ):
        raise click.UsageError(
            f'{file} is no credentials file: {{"ID": {{"username", "password", "amqp_url"}}}}'
        )
    return found


def _report_document(report: IsolationReport) -> dict[str, Any]:
    return {
        "isolated": report.holds,
        "leaks": [str(one) for one in report.leaks],
        "denials": [str(one) for one in report.denials],
        "checks": [
            {
                "tenant": one.tenant_id,
                "owner": one.owner,
                "action": one.action,
                "target": one.target,
                "allowed": one.allowed,
                "holds": one.holds,
            }
            for one in report.checks
        ],
    }


def _log_quietly() -> None:
    """Keep libraries from talking between the lines; what matters is said in them."""
    from tenantry.telemetry.logging import configure

    configure("error")
