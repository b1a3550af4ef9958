"""Commands about the daemon as a whole: status, drain, stop, the way to its page."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import click

from tenantry.cli import output
from tenantry.cli.client import ControlClient
from tenantry.cli.options import example, with_client
from tenantry.cli.output import CommandError, DaemonUnreachableError

POLL: Final = 0.2
POLL_TIMEOUT: Final = 10.0
MARGIN: Final = 15.0
"""Seconds beyond the daemon's own deadline that `drain` and `stop` wait by default."""

_ANYWHERE: Final = {"0.0.0.0": "localhost", "::": "localhost"}  # noqa: S104 - what is shown for it
_FIELDS: Final = (
    "workers_current", "consuming", "pending", "unsettled", "rate", "stored", "duplicates",
    "dead_lettered",
)  # fmt: skip
_wait_seconds = click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=30.0 + MARGIN,
    show_default=True,
    help="Seconds to wait at most.",
)


@click.command(epilog=example("tenantry healthcheck --ready"))
@with_client
@click.option("--ready", is_flag=True, help="Ask for more: that it takes messages now.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=5.0,
    show_default=True,
    help="Seconds to wait for the answer.",
)
def healthcheck(client: ControlClient, *, as_json: bool, ready: bool, timeout: float) -> None:
    """Tell whether the daemon is healthy, for a monitor such as a container's health check.

    Exit 0 while its actors live; with --ready, while it consumes. Otherwise 1, with the reason.
    """
    status_code, body = client.send("GET", "/readyz" if ready else "/healthz", timeout=timeout)
    healthy = status_code == HTTPStatus.OK
    if as_json:
        output.print_json({"healthy": healthy, "answer": body})
    if not healthy:
        said = body.get("detail") if isinstance(body, dict) else None
        raise CommandError(f"not {'ready' if ready else 'healthy'}: {said or status_code}")
    if not as_json:
        click.echo("ready" if ready else "healthy")


@click.command(epilog=example("tenantry status --json | jq .ready"))
@with_client
def status(client: ControlClient, *, as_json: bool) -> None:
    """Show the tree of actors and the tenants."""
    found = client.call("GET", "/status")
    if as_json:
        output.print_json(found)
        return
    ready = "ready" if found["ready"] else f"not ready: {'; '.join(found['reasons']) or 'unknown'}"
    click.echo(
        f"tenantry {found['version']}, pid {found['pid']}: {found['state']}, {output.clean(ready)}"
    )
    click.echo(f"started {found['started_at']}")
    click.echo(_describe_role(found["role"], found["term"]))
    if found["node"] is not None:
        others = [
            f"{one['name']} ({one['state']})"
            for one in found["nodes"]
            if one["name"] != found["node"]
        ]
        beside = f"; beside it: {', '.join(others)}" if others else ""
        click.echo(output.clean(f"node {found['node']}{beside}"))
    click.echo()
    output.print_tree(found["tree"], _describe_actor)
    if found["abandoned"]:
        click.echo(f"\nreplaced, but their threads still hang: {output.clean(found['abandoned'])}")
    tenants = found["tenants"]
    if not tenants:
        click.echo("\nno tenants; make one with `tenantry tenant create NAME`")
        return
    click.echo()
    columns = ("tenant", "workers", "consuming", "pending", "unsettled", "rate/s", "stored")
    output.print_table(
        (*columns, "duplicates", "dead letters", "parked", "trouble"),
        [
            (tenant_id, *(tenant[name] for name in _FIELDS), _since(tenant), tenant["trouble"])
            for tenant_id, tenant in sorted(tenants.items())
        ],
    )


def _since(tenant: Mapping[str, Any]) -> str | None:
    """Say why a tenant was given up, and since when."""
    if tenant["parked"] is None:
        return None
    at = tenant["parked_at"]
    return f"{tenant['parked']} (since {at})" if at else f"{tenant['parked']} (for now)"


def _describe_role(role: str, term: Mapping[str, Any] | None) -> str:
    if term is None:
        return output.clean(role)
    holder = f"{term['host']} (pid {term['pid']})"
    return output.clean(f"{role}; term {term['number']} is held by {holder} since {term['since']}")


