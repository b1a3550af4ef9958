"""How many workers a tenant has follows its load, within its limits."""

from __future__ import annotations

from itertools import pairwise

from tenantry.actors.autoscaling import CALM_SECONDS, FIRST_HOLD, Autoscaler, Resizing, Sample
from tenantry.actors.messages import Reminder
from tenantry.actors.runtime_state import BusyMeter
from tenantry.actors.supervision import tell
from tenantry.domain.commands import ChangeLimits
from tenantry.domain.events import WorkersResized
from tenantry.domain.limits import Limits
from tests.fakes.actors import Tree
from tests.waiting import eventually

LIMITS = Limits(workers_min=1, workers_max=16)
STEP = 5.0


class Load:
    """A tenant as the autoscaler sees it, whose workers are resized as it says."""

    def __init__(self, workers: int, limits: Limits = LIMITS) -> None:
        self.limits = limits
        self.workers = workers
        self.at = self.busy = 0.0
        self.settled = 0
        self.scaler = Autoscaler()
        self.look(None, 0, 0)

    def look(self, backlog: int | None, rate: float, busy: float) -> Resizing | None:
        """Let a while pass with so many messages stored a second, and so many workers busy."""
        self.at += STEP
        self.settled += int(rate * STEP)
        self.busy += busy * STEP
        wanted = self.scaler.look(
            Sample(
                at=self.at, workers=self.workers, busy_seconds=self.busy,
                settled=self.settled, backlog=backlog,
            ),
            self.limits,
        )  # fmt: skip
        if wanted is not None:
            self.workers = wanted.workers
        return wanted


def test_workers_are_doubled_while_all_are_busy_and_messages_wait() -> None:
    load = Load(1)
    for workers in (1, 2, 4, 8):
        assert load.look(100_000, 100 * workers, workers) is not None
    assert load.workers == 16
    assert load.look(100_000, 1600, 16) is None


def test_workers_that_bring_nothing_are_taken_back_and_tried_again_ever_later() -> None:
    load = Load(2)
    tried = [
        load.at
        for _ in range(200)
        if (wanted := load.look(100_000, 200, load.workers)) and wanted.workers == 4
    ]
    assert load.workers in (2, 4)
    pauses = [later - earlier for earlier, later in pairwise(tried)]
    assert pauses[0] >= FIRST_HOLD
    assert pauses == sorted(pauses)
    assert pauses[-1] > pauses[0]


def test_why_they_are_taken_back_is_said() -> None:
    load = Load(2)
    load.look(100_000, 200, 2)
    back = load.look(100_000, 210, 4)
    assert back is not None
    assert back.reason.startswith("4 workers stored 210 messages/s, 2 had stored 200")


def test_a_burst_that_is_over_proves_nothing_against_more_workers() -> None:
    load = Load(2)
    load.look(100_000, 200, 2)
    assert load.look(0, 100, 1) is None
    assert load.workers == 4


def test_calm_has_to_last_before_workers_are_taken_away() -> None:
    load = Load(8)
    looks = 0
    while load.workers == 8:
        load.look(0, 50, 1.4)
        looks += 1
    assert looks * STEP >= CALM_SECONDS
    assert load.workers == 2
    load = Load(8)
    for _ in range(10):
        for _ in range(int(CALM_SECONDS / STEP) - 1):
            assert load.look(0, 50, 1.4) is None
        load.look(0, 50, 6)


def test_what_keeps_workers_busy_and_is_not_done_yet_says_nothing() -> None:
    load = Load(1)
    for _ in range(10):
        assert load.look(100_000, 0, 1) is None
    assert load.look(100_000, 100, 1) is not None


def test_nothing_is_done_while_the_broker_s_count_is_not_known() -> None:
    load = Load(4)
    assert not any(load.look(None, 100, busy) for busy in (4, 4, 0, 0, 0) * 10)


def test_another_s_resize_begins_a_new_comparison() -> None:
    load = Load(2)
    load.look(100_000, 200, 2)
    load.workers = 3
    assert load.look(100_000, 200, 3) is None


def test_the_supervisor_resizes_and_the_journal_tells_why(tree: Tree) -> None:
    tree.create("a", workers=1)
    tree.create("fixed", workers=1)
    tree.execute(ChangeLimits(tenant_id="a", changes={"workers_max": 4}))
    tree.runtime.pending = lambda: {"a": 1000, "fixed": 1000}
    for tenant_id in ("a", "fixed"):
        tree.runtime.tenant(tenant_id).busy = AlwaysBusy()
    tell(tree.supervisor, Reminder.LOOK_AT_LOAD)

    def look() -> bool:
        tree.runtime.tenant("a").stored += 1
        tell(tree.supervisor, Reminder.LOOK_AT_LOAD)
        return "WorkersResized" in tree.events("a")

    eventually(look)
    # The first of them: a look more, and it may be resized again by what the machine has done.
    stream = tree.journal.read_stream("tenant-a")
    resized = next(one for one in stream if isinstance(one.event, WorkersResized))
    assert resized.metadata.actor == "autoscaler"
    assert (resized.event.previous, resized.event.workers) == (1, 2)
    assert "messages wait" in resized.event.reason
    assert "WorkersResized" not in tree.events("fixed")


class AlwaysBusy(BusyMeter):
    def seconds(self, now: float) -> float:
        return now * 8
