"""A tenant's statistics over HTTP and on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from tenantry.cli.statistics import BARS, PLAIN, sparkline
from tenantry.metrics.statistics import NONE, Slot
from tests.api.serving import Served, World, serving


@pytest.fixture
def api() -> Iterator[Served]:
    with serving(World()) as served:
        served.world.create("acme")
        yield served


def test_a_tenants_statistics_are_points_and_all_of_them_together(api: Served) -> None:
    minute = api.world.statistics.now.replace(second=0) - timedelta(minutes=1)
    latencies = (90, 10, *NONE[2:])
    slot = Slot(at=minute, stored=100, duplicates=2, backlog=7, latencies=latencies)
    api.world.statistics.slots["acme", False] = [slot]
    found = api.control.get("/tenants/acme/stats?window=2m").json()
    assert (found["tenant_id"], found["step_seconds"]) == ("acme", 60)
    assert (found["start"], found["end"]) == (
        "2026-01-31T11:58:00.000000Z",
        "2026-01-31T12:00:00.000000Z",
    )
    quiet, busy = found["points"]
    assert (quiet["stored"], quiet["rate"], quiet["latency_p50_ms"]) == (0, 0.0, None)
    assert busy == {
        "at": "2026-01-31T11:59:00.000000Z", "stored": 100, "duplicates": 2, "dead_lettered": 0,
        "rate": 1.67, "backlog": 7, "latency_p50_ms": 0.6, "latency_p99_ms": 1.9,
    }  # fmt: skip
    assert (found["total"]["stored"], found["total"]["rate"]) == (100, 0.83)


def test_a_window_is_an_hour_unless_it_is_said_and_what_is_none_is_refused(api: Served) -> None:
    assert len(api.control.get("/tenants/acme/stats").json()["points"]) == 60
    assert len(api.control.get("/tenants/acme/stats?window=7d").json()["points"]) == 168
    for bad in ("", "0m", "59s", "8d", "1y", "-1h", "3600", "1h&step=1", "9999999999d"):
        answer = api.control.get(f"/tenants/acme/stats?window={bad}")
        assert (answer.status_code, bad) == (422, bad)
    assert api.control.get("/tenants/nobody/stats").status_code == 404


def test_a_sparkline_shows_the_highest_of_each_column_and_what_is_not_known_as_blanks() -> None:
    assert sparkline([0, 1, 4, 8, None, 8], BARS, 40) == "▁▂▅█ █"
    assert sparkline([0.0, 0.0], PLAIN, 40) == ".."
    assert sparkline([1, 9, 2, 2, None, None], BARS, 3) == "█▂ "
    assert len(sparkline(list(range(168)), BARS, 40)) == 40
