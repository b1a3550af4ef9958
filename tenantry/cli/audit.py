"""The command that audits tenants' counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from tenantry.cli import output
from tenantry.cli.client import ControlClient, tenant_path
from tenantry.cli.options import example, tenant_argument, with_client
from tenantry.cli.output import FAILED

TIMEOUT: Final = 100.0
"""Seconds for a call: the daemon counts rows for a minute at most, then ends the page."""

_FIELDS: Final = (
    "tenant_id", "accepted", "stored", "duplicates", "dead_lettered", "in_flight", "rows",
    "waiting",
)  # fmt: skip
_COLUMNS: Final = (
    "tenant", "accepted", "stored", "duplicates", "dead-lettered", "in flight", "rows", "waiting",
    "dead letters", "adds up",
)  # fmt: skip


@click.command(epilog=example("tenantry audit acme", "tenantry audit --json | jq .balanced"))
@with_client
@tenant_argument(required=False)
@click.option("--quick", is_flag=True, help="Count no rows; all else is compared.")
def audit(client: ControlClient, *, as_json: bool, tenant_id: str | None, quick: bool) -> None:
    """Tell whether it adds up: accepted = stored + duplicates + dead-lettered + in flight.

    The counts of each TENANT (all, if none is named) are compared with its rows, its list of dead
    letters and the broker's queues, also while messages pour in. Exits with 1 if something differs,
    and says what. Counting takes a second for some three million rows.
    """
    params = {"quick": "true"} if quick else {}
    with output.working("auditing"):
        if tenant_id is None:
            found = list(client.pages("/audit", params=params, timeout=TIMEOUT))
        else:
            path = tenant_path(tenant_id, "audit")
            found = [client.call("GET", path, params=params, timeout=TIMEOUT)]
    balanced = all(one["balanced"] for one in found)
    if as_json:
        output.print_json({"balanced": balanced, "tenants": found})
    else:
        _print(found, quick=quick)
    if not balanced:
        raise click.exceptions.Exit(FAILED)


def _print(found: Sequence[Mapping[str, Any]], *, quick: bool) -> None:
    if not found:
        click.echo("there are no tenants to audit")
        return
    output.print_table(
        _COLUMNS,
        [
            (*(one[name] for name in _FIELDS), one["dead_letters"]["listed"], one["balanced"])
            for one in found
        ],
    )
    for one in found:
        removed = one["removed_by"]
        if any(removed.values()):
            output.notice(
                f"tenant {one['tenant_id']}: removed by its retention: {removed['age']:,} rows that"
                f" were too old, {removed['rows']:,} that were too many"
            )
        for difference in one["differences"]:
            click.echo(output.clean(difference["text"]))
        if one["uncounted"] and not quick:
            output.notice(output.clean(one["uncounted"]))
        if one["moving"]:
            output.notice(
                f"tenant {one['tenant_id']}: too much moves to compare the queues; ask again"
            )
