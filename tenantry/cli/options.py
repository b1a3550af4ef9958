"""What commands share: loading the configuration, making a client, common options."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

import click
from click.core import ParameterSource

from tenantry.cli.output import CommandError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from tenantry.broker.port import Credentials
    from tenantry.broker.rabbitmq.tls import Tls
    from tenantry.cli.client import ControlClient
    from tenantry.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])

_SETTINGS: Final = "tenantry.settings"

COMPLETION_TIMEOUT: Final = 1.0

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="PATH",
    help="The configuration file.  [default: $TENANTRY_CONFIG, ./config.toml, "
    "/etc/tenantry/config.toml]",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."
)


def example(*lines: str) -> str:
    """Make the end of a command's help: an example, whose lines are not wrapped."""
    return "\n".join(["\b", "Example:", *(f"  {line}" for line in lines)])


def load_settings(
    config: Path | None, *, client: bool = False, overrides: dict[str, object] | None = None
) -> Settings:
    """Load the configuration; without `config`, from the group's `--config`."""
    from tenantry.settings import load

    context = click.get_current_context(silent=True)
    if config is None and context is not None:
        config = context.find_root().params.get("config")
    return load(config, environ=os.environ, overrides=overrides, client=client)


def with_settings(function: Callable[Concatenate[Settings, P], T]) -> Callable[..., T]:
    """Give a command `--config` and `--json`, and the settings as its first argument."""

    @config_option
    @json_option
    @functools.wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> T:
        config: Any = kwargs.pop("config", None)
        return function(load_settings(config, client=True), *args, **kwargs)

    return command


def with_client(function: Callable[Concatenate[ControlClient, P], T]) -> Callable[..., T]:
    """Give a command `--config` and `--json`, and a client as its first argument."""

    @with_settings
    @functools.wraps(function)
    def command(settings: Settings, /, *args: P.args, **kwargs: P.kwargs) -> T:
        from tenantry.cli.client import ControlClient

        click.get_current_context().meta[_SETTINGS] = settings
        with ControlClient(settings.control_socket) as client:
            return function(client, *args, **kwargs)

    return command


def broker_tls() -> Tls:
    """Return the TLS files (`rabbitmq.ca_file` and so on) in a `with_client` command's settings.

    Raises `CommandError` if they can't be used.
    """
    from tenantry.broker.port import BrokerError
    from tenantry.broker.rabbitmq.tls import Tls

    tls = Tls.of(click.get_current_context().meta[_SETTINGS])
    try:
        if tls.ca_file or tls.cert_file or tls.key_file:
            tls.context()
    except BrokerError as error:
        raise CommandError(str(error)) from error
    return tls


def complete_tenant(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer the ids of all tenants; nothing if the daemon can't be asked."""
    return _offered(
        context,
        incomplete,
        lambda client: [(one["id"], one["name"]) for one in client.pages("/tenants")],
    )


def complete_node(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer the names of the nodes; nothing if the daemon can't be asked."""
    return _offered(
        context,
        incomplete,
        lambda client: [
            (one["name"], one["state"]) for one in client.call("GET", "/nodes")["data"]
        ],
    )


def complete_topic(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer the topics of the tenant named earlier on the line; nothing if none is."""
    from tenantry.cli.client import tenant_path

    # While an option lacks its value, the arguments before it are not parsed yet.
    tenant_id = context.params.get("tenant_id") or next(iter(context.args), None)
    if not tenant_id:
        return []
    return _offered(
        context,
        incomplete,
        lambda client: [(one, "") for one in client.call("GET", tenant_path(tenant_id))["topics"]],
    )


def _offered(
    context: click.Context,
    incomplete: str,
    ask: Callable[[ControlClient], Sequence[tuple[str, str]]],
) -> list[CompletionItem]:
    """Offer the daemon's answers, each with a word of help; nothing if it can't be asked."""
    from click.shell_completion import CompletionItem

    from tenantry.cli.client import ControlClient
    from tenantry.settings import load

    config = context.params.get("config") or context.find_root().params.get("config")
    try:
        settings = load(config, environ=os.environ, client=True)
        with ControlClient(settings.control_socket, timeout=COMPLETION_TIMEOUT) as client:
            found = ask(client)
    except Exception:  # noqa: BLE001 - a shell that completes must not see a traceback
        return []
    return [
        CompletionItem(value, help=told) for value, told in found if value.startswith(incomplete)
    ]


def node_argument() -> Callable[[Any], Any]:
    """Make the argument that names a node."""
    return click.argument("node", metavar="NODE", shell_complete=complete_node)


def tenant_argument(*, many: bool = False, required: bool = True) -> Callable[[Any], Any]:
    """Make the argument that names a tenant, or several."""
    return click.argument(
        "tenant_ids" if many else "tenant_id",
        metavar="[TENANT]..." if many else "TENANT" if required else "[TENANT]",
        nargs=-1 if many else 1,
        required=required and not many,
        shell_complete=complete_tenant,
    )


def credentials_option(function: Function) -> Function:
    """Add `--credentials`, the path of a file that `read_credentials` reads."""
    return click.option(
        "--credentials",
        "credentials_file",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help='A JSON file {"ID": {"username", "password", "amqp_url", "postgres_url" or '
        '"iggy_url"}} to use, so that no password is changed.',
    )(function)


def read_credentials(file: Path) -> dict[str, dict[str, str]]:
    """Read a file of credentials. Raises `click.UsageError`, which quotes none of its content."""
    wanted = ("username", "password")
    urls = ("amqp_url", "postgres_url", "iggy_url")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or not all(
        isinstance(one, dict)
        and all(isinstance(one.get(key), str) for key in wanted)
        and any(isinstance(one.get(key), str) for key in urls)
        for one in found.values()
    ):
        raise click.UsageError(
            f'{file} is no credentials file: {{"ID": {{"username", "password", "amqp_url"}}}}'
        )
    return found


def given_tenants(file: Path | None) -> dict[str, Credentials] | None:
    """Read tenants and their credentials, in place of `--tenants`; None without a file."""
    from tenantry.tenant_client.access import credentials_of

    if file is None:
        return None
    source = click.get_current_context().get_parameter_source("tenants")
    if source is ParameterSource.COMMANDLINE:
        raise click.UsageError("--credentials says which tenants: leave --tenants out")
    found = {tenant_id: credentials_of(one) for tenant_id, one in read_credentials(file).items()}
    if not found:
        raise click.UsageError(f"{file} names no tenant")
    return found
