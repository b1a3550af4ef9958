"""Commands about tenants."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final

import click

from tenantry.cli import output
from tenantry.cli.client import ControlClient, tenant_path
from tenantry.cli.importing import import_
from tenantry.cli.limits import limits
from tenantry.cli.options import complete_node, example, tenant_argument, with_client
from tenantry.cli.output import CommandError
from tenantry.cli.statistics import stats
from tenantry.domain.topics import FORM, shown, topic_of

DELETE_TIMEOUT: Final = 300.0

Tenant = dict[str, Any]

_FIELDS: Final[tuple[str, ...]] = (
    "id", "name", "state", "workers", "workers_current", "topics", "partitions", "stream", "queue",
    "node", "epoch", "messages_pending", "version", "created_at", "updated_at",
)  # fmt: skip


@click.group()
def tenant() -> None:
    """Create, change and delete tenants."""


tenant.add_command(import_)
tenant.add_command(limits)
tenant.add_command(stats)


def _show(found: Tenant, *, as_json: bool, renewed_by: str = "`rotate-credentials`") -> None:
    if as_json:
        output.print_json(found)
        return
    fields = {name: found[name] for name in _FIELDS if name in found}
    if settings := found.get("topic_settings"):
        fields["topics"] = shown(settings)
    # Past states lack these fields, and most tenants have none set.
    fields |= {name: found[name] for name in ("parked_at", "trouble") if found.get(name)}
    credentials = found.get("credentials")
    if credentials:
        fields |= credentials
    output.print_fields(fields)
    if credentials:
        output.notice(f"The password is shown this once; {renewed_by} makes a new one.")


def topics_of(given: Iterable[str]) -> list[str | dict[str, Any]]:
    """Read options, each a topic or a list of them. Raises `click.UsageError`."""
    try:
        return [topic_of(one) for several in given for one in several.split(",") if one]
    except ValueError as error:
        raise click.UsageError(str(error)) from error


@tenant.command(
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


@tenant.command(
    epilog=example(
        'tenantry tenant create "Acme Ltd" --id acme --topic events --topic orders:8:ordered'
    )
)
@with_client
@click.argument("name", required=False)
@click.option("--id", "tenant_id", help="The id: a-z, 0-9 and hyphens.  [default: generated]")
@click.option("--name", "name_option", help="The name, in place of the argument.")
@click.option("--workers", type=click.IntRange(1, 64), help="Workers.  [default: as configured]")
@click.option(
    "--topic",
    "--topics",
    "wanted_topics",
    multiple=True,
    metavar=FORM,
    help="A topic; may be repeated.",
)
@click.option("--partitions", type=click.IntRange(1, 64), help="Partitions a topic.  [default: 1]")
def create(
    client: ControlClient,
    *,
    as_json: bool,
    name: str | None,
    tenant_id: str | None,
    name_option: str | None,
    workers: int | None,
    wanted_topics: tuple[str, ...],
    partitions: int | None,
) -> None:
    """Create a tenant; once it is there, it consumes.

    Prints its credentials, which are shown this once. --topics also takes a list, as in
    events,logs. A topic may have its own number of partitions, and keep the order in each, as in
    orders:8:ordered: its messages are then handled and stored strictly as they were published.
    """
    if name and name_option:
        raise click.UsageError("the name is given twice: as an argument and as --name")
    wanted = name or name_option or tenant_id
    if not wanted:
        raise click.UsageError("a name is needed: tenantry tenant create NAME")
    body = {
        "name": wanted,
        "id": tenant_id,
        "workers": workers,
        "topics": topics_of(wanted_topics) or None,
        "partitions": partitions,
    }
    with output.working("creating the tenant"):
        made = client.call(
            "POST", "/tenants", {key: value for key, value in body.items() if value is not None}
        )
    _show(made, as_json=as_json)


@tenant.command("list", epilog=example("tenantry tenant list --json | jq -r '.[].id'"))
@with_client
@click.option("--limit", type=click.IntRange(min=1), help="How many at most.  [default: all]")
def list_(client: ControlClient, *, as_json: bool, limit: int | None) -> None:
    """List the tenants, by id."""
    silent: set[str] = set()

    def note(page: Mapping[str, Any]) -> None:
        silent.update(page["silent_nodes"])

    tenants = list(client.pages("/tenants", limit=limit, seen=note))
    if silent:
        output.notice(f"What runs is not known of tenants on: {', '.join(sorted(silent))}")
    if as_json:
        output.print_json(tenants)
        return
    columns = ["id", "name", "state", "workers", "topics", "partitions", "node"]
    fields = [*columns, "messages_pending", "created_at"]
    columns += ["pending", "created"]
    if any(one.get("trouble") for one in tenants):
        columns.append("trouble")
        fields.append("trouble")
    output.print_table(columns, [[one.get(name) for name in fields] for one in tenants])


@tenant.command(epilog=example("tenantry tenant show acme --at 2026-01-31T12:00:00Z"))
@with_client
@tenant_argument()
@click.option("--at", metavar="TIME|VERSION", help="As of a time (RFC 3339) or a version.")
def show(client: ControlClient, *, as_json: bool, tenant_id: str, at: str | None) -> None:
    """Show a tenant, now or in the past."""
    found = client.call("GET", tenant_path(tenant_id), params={"at": at} if at else None)
    _show(found, as_json=as_json)


@tenant.command(epilog=example("tenantry tenant resize acme 8"))
@with_client
@tenant_argument()
@click.argument("workers", type=click.IntRange(1, 64))
def resize(client: ControlClient, *, as_json: bool, tenant_id: str, workers: int) -> None:
    """Set how many workers store the tenant's messages, 1 to 64; at once, losing nothing."""
    path = tenant_path(tenant_id, "config", "concurrency")
    with output.working("resizing"):
        found = client.call("PUT", path, {"workers": workers})
    _show(found, as_json=as_json)


