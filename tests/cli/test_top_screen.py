"""What `tenantry top` draws on screens of any size, and how it takes keys."""

from __future__ import annotations

import io
import os
import pty
import termios
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from tenantry.cli.terminal import Keys, Terminal, cells, cut, safe, shortened
from tenantry.cli.top import frame
from tenantry.cli.top_screen import ORDERS, Drawn, Screen, View, pressed

HOSTILE = (
    "\x1b[2J\n\t\x9b", "漢字" * 30, "\u202e\u05de\u05e1 \u0661", "e\u0301" + "\u0300" * 50,
    "\U0001f469\u200d\U0001f680\U0001f1e6\ud800", "",
)  # fmt: skip
HEADINGS = {
    "tenant", "node", "state", "workers", "rate/s", "limit/s", "pending", "full", "dead", "p99",
    "ms", "unsettled", "mailbox", "restarts", "stored", "held", "remark", "tenants",
}  # fmt: skip


def tenant(**given: Any) -> dict[str, Any]:
    return {
        "workers_current": 3, "consuming": True, "unsettled": 0, "held": 0, "rate": 0.0,
        "pending": 0, "stored": 0, "duplicates": 0, "dead_lettered": 0, "parked": None,
        "parked_at": None, "trouble": None, "latency_p99_ms": None, "rate_limit": None,
        "backlog_limit": None,
    } | given  # fmt: skip


def status(node: str, tenants: dict[str, dict[str, Any]], *others: str) -> dict[str, Any]:
    nodes = [{"name": one, "state": "active"} for one in (node, *others)]
    actors = [
        {
            "name": name, "kind": "Tenant", "state": "parked" if one["parked"] else "active",
            "mailbox": 0, "restarts": 0, "children": [],
        }
        for name, one in tenants.items()
    ]  # fmt: skip
    return {
        "state": "running", "ready": True, "reasons": [], "started_at": "2026-01-31T12:00:00Z",
        "pid": 4711, "abandoned": [], "node": node, "nodes": nodes,
        "tree": {"state": "running", "mailbox": 0, "children": actors},
        "tenants": {name: {"tenant_id": name, **one} for name, one in tenants.items()},
    }  # fmt: skip


LONG = "3f2c1a9e-77aa-4b0e-9c1d-b01d55aa0049"
FEW = {
    "acme": tenant(rate=1234.5, pending=87_000, backlog_limit=100_000, rate_limit=2000),
    LONG: tenant(rate=812.0, pending=12, latency_p99_ms=41.25, dead_lettered=1_234_567),
    "globex": tenant(consuming=False, trouble="queue tenant_globex_queue is taken by another"),
    "initech": tenant(parked="kept failing: ValueError"),
}
MANY = FEW | {f"tenant-{n}": tenant(rate=float(n), pending=n) for n in range(100)}


def draw(
    found: dict[str, Any], width: int, height: int, view: View | None = None, **how: Any
) -> Drawn:
    return Screen(**how).draw(found, view or View(), None, width, height)


def texts(drawn: Drawn) -> list[str]:
    return [line.text for line in drawn.lines]


def test_eighty_columns_show_what_matters_with_the_middle_of_long_ids_left_out() -> None:
    lines = texts(draw(frame(status("one", FEW), "rate"), 80, 24))
    assert len(lines) == 24
    assert lines[:7] == [
        "tenantry one, pid 4711: running, ready",
        "4 tenants, 1 parked, 2,046.5/s, 87,012 pending, 1,234,567 dead",
        "1-4 of 4, by rate",
        "tenant             state    workers    RATE/S   pending  full       dead  p99 ms",
        "acme               active       0/3   1,234.5    87,000   87%          0       -",
        "3f2c1a9e…55aa0049  active       0/3     812.0        12     -  1,234,567    41.2",
        "globex             waiting      0/3       0.0         0     -          0       -",
    ]
    assert lines[-1] == (
        "q quit  / filter  n nodes  r reverse  sort: i id m rate p pending d dead l p99"
    )


def test_a_smaller_screen_leaves_columns_out_and_a_wider_one_has_all_of_them() -> None:
    found = frame(status("one", FEW, "two"), "rate", {"two": status("two", {"t": tenant()})})
    small = texts(draw(found, 60, 20))
    assert small[4].split() == ["tenant", "state", "RATE/S", "pending", "dead"]
    assert small[-1] == "q quit  / filter  n nodes  r reverse  sort: i id  m rate"
    wide = texts(draw(found, 200, 50))
    assert set(wide[4].lower().split()) == HEADINGS - {"tenants"}
    assert wide[6].startswith(f"{LONG}  one")
    assert "queue tenant_globex" in wide[7]


