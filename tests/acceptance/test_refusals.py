"""What can't work is refused with one clear line and the right exit code, and harms nobody."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
import pytest

from tests.acceptance.guarded_postgres import guarded_postgres
from tests.acceptance.program import Program, Tenant
from tests.services_rabbitmq import RabbitHost

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
    """A port on which nobody listens, kept from everybody else."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_bad_ids_are_refused_and_leave_nothing(running: Program) -> None:
    for bad in BAD_IDS:
        answer = running.call("POST", "/tenants", {"name": "bad", "id": bad})
        assert answer.status_code == 422, bad
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == 422
    for bad in BAD_IDS:
        if bad in {"", "../etc"}:
            continue  # no path segment
        path = f"/tenants/{quote(bad, safe='')}"
        assert running.call("GET", path).status_code == 404, bad
        assert running.call("DELETE", path).status_code == 404, bad
        assert running.call("POST", f"{path}/pause").status_code == 404, bad
    assert running.get("/tenants")["data"] == []
    assert running.get("/events")["data"] == []
    vhost = quote(running.host.vhost, safe="")
    assert running.management.get(f"/queues/{vhost}").json() == []
    assert running.status_of("/readyz") == 200
    edge = running.call("POST", "/tenants", {"name": "longest", "id": running.name("a" * 31)})
    assert edge.status_code == 201
    assert len(edge.json()["id"]) == 40


def test_a_tenant_that_another_installation_has_on_the_same_server_is_refused_and_left_alone(
    running: Program,
) -> None:
    tenant_id = running.name("shared")
    user = f"/users/tenant_{tenant_id}_producer"
    body = {"password": "theirs", "tags": "tenantry-production"}
    running.management.put(user, json=body).raise_for_status()
    theirs = running.management.get(user).json()
    answer = running.call("POST", "/tenants", {"name": "ours", "id": tenant_id})
    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert "belongs to the installation production" in answer.json()["detail"]
    assert "rabbitmqctl delete_user" in answer.json()["detail"]
    produced = running.cli("tenant", "create", "ours", "--id", tenant_id)
    assert produced.code == 1
    assert "belongs to the installation production" in produced.complaint
    assert running.get("/events")["data"] == []
    assert running.broker_objects(tenant_id) == [f"tenant_{tenant_id}_producer"]
    assert running.management.get(user).json() == theirs
    assert running.call("DELETE", f"/tenants/{tenant_id}").status_code == 404


def test_bad_ids_are_refused_by_the_command_line_in_one_line(running: Program) -> None:
    for bad in ("Upper", "a\r\nb"):
        ended = running.cli("tenant", "create", "x", "--id", bad)
        assert (ended.code, ended.stdout) == (1, "")
        assert "id" in ended.complaint
    ended = running.cli("tenant", "show", "nobody")
    assert ended.code == 1
    assert "tenant" in ended.complaint
    for workers in ("0", "65", "x"):
        assert running.cli("tenant", "resize", "nobody", workers).code == 2


def test_bad_numbers_of_workers_and_unknown_tenants_are_refused(running: Program) -> None:
    tenant = running.create()
    for workers in (0, 65, -1, "x", "3", 2.5, None, True):
        path = f"/tenants/{tenant.id}/config/concurrency"
        assert running.call("PUT", path, {"workers": workers}).status_code == 422, workers
        if workers is not None:
            body = {"name": "bad", "id": running.name("bad"), "workers": workers}
            assert running.call("POST", "/tenants", body).status_code == 422, workers
    shown = running.get(f"/tenants/{tenant.id}")
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
        answer = running.call(method, f"/tenants/nobody{path}", body)
        assert answer.status_code == 404, path
        assert answer.headers["content-type"] == "application/problem+json"
    assert running.call("GET", "/messages?tenant_id=nobody").status_code == 404
    assert [one["id"] for one in running.get("/tenants")["data"]] == [tenant.id]


def test_a_second_daemon_on_the_same_control_socket_ends_and_leaves_the_first_alone(
    running: Program,
) -> None:
    tenant: Tenant = running.create()
    ended = running.run()
    assert ended.code == 1
    assert str(running.socket) in ended.complaint
    assert running.get(f"/tenants/{tenant.id}")["state"] == "active"
    assert running.runtime(tenant)["consuming"] is True
    assert running.status_of("/readyz") == 200


