"""Commands for the broker itself: moving from the embedded one to RabbitMQ."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tenantry.cli import output
from tenantry.cli.options import config_option, example, json_option, load_settings
from tenantry.cli.output import CommandError
from tenantry.cli.service import database_url

if TYPE_CHECKING:
    from tenantry.broker.port import Publishing
    from tenantry.broker.postgres.moving import Moved
    from tenantry.database.pool import Database
    from tenantry.settings import Settings


@click.group()
def broker() -> None:
    """See to the broker."""


@broker.command(
    epilog=example(
        "tenantry stop --wait",
        "RABBITMQ_URL=amqp://user:password@broker:5672/ tenantry broker migrate",
    )
)
@config_option
@json_option
@click.option(
    "--to",
    metavar="URL",
    help="The RabbitMQ to move to.  [default: rabbitmq.url, RABBITMQ_URL: better for a password]",
)
@click.option(
    "--management-to", metavar="URL", help="Its management API.  [default: the same host, 15672]"
)
def migrate(
    *, config: Path | None, as_json: bool, to: str | None, management_to: str | None
) -> None:
    """Move what lies in the embedded broker to RabbitMQ.

    The daemon must have been stopped. Tenants' streams, queues and users are made on RabbitMQ;
    messages and dead letters go there in their order, and none leaves before it is confirmed.
    Broken off, it is run again. Afterwards set RABBITMQ_URL for the daemon, start it, and rotate
    the tenants' credentials: their passwords don't come along. While anybody still publishes to
    the embedded broker, run this again once they have moved, too.
    """
    from tenantry.broker import select
    from tenantry.broker.adapter import TermFence
    from tenantry.broker.port import BrokerError
    from tenantry.broker.postgres.moving import Move
    from tenantry.database.errors import DatabaseError
    from tenantry.database.installation import find_installation
    from tenantry.database.migrations import pending
    from tenantry.database.pool import Database
    from tenantry.telemetry.logging import configure

    configure("error")
    overrides: dict[str, object] = {"rabbitmq.url": to, "rabbitmq.management_url": management_to}
    settings = load_settings(config, overrides=overrides)
    if select.describe(settings) is None:
        raise click.UsageError("say where to: --to, or RABBITMQ_URL")
    try:
        with database_url(settings) as url:
            if pending(url):
                raise CommandError("the schema is not up to date: run `tenantry migrate` first")
            database = Database(url, pool_size=2)
            database.open()
            with closing(database), _publishing(settings, database) as publishing:
                fence = TermFence(installation=find_installation(database))
                links = select.connect(settings, database, fence)
                with closing(links), output.working("moving"):
                    links.prepare()
                    moved = Move(
                        database, administration=links.administration, publishing=publishing
                    ).run()
    except (BrokerError, DatabaseError) as error:
        raise CommandError(str(error)) from error
    _print(moved, as_json=as_json)


@contextmanager
def _publishing(settings: Settings, database: Database) -> Iterator[Publishing]:
    from tenantry.broker import select

    publishing, loop = select.open_publishing(select.publishing_access(settings), database)
    if loop is None:
        yield publishing
        return
    thread = threading.Thread(target=loop.run, name="broker-publishing", daemon=True)
    thread.start()
    try:
        yield publishing
    finally:
        loop.stop()
        thread.join(5)


def _print(moved: Mapping[str, Moved], *, as_json: bool) -> None:
    if as_json:
        tenants = {
            tenant_id: {"messages": one.messages, "dead_letters": one.dead_letters}
            for tenant_id, one in moved.items()
        }
        output.print_json({"tenants": tenants})
        return
    output.print_table(
        ("tenant", "messages", "dead letters"),
        [(tenant_id, one.messages, one.dead_letters) for tenant_id, one in moved.items()],
    )
    output.notice(
        "Now set RABBITMQ_URL for the daemon, start it, and rotate each tenant's credentials."
    )