def _describe_actor(node: Mapping[str, Any]) -> tuple[str, str]:
    words = [node["kind"], node["state"], f"mailbox {node['mailbox']}"]
    if node["restarts"]:
        words.append(f"restarts {node['restarts']}")
    return node["name"], ", ".join(words)


@click.command(epilog=example("tenantry drain --timeout 60"))
@with_client
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until it is done.")
@_wait_seconds
def drain(client: ControlClient, *, as_json: bool, wait: bool, timeout: float) -> None:
    """Stop consuming but stay up; messages already accepted are finished."""
    client.call("POST", "/drain")
    state = "draining"
    if wait:
        with output.working("draining"):
            state = _wait_drained(client, timeout)
    _print_state(state, as_json=as_json)


def _print_state(state: str, *, as_json: bool) -> None:
    if as_json:
        output.print_json({"state": state})
    else:
        click.echo(state)


def _wait_drained(client: ControlClient, timeout: float) -> str:
    deadline = time.monotonic() + timeout
    while True:
        found = client.call("GET", "/status", timeout=POLL_TIMEOUT)
        if found["state"] == "drained":
            return "drained"
        if time.monotonic() >= deadline:
            left = {
                tenant_id: tenant["unsettled"]
                for tenant_id, tenant in found["tenants"].items()
                if tenant["unsettled"]
            }
            named = ", ".join(f"{tenant_id}: {count}" for tenant_id, count in sorted(left.items()))
            raise CommandError(
                f"not drained within {timeout:g} s; unsettled by tenant: {named or 'none'}"
            )
        time.sleep(POLL)


@click.command(epilog=example("tenantry stop --wait"))
@with_client
@click.option("--wait/--no-wait", default=False, show_default=True, help="Wait until it has ended.")
@_wait_seconds
def stop(client: ControlClient, *, as_json: bool, wait: bool, timeout: float) -> None:
    """Shut the daemon down gracefully."""
    pid = client.daemon_pid() if wait else None
    client.call("POST", "/stop")
    state = "stopping"
    if wait:
        with output.working("stopping"):
            _wait_gone(client, pid, timeout)
        state = "stopped"
    _print_state(state, as_json=as_json)


def _wait_gone(client: ControlClient, pid: int | None, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    process = _process(pid)
    try:
        while _answers(client):
            if time.monotonic() >= deadline:
                raise CommandError(f"the daemon still runs after {timeout:g} s")
            time.sleep(POLL)
        if process is not None:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([process], [], [], left)[0]:
                raise CommandError(f"the daemon (pid {pid}) still runs after {timeout:g} s")
    finally:
        if process is not None:
            os.close(process)


def _answers(client: ControlClient) -> bool:
    try:
        client.send("GET", "/healthz", timeout=POLL_TIMEOUT)
    except DaemonUnreachableError:
        return False
    except CommandError:
        return True  # late, but there
    return True


def _process(pid: int | None) -> int | None:
    """Open a handle on a process, which never refers to a later process of the same id."""
    if pid is None or not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


@click.command(epilog=example("tenantry ui", 'xdg-open "$(tenantry ui --json | jq -r .url)"'))
@with_client
def ui(client: ControlClient, *, as_json: bool) -> None:
    """Print the address of the operator's page, with a link that logs in once.

    The link is good for a minute and for one browser; the session it begins lasts an hour and may
    do everything. Where no token is asked for, it is the page's plain address. It begins with
    server.public_url, if that is set.
    """
    server = client.call("GET", "/info")["server"]
    code = client.call("POST", "/login-codes")["code"]
    address = _address(server) + (f"/login?code={code}" if code else "")
    if as_json:
        output.print_json({"url": address})
        return
    click.echo(address)


def _address(server: dict[str, Any]) -> str:
    if public_url := server.get("public_url"):
        return f"{public_url}/ui"
    host = _ANYWHERE.get(server["host"], server["host"])
    host = f"[{host}]" if ":" in host else host
    return f"{'https' if server['tls'] else 'http'}://{host}:{server['port']}/ui"
