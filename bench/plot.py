"""Curves as SVG: one panel below the other over one axis of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

WIDTH, HEIGHT = 720, 150
LEFT, RIGHT, TOP, GAP = 70, 20, 24, 34
COLOURS = ("#2a6f97", "#c1121f", "#588157", "#7b2cbf")

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Curves on one scale: each name with its points (seconds, value)."""

    title: str
    curves: dict[str, Points]
    steps: bool = False


def write(path: Path, title: str, panels: Sequence[Panel]) -> None:
    """Write the panels as SVG, over the same time axis."""
    end = max(x for panel in panels for points in panel.curves.values() for x, _ in points)
    height = TOP + len(panels) * (HEIGHT + GAP) + 10
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"',
        f'  font-family="sans-serif" font-size="11" role="img" aria-label="{escape(title)}">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
    ]
    for number, panel in enumerate(panels):
        drawn += _panel(panel, TOP + number * (HEIGHT + GAP), end or 1)
    path.write_text("\n".join([*drawn, "</svg>"]) + "\n")


def _panel(panel: Panel, top: float, end: float) -> list[str]:
    most = max((y for points in panel.curves.values() for _, y in points), default=0) or 1
    wide = WIDTH - LEFT - RIGHT

    def place(x: float, y: float) -> str:
        return f"{LEFT + wide * x / end:.1f},{top + HEIGHT * (1 - y / most):.1f}"

    drawn = [f'<text x="{LEFT}" y="{top - 7}" fill="#222">{escape(panel.title)}</text>']
    for part in range(3):
        y, value = top + HEIGHT * part / 2, f"{most * (1 - part / 2):.3g}"
        drawn += [
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>',
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{value}</text>',
        ]
    for part in range(5):
        x = LEFT + wide * part / 4
        drawn.append(
            f'<text x="{x:.1f}" y="{top + HEIGHT + 14}" text-anchor="middle" '
            f'fill="#555">{end * part / 4:.0f} s</text>'
        )
    for number, (name, points) in enumerate(panel.curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        line = " ".join(place(*one) for one in (_stepped(points) if panel.steps else points))
        drawn.append(f'<polyline points="{line}" fill="none" stroke="{colour}"/>')
        if len(panel.curves) > 1:
            drawn.append(
                f'<text x="{WIDTH - RIGHT}" y="{top - 7}" dx="{-90 * number}" '
                f'text-anchor="end" fill="{colour}">{escape(name)}</text>'
            )
    return drawn


def _stepped(points: Points) -> list[tuple[float, float]]:
    """Return the points of steps: each value stays until the next one."""
    held = list(points[:1])
    for (_, before), (x, y) in pairwise(points):
        held += [(x, before), (x, y)]
    return held
