"""Everything that goes wrong is a problem document with the right status."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tenantry.broker.port import BrokerError, BrokerUnavailableError, UnroutableError
from tenantry.control.port import CommandFailedError, CommandTimeoutError, ControlUnavailableError
from tenantry.domain.commands import WrongStateError
from tenantry.domain.events import DeletionRequested
from tenantry.journal.port import JournalUnavailableError, Metadata, VersionConflictError
from tenantry.messages.port import MessageStoreError, PartitionMissingError, StoreUnavailableError
from tests.api.serving import Served, World, serving
from tests.depth import examples


@pytest.fixture(scope="module")
def shared() -> Iterator[Served]:
    with serving(World(max_body_bytes=10_000)) as served:
        served.world.create("acme", topics=("logs",))
        served.world.create("paused")
        yield served


@pytest.fixture
def api(shared: Served) -> Iterator[Served]:
    yield shared
    shared.world.control.error = None
    shared.world.messages.error = None
    shared.world.publishing.error = None


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body.keys() >= {"type", "title", "status", "detail"}
    assert body["status"] == status
    assert body["correlation_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    assert "pydantic" not in answer.text
    return body


def _call(api: Served, method: str, path: str, body: object = None) -> httpx.Response:
    if isinstance(body, bytes):
        headers = {"Content-Type": "application/json"}
        return api.control.request(method, path, content=body, headers=headers)
    return (
        api.control.request(method, path, json=body)
        if body is not None
        else (api.control.request(method, path))
    )


ONE = {"payload": 1}
NAMED = {"name": "A"}
WORKERS = "/tenants/acme/config/concurrency"
MESSAGES = "/tenants/acme/messages"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "word"),
    [
        ("GET", "/nothing", None, 404, "nothing is served"),
        ("GET", "/tenants/", None, 404, "nothing is served"),
        ("GET", "/swagger/../etc", None, 404, "nothing is served"),
        ("GET", "/swagger/core.py", None, 404, "nothing is served"),
        ("PATCH", "/tenants", None, 405, "method"),
        ("DELETE", "/healthz", None, 405, "method"),
        ("HEAD", "/stop", None, 405, None),
        ("GET", "/tenants/nobody", None, 404, "no such tenant"),
        ("GET", "/tenants/No%20Body", None, 404, "no such tenant"),
        ("GET", "/tenants/%00", None, 404, "no such tenant"),
        ("GET", "/tenants/%ff%fe", None, 404, "no such tenant"),
        ("GET", f"/tenants/{'x' * 5000}", None, 404, "no such tenant"),
        ("DELETE", "/tenants/nobody", None, 404, "no such tenant"),
        ("POST", "/tenants/nobody/pause", None, 404, "no such tenant"),
        ("POST", "/tenants/no_body/resume", None, 404, "no such tenant"),
        ("POST", "/tenants/nobody/credentials/rotate", None, 404, "no such tenant"),
        ("PUT", "/tenants/nobody/config/concurrency", {"workers": 1}, 404, "no such tenant"),
        ("POST", "/tenants/nobody/topics", {"topics": ["a"]}, 404, "no such tenant"),
        ("POST", "/tenants/nobody/messages", ONE, 404, "no such tenant"),
        ("GET", "/tenants/nobody/events", None, 404, "no such tenant"),
        ("GET", "/tenants/%00/events", None, 404, "no such tenant"),
        ("GET", "/messages?tenant_id=nobody", None, 404, "no such tenant"),
        ("GET", "/messages?tenant_id=%00", None, 404, "no such tenant"),
        ("POST", MESSAGES, {"payload": 1, "topic": "nope"}, 404, "no topic 'nope'"),
        ("POST", MESSAGES, {"payload": 1, "topic": "\0"}, 404, "no topic"),
        ("GET", "/messages?tenant_id=acme&limit=0", None, 422, "limit"),
        ("GET", "/messages?tenant_id=acme&limit=1001", None, 422, "limit"),
        ("GET", f"/messages?tenant_id=acme&limit={'9' * 5000}", None, 422, "limit"),
        ("GET", "/messages?tenant_id=acme&limit=x", None, 422, "limit"),
        ("GET", "/messages?tenant_id=acme&order=up", None, 422, "order"),
        ("GET", "/messages?tenant_id=acme&limt=1", None, 422, "limt: there is no such parameter"),
        ("GET", "/messages?tenant_id=acme&cursor=x", None, 400, "cursor"),
        ("GET", "/messages?tenant_id=acme&cursor=", None, 400, "cursor"),
        ("GET", "/messages?tenant_id=acme&cursor=%00", None, 400, "cursor"),
        ("GET", "/tenants?cursor=%C3%A9", None, 400, "cursor"),
        ("GET", "/events?cursor=AAAA", None, 400, "cursor"),
        ("GET", "/events?wait=31", None, 422, "wait"),
        ("GET", "/events?wait=nan", None, 422, "wait"),
        ("GET", "/events?wait=-1", None, 422, "wait"),
        ("GET", "/tenants/acme?at=yesterday", None, 422, "at: must be"),
        ("GET", "/tenants/acme?at=-1", None, 422, "at: must be"),
        ("GET", "/tenants/acme?at=2026-01-31", None, 422, "at: must be"),
        ("GET", "/tenants/acme?at=%00", None, 422, "at: must be"),
        ("DELETE", "/tenants/acme?retain=perhaps", None, 422, "retain"),
        ("POST", "/tenants", b"", 422, "is required"),
        ("POST", "/tenants", b"{", 400, "not JSON"),
        ("POST", "/tenants", b"NaN", 400, "not JSON"),
        ("POST", "/tenants", b'{"name": "\\ud800"}', 400, "not JSON"),
        ("POST", "/tenants", b'{"name": "\xff"}', 400, "not JSON"),
        ("POST", "/tenants", b"[" * 5000, 400, "not JSON"),
        ("POST", "/tenants", b'{"name": "A", "workers": 1e999}', 400, "not JSON"),
        ("POST", "/tenants", [], 422, ""),
        ("POST", "/tenants", "text", 422, ""),
        ("POST", "/tenants", {}, 422, "name: is required"),
        ("POST", "/tenants", {"name": 7}, 422, "name: must be a valid string"),
        ("POST", "/tenants", {"name": ""}, 422, "name"),
        ("POST", "/tenants", {"name": " "}, 422, "name: must be"),
        ("POST", "/tenants", {"name": "a\0b"}, 422, "name: must be"),
        ("POST", "/tenants", {"name": "x" * 201}, 422, "name"),
        ("POST", "/tenants", NAMED | {"nmae": 1}, 422, "nmae: there is no such field"),
        ("POST", "/tenants", NAMED | {"id": "No"}, 422, "id: must be"),
        ("POST", "/tenants", NAMED | {"id": ""}, 422, "id: must be"),
        ("POST", "/tenants", NAMED | {"id": 7}, 422, "id: must be"),
        ("POST", "/tenants", NAMED | {"workers": "5"}, 422, "workers: must be a valid integer"),
        ("POST", "/tenants", NAMED | {"workers": True}, 422, "workers: must be a valid integer"),
        ("POST", "/tenants", NAMED | {"workers": 2.5}, 422, "workers"),
        ("POST", "/tenants", NAMED | {"workers": 0}, 422, "workers"),
        ("POST", "/tenants", NAMED | {"workers": 65}, 422, "workers"),
        ("POST", "/tenants", NAMED | {"workers": 10**30}, 422, "workers"),
        ("POST", "/tenants", NAMED | {"topics": "logs"}, 422, "topics"),
        ("POST", "/tenants", NAMED | {"topics": ["a", "a"]}, 422, "topics: names a topic twice"),
        ("POST", "/tenants", NAMED | {"topics": ["default"]}, 422, "topics"),
        ("POST", "/tenants", NAMED | {"topics": ["a", 7]}, 422, "topics[1]: must be"),
        ("POST", "/tenants", NAMED | {"partitions": 65}, 422, "partitions"),
        ("POST", "/tenants", NAMED | {"id": "acme"}, 409, "exists already"),
        ("PUT", WORKERS, {"workers": 65}, 422, "workers"),
        ("PUT", WORKERS, {"workers": "5"}, 422, "workers"),
        ("PUT", WORKERS, {}, 422, "workers: is required"),
        ("POST", "/tenants/acme/topics", {"topics": []}, 422, "topics"),
        ("POST", "/tenants/acme/topics", {"topics": ["A"]}, 422, "topics"),
        ("POST", MESSAGES, {}, 422, "payload: is required"),
        ("POST", MESSAGES, [], 422, "at least 1 item"),
        ("POST", MESSAGES, [ONE, {"topic": "logs"}], 422, "[1].payload: is required"),
        ("POST", MESSAGES, [ONE] * 1001, 413, "larger"),
        ("POST", MESSAGES, [ONE] * 750, 413, "larger"),
        ("POST", MESSAGES, 7, 422, ""),
        ("POST", MESSAGES, {"payload": 1, "id": ""}, 422, "id"),
        ("POST", MESSAGES, {"payload": 1, "id": "é" * 128}, 422, "id: must be 1 to 255 bytes"),
        ("POST", MESSAGES, {"payload": 1, "id": "\0"}, 422, "id: must be 1 to 255 bytes"),
        ("POST", MESSAGES, {"payload": 1, "key": 7}, 422, "key"),
        ("POST", MESSAGES, {"payload": "x" * 20_000}, 413, "larger than 10000 bytes"),
        ("POST", MESSAGES, {"payload": "x" * 900_000}, 413, "larger than 10000 bytes"),
    ],
)  # fmt: skip
def test_a_bad_request_is_answered_with_a_problem(
    api: Served, method: str, path: str, body: object, status: int, word: str | None
) -> None:
    answer = _call(api, method, path, body)
    if word is None:
        assert answer.status_code == status
    else:
        assert word in problem(answer, status)["detail"]


def test_a_list_has_a_thousand_messages_at_most() -> None:
    with serving(World()) as api:
        api.world.create("acme")
        path = "/tenants/acme/messages"
        assert api.control.post(path, json=[ONE] * 1000).status_code == 202
        assert "1000" in problem(api.control.post(path, json=[ONE] * 1001), 422)["detail"]


def test_a_405_names_every_method_the_path_takes(api: Served) -> None:
    answer = api.control.patch("/tenants/acme")
    assert answer.headers["allow"] == "DELETE, GET, HEAD"
    problem(answer, 405)


def test_invalid_input_names_each_field(api: Served) -> None:
    body = problem(api.control.post("/tenants", json={"workers": "x", "partitions": 0}), 422)
    assert [one["field"] for one in body["errors"]] == ["name", "workers", "partitions"]


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "a b"])
def test_a_body_that_is_not_announced_as_json_is_415(api: Served, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    problem(api.control.post("/tenants", content=b'{"name":"A"}', headers=headers), 415)


def test_a_command_the_state_does_not_allow_is_409_with_the_state() -> None:
    with serving(World()) as api:
        api.world.create("acme")
        api.world.control.error = WrongStateError("acme", "deleting", "be paused")
        body = problem(api.control.post("/tenants/acme/pause"), 409)
        assert body["state"] == "deleting"
        assert body["type"].endswith("wrong-state")


def _failed(cause: Exception | None) -> CommandFailedError:
    error = CommandFailedError("the queues could not be made")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "status", "word"),
    [
        (ControlUnavailableError("the daemon is draining"), 503, "draining"),
        (JournalUnavailableError("postgresql://u:secret@h"), 503, "database"),
        (BrokerUnavailableError("amqp://u:secret@h"), 503, "broker"),
        (VersionConflictError("tenant-acme", 1, 2), 409, "same time"),
        (CommandTimeoutError("x"), 504, "may still be carried out"),
        (_failed(None), 500, "the queues could not be made"),
        (_failed(BrokerUnavailableError("secret")), 503, "broker"),
        (ZeroDivisionError("secret"), 500, "server's own"),
        (BrokerError("secret"), 500, "server's own"),
    ],
)
def test_a_failing_command_is_told(api: Served, error: Exception, status: int, word: str) -> None:
    api.world.control.error = error
    with capture_logs() as logs:
        answer = api.control.post("/tenants/acme/pause")
    crashed = [one for one in logs if one["event"] == "api.request_crashed"]
    assert bool(crashed) is ("server's own" in word)
    assert word in problem(answer, status)["detail"]
    assert "secret" not in answer.text
    assert ("retry-after" in answer.headers) is (status == 503)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StoreUnavailableError("secret"), 503),
        (PartitionMissingError("secret"), 404),
        (MessageStoreError("secret"), 500),
        (ValueError("secret"), 500),
    ],
)
def test_a_failing_store_is_told(api: Served, error: Exception, status: int) -> None:
    api.world.messages.error = error
    with capture_logs():
        answer = api.control.get("/messages", params={"tenant_id": "acme"})
    problem(answer, status)
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("error", "status"),
    [(BrokerUnavailableError("secret"), 503), (UnroutableError("secret"), 404)],
)
def test_a_failing_publication_is_told(api: Served, error: Exception, status: int) -> None:
    api.world.publishing.error = error
    answer = api.control.post("/tenants/acme/messages", json=ONE)
    problem(answer, status)
    assert "secret" not in answer.text


def test_a_tenant_that_is_being_deleted_takes_no_messages() -> None:
    with serving(World()) as api:
        api.world.create("acme")
        event = DeletionRequested(tenant_id="acme", retain=False)
        api.world.journal.append(
            "tenant-acme", [event], expected=2, metadata=Metadata(actor="test")
        )
        problem(api.control.post("/tenants/acme/messages", json=ONE), 409)


SURROGATES = st.text(st.characters(), max_size=20)
HOSTILE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | SURROGATES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SURROGATES, inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["name", "id", "workers", "topics", "partitions", "payload", "topic", "key", "nope"]
)
BODIES = st.dictionaries(FIELDS, HOSTILE, max_size=6) | HOSTILE
TARGETS: list[Callable[[Served, bytes], httpx.Response]] = [
    lambda api, body: _call(api, "POST", "/tenants", body),
    lambda api, body: _call(api, "POST", "/tenants/acme/messages", body),
    lambda api, body: _call(api, "PUT", "/tenants/acme/config/concurrency", body),
    lambda api, body: _call(api, "POST", "/tenants/acme/topics", body),
]
FUZZED = settings(
    max_examples=examples(25, 300),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@FUZZED
@given(body=BODIES, target=st.sampled_from(TARGETS))
def test_no_json_is_an_error_of_the_servers(
    api: Served, body: object, target: Callable[[Served, bytes], httpx.Response]
) -> None:
    assert target(api, json.dumps(body).encode()).status_code < 500


@FUZZED
@given(body=st.binary(max_size=200), target=st.sampled_from(TARGETS))
def test_no_bytes_are_an_error_of_the_servers(
    api: Served, body: bytes, target: Callable[[Served, bytes], httpx.Response]
) -> None:
    assert 400 <= target(api, body).status_code < 500


PATHS = ["/tenants", "/tenants/acme", "/messages", "/events", "/tenants/acme/events"]
READ = ["limit", "cursor", "tenant_id", "topic", "order", "at", "retain"]


@FUZZED
@given(
    path=st.sampled_from(PATHS),
    query=st.dictionaries(
        st.sampled_from(READ), st.text(st.characters(codec="utf-8"), max_size=30), max_size=4
    ),
)  # fmt: skip
def test_no_query_is_an_error_of_the_servers(api: Served, path: str, query: dict[str, str]) -> None:
    assert api.control.get(path, params=query).status_code < 500


@FUZZED
@given(
    path=st.text(st.characters(codec="utf-8"), max_size=40),
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS"]),
)
def test_no_path_is_an_error_of_the_servers(api: Served, path: str, method: str) -> None:
    answer = api.control.request(method, f"/tenants/x{quote(path, safe='')}")
    assert 400 <= answer.status_code < 500
