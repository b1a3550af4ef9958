"""Which work belongs to which: spans of what is done, told to whoever collects them."""

from __future__ import annotations

from importlib.util import find_spec

from tenantry.tracing.port import CLOSE_SECONDS, Asked, Export, Span, TraceContext, Tracer

__all__ = [
    "CLOSE_SECONDS",
    "Asked",
    "Export",
    "Span",
    "TraceContext",
    "Tracer",
    "is_installed",
    "open_tracer",
]

_NEEDED = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


def is_installed() -> bool:
    """Tell whether there is what exports spans; nothing of it is loaded."""
    try:
        return all(find_spec(name) is not None for name in _NEEDED)
    except ModuleNotFoundError:  # not even what they are in
        return False


def open_tracer(export: Export | None) -> Tracer:
    """Make what follows the work of this process; without an `export`, what follows nothing.

    It is the caller's to close.
    """
    if export is None:
        return Tracer()
    from tenantry.tracing.exporting import exporting_tracer

    return exporting_tracer(export)
