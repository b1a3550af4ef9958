"""Who gets which format, where, and with what right."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from prometheus_client import REGISTRY, Gauge
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tenantry.api.routes.metrics import alone
from tenantry.http.server import ApiServer
from tenantry.http.tokens import Tokens
from tenantry.metrics.page import OPENMETRICS, OPENMETRICS_TYPE, TEXT_TYPE, MetricsPage
from tests.api.serving import SECRET, World, serving
from tests.scrapes import read, read_openmetrics
from tests.waiting import DEADLINE

PROMETHEUS_ACCEPT = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


class One(Collector):
    """A single gauge."""

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("one", "The number one", value=1)


@pytest.fixture
def page() -> MetricsPage:
    return MetricsPage(One())


@pytest.mark.parametrize(
    "accept", ["", "*/*", "text/plain", "text/plain;version=0.0.4", f"{OPENMETRICS};q=0", ",;,"]
)
def test_the_text_format_is_for_everybody(page: MetricsPage, accept: str) -> None:
    found = page.render(accept)
    assert found.content_type == TEXT_TYPE == "text/plain; version=0.0.4; charset=utf-8"
    assert read(found.body.decode()).value("one") == 1


@pytest.mark.parametrize("accept", [OPENMETRICS, PROMETHEUS_ACCEPT, f"text/plain , {OPENMETRICS}"])
def test_openmetrics_is_for_who_accepts_it(page: MetricsPage, accept: str) -> None:
    found = page.render(accept)
    assert found.content_type == OPENMETRICS_TYPE
    assert read_openmetrics(found.body.decode()).value("one") == 1


@pytest.mark.parametrize("accept", ["gzip", "deflate, GZIP;q=0.5"])
def test_a_page_is_compressed_for_who_accepts_it(page: MetricsPage, accept: str) -> None:
    found = page.render("", accept)
    assert found.encoding == "gzip"
    assert read(gzip.decompress(found.body).decode()).value("one") == 1


@pytest.mark.parametrize("accept", ["", "identity", "gzip;q=0", "br, deflate"])
def test_a_page_is_plain_for_all_others(page: MetricsPage, accept: str) -> None:
    found = page.render("", accept)
    assert found.encoding is None
    assert read(found.body.decode()).value("one") == 1


def test_process_and_python_are_measured_and_nothing_global_is(page: MetricsPage) -> None:
    foreign = Gauge("a_librarys_own_gauge", "Registered globally")
    scrape = read(page.render().body.decode())
    REGISTRY.unregister(foreign)
    for name in ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"):
        assert scrape.value(name)
    assert scrape.types["python_info"] == "gauge"
    assert scrape.types["python_gc_collections"] == "counter"
    assert "a_librarys_own_gauge" not in scrape.types


def test_pages_do_not_share_anything() -> None:
    assert read(MetricsPage().render().body.decode()).value("one") is None
    assert read(MetricsPage(One()).render().body.decode()).value("one") == 1


def _bearer(tenant_id: str | None = None) -> dict[str, str]:
    token = Tokens(SECRET).issue(
        subject="ann", now=datetime.now(UTC), ttl=timedelta(hours=1), tenant_id=tenant_id
    )
    return {"Authorization": f"Bearer {token}"}


def test_on_the_server_the_metrics_are_for_admins(page: MetricsPage) -> None:
    with serving(World(jwt_secret=SECRET, metrics=page)) as api:
        assert api.tcp.get("/metrics").status_code == 401
        assert api.tcp.get("/metrics", headers=_bearer("acme")).status_code == 403
        answer = api.tcp.get("/metrics", headers=_bearer())
        assert answer.headers["content-type"] == TEXT_TYPE
        assert read(answer.text).value("one") == 1
        answer = api.control.get("/metrics", headers={"Accept": PROMETHEUS_ACCEPT})
        assert answer.headers["content-type"] == OPENMETRICS_TYPE
        assert read_openmetrics(answer.text).value("one") == 1


@pytest.fixture
def port(page: MetricsPage) -> Iterator[httpx.Client]:
    """A client of the port for metrics alone."""
    server = ApiServer(alone(page), tcp=("127.0.0.1", 0))
    server.bind()
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.tcp_port}"
        with httpx.Client(base_url=url, timeout=DEADLINE, trust_env=False) as client:
            yield client
    finally:
        server.stop()
        thread.join(DEADLINE)
        assert not thread.is_alive()


def test_the_port_serves_the_metrics_without_a_token(port: httpx.Client) -> None:
    answer = port.get("/metrics")
    assert (answer.status_code, answer.headers["content-type"]) == (200, TEXT_TYPE)
    assert read(answer.text).value("one") == 1
    answer = port.get("/metrics", headers=[("Accept", "text/plain"), ("Accept", OPENMETRICS)])
    assert answer.headers["content-type"] == OPENMETRICS_TYPE


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/tenants", 404),
        ("GET", "/metrics/", 404),
        ("POST", "/stop", 404),
        ("POST", "/metrics", 405),
        ("DELETE", "/metrics", 405),
    ],
)
def test_the_port_serves_nothing_else(
    port: httpx.Client, method: str, path: str, status: int
) -> None:
    answer = port.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status


def test_the_port_takes_no_body_and_no_web_page(port: httpx.Client) -> None:
    assert port.request("GET", "/metrics", content=b"x").status_code == 400
    assert port.get("/metrics", headers={"Origin": "http://evil.example"}).status_code == 403
    assert port.get("/metrics", headers={"Host": "evil.example"}).status_code == 403
