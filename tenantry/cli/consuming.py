"""The command that consumes as several tenants at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click

from tenantry.cli import output
from tenantry.cli.client import ControlClient
from tenantry.cli.options import broker_tls, credentials_option, example, given_tenants, with_client
from tenantry.cli.output import CommandError
from tenantry.cli.producing import address_options, addresses, finish, log_quietly

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@click.command(epilog=example("tenantry consume --follow --tenants 5 --consumers 2"))
@with_client
@click.option("--tenants", type=click.IntRange(1, 10_000), default=3, show_default=True,
              envvar="TENANTS_COUNT", show_envvar=True, help="Tenants.")  # fmt: skip
@click.option("--consumers", type=click.IntRange(1, 100), default=1, show_default=True,
              envvar="CONSUMERS_COUNT", show_envvar=True,
              help="Consumers per tenant and topic.")  # fmt: skip
@click.option("--partitions", type=click.IntRange(1, 64), default=3, show_default=True,
              envvar="PARTITIONS_COUNT", show_envvar=True,
              help="Partitions per topic of a tenant that is created.")  # fmt: skip
@click.option("--ensure-access/--no-ensure-access", default=True, show_default=True,
              envvar="ENSURE_ACCESS", show_envvar=True,
              help="Prove that each tenant reads its own stream and no other.")  # fmt: skip
@click.option("--messages-per-batch", type=click.IntRange(1, 10_000), default=10,
              show_default=True, help="Messages per batch, at most.")  # fmt: skip
@click.option("--follow", "-f", is_flag=True,
              help="Go on with what comes, until SIGINT (Ctrl-C) or SIGTERM.")  # fmt: skip
@credentials_option
@address_options
def consume(
    client: ControlClient,
    *,
    as_json: bool,
    tenants: int,
    consumers: int,
    partitions: int,
    ensure_access: bool,
    messages_per_batch: int,
    follow: bool,
    credentials_file: Path | None,
    amqp_address: str | None,
    iggy_address: str | None,
) -> None:
    """Read as many tenants at once, each its own topics, and count.

    Each tenant has a user that only reads: nothing is taken from the daemon. On RabbitMQ it reads
    copies, which are kept from the first run on, a day and 64 MiB a topic at most; on the embedded
    broker it reads what is stored from the first run on; on Apache Iggy it continues from stored
    offsets, at first from the beginning. A batch is committed once it is reported; messages that
    were not committed are delivered again.

    Tenants 1, 2, ... are created where they don't exist; the reading user of an existing tenant
    gets a new password, which ends another run for it. With --credentials the tenants in that file
    read. Runs beside one another share the messages, and if one dies the others get its share; only
    on Apache Iggy they all read the same.

    Without --follow it ends when nothing waits any more: on RabbitMQ, when the queue of each topic
    is empty; on the embedded broker, when all that is stored was delivered; on Apache Iggy, when no
    partition has anything beyond its offset. With --json the lines go to stderr. Exits with 1 if a
    consumer gave up or a tenant reaches another's objects.
    """
    from tenantry.consumer.run import TOPICS, ConsumerOptions
    from tenantry.consumer.run import consume as run
    from tenantry.tenant_client.access import ProducerError
    from tenantry.tenant_runs import AT_ONCE

    log_quietly()
    given = given_tenants(credentials_file)
    tenants = tenants if given is None else len(given)
    if follow and tenants * consumers * len(TOPICS) > AT_ONCE:
        raise click.UsageError(
            f"--follow keeps all consumers running: tenants x consumers x {len(TOPICS)} topics"
            f" (TENANTS_COUNT, CONSUMERS_COUNT) must be {AT_ONCE} at most"
        )
    options = ConsumerOptions(
        tenants=tenants,
        consumers=consumers,
        partitions=partitions,
        ensure_access=ensure_access,
        batch_size=messages_per_batch,
        follow=follow,
        credentials=given,
        addresses=addresses(amqp_address, iggy_address),
        tls=broker_tls(),
    )
    stop = threading.Event()
    try:
        with _stopped_by_signals(stop):
            say = output.notice if as_json else click.echo
            result = run(options, client, say=say, stop=stop)
    except ProducerError as error:
        raise CommandError(str(error)) from error
    finish(result, as_json=as_json)


@contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """Let the first signal end the run after the batches in hand, and a second one at once."""
    former = {one: signal.getsignal(one) for one in _SIGNALS}

    def restore() -> None:
        for one, handler in former.items():
            signal.signal(one, handler)

    def ending(_number: int, _frame: object) -> None:
        restore()
        stop.set()

    for one in _SIGNALS:
        signal.signal(one, ending)
    try:
        yield
    finally:
        restore()
