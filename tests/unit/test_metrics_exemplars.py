"""Exemplars: a value of a histogram by the trace in which it was measured."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tenantry.actors.ports import Followed
from tenantry.broker.port import Delivery
from tenantry.metrics.collector import histogram
from tenantry.metrics.page import labelled, write
from tenantry.metrics.recorder import LATENCY_MS, Recorder
from tests.fakes.messages import incoming
from tests.scrapes import read, read_openmetrics

TRACE, OTHER = "4bf92f3577b34da6a3ce929d0e0e4736", "af7651916cd43dd8448eb211c80319c1"
LATENCY = "tenantry_message_latency_seconds"


def stored(recorder: Recorder, *ages_ms: int | None, trace: str | None = TRACE) -> None:
    """Note a batch of messages that were published so long ago; the first one is in a trace."""
    now = time.time_ns() // 1_000_000
    published = [None if age is None else now - age for age in ages_ms]
    batch = [
        Delivery(tag, False, incoming(str(tag), published=at))
        for tag, at in enumerate(published, start=1)
    ]
    followed = [] if trace is None else [Followed(published[0], trace)]
    recorder.batch_stored("acme", batch, 0.01, followed)


def page(recorder: Recorder, *, openmetrics: bool = True) -> str:
    bounds = tuple(bound / 1000 for bound in LATENCY_MS)
    reading = recorder.latency("acme")
    assert reading is not None
    handlers: dict[tuple[str, ...], Any] = {
        (topic,): one for topic, one in recorder.handlers().items()
    }
    families = [
        histogram(LATENCY, {("acme",): reading}, bounds),
        histogram("tenantry_handler_seconds", handlers),
    ]
    return write(families, openmetrics=openmetrics)


@dataclass(frozen=True)
class Found:
    """A bucket with an exemplar."""

    labels: dict[str, str]
    trace: str
    value: float


def exemplars(text: str) -> list[Found]:
    return [
        Found(sample.labels, sample.exemplar.labels["trace_id"], sample.exemplar.value)
        for family in text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        for sample in family.samples
        if sample.exemplar is not None
    ]


def test_a_latency_leads_to_the_trace_it_was_measured_in() -> None:
    recorder = Recorder()
    stored(recorder, 3_000, 70_000)
    stored(recorder, 3_100, trace=OTHER)
    (found,) = exemplars(page(recorder))
    assert found.labels == {"tenant_id": "acme", "le": "5.0"}
    assert found.trace == OTHER  # the latest
    assert 3.1 <= found.value < 5


def test_so_does_the_time_a_handler_took() -> None:
    recorder = Recorder()
    stored(recorder, 1)
    recorder.handled("orders", 0.3, TRACE)
    recorder.handled("orders", 99.0, OTHER)
    recorder.handled("logs", 0.3, None)
    of_handlers = [one for one in exemplars(page(recorder)) if "topic" in one.labels]
    assert [one.labels for one in of_handlers] == [
        {"topic": "orders", "le": "0.5"},
        {"topic": "orders", "le": "+Inf"},
    ]
    assert [one.trace for one in of_handlers] == [TRACE, OTHER]


@pytest.mark.parametrize("age", [None, 400 * 24 * 3600 * 1000])
def test_a_time_that_is_none_is_no_example(age: int | None) -> None:
    recorder = Recorder()
    stored(recorder, age, 5)
    assert not exemplars(page(recorder))


def test_there_are_none_where_nothing_is_traced_and_none_in_the_text_format() -> None:
    recorder = Recorder()
    stored(recorder, 5, trace=None)
    assert " # {" not in page(recorder)
    stored(recorder, 5)
    assert " # {" in page(recorder)
    plain = page(recorder, openmetrics=False)
    assert " # {" not in plain
    assert read(plain).value(f"{LATENCY}_count", tenant_id="acme") == 2


def test_there_is_one_a_bucket_at_most_and_they_go_with_their_tenant() -> None:
    recorder = Recorder()
    for age in range(0, 100_000, 100):
        stored(recorder, age)
    assert len(exemplars(page(recorder))) <= len(LATENCY_MS) + 1
    recorder.tenant_gone("acme")
    assert recorder.latency("acme") is None


def test_a_page_of_several_processes_keeps_them() -> None:
    recorder = Recorder()
    stored(recorder, 3_000)
    text = labelled(page(recorder), "a")
    assert read_openmetrics(text)
    (found,) = exemplars(text)
    assert found.labels["node"] == "a"
