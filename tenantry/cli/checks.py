"""The commands that ask whether everything adds up, and whether tenants are isolated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from tenantry.cli import output
from tenantry.cli.client import ControlClient, tenant_path
from tenantry.cli.options import (
    broker_tls,
    credentials_option,
    example,
    read_credentials,
    tenant_argument,
    with_client,
)
from tenantry.cli.output import FAILED, CommandError
from tenantry.cli.producing import address_options, addresses, log_quietly

if TYPE_CHECKING:
    from tenantry.broker.port import TenantTopology
    from tenantry.isolation.port import IsolationReport
    from tenantry.tenant_client.access import TenantAccess

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

AT_ONCE: Final = 10
"""Most tenants whose isolation one call asks the daemon about."""


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


@click.command(
    "verify-isolation",
    epilog=example("tenantry verify-isolation acme globex --credentials credentials.json"),
)
@with_client
@tenant_argument(many=True)
@credentials_option
@click.option(
    "--probe",
    is_flag=True,
    help="Let the daemon try it with users of its own, of the same rights: no password is changed.",
)
@address_options
def verify_isolation(
    client: ControlClient,
    *,
    as_json: bool,
    tenant_ids: tuple[str, ...],
    credentials_file: Path | None,
    probe: bool,
    amqp_address: str | None,
    iggy_address: str | None,
) -> None:
    """Prove that tenants can't reach one another.

    Each tenant (all, if none is named) connects with its own credentials and tries to write and
    read its own objects and those of every other tenant, and to use RabbitMQ's management API. No
    message is left behind or taken. On Apache Iggy, where another user reads, the daemon tries
    reading with users of its own. In the database a role is made for a while that reads with SQL as
    the tenant's role may. Exits with 1 on any leak, and if there is no verdict.

    THE PASSWORDS OF THESE TENANTS ARE ROTATED to get at their credentials, so their producers need
    the new ones afterwards. With --credentials or --probe no password is changed.
    """
    from tenantry.isolation.proof import verify_isolation as verify
    from tenantry.tenant_client.access import ProducerError, every_tenant, installation_of

    log_quietly()
    if probe:
        asked = click.get_current_context().get_parameter_source
        named = [
            one
            for one in ("amqp_address", "iggy_address")
            if asked(one) is ParameterSource.COMMANDLINE
        ]
        if credentials_file is not None or named:
            raise click.UsageError("--probe needs no credentials, and connects from the daemon")
        _finish(_daemons_proof(client, tenant_ids, broker=True), as_json=as_json)
        return
    given = None if credentials_file is None else read_credentials(credentials_file)
    try:
        everybody = every_tenant(client)
        accesses = _accesses(client, everybody, tenant_ids, given)
        say = output.notice if as_json else click.echo
        with output.working("examining"):
            report = verify(
                accesses,
                everybody,
                say=say,
                addresses=addresses(amqp_address, iggy_address),
                management=_management(client),
                installation=installation_of(client),
                tls=broker_tls(),
            )
    except ProducerError as error:
        raise CommandError(str(error)) from error
    rows = _daemons_proof(
        client,
        tuple(one.topology.tenant_id for one in accesses),
        # On Iggy another user reads, whose password is not known here.
        broker=any(one.credentials.iggy_url and one.reader is None for one in accesses),
    )
    found = _report_document(report)
    _add(found, rows)
    _finish(found, as_json=as_json, told=len(report.leaks), denied=len(report.denials))


def _management(client: ControlClient) -> str | None:
    """Ask the daemon for the URL of RabbitMQ's management API; None if its broker has none."""
    broker = client.call("GET", "/info").get("rabbitmq")
    return broker.get("management_url") if broker else None


def _daemons_proof(
    client: ControlClient, tenant_ids: Sequence[str], *, broker: bool
) -> dict[str, Any]:
    """Have the daemon prove isolation, for so few tenants at a time that each call ends in time."""
    found: dict[str, Any] = {
        "isolated": True, "leaks": [], "denials": [], "unjudged": [], "open": [], "checks": []
    }  # fmt: skip
    wanted = list(tenant_ids) or [one["id"] for one in client.pages("/tenants")]
    for start in range(0, len(wanted), AT_ONCE):
        body = {"tenants": wanted[start : start + AT_ONCE], "broker": broker}
        with output.working("examining"):
            _add(found, client.call("POST", "/isolation", body, timeout=TIMEOUT))
    return found


def _add(found: dict[str, Any], part: Mapping[str, Any]) -> None:
    """Add to `found` the proof of other tenants, or of the database's side."""
    found["isolated"] = found["isolated"] and part["isolated"]
    for name in ("leaks", "denials", "unjudged", "checks"):
        found[name] += part[name]
    found["open"] = part["open"]


def _finish(found: Mapping[str, Any], *, as_json: bool, told: int = 0, denied: int = 0) -> None:
    """Print what has not been printed yet; exit with 1 unless the tenants are isolated."""
    if as_json:
        output.print_json(found)
    else:
        for kind, lines in (
            ("LEAK", found["leaks"][told:]),
            ("NO ACCESS", found["denials"][denied:]),
            ("NO VERDICT", found["unjudged"]),
            ("OPEN TO EVERY ROLE", found["open"]),
        ):
            for line in lines:
                click.echo(output.clean(f"{kind}: {line}"))
        if found["isolated"]:
            tenants = len({one["tenant"] for one in found["checks"]})
            click.echo(f"Isolated: {tenants} tenant(s), {len(found['checks'])} attempts")
    if not found["isolated"]:
        raise click.exceptions.Exit(FAILED)


def _accesses(
    client: ControlClient,
    everybody: list[TenantTopology],
    tenant_ids: tuple[str, ...],
    given: Mapping[str, Mapping[str, str]] | None,
) -> list[TenantAccess]:
    from tenantry.tenant_client.access import TenantAccess, credentials_of, rotate

    known = {one.tenant_id: one for one in everybody}
    for tenant_id in tenant_ids:
        if tenant_id not in known:
            client.call("GET", tenant_path(tenant_id))  # raises if there is no such tenant
            raise CommandError(f"tenant {tenant_id} has no objects on the broker now")
        if given is not None and tenant_id not in given:
            raise CommandError(f"the credentials file has no entry for tenant {tenant_id}")
    wanted = list(dict.fromkeys(tenant_ids)) or [
        tenant_id for tenant_id in known if given is None or tenant_id in given
    ]
    if not wanted:
        raise CommandError("there is no tenant to examine")
    return [
        TenantAccess(
            topology=known[tenant_id],
            credentials=rotate(client, tenant_id)
            if given is None
            else credentials_of(given[tenant_id]),
        )
        for tenant_id in wanted
    ]


def _report_document(report: IsolationReport) -> dict[str, Any]:
    from tenantry.api.schemas.checks import Isolation

    return Isolation.of(report).model_dump(exclude={"open"}) | {"isolated": report.holds}
