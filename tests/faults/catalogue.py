"""Every experiment, by name, and how to run one."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests import services_iggy
from tests.faults.experiments import (
    alarm,
    broker,
    cluster,
    commit_cuts,
    database,
    disk_full,
    failover,
    failpoint,
    freeze,
    fuzz,
    kill,
    leader,
    nodes,
    order,
    poison,
    replay,
    retention,
    sigterm,
    start_up,
)
from tests.faults.figures import Figures
from tests.faults.rig import PATIENCE, Broker, Rig, rig
from tests.faults.services import NoRightsError
from tests.iggy_server import PrivateIggy
from tests.rabbitmq_cluster import PrivateCluster
from tests.rabbitmq_node import PrivateNode
from tests.services_rabbitmq import own_cluster, own_node


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """An experiment: `rounds` are those of the promise, `few` are run for every change.

    A thorough run of the tests has `more` rounds, unless `few` is greater.
    """

    run: Callable[[Rig, int], None]
    rounds: int
    few: int
    more: int = 1
    own_broker: bool = False
    own_cluster: bool = False
    own_database: bool = False
    standby: bool = False
    """Whether it has its own database, with a standby."""
    disk_mb: int | None = None
    """The size of its own database's disk, in megabytes."""
    broker: Broker = "rabbitmq"

    @property
    def about(self) -> str:
        """The experiment in one line."""
        return (self.run.__globals__["__doc__"] or "").strip().splitlines()[0]


EXPERIMENTS = {
    "kill": Experiment(run=kill.run, rounds=100, few=1, more=3),
    "failpoint": Experiment(run=failpoint.run, rounds=100, few=3, more=8),
    "sigterm": Experiment(run=sigterm.run, rounds=50, few=1, more=3),
    "start-up": Experiment(run=start_up.run, rounds=50, few=1, more=3),
    "broker": Experiment(run=broker.run, rounds=20, few=1, more=2, own_broker=True),
    "database": Experiment(run=database.run, rounds=20, few=2, more=4, own_database=True),
    "failover": Experiment(run=failover.run, rounds=20, few=1, more=4, standby=True),
    "commit-cuts": Experiment(run=commit_cuts.run, rounds=200, few=3, more=12),
    "fuzz": Experiment(run=fuzz.run, rounds=100_000, few=300, more=3_000),
    "poison": Experiment(run=poison.run, rounds=20_000, few=0),
    "replay": Experiment(run=replay.run, rounds=20, few=1),
    "disk-full": Experiment(
        run=disk_full.run, rounds=6, few=1, more=2, own_database=True, disk_mb=250
    ),
    "leader": Experiment(run=leader.run, rounds=20, few=1),
    "nodes": Experiment(run=nodes.run, rounds=50, few=1, more=7),
    "embedded-nodes": Experiment(run=nodes.run, rounds=20, few=0, more=6, broker="embedded"),
    "order": Experiment(run=order.run, rounds=50, few=1, more=4),
    "order-nodes": Experiment(run=order.on_nodes, rounds=50, few=0, more=6),
    "embedded-order": Experiment(run=order.run, rounds=50, few=0, more=4, broker="embedded"),
    "iggy-order": Experiment(run=order.run, rounds=20, few=0, more=2, broker="iggy"),
    "retention": Experiment(run=retention.run, rounds=20, few=0),
    "retention-nodes": Experiment(run=retention.on_nodes, rounds=20, few=0),
    "embedded-retention": Experiment(run=retention.run, rounds=20, few=0, broker="embedded"),
    "freeze": Experiment(run=freeze.run, rounds=5, few=0),
    "embedded-kill": Experiment(run=kill.run, rounds=20, few=0, broker="embedded"),
    "embedded-failpoint": Experiment(
        run=failpoint.run, rounds=20, few=1, more=8, broker="embedded"
    ),
    "embedded-sigterm": Experiment(run=sigterm.run, rounds=20, few=0, broker="embedded"),
    "embedded-database": Experiment(
        run=database.run, rounds=20, few=1, more=2, own_database=True, broker="embedded"
    ),
    "embedded-failover": Experiment(
        run=failover.run, rounds=20, few=1, more=4, standby=True, broker="embedded"
    ),
    "embedded-fuzz": Experiment(run=fuzz.run, rounds=50_000, few=1_500, broker="embedded"),
    "iggy-kill": Experiment(run=kill.run, rounds=20, few=0, more=1, broker="iggy"),
    "iggy-failpoint": Experiment(run=failpoint.run, rounds=20, few=1, more=4, broker="iggy"),
    "iggy-sigterm": Experiment(run=sigterm.run, rounds=20, few=0, more=1, broker="iggy"),
    "iggy-broker": Experiment(
        run=broker.run, rounds=10, few=1, more=2, broker="iggy", own_broker=True
    ),
    "iggy-nodes": Experiment(run=nodes.run, rounds=20, few=0, more=7, broker="iggy"),
    "cluster": Experiment(run=cluster.run, rounds=10, few=0, more=2, own_cluster=True),
    "alarm": Experiment(run=alarm.run, rounds=5, few=1, own_broker=True),
}


