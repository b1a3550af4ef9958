"""Invalid input is refused with one clear line and the right exit code, and changes nothing."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from typing import TypeAlias
from unittest.mock import Mock
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
import pytest

from tenantry.cli.main import main
from tests import services_postgres, services_rabbitmq
from tests.acceptance.guarded_postgres import guarded_postgres
from tests.acceptance.program import Ended, Program, Tenant

AtOnce: TypeAlias = Callable[..., Ended]

BAD_IDS = (
    "",
    "Upper",
    "under_score",
    "a" * 41,
    "-a",
    "a-",
    "a.b",
    "a b",
    "a'b",
    'a"; DROP TABLE messages; --',
    "ünï",
    "a\r\nb",
    "a\n",
    "a\x00b",
    "../etc",
    "%61",
    "٣",
)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port without a listener, reserved for this test."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture(scope="module")
def idle() -> Iterator[Program]:
    """A daemon that is not started, and could start with valid settings."""
    with (
        services_rabbitmq.virtual_host() as host,
        services_postgres.database(services_postgres.admin_url()) as url,
        Program(host, url) as made,
    ):
        yield made


@pytest.fixture
def at_once(
    idle: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[AtOnce]:
    """Run a command in this process: it is refused before the daemon starts."""
    begun = AssertionError("the daemon was begun")
    monkeypatch.setattr("daemon.serve", Mock(side_effect=begun))

    def run(*arguments: str, **settings: str) -> Ended:
        for name in os.environ:
            monkeypatch.delenv(name)
        for name, value in idle.environment(**settings).items():
            monkeypatch.setenv(name, value)
        code = main(arguments)
        printed = capsys.readouterr()
        return Ended(code=code, stdout=printed.out, stderr=printed.err)

    yield run
    idle.config.write_text("")


def all_there_is(program: Program) -> list[list[str]]:
    """Return the tenants, the events and the queues."""
    vhost = quote(program.host.vhost, safe="")
    queues = program.management.get(f"/queues/{vhost}").raise_for_status().json()
    return [
        [one["id"] for one in program.get("/tenants?limit=1000")["data"]],
        [one["position"] for one in program.get("/events?limit=1000")["data"]],
        sorted(one["name"] for one in queues),
    ]


def test_bad_ids_are_refused_and_leave_nothing(shared: Program) -> None:
    before = all_there_is(shared)
    for bad in BAD_IDS:
        answer = shared.call("POST", "/tenants", {"name": "bad", "id": bad})
        assert answer.status_code == 422, bad
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == 422
    for bad in BAD_IDS:
        if bad in {"", "../etc"}:
            continue  # no path segment
        path = f"/tenants/{quote(bad, safe='')}"
        assert shared.call("GET", path).status_code == 404, bad
        assert shared.call("DELETE", path).status_code == 404, bad
        assert shared.call("POST", f"{path}/pause").status_code == 404, bad
    assert all_there_is(shared) == before
    assert shared.status_of("/readyz") == 200
    edge = shared.call("POST", "/tenants", {"name": "longest", "id": shared.name("a" * 31)})
    assert edge.status_code == 201
    assert len(edge.json()["id"]) == 40


def test_a_tenant_that_another_installation_has_on_the_same_server_is_refused_and_left_alone(
    shared: Program,
) -> None:
    tenant_id = shared.name("shared")
    user = f"/users/tenant_{tenant_id}_producer"
    body = {"password": "theirs", "tags": "tenantry-production"}
    shared.management.put(user, json=body).raise_for_status()
    theirs = shared.management.get(user).json()
    before = all_there_is(shared)
    answer = shared.call("POST", "/tenants", {"name": "ours", "id": tenant_id})
    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert "belongs to the installation production" in answer.json()["detail"]
    assert "rabbitmqctl delete_user" in answer.json()["detail"]
    produced = shared.cli("tenant", "create", "ours", "--id", tenant_id)
    assert produced.code == 1
    assert "belongs to the installation production" in produced.complaint
    assert all_there_is(shared) == before
    assert shared.broker_objects(tenant_id) == [f"tenant_{tenant_id}_producer"]
    assert shared.management.get(user).json() == theirs
    assert shared.call("DELETE", f"/tenants/{tenant_id}").status_code == 404


def test_bad_ids_are_refused_by_the_command_line_in_one_line(shared: Program) -> None:
    for bad in ("Upper", "a\r\nb"):
        ended = shared.cli("tenant", "create", "x", "--id", bad)
        assert (ended.code, ended.stdout) == (1, "")
        assert "id" in ended.complaint
    ended = shared.cli("tenant", "show", "nobody")
    assert ended.code == 1
    assert "tenant" in ended.complaint
    for workers in ("0", "65", "x"):
        assert shared.cli("tenant", "resize", "nobody", workers).code == 2


def test_bad_numbers_of_workers_and_unknown_tenants_are_refused(shared: Program) -> None:
    tenant = shared.create()
    before = all_there_is(shared)
    for workers in (0, 65, -1, "x", "3", 2.5, None, True):
        path = f"/tenants/{tenant.id}/config/concurrency"
        assert shared.call("PUT", path, {"workers": workers}).status_code == 422, workers
        if workers is not None:
            body = {"name": "bad", "id": shared.name("bad"), "workers": workers}
            assert shared.call("POST", "/tenants", body).status_code == 422, workers
    shown = shared.get(f"/tenants/{tenant.id}")
    assert (shown["workers"], shown["version"]) == (3, 2)
    for method, path, body in (
        ("GET", "", None),
        ("DELETE", "", None),
        ("PUT", "/config/concurrency", {"workers": 2}),
        ("POST", "/pause", None),
        ("POST", "/resume", None),
        ("POST", "/credentials/rotate", None),
        ("POST", "/messages", {"payload": 1}),
        ("GET", "/events", None),
    ):
        answer = shared.call(method, f"/tenants/nobody{path}", body)
        assert answer.status_code == 404, path
        assert answer.headers["content-type"] == "application/problem+json"
    assert shared.call("GET", "/messages?tenant_id=nobody").status_code == 404
    assert all_there_is(shared) == before


def test_a_second_daemon_on_the_same_control_socket_ends_and_leaves_the_first_alone(
    shared: Program,
) -> None:
    tenant: Tenant = shared.create()
    ended = shared.run()
    assert ended.code == 1
    assert str(shared.socket) in ended.complaint
    assert shared.get(f"/tenants/{tenant.id}")["state"] == "active"
    assert shared.runtime(tenant)["consuming"] is True
    assert shared.status_of("/readyz") == 200


def test_a_schema_newer_than_the_program_is_left_alone(program: Program) -> None:
    with psycopg.connect(program.database_url) as connection:
        connection.execute(
            "INSERT INTO tenantry.schema_migrations (number, name, checksum)"
            " VALUES (9999, 'from_the_future', 'x')"
        )
    ended = program.run()
    assert ended.code == 1
    assert "9999" in ended.complaint
    ended = program.cli("migrate", "--check")
    assert ended.code == 1
    assert "9999" in ended.complaint


def test_a_socket_left_behind_by_a_kill_is_no_hindrance(running: Program) -> None:
    running.kill()
    assert running.socket.exists()
    assert running.cli("status").code == 3
    running.start()
    assert json.loads(running.cli("status", "--json").stdout)["ready"] is True
    assert running.stop() == 0
    assert not running.socket.exists()


def test_a_broker_that_cant_be_reached_is_told_at_the_start(
    idle: Program, closed_port: int
) -> None:
    ended = idle.run(RABBITMQ_URL=f"amqp://user:secret-word@127.0.0.1:{closed_port}/")
    assert ended.code == 1
    assert f"127.0.0.1:{closed_port}" in ended.complaint
    assert "secret-word" not in ended.stderr


def test_a_management_api_that_cant_be_reached_is_told_at_the_start(
    idle: Program, closed_port: int
) -> None:
    ended = idle.run(RABBITMQ_MANAGEMENT_URL=f"http://127.0.0.1:{closed_port}")
    assert ended.code == 1
    assert f"127.0.0.1:{closed_port}" in ended.complaint


def test_a_broker_that_refuses_the_password_is_told_at_the_start(idle: Program) -> None:
    parts = urlsplit(idle.host.url)
    host = parts.netloc.rpartition("@")[2]
    wrong = urlunsplit(parts._replace(netloc=f"{parts.username}:secret-word@{host}"))
    ended = idle.run(RABBITMQ_URL=wrong)
    assert ended.code == 1
    assert "password" in ended.complaint
    assert "rabbitmq.url" in ended.complaint
    assert "secret-word" not in ended.stderr


def test_a_virtual_host_that_is_not_there_is_told_at_the_start(idle: Program) -> None:
    ended = idle.run(RABBITMQ_URL=urlunsplit(urlsplit(idle.host.url)._replace(path="/nowhere")))
    assert ended.code == 1
    assert "nowhere" in ended.complaint


def test_a_database_that_cant_be_reached_is_told_at_the_start(
    idle: Program, closed_port: int
) -> None:
    url = f"postgresql://user:secret-word@127.0.0.1:{closed_port}/tenantry"
    ended = idle.run(DATABASE_URL=url)
    assert ended.code == 1
    assert f"127.0.0.1:{closed_port}" in ended.complaint
    assert "secret-word" not in ended.stderr


def test_a_database_that_refuses_the_password_is_told_at_the_start(idle: Program) -> None:
    with guarded_postgres("right") as postgres:
        ended = idle.run(DATABASE_URL=postgres.url_with("secret-word"))
    assert ended.code == 1
    assert "password" in ended.complaint
    assert "database.url" in ended.complaint
    assert "secret-word" not in ended.stderr


def test_commands_without_a_daemon_are_exit_3(idle: Program) -> None:
    for command in (("status",), ("tenant", "list"), ("stop",)):
        ended = idle.cli(*command)
        assert ended.code == 3, command
        assert str(idle.socket) in ended.complaint
        assert ended.stdout == ""


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[rabitmq]\nurl = 'x'\n", "rabitmq"),
        ("[server]\nprot = 1\n", "server.prot"),
        ("workers = 65\n", "workers"),
        ("workers = 'three'\n", "workers"),
        ("workers = \n", "TOML"),
    ],
)
def test_a_bad_configuration_file_is_exit_2_and_names_key_and_file(
    idle: Program, at_once: AtOnce, text: str, named: str
) -> None:
    idle.config.write_text(text)
    ended = at_once("run")
    assert ended.code == 2
    assert named in ended.complaint
    assert str(idle.config) in ended.complaint
    assert at_once("status").code == 2


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TENANTRY_WORKERS", "0"),
        ("TENANTRY_WORKERS", "many"),
        ("TENANTRY_SERVER_PORT", "70000"),
        ("TENANTRY_SHUTDOWN_DEADLINE_SECONDS", "soon"),
        ("RABBITMQ_URL", "http://localhost"),
        ("DATABASE_URL", "mysql://localhost"),
        ("TENANTRY_QUEUE_TYPE", "stack"),
    ],
)
def test_a_bad_value_in_the_environment_is_exit_2_and_names_the_variable(
    at_once: AtOnce, variable: str, value: str
) -> None:
    ended = at_once("run", **{variable: value})
    assert ended.code == 2
    assert variable in ended.complaint
