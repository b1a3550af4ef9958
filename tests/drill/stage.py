"""The drill's nodes and Prometheus, and how an operator looks at them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import httpx
import yaml

from tests.acceptance.program import Program
from tests.deployed import RULES
from tests.faults.rig import Rig
from tests.prometheus import Prometheus, scraping
from tests.waiting import DEADLINE, eventually

LOUD: Final = ("warning", "error", "critical")
WIDEST: Final = 200
"""Characters of a line that are shown."""


@dataclass(slots=True, kw_only=True)
class Sight:
    """The record of a scene: headings, each with the text below it."""

    parts: list[tuple[str, str]] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    """Directories of this run, and the name that replaces each."""

    def add(self, heading: str, text: str) -> None:
        assert text.strip(), f"nothing is seen: {heading}"
        for place, name in self.places.items():
            text = text.replace(place, name)
        lines = [line.rstrip() for line in text.strip("\n").splitlines()]
        cut = [line if len(line) <= WIDEST else f"{line[: WIDEST - 1]}…" for line in lines]
        self.parts.append((heading, "\n".join(cut)))

    def markdown(self) -> str:
        return "\n".join(f"{heading}\n\n```text\n{text}\n```\n" for heading, text in self.parts)


class Stage:
    """Nodes, a Prometheus that scrapes them with the rules of deploy/, and an operator's views."""

    def __init__(self, rig: Rig, prometheus: Prometheus, lasts: Mapping[str, str]) -> None:
        self.rig = rig
        self.program = rig.program
        self.prometheus = prometheus
        self._lasts = lasts
        self._seen = len(self.program.stderr)

    def page(self, path: str = "/ui", program: Program | None = None) -> str:
        """Return a page's text as a reader sees it."""
        port = (program or self.program).get("/info")["server"]["port"]
        answer = httpx.get(f"http://127.0.0.1:{port}{path}", timeout=DEADLINE, trust_env=False)
        assert answer.status_code == 200, answer.text
        return _Text(answer.text).said()

    def metrics(self, *names: str, program: Program | None = None) -> str:
        """Return the samples of these metrics, without buckets."""
        text = (program or self.program).call("GET", "/metrics").text
        wanted = re.compile(rf"^(?:{'|'.join(names)})(?:\{{[^}}]*\}})? .*$", re.MULTILINE)
        return "\n".join(one[0] for one in wanted.finditer(text))

    def alerts(self, *expected: str) -> str:
        """Wait until the expected alerts fire, and describe all that do."""

        def firing() -> dict[str, dict[str, Any]]:
            found = self.prometheus.alerts()
            named = {
                f"{one['labels']['alertname']} {one['annotations']['summary']}": one
                for one in found
                if one["state"] == "firing"
            }
            there = {one["labels"]["alertname"] for one in named.values()}
            return named if there >= set(expected) else {}

        found = eventually(firing, what=f"{expected} fire")
        lines = []
        for _, one in sorted(found.items()):
            name = one["labels"]["alertname"]
            after = f", after {self._lasts[name]}" if name in self._lasts else ""
            lines.append(f"{name} ({one['labels']['severity']}{after})")
            lines.append(f"    {one['annotations']['summary']}")
            lines.append(f"    runbook: operations.md#{one['annotations']['runbook']}")
        return "\n".join(lines)

    def all_is_quiet(self, *gone: str) -> None:
        """Wait until none of the alerts in `gone` is left."""

        def quiet() -> bool:
            return not {one["labels"]["alertname"] for one in self.prometheus.alerts()} & set(gone)

        eventually(quiet, what=f"{gone} are over")

    def log(self, *events: str, program: Program | None = None) -> str:
        """Wait for events; return the first line of each, and of each from a warning upwards."""
        source = program or self.program
        since = self._seen if program is None else 0

        def lines() -> dict[str, str]:
            found: dict[str, str] = {}
            for line in source.stderr[since:].splitlines():
                if line.startswith("{"):
                    entry = json.loads(line)
                    if entry["level"] in LOUD or entry["event"] in events:
                        found.setdefault(entry["event"], line)
            return found if found.keys() >= set(events) else {}

        return "\n".join(eventually(lines, what=f"{events} in the log").values())

    def line(self, event: str) -> str:
        """Wait for an event in the log, and return its first line."""
        self.log(event)
        lines = self.program.stderr[self._seen :].splitlines()
        return next(line for line in lines if f'"event": "{event}"' in line)

    def command(self, *arguments: str, code: int = 0, program: Program | None = None) -> str:
        """Run a command, and return it with its output."""
        ended = (program or self.program).cli(*arguments)
        assert ended.code == code, (ended.code, ended.stdout, ended.stderr)
        failed = f"\n(exit {code})" if code else ""
        return f"$ tenantry {' '.join(arguments)}\n{ended.stdout}{ended.stderr}".rstrip() + failed

    def status(self) -> str:
        """Return the output of `tenantry status`, without the tree of actors."""
        head, _, rest = self.command("status").partition("\n\n")
        _, _, tenants = rest.partition("\n\n")
        return f"{head}\n...\n{tenants}"


class _Text(HTMLParser):
    """The text of a page's main part: a line for each heading, paragraph, row or pair."""

    BLOCKS: Final = {"h1", "h2", "h3", "p", "li", "tr", "dt", "caption", "form"}
    EMPTY: Final = {"br", "hr", "img", "input", "meta", "link"}
    CELLS: Final = {"td", "th", "dd"}
    LEFT_OUT: Final = {"form", "nav", "script"}

    def __init__(self, page: str) -> None:
        super().__init__()
        self._lines: list[str] = [""]
        self._main = 0
        self._left_out = 0
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._main += tag == "main"
        if self._left_out or tag in self.LEFT_OUT or "hidden" in dict(attrs):
            # Elements with content have an end tag, which counts this down.
            self._left_out += tag not in self.EMPTY
        if tag in self.BLOCKS:
            self._lines.append("")
        elif tag in self.CELLS and self._lines[-1]:
            self._lines[-1] += "  "

    def handle_endtag(self, tag: str) -> None:
        self._main -= tag == "main"
        self._left_out -= self._left_out > 0

    def handle_data(self, data: str) -> None:
        if self._main and not self._left_out:
            self._lines[-1] += data.replace("\n", " ")

    def said(self) -> str:
        return "\n".join(line.strip() for line in self._lines if line.strip())


@contextmanager
def stage(rig: Rig, nodes: Mapping[str, Program]) -> Iterator[Stage]:
    """Have a Prometheus scrape running daemons, by the rules of deploy/ without their `for`.

    How long each alert has to last (`for`) is recorded beside it.
    """
    rules = yaml.safe_load(RULES.read_text())
    lasts = {}
    for group in rules["groups"]:
        for rule in group["rules"]:
            if "for" in rule:
                lasts[rule["alert"]] = rule.pop("for")
    with TemporaryDirectory(prefix="tnt-drill-") as made:
        home = Path(made)
        (home / "rules.yml").write_text(json.dumps(rules))  # JSON is YAML
        ports = {name: one.get("/info")["metrics"]["port"] for name, one in nodes.items()}
        with scraping(ports, home / "rules.yml", home) as prometheus:
            eventually(
                lambda: len(prometheus.query("up == 1")) == len(nodes), what="all are scraped"
            )
            yield Stage(rig, prometheus, lasts)
