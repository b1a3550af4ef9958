"""The command that shows everything at once, on this machine alone, and checks the counts."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import urlsplit

import click

from tenantry.cli import output
from tenantry.cli.child import ChildDaemon
from tenantry.cli.client import ControlClient, tenant_path
from tenantry.cli.options import config_option, example, json_option
from tenantry.cli.output import CommandError
from tenantry.unixpath import MAX_SOCKET_PATH
from tenantry.urls import address, alternatives

if TYPE_CHECKING:
    from tenantry.producer.run import Tally
    from tenantry.tenant_runs import RunResult

READY_TIMEOUT: Final = 60.0
STALL: Final = 20.0
"""Seconds without a newly stored message after which the demo gives up."""

DRAIN_TIMEOUT: Final = 45.0
POLL: Final = 0.2

CONNECT_TIMEOUT: Final = 5.0
PORTS: Final = {"amqp": 5672, "amqps": 5671, "iggy": 8090, "iggys": 8090}
EMBEDDED: Final = "embedded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The demo's result for one tenant; `stored` counts rows read back through the API."""

    tenant: str
    sent: int
    confirmed: int
    stored: int
    duplicates: int
    dead_lettered: int
    rate: float
    isolated: bool

    @property
    def adds_up(self) -> bool:
        """Whether every message sent is stored, once, and nothing else is."""
        return self.sent == self.confirmed == self.stored and not self.dead_lettered


