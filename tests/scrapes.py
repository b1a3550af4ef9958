"""Metrics as a scraper reads them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrape:
    """What one scrape has brought: the type of each family, and every sample's value."""

    types: dict[str, str]
    samples: dict[tuple[str, Labels], float]

    def value(self, name: str, **labels: str) -> float | None:
        """Give one sample's value, None if there is no such sample."""
        return self.samples.get((name, frozenset(labels.items())))

    def labels(self, label: str) -> set[str]:
        """Give every value a label has anywhere."""
        return {value for _, labels in self.samples for key, value in labels if key == label}

    def processed(self, tenant_id: str) -> tuple[float | None, ...]:
        """Give a tenant's messages: stored, duplicate, dead-lettered."""
        return tuple(
            self.value("messages_processed_total", tenant_id=tenant_id, outcome=outcome)
            for outcome in ("stored", "duplicate", "dead_lettered")
        )


def read(text: str) -> Scrape:
    """Read Prometheus's text format. No family and no sample may come twice."""
    return _scrape(text_string_to_metric_families(text))


def read_openmetrics(text: str) -> Scrape:
    """Read OpenMetrics, whose parser is strict about more."""
    return _scrape(openmetrics_families(text))


def _scrape(families: Iterable[Metric]) -> Scrape:
    types: dict[str, str] = {}
    samples: dict[tuple[str, Labels], float] = {}
    for family in families:
        assert family.name not in types, f"{family.name} comes twice"
        assert family.documentation, f"{family.name} has no help"
        types[family.name] = family.type
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, f"{key} comes twice"
            samples[key] = sample.value
    return Scrape(types=types, samples=samples)
