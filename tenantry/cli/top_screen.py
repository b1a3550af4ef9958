"""A frame of `tenantry top` on a screen of any size, and how keys change the view.

A column is shown as a whole or not at all: if room is short, the least important ones are left out.
Only a tenant's id, a node's name and the remark at the end of a row are ever shortened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from tenantry.cli.terminal import Line, cells, cut, safe, shortened

Row = Mapping[str, Any]

SHORTEST: Final = 16
"""Cells that are enough to recognize an id; it gets more if there is room."""

_GAP: Final = "  "
_REMARK: Final = 20
_LEAST_ROWS: Final = 3

ORDERS: Final[Mapping[str, Callable[[Row], Any]]] = {
    "tenant": lambda row: row["tenant_id"],
    "node": lambda row: (row["node"] or "", row["tenant_id"]),
    "rate": lambda row: (-row["rate"], -(row["pending"] or 0), row["tenant_id"]),
    "pending": lambda row: (-(row["pending"] or 0), -row["rate"], row["tenant_id"]),
    "dead-letters": lambda row: (-row["dead_lettered"], row["tenant_id"]),
    "latency": lambda row: (-(row.get("latency_p99_ms") or -1), row["tenant_id"]),
    "unsettled": lambda row: (-row["unsettled"], row["tenant_id"]),
    "mailbox": lambda row: (-row["mailbox"], row["tenant_id"]),
    "restarts": lambda row: (-row["restarts"], row["tenant_id"]),
}
"""How rows may be sorted, in the order in which the arrows go through them."""

_TOLD: Final = {
    "tenant": "id", "pending": "messages pending", "dead-letters": "dead letters",
    "latency": "p99 latency",
}  # fmt: skip
_SORT_KEYS: Final = {
    "i": "tenant", "m": "rate", "p": "pending", "b": "pending", "d": "dead-letters", "l": "latency",
}  # fmt: skip
_STEPS: Final = {"left": -1, "<": -1, "right": 1, ">": 1}
_MOVES: Final = {"up": -1, "k": -1, "down": 1, "j": 1}
_HELP: Final = (
    "q quit", "/ filter", "n nodes", "r reverse", "sort: i id", "m rate", "p pending", "d dead",
    "l p99",
)  # fmt: skip
_HELP_NODES: Final = ("q quit", "n tenants")


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The operator's choice of what is shown; `first` is the first row on the screen."""

    sort: str = "rate"
    backwards: bool = False
    sought: str = ""
    typing: bool = False
    nodes: bool = False
    first: int = 0
    left: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A screen, the row it begins with, and how many rows there is room for."""

    lines: Sequence[Line]
    first: int
    room: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    """A column; lower `rank`s get room first, and `none` tells whether the column would be empty.

    The column that rows are sorted by gets room right after the state, and a heading in capitals.
    """

    name: str
    rank: int
    order: str = ""
    cell: Callable[[Row], str]
    least: int = 0
    most: int | None = None
    left: bool = False
    none: Callable[[Mapping[str, Any]], bool] = lambda _: False


def pressed(view: View, key: str, drawn: Drawn) -> View:
    """Return the view after a key was pressed on the drawn screen."""
    if view.typing:
        return _typed(view, key)
    match key:
        case "q":
            return replace(view, left=True)
        case "r":
            return replace(view, backwards=not view.backwards, first=0)
        case "/":
            return replace(view, typing=True, nodes=False, first=0)
        case "n":
            return replace(view, nodes=not view.nodes, first=0)
        case "escape":
            return replace(view, sought="", nodes=False, first=0)
        case "home":
            return replace(view, first=0)
        case "end":
            return replace(view, first=1 << 60)
        case "page-up" | "page-down":
            step = drawn.room if key == "page-down" else -drawn.room
            return replace(view, first=max(0, drawn.first + step))
    if key in _MOVES:
        return replace(view, first=max(0, drawn.first + _MOVES[key]))
    if key in _STEPS:
        names = list(ORDERS)
        return _sorted_by(view, names[(names.index(view.sort) + _STEPS[key]) % len(names)])
    return _sorted_by(view, _SORT_KEYS[key]) if key in _SORT_KEYS else view


def _sorted_by(view: View, sort: str) -> View:
    return replace(view, sort=sort, backwards=False, nodes=False, first=0)


def _typed(view: View, key: str) -> View:
    match key:
        case "enter":
            return replace(view, typing=False)
        case "escape":
            return replace(view, typing=False, sought="")
        case "backspace":
            return replace(view, sought=view.sought[:-1])
        case "clear":
            return replace(view, sought="")
    return replace(view, sought=view.sought + key) if len(key) == 1 else view


class Screen:
    """Draws frames. `ascii_only` is for terminals that show ASCII only."""

    def __init__(self, *, has_keys: bool = True, ascii_only: bool = False) -> None:
        self._has_keys = has_keys
        self._ascii_only = ascii_only
        self._mark = "~" if ascii_only else "…"

    def draw(
        self, found: Mapping[str, Any], view: View, trouble: str | None, width: int, height: int
    ) -> Drawn:
        """Draw a frame; it has no more lines than the screen, and none is wider."""
        rows = self._rows(found, view)
        above = self._above(found, view, trouble, width)
        # The lines above give way to the last line, the headings, and some rows.
        del above[max(1, height - 2 - _LEAST_ROWS) :]
        room = max(1, height - len(above) - (2 if view.nodes else 3))
        first = max(0, min(view.first, len(rows) - room))
        shown = rows[first : first + room]
        lines = [*above]
        if not view.nodes:
            lines.append(Line(self._told_rows(view, first, len(shown), len(rows), found), "dim"))
        lines += self._table(found, shown, width, view)
        del lines[max(1, height - 1) :]
        if height > 1:
            lines += [Line("")] * (height - 1 - len(lines))
            lines.append(Line(self._foot(view, width), "reverse" if view.typing else "dim"))
        return Drawn(
            lines=[Line(cut(text, width, self._mark), style) for text, style in lines],
            first=first,
            room=room,
        )

    def _rows(self, found: Mapping[str, Any], view: View) -> list[Row]:
        if view.nodes:
            return list(found["nodes"])
        rows = [one for one in found["tenants"] if view.sought in one["tenant_id"]]
        rows.sort(key=ORDERS[view.sort], reverse=view.backwards)
        return rows

    def _above(
        self, found: Mapping[str, Any], view: View, trouble: str | None, width: int
    ) -> list[Line]:
        node = "" if found["node"] is None else f" {found['node']}"
        ready = "ready" if found["ready"] else f"not ready: {'; '.join(found['reasons'])}"
        lines = [
            Line(
                self._safe(f"tenantry{node}, pid {found['pid']}: {found['state']}, {ready}"),
                "green" if found["ready"] else "bold red",
            ),
            Line(_fitting(_totals(found), width, ", ")),
        ]
        if trouble is not None:
            lines.insert(0, Line(self._safe(f"as it was: {trouble}"), "bold red"))
        if found["abandoned"]:
            hang = self._safe(f"threads that hang: {', '.join(found['abandoned'])}")
            lines.append(Line(hang, "bold red"))
        if len(found["nodes"]) > 1 and not view.nodes:
            lines.append(self._told_nodes(found["nodes"], width))
        return lines

    def _told_nodes(self, nodes: Sequence[Row], width: int) -> Line:
        """Describe the nodes, those in trouble first."""
        well = [one for one in nodes if one["state"] == "active" and not one["silent"]]
        troubled = [one for one in nodes if one not in well]
        parts = []
        for one in (*troubled, *well):
            said = [shortened(self._safe(one["name"]), SHORTEST, self._mark), one["state"]]
            if one["silent"]:
                said.append("no answer")
            if one["tenants"] is not None:
                said.append(f"{_amount(one['tenants'], 'tenant')} {one['rate']:,.1f}/s")
            parts.append(" ".join(said))
        text = "nodes: " + "; ".join(parts)
        if cells(text) > width:
            more = "; n shows all" if self._has_keys else ""
            text = _fitting(parts, width - len("nodes: ") - len(more), "; ")
            text = f"nodes: {text}{more}"
        return Line(text, "bold yellow" if troubled else "")

    def _told_rows(
        self, view: View, first: int, shown: int, count: int, found: Mapping[str, Any]
    ) -> str:
        ways = ", backwards" if view.backwards else ""
        which = f"{first + 1:,}-{first + shown:,} of {count:,}" if count else "none"
        if view.sought:
            which += f" with {view.sought!r} of {len(found['tenants']):,}"
        return f"{which}, by {_TOLD.get(view.sort, view.sort)}{ways}"

    def _foot(self, view: View, width: int) -> str:
        if view.typing:
            return f"/{view.sought}_  (Enter: keep, Esc: all)"
        if not self._has_keys:
            return "Ctrl-C quits"
        if view.nodes:
            return _fitting(_HELP_NODES, width, _GAP)
        # The keys that sort stand closer together.
        text = _fitting([*_HELP[:4], " ".join(_HELP[4:])], width, _GAP)
        return text if text.endswith(_HELP[-1]) else _fitting(_HELP, width, _GAP)

    def _table(
        self, found: Mapping[str, Any], rows: Sequence[Row], width: int, view: View
    ) -> list[Line]:
        name, key, sort, known = "tenant", "tenant_id", view.sort, _TENANTS
        if view.nodes:
            name, key, sort, known = "node", "name", "node", _NODES
        given = [self._safe(row[key]) for row in rows]
        natural = max([len(name), *map(cells, given)])
        room = width - min(natural, SHORTEST)
        columns: list[tuple[_Column, int, list[str]]] = []
        for column in sorted(known, key=lambda one: (one.rank > 0, one.order != sort, one.rank)):
            if column.none(found):
                continue
            texts = [self._safe(column.cell(row)) for row in rows]
            if column.most is not None:
                texts = [shortened(text, column.most, self._mark) for text in texts]
            size = max([column.least, len(column.name), *map(cells, texts)])
            size = _REMARK if column is _REMARKS else size
            if len(_GAP) + size > room:
                break
            room -= len(_GAP) + size
            columns.append((column, size, texts))
        columns.sort(key=lambda one: known.index(one[0]))
        size = min(natural, SHORTEST) + max(0, min(room, natural - SHORTEST))
        first = [name.upper() if name == sort else name, *given]
        parts = [[_left(shortened(text, size, self._mark), size) for text in first]]
        for column, least, texts in columns:
            place = _left if column.left else _right
            title = column.name.upper() if column.order == sort else column.name
            parts.append([place(text, least) for text in (title, *texts)])
        heading, *body = (_GAP.join(line).rstrip() for line in zip(*parts, strict=True))
        styles = [_style(row) for row in rows]
        return [
            Line(heading, "bold"),
            *(Line(text, style) for text, style in zip(body, styles, strict=True)),
        ]

    def _safe(self, text: object) -> str:
        return safe(str(text), ascii_only=self._ascii_only)


def state_of(row: Row) -> str:
    """Return a tenant's state in a word, its worst problem first."""
    if row["stuck"]:
        return "stuck"
    return "waiting" if row["state"] == "active" and not row["consuming"] else str(row["state"])


