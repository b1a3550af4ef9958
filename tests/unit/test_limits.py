"""Few open files: what is refused, what is shared out, and that clients can't use up the rest."""

from __future__ import annotations

import os
import resource
import socket
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tenantry.http.listeners import Shedding
from tenantry.process.start_checks import (
    FEWEST_CONNECTIONS,
    StartError,
    allow_open_files,
    connections,
    needed_files,
    reserved_files,
)
from tenantry.settings import Settings
from tests.api.serving import World, serving
from tests.waiting import DEADLINE

SETTINGS = Settings.model_validate({"state_dir": Path("/nowhere")})


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The limit as the code sees it, soft and hard; the process keeps its own."""
    now = [1024, 1024]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(now))
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: now.__setitem__(slice(2), pair))
    return now


def test_a_limit_of_64_is_enough_and_is_told_once_with_a_remedy(limit: list[int]) -> None:
    limit[:] = [64, 64]
    with capture_logs() as logs:
        allow_open_files(SETTINGS)
    (told,) = logs
    assert told["event"] == "daemon.few_open_files"
    assert "ulimit -n" in told["remedy"]
    share = connections(reserved_files(SETTINGS), ways=2)
    assert share == FEWEST_CONNECTIONS
    assert reserved_files(SETTINGS) + 2 * share <= 64


def test_the_soft_limit_is_raised_to_what_the_hard_one_allows(limit: list[int]) -> None:
    limit[:] = [20, 900]
    allow_open_files(SETTINGS)
    assert limit == [900, 900]


def test_a_limit_too_low_for_the_pool_is_refused_with_the_key(limit: list[int]) -> None:
    limit[:] = [63, 63]
    with pytest.raises(StartError) as refused:
        allow_open_files(SETTINGS)
    text = str(refused.value)
    assert text.startswith("database.pool_size: ")
    assert f"needs {needed_files(SETTINGS)}" in text
    assert "LimitNOFILE=" in text


def test_without_a_free_descriptor_clients_are_turned_away_and_that_is_told_once() -> None:
    listening = Shedding(socket.create_server(("127.0.0.1", 0)))
    address = listening.getsockname()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    clients = [socket.create_connection(address, timeout=DEADLINE) for _ in range(5)]
    lowest = os.open(os.devnull, os.O_RDONLY)
    try:
        os.close(lowest)
        with capture_logs() as logs:
            # No descriptor of this number or a higher one is given out.
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
            try:
                for _ in clients:
                    with pytest.raises(BlockingIOError):
                        listening.accept()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert [one["event"] for one in logs] == ["api.no_descriptor_left"]
        for client in clients:
            assert client.recv(1) == b""
        with socket.create_connection(address, timeout=DEADLINE):
            listening.accept()[0].close()
    finally:
        for client in clients:
            client.close()
        listening.close()


def test_a_client_beyond_the_connections_there_may_be_is_turned_away_and_told_of_once() -> None:
    with capture_logs() as logs, serving(World(), max_connections=2) as api:
        address = ("127.0.0.1", api.server.tcp_port or 0)
        held = [socket.create_connection(address, timeout=DEADLINE) for _ in range(2)]
        for one in held:
            one.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert one.recv(12) == b"HTTP/1.1 200"
        for _ in range(3):
            with socket.create_connection(address, timeout=DEADLINE) as more:
                assert more.recv(1) == b""
        for one in held:
            one.close()
    assert [one["most"] for one in logs if one["event"] == "api.too_many_connections"] == [2]
