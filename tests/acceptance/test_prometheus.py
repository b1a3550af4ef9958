"""A real Prometheus scrapes a real daemon, and answers every query of dashboards and alerts."""

from __future__ import annotations

from pathlib import Path

import httpx

from tests.acceptance.program import Program
from tests.deployed import RULES, found, metrics_of, panels, queries
from tests.prometheus import scraping
from tests.scrapes import read
from tests.waiting import DEADLINE, eventually


def samples(port: int) -> set[str]:
    """Return the names of all metrics in a scrape."""
    answer = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE, trust_env=False)
    return {name for name, _ in read(answer.text).samples}


def test_every_query_of_the_dashboards_and_alerts_is_answered_and_nothing_is_on_fire(
    program: Program, tmp_path: Path
) -> None:
    program.start(TENANTRY_METRICS_PORT="0")
    tenant = program.create()
    message = {"payload": 1}
    assert program.call("POST", f"/tenants/{tenant.id}/messages", message).status_code == 202
    eventually(lambda: program.runtime(tenant)["stored"] == 1)
    port = program.get("/info")["metrics"]["port"]

    def empty() -> set[str]:
        there = samples(port)
        return {where for where, expr in panels() if not metrics_of(expr) & there}

    # This much can be checked without a Prometheus, too.
    eventually(lambda: not empty(), what="every panel but the quiet ones has something to show")
    found("prometheus")
    with scraping({"one": port}, RULES, tmp_path) as prometheus:
        stored = f'messages_processed_total{{tenant_id="{tenant.id}", outcome="stored"}}'
        eventually(lambda: prometheus.query(f"{stored} == 1"), what="the row is counted")
        # A rate needs two scrapes.
        eventually(lambda: prometheus.query(f"count_over_time({stored}[1m]) > 2"))
        answers = {
            where: prometheus.query(expr.replace("$tenant", tenant.id)) for where, expr in queries()
        }
        assert not {where for where, _ in panels() if not answers[where]}
        assert not prometheus.query('ALERTS{alertstate="firing", severity="critical"}')
