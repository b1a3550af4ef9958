"""The program as a wheel, beside packages with the same names as its folders in the repository."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import psycopg
import pytest

from tests import waiting
from tests.acceptance.program import ROOT, Program
from tests.depth import THOROUGH
from tests.waiting import DEADLINE

HANDLER = """\
import daemon  # python-daemon's


def note(message, cursor):
    cursor.execute("INSERT INTO effects VALUES (%s)", [daemon.DaemonContext.__name__ + message.id])
"""


def wheel(directory: Path) -> Path:
    """Build a wheel from a copy of the sources, with the tools installed here, and unpack it."""
    copy = directory / "sources"
    copy.mkdir()
    for name in ("actors", "tenantry"):
        shutil.copytree(
            ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("daemon.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--no-index", "--no-deps", "--quiet"),
            *("--no-build-isolation", "--wheel-dir", str(directory), str(copy)),
        ],
        check=True,
        timeout=DEADLINE,
    )
    (built,) = directory.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        names = {name.partition("/")[0] for name in archive.namelist()}
        assert {name for name in names if not name.endswith(".dist-info")} == {"tenantry"}
        archive.extractall(directory / "installed")
    return directory / "installed"


def test_only_one_name_is_installed() -> None:
    named = metadata.distribution("tenantry").read_text("top_level.txt")
    assert named is not None
    assert named.split() == ["tenantry"]


@pytest.mark.skipif(not THOROUGH, reason="half a minute of processor time: for thorough runs")
def test_what_is_installed_bears_one_name_beside_others_of_the_same(
    program: Program, tmp_path: Path
) -> None:
    assert metadata.version("python-daemon")
    installed = wheel(tmp_path)
    (tmp_path / "theirs" / "actors").mkdir(parents=True)
    (tmp_path / "theirs" / "actors" / "__init__.py").write_text(HANDLER)
    program.own_interpreter = True
    program.settings |= {
        "PYTHONPATH": f"{installed}:{tmp_path / 'theirs'}",
        "TENANTRY_HANDLERS": "default=actors:note",
    }
    with psycopg.connect(program.database_url) as connection:
        connection.execute("CREATE TABLE effects (seen text)")
    program.start()
    tenant = program.create()
    sent = program.call("POST", f"/tenants/{tenant.id}/messages", {"payload": 1, "id": "one"})
    assert sent.status_code == 202, sent.text

    def seen() -> list[tuple[str]]:
        with psycopg.connect(program.database_url) as connection:
            return connection.execute("SELECT seen FROM effects").fetchall()

    assert waiting.eventually(seen, what="the handler's row") == [("DaemonContextone",)]
    command = (
        "import tenantry.actors, tenantry.daemon as d; print(tenantry.actors.__file__, d.__file__)"
    )
    said = subprocess.run(
        [sys.executable, "-c", command],
        cwd=tmp_path,
        env=program.environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=True,
    )
    assert all(part.startswith(str(installed)) for part in said.stdout.split())
    assert program.stop() == 0
