"""Writes metrics in the formats of Prometheus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.registry import Collector

from tenantry.metrics.text import write

OPENMETRICS: Final = "application/openmetrics-text"
TEXT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE: Final = f"{OPENMETRICS}; version=1.0.0; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Metrics as they go to a scraper."""

    body: bytes
    content_type: str


class MetricsPage:
    """Some collectors' metrics, and those of the process and of Python. Callable from any thread.

    The registry is its own: nothing a library registers globally shows up.
    """

    def __init__(self, *collectors: Collector) -> None:
        self._registry = CollectorRegistry()
        for collector in collectors:
            self._registry.register(collector)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def render(self, accept: str = "") -> Page:
        """Ask the collectors and write what they say: OpenMetrics for those who accept it."""
        openmetrics = _takes_openmetrics(accept)
        text = write(self._registry.collect(), openmetrics=openmetrics)
        return Page(body=text.encode(), content_type=OPENMETRICS_TYPE if openmetrics else TEXT_TYPE)


def _takes_openmetrics(accept: str) -> bool:
    for one in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in one.split(";"))
        if kind == OPENMETRICS:
            return not any(_is_refusal(parameter) for parameter in parameters)
    return False


def _is_refusal(parameter: str) -> bool:
    """Tell whether a parameter is `q=0`, in any spelling."""
    key, _, value = parameter.partition("=")
    return key.strip() == "q" and not value.strip().strip("0.")
