"""The HTTP API under load on loopback TCP, each figure beside a bare FastAPI handler's."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from bench import api_bare, api_rows, api_wrk
from bench.api_wrk import Load
from bench.load import Filler, body, wait_until
from bench.subject import Subject
from tenantry.api.paging import Cursors
from tenantry.api.routes.messages import binding
from tenantry.domain import names
from tenantry.messages.port import Order

LIMIT = 100
BATCH = 100
ROUNDS = 3
DEEP_ROUNDS = 5
PAGES, FLOOD, DEEP, POSTS = "bench-pages", "bench-flood", "bench-deep", "bench-posts"
_WARM_UP = 1.0
_INGESTION_ALONE = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured: seconds a run of wrk, rows of the deep tenant, messages of backlog."""

    seconds: float = 5.0
    deep_rows: int = 10_000_000
    backlog: int = 500_000


class Api:
    """A running daemon's API on TCP."""

    def __init__(self, daemon: Subject, db: str, rabbit: str, state_dir: Path) -> None:
        self._daemon = daemon
        self._db = db
        self._rabbit = rabbit
        self._cursors = Cursors(_cursor_key(state_dir))
        port = daemon.call("GET", "/info")["server"]["port"]
        self._base = f"http://127.0.0.1:{port}"

    def pages(self, plan: Plan) -> dict[str, float]:
        """Measure pages of 100 messages, alone and while messages pour in."""
        self._create(PAGES)
        api_rows.fill(self._db, PAGES, 20_000)
        url = f"{self._base}/messages?tenant_id={PAGES}&limit={LIMIT}"
        size = len(httpx.get(url, trust_env=False).raise_for_status().content)
        with api_bare.running(size) as bare_url:
            bare, read = _medians(
                partial(api_wrk.get, bare_url, seconds=plan.seconds),
                partial(api_wrk.get, url, seconds=plan.seconds),
            )
        figures = _named("pages_bare", bare) | _named("pages", read) | {"page_bytes": size}
        if plan.backlog:
            figures |= self._beside_ingestion(url, plan)
        self._delete(PAGES)
        return figures

    def depth(self, plan: Plan) -> dict[str, float]:
        """Compare the first page with the last, in both orders, of all topics and of one."""
        self._create(DEEP, topics=api_rows.TOPICS)
        api_rows.fill(self._db, DEEP, plan.deep_rows)
        figures: dict[str, float] = {"deep_rows": plan.deep_rows}
        for order in Order:
            for topic in (None, api_rows.TOPICS[0]):
                first_url = self._deep_url(order, topic, None)
                last_url = self._deep_url(order, topic, _last_page(plan.deep_rows, order, topic))
                self._check_last(last_url)
                pairs = _in_turns(
                    partial(api_wrk.get, first_url, seconds=1, connections=1),
                    partial(api_wrk.get, last_url, seconds=1, connections=1),
                    rounds=DEEP_ROUNDS,
                )
                # For single requests, the fastest round shows their cost best.
                name = f"{order.value}_{'topic' if topic else 'all'}"
                figures[f"first_{name}_ms"] = min(first.p50 for first, _ in pairs)
                figures[f"last_{name}_ms"] = min(last.p50 for _, last in pairs)
        self._delete(DEEP)
        return figures

    def posts(self, plan: Plan) -> dict[str, float]:
        """Publish batches of 100 messages, into a paused queue and into a consumed one."""
        self._create(POSTS)
        url = f"{self._base}/tenants/{POSTS}/messages"
        batch = json.dumps([{"payload": json.loads(body(n))} for n in range(BATCH)]).encode()
        headers = {"Content-Type": "application/json"}
        answer = httpx.post(url, content=batch, headers=headers, trust_env=False)
        size = len(answer.raise_for_status().content)
        self._daemon.call("POST", f"/tenants/{POSTS}/pause")
        with api_bare.running(size) as bare_url:
            bare, waiting = _medians(
                partial(api_wrk.post, bare_url, batch, seconds=plan.seconds),
                partial(api_wrk.post, url, batch, seconds=plan.seconds),
            )
        self._daemon.call("POST", f"/tenants/{POSTS}/resume")
        consumed = api_wrk.post(url, batch, seconds=plan.seconds)
        self._delete(POSTS)
        return (
            _named("posts_bare", bare)
            | _named("posts", waiting)
            | _named("posts_consumed", consumed)
        )

    def _beside_ingestion(self, url: str, plan: Plan) -> dict[str, float]:
        self._create(FLOOD)
        self._daemon.call("POST", f"/tenants/{FLOOD}/pause")
        Filler(self._rabbit, [(names.exchange_name(FLOOD), "default")], plan.backlog).run()
        before = self._daemon.stored()
        self._daemon.call("POST", f"/tenants/{FLOOD}/resume")
        wait_until(lambda: self._daemon.stored() > before, timeout=30)
        time.sleep(_WARM_UP)
        _, alone = self._ingesting(partial(time.sleep, _INGESTION_ALONE))
        read, beside = self._ingesting(partial(api_wrk.get, url, seconds=plan.seconds))
        if self._daemon.stored() - before >= plan.backlog:
            raise RuntimeError("the backlog was drained before the reading ended: make it larger")
        self._delete(FLOOD)
        return _named("busy", read) | {"ingestion_alone": alone, "ingestion_beside": beside}

    def _ingesting(self, act: Callable[[], Any]) -> tuple[Any, float]:
        """Call `act`; return its result, and the messages stored a second meanwhile."""
        before, began = self._daemon.stored(), time.perf_counter()
        result = act()
        return result, (self._daemon.stored() - before) / (time.perf_counter() - began)

    def _deep_url(self, order: Order, topic: str | None, after: int | None) -> str:
        url = f"{self._base}/messages?tenant_id={DEEP}&limit={LIMIT}&order={order.value}"
        if topic is not None:
            url += f"&topic={topic}"
        if after is not None:
            url += f"&cursor={self._cursors.seal_place(after, 1, *binding(DEEP, topic, order))}"
        return url

    def _check_last(self, url: str) -> None:
        page = httpx.get(url, trust_env=False).raise_for_status().json()
        if len(page["data"]) != LIMIT or page["next_cursor"] is not None:
            raise RuntimeError(f"{url} is not the last page")

    def _create(self, tenant: str, topics: tuple[str, ...] = ()) -> None:
        wanted = {"id": tenant, "name": tenant, "topics": topics}
        self._daemon.call("POST", "/tenants", json=wanted)

    def _delete(self, tenant: str) -> None:
        self._daemon.call("DELETE", f"/tenants/{tenant}")


