"""Tracing: spans of the daemon's work, exported to a collector."""

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
    """Tell whether the packages that export spans are installed; load none of them."""
    try:
        return all(find_spec(name) is not None for name in _NEEDED)
    except ModuleNotFoundError:  # not even their parent package
        return False


def open_tracer(export: Export | None) -> Tracer:
    """Make this process's tracer; without an `export`, one that records nothing.

    The caller closes it.
    """
    if export is None:
        return Tracer()
    from tenantry.tracing.exporting import exporting_tracer

    return exporting_tracer(export)
