"""The demo on a broker that exists already."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenantry.broker.iggy.client import Access, Session, library
from tests.acceptance.program import Program
from tests.iggy_server import USER, PrivateIggy
from tests.services_iggy import own_server
from tests.waiting import DEADLINE


@pytest.fixture
def nowhere() -> Iterator[Program]:
    """The command line alone, without a daemon."""
    with Program(None, "") as made:
        yield made


@pytest.fixture
def server() -> Iterator[PrivateIggy]:
    with own_server() as made:
        yield made


def test_the_demo_adds_up_on_iggy_and_leaves_nothing_there(
    nowhere: Program, server: PrivateIggy, tmp_path: Path
) -> None:
    ended = nowhere.cli(
        "demo",
        "--json",
        TMPDIR=str(tmp_path),
        TENANTRY_DEMO_BROKER=server.url,
        timeout=2 * DEADLINE,
    )
    assert ended.code == 0, ended.stderr
    assert (ended.json["sent"], ended.json["stored"]) == (2700, 2700)
    assert all(one["isolated"] for one in ended.json["tenants"])
    assert list(tmp_path.iterdir()) == []
    root = Session(Access.of(server.url))
    assert root.call(lambda client: client.get_streams()) == []
    # Users with a session stay, without rights or a login, until the server is started again.
    users = root.call(lambda client: client.get_users())
    assert [one.username for one in users if not one.username.startswith("retired_")] == [USER]
    retired = [one for one in users if one.username != USER]
    assert all(one.status == library().UserStatus.Inactive for one in retired)
    root.close()


def test_the_demo_adds_up_on_rabbitmq_and_leaves_no_user_there(
    program: Program, tmp_path: Path
) -> None:
    ended = program.cli("demo", "--broker", program.host.url, "--json", TMPDIR=str(tmp_path))
    assert ended.code == 0, ended.stderr
    assert (ended.json["sent"], ended.json["stored"]) == (2700, 2700)
    assert [one for number in "123" for one in program.broker_objects(number)] == []


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://u:hunter2@h", "must be a URL that begins with amqp://"),
        ("iggy://u:hunter2@", "names no host"),
        ("rabbit", "must be a URL"),
    ],
)
def test_what_is_no_brokers_url_is_bad_usage(nowhere: Program, url: str, reason: str) -> None:
    ended = nowhere.cli("demo", "--broker", url)
    assert ended.code == 2
    assert reason in ended.stderr
    assert "hunter2" not in ended.stderr


@pytest.mark.parametrize("scheme", ["amqp", "iggy"])
def test_a_server_that_is_not_there_is_told_at_once(nowhere: Program, scheme: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        ended = nowhere.cli("demo", "--broker", f"{scheme}://u:hunter2@127.0.0.1:{port}")
    assert ended.code == 1
    assert ended.stdout == ""
    assert f"no broker answers at 127.0.0.1:{port}" in ended.complaint
    assert "hunter2" not in ended.complaint


def test_a_missing_extra_is_told_with_what_to_install(nowhere: Program, tmp_path: Path) -> None:
    (tmp_path / "apache_iggy.py").write_text("raise ImportError")
    path = f"{tmp_path}:{Path(__file__).parents[2]}"
    nowhere.own_interpreter = True
    ended = nowhere.cli("demo", "--broker", "iggy://127.0.0.1:1", PYTHONPATH=path)
    assert ended.code == 1
    assert "pip install 'tenantry[iggy]'" in ended.complaint


def test_wrong_credentials_are_told_in_the_last_line(nowhere: Program, server: PrivateIggy) -> None:
    url = server.url.replace("root-of-the-tests", "hunter2")
    ended = nowhere.cli("demo", "--broker", url)
    assert ended.code == 1
    assert "Invalid credentials" in ended.stderr.splitlines()[-1]
    assert "hunter2" not in ended.stderr
