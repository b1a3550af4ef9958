"""`tenantry ui`: the address of the operator's page."""

from __future__ import annotations

from typing import Any, Final

import click

from tenantry.cli import output
from tenantry.cli.client import ControlClient
from tenantry.cli.options import example, with_client

_ANYWHERE: Final = {"0.0.0.0": "localhost", "::": "localhost"}  # noqa: S104 - what is shown for it


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
