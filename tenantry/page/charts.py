"""Figures over time, drawn as a line in a box, with gaps where a value is not known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

WIDTH: Final = 600
HEIGHT: Final = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart: `lines` are SVG points in a box of `WIDTH` by `HEIGHT`; `most` is the box's top."""

    title: str
    unit: str
    most: float
    lines: Sequence[str]
    dots: Sequence[str]
    """Points without a neighbour, each drawn as a line from the point to itself."""


def chart(title: str, unit: str, values: Sequence[float | None]) -> Chart:
    """Draw values at equal intervals of time; None is a gap."""
    most = max((value for value in values if value is not None), default=0.0)
    step = WIDTH / max(1, len(values) - 1)
    runs: list[list[str]] = [[]]
    for place, value in enumerate(values):
        if value is None:
            runs.append([])
        else:
            height = HEIGHT - HEIGHT * value / most if most else HEIGHT
            runs[-1].append(f"{place * step:.1f},{height:.1f}")
    return Chart(
        title=title,
        unit=unit,
        most=most,
        lines=[" ".join(run) for run in runs if len(run) > 1],
        dots=[f"{run[0]} {run[0]}" for run in runs if len(run) == 1],
    )