def conduct(
    name: str,
    *,
    rounds: int | None = None,
    seed: int,
    say: Callable[[str], None] = lambda _: None,
    node: PrivateNode | PrivateCluster | PrivateIggy | None = None,
    light: bool = False,
) -> Figures:
    """Run an experiment on the services of this test run, and return its figures.

    An experiment that breaks its broker uses `node`, or else a node of its own. A `light` one has
    fewer messages under way.
    """
    experiment = EXPERIMENTS[name]
    try:
        with ExitStack() as stack:
            if experiment.own_cluster:
                node = stack.enter_context(own_cluster())
            elif not experiment.own_broker:
                node = None
            elif experiment.broker == "iggy":
                node = stack.enter_context(services_iggy.own_server())
            elif node is None:
                node = stack.enter_context(own_node())
            return _conduct(name, experiment, rounds or experiment.rounds, seed, say, node, light)
    except (NoRightsError, services_iggy.NoServerError) as error:
        return Figures(experiment=name, seed=seed, skipped=str(error))


def _conduct(
    name: str,
    experiment: Experiment,
    rounds: int,
    seed: int,
    say: Callable[[str], None],
    node: PrivateNode | PrivateCluster | PrivateIggy | None,
    light: bool,
) -> Figures:
    began = time.monotonic()
    with rig(
        name,
        seed=seed,
        say=say,
        node=node,
        own_database=experiment.own_database,
        disk_mb=experiment.disk_mb,
        standby=experiment.standby,
        broker=experiment.broker,
        light=light,
    ) as made:
        figures = made.figures
        try:
            experiment.run(made, rounds)
            say(f"{name}: the ledger")
            _check(made)
        except Exception as error:  # noqa: BLE001 - any error is the experiment's outcome
            figures.wrong.append(f"{type(error).__name__}: {error}")
        if figures.wrong:
            figures.notes["evidence"] = str(_keep_evidence(made))
        figures.seconds = time.monotonic() - began
        return figures


def _check(made: Rig) -> None:
    """Compare everything with the ledger, stop the daemon gracefully, and check what it leaves."""
    figures, ledger = made.figures, made.ledger
    if not made.program.running:
        made.start_again()
    try:
        ledger.check(timeout=PATIENCE, alive=made.program.check_running)
    finally:
        figures.confirmed = ledger.confirmed
        figures.stored = ledger.audit.stored
        figures.dead_lettered = ledger.audit.dead_lettered
    figures.judge_memory()
    made.count_duplicates()
    made.nothing_is_pending()
    if (code := made.program.stop()) != 0:
        figures.wrong.append(f"the daemon ended with {code}")
    made.queues_are_empty()
    if "Traceback" in made.program.stderr:
        figures.wrong.append("there is a traceback in the log")


def _keep_evidence(made: Rig) -> Path:
    kept = Path(tempfile.mkdtemp(prefix=f"tenantry-{made.figures.experiment}-"))
    for file in (made.program.log, made.record):
        if file.exists():
            shutil.copy(file, kept)
    return kept
