"""If its surroundings keep the daemon from starting, it says so in one line, with a remedy."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.acceptance.program import Ended, Program
from tests.services_postgres import own_server
from tests.waiting import DEADLINE

SECRET = "s" * 32


@pytest.fixture
def program() -> Iterator[Program]:
    """A daemon that ends before it reaches any service."""
    with Program(None, "") as made:
        yield made


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A fault (`make` causes it, and returns the settings), and what the daemon must say."""

    make: Callable[[Path], dict[str, str]]
    key: str
    says: tuple[str, ...]
    remedy: str


def _file_as_state(place: Path) -> dict[str, str]:
    (place / "file").touch()
    return {"TENANTRY_STATE_DIR": str(place / "file")}


def _below_a_file(place: Path) -> dict[str, str]:
    (place / "file").touch()
    return {"TENANTRY_STATE_DIR": str(place / "file" / "x")}


def _tls(certificate: str, key: str) -> dict[str, str]:
    return {"TENANTRY_SERVER_TLS_CERT": certificate, "TENANTRY_SERVER_TLS_KEY": key}


def _foreign_socket(place: Path) -> dict[str, str]:
    (place / "precious").write_text("not a socket")
    return {"TENANTRY_CONTROL_SOCKET": str(place / "precious")}


def _foreign_database(place: Path) -> dict[str, str]:
    (place / "postgres").mkdir()
    (place / "postgres" / "precious").touch()
    return {}


def _folder_as_instance(place: Path) -> dict[str, str]:
    (place / "instance").mkdir()
    own_server(place / "postgres")  # a copy, as making one takes a while
    return {}


CASES = {
    "state_dir is a file": Case(
        make=_file_as_state,
        key="state_dir",
        says=("/file", "File exists", "TENANTRY_STATE_DIR"),
        remedy="move the file away",
    ),
    "state_dir is below a file": Case(
        make=lambda place: {
            "TENANTRY_STATE_DIR": _file_as_state(place)["TENANTRY_STATE_DIR"] + "/x"
        },
        key="state_dir",
        says=("/file/x", "Not a directory", "TENANTRY_STATE_DIR"),
        remedy="move the file away",
    ),
    "a home that is not there": Case(
        make=lambda _: {"TENANTRY_STATE_DIR": "", "HOME": "/proc/nonexistent"},
        key="state_dir",
        says=("/proc/nonexistent/.local/state/tenantry", "TENANTRY_STATE_DIR"),
        remedy="set state_dir",
    ),
    "the control socket's directory is missing": Case(
        make=lambda place: {"TENANTRY_CONTROL_SOCKET": str(place / "none" / "c.sock")},
        key="control.socket",
        says=("/none/c.sock", "No such file", "TENANTRY_CONTROL_SOCKET"),
        remedy="make the directory",
    ),
    "a foreign file in the control socket's place": Case(
        make=_foreign_socket,
        key="control.socket",
        says=("/precious is there and is no socket",),
        remedy="move it away",
    ),
    "a host that can't be resolved": Case(
        make=lambda _: {"TENANTRY_SERVER_HOST": "no-such.invalid", "TENANTRY_JWT_SECRET": SECRET},
        key="server.host",
        says=("no-such.invalid", "TENANTRY_SERVER_HOST"),
        remedy="name an address of this machine",
    ),
    "an address of another machine": Case(
        make=lambda _: {"TENANTRY_SERVER_HOST": "192.0.2.1", "TENANTRY_JWT_SECRET": SECRET},
        key="server.host",
        says=("192.0.2.1", "TENANTRY_SERVER_HOST"),
        remedy="name an address of this machine",
    ),
    "no certificate": Case(
        make=lambda _: {
            "TENANTRY_SERVER_TLS_CERT": "/none",
            "TENANTRY_SERVER_TLS_KEY": "/dev/null",
        },
        key="server.tls_cert",
        says=("/none", "No such file", "TENANTRY_SERVER_TLS_CERT"),
        remedy="set server.tls_cert",
    ),
    "no key": Case(
        make=lambda _: _tls("/dev/null", "/none"),
        key="server.tls_key",
        says=("/none", "No such file", "TENANTRY_SERVER_TLS_KEY"),
        remedy="set server.tls_key",
    ),
    "a certificate that is none": Case(
        make=lambda _: _tls("/dev/null", "/dev/null"),
        key="server.tls_cert",
        says=("/dev/null", "PEM"),
        remedy="set server.tls_cert",
    ),
    "something else where the database would be": Case(
        make=_foreign_database,
        key="state_dir",
        says=("/postgres is neither empty nor a PostgreSQL data directory",),
        remedy="move it away",
    ),
    "something else where the daemon's own name would be": Case(
        make=_folder_as_instance,
        key="state_dir",
        says=("/instance", "Is a directory", "TENANTRY_STATE_DIR"),
        remedy="set state_dir",
    ),
}


