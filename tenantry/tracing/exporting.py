"""Spans by OpenTelemetry, named by its conventions; only this and `sending` use the library."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Final, Self

import structlog
from opentelemetry import context as ambient
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.sampling import (
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.span import TraceState
from opentelemetry.util.types import Attributes, AttributeValue

from tenantry import __version__
from tenantry.domain import names
from tenantry.tracing.lost import LostSpans
from tenantry.tracing.port import (
    CLOSE_SECONDS,
    NO_SPAN,
    NOT_RECORDED,
    TRACEPARENT,
    Arrived,
    Asked,
    Export,
    Handled,
    Sent,
    Span,
    TraceContext,
    Tracer,
    of_message,
    of_request,
    says_no,
)
from tenantry.tracing.sending import TENANT, SharedQueue, ToldOnce

log = structlog.get_logger("tracing")

MOST_FOLLOWED: Final = 32
"""Most messages of a batch that are traced individually: a link and a handler's span each."""

LONGEST_TEXT: Final = 256
"""Most characters of an attribute: senders choose their ids, of any length."""

_LIMITS: Final = {
    "max_attributes": 32,
    "max_links": MOST_FOLLOWED,
    "max_events": 8,
    "max_link_attributes": 4,
    "max_event_attributes": 4,
    "max_attribute_length": LONGEST_TEXT,
}

_DESTINATION: Final = names.exchange_name("{id}")
"""The destination in spans' names: a template, as there are as many exchanges as tenants."""


def exporting_tracer(export: Export) -> ExportingTracer:
    """Make a tracer that exports its spans on a thread of its own."""
    exporter = OTLPSpanExporter(
        endpoint=export.endpoint, headers=export.headers or None, timeout=export.timeout
    )
    provider = provider_of(export.service_name, export.sample_ratio)
    lost = LostSpans(export.lost_in)
    provider.add_span_processor(SharedQueue(ToldOnce(exporter, export.endpoint, lost), lost))
    # Spans that a handler begins with the library directly are exported the same way.
    trace.set_tracer_provider(provider)
    log.info("tracing.exports", endpoint=export.endpoint, sample_ratio=export.sample_ratio)
    return ExportingTracer(provider, system=export.system, lost=lost)


def provider_of(service_name: str, sample_ratio: float) -> TracerProvider:
    """Make the provider of spans; the caller adds processors."""
    return TracerProvider(
        sampler=ParentBased(root=_AsLinked(sample_ratio)),
        resource=Resource.create({"service.name": service_name, "service.version": __version__}),
        span_limits=SpanLimits(**_LIMITS),
        shutdown_on_exit=False,
    )