def measure(api: Api, plan: Plan) -> dict[str, float]:
    """Measure everything, one after the other."""
    figures = api.pages(plan) | api.posts(plan)
    if plan.deep_rows:
        figures |= api.depth(plan)
    return figures


def _cursor_key(state_dir: Path) -> bytes:
    """Return the daemon's key of cursors, to begin in the middle; `_check_last` checks it."""
    return hashlib.sha256(b"cursors" + (state_dir / "cursor.key").read_bytes()).digest()


def _last_page(rows: int, order: Order, topic: str | None) -> int:
    """Return the position before the last full page; with a topic only every third row counts."""
    step = 1 if topic is None else len(api_rows.TOPICS)
    last = rows - rows % step  # the first topic's rows have the positions 3, 6, 9 ...
    return last - LIMIT * step if order is Order.ASCENDING else (LIMIT + 1) * step


def _in_turns(
    one: Callable[[], Load], other: Callable[[], Load], rounds: int
) -> list[tuple[Load, Load]]:
    """Measure two things in turns, so that both see the same machine."""
    return [(one(), other()) for _ in range(rounds)]


def _medians(one: Callable[[], Load], other: Callable[[], Load]) -> tuple[Load, Load]:
    pairs = _in_turns(one, other, ROUNDS)
    return _median([pair[0] for pair in pairs]), _median([pair[1] for pair in pairs])


def _median(loads: list[Load]) -> Load:
    return Load(
        rate=statistics.median(load.rate for load in loads),
        p50=statistics.median(load.p50 for load in loads),
        p99=statistics.median(load.p99 for load in loads),
    )


def _named(name: str, load: Load) -> dict[str, float]:
    return {f"{name}_per_s": load.rate, f"{name}_p50_ms": load.p50, f"{name}_p99_ms": load.p99}
