"""The command that publishes as several tenants at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from tenantry.cli import output
from tenantry.cli.client import ControlClient
from tenantry.cli.options import (
    Function,
    broker_tls,
    credentials_option,
    example,
    given_tenants,
    with_client,
)
from tenantry.cli.output import FAILED, CommandError

if TYPE_CHECKING:
    from tenantry.tenant_client.connecting import Addresses
    from tenantry.tenant_runs import RunResult

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


def _option(name: str, port: str) -> Callable[[Function], Function]:
    return click.option(
        f"--{name}-address",
        callback=_address,
        envvar=f"TENANTRY_{name.upper()}_ADDRESS",
        show_envvar=True,
        metavar="HOST:PORT",
        help=f"Where tenants connect, as in broker.example.org:{port}.  [default: as their "
        "credentials say]",
    )


def address_options(function: Function) -> Function:
    """Add the options for the brokers' addresses; `addresses` makes their value."""
    return _option("amqp", "5672")(_option("iggy", "8090")(function))


def addresses(amqp_address: str | None, iggy_address: str | None) -> Addresses:
    """Return the addresses that the options name."""
    from tenantry.tenant_client.connecting import Addresses

    return Addresses(amqp=amqp_address, iggy=iggy_address)


@click.command(
    epilog=example("tenantry produce --tenants 5 --messages-per-batch 100 --interval 10ms")
)
@with_client
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
@credentials_option
@address_options
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
    credentials_file: Path | None,
    amqp_address: str | None,
    iggy_address: str | None,
) -> None:
    """Publish as many tenants at once, and count.

    Each tenant has its own user. Tenants 1, 2, ... are created where they don't exist; an existing
    one gets a new password, which ends another run for it. With --credentials the tenants in that
    file publish, and any number of runs may go on at once. By default 3 tenants x 3 topics x
    3 producers x 10 batches x 10 messages are sent. With --json the lines go to stderr. Exits with
    1 if a message was not confirmed or a tenant reaches another's objects.
    """
    from tenantry.producer.run import ProducerOptions
    from tenantry.producer.run import produce as run
    from tenantry.tenant_client.access import ProducerError

    log_quietly()
    options = ProducerOptions(
        tenants=tenants,
        producers=producers,
        partitions=partitions,
        ensure_access=ensure_access,
        batches=message_batches_limit,
        batch_size=messages_per_batch,
        interval=interval,
        credentials=given_tenants(credentials_file),
        addresses=addresses(amqp_address, iggy_address),
        tls=broker_tls(),
    )
    try:
        with output.working("publishing", options.messages) as advance:
            say = output.notice if as_json else click.echo
            result = run(options, client, say=say, progress=advance)
    except ProducerError as error:
        raise CommandError(str(error)) from error
    finish(result, as_json=as_json)


def finish(result: RunResult[Any], *, as_json: bool) -> None:
    """Print a run's result as a document with `as_json`; exit with 1 unless it succeeded."""
    if as_json:
        document = {
            "tenants": {tenant_id: {**one.counts} for tenant_id, one in result.tallies.items()},
            **result.total.counts,
            "isolated": None if result.isolation is None else result.isolation.holds,
        }
        output.print_json(document)
    if not result.succeeded:
        raise click.exceptions.Exit(FAILED)


def log_quietly() -> None:
    """Log errors only: the command's own lines report all else that matters."""
    from tenantry.telemetry.logging import configure

    configure("error")
