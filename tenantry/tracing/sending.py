"""How spans get from where they end to who collects them: in a queue that tenants share."""

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
"""The attribute that says whose work a span is."""

MOST_WAITING: Final = 4096
"""Spans that wait to be sent; one tenant's are half of that at most."""

SENT_AT_ONCE: Final = 512
SEND_EVERY: Final = 2.0
"""Seconds."""


class SharedQueue(SpanProcessor):
    """Lets spans into the queue so that nobody's keep out those of others.

    Of one tenant as many may wait as there are places free: one that fills the queue has half of
    it, two have a third each, and whoever else comes always finds room (dynamic thresholds, as
    switches share their buffers). A span that is let in is sent; one that is not is lost, and
    counted.
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
        """Say whose a span is that does not say so itself: the tenant's of what it is a part of."""
        if not _tenant(span):
            parent = trace.get_current_span(parent_context)
            if isinstance(parent, ReadableSpan) and (tenant := _tenant(parent)):
                span.set_attribute(TENANT, tenant)

    def on_end(self, span: ReadableSpan) -> None:
        """Have it sent, if there is a place for it."""
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
        """Send what waits, and end."""
        self._queue.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what waits."""
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
    """Tells of spans that they have left the queue, and sends them on."""

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
        """Give up what is under way."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Do nothing: none wait here."""
        return self._exporter.force_flush(timeout_millis)


class ToldOnce(SpanExporter):
    """Sends spans on, and says once that they don't arrive, and once that they do again."""

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
        except Exception as error:  # noqa: BLE001 - whatever it is, spans are all that is lost
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
        """Give up what is under way."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Do nothing: none wait here."""
        return self._exporter.force_flush(timeout_millis)
