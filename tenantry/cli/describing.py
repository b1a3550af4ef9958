"""`tenantry tenant asyncapi`: a tenant's messages, described for programs."""

from __future__ import annotations

import click

from tenantry.cli import output
from tenantry.cli.client import ControlClient, tenant_path
from tenantry.cli.options import example, tenant_argument, with_client


@click.command(epilog=example("tenantry tenant asyncapi acme > acme.asyncapi.json"))
@with_client
@tenant_argument()
def asyncapi(client: ControlClient, *, as_json: bool, tenant_id: str) -> None:  # noqa: ARG001
    """Print a tenant's AsyncAPI document: where its messages go, what they look like.

    It is JSON with --json and without, and holds no secret: give it to those who publish or read.
    """
    output.print_json(client.call("GET", tenant_path(tenant_id, "asyncapi.json")))
