"""Which tests stay together on one of xdist's workers, and in what order all are run.

Tests of a file share what it has made for all of them, and those that break a RabbitMQ node share
that node. A test of the whole program waits most of its time: such tests go singly, and evenly
between the others, so that always some wait and some need the processor.
"""

from __future__ import annotations

from collections import defaultdict

import pytest

SHARED = "breakable_node"
"""The fixture whose users stay together: to start a node takes seconds of processor time."""

WHOLE_PROGRAM = "tests/acceptance/"
ENDS_AT = 0.8
"""Where in the order the last test of the whole program stands: the longest should not end it."""


def arrange(items: list[pytest.Item]) -> None:
    """Mark what stays together, and put all in order; the same in each process of a run."""
    units: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        unit = _unit(item)
        units[unit].append(item)
        item.add_marker(pytest.mark.xdist_group(unit))
    waiting = [one for name, one in units.items() if name.startswith(WHOLE_PROGRAM)]
    rest = [one for name, one in units.items() if not name.startswith(WHOLE_PROGRAM)]
    placed = [(ENDS_AT * at / len(waiting), one) for at, one in enumerate(waiting)]
    total, passed = sum(map(len, rest)), 0
    for one in rest:
        # By its middle: a long file's place is where half of it has been run.
        placed.append(((passed + len(one) / 2) / total, one))
        passed += len(one)
    placed.sort(key=lambda place: place[0])
    items[:] = [item for _, unit in placed for item in unit]


def _unit(item: pytest.Item) -> str:
    if SHARED in getattr(item, "fixturenames", ()):
        return SHARED
    if item.nodeid.startswith(WHOLE_PROGRAM):
        return item.nodeid
    return item.nodeid.partition("::")[0]
