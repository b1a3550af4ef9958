"""The files in deploy/, and what holds them where this machine has it: promtool, hadolint."""

from __future__ import annotations

import json
import os
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