def refused(ended: Ended, case: Case) -> None:
    assert ended.code == 1, ended.stderr
    assert ended.complaint.startswith(f"error: {case.key}: ")
    for text in (*case.says, case.remedy):
        assert text in ended.complaint


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_the_line_names_the_key_and_what_to_do(program: Program, case: Case) -> None:
    before = sorted(program.directory.iterdir())
    refused(program.run(**case.make(program.directory)), case)
    assert not program.socket.exists()
    assert set(before) <= set(program.directory.iterdir())


@pytest.mark.parametrize("key", ["server.port", "metrics.port"])
def test_a_taken_port_is_named_by_its_key(program: Program, key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = program.run(**{f"TENANTRY_{key.replace('.', '_').upper()}": port})
    said = (f"127.0.0.1:{port}", "in use")
    refused(ended, Case(make=lambda _: {}, key=key, says=said, remedy="stop what listens there"))
    assert not program.socket.exists()


MOUNTED = {
    "a read-only file system": (
        "ro,size=1m", ("Read-only file system",), "mount it so that it can be written"
    ),
    "a file system too small for a database": (
        "size=1m", ("initdb", "No space left on device", "DATABASE_URL"), "make room there"
    ),
    "a full file system": ("size=4k", ("No space left on device",), "make room there"),
}  # fmt: skip


def _can_mount() -> bool:
    tried = ["unshare", "-m", "mount", "-t", "tmpfs", "x", "/mnt"]
    try:
        return (
            subprocess.run(tried, capture_output=True, timeout=DEADLINE, check=False).returncode
            == 0
        )
    except OSError:
        return False


IN_TURN = """
import os, sys
import daemon
from tenantry.cli.main import main

for state in sys.argv[1:]:
    if not (child := os.fork()):
        os.dup2(os.open(f"{state}.stderr", os.O_CREAT | os.O_WRONLY), 2)
        os.environ["TENANTRY_STATE_DIR"] = state
        sys.exit(main(["run"]))
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""
"""Runs the daemon on each of several directories, and loads its modules once for all."""


@pytest.mark.skipif("not _can_mount()", reason="takes the right to mount")
def test_a_file_system_that_takes_nothing_is_told(program: Program) -> None:
    states = [program.directory / f"state-{number}" for number in range(len(MOUNTED))]
    script = "set -e\n"
    for state, (options, _, _) in zip(states, MOUNTED.values(), strict=True):
        state.mkdir()
        script += f"mount -t tmpfs -o {options} x {state}\n"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{script} exec "$@"', "sh",
         sys.executable, "-c", IN_TURN, *map(str, states)],
        cwd=program.directory,
        env=program.environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE * len(states),
        check=True,
    )  # fmt: skip
    codes = done.stdout.split()
    for state, code, (_, says, remedy) in zip(states, codes, MOUNTED.values(), strict=True):
        said = Path(f"{state}.stderr").read_text()
        ended = Ended(code=int(code), stdout="", stderr=said)
        refused(ended, Case(make=lambda _: {}, key="state_dir", says=says, remedy=remedy))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_of_somebody_elses_is_told(program: Program) -> None:
    case = Case(
        make=lambda _: {"TENANTRY_STATE_DIR": "/nonexistent/x"},
        key="state_dir",
        says=("/nonexistent/x", "Permission denied", "TENANTRY_STATE_DIR"),
        remedy="let user",
    )
    refused(program.run(**case.make(program.directory)), case)
