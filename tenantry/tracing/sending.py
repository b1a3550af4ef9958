"""How ended spans get to the collector: through a queue that tenants share."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from tenantry.tracing.lost import LostSpans, Reason

log = structlog.get_logger("tracing")

TENANT: Final = "tenantry.tenant.id"
"""The attribute with a span's tenant."""

MOST_WAITING: Final = 4096
"""Spans that may wait to be sent; at most half of them are one tenant's."""

SENT_AT_ONCE: Final = 512
SEND_EVERY: Final = 2.0
"""Seconds."""


class SharedQueue(SpanProcessor):
    """Admits spans to the queue so that no tenant's spans keep out those of others.

    A tenant may have as many spans waiting as places are free: one busy tenant gets half of the
    queue, two get a third each, and further tenants always find room (dynamic thresholds, as
    switches share their buffers). An admitted span is sent; any other is lost, and counted.
    """

    def __init__(
        self, exporter: SpanExporter, lost: LostSpans, *, most: int = MOST_WAITING
    ) -> None:
        self._most = most
        self._lost = lost
        self._lock = threading.Lock()
        self._waiting: Counter[str] = Counter()
        self._total = 0
        self._queue = BatchSpanProcessor(
            _Leaving(exporter, self._left),
            max_queue_size=most,
            schedule_delay_millis=SEND_EVERY * 1000,
            max_export_batch_size=min(SENT_AT_ONCE, most),
        )

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Set a span's missing tenant to its parent's."""
        if not _tenant(span):
            parent = trace.get_current_span(parent_context)
            if isinstance(parent, ReadableSpan) and (tenant := _tenant(parent)):
                span.set_attribute(TENANT, tenant)

    def on_end(self, span: ReadableSpan) -> None:
        """Queue an ended span, if there is room for it."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        tenant = _tenant(span)
        with self._lock:
            if there_is := self._waiting[tenant] < self._most - self._total:
                self._waiting[tenant] += 1
                self._total += 1
        if there_is:
            self._queue.on_end(span)
        else:
            self._lost.add(Reason.QUEUE)

    def shutdown(self) -> None:
        """Send the waiting spans, and end."""
        self._queue.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send the waiting spans."""
        return self._queue.force_flush(timeout_millis)

    def _left(self, spans: Sequence[ReadableSpan]) -> None:
        with self._lock:
            for span in spans:
                tenant = _tenant(span)
                self._waiting[tenant] -= 1
                if not self._waiting[tenant]:
                    del self._waiting[tenant]
            self._total -= len(spans)


def _tenant(span: ReadableSpan) -> str:
    return str((span.attributes or {}).get(TENANT, ""))


class _Leaving(SpanExporter):
    """Exports spans, and reports that they have left the queue."""

    def __init__(
        self, exporter: SpanExporter, left: Callable[[Sequence[ReadableSpan]], None]
    ) -> None:
        self._exporter = exporter
        self._left = left

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans."""
        self._left(spans)
        return self._exporter.export(spans)

    def shutdown(self) -> None:
        """Give up the export under way."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Do nothing: no spans wait here."""
        return self._exporter.force_flush(timeout_millis)


class ToldOnce(SpanExporter):
    """Exports spans; logs once when they stop arriving, and once when they arrive again."""

    def __init__(
        self, exporter: SpanExporter, endpoint: str, lost: LostSpans | None = None
    ) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._count = lost or LostSpans()
        self._lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans."""
        reason = "not reached, or refused"
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # noqa: BLE001 - on any error, only spans are lost
            result, reason = SpanExportResult.FAILURE, type(error).__name__
        if result is SpanExportResult.SUCCESS:
            if self._lost:
                log.info("tracing.arrives_again", endpoint=self._endpoint, lost=self._lost)
            self._lost = 0
        else:
            if not self._lost:
                log.warning(
                    "tracing.does_not_arrive",
                    endpoint=self._endpoint,
                    reason=reason,
                    remedy="spans are lost meanwhile, and nothing else; see to tracing.endpoint",
                )
            self._lost += len(spans)
            self._count.add(Reason.EXPORT, len(spans))
        return result

    def shutdown(self) -> None:
        """Give up the export under way."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Do nothing: no spans wait here."""
        return self._exporter.force_flush(timeout_millis)