def test_what_rows_are_sorted_by_is_on_the_screen_whatever_else_is_not() -> None:
    found = frame(status("one", FEW), "rate")
    for sort in ORDERS:
        lines = texts(draw(found, 60, 20, View(sort=sort)))
        assert sort == "node" or any(word.isupper() for word in lines[3].split()), lines[3]


def test_nodes_have_a_line_and_a_table_and_those_in_trouble_come_first() -> None:
    own = status("one", FEW, "two", "frozen", *[f"node-{n}" for n in range(9)])
    own["nodes"].append({"name": "gone", "state": "lost"})
    found = frame(own, "rate", {"two": status("two", MANY), "frozen": None})
    assert texts(draw(found, 80, 24))[2] == (
        "nodes: frozen active no answer; gone lost; n shows all"
    )
    lines = texts(draw(found, 80, 24, View(nodes=True)))
    rows = {line.split()[0]: line.split()[1:] for line in lines[3:16]}
    assert rows["one"] == ["active", "4", "2,046.5", "87,012", "0/12", "1,234,567", "0"]
    assert rows["frozen"][:3] == ["no", "answer", "-"]
    assert rows["gone"][:2] == ["lost", "-"]


def test_keys_sort_filter_and_scroll() -> None:
    found = frame(status("one", MANY), "rate")
    view = View()

    def press(*keys: str) -> list[str]:
        nonlocal view
        for key in keys:
            view = pressed(view, key, draw(found, 80, 24, view))
        return texts(draw(found, 80, 24, view))

    assert press("i")[4].startswith("3f2c1a9e…")
    assert press("r")[4].startswith("tenant-99")
    assert press("page-down", "page-down", "up")[2] == "38-56 of 104, by id, backwards"
    assert press("end")[2] == "86-104 of 104, by id, backwards"
    assert press("home")[2].startswith("1-19 of")
    assert press("left")[2] == "1-19 of 104, by restarts"
    assert press("right", "right", "right")[2] == "1-19 of 104, by rate"
    assert press("/", *"qr-1x")[-1].startswith("/qr-1x_")
    narrowed = press("clear", *"t-1x", "backspace", "enter")
    assert narrowed[2] == "1-11 of 11 with 't-1' of 104, by rate"
    assert press("escape")[2] == "1-19 of 104, by rate"
    assert press("/", *"nothing", "enter")[2] == "none with 'nothing' of 104, by rate"
    assert not view.left
    press("q")
    assert view.left


@given(
    width=st.integers(1, 220),
    height=st.integers(1, 60),
    texts_given=st.lists(st.sampled_from(HOSTILE) | st.text(max_size=80), min_size=6, max_size=6),
    numbers=st.lists(st.integers(0, 10**18), min_size=4, max_size=4),
    view=st.builds(
        View, sort=st.sampled_from(list(ORDERS)), nodes=st.booleans(), typing=st.booleans(),
        backwards=st.booleans(), first=st.integers(0, 200),
    ),
    ascii_only=st.booleans(),
)  # fmt: skip
def test_nothing_that_is_told_breaks_a_screen_of_any_size(
    width: int, height: int, texts_given: list[str], numbers: list[int], view: View,
    ascii_only: bool
) -> None:  # fmt: skip
    node, other, why, stuck, trouble, late = texts_given
    pending, dead, limit, stored = numbers
    hurt = tenant(
        pending=pending, dead_lettered=dead, backlog_limit=limit, stored=stored, parked=why,
        trouble=trouble, rate=float(dead), rate_limit=limit,
    )  # fmt: skip
    own = status(node, FEW | {"hurt": hurt}, other)
    own["reasons"], own["ready"], own["abandoned"] = [why], False, [stuck]
    own["tree"]["children"][0]["state"] = "stuck"
    found = frame(own, view.sort, {other: None} if other != node else {})
    drawn = Screen(ascii_only=ascii_only).draw(found, view, late, width, height)
    assert len(drawn.lines) == height
    for text, _ in drawn.lines:
        assert text.isprintable()
        assert text.isascii() or not ascii_only
        assert cell_len(text) <= width
    heading = [text for text, style in drawn.lines if style == "bold" and "state" in text]
    assert {word.lower() for line in heading for word in line.split()} <= HEADINGS


