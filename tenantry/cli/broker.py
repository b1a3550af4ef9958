"""Commands for the broker itself: moving messages from one to another."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from tenantry.cli import output
from tenantry.cli.options import config_option, example, json_option, load_settings
from tenantry.cli.output import CommandError
from tenantry.cli.service import database_url

if TYPE_CHECKING:
    from tenantry.broker.moving import Moved
    from tenantry.loops import Loop
    from tenantry.settings import Settings

LAST_SECONDS: Final = 10.0
"""Seconds a loop may take to settle the last messages; those not settled are delivered again."""


@click.group()
def broker() -> None:
    """Manage the broker."""


@broker.command(
    epilog=example(
        "tenantry stop --wait",
        "RABBITMQ_URL=amqp://user:password@broker:5672/ tenantry broker migrate",
        "BROKER_URL=iggy://user:password@broker:8090 tenantry broker migrate",
    )
)
@config_option
@json_option
@click.option(
    "--from",
    "source",
    metavar="URL",
    envvar="TENANTRY_MOVE_FROM",
    show_envvar=True,
    help="The Iggy to leave; better in the environment, for its password.  [default: the embedded"
    " broker]",
)
@click.option(
    "--to",
    metavar="URL",
    help="The broker to move to, RabbitMQ or Iggy; empty: the embedded one.  [default: broker.url,"
    " BROKER_URL, or rabbitmq.url, RABBITMQ_URL: better for a password]",
)
@click.option(
    "--management-to",
    metavar="URL",
    help="The management API of RabbitMQ.  [default: the same host, 15672]",
)
def migrate(
    *,
    config: Path | None,
    as_json: bool,
    source: str | None,
    to: str | None,
    management_to: str | None,
) -> None:
    """Move the messages in one broker to another.

    From the embedded broker to RabbitMQ or Apache Iggy, or from Iggy to one of the others. The
    daemon must have been stopped. Tenants' streams, queues and users are made on the other broker;
    messages and dead letters go there in their order, and none leaves before it is confirmed. If
    the command is broken off, run it again. Afterwards set the broker's URL for the daemon, start
    it, and rotate the tenants' credentials: their passwords don't come along. If clients still
    publish to the former broker, run this again once they have moved, too.
    """
    from tenantry.broker.port import BrokerError
    from tenantry.database.errors import DatabaseError
    from tenantry.telemetry.logging import configure

    configure("error")
    overrides: dict[str, object] = {"rabbitmq.management_url": management_to}
    settings = load_settings(config, overrides=overrides | _broker_of(to))
    former = load_settings(config, overrides=_broker_of(source or ""))
    if former.broker_url == settings.broker_url:
        raise click.UsageError("say where to: --to, or BROKER_URL, another one than --from")
    try:
        moved = _moved(former, settings)
    except (BrokerError, DatabaseError) as error:
        raise CommandError(str(error)) from error
    _print(moved, as_json=as_json)
    left = sum(one.left for one in moved.values())
    if left:
        raise CommandError(
            f"{left} messages stay in the former broker, which the other one does not take: start"
            " the daemon on the former one once more, which stores them, and run this again"
        )


def _broker_of(url: str | None) -> dict[str, object]:
    """Return the settings that choose a broker by its URL; None changes no setting."""
    if url is None:
        return {}
    rabbitmq = url.startswith("amqp")
    return {"broker.url": "" if rabbitmq else url, "rabbitmq.url": url if rabbitmq else ""}


def _moved(former: Settings, settings: Settings) -> Mapping[str, Moved]:
    from tenantry.broker import select
    from tenantry.broker.adapter import TermFence
    from tenantry.broker.moving import Move
    from tenantry.database.installation import find_installation
    from tenantry.database.migrations import pending
    from tenantry.database.pool import Database
    from tenantry.nodes.postgres import PostgresNodes
    from tenantry.terms.lease import LEASE

    with database_url(settings) as url, ExitStack() as stack:
        if pending(url):
            raise CommandError("the schema is not up to date: run `tenantry migrate` first")
        database = Database(url, pool_size=3)
        database.open()
        stack.callback(database.close)
        nodes = PostgresNodes(database).look()
        alone = not any(node.standing.held and node.heard < LEASE for node in nodes)
        fence = TermFence(installation=find_installation(database))
        publishers = select.open_publishing(select.publishing_access(settings), database)
        stack.enter_context(_running(publishers.loop))
        links = select.connect(settings, database, fence)
        stack.callback(links.close)
        stack.enter_context(output.working("moving"))
        links.prepare()
        opened, reading = select.source(former, database, fence, alone=alone)
        source = stack.enter_context(opened)
        stack.enter_context(_running(reading))
        return Move(
            database, source, administration=links.administration, publishing=publishers.publishing
        ).run()


@contextmanager
def _running(loop: Loop | None) -> Iterator[None]:
    """Run a loop on a thread, if there is one."""
    if loop is None:
        yield
        return
    thread = threading.Thread(target=loop.run, name="broker", daemon=True)
    thread.start()
    try:
        yield
    finally:
        loop.stop()
        thread.join(LAST_SECONDS)


def _print(moved: Mapping[str, Moved], *, as_json: bool) -> None:
    if as_json:
        tenants = {
            tenant_id: {
                "messages": one.messages,
                "dead_letters": one.dead_letters,
                "left": one.left,
            }
            for tenant_id, one in moved.items()
        }
        output.print_json({"tenants": tenants})
        return
    output.print_table(
        ("tenant", "messages", "dead letters", "left"),
        [(tenant_id, one.messages, one.dead_letters, one.left) for tenant_id, one in moved.items()],
    )
    output.notice(
        "Now set the broker's URL for the daemon, start it, and rotate each tenant's credentials."
    )