def share_of_backlog(row: Row) -> float | None:
    """Return how full a tenant's backlog is, in percent; None without a limit."""
    limit, pending = row.get("backlog_limit"), row["pending"]
    return None if not limit or pending is None else 100 * pending / limit


def _style(row: Row) -> str:
    if "tenant_id" not in row:
        return "" if row["state"] == "active" and not row["silent"] else "bold yellow"
    match state_of(row):
        case "stuck" | "parked":
            return "bold red"
        case "active":
            return ""
        case "waiting":
            return "bold yellow"
    return "dim"


def _remark(row: Row) -> str:
    said = [f"stuck: {', '.join(row['stuck'])}" if row["stuck"] else "", row["parked"] or ""]
    return "; ".join(one for one in (*said, row["trouble"] or "") if one)


def _totals(found: Mapping[str, Any]) -> list[str]:
    totals = found["totals"]
    parked = [f"{totals['parked']} parked"] if totals["parked"] else []
    return [
        _amount(len(found["tenants"]), "tenant"),
        *parked,
        f"{totals['rate']:,.1f}/s",
        f"{_number(totals['pending'])} pending",
        f"{totals['dead_lettered']:,} dead",
        f"{totals['workers_busy']:,} of {totals['workers_current']:,} workers busy",
        f"{totals['unsettled']:,} unsettled",
        f"{totals['mailbox']:,} in mailboxes",
        f"{found['supervisor']['mailbox']:,} in the supervisor's",
    ]


