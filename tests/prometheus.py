"""A real Prometheus, where `make deploy-tools` has fetched one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.deployed import found
from tests.ports import free_port
from tests.waiting import DEADLINE, eventually


class Prometheus:
    """A server that scrapes daemons every second."""

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

    def alerts(self) -> list[dict[str, Any]]:
        """Give what is pending or fires, with labels and annotations."""
        answer = self._http.get("/api/v1/alerts").json()
        assert answer["status"] == "success", answer
        result: list[dict[str, Any]] = answer["data"]["alerts"]
        return result


@contextmanager
def scraping(nodes: Mapping[str, int], rules: Path, home: Path) -> Iterator[Prometheus]:
    """Scrape daemons at these ports of 127.0.0.1, each by its name as instance."""
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [
            {
                "job_name": "tenantry",
                "static_configs": [
                    {"targets": [f"127.0.0.1:{port}"], "labels": {"instance": name}}
                    for name, port in nodes.items()
                ],
            }
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