@tenant.command(epilog=example("tenantry tenant pause acme"))
@with_client
@tenant_argument()
def pause(client: ControlClient, *, as_json: bool, tenant_id: str) -> None:
    """Stop consuming; messages wait in the queues."""
    with output.working("pausing"):
        found = client.call("POST", tenant_path(tenant_id, "pause"))
    _show(found, as_json=as_json)


@tenant.command(epilog=example("tenantry tenant resume acme"))
@with_client
@tenant_argument()
def resume(client: ControlClient, *, as_json: bool, tenant_id: str) -> None:
    """Consume again, after a pause or after the tenant was parked for failing."""
    with output.working("resuming"):
        found = client.call("POST", tenant_path(tenant_id, "resume"))
    _show(found, as_json=as_json)


@tenant.command(epilog=example("tenantry tenant move acme --to ingest-2"))
@with_client
@tenant_argument()
@click.option("--to", "node", metavar="NODE", shell_complete=complete_node, help="The node.")
@click.option("--anywhere", is_flag=True, help="Let placement choose again.")
def move(
    client: ControlClient, *, as_json: bool, tenant_id: str, node: str | None, anywhere: bool
) -> None:
    """Have another node take the tenant over, in order, and keep it there.

    The command returns once the tenant consumes there. If that node is lost, the tenant works on
    another until it is back.
    """
    if bool(node) == anywhere:
        raise click.UsageError("say where to: --to NODE, or --anywhere")
    with output.working("moving"):
        found = client.call("POST", tenant_path(tenant_id, "move"), {"node": node or None})
    _show(found, as_json=as_json)


@tenant.command(
    "rotate-credentials", epilog=example("tenantry tenant rotate-credentials acme --json")
)
@with_client
@tenant_argument()
def rotate_credentials(client: ControlClient, *, as_json: bool, tenant_id: str) -> None:
    """Replace the password of the tenant's broker user, and print the new one this once."""
    found = client.call("POST", tenant_path(tenant_id, "credentials", "rotate"))
    _show(found, as_json=as_json)


