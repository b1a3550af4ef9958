"""The units systemd gets: well-formed, hardened, the two of them alike."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tenantry.settings import Settings
from tenantry.settings.load import CREDENTIALS
from tests.waiting import DEADLINE

UNITS = Path(__file__).parents[2] / "systemd"
SERVICE = (UNITS / "tenantry.service").read_text()
TEMPLATE = (UNITS / "tenantry@.service").read_text()
MOST_EXPOSED = 2.0


def settings_of(unit: str) -> list[str]:
    """Give a unit's lines, comments and continuation left out."""
    return [line for line in unit.splitlines() if line and not line.startswith("#")]


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not on this machine")
    return subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=DEADLINE, check=False
    )


def test_the_template_differs_from_the_service_in_its_places_only() -> None:
    places = SERVICE.replace("/etc/tenantry/", "/etc/tenantry/%i/")
    for directory in ("RuntimeDirectory", "StateDirectory"):
        places = places.replace(f"{directory}=tenantry\n", f"{directory}=tenantry/%i\n")
    places = places.replace("into PostgreSQL\n", "into PostgreSQL (%i)\n")
    assert settings_of(places) == settings_of(TEMPLATE)


@pytest.mark.parametrize("name", ["tenantry.service", "tenantry@one.service"])
def test_systemd_finds_nothing_to_object_to(tmp_path: Path, name: str) -> None:
    unit = tmp_path / name
    # The program need not be installed for that.
    text = TEMPLATE if "@" in name else SERVICE
    unit.write_text(text.replace("/usr/local/bin/tenantry", "/bin/true"))
    ended = analyze("verify", "--man=no", str(unit))
    assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")


@pytest.mark.parametrize("name", ["tenantry.service", "tenantry@.service"])
def test_the_units_are_hardened(name: str) -> None:
    ended = analyze("security", "--offline=true", str(UNITS / name))
    level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", ended.stdout)
    assert level is not None, ended.stderr
    assert float(level[1]) <= MOST_EXPOSED


def test_there_is_time_to_drain_before_systemd_kills() -> None:
    seconds = re.search(r"^TimeoutStopSec=(\d+)$", SERVICE, re.MULTILINE)
    assert seconds is not None
    assert int(seconds[1]) > 2 * Settings().shutdown.deadline_seconds


def test_every_credential_the_daemon_takes_is_passed_on_and_made() -> None:
    loaded = dict(re.findall(r"^LoadCredential=(\w+):(\S+)$", SERVICE, re.MULTILINE))
    assert set(loaded) == set(CREDENTIALS)
    made = (UNITS / "tenantry.tmpfiles").read_text()
    assert all(path in made for path in loaded.values())


@pytest.mark.parametrize(
    ("program", "arguments"),
    [("systemd-sysusers", ["tenantry.sysusers"]), ("systemd-tmpfiles", ["tenantry.tmpfiles"])],
)
def test_user_and_directories_are_made_by_systemds_own_tools(
    tmp_path: Path, program: str, arguments: list[str]
) -> None:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not on this machine")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (tmp_path / "etc/group").write_text("root:x:0:\ntenantry:x:990:\n")
    create = ["--create"] if program == "systemd-tmpfiles" else []
    ended = subprocess.run(
        [found, f"--root={tmp_path}", *create, *(str(UNITS / one) for one in arguments)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert "/sys" not in ended.stderr
    if program == "systemd-tmpfiles":
        if ended.returncode:
            pytest.skip(f"only root may give files away: {ended.stderr.splitlines()[0]}")
        assert {one.name for one in (tmp_path / "etc/tenantry").iterdir()} == set(CREDENTIALS)
    else:
        assert ended.returncode == 0, ended.stderr
        assert "tenantry:x:" in (tmp_path / "etc/passwd").read_text()
