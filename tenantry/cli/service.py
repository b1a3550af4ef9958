"""Commands that need no running daemon: the daemon itself, and the schema."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import click

from tenantry.cli import output
from tenantry.cli.options import config_option, example, load_settings, with_settings
from tenantry.cli.output import FAILED, CommandError
from tenantry.settings import Settings, SettingsError, source


@click.command(
    epilog=example("RABBITMQ_URL=amqp://user:password@broker:5672/ tenantry run --port 8080")
)
@config_option
@click.option("--state-dir", type=click.Path(path_type=Path), help="Where the daemon keeps things.")
@click.option("--workers", type=int, help="Workers of a new tenant, 1 to 64.")
@click.option(
    "--processes", metavar="N", help="Processes that share the work, or auto: one a core."
)
@click.option("--host", help="The address of the HTTP API.")
@click.option("--port", type=int, help="The port of the HTTP API; 0 is any free one.")
@click.option("--log-level", help="debug, info, warning or error.")
@click.option("--log-format", help="auto, console or json.")
@click.pass_context
def run(
    context: click.Context,
    *,
    config: Path | None,
    state_dir: Path | None,
    workers: int | None,
    processes: str | None,
    host: str | None,
    port: int | None,
    log_level: str | None,
    log_format: str | None,
) -> None:
    """Run the daemon in the foreground.

    It runs until SIGTERM, SIGINT or `tenantry stop`. Exits with 0 if all accepted messages were
    finished in time. SIGUSR1 writes every thread's stack to stderr.
    """
    overrides: dict[str, object] = {
        "state_dir": state_dir,
        "workers": workers,
        "processes": int(processes) if processes and processes.isdigit() else processes,
        "server.host": host,
        "server.port": port,
        "log.level": log_level,
        "log.format": log_format,
    }
    load = partial(load_settings, config, overrides=overrides)
    settings = load()

    from tenantry.broker.port import BrokerError
    from tenantry.daemon import serve as serve_alone
    from tenantry.database.errors import DatabaseError
    from tenantry.handlers.resolve import HandlerResolveError
    from tenantry.http.listeners import ListenError
    from tenantry.process.start_checks import StartError
    from tenantry.telemetry.logging import configure, dump_stacks_on_sigusr1

    configure(settings.log.level, settings.log.format)
    dump_stacks_on_sigusr1()
    try:
        if settings.process_count > 1:
            from tenantry.process.reload import LiveSettings
            from tenantry.processes.parent import serve

            live = LiveSettings(settings, load)
            code = serve(live, overrides, config or context.find_root().params.get("config"))
        else:
            code = serve_alone(settings, load)
    except HandlerResolveError as error:
        where = source(config, "handlers", environ=os.environ)
        raise SettingsError(f"handlers.{error.topic}: {error} ({where})") from error
    except (BrokerError, DatabaseError, ListenError, StartError) as error:
        raise CommandError(str(error)) from error
    context.exit(code)


@click.command(epilog=example("tenantry migrate --check || tenantry migrate"))
@with_settings
@click.option("--check", is_flag=True, help="Change nothing; exit with 1 if something is missing.")
@click.option(
    "--rebuild", is_flag=True, help="Throw the read model away and make it anew from the journal."
)
def migrate(settings: Settings, *, as_json: bool, check: bool, rebuild: bool) -> None:
    """Bring the database's schema up to date.

    Harmless if it is up to date already. If `database.url` is empty, the embedded server is started
    for the duration of the command.
    """
    from tenantry.database import migrations
    from tenantry.database.errors import DatabaseError
    from tenantry.journal.port import JournalError

    if check and rebuild:
        raise click.UsageError("--check changes nothing and --rebuild does: choose one")
    rebuilt: int | None = None
    try:
        with database_url(settings) as url:
            with output.working("checking the schema" if check else "migrating"):
                found = migrations.pending(url) if check else migrations.migrate(url)
            if rebuild:
                with output.working("rebuilding the read model"):
                    rebuilt = _rebuild(url)
    except (DatabaseError, JournalError) as error:
        raise CommandError(str(error)) from error
    names = [str(migration) for migration in found]
    if as_json:
        document: dict[str, object] = {"pending" if check else "applied": names}
        output.print_json(document if rebuilt is None else document | {"rebuilt": rebuilt})
    elif not names:
        click.echo("the schema is up to date")
    for name in () if as_json else names:
        click.echo(f"missing: {name}" if check else f"applied: {name}")
    if rebuilt is not None and not as_json:
        click.echo(f"rebuilt the read model of {rebuilt} tenant(s) from the journal")
    if check and names:
        raise click.exceptions.Exit(FAILED)


@contextmanager
def database_url(settings: Settings) -> Iterator[str]:
    """Yield the database's URL; an embedded server runs within the `with` block only."""
    url = settings.database.url.get_secret_value()
    if url:
        yield url
        return
    from tenantry.database.embedded import EmbeddedPostgres

    server = EmbeddedPostgres(settings.postgres_dir)
    try:
        yield server.start()
    finally:
        server.stop()


def _rebuild(url: str) -> int:
    from tenantry.database.pool import Database
    from tenantry.projections.tenants import TenantProjection

    with closing(Database(url, pool_size=2)) as database:
        database.open()
        return TenantProjection().rebuild(database)
