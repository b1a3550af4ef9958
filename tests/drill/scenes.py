"""The drill's scenes, each on services of its own, with messages on their way."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Final

import psycopg

from tests.acceptance.program import Program
from tests.drill.stage import Sight, Stage, stage
from tests.faults.experiments.disk_full import fill
from tests.faults.figures import Figures
from tests.faults.rig import PATIENCE, Rig, rig
from tests.faults.services import small_disk
from tests.ledger import Draft, Ledger, Record, mixed
from tests.ports import free_port
from tests.services_postgres import own_server
from tests.services_rabbitmq import own_node
from tests.waiting import eventually

PAGE: Final = "The page, `/ui`:"
STATUS: Final = "`tenantry status`:"
METRICS: Final = "Metrics:"
ALERTS: Final = "Alerts that fire; in brackets how long it has to last for that:"
LOG: Final = "The log, the first line of each event:"
AFTER: Final = "Afterwards:"

RATE: Final = 40.0
TENANTS: Final = ("acme", "globex")
DISK_MB: Final = 300


def settings(node: str) -> dict[str, str]:
    """Return the settings of a node; its metrics have the same port after a restart."""
    return {"TENANTRY_METRICS_PORT": str(free_port()), "TENANTRY_NODE_NAME": node}


@contextmanager
def services() -> Iterator[Rig]:
    """Yield a daemon that is not started yet, on a broker and a database that scenes may break."""
    with own_node() as node, rig("drill", seed=0, say=print, node=node, own_database=True) as made:
        made.program.settings |= settings("ingest-1")
        yield made


def make_tenants(made: Rig, *names: str) -> None:
    for name in names:
        made.tenants.append(made.program.create(name, id=name, topics=["events"], partitions=2))


@contextmanager
def at_work(made: Rig, **settings: str) -> Iterator[Stage]:
    """Run the daemon for two tenants, whose clients publish the whole time."""
    made.start_again(**settings)
    make_tenants(made, *TENANTS)
    with made.load(rate=RATE), stage(made, {"ingest-1": made.program}) as seen:
        made.ledger.wait_confirmed(100, timeout=PATIENCE)
        yield seen


def sight_of(made: Rig) -> Sight:
    """Make a record in which directories have the names they have in production."""
    places = {str(made.program.directory): "/var/lib/tenantry"}
    if made.postgres is not None:
        places[str(made.postgres.directory / "data")] = "/var/run/postgresql"
    return Sight(places=places)


def in_order_again(
    seen: Stage, sight: Sight, *alerts: str, since: float | None = None, after: str = "its return"
) -> None:
    """Wait for recovery, and record that nothing is lost."""
    since = time.monotonic() if since is None else since
    seen.rig.recover(since)
    took = time.monotonic() - since
    seen.all_is_quiet(*alerts)
    seen.rig.caught_up()
    sight.add(
        AFTER,
        f"ready, and storing what is new, {took:.1f} s after {after}\n"
        + seen.line("daemon.ready")
        + "\n"
        + seen.command("audit", "--quick"),
    )


def broker_down() -> Sight:
    """The broker is killed, and started again."""
    with services() as made, at_work(made) as seen:
        sight = sight_of(made)
        assert made.node is not None
        made.node.kill()
        made.wait_not_ready()
        sight.add(ALERTS, seen.alerts("TenantryNotReady", "TenantryNobodyServes"))
        sight.add(PAGE, seen.page())
        sight.add(STATUS, seen.status())
        sight.add(
            METRICS,
            seen.metrics(
                "tenantry_ready",
                "tenantry_consuming",
                "queue_messages_pending",
                "tenantry_unsettled",
            ),
        )
        sight.add(LOG, seen.log("broker.connection_lost", "daemon.not_ready"))
        made.node.start()
        in_order_again(seen, sight, "TenantryNotReady")
    return sight


def database_down() -> Sight:
    """The database is killed, and started again."""
    with services() as made, at_work(made) as seen:
        sight = sight_of(made)
        assert made.postgres is not None
        made.postgres.kill()
        made.wait_not_ready()
        alerts = ("TenantryNotReady", "TenantryNobodyServes", "TenantryDatabaseAway")
        sight.add(ALERTS, seen.alerts(*alerts))
        sight.add(PAGE, seen.page())
        sight.add(STATUS, seen.status())
        sight.add(
            METRICS,
            seen.metrics(
                "tenantry_ready",
                "tenantry_store_retries_total",
                "queue_messages_pending",
                "tenantry_unsettled",
            ),
        )
        sight.add(LOG, seen.log("daemon.not_ready", "worker.store_unavailable"))
        made.postgres.start()
        in_order_again(seen, sight, "TenantryNotReady")
    return sight


HANDLERS: Final = "default=tests.faults.{0}:handle,events=tests.faults.{0}:handle"
POISONOUS: Final = {
    "TENANTRY_HANDLERS": HANDLERS.format("poisonous"),
    "TENANTRY_RETRY_ATTEMPTS": "2",
    "TENANTRY_RETRY_BACKOFF_SECONDS": "0.1",
}
MENDED: Final = POISONOUS | {
    "TENANTRY_HANDLERS": HANDLERS.format("flaky"),
    "TENANTRY_RETRY_ATTEMPTS": "5",
}


def _poison_of_one(tenant_id: str, number: int) -> Draft:
    made = mixed(tenant_id, number)
    if tenant_id != TENANTS[0]:
        return made
    body = json.dumps({"poison": number}).encode()
    return Draft(
        key=made.key, message_id=made.key, body=body, content_type="application/json", fate="either"
    )


def poison_flood() -> Sight:
    """One tenant's producer sends nothing but messages that its handler fails on."""
    with services() as made:
        sight = sight_of(made)
        with (
            at_work(made, **POISONOUS) as seen,
            made.load(rate=4 * RATE, make=_poison_of_one),
        ):
            alerts = ("TenantryDeadLetters", "TenantryDeadLettersRise")
            sight.add(ALERTS, seen.alerts(*alerts))
            eventually(
                lambda: made.program.runtime(made.tenants[0])["dead_lettered"] > 300,
                what="a flood",
            )
            sight.add("`tenantry top`:", seen.command("top"))
            sight.add(PAGE, seen.page())
            sight.add(
                METRICS,
                seen.metrics(
                    "messages_processed_total",
                    "tenantry_failed_attempts_total",
                    "tenantry_held",
                ),
            )
            sight.add(LOG, seen.log("handler.failed", "message.dead_lettered"))
            listed = seen.command("dead-letters", "list", "acme", "--limit", "3")
            sight.add("Whose, and why:", listed)
        assert made.program.stop() == 0
        made.start_again(**MENDED)
        replayed = made.program.cli("dead-letters", "replay", "acme", "--all")
        assert replayed.code == 0, replayed.stderr
        made.caught_up()
        sight.add(
            "Afterwards, with a handler that was mended:",
            f"$ tenantry dead-letters replay acme --all\n{replayed.stdout}{replayed.stderr}"
            + made.program.cli("audit", "--quick").stdout,
        )
    return sight


