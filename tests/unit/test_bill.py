"""What the program brings along is named, and asked after."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from scripts import bill
from tests.depth import THOROUGH
from tests.waiting import DEADLINE


def test_what_is_brought_along_is_what_users_get_and_what_that_needs() -> None:
    found = bill.brought("tenantry", bill.EXTRAS)
    assert {
        "tenantry",
        "pika",
        "psycopg",
        "psycopg-binary",
        "starlette",
        "cryptography",
    } <= found.keys()
    assert not {"pytest", "mypy", "hypothesis", "pip"} & found.keys()
    assert "cryptography" not in bill.brought("tenantry")


def test_the_package_brings_the_extras_of_users_and_no_others() -> None:
    extras = tomllib.loads((bill.ROOT / "pyproject.toml").read_text())["project"]
    rules = (bill.ROOT / "debian" / "rules").read_text()
    left_out = re.findall(r'- \{("[^}]*")\}', rules)
    assert len(left_out) == 1
    for_developers = set(re.findall(r'"(\w+)"', left_out[0]))
    assert set(extras["optional-dependencies"]) - for_developers == set(bill.EXTRAS)


def test_the_bill_is_cyclonedx_and_complete(tmp_path: Path) -> None:
    pytest.importorskip("cyclonedx_py", reason="`make sbom` installs it")
    file = tmp_path / "sbom.json"
    count = bill.write(file)
    said = json.loads(file.read_text())
    assert said["bomFormat"] == "CycloneDX"
    named = {one["name"].lower(): one["version"] for one in said["components"]}
    assert named["pika"] == bill.brought("tenantry")["pika"]
    assert len(named) == count == len(bill.brought("tenantry", bill.EXTRAS)) - 1
    root = said["metadata"]["component"]
    assert root["name"] == "tenantry"
    refs = {one["bom-ref"] for one in (*said["components"], root)}
    needs = {one["ref"]: one["dependsOn"] for one in said["dependencies"]}
    assert {ref for of in needs.values() for ref in of} <= refs == needs.keys()
    assert any(ref.startswith("pika==") for ref in needs[root["bom-ref"]])
    if THOROUGH:  # to load the schema takes ten seconds of processor time
        validation = import_module("cyclonedx.validation.json")
        version = import_module("cyclonedx.schema").SchemaVersion.from_version(said["specVersion"])
        assert validation.JsonStrictValidator(version).validate_str(file.read_text()) is None


def test_a_service_that_is_out_of_reach_is_told_of_and_fails_nothing() -> None:
    pytest.importorskip("pip_audit", reason="`make audit` installs it")
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # held, so that nobody else listens there
        nowhere = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        said = subprocess.run(
            [sys.executable, "-m", "scripts.bill", "audit"],
            env=os.environ
            | {"HTTPS_PROXY": nowhere, "https_proxy": nowhere, "NO_PROXY": "", "no_proxy": ""},
            cwd=Path(bill.__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=2 * DEADLINE,
            check=False,
        )
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("pip-audit: nothing was audited: ")
    assert said.stdout.count("\n") == 1


def test_what_is_vulnerable_fails_and_what_is_unknown_does_not() -> None:
    found = {"id": "PYSEC-1", "fix_versions": ["1.1", "2.0"], "aliases": [], "description": ""}
    bad = {"name": "a", "version": "1.0", "vulns": [found]}
    good = {"name": "b", "version": "1.0", "vulns": []}
    skipped = {"name": "c", "skip_reason": "not found"}
    lines, status = bill.judged([bad, good, skipped])
    assert status == 1
    assert lines[0].endswith("does not know c")
    assert lines[1:] == ["a 1.0: PYSEC-1, mended in 1.1, 2.0"]
    assert bill.judged([good])[1] == bill.judged([good, skipped])[1] == 0
    assert "nothing was audited" in bill.judged([skipped])[0][0]
