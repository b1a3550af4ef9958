"""Which tests stay together on one of xdist's workers, and in what order all are run.

Tests of a file share what it has made for all of them, and those that break a RabbitMQ node share
that node. A test of the whole program waits most of its time: such tests go singly, or by file if
they share a daemon, and evenly between the others, so that always some wait and some need the
processor.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

import pytest
from xdist.scheduler import LoadScopeScheduling

NODE: Final = "breakable_node"
"""The fixture whose users stay together: to start a node takes seconds of processor time."""

BREAK_THE_NODE: Final = (
    "tests/integration/test_rabbitmq_node.py::",
    "tests/acceptance/test_faults.py::test_the_ledger_is_clean_after_the_broker[",
)
"""How the names of its users begin: who hands tests out knows their names only."""

NUMBERED: Final = "tenants 1 and 2"
"""What producer and consumer make on RabbitMQ, whose users are the whole node's."""

USE_NUMBERED: Final = (
    "tests/acceptance/test_producing.py::test_the_producer_",
    "tests/acceptance/test_consuming.py::",
    "tests/acceptance/test_demo_broker.py::test_the_demo_adds_up_on_rabbitmq",
)
"""How the names of their tests begin."""

NUMBERED_ON_IGGY: Final = "tenants 1 and 2 on Iggy"
"""The same there, where streams and users are the whole server's."""

USE_NUMBERED_ON_IGGY: Final = (
    "tests/acceptance/test_iggy_produce.py::",
    "tests/acceptance/test_iggy_consume.py::",
)

MADE_UP: Final = "requests that are made up"
"""What makes them up takes seconds to load: one worker does."""

MAKE_REQUESTS_UP: Final = (
    "tests/api/test_made_up_requests.py::",
    "tests/acceptance/test_http_made_up_requests.py::",
)

BROWSER: Final = "tests/browser/"
"""Its tests share a browser. They take longest, and so begin first."""

WHOLE_PROGRAM: Final = "tests/acceptance/"

DAEMON: Final = "lasting"
"""The fixture whose users in a file stay together: it is one daemon for all of them."""

SHARE_A_DAEMON: Final = tuple(
    f"{WHOLE_PROGRAM}test_{name}.py"
    for name in (
        "dead_letters", "drift", "embedded_broker", "embedded_consume", "http_dead_letters",
        "http_hostile", "messages", "nodes_api", "refusals", "sql_access", "tenants",
    )
)  # fmt: skip
ENDS_AT: Final = 0.8
"""Where in the order the last test of the whole program stands: the longest should not end it."""


class Units(LoadScopeScheduling):
    """Hands out tests by what stays together.

    xdist's own way to say so is a mark that it writes into tests' names; there are versions of
    pytest that take no such names, and then nothing stays together, without a word.
    """

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid)


def unit(name: str) -> str:
    """Give what a test stays together with others in, by its name."""
    if name.startswith(BREAK_THE_NODE):
        return NODE
    if name.startswith(USE_NUMBERED):
        return NUMBERED
    if name.startswith(USE_NUMBERED_ON_IGGY):
        return NUMBERED_ON_IGGY
    if name.startswith(MAKE_REQUESTS_UP):
        return MADE_UP
    if name.startswith(BROWSER):
        return BROWSER
    file = name.partition("::")[0]
    return name if name.startswith(WHOLE_PROGRAM) and file not in SHARE_A_DAEMON else file


def arrange(items: list[pytest.Item]) -> None:
    """Put all in order; the same in each process of a run."""
    units: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        name = unit(item.nodeid)
        fixtures = getattr(item, "fixturenames", ())
        assert name == NODE or NODE not in fixtures, item.nodeid
        assert name in SHARE_A_DAEMON or DAEMON not in fixtures, item.nodeid
        units[name].append(item)
    waiting = [one for name, one in units.items() if name.startswith(WHOLE_PROGRAM)]
    first = units.pop(BROWSER, [])
    rest = [one for name, one in units.items() if not name.startswith(WHOLE_PROGRAM)]
    placed = [(ENDS_AT * at / len(waiting), one) for at, one in enumerate(waiting)]
    total, passed = sum(map(len, rest)), 0
    for one in rest:
        # By its middle: a long file's place is where half of it has been run.
        placed.append(((passed + len(one) / 2) / total, one))
        passed += len(one)
    placed.sort(key=lambda place: place[0])
    items[:] = [*first, *(item for _, together in placed for item in together)]