@tenant.command(
    "sql-access", epilog=example('psql "$(tenantry tenant sql-access acme --json | jq -r .url)"')
)
@with_client
@tenant_argument()
@click.option("--revoke", is_flag=True, help="Take the access away, and end its sessions.")
def sql_access(client: ControlClient, *, as_json: bool, tenant_id: str, revoke: bool) -> None:
    """Let the tenant read its stored messages with SQL, and nothing else.

    Makes a database role and prints its credentials, this once. Called again, the command replaces
    the password. The role is gone when the tenant is deleted.
    """
    path = tenant_path(tenant_id, "sql-access")
    if revoke:
        client.call("DELETE", path)
        if as_json:
            output.print_json({"tenant_id": tenant_id, "revoked": True})
        else:
            click.echo(f"tenant {output.clean(tenant_id)} has no SQL access")
        return
    found = client.call("POST", path)
    if as_json:
        output.print_json(found)
        return
    output.print_fields(found)
    output.notice("The password is shown this once; the same command makes a new one.")


@tenant.command("consumer-access", epilog=example("tenantry tenant consumer-access acme --json"))
@with_client
@tenant_argument()
@click.option("--revoke", is_flag=True, help="Take the access away, with what waits to be read.")
def consumer_access(client: ControlClient, *, as_json: bool, tenant_id: str, revoke: bool) -> None:
    """Let the tenant's own consumers read its topics on the broker, and nothing else.

    Makes a broker user and prints its credentials, this once. The user reads copies of what is
    published from then on, so that nothing is taken from what the daemon stores. Called again, the
    command replaces the password. The user is gone when the tenant is deleted.
    """
    path = tenant_path(tenant_id, "consumer-access")
    if not revoke:
        _show(client.call("POST", path), as_json=as_json, renewed_by="the same command")
        return
    client.call("DELETE", path)
    if as_json:
        output.print_json({"tenant_id": tenant_id, "revoked": True})
    else:
        click.echo(f"tenant {output.clean(tenant_id)} has no consumer access")


@tenant.command(epilog=example("tenantry tenant asyncapi acme > acme.asyncapi.json"))
@with_client
@tenant_argument()
def asyncapi(client: ControlClient, *, as_json: bool, tenant_id: str) -> None:  # noqa: ARG001
    """Print a tenant's AsyncAPI document: where its messages go, what they look like.

    It is JSON with --json and without, and holds no secret: give it to those who publish or read.
    """
    output.print_json(client.call("GET", tenant_path(tenant_id, "asyncapi.json")))


@tenant.command(epilog=example("tenantry tenant delete acme --retain --yes"))
@with_client
@tenant_argument()
@click.option("--retain", is_flag=True, help="Keep the stored messages readable.")
@click.option("--yes", is_flag=True, help="Don't ask.")
def delete(
    client: ControlClient, *, as_json: bool, tenant_id: str, retain: bool, yes: bool
) -> None:
    """Delete a tenant: its queues, user and credentials, and its stored messages.

    What is in flight is finished first; what waits in the queues is dropped.
    """
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("deleting needs --yes where nobody can be asked")
        lost = "what waits in its queues" if retain else "all its messages"
        if not click.confirm(f"Delete tenant {output.clean(tenant_id)} and {lost}?", err=True):
            raise CommandError("nothing was deleted")
    with output.working("deleting"):
        client.call(
            "DELETE",
            tenant_path(tenant_id),
            params={"retain": "true"} if retain else None,
            timeout=DELETE_TIMEOUT,
        )
    if as_json:
        output.print_json({"id": tenant_id, "state": "deleted", "retained": retain})
    else:
        click.echo(f"deleted tenant {output.clean(tenant_id)}")
