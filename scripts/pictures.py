"""The manual's pictures: plain SVG with a background of their own, for light and dark.

Change them here, and call it as `python -m scripts.pictures`: it writes them into docs/pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Final

PICTURES: Final = Path(__file__).parents[1] / "docs" / "pictures"

STYLE: Final = """\
<style>
.paper { fill: #fff } text { fill: #222; font: 13px sans-serif }
.small { font-size: 11px; fill: #555 }
.box { fill: #eef2fb; stroke: #3949ab } .own { fill: #e6f4ea; stroke: #2e7d32 }
.frame { fill: none; stroke: #888; stroke-dasharray: 4 3 } .line { fill: none; stroke: #444 }
.bad { fill: none; stroke: #c62828; stroke-width: 2 } .word { fill: #c62828 }
#head path { fill: #444 }
@media (prefers-color-scheme: dark) {
.paper { fill: #1e2129 } text { fill: #e6e6e6 } .small { fill: #aaa }
.box { fill: #2b3350; stroke: #8c9eff } .own { fill: #1f3a28; stroke: #81c784 }
.line { stroke: #bbb } .bad { stroke: #ff8a80 } .word { fill: #ff8a80 } #head path { fill: #bbb }
}
</style>
<defs><marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">
<path d="M0,0 L8,4 L0,8 z"/></marker></defs>"""


@dataclass(slots=True, kw_only=True)
class Picture:
    """A drawing, in pixels from its upper left corner."""

    title: str
    width: int
    height: int
    parts: list[str] = field(default_factory=list)

    def box(
        self, x: int, y: int, text: str, *, width: int = 120, height: int = 36, kind: str = "box"
    ) -> None:
        """Draw a box with lines of text in its middle."""
        self.parts.append(
            f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="5"/>'
        )
        lines = text.split("\n")
        first = y + height / 2 + 4.5 - 8 * (len(lines) - 1)
        for number, line in enumerate(lines):
            self.text(x + width // 2, round(first + 16 * number), line, small=number > 0)

    def frame(self, x: int, y: int, width: int, height: int, title: str) -> None:
        """Draw a broken line around what belongs together, with its name above it."""
        self.parts.append(
            f'<rect class="frame" x="{x}" y="{y}" width="{width}" height="{height}" rx="8"/>'
        )
        self.text(x + 10, y - 6, title, anchor="start")

    def text(
        self,
        x: int,
        y: int,
        text: str,
        *,
        small: bool = False,
        anchor: str = "middle",
        kind: str = "",
    ) -> None:
        """Write a line, by default around the middle that is given."""
        words = " ".join(filter(None, ("small" if small else "", kind)))
        css = f' class="{words}"' if words else ""
        self.parts.append(
            f'<text x="{x}" y="{y}" text-anchor="{anchor}"{css}>{escape(text)}</text>'
        )

    def arrow(self, *points: tuple[int, int], text: str = "", kind: str = "line") -> None:
        """Draw a line with a head at its end, and a text above the middle of its first part."""
        path = " L".join(f"{x},{y}" for x, y in points)
        self.parts.append(f'<path class="{kind}" d="M{path}" marker-end="url(#head)"/>')
        if text:
            (ax, ay), (bx, by) = points[:2]
            self.text((ax + bx) // 2, (ay + by) // 2 - 5, text, small=True)

    def cross(self, x: int, y: int, text: str) -> None:
        """Draw where something breaks, with what comes of it."""
        self.parts.append(f'<path class="bad" d="M{x - 6},{y - 6} l12,12 m0,-12 l-12,12"/>')
        self.text(x + 12, y + 5, text, anchor="start", kind="word")

    def line(self, x: int, y: int, down: int) -> None:
        """Draw a broken line downwards."""
        self.parts.append(f'<path class="frame" d="M{x},{y} v{down}"/>')

    def svg(self) -> str:
        """Give the picture as a file holds it."""
        size = (
            f'viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}"'
        )
        return "\n".join(
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
                f"<title>{escape(self.title)}</title>",
                STYLE,
                f'<rect class="paper" width="{self.width}" height="{self.height}" rx="8"/>',
                *self.parts,
                "</svg>\n",
            )
        )


def message() -> Picture:
    """A message's way, from who publishes to the row and the ack."""
    one = Picture(title="A message's way from its publisher to the row", width=760, height=250)
    one.box(20, 92, "Acme's program\nits own user", width=112, height=44, kind="own")
    one.frame(160, 32, 240, 190, "broker")
    one.box(175, 96, "stream", width=70, kind="own")
    for number, (name, y) in enumerate((("default", 45), ("orders.0", 96), ("orders.1", 147))):
        one.box(295, y, f"queue\n{name}", width=90, height=38, kind="own")
        one.arrow((245, 114), (294, (64, 114, 166)[number]))
    one.box(295, 190, "dead letters", width=90, height=26, kind="own")
    one.frame(430, 32, 150, 190, "daemon")
    one.box(450, 60, "consumer\nmakes batches", width=110, height=44)
    one.box(450, 148, "worker\nup to so many", width=110, height=44)
    for y in (64, 114, 166):
        one.arrow((385, y), (449, 84))
    one.arrow((505, 104), (505, 147))
    one.frame(610, 32, 130, 190, "PostgreSQL")
    one.text(675, 52, "one transaction:", small=True)
    for number, name in enumerate(("your function", "row", "counts")):
        one.box(625, 62 + 46 * number, name, width=100, height=34, kind="own" if number else "box")
    one.arrow((132, 114), (174, 114))
    one.arrow((560, 170), (624, 128))
    one.arrow((450, 185), (386, 203))
    one.text(675, 210, "commit, then ack", small=True)
    return one


def once() -> Picture:
    """Where it may break, and what comes of it."""
    one = Picture(title="Whatever breaks, each message is a row once", width=760, height=330)
    for x, name in ((110, "broker"), (380, "daemon"), (650, "PostgreSQL")):
        one.box(x - 60, 14, name, height=28)
        one.line(x, 42, 270)
    one.arrow((110, 72), (376, 72), text="delivers order-1")
    one.arrow((380, 102), (646, 102), text="stores order-1")
    one.cross(400, 126, "breaks here: nothing is stored,")
    one.text(412, 147, "and the broker delivers it again", anchor="start", kind="word")
    one.arrow((650, 172), (384, 172), text="committed")
    one.cross(400, 198, "breaks here: stored, no ack yet")
    one.arrow((110, 232), (376, 232), text="delivers order-1 again")
    one.arrow((380, 256), (646, 256), text="its id is there: a duplicate, no second row")
    one.arrow((380, 290), (114, 290), text="acknowledges, and the queue forgets it")
    return one


def tenants() -> Picture:
    """What is each tenant's own, and what all share."""
    one = Picture(title="What is each tenant's own, and what all share", width=760, height=300)
    rows = (
        ("on the broker", "user, stream, queues", 44),
        ("in the daemon", "tenant, consumer, workers", 106),
        ("in the database", "partition, counts, journal", 168),
        ("at the API", "token, limits, turns", 230),
    )
    for name, _, y in rows:
        one.text(20, y + 24, name, anchor="start")
    for x, tenant in ((140, "acme"), (360, "globex")):
        one.frame(x, 28, 205, 256, tenant)
        for _, own, y in rows:
            one.box(x + 10, y, own, width=185, height=40, kind="own")
    for (_, _, y), shared in zip(
        rows,
        ("a virtual host", "one process, or several", "one table, one schema", "one door"),
        strict=True,
    ):
        one.box(585, y, shared, width=160, height=40)
    one.text(665, 22, "shared by all")
    return one


def commands() -> Picture:
    """From a command to what runs, by way of the journal."""
    one = Picture(title="A command becomes events, and these what runs", width=760, height=230)
    one.box(20, 52, "command\nresize acme 8", width=120, height=44)
    one.box(190, 52, "decide\nmay it?", width=110, height=44)
    one.box(350, 52, "event\nWorkersResized", width=130, height=44, kind="own")
    one.box(540, 30, "journal\nappended, never changed", width=190, height=44, kind="own")
    one.box(540, 92, "read model\nin the same transaction", width=190, height=44)
    one.arrow((140, 74), (189, 74))
    one.arrow((300, 74), (349, 74))
    one.arrow((480, 68), (539, 54))
    one.arrow((480, 82), (539, 110))
    one.box(350, 160, "evolve\nstate: 8 workers", width=130, height=44)
    one.box(170, 160, "reconcile\neight workers run", width=130, height=44)
    one.arrow((415, 96), (415, 159))
    one.arrow((349, 182), (301, 182))
    one.arrow((539, 182), (481, 182), text="read")
    one.box(540, 160, "the past, a restart,\nanother node", width=190, height=44)
    one.arrow((720, 74), (745, 110), (745, 182), (731, 182))
    return one


def nodes() -> Picture:
    """Tenants on nodes, and one node that is lost."""
    one = Picture(
        title="Nodes share the tenants, and take over what one loses", width=760, height=250
    )
    for x, name, held in (
        (30, "node a", ("acme", "hooli")),
        (290, "node b", ("globex", "initech")),
        (550, "node c", ("umbrella", "stark")),
    ):
        one.frame(x, 30, 180, 110, name)
        for number, tenant in enumerate(held):
            one.box(x + 20, 44 + 46 * number, tenant, width=140, height=36, kind="own")
    one.cross(620, 22, "silent: fenced off")
    one.arrow((570, 62), (451, 62))
    one.arrow((570, 118), (500, 160), (240, 160), (191, 118))
    one.box(290, 190, "PostgreSQL\nwho has what, and since which term", width=260, height=44)
    for x in (120, 380, 640):
        one.arrow((x, 140), (min(max(x, 300), 540), 189))
    return one


DRAWN: Final = {
    "a-message": message, "once": once, "tenants": tenants, "a-command": commands, "nodes": nodes,
}  # fmt: skip


def drawn() -> Iterator[tuple[Path, str]]:
    """Give each picture's file, and what stands in it."""
    for name, draw in DRAWN.items():
        yield PICTURES / f"{name}.svg", draw().svg()


if __name__ == "__main__":
    for file, text in drawn():
        file.write_text(text, encoding="utf-8")
