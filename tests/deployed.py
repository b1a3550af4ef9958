"""The files in deploy/, and what holds them where this machine has it: promtool, hadolint."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"

PLACES = (
    Path(sys.executable).parent,
    ROOT / ".venv" / "prometheus" / "usr" / "bin",
)
"""Where `make deploy-tools` puts them."""


QUIET = {
    "Dead letters, the ten worst", "Failed attempts of handlers", "Books that do not add up",
    "Isolation", "Failed attempts of its handlers", "Mailboxes of its actors", "Outcomes",
    "Books differ by", "Disk of the embedded PostgreSQL", "Queues of the embedded broker",
    "Segments that a session holds", "Changed behind the daemon's back", "Dead letters in a day",
    "Publishing that was refused",
}  # fmt: skip
"""Panels that may be empty while all is well, with RabbitMQ and a database of one's own."""

METRIC = re.compile(r"\b(?:tenantry|messages|queue|tenant|process)_[a-z_]+\b|\bup\b")
LABELS = {"tenant_id"}


def metrics_of(expr: str) -> set[str]:
    """Give the names of the metrics an expression reads."""
    return set(METRIC.findall(expr)) - LABELS


def found(tool: str) -> str:
    """Give a tool's path; the test is skipped where there is none."""
    path = shutil.which(tool, path=os.pathsep.join([*map(str, PLACES), os.environ.get("PATH", "")]))
    if path is None:
        pytest.skip(f"{tool} is not there: `make deploy-tools` fetches it")
    return path


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries() -> Iterator[tuple[str, str]]:
    """Give where each expression stands, and the expression."""
    for rule in alerts():
        yield rule["alert"], rule["expr"]
    for file in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel.get("targets", ()):
                yield f"{file.stem}: {panel['title']}", target["expr"]


def panels() -> Iterator[tuple[str, str]]:
    """Give the queries of those panels that show something while all is well."""
    for where, expr in queries():
        _, of_a_dashboard, title = where.partition(": ")
        if of_a_dashboard and title not in QUIET:
            yield where, expr
