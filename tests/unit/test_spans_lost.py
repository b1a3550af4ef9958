"""Spans on their way: nobody's keep out those of others, and what is lost is counted."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from tenantry.handlers.message import Message
from tenantry.tracing import lost
from tenantry.tracing.exporting import ExportingTracer, provider_of
from tenantry.tracing.lost import LostSpans, Reason
from tenantry.tracing.sending import TENANT, SharedQueue, ToldOnce
from tests.fakes.messages import incoming
from tests.waiting import DEADLINE, eventually

PARENT = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
PLACES = 60


class Held(SpanExporter):
    """Takes spans once it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.taking = threading.Event()
        self.taken: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taking.set()
        self.let_go.wait(DEADLINE)
        self.taken += spans
        return SpanExportResult.SUCCESS

    def by_tenant(self) -> Counter[str]:
        return Counter(str((one.attributes or {}).get(TENANT)) for one in self.taken)


class Sending:
    """A tracer whose spans wait in a small queue, until the exporter is let go."""

    def __init__(self, exporter: SpanExporter) -> None:
        self.lost = LostSpans()
        self.queue = SharedQueue(exporter, self.lost, most=PLACES)
        provider = provider_of("tests", 1.0)
        provider.add_span_processor(self.queue)
        self.tracer = ExportingTracer(provider, system="rabbitmq", lost=self.lost)

    def batch(self, tenant: str) -> None:
        with self.tracer.processing(tenant, [incoming("m", b"1", headers={**PARENT})]):
            pass


@pytest.fixture
def held() -> Held:
    return Held()


def test_a_tenant_that_fills_the_queue_leaves_room_for_others(held: Held) -> None:
    sending = Sending(held)
    sending.batch("first")  # so that the queue's thread holds it, and takes no more
    sending.queue._queue._batch_processor._worker_awaken.set()
    assert held.taking.wait(DEADLINE)
    for _ in range(10 * PLACES):
        sending.batch("greedy")
    for tenant in ("a", "b", "c"):
        for _ in range(3):
            sending.batch(tenant)
    sent = {"greedy": PLACES // 2, "a": 3, "b": 3, "c": 3, "first": 1}
    assert sending.tracer.lost() == {"queue": 10 * PLACES - PLACES // 2, "export": 0}
    held.let_go.set()
    sending.tracer.close(DEADLINE)
    assert held.by_tenant() == sent


def test_several_that_fill_it_share_it(held: Held) -> None:
    sending = Sending(held)
    sending.batch("first")
    sending.queue._queue._batch_processor._worker_awaken.set()
    assert held.taking.wait(DEADLINE)
    for _ in range(PLACES):
        for tenant in ("a", "b"):
            sending.batch(tenant)
    held.let_go.set()
    sending.tracer.close(DEADLINE)
    assert held.by_tenant() == {"a": PLACES // 3, "b": PLACES // 3, "first": 1}


def test_places_are_free_again_once_spans_are_sent() -> None:
    class Taking(Held):
        def __init__(self) -> None:
            super().__init__()
            self.let_go.set()

    taking = Taking()
    sending = Sending(taking)
    for round_ in range(1, 6):
        for _ in range(PLACES // 2):
            sending.batch("acme")
        sending.queue.force_flush()
        assert len(taking.taken) == round_ * PLACES // 2
    assert sending.tracer.lost() == {"queue": 0, "export": 0}
    sending.tracer.close(DEADLINE)


def test_what_is_a_part_of_a_tenants_work_is_counted_as_its_own(held: Held) -> None:
    held.let_go.set()
    sending = Sending(held)
    message = Message(
        id="m", tenant_id="acme", topic="t", partition=0, payload=1, body=None,
        content_type=None, headers=PARENT, attempt=1,
    )  # fmt: skip
    tracer = sending.tracer
    batch = [incoming("m", b"1", headers={**PARENT})]
    with tracer.processing("acme", batch), tracer.storing(), tracer.handling(message):
        # A handler's own, by the library.
        tracer._tracer.start_span("own").end()
    tracer.close(DEADLINE)
    assert held.by_tenant() == {"acme": 4}


def test_spans_that_who_collects_refuses_are_counted() -> None:
    class Away(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            return SpanExportResult.FAILURE

    counted = LostSpans()
    provider = provider_of("tests", 1.0)
    provider.add_span_processor(SharedQueue(ToldOnce(Away(), "http://c.test", counted), counted))
    tracer = ExportingTracer(provider, system="rabbitmq", lost=counted)
    for _ in range(3):
        with tracer.processing("acme", [incoming("m", b"1", headers={**PARENT})]):
            pass
    tracer.close(DEADLINE)
    assert tracer.lost() == {"queue": 0, "export": 3}


def test_what_one_process_counts_another_reads_also_after_a_restart() -> None:
    with lost.shared_file() as file:
        assert lost.read(file) == {"queue": 0, "export": 0}
        LostSpans(file.fileno()).add(Reason.QUEUE, 3)
        again = LostSpans(file.fileno())
        again.add(Reason.EXPORT)
        again.add(Reason.QUEUE, 2**40)
        assert lost.read(file) == again.totals() == {"queue": 2**40 + 3, "export": 1}
    assert lost.read(file) == {}


def test_no_count_is_missed_of_many_threads() -> None:
    counted = LostSpans()
    threads = [
        threading.Thread(target=lambda: [counted.add(Reason.QUEUE) for _ in range(500)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: counted.totals()["queue"] == 4000)
