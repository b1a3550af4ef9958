"""The rooms: what ARCHITECTURE.md says of them is what `make check` holds."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_of_rooms_has_the_floors_of_the_import_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = (one["layers"] for one in contracts["contracts"] if one["type"] == "layers")
    held = {
        (floor, room) for floor, row in enumerate(reversed(layers), 1) for room in row.split(" | ")
    }
    rows = re.findall(
        r"^\| (\d+) \| `(?:tenantry/)?(\w+)(?:/|\.py)` \|",
        (ROOT / "ARCHITECTURE.md").read_text(),
        re.MULTILINE,
    )
    assert {(int(floor), room) for floor, room in rows} == held
    assert len(rows) == len(held)


def test_what_stands_at_the_top_is_a_part_of_the_package() -> None:
    for name in ("actors", "daemon.py"):
        assert (ROOT / "tenantry" / name).resolve() == (ROOT / name).resolve()


def test_every_package_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    # In a folder by its own name: `tenantry/actors` is a link, which no search follows.
    folders = [*(ROOT / "tenantry").rglob("__init__.py"), ROOT / "tenantry/actors/__init__.py"]
    there = {".".join(one.parent.relative_to(ROOT).parts) for one in folders}
    assert there == set(project["tool"]["setuptools"]["packages"])
