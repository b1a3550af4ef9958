"""The command that prints a shell's completion script."""

from __future__ import annotations

import click

from tenantry.cli.failures import CommandError
from tenantry.cli.options import config_option, example


@click.command(
    epilog=example(
        "source <(tenantry completion bash)",
        "tenantry completion fish > ~/.config/fish/completions/tenantry.fish",
    )
)
@config_option
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str, **_config: object) -> None:
    """Print the completion script for a shell."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise CommandError(f"there is no completion for {shell}")
    click.echo(
        found(
            click.get_current_context().find_root().command, {}, "tenantry", "_TENANTRY_COMPLETE"
        ).source()
    )