def test_a_broker_that_cant_be_reached_is_told_at_the_start(
    program: Program, closed_port: int
) -> None:
    ended = program.run(RABBITMQ_URL=f"amqp://user:secret-word@127.0.0.1:{closed_port}/")
    assert ended.code == 1
    assert f"127.0.0.1:{closed_port}" in ended.complaint
    assert "secret-word" not in ended.stderr


def test_a_management_api_that_cant_be_reached_is_told_at_the_start(
    program: Program, closed_port: int
) -> None:
    ended = program.run(RABBITMQ_MANAGEMENT_URL=f"http://127.0.0.1:{closed_port}")
    assert ended.code == 1
    assert f"127.0.0.1:{closed_port}" in ended.complaint


def test_a_broker_that_refuses_the_password_is_told_at_the_start(
    program: Program, rabbitmq: RabbitHost
) -> None:
    parts = urlsplit(rabbitmq.url)
    host = parts.netloc.rpartition("@")[2]
    wrong = urlunsplit(parts._replace(netloc=f"{parts.username}:secret-word@{host}"))
    ended = program.run(RABBITMQ_URL=wrong)
    assert ended.code == 1
    assert "password" in ended.complaint
    assert "rabbitmq.url" in ended.complaint
    assert "secret-word" not in ended.stderr


def test_a_virtual_host_that_is_not_there_is_told_at_the_start(
    program: Program, rabbitmq: RabbitHost
) -> None:
    ended = program.run(RABBITMQ_URL=urlunsplit(urlsplit(rabbitmq.url)._replace(path="/nowhere")))
    assert ended.code == 1
    assert "nowhere" in ended.complaint


def test_a_database_that_cant_be_reached_is_told_at_the_start(
    program: Program, closed_port: int
) -> None:
    url = f"postgresql://user:secret-word@127.0.0.1:{closed_port}/tenantry"
    ended = program.run(DATABASE_URL=url)
    assert ended.code == 1
    assert f"127.0.0.1:{closed_port}" in ended.complaint
    assert "secret-word" not in ended.stderr


def test_a_database_that_refuses_the_password_is_told_at_the_start(program: Program) -> None:
    with guarded_postgres("right") as postgres:
        ended = program.run(DATABASE_URL=postgres.url_with("secret-word"))
    assert ended.code == 1
    assert "password" in ended.complaint
    assert "database.url" in ended.complaint
    assert "secret-word" not in ended.stderr


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
    program: Program, text: str, named: str
) -> None:
    program.config.write_text(text)
    ended = program.run()
    assert ended.code == 2
    assert named in ended.complaint
    assert str(program.config) in ended.complaint
    assert program.cli("status").code == 2


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
    program: Program, variable: str, value: str
) -> None:
    ended = program.run(**{variable: value})
    assert ended.code == 2
    assert variable in ended.complaint


def test_other_addresses_than_loopback_need_a_secret(program: Program) -> None:
    ended = program.run(TENANTRY_SERVER_HOST="0.0.0.0")
    assert ended.code == 2
    assert "security.jwt_secret" in ended.complaint


def test_a_port_that_is_taken_is_told(program: Program) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = program.run(TENANTRY_SERVER_PORT=port)
    assert ended.code == 1
    assert port in ended.complaint
    assert not program.socket.exists()


def test_commands_without_a_daemon_are_exit_3(program: Program) -> None:
    for command in (("status",), ("tenant", "list"), ("stop",)):
        ended = program.cli(*command)
        assert ended.code == 3, command
        assert str(program.socket) in ended.complaint
        assert ended.stdout == ""


def test_a_socket_left_behind_by_a_kill_is_no_hindrance(running: Program) -> None:
    running.kill()
    assert running.socket.exists()
    assert running.cli("status").code == 3
    running.start()
    assert json.loads(running.cli("status", "--json").stdout)["ready"] is True
    assert running.stop() == 0
    assert not running.socket.exists()
