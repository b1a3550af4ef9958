"""The command `tenantry`: its group, completion for shells, and how failures become exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Final

import click

import tenantry
from tenantry.cli import output
from tenantry.cli.options import config_option, example
from tenantry.cli.output import (
    BAD_USAGE,
    BROKEN_PIPE,
    DONE,
    FAILED,
    INTERRUPTED,
    CommandError,
    OutputError,
)

COMMANDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "run": "service:run",
        "demo": "demo:demo",
        "migrate": "service:migrate",
        "broker": "broker:broker",
        "status": "system:status",
        "top": "top:top",
        "nodes": "nodes:nodes",
        "ui": "system:ui",
        "tenant": "tenants:tenant",
        "dead-letters": "dead_letters:dead_letters",
        "events": "reading:events",
        "messages": "reading:messages",
        "produce": "producing:produce",
        "consume": "consuming:consume",
        "verify-isolation": "checks:verify_isolation",
        "audit": "checks:audit",
        "healthcheck": "system:healthcheck",
        "drain": "system:drain",
        "stop": "system:stop",
        "token": "token:token",
        "completion": "main:completion",
    }
)
"""The module and function of each command, by the command's name."""


class Commands(click.Group):
    """A group that imports a command only when it is asked for, so that the program starts fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Give the names of all commands."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(f"tenantry.cli.{module}"), name)
        return command


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


@click.group(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(tenantry.__version__, prog_name="tenantry")
@config_option
def cli(config: Path | None) -> None:
    """Take many tenants' messages from RabbitMQ into PostgreSQL, each exactly once.

    Exit codes: 0 done; 1 the operation failed; 2 bad usage or configuration; 3 the daemon can't
    be reached.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and give its exit code; failures become one line on stderr."""
    output.prepare()
    try:
        result = cli.main(
            args=None if argv is None else list(argv), prog_name="tenantry", standalone_mode=False
        )
        sys.stdout.flush()
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except click.ClickException as error:
        with suppress(OSError):
            error.show()
        return error.exit_code
    except OutputError as error:
        output.give_up_output()
        return _fail(str(error), error.exit_code)
    except CommandError as error:
        return _fail(str(error), error.exit_code)
    except BrokenPipeError:
        output.give_up_output()  # the reader has gone: there is nothing to report
        return BROKEN_PIPE
    except Exception as error:  # noqa: BLE001 - the last resort: a line, not a traceback
        if _is_about_settings(error):
            return _fail(str(error), BAD_USAGE)
        from tenantry.telemetry.logging import mask_text

        if os.environ.get("TENANTRY_LOG_LEVEL", "").lower() == "debug":
            sys.stderr.write(mask_text(traceback.format_exc()))
        described = " ".join(mask_text(f"{type(error).__name__}: {error}").split())
        return _fail(f"{described} (TENANTRY_LOG_LEVEL=debug shows where)", FAILED)
    return result if isinstance(result, int) else DONE


def _is_about_settings(error: Exception) -> bool:
    """Tell whether an error is about the settings; if their module is not loaded, it is not."""
    settings = sys.modules.get("tenantry.settings")
    return settings is not None and isinstance(error, settings.SettingsError)


def _fail(message: str, code: int) -> int:
    with suppress(OSError):  # if stderr can't be written to, only the exit code tells
        click.echo(f"{click.style('error:', fg='red')} {message}", err=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
