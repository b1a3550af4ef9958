"""`tenantry tenant topics`: shows a tenant's topics, and adds some."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from tenantry.api.topics import FORM, topic_of
from tenantry.cli import output
from tenantry.cli.client import ControlClient, tenant_path
from tenantry.cli.options import example, tenant_argument, with_client


def topics_of(given: Iterable[str]) -> list[str | dict[str, Any]]:
    """Read options, each a topic or a list of them. Raises `click.UsageError`."""
    try:
        return [topic_of(one) for several in given for one in several.split(",") if one]
    except ValueError as error:
        raise click.UsageError(str(error)) from error


@click.command(
    epilog=example(
        "tenantry tenant topics acme", "tenantry tenant topics acme --add orders:8:ordered"
    )
)
@with_client
@tenant_argument()
@click.option("--add", "added", multiple=True, metavar=FORM, help="A topic; may be repeated.")
def topics(client: ControlClient, *, as_json: bool, tenant_id: str, added: tuple[str, ...]) -> None:
    """Show a tenant's topics, or give it more; at once, while its messages flow.

    --add also takes a list, as in events,logs. A topic given by its name alone has the tenant's
    usual number of partitions, and no order; neither changes later. A topic that exists is left as
    it is; partitions and order that are given for it must match.
    """
    wanted = topics_of(added)
    if added and not wanted:
        raise click.UsageError(f"no topic is named: --add {FORM}")
    if wanted:
        with output.working("adding topics"):
            found = client.call("POST", tenant_path(tenant_id, "topics"), {"topics": wanted})
    else:
        found = client.call("GET", tenant_path(tenant_id))
    settings = found["topic_settings"]
    if as_json:
        output.print_json(settings)
        return
    columns = ["name", "partitions", "ordering"]
    output.print_table(columns, [[one[column] for column in columns] for one in settings])
