"""The listeners: taking their addresses, serving, ending."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tenantry.assembly.listeners import Listeners, ask_siblings
from tenantry.cli.client import ControlClient
from tenantry.cli.output import DaemonUnreachableError
from tenantry.http import protocol
from tenantry.http.listeners import ControlSocketBusyError, ListenError, bind_tcp
from tenantry.http.server import ApiServer
from tenantry.process.family import Inherited
from tenantry.settings import Settings
from tests.api.serving import Served, World, serving, short_directory
from tests.waiting import DEADLINE


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as made:
        yield made


def test_the_socket_has_mode_0660_whatever_the_umask(directory: Path) -> None:
    for mask in (0o000, 0o022, 0o077):
        before = os.umask(mask)
        try:
            path = directory / f"{mask}.sock"
            server = ApiServer(World().app(), socket_path=path)
            server.bind()
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            assert os.umask(mask) == mask
            server.stop()
        finally:
            os.umask(before)


def test_a_second_server_on_the_socket_is_told_and_the_first_keeps_serving() -> None:
    with serving(World()) as first:
        second = ApiServer(World().app(), socket_path=first.path, tcp=("127.0.0.1", 0))
        with pytest.raises(ControlSocketBusyError, match=f"another daemon serves .*{first.path}"):
            second.bind()
        assert second.stop()
        assert first.path.is_socket()
        assert first.control.get("/healthz").status_code == 200


def test_the_socket_of_a_killed_process_is_replaced(directory: Path) -> None:
    path = directory / "control.sock"
    code = (
        "import sys, time; from pathlib import Path;"
        "from tenantry.http.listeners import ControlSocket;"
        "held = ControlSocket(Path(sys.argv[1])); print('bound', flush=True); time.sleep(60)"
    )
    killed = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert killed.stdout is not None
    assert killed.stdout.readline() == b"bound\n"
    with pytest.raises(ControlSocketBusyError):
        ApiServer(World().app(), socket_path=path).bind()
    killed.send_signal(signal.SIGKILL)
    killed.wait(DEADLINE)
    killed.stdout.close()
    assert path.is_socket()
    server = ApiServer(World().app(), socket_path=path)
    server.bind()
    assert server.stop()
    assert not path.exists()


def test_a_file_that_is_no_socket_is_left_alone(directory: Path) -> None:
    path = directory / "control.sock"
    path.write_text("precious")
    with pytest.raises(ListenError, match=r"control\.sock is there and is no socket"):
        ApiServer(World().app(), socket_path=path).bind()
    assert path.read_text() == "precious"


@pytest.mark.parametrize("name", ["missing/control.sock", "x" * 120])
def test_a_path_that_can_not_be_bound_is_named(directory: Path, name: str) -> None:
    with pytest.raises(ListenError, match=name):
        ApiServer(World().app(), socket_path=directory / name).bind()


def test_a_socket_in_a_directory_of_any_length_is_found_by_commands(directory: Path) -> None:
    deep = directory.joinpath(*["ü" * 100] * 3)
    deep.mkdir(parents=True)
    path = deep / "control.sock"
    server = ApiServer(World().app(), socket_path=path)
    server.bind()
    serves = threading.Thread(target=server.run)
    serves.start()
    try:
        with ControlClient(path) as client:
            assert client.call("GET", "/healthz")
            assert client.daemon_pid() == os.getpid()
        with pytest.raises(ControlSocketBusyError):
            ApiServer(World().app(), socket_path=path).bind()
    finally:
        assert server.stop()
        serves.join(DEADLINE)
    assert not path.exists()
    with ControlClient(path) as client, pytest.raises(DaemonUnreachableError):
        client.call("GET", "/healthz")


def test_everything_is_listened_on_beside_a_control_socket_of_107_bytes(directory: Path) -> None:
    name = "s" * (107 - len(bytes(directory)) - 1)
    settings = Settings.model_validate(
        {"state_dir": directory, "control": {"socket": directory / name}, "server": {"port": 0}}
    )
    entrance = Listeners(settings)
    entrance.bind()
    for one in entrance.loops().values():
        one.stop()
    assert {path.name for path in directory.iterdir()} == {f"{name}.lock"}


def test_a_process_knows_whether_another_of_its_service_is_ready(directory: Path) -> None:
    own, others = directory / "1" / "control.sock", directory / "2" / "control.sock"
    others.parent.mkdir()
    family = Inherited(
        control=-1, relay=-1, parent=-1, port=None, metrics=None, family=str(directory)
    )
    with serving(World()) as other:
        assert not ask_siblings(family, own, "/readyz")
        others.symlink_to(other.path)
        assert ask_siblings(family, own, "/readyz")
        assert not ask_siblings(family, others, "/readyz")
        system = other.world.control.system
        other.world.control.system = replace(system, ready=False)
        assert not ask_siblings(family, own, "/readyz")


def test_a_taken_port_is_named_and_the_control_socket_given_back(directory: Path) -> None:
    path = directory / "control.sock"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = ApiServer(World().app(), socket_path=path, tcp=("127.0.0.1", port))
        with pytest.raises(ListenError, match=f"can't listen on 127.0.0.1:{port}: .*in use"):
            server.bind()
    assert not path.exists()
    again = ApiServer(World().app(), socket_path=path)
    again.bind()
    again.stop()


def test_a_host_that_is_not_there_is_named() -> None:
    server = ApiServer(World().app(), tcp=("192.0.2.1", 8080))
    with pytest.raises(ListenError, match=r"192\.0\.2\.1:8080"):
        server.bind()


def test_localhost_is_this_machine_even_where_no_list_of_hosts_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolve = socket.getaddrinfo

    def without_localhost(host: str, *arguments: Any, **keywords: Any) -> Any:
        if host == "localhost":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve(host, *arguments, **keywords)

    monkeypatch.setattr(socket, "getaddrinfo", without_localhost)
    bound = bind_tcp("localhost", 0)
    assert bound.getsockname()[0] == "127.0.0.1"
    bound.close()


def test_two_servers_can_not_have_one_port() -> None:
    first = ApiServer(World().app(), tcp=("127.0.0.1", 0))
    first.bind()
    port = first.tcp_port
    assert port
    with pytest.raises(ListenError, match=str(port)):
        ApiServer(World().app(), tcp=("127.0.0.1", port)).bind()
    first.stop()


def test_stopping_removes_the_socket_and_closes_the_port() -> None:
    with serving(World()) as api:
        assert api.control.get("/healthz").status_code == 200
        assert api.stop()
        assert api.stop()
        assert not api.path.exists()
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{api.url}/healthz", timeout=DEADLINE, trust_env=False)


def test_stopping_before_running_makes_running_end_at_once(directory: Path) -> None:
    server = ApiServer(World().app(), socket_path=directory / "control.sock")
    server.bind()
    assert server.stop()
    server.run()
    assert not (directory / "control.sock").exists()


def test_a_server_that_was_never_bound_can_be_stopped() -> None:
    assert ApiServer(World().app()).stop()


def test_running_leaves_the_signal_handlers_alone(directory: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    server = ApiServer(World().app(), socket_path=directory / "control.sock")
    seen = []

    def look_and_stop() -> None:
        assert server.wait_started(DEADLINE)
        seen.append((signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)))
        server.stop(0)

    thread = threading.Thread(target=look_and_stop)
    thread.start()
    server.run()  # here, on the main thread, where uvicorn would install its own
    thread.join(DEADLINE)
    assert seen == [before]


def test_a_stuck_command_does_not_hold_up_the_end() -> None:
    world = World(command_timeout=3600.0)
    world.create("acme")
    world.control.held = threading.Event()
    world.control.entered.acquire()
    with serving(world, grace=1) as api:
        thread = threading.Thread(target=_pause, args=(api,))
        thread.start()
        assert world.control.entered.acquire(timeout=DEADLINE)
        assert api.stop()
        world.control.held.set()
        thread.join(DEADLINE)


def _pause(api: Served) -> None:
    with pytest.raises((httpx.HTTPError, AssertionError)):
        assert api.tcp.post("/tenants/acme/pause").is_success


def test_a_request_that_is_being_served_is_finished_when_the_server_stops() -> None:
    world = World()
    world.create("acme")
    world.control.entered.acquire()
    world.control.held = threading.Event()
    answers: list[int] = []
    with serving(world) as api:
        thread = threading.Thread(
            target=lambda: answers.append(api.tcp.post("/tenants/acme/pause").status_code)
        )
        thread.start()
        assert world.control.entered.acquire(timeout=DEADLINE)
        api.stop(0)
        world.control.held.set()
        thread.join(DEADLINE)
    assert answers == [200]


def test_health_status_and_stop_answer_while_every_command_thread_is_stuck() -> None:
    world = World()
    for tenant_id in TWO:
        world.create(tenant_id)
        world.control.entered.acquire()
    world.control.held = threading.Event()
    with serving(world, grace=1) as api:
        threads = [threading.Thread(target=_pause_quietly, args=(api, n)) for n in range(40)]
        for thread in threads:
            thread.start()
        for _ in range(16):
            assert world.control.entered.acquire(timeout=DEADLINE)
        for path in ("/healthz", "/readyz", "/status", "/info", "/tenants/acme", "/events"):
            assert api.control.get(path, timeout=DEADLINE).status_code == 200
        assert api.control.post("/stop", timeout=DEADLINE).status_code == 202
        world.control.held.set()
        for thread in threads:
            thread.join(DEADLINE)


TWO = ("acme", "beta")
"""One tenant's calls alone never have all threads."""