class ExportingTracer(Tracer):
    """Makes spans by a provider, for messages of one messaging `system`."""

    on = True

    def __init__(
        self, provider: TracerProvider, *, system: str, lost: LostSpans | None = None
    ) -> None:
        """Spans lost on their way are counted in `lost`."""
        self._lost = lost or LostSpans()
        self._provider = provider
        self._tracer = provider.get_tracer("tenantry", __version__)
        self._system = system

    def context_of(self, headers: Iterable[tuple[bytes, bytes]]) -> TraceContext | None:
        """See `Tracer.context_of`."""
        return of_request(headers)

    def current(self) -> TraceContext | None:
        """See `Tracer.current`."""
        span = trace.get_current_span()
        return _told(span.get_span_context()) if span.is_recording() else None

    def serving(self, asked: Asked, parent: TraceContext | None) -> Span:
        """See `Tracer.serving`."""
        attributes: dict[str, AttributeValue] = {
            "http.request.method": asked.method,
            "http.route": asked.route,
            "url.path": _text(asked.path),
        }
        if asked.tenant_id is not None:
            attributes[TENANT] = _text(asked.tenant_id)
        name = f"{asked.method} {asked.route}"
        return self._begin(name, SpanKind.SERVER, attributes, parent=parent)

    def executing(self, command: str, tenant_id: str, parent: TraceContext | None) -> Span:
        """See `Tracer.executing`. A command without a parent context is not traced."""
        if parent is None:
            return NO_SPAN
        attributes: dict[str, AttributeValue] = {
            "tenantry.command": command,
            TENANT: _text(tenant_id),
        }
        return self._begin(f"execute {command}", SpanKind.INTERNAL, attributes, parent=parent)

    def publishing(
        self, tenant_id: str, messages: Sequence[Sent], parent: TraceContext | None
    ) -> Span:
        """See `Tracer.publishing`. An unrecorded message carries its sender's context."""
        keys = {one.routing_key for one in messages}
        where = names.exchange_name(tenant_id)
        attributes = self._messaging("send", "publish", tenant_id) | _count(messages)
        attributes["messaging.destination.name"] = (
            f"{where}:{keys.pop()}" if len(keys) == 1 else where
        )
        if len(messages) == 1 and messages[0].message_id is not None:
            attributes["messaging.message.id"] = _text(messages[0].message_id)
        return self._begin(f"publish {_DESTINATION}", SpanKind.PRODUCER, attributes, parent=parent)

    def processing(self, tenant_id: str, batch: Sequence[Arrived]) -> Span:
        """See `Tracer.processing`.

        A batch with a recorded message is recorded as well, and linked to that message; a batch of
        one message is in the message's own trace. Messages marked as not recorded leave no span.
        """
        followed: list[tuple[int, TraceContext]] = []
        undecided = False
        for index, one in enumerate(batch):
            headers = one.headers
            if type(headers) is dict:
                # Most messages of a sender that records a few say no: each costs a glance.
                parent = headers.get(TRACEPARENT)
                if type(parent) is str and parent.endswith(NOT_RECORDED):
                    continue
            elif headers and says_no(headers):
                continue
            told = of_message(headers) if headers else None
            if told is None:
                undecided = True
            elif told.sampled:
                followed.append((index, told))
                if len(followed) == MOST_FOLLOWED:
                    break  # further messages change nothing
        if not followed and not undecided:
            return NO_SPAN
        span = self._start(
            f"process {_DESTINATION}",
            SpanKind.CONSUMER,
            {},
            parent=followed[0][1] if followed and len(batch) == 1 else None,
            links=[_link(told, batch[index].id) for index, told in followed],
        )
        if not span.is_recording():
            return NO_SPAN
        # Only now: with one batch in a hundred recorded, the others are spared this work.
        attributes = self._messaging("process", "process", tenant_id) | _count(batch)
        attributes["messaging.destination.name"] = _source(tenant_id, batch)
        if len(batch) == 1 and batch[0].id is not None:
            attributes["messaging.message.id"] = _text(batch[0].id)
        span.set_attributes(attributes)
        return _BatchSpan(span, [(index, told.trace_id) for index, told in followed])

    def storing(self) -> Span:
        """See `Tracer.storing`. Traced only as part of a recorded batch."""
        if not trace.get_current_span().is_recording():
            return NO_SPAN
        attributes = {"db.system.name": "postgresql"}
        return _Recorded(
            self._tracer.start_span("commit", kind=SpanKind.CLIENT, attributes=attributes)
        )

    def handling(self, message: Handled) -> Span:
        """See `Tracer.handling`.

        The span is a child of its batch's if that is in the message's own trace; otherwise it is in
        the message's trace, and linked to the batch.
        """
        batch = _BATCH.get()
        if batch is None or not batch.left:
            return NO_SPAN
        told = of_message(message.headers)
        if told is not None and not told.sampled:
            return NO_SPAN
        batch.left -= 1
        within = trace.get_current_span().get_span_context()
        attributes = self._messaging("process", "handle", message.tenant_id) | {
            "messaging.destination.name": _source(message.tenant_id, [message]),
            "messaging.message.id": _text(message.id),
            "tenantry.attempt": message.attempt,
        }
        apart = told is not None and told.trace_id != trace.format_trace_id(within.trace_id)
        return _Recorded(
            self._tracer.start_span(
                f"handle {message.topic}",
                context=_placed(told) if apart else None,
                kind=SpanKind.CONSUMER,
                attributes=attributes,
                links=[Link(within)] if apart else None,
            )
        )

    def lost(self) -> Mapping[str, int]:
        """See `Tracer.lost`."""
        return self._lost.totals()

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """See `Tracer.close`. If the collector is away, the remaining spans are lost."""
        # The library's own wait at shutdown has no bound that could be set.
        ending = threading.Thread(target=self._provider.shutdown, name="tracing-end", daemon=True)
        ending.start()
        ending.join(seconds)
        if ending.is_alive():
            log.warning("tracing.not_all_sent", after_seconds=seconds)

    def _messaging(self, kind: str, name: str, tenant_id: str) -> dict[str, AttributeValue]:
        return {
            "messaging.system": self._system,
            "messaging.operation.type": kind,
            "messaging.operation.name": name,
            "messaging.destination.template": _DESTINATION,
            TENANT: _text(tenant_id),
        }

    def _begin(
        self,
        name: str,
        kind: SpanKind,
        attributes: Mapping[str, AttributeValue],
        *,
        parent: TraceContext | None,
    ) -> Span:
        if parent is not None and not parent.sampled:
            return Span(parent)
        span = self._start(name, kind, attributes, parent=parent)
        return _Recorded(span) if span.is_recording() else NO_SPAN

    def _start(
        self,
        name: str,
        kind: SpanKind,
        attributes: Mapping[str, AttributeValue],
        *,
        parent: TraceContext | None,
        links: Sequence[Link] = (),
    ) -> trace.Span:
        """Begin a span with a remote parent, or without one a new trace."""
        return self._tracer.start_span(
            name, context=_placed(parent), kind=kind, attributes=attributes, links=links
        )


