"""The metrics of a running tree of actors, as a scraper reads them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenantry import __version__
from tenantry.broker.adapter import Ring
from tenantry.control.port import SystemStatus
from tenantry.domain.commands import PauseTenant, RequestDeletion, ResizeWorkers, ResumeTenant
from tenantry.messages.port import MessageStoreError, StoreUnavailableError
from tenantry.metrics.collector import SystemCollector
from tenantry.metrics.page import OPENMETRICS, MetricsPage
from tenantry.metrics.recorder import Recorder
from tests.fakes.actors import Tree, running_tree
from tests.fakes.messages import incoming
from tests.scrapes import Scrape, read, read_openmetrics
from tests.waiting import eventually


class Watched:
    """A tree and its metrics."""

    def __init__(self, tree: Tree, recorder: Recorder) -> None:
        self.tree = tree
        self.ring: Ring | None = None
        self.refused: dict[tuple[str, str], int] = {}
        self.keys_age: float | None = None
        self.page = MetricsPage(
            SystemCollector(
                status=self._status,
                recorder=recorder,
                reconnects={"consuming": lambda: 3, "publishing": lambda: 0},
                ring=lambda: self.ring,
                refused=lambda: self.refused,
                keys_age=lambda: self.keys_age,
            )
        )

    def _status(self) -> SystemStatus:
        return self.tree.control.status()

    def scrape(self) -> Scrape:
        return read(self.page.render().body.decode())

    def count_pending(self, counts: dict[str, int] | None) -> None:
        self.tree.runtime.pending = lambda: counts


@pytest.fixture
def watched() -> Iterator[Watched]:
    recorder = Recorder()
    with running_tree(observer=recorder) as tree:
        yield Watched(tree, recorder)


def test_the_embedded_brokers_ring_is_shown_where_there_is_one(watched: Watched) -> None:
    assert "queue_ring" not in watched.page.render().body.decode()
    watched.ring = Ring(bytes=8192, held=1, swept=3)
    scrape = watched.scrape()
    assert scrape.value("tenantry_queue_ring_bytes") == 8192
    assert scrape.value("tenantry_queue_segments_held") == 1
    assert scrape.value("tenantry_messages_swept_total") == 3


def test_how_old_the_providers_keys_are_is_shown_where_there_is_a_provider(
    watched: Watched,
) -> None:
    assert "provider_keys" not in watched.page.render().body.decode()
    watched.keys_age = 12.5
    assert watched.scrape().value("tenantry_provider_keys_age_seconds") == 12.5


def test_refused_calls_are_shown_of_tenants_that_there_are(watched: Watched) -> None:
    watched.tree.create("a")
    watched.refused = {("a", "rate"): 3, ("a", "backlog"): 1, ("gone", "rate"): 9}
    scrape = watched.scrape()
    name = "tenantry_publishes_refused_total"
    assert scrape.value(name, tenant_id="a", reason="rate") == 3
    assert scrape.value(name, tenant_id="a", reason="backlog") == 1
    assert scrape.value(name, tenant_id="gone", reason="rate") is None


def test_a_new_tenants_gauges_are_there_at_once(watched: Watched) -> None:
    watched.tree.create("a", workers=5)
    watched.count_pending({})
    scrape = watched.scrape()
    assert scrape.value("tenant_workers_current", tenant_id="a") == 5
    assert scrape.value("queue_messages_pending", tenant_id="a") == 0
    assert scrape.value("tenantry_consuming", tenant_id="a") == 1
    assert scrape.value("tenantry_unsettled", tenant_id="a") == 0
    assert scrape.processed("a") == (0, 0, 0)
    assert scrape.value("tenantry_tenants", state="active") == 1


def test_resizing_and_pausing_show_when_the_command_returns(watched: Watched) -> None:
    watched.tree.create("a", workers=1)
    watched.tree.execute(ResizeWorkers(tenant_id="a", workers=7))
    assert watched.scrape().value("tenant_workers_current", tenant_id="a") == 7
    watched.tree.execute(PauseTenant(tenant_id="a"))
    paused = watched.scrape()
    assert paused.value("tenant_workers_current", tenant_id="a") == 0
    assert paused.value("tenantry_consuming", tenant_id="a") == 0
    assert paused.value("tenantry_tenants", state="paused") == 1
    assert paused.value("tenantry_tenants", state="active") == 0


def test_pending_is_what_the_broker_counts_and_absent_while_unknown(watched: Watched) -> None:
    watched.tree.create("a")
    watched.tree.create("b")
    watched.count_pending(None)
    assert watched.scrape().value("queue_messages_pending", tenant_id="a") is None
    watched.count_pending({"a": 12})
    assert watched.scrape().value("queue_messages_pending", tenant_id="a") == 12
    assert watched.scrape().value("queue_messages_pending", tenant_id="b") == 0


def test_stored_duplicate_and_dead_lettered_messages_are_counted_apart(watched: Watched) -> None:
    tree = watched.tree
    tree.create("a")
    tree.deliver("a", "1", "2", "3")
    tree.deliver("a", "3", "4")
    tree.subscription("a").deliver([incoming("bad", b"bad")])
    eventually(lambda: watched.scrape().processed("a") == (4, 1, 1))
    scrape = watched.scrape()
    assert scrape.types["messages_processed"] == "counter"
    # Three events of the tenant's life and death: created, provisioned, a dead letter.
    assert scrape.value("tenantry_journal_events_total") == 3
    assert scrape.value("tenantry_journal_append_seconds_count") == 3
    batches = scrape.value("tenantry_batch_messages_count")
    assert batches == scrape.value("tenantry_store_seconds_count")
    assert scrape.value("tenantry_batch_messages_sum") == 6


def test_totals_go_on_after_a_restart_for_paused_tenants_too(watched: Watched) -> None:
    tree = watched.tree
    for tenant_id in ("a", "b"):
        tree.create(tenant_id)
        tree.deliver(tenant_id, "1", "2")
        tree.deliver(tenant_id, "2")
    eventually(lambda: watched.scrape().processed("a") == (2, 1, 0))
    eventually(lambda: watched.scrape().processed("b") == (2, 1, 0))
    tree.execute(PauseTenant(tenant_id="b"))
    tree.stop()
    tree.faults.plan("ensure_topology", StoreUnavailableError("away"), times=2)
    tree.start()
    seen = []
    while not seen or tree.runtime.not_ready():
        scrape = watched.scrape()
        seen += [scrape.processed(one) for one in scrape.labels("tenant_id") if one]
    # Totals that are not known yet are not shown; a counter never starts from zero again.
    assert set(seen) == {(2, 1, 0)}
    eventually(lambda: watched.scrape().processed("b") == (2, 1, 0))


def test_a_deleted_tenants_series_are_gone_when_the_command_returns(watched: Watched) -> None:
    tree = watched.tree
    tree.create("a")
    tree.create("b")
    published = incoming("1")._replace(published_at_ms=time.time_ns() // 1_000_000)
    tree.subscription("a").deliver([published])
    eventually(lambda: watched.scrape().processed("a") == (1, 0, 0))
    name = "tenantry_message_latency_seconds_count"
    assert watched.scrape().value(name, tenant_id="a") == 1
    tree.execute(RequestDeletion(tenant_id="a"))
    assert watched.scrape().labels("tenant_id") == {"", "b"}
    tree.create("a")
    assert watched.scrape().labels("tenant_id") == {"", "a", "b"}
    assert watched.scrape().value(name, tenant_id="a") is None


def test_a_refused_creation_leaves_no_series(watched: Watched) -> None:
    tree = watched.tree
    with pytest.raises(Exception, match="workers"):
        tree.create("a", workers=1000)
    tree.runtime.tenant("seen-by-nobody")
    assert watched.scrape().labels("tenant_id") == {""}


def test_latency_is_measured_for_each_tenant_and_skips_messages_without_a_time(
    watched: Watched,
) -> None:
    tree = watched.tree
    tree.create("a")
    now = time.time_ns() // 1_000_000
    tree.subscription("a").deliver(
        [incoming("1")._replace(published_at_ms=now - 20_000), incoming("2")]
    )
    eventually(lambda: watched.scrape().processed("a")[0] == 2)
    scrape = watched.scrape()
    assert scrape.types["tenantry_message_latency_seconds"] == "histogram"

    def bucket(bound: str) -> float | None:
        return scrape.value("tenantry_message_latency_seconds_bucket", tenant_id="a", le=bound)

    assert (bucket("10.0"), bucket("60.0"), bucket("+Inf")) == (0, 1, 1)
    total = scrape.value("tenantry_message_latency_seconds_sum", tenant_id="a")
    assert total is not None
    assert 20 <= total < 40


def test_what_waits_in_mailboxes_is_shown_by_tenant_and_kind_of_actor(watched: Watched) -> None:
    tree = watched.tree
    tree.create("a", workers=1)
    tree.store.gate.clear()
    tree.deliver("a", *(str(number) for number in range(20)))
    eventually(lambda: tree.store.inside == 1)
    eventually(lambda: watched.scrape().value("tenantry_unsettled", tenant_id="a") == 20)
    scrape = watched.scrape()
    for actor in ("tenant", "consumer", "worker"):
        assert scrape.value("tenantry_mailbox_depth", tenant_id="a", actor=actor) is None
    assert scrape.value("tenantry_mailbox_depth", tenant_id="", actor="supervisor") == 0
    worker = next(iter(tree.runtime.tenant("a").workers.values()))
    worker.tell("not a message of ours")
    depth = watched.scrape().value("tenantry_mailbox_depth", tenant_id="a", actor="worker")
    assert depth == 1


def test_restarts_and_retries_are_counted(watched: Watched) -> None:
    tree = watched.tree
    tree.create("a")
    tree.faults.plan("store a", MessageStoreError("a bug"), times=2)
    tree.faults.plan("store a", StoreUnavailableError("away"), times=3)
    tree.deliver("a", "1")
    eventually(lambda: watched.scrape().processed("a") == (1, 0, 0))
    scrape = watched.scrape()
    assert scrape.value("tenantry_restarts_total", kind="worker") == 2
    assert scrape.value("tenantry_restarts_total", kind="consumer") == 0
    assert scrape.value("tenantry_store_retries_total") == 3
    consumer = tree.runtime.tenant("a").consumer
    assert consumer is not None
    consumer.tell("not a message of ours")
    eventually(lambda: watched.scrape().value("tenantry_restarts_total", kind="consumer") == 1)
    tenant = tree.runtime.tenant("a").ref
    assert tenant is not None
    tenant.tell("not a message of ours")
    eventually(lambda: watched.scrape().value("tenantry_restarts_total", kind="tenant") == 1)
    eventually(
        lambda: (
            (runtime := tree.runtime.tenant("a")).ref not in {None, tenant} and runtime.consuming
        )
    )
    tree.execute(PauseTenant(tenant_id="a"))
    tree.execute(ResumeTenant(tenant_id="a"))
    assert watched.scrape().value("tenantry_restarts_total", kind="worker") == 2


def test_the_daemons_state_is_shown(watched: Watched) -> None:
    scrape = watched.scrape()
    assert scrape.value("tenantry_build_info", version=__version__) == 1
    assert scrape.value("tenantry_ready") == 1
    assert scrape.value("tenantry_state", state="running") == 1
    assert scrape.value("tenantry_state", state="draining") == 0
    assert scrape.value("tenantry_broker_reconnects_total", connection="consuming") == 3
    watched.tree.control.drain()
    eventually(lambda: watched.scrape().value("tenantry_state", state="drained") == 1)
    assert watched.scrape().value("tenantry_ready") == 0


def test_both_formats_say_the_same(watched: Watched) -> None:
    tree = watched.tree
    tree.create("a")
    tree.deliver("a", "1")

    def is_done() -> bool:
        scrape = watched.scrape()
        unsettled = scrape.value("tenantry_unsettled", tenant_id="a")
        return (scrape.processed("a"), unsettled) == ((1, 0, 0), 0)

    eventually(is_done)  # what is shown changes no more
    strict = read_openmetrics(watched.page.render(OPENMETRICS).body.decode())
    plain = watched.scrape()
    own = {
        key: value
        for key, value in plain.samples.items()
        if not key[0].startswith(("process_", "python_"))
    }
    assert own
    assert own.items() <= strict.samples.items()


def test_every_metric_is_described_in_the_guide(watched: Watched) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    for name, kind in watched.scrape().types.items():
        if not name.startswith(("process_", "python_")):
            shown = f"{name}_total" if kind == "counter" else name
            assert f"`{shown}`" in guide, shown
