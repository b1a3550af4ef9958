"""A real Prometheus scrapes a real daemon, and understands all that is asked of it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.acceptance.program import Program
from tests.deployed import RULES, found, metrics_of, panels, queries
from tests.ports import free_port
from tests.scrapes import read
from tests.waiting import DEADLINE, eventually


class Prometheus:
    """A server that scrapes one daemon every second."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=DEADLINE, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def ready(self) -> bool:
        try:
            return self._http.get("/-/ready").is_success
        except httpx.TransportError:
            return False

    def query(self, expr: str) -> list[dict[str, Any]]:
        answer = self._http.get("/api/v1/query", params={"query": expr}).json()
        assert answer["status"] == "success", (expr, answer)
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result


@contextmanager
def scraping(port: int, home: Path) -> Iterator[Prometheus]:
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {"job_name": "tenantry", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
        ],
    }
    file = home / "prometheus.yml"
    file.write_text(json.dumps(config))  # JSON is YAML
    listens = f"127.0.0.1:{free_port()}"
    with (home / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                found("prometheus"), f"--config.file={file}",
                f"--storage.tsdb.path={home / 'data'}", f"--web.listen-address={listens}",
            ],
            stderr=log,
        )  # fmt: skip
    try:
        with closing(Prometheus(f"http://{listens}")) as prometheus:
            eventually(prometheus.ready, what="Prometheus is ready")
            yield prometheus
    finally:
        process.terminate()
        process.wait(DEADLINE)


def samples(port: int) -> set[str]:
    """Give the names of all that a scrape brings."""
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

    # So much can be told without a Prometheus, too.
    eventually(lambda: not empty(), what="every panel but the quiet ones has something to show")
    found("prometheus")
    with scraping(port, tmp_path) as prometheus:
        stored = f'messages_processed_total{{tenant_id="{tenant.id}", outcome="stored"}}'
        eventually(lambda: prometheus.query(f"{stored} == 1"), what="the row is counted")
        # A rate has two scrapes between which it is.
        eventually(lambda: prometheus.query(f"count_over_time({stored}[1m]) > 2"))
        answers = {
            where: prometheus.query(expr.replace("$tenant", tenant.id)) for where, expr in queries()
        }
        assert not {where for where, _ in panels() if not answers[where]}
        assert not prometheus.query('ALERTS{alertstate="firing", severity="critical"}')
