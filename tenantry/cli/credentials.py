"""Tenants' credentials given to a command in a file, so that it need not make new ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from tenantry.broker.port import Credentials

Function = TypeVar("Function", bound=Callable[..., Any])


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