def _pause_quietly(api: Served, number: int) -> None:
    httpx.post(f"{api.url}/tenants/{TWO[number % 2]}/pause", timeout=DEADLINE, trust_env=False)


def test_too_many_commands_at_once_are_asked_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    for tenant_id in TWO:
        world.create(tenant_id)
        world.control.entered.acquire()
    world.control.held = threading.Event()
    with serving(world, grace=1) as api:
        threads = [threading.Thread(target=_pause_quietly, args=(api, n)) for n in range(16)]
        for thread in threads:
            thread.start()
        for _ in range(16):
            assert world.control.entered.acquire(timeout=DEADLINE)
        api.app.state.services.pools.commands._places._patience = 0.05
        answer = api.control.post("/tenants/acme/pause")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        world.control.held.set()
        for thread in threads:
            thread.join(DEADLINE)


def _raw(api: Served, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", api.server.tcp_port or 0), timeout=DEADLINE) as raw:
        raw.sendall(data)
        return raw.makefile("rb").read()


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 66_000,
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ],
)
def test_what_is_no_http_is_answered_with_a_problem(data: bytes) -> None:
    with serving(World()) as api:
        answer = _raw(api, data)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in answer


def test_a_client_that_sends_no_request_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", DEADLINE)
    with (
        serving(World()) as api,
        socket.create_connection(("127.0.0.1", api.server.tcp_port or 0), timeout=DEADLINE) as used,
    ):
        used.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = used.makefile("rb")
        while (byte := received.read(1)) != b"}":
            assert byte
        monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.1)
        # What comes too late is answered by a reset.
        with suppress(ConnectionError):
            used.sendall(b"GET")
            assert received.read() == b""
        for data in (b"", b"GET /healthz HT"):
            with suppress(ConnectionError):
                assert _raw(api, data) == b""


def test_a_body_that_does_not_come_is_408() -> None:
    head = b"POST /tenants HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
    with serving(World(body_timeout=0.1)) as api:
        assert _raw(api, head).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("length", [b"2000000", b"9" * 17, b"9" * 19])
def test_a_client_that_asks_first_is_refused_before_it_sends(length: bytes) -> None:
    head = b"POST /tenants HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: "
    with serving(World()) as api:
        answer = _raw(api, head + length + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413")


def test_a_chunked_body_is_bounded_too() -> None:
    with serving(World()) as api:
        chunks = (b"x" * 65536 for _ in range(40))
        headers = {"Content-Type": "application/json"}
        answer = api.control.post("/tenants", content=chunks, headers=headers)
        assert answer.status_code == 413
