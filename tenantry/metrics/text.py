"""Metrics as text: the formats of Prometheus and of OpenMetrics.

prometheus-client writes them too, at two to three times the cost, which with hundreds of tenants is
felt by everything else the process does. The tests hold the two against each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from prometheus_client.core import Metric
from prometheus_client.utils import floatToGoString

_PLAIN_NAMES: Final = {"counter": "_total", "info": "_info"}
"""What Prometheus's format adds to the names of families; OpenMetrics adds it to samples only."""

_PLAIN_TYPES: Final = {"info": "gauge", "stateset": "gauge", "unknown": "untyped"}


def write(families: Iterable[Metric], *, openmetrics: bool) -> str:
    """Write families one after the other. Exemplars, units and timestamps are left out."""
    lines = [line for family in families for line in _family(family, openmetrics)]
    if openmetrics:
        lines.append("# EOF")
    return "\n".join(lines) + "\n"


def _family(family: Metric, openmetrics: bool) -> Iterator[str]:
    name, kind = family.name, family.type
    if not openmetrics:
        name += _PLAIN_NAMES.get(kind, "")
        kind = _PLAIN_TYPES.get(kind, kind)
    meaning = family.documentation.replace("\\", r"\\").replace("\n", r"\n")
    yield f"# HELP {name} {_quotes(meaning) if openmetrics else meaning}"
    yield f"# TYPE {name} {kind}"
    for sample in family.samples:
        value = sample.value
        # Whole numbers, which most are, need no more than their digits.
        text = str(value) if type(value) is int else _number(value)
        if sample.labels:
            yield f"{sample.name}{{{_labels(sample.labels)}}} {text}"
        else:
            yield f"{sample.name} {text}"


def _labels(labels: Mapping[str, str]) -> str:
    return ",".join([f'{name}="{_escaped(value)}"' for name, value in labels.items()])


def _escaped(value: str) -> str:
    if "\\" not in value and "\n" not in value and '"' not in value:
        return value
    return _quotes(value.replace("\\", r"\\").replace("\n", r"\n"))


def _quotes(value: str) -> str:
    return value.replace('"', r"\"")


def _number(value: float) -> str:
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]
