"""The command `tenantry`: its group, completion for shells, and how failures become exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click

import tenantry
from tenantry.cli import output
from tenantry.cli.audit import audit
from tenantry.cli.broker import broker
from tenantry.cli.consuming import consume
from tenantry.cli.dead_letters import dead_letters
from tenantry.cli.demo import demo
from tenantry.cli.importing import import_ as _import  # noqa: F401 - a command of `tenant`
from tenantry.cli.isolation import verify_isolation
from tenantry.cli.nodes import nodes
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
from tenantry.cli.producing import produce
from tenantry.cli.reading import events, messages
from tenantry.cli.service import migrate, run
from tenantry.cli.system import drain, healthcheck, status, stop
from tenantry.cli.tenants import tenant
from tenantry.cli.token import token
from tenantry.cli.top import top
from tenantry.settings import SettingsError
from tenantry.telemetry.masking import mask_text


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


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(tenantry.__version__, prog_name="tenantry")
@config_option
def cli(config: Path | None) -> None:
    """Take many tenants' messages from RabbitMQ into PostgreSQL, each exactly once.

    Exit codes: 0 done; 1 the operation failed; 2 bad usage or configuration; 3 the daemon can't
    be reached.
    """


for _command in (
    run, demo, migrate, broker, status, top, nodes, tenant, dead_letters, events, messages, produce,
    consume, verify_isolation, audit, healthcheck, drain, stop, token, completion,
):  # fmt: skip
    cli.add_command(_command)


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
    except SettingsError as error:
        return _fail(str(error), BAD_USAGE)
    except OutputError as error:
        output.give_up_output()
        return _fail(str(error), error.exit_code)
    except CommandError as error:
        return _fail(str(error), error.exit_code)
    except BrokenPipeError:
        output.give_up_output()  # the reader has gone, and knows
        return BROKEN_PIPE
    except Exception as error:  # noqa: BLE001 - the last resort: a line, not a traceback
        if os.environ.get("TENANTRY_LOG_LEVEL", "").lower() == "debug":
            sys.stderr.write(mask_text(traceback.format_exc()))
        described = " ".join(mask_text(f"{type(error).__name__}: {error}").split())
        return _fail(f"{described} (TENANTRY_LOG_LEVEL=debug shows where)", FAILED)
    return result if isinstance(result, int) else DONE


def _fail(message: str, code: int) -> int:
    with suppress(OSError):  # where nobody hears it, the exit code is what is left
        click.echo(f"{click.style('error:', fg='red')} {message}", err=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
