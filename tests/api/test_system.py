"""The daemon's own state, and the description of the API."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urljoin

import pytest

from tenantry.api.access import TABLE
from tenantry.api.schemas.common import dumps
from tenantry.api.schemas.daemon import Status
from tenantry.control.port import SystemState, TermStatus
from tenantry.http.auth import Access
from tests.api.serving import Served, World, serving


@pytest.fixture
def api() -> Iterator[Served]:
    with serving(World()) as served:
        yield served


@pytest.fixture(scope="module")
def described() -> Iterator[Served]:
    """Where nothing is asked for but the description: to make it costs more than to serve it."""
    with serving(World()) as served:
        yield served


def test_a_running_daemon_is_healthy_and_ready(api: Served) -> None:
    assert api.control.get("/healthz").json() == {"status": "ok"}
    assert api.control.get("/readyz").json() == {"state": "running"}


def test_whether_it_is_ready_is_told_without_asking_every_tenant(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.world.control, "status", lambda: pytest.fail("all are asked"))
    assert api.control.get("/readyz").json() == {"state": "running"}


def test_a_daemon_that_is_not_ready_says_why_and_stays_healthy(api: Served) -> None:
    control = api.world.control
    control.system = replace(
        control.system, ready=False, reasons=("the broker is away", "a standby")
    )
    answer = api.control.get("/readyz")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["reasons"] == ["the broker is away", "a standby"]
    assert api.control.get("/healthz").status_code == 200


def test_a_dead_root_is_not_healthy_unless_the_daemon_stops(api: Served) -> None:
    control = api.world.control
    control.system = replace(control.system, tree=replace(control.system.tree, state="dead"))
    assert api.control.get("/healthz").status_code == 503
    control.system = replace(control.system, state=SystemState.STOPPING)
    assert api.control.get("/healthz").status_code == 200


def test_the_status_shows_the_tree_and_the_tenants(api: Served) -> None:
    api.world.create("acme")
    control = api.world.control
    runtime = control.runtime("acme")
    assert runtime is not None
    child = replace(control.system.tree, name="acme", kind="Tenant", mailbox=2)
    control.system = replace(
        control.system,
        tree=replace(control.system.tree, children=(child,)),
        tenants={"acme": runtime},
    )
    body = api.control.get("/status").json()
    assert body["tree"]["children"][0]["mailbox"] == 2
    assert body["tenants"]["acme"]["workers_current"] == 3
    assert body["started_at"] == "2026-01-31T12:00:00.000000Z"
    assert (body["pid"], body["state"], body["ready"]) == (4711, "running", True)
    term = TermStatus(number=7, host="ingest-1", pid=4711, since=control.system.started_at)
    parked = replace(runtime, parked="gone", parked_at=control.system.started_at)
    for system in (
        control.system,
        replace(control.system, term=term, reasons=("away",), tenants={"acme": parked}),
    ):
        control.system = system
        # What it is described as, to the byte.
        assert api.control.get("/status").content == dumps(Status.model_validate(system))


def test_draining_and_stopping_are_accepted(api: Served) -> None:
    drained = api.control.post("/drain")
    assert (drained.status_code, drained.json()) == (202, {"state": "draining"})
    assert api.control.get("/readyz").json()["reasons"] == ["draining"]
    stopped = api.control.post("/stop")
    assert (stopped.status_code, stopped.json()) == (202, {"state": "stopping"})


def test_the_info_is_shown_as_given(api: Served) -> None:
    assert api.control.get("/info").json() == {"version": "0.1.0"}


@pytest.mark.parametrize("path", ["/docs", "/swagger/index.html"])
def test_the_documentation_needs_nothing_from_elsewhere(described: Served, path: str) -> None:
    page = described.tcp.get(path)
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "://" not in page.text
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(links) == 4
    # As a browser finds them behind a proxy that puts a prefix before every path.
    seen = f"http://proxy/some/prefix{path}"
    for link in links:
        if not link.startswith("data:"):
            there = urljoin(seen, link).removeprefix("http://proxy/some/prefix")
            found = described.tcp.get(there)
            assert found.status_code == 200
            if link.endswith("start.js"):
                assert "://" not in found.text
                (document,) = re.findall(r'new URL\("([^"]+)", document.currentScript', found.text)
                assert urljoin(urljoin(seen, link), document) == (
                    "http://proxy/some/prefix/openapi.json"
                )
            else:
                assert len(found.text) > 9999


def test_the_description_places_the_api_where_it_was_found_itself(described: Served) -> None:
    (server,) = described.tcp.get("/openapi.json").json()["servers"]
    there = urljoin("http://proxy/some/prefix/openapi.json", server["url"])
    assert there == "http://proxy/some/prefix/"


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield method.upper(), path, operation


def test_every_route_is_described_with_its_errors(described: Served) -> None:
    document = described.control.get("/openapi.json").json()
    served = {(method, path) for method, path, _ in _operations(document)}
    pages = {("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/swagger/{asset}")}
    table = {(method, path.replace(":any", "")): access for (method, path), access in TABLE.items()}
    assert served == table.keys() - pages
    for method, path, operation in _operations(document):
        assert operation["summary"], path
        assert operation["description"], path
        errors = {status for status in operation["responses"] if status >= "400"}
        assert errors, path
        for status in errors:
            content = operation["responses"][status]["content"]
            assert content.keys() == {"application/problem+json"}, (method, path, status)
        public = table[method, path] is Access.PUBLIC
        assert operation["security"] == ([] if public else [{}, {"token": []}])
        assert public or {"401", "403"} <= errors


def test_the_document_holds_no_dangling_reference_and_no_foreign_error(described: Served) -> None:
    answer = described.control.get("/openapi.json")
    schemas = answer.json()["components"]["schemas"]
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', answer.text))
    assert references <= schemas.keys()
    assert "HTTPValidationError" not in schemas


def test_every_field_of_a_body_has_an_example_and_says_what_it_is_for(described: Served) -> None:
    schemas = described.control.get("/openapi.json").json()["components"]["schemas"]
    for model in ("TenantCreation", "Concurrency", "NewTopics", "Publication"):
        for name, field in schemas[model]["properties"].items():
            told = [field, *field.get("anyOf", [])]
            assert any("examples" in one for one in told), (model, name)
            assert any("description" in one for one in told), (model, name)


def test_every_error_is_shown_by_an_example_of_its_own_status(described: Served) -> None:
    document = described.control.get("/openapi.json").json()
    for method, path, operation in _operations(document):
        for status, answer in operation["responses"].items():
            for content in answer.get("content", {}).values():
                if status >= "400":
                    assert content["example"]["status"] == int(status), (method, path)


def test_every_parameter_is_described_and_none_may_be_null(described: Served) -> None:
    document = described.control.get("/openapi.json").json()
    for method, path, operation in _operations(document):
        for parameter in operation.get("parameters", []):
            assert parameter["description"], (method, path, parameter["name"])
            assert "anyOf" not in parameter["schema"], (method, path, parameter["name"])


def test_every_tag_is_described(described: Served) -> None:
    document = described.control.get("/openapi.json").json()
    used = {tag for _, _, operation in _operations(document) for tag in operation["tags"]}
    assert used == {tag["name"] for tag in document["tags"] if tag["description"]}
