"""Requests as spans: which are followed, and what they tell the journal, messages and nodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tenantry.cli.client import ControlClient
from tenantry.tracing.exporting import ExportingTracer, provider_of
from tests.api.serving import Served, World, serving
from tests.api.test_nodes import two_nodes
from tests.waiting import eventually

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
REFUSED = {"traceparent": f"00-{TRACE}-{SPAN}-00"}


class Traced:
    def __init__(self, api: Served, kept: InMemorySpanExporter) -> None:
        self.api = api
        self._kept = kept

    def spans(self, count: int = 1) -> list[ReadableSpan]:
        """Give the spans, once so many have ended: a request's ends after its answer."""
        return ended(self._kept, count)


def ended(kept: InMemorySpanExporter, count: int) -> list[ReadableSpan]:
    """Give so many spans once they have ended, in the order in which they began."""
    eventually(lambda: len(kept.get_finished_spans()) >= count)
    return sorted(kept.get_finished_spans(), key=lambda span: span.start_time or 0)


@pytest.fixture
def kept() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def tracer(kept: InMemorySpanExporter) -> ExportingTracer:
    provider = provider_of("tests", 1.0)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    return ExportingTracer(provider, system="rabbitmq")


@pytest.fixture
def traced(kept: InMemorySpanExporter) -> Iterator[Traced]:
    with serving(World(tracer=tracer(kept))) as api:
        api.world.create("acme", topics=("events",), partitions=2)
        yield Traced(api, kept)


def last_event(api: Served) -> dict[str, Any]:
    event: dict[str, Any] = api.control.get("/tenants/acme/events?limit=100").json()["data"][-1]
    return event


def hexadecimal(number: int) -> str:
    return f"{number:x}".zfill(16)


def test_a_command_is_a_span_of_its_callers_trace_which_its_events_name(traced: Traced) -> None:
    answer = traced.api.tcp.put(
        "/tenants/acme/config/concurrency", json={"workers": 5}, headers=PARENT
    )
    assert answer.status_code == 200
    (span,) = traced.spans()
    assert span.name == "PUT /tenants/{tenant_id}/config/concurrency"
    assert span.parent is not None
    assert hexadecimal(span.parent.span_id) == SPAN
    assert (span.attributes or {})["http.response.status_code"] == 200
    event = last_event(traced.api)
    assert (event["type"], event["trace_id"]) == ("WorkersResized", TRACE)


def test_of_what_shall_not_be_recorded_nothing_is(traced: Traced) -> None:
    traced.api.tcp.post("/tenants/acme/pause", headers=REFUSED)
    assert last_event(traced.api)["trace_id"] is None
    traced.api.tcp.post("/tenants/acme/resume", headers=PARENT)
    (span,) = traced.spans()
    assert span.name == "POST /tenants/{tenant_id}/resume"


@pytest.mark.parametrize("headers", [{}, {"traceparent": "x" * 10_000}, {"traceparent": "00-00"}])
def test_without_a_trace_that_can_be_read_a_command_begins_one(
    traced: Traced, headers: dict[str, str]
) -> None:
    assert traced.api.control.post("/tenants/acme/pause", headers=headers).status_code == 200
    (span,) = traced.spans()
    assert span.parent is None
    assert span.context is not None
    assert last_event(traced.api)["trace_id"] == f"{span.context.trace_id:032x}"


def test_who_only_looks_is_not_followed(traced: Traced) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/tenants", "/tenants/acme", "/nowhere"):
        traced.api.control.get(path, headers=PARENT)
    traced.api.control.post("/nowhere", headers=PARENT)
    traced.api.control.post("/tenants/acme/pause", headers=PARENT)
    (span,) = traced.spans()
    assert span.name == "POST /tenants/{tenant_id}/pause"


def test_messages_that_are_published_carry_the_span_of_their_publishing(traced: Traced) -> None:
    publish = traced.api.tcp.post
    path, messages = "/tenants/acme/messages", [{"payload": 1}, {"payload": 2, "topic": "events"}]
    assert publish(path, json=messages, headers=PARENT).status_code == 202
    assert publish(path, json=messages[0], headers={"Idempotency-Key": "1"}).status_code == 202
    assert publish(path, json=messages[0], headers=REFUSED).status_code == 202
    several, alone = traced.spans(2)
    assert several.context is not None
    assert alone.context is not None
    assert alone.parent is None
    carried = [one.headers for one in traced.api.world.publishing.sent]
    in_trace = f"00-{TRACE}-{hexadecimal(several.context.span_id)}-01"
    by_itself = f"00-{alone.context.trace_id:032x}-{hexadecimal(alone.context.span_id)}-01"
    assert carried == [
        {"traceparent": in_trace},
        {"traceparent": in_trace},
        {"traceparent": by_itself},
        REFUSED,
    ]


def test_an_event_keeps_its_attributes_beside_the_span_of_its_publishing(traced: Traced) -> None:
    event = {"ce-specversion": "1.0", "ce-id": "7", "ce-source": "/shop", "ce-type": "t"}
    answer = traced.api.tcp.post("/tenants/acme/messages", content=b"1", headers=PARENT | event)
    assert answer.status_code == 202
    (span,) = traced.spans()
    assert (span.attributes or {})["messaging.message.id"] == "/shop 7"
    (sent,) = traced.api.world.publishing.sent
    assert sent.headers is not None
    assert sent.headers["cloudEvents:id"] == "7"
    assert str(sent.headers["traceparent"]).startswith(f"00-{TRACE}-")


def test_a_trace_goes_on_at_the_node_that_answers(kept: InMemorySpanExporter) -> None:
    with two_nodes(tracer=tracer(kept)) as nodes:
        assert nodes.one.control.post("/tenants/acme/pause", headers=PARENT).status_code == 200
        here, there = ended(kept, 2)
        event = nodes.two.world.journal.read_stream("tenant-acme")[-1]
    assert here.parent is not None
    assert hexadecimal(here.parent.span_id) == SPAN
    assert there.parent is not None
    assert here.context is not None
    assert there.parent.span_id == here.context.span_id
    assert event.metadata.trace_id == TRACE


def test_a_command_line_takes_its_trace_from_its_environment(
    traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ControlClient(traced.api.path) as client:
        monkeypatch.setenv("TRACEPARENT", PARENT["traceparent"])
        client.call("POST", "/tenants/acme/pause")
        assert last_event(traced.api)["trace_id"] == TRACE
        for foul in ("a\r\nb: c", "é", "x" * 100_000):
            monkeypatch.setenv("TRACEPARENT", foul)
            client.call("POST", "/tenants/acme/resume")


def test_without_tracing_nothing_is_read_or_carried() -> None:
    with serving(World()) as api:
        api.world.create("acme")
        path = "/tenants/acme/messages"
        assert api.tcp.post(path, json={"payload": 1}, headers=PARENT).status_code == 202
        assert api.tcp.post("/tenants/acme/pause", headers=PARENT).status_code == 200
        assert [one.headers for one in api.world.publishing.sent] == [None]
        assert last_event(api)["trace_id"] is None
