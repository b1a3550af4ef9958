"""Commands about nodes: list those that share the tenants, and drain one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import click

from tenantry.cli import output
from tenantry.cli.client import ControlClient
from tenantry.cli.options import example, node_argument, with_client
from tenantry.cli.output import CommandError

POLL: Final = 0.5
POLL_TIMEOUT: Final = 10.0
TIMEOUT: Final = 600.0

_FIELDS: Final = (
    "name", "state", "tenants", "rate", "weight", "version", "host", "pid", "last_heartbeat",
)  # fmt: skip

Node = dict[str, Any]


@click.group(
    invoke_without_command=True, epilog=example("tenantry nodes --json | jq -r '.[].name'")
)
@with_client
@click.pass_context
def nodes(context: click.Context, client: ControlClient, *, as_json: bool) -> None:
    """List the daemons on this database, or empty one of them."""
    if context.invoked_subcommand is not None:
        return
    found = client.call("GET", "/nodes")["data"]
    if as_json:
        output.print_json(found)
        return
    columns = [name.replace("_", " ") for name in _FIELDS]
    columns[_FIELDS.index("rate")] = "rate/s"
    output.print_table(columns, [[one[name] for name in _FIELDS] for one in found])


@nodes.command(epilog=example("tenantry nodes drain ingest-2 --timeout 60"))
@with_client
@node_argument()
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until it is empty.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=TIMEOUT,
    show_default=True,
    help="Seconds to wait at most; it goes on after that.",
)
def drain(client: ControlClient, *, as_json: bool, node: str, wait: bool, timeout: float) -> None:
    """Hand a node's tenants over to the others; it stays up, and empty until `undrain`."""
    found = client.call("POST", _path(node, "drain"))
    if wait:
        with output.working(f"draining {output.clean(node)}"):
            found = _wait_empty(client, found, timeout)
    _show(found, as_json=as_json)


@nodes.command(epilog=example("tenantry nodes undrain ingest-2"))
@with_client
@node_argument()
def undrain(client: ControlClient, *, as_json: bool, node: str) -> None:
    """Let a node have tenants again."""
    _show(client.call("POST", _path(node, "undrain")), as_json=as_json)


def _wait_empty(client: ControlClient, node: Node, timeout: float) -> Node:
    deadline, told = time.monotonic() + timeout, -1
    name = node["name"]
    while node["tenants"]:
        if node["tenants"] != told:
            told = node["tenants"]
            output.notice(f"{_left(told)} left")
        if node["state"] != "draining":
            raise CommandError(
                f"node {output.clean(name)} is {node['state']}, with {_left(told)} left"
            )
        if time.monotonic() >= deadline:
            raise CommandError(
                f"node {output.clean(name)} is not empty after {timeout:g} s: {_left(told)} left"
            )
        time.sleep(POLL)
        everybody = client.call("GET", "/nodes", timeout=POLL_TIMEOUT)["data"]
        found = [one for one in everybody if one["name"] == name]
        if not found:
            raise CommandError(f"node {output.clean(name)} has left")
        node = found[0]
    return node


def _left(tenants: int) -> str:
    return "1 tenant" if tenants == 1 else f"{tenants} tenants"


def _show(node: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        output.print_json(node)
    else:
        output.print_fields({name: node[name] for name in _FIELDS})


def _path(node: str, act: str) -> str:
    return f"/nodes/{quote(node, safe='')}/{act}"