def _fitting(parts: Sequence[str], width: int, gap: str) -> str:
    """Join as many parts as fit into `width` cells."""
    text = ""
    for part in parts:
        longer = text + gap + part if text else part
        if cells(longer) > width:
            break
        text = longer
    return text


def _amount(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{min(value, 999):.0f}%"


def _milliseconds(value: float | None) -> str:
    return _number(value, 1 if value is not None and value < 100 else 0)


def _left(text: str, size: int) -> str:
    return text + " " * (size - cells(text))


def _right(text: str, size: int) -> str:
    return " " * (size - cells(text)) + text


def _nobody(name: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda found: not any(one.get(name) is not None for one in found["tenants"])


_REMARKS: Final = _Column(
    name="remark", rank=9, left=True, cell=_remark,
    none=lambda found: not any(_remark(one) for one in found["tenants"]),
)  # fmt: skip
_TENANTS: Final[Sequence[_Column]] = (
    _Column(
        name="node", rank=7, order="node", most=SHORTEST, left=True,
        cell=lambda row: row["node"] or "-",
        none=lambda found: len(found["nodes"]) < 2,
    ),
    _Column(name="state", rank=0, cell=state_of, least=6, left=True),
    _Column(
        name="workers", rank=5, cell=lambda row: f"{row['workers_busy']}/{row['workers_current']}"
    ),
    _Column(
        name="rate/s", rank=1, order="rate", cell=lambda row: _number(row["rate"], 1), least=8
    ),
    _Column(
        name="limit/s", rank=8, cell=lambda row: _number(row.get("rate_limit")),
        none=_nobody("rate_limit"),
    ),
    _Column(
        name="pending", rank=2, order="pending", cell=lambda row: _number(row["pending"]), least=8
    ),
    _Column(
        name="full", rank=6, cell=lambda row: _percent(share_of_backlog(row)),
        none=_nobody("backlog_limit"),
    ),
    _Column(
        name="dead", rank=3, order="dead-letters", least=6,
        cell=lambda row: _number(row["dead_lettered"]),
    ),
    _Column(
        name="p99 ms", rank=4, order="latency", least=6,
        cell=lambda row: _milliseconds(row.get("latency_p99_ms")),
    ),
    _Column(
        name="unsettled", rank=10, order="unsettled", cell=lambda row: _number(row["unsettled"])
    ),
    _Column(name="mailbox", rank=11, order="mailbox", cell=lambda row: _number(row["mailbox"])),
    _Column(name="restarts", rank=12, order="restarts", cell=lambda row: _number(row["restarts"])),
    _Column(name="stored", rank=13, cell=lambda row: _number(row["stored"])),
    _Column(name="held", rank=14, cell=lambda row: _number(row["held"])),
    _REMARKS,
)  # fmt: skip
_NODES: Final[Sequence[_Column]] = (
    _Column(
        name="state", rank=0, left=True, least=6,
        cell=lambda row: "no answer" if row["silent"] else row["state"],
    ),
    _Column(name="tenants", rank=1, cell=lambda row: _number(row["tenants"])),
    _Column(name="rate/s", rank=2, cell=lambda row: _number(row["rate"], 1), least=8),
    _Column(name="pending", rank=3, cell=lambda row: _number(row["pending"]), least=8),
    _Column(
        name="workers", rank=4, cell=lambda row: "-" if row["workers_current"] is None else
        f"{row['workers_busy']}/{row['workers_current']}",
    ),
    _Column(name="dead", rank=5, cell=lambda row: _number(row["dead_lettered"]), least=6),
    _Column(name="mailbox", rank=6, cell=lambda row: _number(row["mailbox"])),
)  # fmt: skip