class _Recorded(Span):
    """A span that is recorded, as long as it is entered."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: trace.Span, followed: Sequence[tuple[int, str]] = ()) -> None:
        super().__init__(_told(span.get_span_context()), followed)
        self._span = span
        self._token: Token[Context] | None = None

    def __enter__(self) -> Self:
        self._token = ambient.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.failed(kind.__name__)
        if self._token is not None:
            ambient.detach(self._token)
        self._span.end()

    def failed(self, kind: str) -> None:
        """See `Span.failed`. An error's text may quote a message's content: it is not exported."""
        self._span.set_attribute("error.type", kind)
        self._span.set_status(Status(StatusCode.ERROR))

    def answered(self, status: int) -> None:
        """See `Span.answered`."""
        self._span.set_attribute("http.response.status_code", status)
        if status >= 500:
            self.failed(str(status))


class _Batch:
    """How many more of a batch's messages may be traced individually."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = MOST_FOLLOWED


_BATCH: Final[ContextVar[_Batch | None]] = ContextVar("tenantry_batch", default=None)


class _BatchSpan(_Recorded):
    """The span of a batch: handlers that are called within it have spans of their own.

    Where none of the messages is traced individually, the first one stands for all.
    """

    __slots__ = ("_before",)

    def __init__(self, span: trace.Span, followed: Sequence[tuple[int, str]]) -> None:
        own = trace.format_trace_id(span.get_span_context().trace_id)
        super().__init__(span, followed or [(0, own)])

    def __enter__(self) -> Self:
        self._before = _BATCH.set(_Batch())
        return super().__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, traceback)
        _BATCH.reset(self._before)


class _AsLinked(Sampler):
    """Samples a span without a parent: if a linked span is sampled, else by chance."""

    def __init__(self, ratio: float) -> None:
        self._by_chance = TraceIdRatioBased(ratio)

    def should_sample(  # noqa: PLR0917 - as the library calls it
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Decide."""
        if any(one.context.trace_flags.sampled for one in links or ()):
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes, trace_state)
        return self._by_chance.should_sample(
            parent_context, trace_id, name, kind, attributes, links, trace_state
        )

    def get_description(self) -> str:
        """Say how it decides."""
        return f"AsLinked{{{self._by_chance.get_description()}}}"


def _placed(told: TraceContext | None) -> Context:
    """Return a context in which spans are children of a remote span, or roots without one."""
    if told is None:
        return Context()
    return trace.set_span_in_context(trace.NonRecordingSpan(_span_context(told)), Context())


def _span_context(told: TraceContext) -> SpanContext:
    return SpanContext(
        trace_id=int(told.trace_id, 16),
        span_id=int(told.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED if told.sampled else TraceFlags.DEFAULT),
        trace_state=TraceState.from_header([told.state]) if told.state else None,
    )


def _told(context: SpanContext) -> TraceContext:
    return TraceContext(
        trace.format_trace_id(context.trace_id),
        trace.format_span_id(context.span_id),
        context.trace_flags.sampled,
        context.trace_state.to_header(),
    )


def _link(told: TraceContext, message_id: str | None) -> Link:
    attributes = {} if message_id is None else {"messaging.message.id": _text(message_id)}
    return Link(_span_context(told), attributes)


def _count(messages: Sequence[object]) -> dict[str, AttributeValue]:
    return {} if len(messages) == 1 else {"messaging.batch.message_count": len(messages)}


def _source(tenant_id: str, batch: Sequence[Arrived | Handled]) -> str:
    """Name the messages' source: the queue they have in common, or else the exchange."""
    exchange = names.exchange_name(tenant_id)
    topic, partition = batch[0].topic, batch[0].partition
    # A list is the quicker of the two, for hundreds that are nearly always alike.
    if any([one.topic != topic or one.partition != partition for one in batch]):  # noqa: C419
        return exchange
    if topic == names.DEFAULT_TOPIC:
        return f"{exchange}:{topic}:{names.queue_name(tenant_id)}"
    queue = names.partition_queue_name(tenant_id, topic, partition)
    return f"{exchange}:{topic}.{partition}:{queue}"


def _text(text: str) -> str:
    """Return text that UTF-8 can encode; a span that can't be encoded would fail its batch."""
    return text[:LONGEST_TEXT].encode("utf-8", "replace").decode()
