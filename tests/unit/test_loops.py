"""Loops that run for good leave a heartbeat while they work, and may be silent while they wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from tenantry.actors.runtime_state import RuntimeState
from tenantry.actors.watch import Watch
from tenantry.database.embedded import LONGEST_START, PostgresKeeper
from tenantry.dead_letters.keeper import LONGEST_STEP, DeadLetterKeeper
from tenantry.front.process import LONGEST_LAUNCH, Front
from tenantry.loops import Heartbeat, Loop, PeriodicService
from tenantry.metrics.recorder import Recorder
from tenantry.settings import Settings
from tenantry.terms.keeper import LONGEST_RENEWAL, TermKeeper
from tenantry.unavailable import UnavailableError
from tests.waiting import DEADLINE, eventually

HOURS = 1e6


class Gate:
    """Work that is entered, and comes back when it is let."""

    def __init__(self) -> None:
        self._entered = threading.Event()
        self._let = threading.Event()

    def __call__(self, *_: Any, **__: Any) -> Any:
        self._entered.set()
        assert self._let.wait(DEADLINE)
        return True

    def wait(self) -> None:
        assert self._entered.wait(DEADLINE)

    def open(self) -> None:
        self._let.set()


@contextmanager
def run(loop: Loop, gate: Gate) -> Iterator[None]:
    thread = threading.Thread(target=loop.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        gate.open()
        loop.stop()
        thread.join(DEADLINE)
    assert not thread.is_alive()


def silent(heartbeat: Heartbeat, seconds: float) -> bool:
    """Tell whether it would be taken to hang, were nothing to come for so long."""
    latest = heartbeat._latest
    return latest is not None and heartbeat.overdue(latest[0] + seconds, patience=1) is not None


class Server:
    def __init__(self, gate: Gate) -> None:
        self.start = gate
        self.running = False


class Terms:
    def __init__(self, gate: Gate) -> None:
        self.renew = gate


class Term:
    number = 1

    def renewed(self, _at: float) -> None:
        pass


def scheduled(gate: Gate) -> Any:
    return PeriodicService(gate, every=0.01, longest=7)


def postgres_keeper(gate: Gate) -> Any:
    return PostgresKeeper(cast("Any", Server(gate)), every=0.01)


def term_keeper(gate: Gate) -> Any:
    terms, term = cast("Any", Terms(gate)), cast("Any", Term())
    return TermKeeper(terms, term, lost=pytest.fail, every=0.01)


def letter_keeper(gate: Gate) -> Any:
    nothing = cast("Any", None)
    keeper = DeadLetterKeeper(reprocessing=nothing, index=nothing, queues=nothing, every=0.01)
    keeper.look = gate  # type: ignore[method-assign]
    return keeper


def front(gate: Gate) -> Any:
    made = Front(Settings(), cast("Any", None))

    def launch() -> None:
        gate()
        raise OSError("no more processes")

    made._launch = launch  # type: ignore[method-assign, assignment]
    return made


LOOPS: list[tuple[Callable[[Gate], Any], float]] = [
    (scheduled, 7),
    (postgres_keeper, LONGEST_START),
    (term_keeper, LONGEST_RENEWAL),
    (letter_keeper, LONGEST_STEP),
    (front, LONGEST_LAUNCH),
]


@pytest.mark.parametrize(("make", "patience"), LOOPS)
def test_a_loop_that_does_not_come_back_from_its_work_shows_and_one_that_waits_does_not(
    make: Callable[[Gate], Any], patience: float
) -> None:
    gate = Gate()
    loop = make(gate)
    assert not silent(loop.heartbeat, HOURS)
    with run(loop, gate):
        gate.wait()
        # Sums of binary fractions are rounded: the moment itself would belong to either side.
        assert not silent(loop.heartbeat, patience - 1)
        assert silent(loop.heartbeat, patience + 1)
        gate.open()
        eventually(lambda: not silent(loop.heartbeat, HOURS))


def test_work_that_goes_on_is_given_its_time_anew() -> None:
    steps, beats = [Gate(), Gate()], []

    def work() -> None:
        for step in steps:
            step()
            service.go_on()
            beats.append(service.heartbeat._latest)

    service = PeriodicService(work, every=0.01, longest=7)
    with run(service, steps[1]):
        steps[0].wait()
        before = service.heartbeat._latest
        steps[0].open()
        steps[1].wait()
        assert before is not None
        assert beats[0] is not None
        assert beats[0][0] > before[0]


def test_a_loop_that_others_can_do_without_is_told_of_once_and_ends_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    recorder, later = Recorder(), [0.0]
    watch = Watch(RuntimeState(), observer=recorder, now=lambda: later[0])
    gate, heartbeat = Gate(), Heartbeat()
    thread = threading.Thread(target=gate, daemon=True)
    thread.start()
    gate.wait()
    watch.add("audit", thread, heartbeat, vital=False)
    for hang in (1, 2):
        heartbeat._latest = later[0], 100.0
        for _ in range(30):
            later[0] += 4
            watch.look()
        assert recorder.stuck()["loop"] == hang
        heartbeat.rest()
        watch.look()
    assert watch.liveness() == ()
    told = capsys.readouterr().out
    assert told.count("loop.stuck") == 2
    assert "test_loops.py" in told
    gate.open()
    thread.join(DEADLINE)


def test_work_that_fails_is_done_again_where_somebody_takes_the_error() -> None:
    errors: list[Exception] = []

    def work() -> None:
        raise ValueError("not this time")

    service = PeriodicService(work, every=0.001, at_once=True, on_error=errors.append)
    thread = threading.Thread(target=service.run, daemon=True)
    thread.start()
    eventually(lambda: len(errors) > 2)
    service.stop()
    thread.join(DEADLINE)
    assert not thread.is_alive()
    assert str(errors[0]) == "not this time"


def test_work_that_fails_ends_a_loop_whose_errors_nobody_takes() -> None:
    """Its thread ends, which the watch takes for a reason to start the daemon anew."""

    def work() -> None:
        raise ValueError("not foreseen")

    with pytest.raises(ValueError, match="not foreseen"):
        PeriodicService(work, every=0.001).run()


def test_a_term_whose_renewal_failed_is_not_left_alone_until_the_next_is_due() -> None:
    renewed = threading.Event()

    class Returning:
        """Terms that can't be reached at first."""

        asked = 0

        def renew(self, _number: int) -> bool:
            self.asked += 1
            if self.asked < 3:
                raise UnavailableError("away")
            return True

    class Kept:
        number = 1
        valid = staticmethod(lambda: False)

        def renewed(self, _at: float) -> None:
            renewed.set()

    terms, term = cast("Any", Returning()), cast("Any", Kept())
    keeper = TermKeeper(terms, term, lost=pytest.fail, every=HOURS, again=0.01)
    keeper._turn()
    with run(keeper, Gate()):
        assert renewed.wait(DEADLINE)
    assert terms.asked == 3