def node_lost() -> Sight:
    """One of two nodes is killed, with half of the tenants."""
    with services() as made, Program(made.program.broker, made.program.database_url) as other:
        sight = sight_of(made)
        other.settings |= settings("ingest-2")
        made.start_again()
        make_tenants(made, *TENANTS, "hooli", "initech", "stark", "umbrella")
        other.start()

        def held(program: Program) -> int:
            told = program.get("/status")["tenants"].values()
            return sum(one["consuming"] for one in told)

        eventually(lambda: held(other) and held(other) + held(made.program) == 6, what="spread")
        with (
            made.load(rate=RATE / 2),
            stage(made, {"ingest-1": made.program, "ingest-2": other}) as seen,
        ):
            made.ledger.wait_confirmed(60, timeout=PATIENCE)
            lost = held(other)
            other.kill()
            began = time.monotonic()
            eventually(lambda: held(made.program) == 6, what="all are here")
            took = time.monotonic() - began
            sight.add(ALERTS, seen.alerts("TenantryNodeLost", "TenantryDown"))
            sight.add(PAGE, seen.page())
            sight.add("`tenantry nodes`:", seen.command("nodes"))
            sight.add(METRICS, seen.metrics("tenantry_nodes", "tenantry_ready"))
            sight.add(LOG, seen.log("node.lost", "node.acquired"))
            other.start()
            eventually(lambda: held(other) == lost, what="its share is back")
            sight.add(
                AFTER,
                f"its {lost} tenants consumed on ingest-1 {took:.1f} s after it was killed\n"
                + seen.command("nodes")
                + "\n"
                + seen.command("audit", "--quick"),
            )
            seen.all_is_quiet("TenantryDown")
        assert other.stop() == 0
    return sight


