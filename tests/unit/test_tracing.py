"""The trace context in headers, and what is made of batches, handlers and requests."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs

from tenantry.broker.port import Outgoing
from tenantry.handlers.handler_pool import Call, HandlerPool
from tenantry.handlers.message import Message
from tenantry.messages.headers import JsonHeaders
from tenantry.messages.port import Incoming
from tenantry.process import start_checks as configured
from tenantry.settings import Settings, SettingsError
from tenantry.tracing import Asked, TraceContext
from tenantry.tracing.exporting import LONGEST_TEXT, MOST_FOLLOWED, ExportingTracer, provider_of
from tenantry.tracing.port import NO_SPAN, of_message, of_request, read, says_no
from tenantry.tracing.sending import ToldOnce
from tests.fakes.messages import incoming
from tests.waiting import DEADLINE

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
REFUSED = f"00-{TRACE}-{SPAN}-00"


def test_a_context_is_read_and_written_again_as_it_was() -> None:
    told = read(PARENT, "vendor=a,other=b")
    assert told == TraceContext(TRACE, SPAN, True, "vendor=a,other=b")
    assert told.headers() == {"traceparent": PARENT, "tracestate": "vendor=a,other=b"}
    refused = read(REFUSED)
    assert refused is not None
    assert refused.headers() == {"traceparent": REFUSED}
    # A later version may say more, and other flags.
    assert read(f"01-{TRACE}-{SPAN}-03-more") == TraceContext(TRACE, SPAN, True)


@pytest.mark.parametrize(
    "parent",
    [
        None, 7, True, b"00", [PARENT], {"a": 1}, "", "00", "\x00" * 55, "4" * 10_000,
        PARENT.upper(), PARENT + "\n", PARENT + "-more", PARENT + "-" + "x" * 10_000,
        f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}٣-{SPAN}-01", f"00-{TRACE}-{SPAN}",
    ],
)  # fmt: skip
def test_what_is_not_exactly_a_context_is_none(parent: object) -> None:
    assert read(parent) is None
    assert of_message({"traceparent": parent}) is None


@pytest.mark.parametrize("state", [7, b"a=b", "a=b\r\nx: y", "é=1", "a=" + "b" * 511])
def test_a_state_that_can_not_be_passed_on_is_left_out(state: object) -> None:
    assert read(PARENT, state) == TraceContext(TRACE, SPAN, True)


def test_a_request_has_one_context_and_perhaps_several_states() -> None:
    one = (b"traceparent", PARENT.encode())
    states = [(b"tracestate", b"a=1"), (b"tracestate", b"b=2")]
    assert of_request([one, *states]) == TraceContext(TRACE, SPAN, True, "a=1,b=2")
    assert of_request([one, one]) is None
    assert of_request([(b"traceparent", b"\xff" * 55)]) is None
    assert of_request([]) is None


def test_headers_of_a_message_that_can_not_be_read_have_no_context() -> None:
    assert of_message(JsonHeaders(f'{{"traceparent": "{PARENT}"}}')) == read(PARENT)
    assert of_message(JsonHeaders('["traceparent"]')) is None
    assert of_message(JsonHeaders('{"traceparent"')) is None


@pytest.mark.parametrize(
    ("text", "no"),
    [
        (f'{{"traceparent": "{REFUSED}"}}', True),
        (f'{{"a": 1, "traceparent":"{REFUSED}"}}', True),
        (f'{{"traceparent": "{PARENT}"}}', False),
        (f'{{"a": "{REFUSED}"}}', False),
        (f'{{"a": "\\"traceparent\\": \\"{REFUSED}\\""}}', False),
        # Nobody looks closer than that: whose it is, is told by reading all of it.
        (f'{{"a": {{"traceparent": "{REFUSED}"}}, "traceparent": "{PARENT}"}}', False),
        (f'{{"traceparent": "{REFUSED}", "traceparent": "{PARENT}"}}', False),
        ("[]", False),
    ],
)
def test_headers_that_are_text_say_no_without_being_read(text: str, no: bool) -> None:
    assert says_no(JsonHeaders(text)) is no


class Recorded:
    """A tracer, and the spans that have ended."""

    def __init__(self, ratio: float = 1.0) -> None:
        self._kept = InMemorySpanExporter()
        provider = provider_of("tests", ratio)
        provider.add_span_processor(SimpleSpanProcessor(self._kept))
        self.tracer = ExportingTracer(provider, system="rabbitmq")

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._kept.get_finished_spans())

    @property
    def only(self) -> ReadableSpan:
        (span,) = self.spans
        return span


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    made = Recorded()
    yield made
    made.tracer.close()


def arrived(identity: str, parent: object = PARENT, topic: str = "default") -> Incoming:
    return incoming(identity, topic=topic, headers={"traceparent": parent} if parent else None)


def other(number: int) -> str:
    return f"00-{number:032x}-{number:016x}-01"


def trace_id(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def span_id(context: Any) -> str:
    return f"{context.span_id:016x}"


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_a_message_by_itself_is_processed_in_its_own_trace(recorded: Recorded) -> None:
    with recorded.tracer.processing("acme", [arrived("m-1")]):
        pass
    span = recorded.only
    assert span.name == "process tenant_{id}_stream"
    assert span.kind.name == "CONSUMER"
    assert (trace_id(span), span_id(span.parent)) == (TRACE, SPAN)
    assert attributes(span) == {
        "messaging.system": "rabbitmq",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.template": "tenant_{id}_stream",
        "messaging.destination.name": "tenant_acme_stream:default:tenant_acme_queue",
        "messaging.message.id": "m-1",
        "tenantry.tenant.id": "acme",
    }
    (link,) = span.links
    assert span_id(link.context) == SPAN
    assert dict(link.attributes or {}) == {"messaging.message.id": "m-1"}


def test_a_batch_is_a_trace_of_its_own_linked_to_its_messages_but_not_to_too_many(
    recorded: Recorded,
) -> None:
    batch = [arrived(f"m-{n}", other(n), topic="events") for n in range(1, 100)]
    with recorded.tracer.processing("acme", [*batch, arrived("x", topic="logs")]):
        pass
    span = recorded.only
    assert span.parent is None
    assert attributes(span)["messaging.batch.message_count"] == 100
    assert attributes(span)["messaging.destination.name"] == "tenant_acme_stream"
    assert [span_id(one.context) for one in span.links] == [
        f"{n:016x}" for n in range(1, MOST_FOLLOWED + 1)
    ]


@pytest.mark.parametrize(
    ("ratio", "parents", "spans"),
    [
        (1.0, [REFUSED, REFUSED], 0),  # its sender has decided
        (1.0, [f"00-{TRACE}-{SPAN}-02"], 0),
        (1.0, [REFUSED, None], 1),
        (0.0, [REFUSED, None], 0),
        (0.0, [None], 0),
        (0.0, ["garbage"], 0),
        (0.0, [None, PARENT], 1),  # recorded for the one that is
        (0.0, [PARENT], 1),
        (1.0, ["garbage"], 1),
    ],
)
def test_its_sender_decides_whether_a_message_is_recorded_or_else_the_ratio(
    ratio: float, parents: list[object], spans: int
) -> None:
    recorded = Recorded(ratio)
    batch = [arrived(str(number), parent) for number, parent in enumerate(parents)]
    with recorded.tracer.processing("acme", batch):
        assert (recorded.tracer.current() is not None) == bool(spans)
        with recorded.tracer.storing():
            pass
    assert len(recorded.spans) == 2 * spans


def test_what_fails_says_how_but_nothing_of_what_was_in_it(recorded: Recorded) -> None:
    with pytest.raises(ValueError), recorded.tracer.processing("acme", [arrived("1")]):
        raise ValueError("the password is 1234")
    span = recorded.only
    assert attributes(span)["error.type"] == "ValueError"
    assert (span.status.status_code.name, span.status.description) == ("ERROR", None)
    assert not span.events


def test_the_commit_is_a_part_of_the_batch_and_nothing_by_itself(recorded: Recorded) -> None:
    with recorded.tracer.storing() as none:
        assert none is NO_SPAN
    with recorded.tracer.processing("acme", [arrived("1")]), recorded.tracer.storing():
        pass
    commit, batch = recorded.spans
    assert (commit.name, commit.kind.name) == ("commit", "CLIENT")
    assert attributes(commit) == {"db.system.name": "postgresql"}
    assert commit.parent == batch.context


def handled(identity: str, parent: object) -> Message:
    return Message(
        id=identity,
        tenant_id="acme",
        topic="events",
        partition=1,
        payload={},
        body=None,
        content_type=None,
        headers={"traceparent": parent},
        attempt=2,
    )


def run(recorded: Recorded, batch: list[Incoming], calls: list[Call]) -> None:
    """Run handlers on a thread of the pool, as the store does it within a batch."""
    cursor: Any = SimpleNamespace(touched=False, misuse=lambda: None)
    pool = HandlerPool(places=1, timeout=DEADLINE, tracer=recorded.tracer)
    try:
        with recorded.tracer.processing("acme", batch):
            done = 0
            while done < len(calls):
                done += pool.run(calls[done:], cursor, until=math.inf).count
    finally:
        pool.close()


def test_a_handler_of_a_message_by_itself_is_a_part_of_its_batch(recorded: Recorded) -> None:
    def fail(_message: Message, _cursor: object) -> None:
        raise LookupError("secret")

    run(recorded, [arrived("m-1")], [Call(fail, handled("m-1", PARENT))])
    handler, batch = recorded.spans
    assert (handler.name, handler.kind.name) == ("handle events", "CONSUMER")
    assert handler.parent == batch.context
    assert not handler.links
    assert attributes(handler) == {
        "messaging.system": "rabbitmq",
        "messaging.operation.type": "process",
        "messaging.operation.name": "handle",
        "messaging.destination.template": "tenant_{id}_stream",
        "messaging.destination.name": ("tenant_acme_stream:events.1:tenant_acme_stream.events.1"),
        "messaging.message.id": "m-1",
        "tenantry.tenant.id": "acme",
        "tenantry.attempt": 2,
        "error.type": "LookupError",
    }


def test_handlers_of_a_batch_are_parts_of_their_messages_traces_and_not_too_many_are_followed(
    recorded: Recorded,
) -> None:
    def act(_message: Message, _cursor: object) -> None:
        assert recorded.tracer.current() is not None

    def unseen(_message: Message, _cursor: object) -> None:
        """Do nothing."""

    numbers = range(1, MOST_FOLLOWED + 10)
    batch = [arrived("no", REFUSED), *(arrived(str(n), other(n)) for n in numbers)]
    calls = [Call(unseen, handled("no", REFUSED))]
    calls += [Call(act, handled(str(n), other(n))) for n in numbers]
    run(recorded, batch, calls)
    *handlers, whole = recorded.spans
    assert [trace_id(one) for one in handlers] == [f"{n:032x}" for n in range(1, MOST_FOLLOWED + 1)]
    assert {span_id(one.links[0].context) for one in handlers} == {span_id(whole.context)}
    assert {span_id(one.parent) for one in handlers} == {
        f"{n:016x}" for n in range(1, MOST_FOLLOWED + 1)
    }


def outgoing(identity: str, key: str = "events.0") -> Outgoing:
    return Outgoing(exchange="tenant_acme_stream", routing_key=key, body=b"1", message_id=identity)


def test_what_is_published_carries_the_publishing_or_what_its_sender_has_said(
    recorded: Recorded,
) -> None:
    publishing = recorded.tracer.publishing
    with publishing("acme", [outgoing("1")], read(PARENT, "a=1")) as span:
        carried = span.context
    assert recorded.only.kind.name == "PRODUCER"
    assert carried is not None
    assert (carried.trace_id, carried.sampled, carried.state) == (TRACE, True, "a=1")
    assert carried.span_id == span_id(recorded.only.context)
    assert span_id(recorded.only.parent) == SPAN
    assert attributes(recorded.only) == {
        "messaging.system": "rabbitmq",
        "messaging.operation.type": "send",
        "messaging.operation.name": "publish",
        "messaging.destination.template": "tenant_{id}_stream",
        "messaging.destination.name": "tenant_acme_stream:events.0",
        "messaging.message.id": "1",
        "tenantry.tenant.id": "acme",
    }
    with publishing("acme", [outgoing("1")], read(REFUSED)) as span:
        assert span.context == read(REFUSED)
    assert len(recorded.spans) == 1
    with publishing("acme", [outgoing("1"), outgoing("2", "default")], None):
        pass
    several = recorded.spans[-1]
    assert several.parent is None
    assert attributes(several)["messaging.batch.message_count"] == 2
    assert attributes(several)["messaging.destination.name"] == "tenant_acme_stream"
    with Recorded(0.0).tracer.publishing("acme", [outgoing("1")], None) as span:
        assert span.context is None


def test_a_command_is_a_part_of_the_request_for_it(recorded: Recorded) -> None:
    tracer = recorded.tracer
    asked = Asked("PUT", "/tenants/{tenant_id}/limits", "/tenants/acme/limits", "acme")
    with tracer.serving(asked, None) as request:
        told = tracer.current()
        request.answered(503)
    assert told is not None
    with tracer.executing("ChangeLimits", "acme", told):
        pass
    with tracer.executing("ResizeWorkers", "acme", None) as none:  # nobody's request
        assert none is NO_SPAN
    server, command = recorded.spans
    assert (server.kind.name, server.name) == ("SERVER", "PUT /tenants/{tenant_id}/limits")
    assert attributes(server) == {
        "http.request.method": "PUT",
        "http.route": "/tenants/{tenant_id}/limits",
        "url.path": "/tenants/acme/limits",
        "tenantry.tenant.id": "acme",
        "http.response.status_code": 503,
        "error.type": "503",
    }
    assert (command.kind.name, command.name) == ("INTERNAL", "execute ChangeLimits")
    assert span_id(command.parent) == told.span_id == span_id(server.context)


def test_no_id_of_a_tenants_keeps_spans_from_being_sent(recorded: Recorded) -> None:
    for identity in ("\ud800" * 10_000, "\0", "x" * 10_000):
        with recorded.tracer.processing("acme", [arrived(identity)]):
            pass
    sent = encode_spans(recorded.spans).SerializeToString()
    assert len(sent) < 3 * 10 * LONGEST_TEXT


class Away(SpanExporter):
    """Takes spans, or not, as it is told."""

    result: SpanExportResult | Exception = SpanExportResult.SUCCESS

    def export(self, spans: Any) -> SpanExportResult:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def test_an_outage_of_what_collects_is_told_once(recorded: Recorded) -> None:
    away = Away()
    told = ToldOnce(away, "http://collector.test/v1/traces")
    with recorded.tracer.processing("acme", [arrived("1")]):
        pass
    with capture_logs() as logs:
        for result in (
            SpanExportResult.SUCCESS,
            SpanExportResult.FAILURE,
            RuntimeError("broken"),
            SpanExportResult.FAILURE,
            SpanExportResult.SUCCESS,
            SpanExportResult.SUCCESS,
        ):
            away.result = result
            told.export(recorded.spans)
    assert [(one["event"], one.get("lost")) for one in logs] == [
        ("tracing.does_not_arrive", None),
        ("tracing.arrives_again", 3),
    ]


def test_the_end_does_not_wait_for_what_collects() -> None:
    holding = threading.Event()

    class Holding(SpanProcessor):
        def shutdown(self) -> None:
            holding.wait(DEADLINE)

    provider = provider_of("tests", 1.0)
    provider.add_span_processor(Holding())
    with capture_logs() as logs:
        ExportingTracer(provider, system="rabbitmq").close(0)
    holding.set()
    assert [one["event"] for one in logs] == ["tracing.not_all_sent"]


def settings(**tracing: object) -> Settings:
    return Settings.model_validate({"tracing": tracing})


def test_without_what_exports_it_a_trace_is_refused_by_key_and_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(configured, "is_installed", lambda: False)
    assert configured.export_of(settings()) is None
    with pytest.raises(SettingsError, match=r"tracing\.endpoint: .*'tenantry\[tracing\]'"):
        configured.export_of(settings(endpoint="http://127.0.0.1:4318"))


@pytest.mark.parametrize("given", ["https://c.test", "https://c.test/", "https://c.test/v1/traces"])
def test_spans_go_where_a_collector_takes_them(given: str) -> None:
    export = configured.export_of(settings(endpoint=given, headers="a=b%20c=, d=%2C"))
    assert export is not None
    assert export.endpoint == "https://c.test/v1/traces"
    assert export.headers == {"a": "b c=", "d": ","}
    assert export.system == "postgresql"
    assert "b c" not in repr(export)
