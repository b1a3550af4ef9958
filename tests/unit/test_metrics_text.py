"""What is written, against what prometheus-client writes and reads."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, exposition
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    StateSetMetricFamily,
    UnknownMetricFamily,
)
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from tenantry.metrics.page import write
from tests.scrapes import read, read_openmetrics

HOSTILE = 'quote " backslash \\ newline \n brace } equals = ä€\u2028 end'


class Everything(Collector):
    """A family of every kind, and every kind of value."""

    def collect(self) -> Iterator[Metric]:
        gauge = GaugeMetricFamily("gauge", f"Help with {HOSTILE}", labels=["name", "other"])
        gauge.add_metric([HOSTILE, ""], 1)
        gauge.add_metric(["tenant-1", "x"], 0.001)
        yield gauge
        values = GaugeMetricFamily("values", "Values", labels=["value"])
        for value in (0, -1, 2**70, 1.5e300, 1e-9, 1234567.0, math.inf, -math.inf, True):
            values.add_metric([repr(value)], value)
        yield values
        counter = CounterMetricFamily("things", "A counter", labels=["kind"])
        counter.add_metric(["a"], 3)
        yield counter
        yield CounterMetricFamily("bare", "A counter without labels", value=7)
        histogram = HistogramMetricFamily("seconds", "A histogram", labels=["name"])
        histogram.add_metric(["a"], [("0.1", 1), ("2.0", 3), ("+Inf", 4)], sum_value=4.25)
        yield histogram
        yield InfoMetricFamily("build", "An info", value={"version": "1.2.3"})
        yield StateSetMetricFamily("phase", "A state", value={"on": True, "off": False})
        yield UnknownMetricFamily("mystery", "Untyped", value=1)


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(Everything())
    PlatformCollector(registry=registry)
    return registry


def test_the_text_format_says_what_prometheus_client_says(registry: CollectorRegistry) -> None:
    found = read(write(registry.collect(), openmetrics=False))
    expected = read(exposition.generate_latest(registry).decode())
    assert found == expected
    assert len(found.samples) > 20


def test_openmetrics_says_what_prometheus_client_says(registry: CollectorRegistry) -> None:
    found = read_openmetrics(write(registry.collect(), openmetrics=True))
    written = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
    assert found == read_openmetrics(written.decode())


def test_not_a_number_is_written_as_such() -> None:
    family = GaugeMetricFamily("odd", "Odd", value=math.nan)
    value = read(write([family], openmetrics=False)).value("odd")
    assert value is not None
    assert math.isnan(value)


def test_lines_are_those_of_prometheus_client_but_for_the_order_of_labels() -> None:
    registry = CollectorRegistry()
    GCCollector(registry=registry)
    names = [
        line.partition("{")[0] for line in write(registry.collect(), openmetrics=False).split("\n")
    ]
    expected = exposition.generate_latest(registry).decode().split("\n")
    assert names == [line.partition("{")[0] for line in expected]


def test_no_families_are_an_empty_page() -> None:
    assert write([], openmetrics=True) == "# EOF\n"