NEWER: Final = (
    "INSERT INTO tenantry.schema_migrations (number, name, checksum)"
    " VALUES (9999, 'of_the_next_version', 'x')"
)


def wrong_deploy() -> Sight:
    """A mistake in the configuration, a missing handler, a program older than the schema."""
    with services() as made, at_work(made) as seen:
        sight = sight_of(made)
        program = made.program
        program.config.write_text("[consumer]\nprefetch_byte = 1000\n")
        program.send(signal.SIGHUP)
        sight.add(
            "A reload with a mistake in `config.toml`; it works on as it was set before:",
            seen.line("daemon.reload_failed"),
        )
        assert program.status_of("/readyz") == 200
        assert program.stop() == 0
        sight.add("A restart with that mistake:", _refused(program, 2))
        sight.add(ALERTS, seen.alerts("TenantryDown"))
        program.config.write_text('[handlers]\n"events" = "shop.handlers:order"\n')
        sight.add("A restart with a handler that is not there:", _refused(program, 2))
        program.config.write_text("")
        with psycopg.connect(program.database_url, autocommit=True) as connection:
            connection.execute(NEWER)
            sight.add("A restart of a program that is older than the schema:", _refused(program, 1))
            connection.execute("DELETE FROM tenantry.schema_migrations WHERE number = 9999")
        began = time.monotonic()
        made.start_again()
        in_order_again(seen, sight, "TenantryDown", since=began, after="a start as before")
    return sight


def _refused(program: Program, code: int) -> str:
    ended = program.run()
    assert ended.code == code, (ended.code, ended.stderr)
    said = ended.complaint.replace(str(program.directory), "/etc/tenantry")
    return f"$ tenantry run\n{said}\n(exit {code})"


@contextmanager
def on_a_small_disk() -> Iterator[Rig]:
    """Yield a daemon that is not started yet, whose embedded database has a disk of its own."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(TemporaryDirectory(prefix="tnt-drill-")))
        program = stack.enter_context(Program(None, ""))
        stack.enter_context(small_disk(program.directory, DISK_MB))
        program.config.touch()
        program.log = home / "stderr.log"  # on another disk, as systemd's journal is
        program.settings |= settings("ingest-1")
        server = own_server(program.directory / "postgres")
        url = server.start()
        server.stop()
        # A killed daemon leaves its server running: take it over, then stop it.
        stack.callback(server.stop)
        stack.callback(server.start)
        record = Record(home / "ledger.jsonl")
        stack.callback(record.close)
        yield Rig(
            program=program,
            ledger=Ledger(database_url=url, record=record),
            figures=Figures(experiment="drill", seed=0, timed=False),
            random=Random(0),
            say=print,
            record=home / "ledger.jsonl",
            broker="embedded",
            beside=url,
        )
        program.kill()


def disk_full() -> Sight:
    """The disk of the embedded database fills up, and gets room again."""
    with on_a_small_disk() as made:
        sight = sight_of(made)
        with at_work(made) as seen:
            filler = made.program.directory / "filler"
            fill(filler, leave=0)
            try:
                made.wait_not_ready()
                alerts = ("TenantryDiskFillsUp", "TenantryNotReady", "TenantryDatabaseAway")
                sight.add(ALERTS, seen.alerts(*alerts))
                sight.add(PAGE, seen.page())
                sight.add(STATUS, seen.status())
                names = ("tenantry_ready", "tenantry_disk_.*", "tenantry_store_retries_total")
                sight.add(METRICS, seen.metrics(*names))
                sight.add(LOG, seen.log("daemon.not_ready", "worker.store_unavailable"))
                assert "No space left on device" in seen.line("worker.store_unavailable")
            finally:
                filler.unlink()
            in_order_again(seen, sight, "TenantryNotReady", after="there was room again")
        assert made.program.stop() == 0
    return sight


SCENES: Final = {
    "broker-down": broker_down,
    "database-down": database_down,
    "poison-flood": poison_flood,
    "node-lost": node_lost,
    "wrong-deploy": wrong_deploy,
    "disk-full": disk_full,
}