def _broker_url(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """Check and return a broker's URL, which no error quotes; empty for the embedded broker."""
    from pydantic import SecretStr, ValidationError

    from tenantry.settings.model import Broker

    if value == EMBEDDED:
        return ""
    try:
        Broker(url=SecretStr(value))
    except ValidationError as error:
        raise click.BadParameter(f"it {error.errors()[0]['msg']}, or be {EMBEDDED!r}") from error
    return value


@click.command(epilog=example("tenantry demo --keep"))
@config_option
@json_option
@click.option("--keep", is_flag=True, help="Leave everything running afterwards, until Ctrl-C.")
@click.option(
    "--broker",
    metavar="URL",
    default="embedded",
    show_default=True,
    callback=_broker_url,
    envvar="TENANTRY_DEMO_BROKER",
    show_envvar=True,
    help="A RabbitMQ (amqp://, amqps://) or an Apache Iggy (iggy://, iggys://) in place of the "
    "embedded broker. Others see a command's arguments: a password is better in the environment.",
)
def demo(*, as_json: bool, keep: bool, broker: str, **_config: object) -> None:
    """Show everything at once, and prove that it adds up.

    Needs no configuration and leaves nothing behind: it starts the daemon on a PostgreSQL of its
    own, which is the broker as well, lets 3 tenants publish with their own users, proves that none
    reaches another's objects, checks that every message sent is stored, and drains the daemon.
    Exits with 0 only if nothing was lost or leaked. It reads no configuration: --config is
    accepted, as by every command, and has no effect.

    With --broker the tenants, 1, 2 and 3, are made on that broker and deleted at the end; it must
    not have such tenants yet. RABBITMQ_MANAGEMENT_URL and RABBITMQ_CA_FILE apply to it.
    """
    from tenantry.telemetry.logging import configure

    configure("error")
    _look_for(broker)
    directory = _directory()
    with _terminable():
        try:
            lines, code = _show(directory, broker, as_json=as_json, keep=keep)
        except CommandError:
            output.notice(f"Everything is stopped; its state and logs are kept in {directory}")
            raise
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
    _judge(lines, code, directory)
    shutil.rmtree(directory, ignore_errors=True)
    if not as_json:
        click.echo("Nothing was lost, nothing leaked, everything was drained.")


def _directory() -> Path:
    """Make a directory for the demo's state and logs."""
    try:
        return Path(tempfile.mkdtemp(prefix="tenantry-demo-"))
    except OSError as error:
        raise CommandError(
            f"the demo has no place for its files ({error.strerror or error}): set TMPDIR to a "
            "directory that can be written"
        ) from error


def _look_for(broker: str) -> None:
    """Raise `CommandError` if the broker can't be reached, before anything is started."""
    if not broker:
        return
    parts = urlsplit(alternatives(broker)[0])
    if parts.scheme.startswith("iggy"):
        from tenantry.broker.iggy.client import library
        from tenantry.broker.port import BrokerError

        try:
            library()
        except BrokerError as error:
            raise CommandError(str(error)) from error
    place = parts.hostname or "", parts.port or PORTS[parts.scheme]
    try:
        socket.create_connection(place, CONNECT_TIMEOUT).close()
    except OSError as error:
        raise CommandError(
            f"no broker answers at {address(*place)} ({error.strerror or error}): start it, or "
            "correct --broker"
        ) from error


def _show(directory: Path, broker: str, *, as_json: bool, keep: bool) -> tuple[list[Line], int]:
    """Run the demo, and stop all it has started; return its lines and the daemon's exit status."""
    say = output.notice if as_json else click.echo
    with ExitStack() as stack:
        daemon = ChildDaemon(directory, broker)
        stack.callback(_stop_database, directory / "postgres")
        stack.callback(daemon.stop, DRAIN_TIMEOUT)
        if broker:
            stack.callback(_remove_tenants, daemon)
        try:
            with _stage("Starting PostgreSQL and the daemon"):
                daemon.start()
                daemon.wait_ready(READY_TIMEOUT)
            lines = _publish_and_count(daemon, say)
            _print(lines, as_json=as_json)
            if keep:
                _keep(daemon)
            if broker:
                with _stage("Deleting the tenants"):
                    _remove_tenants(daemon)
            with _stage("Draining the daemon"):
                code = daemon.drain(DRAIN_TIMEOUT)
            if code:
                output.notice(daemon.last_words())
        except CommandError:
            output.notice(f"The last lines of {daemon.log}:\n{daemon.last_words()}")
            raise
    return lines, code


def _publish_and_count(daemon: ChildDaemon, say: Callable[[str], None]) -> list[Line]:
    from tenantry.producer.run import ProducerOptions, produce
    from tenantry.tenant_client.access import ProducerError

    options = ProducerOptions()
    with daemon.client() as client:
        try:
            with output.working("publishing", options.messages) as advance:
                result = produce(options, client, say=say, progress=advance)
        except ProducerError as error:
            raise CommandError(str(error)) from error
        with _stage("Waiting until everything is stored"):
            ended = _wait_stored(daemon, client, result)
        return [
            _line(client, result, tenant_id, ended[tenant_id] - result.began)
            for tenant_id in result.tallies
        ]


def _wait_stored(
    daemon: ChildDaemon, client: ControlClient, result: RunResult[Tally]
) -> dict[str, float]:
    """Wait until each tenant's messages are stored or dead letters; return when each was done.

    If no count rises for too long, the wait ends: the summary shows what is missing.
    """
    ended: dict[str, float] = {}
    best = -1
    moved = time.monotonic()
    while len(ended) < len(result.tallies):
        daemon.check()
        now = time.monotonic()
        tenants = client.call("GET", "/status")["tenants"]
        done = {tenant_id: _settled(tenants.get(tenant_id, {})) for tenant_id in result.tallies}
        for tenant_id, tally in result.tallies.items():
            if done[tenant_id] >= tally.confirmed:
                ended.setdefault(tenant_id, now)
        if sum(done.values()) > best:
            best, moved = sum(done.values()), now
        elif now - moved > STALL:
            output.notice(f"nothing has been stored for {STALL:g} s")
            return {tenant_id: ended.get(tenant_id, moved) for tenant_id in result.tallies}
        time.sleep(POLL)
    return ended


def _settled(tenant: dict[str, Any]) -> int:
    return int(tenant.get("stored", 0)) + int(tenant.get("dead_lettered", 0))


def _line(client: ControlClient, result: RunResult[Tally], tenant_id: str, seconds: float) -> Line:
    tally = result.tallies[tenant_id]
    runtime = client.call("GET", "/status")["tenants"].get(tenant_id, {})
    rows = client.pages("/messages", params={"tenant_id": tenant_id})
    stored = len({row["id"] for row in rows})
    broken = () if result.isolation is None else result.isolation.checks
    return Line(
        tenant=tenant_id,
        sent=tally.sent,
        confirmed=tally.confirmed,
        stored=stored,
        duplicates=runtime.get("duplicates", 0),
        dead_lettered=runtime.get("dead_lettered", 0),
        rate=stored / max(seconds, 0.001),
        isolated=result.isolation is not None
        and all(one.holds for one in broken if tenant_id in (one.tenant_id, one.owner)),
    )


def _print(lines: list[Line], *, as_json: bool) -> None:
    if as_json:
        output.print_json(
            {
                "tenants": [asdict(one) | {"rate": round(one.rate, 1)} for one in lines],
                "sent": sum(one.sent for one in lines),
                "stored": sum(one.stored for one in lines),
            }
        )
        return
    columns = ("tenant", "sent", "confirmed", "stored", "duplicates", "dead letters", "stored/s")
    click.echo()
    output.print_table(
        (*columns, "isolated"),
        [list(asdict(one).values()) for one in lines],
    )
    total = f"{sum(one.sent for one in lines):,} sent, {sum(one.stored for one in lines):,} stored"
    click.echo(f"\nTotal: {total}")


def _judge(lines: list[Line], code: int, directory: Path) -> None:
    """Raise `CommandError` unless everything adds up."""
    wrong = [f"tenant {one.tenant}: sent and stored differ" for one in lines if not one.adds_up]
    wrong += [f"tenant {one.tenant} is not isolated" for one in lines if not one.isolated]
    if code:
        wrong.append(f"the daemon exited with status {code}")
    if wrong:
        raise CommandError(f"{'; '.join(wrong)}; state and logs are kept in {directory}")


def _keep(daemon: ChildDaemon) -> None:
    with daemon.client() as client:
        server = client.call("GET", "/info")["server"]
    # A path too long for that key is found by the state directory.
    fits = len(os.fsencode(daemon.socket)) <= MAX_SOCKET_PATH
    key, place = (
        ("TENANTRY_CONTROL_SOCKET", daemon.socket)
        if fits
        else ("TENANTRY_STATE_DIR", daemon.socket.parent)
    )
    output.notice(
        f"\nEverything keeps running until Ctrl-C.\n"
        f"  HTTP API         http://{address(server['host'], server['port'])}/docs\n"
        f"  control socket   {daemon.socket}\n"
        f"  daemon's log     {daemon.log}\n"
        f"  try              {key}={shlex.quote(str(place))} tenantry status"
    )
    with suppress(KeyboardInterrupt):
        while daemon.running:  # `tenantry stop` may end it, too
            time.sleep(0.5)


def _remove_tenants(daemon: ChildDaemon) -> None:
    """Delete the daemon's tenants, so that nothing of them is left on the user's broker."""
    if not daemon.running:
        return
    try:
        with daemon.client() as client:
            for tenant in list(client.pages("/tenants")):
                if tenant["state"] != "deleted":
                    client.call("DELETE", tenant_path(tenant["id"]))
    except CommandError as error:
        output.notice(f"The broker still has tenants of this demo: {error}")


def _stop_database(directory: Path) -> None:
    """Stop the embedded server if the daemon has left it behind."""
    if not (directory / "postmaster.pid").exists():
        return
    from tenantry.database.embedded import EmbeddedPostgres
    from tenantry.database.errors import DatabaseError

    server = EmbeddedPostgres(directory)
    try:
        server.start()  # takes over the running server
        server.stop()
    except DatabaseError as error:
        output.notice(str(error))


@contextmanager
def _stage(description: str) -> Iterator[None]:
    """Show on stderr what is under way: a spinner on a terminal, a line elsewhere."""
    began = time.monotonic()
    with output.working(description):
        yield
    output.notice(f"{description}: done in {time.monotonic() - began:.1f} s")


@contextmanager
def _terminable() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end the demo in order, as Ctrl-C does."""

    def end(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    wanted = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, end) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