@given(st.text(max_size=30) | st.sampled_from(HOSTILE), st.integers(1, 40))
def test_texts_are_made_to_fit(text: str, width: int) -> None:
    shown = safe(text)
    for made in (cut(shown, width, "…"), shortened(shown, width, "…")):
        assert cell_len(made) <= cells(made) <= width
        assert cells(shown) > width or made == shown


@given(
    st.lists(
        st.sampled_from(
            [
                ("q", b"q"), ("/", b"/"), ("up", b"\x1b[A"), ("left", b"\x1bOD"),
                ("page-down", b"\x1b[6~"), ("enter", b"\r"), ("backspace", b"\x7f"),
                (None, b"\x1b[200~"), (None, "ü漢".encode()), (None, b"\x01"),
            ]
        )
    ),
    st.data(),
)  # fmt: skip
def test_keys_are_the_same_in_whatever_pieces_they_come(
    sent: list[tuple[str | None, bytes]], data: st.DataObject
) -> None:
    stream, keys, found = b"".join(one for _, one in sent), Keys(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += keys.feed(stream[:size])
        stream = stream[size:]
    assert found == [name for name, _ in sent if name is not None]
    assert not keys.begun


def test_an_escape_with_nothing_behind_it_is_a_key() -> None:
    keys = Keys()
    assert (keys.feed(b"\x1b"), keys.begun) == ([], True)
    assert (keys.end(), keys.begun) == (["escape"], False)
    assert keys.feed(b"\x1bq") == ["escape", "q"]
    assert keys.feed(b"\x1b[" + b"0" * 99) == ["escape", "[", *"0" * 99]


def test_the_terminal_is_given_back_after_a_mistake() -> None:
    theirs, ours = pty.openpty()
    try:
        before = termios.tcgetattr(ours)
        console = Console(file=io.StringIO(), force_terminal=True, width=40, height=3)
        with closing(Terminal(console, ours)) as terminal:
            with pytest.raises(ZeroDivisionError), terminal.taken():  # noqa: PT012 - it ends all this
                assert termios.tcgetattr(ours) != before
                terminal.draw(draw(frame(status("one", FEW), "rate"), *terminal.size).lines)
                os.write(theirs, b"\x1b[A/")
                assert terminal.wait() == ["up", "/"]
                os.write(theirs, b"\x1b")
                assert [*terminal.wait(), *terminal.wait()] == ["escape"]
                terminal.wake()
                assert terminal.wait() == []
                raise ZeroDivisionError
            assert termios.tcgetattr(ours) == before
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        assert shown.endswith("\x1b[?1049l\x1b[?25h\x1b[?7h")
        assert shown.count("\x1b[1;1H") == 1
    finally:
        os.close(theirs)
        os.close(ours)


def test_the_screen_that_the_manual_shows_is_what_is_drawn() -> None:
    def told(name: str, tenants: dict[str, dict[str, Any]], busy: dict[str, int]) -> dict[str, Any]:
        said = status(name, tenants, "ingest-2" if name == "ingest-1" else "ingest-1")
        for actor in said["tree"]["children"]:
            worker = {"name": "worker", "kind": "Worker", "state": "busy", "mailbox": 0}
            actor["children"] = [worker | {"restarts": 0}] * busy.get(actor["name"], 0)
        return said

    backlog = {"backlog_limit": 100_000}
    umbrella = "umbrella-eu-production"
    one = {
        "acme": tenant(rate=1234.5, pending=87_120, latency_p99_ms=1840, **backlog),
        LONG: tenant(rate=812.0, pending=12, dead_lettered=3, latency_p99_ms=41.2),
        umbrella: tenant(rate=77.3, latency_p99_ms=8.9, **backlog),
        "globex": tenant(pending=950, consuming=False),
    }
    two = {
        "hooli": tenant(rate=310.4, pending=3, latency_p99_ms=12.5),
        "stark": tenant(rate=5.0, latency_p99_ms=6.1),
        "initech": tenant(pending=4210, dead_lettered=1204, parked="kept failing: ValueError"),
    }
    own = told("ingest-1", one, {"acme": 3, LONG: 3, umbrella: 1})
    found = frame(own, "rate", {"ingest-2": told("ingest-2", two, {"hooli": 1, "stark": 1})})
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    _, _, shown = page.partition("`tenantry top` on 80 columns and 14 lines:\n\n```text\n")
    assert texts(draw(found, 80, 14)) == shown.partition("```")[0].splitlines()
