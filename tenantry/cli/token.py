"""`tenantry token`: bearer tokens, signed with the configured secret. Needs no daemon."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import click

from tenantry.cli import output
from tenantry.cli.options import example, with_settings
from tenantry.domain import names
from tenantry.domain.limits import parse_span
from tenantry.settings import Settings, SettingsError

_LONGEST: Final = timedelta(days=3650)


def _ttl(_context: click.Context, _parameter: click.Parameter, value: str) -> timedelta:
    """Read a time to live."""
    seconds = parse_span(value)
    if seconds is None or not 0 < seconds <= _LONGEST.total_seconds():
        raise click.BadParameter("must be like 90s, 30m, 1h or 7d, and at most 3650d")
    return timedelta(seconds=seconds)


@click.command(
    epilog=example(
        "tenantry token --tenant acme --ttl 8h",
        'curl -H "Authorization: Bearer $(tenantry token --admin)" http://localhost:8080/tenants',
    )
)
@with_settings
@click.option("--tenant", "tenant_id", metavar="ID", help="For this tenant: its own data only.")
@click.option("--admin", is_flag=True, help="For everything.")
@click.option("--operate", is_flag=True, help="To look, pause, resume, resize, replay and limit.")
@click.option("--read", is_flag=True, help="To look: at everything but secrets and payloads.")
@click.option("--payloads", is_flag=True, help="With --read or --operate: at payloads, too.")
@click.option(
    "--ttl",
    callback=_ttl,
    metavar="TIME",
    default="1h",
    show_default=True,
    help="How long it is valid: 90s, 30m, 1h, 7d.",
)
@click.option("--subject", help="Whose it is; the journal names it.  [default: the scope]")
def token(
    settings: Settings,
    *,
    as_json: bool,
    tenant_id: str | None,
    admin: bool,
    operate: bool,
    read: bool,
    payloads: bool,
    ttl: timedelta,
    subject: str | None,
) -> None:
    """Print a token for the HTTP API on TCP.

    A token can be revoked before it expires only by removing the secret that has signed it from
    security.jwt_secret. The tenant need not exist.
    """
    wanted = {"tenant": tenant_id is not None, "admin": admin, "operate": operate, "read": read}
    words = [word for word, given in wanted.items() if given]
    if len(words) != 1:
        raise click.UsageError("give one of --tenant ID, --admin, --operate and --read")
    if payloads and not (read or operate):
        raise click.UsageError("--payloads goes with --read or --operate")
    if tenant_id is not None and not names.is_tenant_id(tenant_id):
        raise click.BadParameter(
            "must be 1 to 40 of a-z, 0-9 and hyphens, with no hyphen at either end",
            param_hint="--tenant",
        )
    if subject is not None and (not subject.isprintable() or not 0 < len(subject) <= 200):
        raise click.BadParameter("must be 1 to 200 printable characters", param_hint="--subject")
    secrets = settings.security.secrets
    if not secrets:
        raise SettingsError(
            "security.jwt_secret is empty: set it (TENANTRY_JWT_SECRET) to what the daemon has"
        )

    from tenantry.api.schemas.common import format_time
    from tenantry.http.tokens import Scope, Tokens, scope_words

    now = datetime.now(UTC)
    scope = Scope(words[0])
    name = subject or (scope.value if tenant_id is None else f"tenant {tenant_id}")
    written = Tokens(*secrets).issue(
        subject=name, now=now, ttl=ttl, tenant_id=tenant_id, scope=scope, payloads=payloads
    )
    if not as_json:
        click.echo(written)
        return
    output.print_json(
        {
            "token": written,
            "scope": scope_words(scope, payloads=payloads),
            "tenant_id": tenant_id,
            "subject": name,
            "expires_at": format_time(now + ttl),
        }
    )
