"""How commands end badly: one line, and an exit code of the contract."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tenantry.cli.client import ControlClient
from tenantry.cli.output import CommandError
from tests.api.serving import Served, short_directory
from tests.waiting import DEADLINE

REPOSITORY = Path(__file__).parents[2]

Run = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.usefixtures("_isolated")


def test_a_refusal_of_the_daemon_is_one_line_and_exit_1(api: Served, run: Run) -> None:
    code, out, err = run("tenant", "show", "nobody")
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert "no such tenant" in err
    assert len(err.splitlines()) == 1
    api.world.create("acme")
    assert run("tenant", "create", "--id", "acme")[0] == 1


def test_without_a_daemon_the_exit_code_is_3_and_the_socket_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = "/tmp/there-is-no-daemon.sock"
    monkeypatch.setenv("TENANTRY_CONTROL_SOCKET", path)
    for command in (["status"], ["produce"], ["verify-isolation"], ["events"], ["stop", "--wait"]):
        code, _, err = run(*command)
        assert (code, len(err.splitlines())) == (3, 1)
        assert path in err
        assert "tenantry run" in err


def test_bad_configuration_is_exit_2_and_names_key_and_file(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("wokers = 3")
    for arguments in (["status", "--config", str(file)], ["--config", str(file), "status"]):
        code, _, err = run(*arguments)
        assert code == 2
        assert "wokers" in err
        assert str(file) in err


def test_a_flag_of_the_daemon_out_of_range_is_exit_2(run: Run) -> None:
    code, _, err = run("run", "--workers", "65")
    assert code == 2
    assert "workers" in err
    assert "command line" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["tenant", "create"],
        ["tenant", "create", "a", "--name", "b"],
        ["tenant", "resize", "acme", "65"],
        ["tenant", "resize", "acme", "many"],
        ["events", "--limit", "0"],
        ["produce", "--interval", "fast"],
        ["produce", "--amqp-address", "localhost"],
        ["produce", "--amqp-address", "localhost:99999"],
        ["produce", "--iggy-address", "localhost:0"],
        ["verify-isolation", "--probe", "--iggy-address", "localhost:8090"],
        ["completion", "tcsh"],
        ["nonsense"],
        ["status", "--nonsense"],
    ],
    ids=" ".join,
)
def test_bad_usage_is_exit_2(api: Served, run: Run, arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TENANTS_COUNT", "many"),
        ("TENANTS_COUNT", "0"),
        ("PRODUCERS_COUNT", "-1"),
        ("PARTITIONS_COUNT", "65"),
        ("ENSURE_ACCESS", "perhaps"),
        ("TENANTRY_AMQP_ADDRESS", "broker"),
        ("TENANTRY_IGGY_ADDRESS", "broker"),
    ],
)
def test_a_bad_variable_of_the_producer_is_exit_2_with_its_name(
    api: Served, run: Run, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    code, _, err = run("produce")
    assert code == 2
    assert variable in err


def test_an_unexpected_failure_is_one_line_without_secrets(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no way\nto amqp://user:hunter2@host")

    monkeypatch.setattr("tenantry.settings.load", fail)
    code, _, err = run("status")
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "RuntimeError" in err
    assert "hunter2" not in err


def test_ctrl_c_is_exit_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tenantry.settings.load", interrupted)
    assert run("status")[0] == 130


def test_a_reader_that_goes_away_causes_no_noise(api: Served) -> None:
    for number in range(30):
        api.world.create(f"t{number}")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    program = f"{sys.executable} -m tenantry.cli.main events | head -n 1"
    done = subprocess.run(
        ["bash", "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=True,
    )
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_a_database_that_can_t_be_reached_is_exit_1_without_the_password(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:hunter2@127.0.0.1:1/d")
    code, _, err = run("migrate")
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "hunter2" not in err


@contextmanager
def answering(answer: bytes | None) -> Iterator[Path]:
    """A socket that reads a request, sends these bytes and hangs up; None keeps silent."""
    with short_directory() as directory, socket.socket(socket.AF_UNIX) as listener:
        path = directory / "s"
        listener.bind(str(path))
        listener.listen()
        over = threading.Event()

        def serve() -> None:
            while not over.is_set():
                connection, _ = listener.accept()
                with connection:
                    if not connection.recv(65536):
                        continue  # somebody only looked whether anyone is there
                    if answer is None:
                        over.wait(DEADLINE)
                    else:
                        connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield path
        finally:
            over.set()
            with socket.socket(socket.AF_UNIX) as last:
                last.connect(str(path))
            thread.join(DEADLINE)


def test_a_daemon_that_hangs_up_is_unreachable(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(b"") as path:
        monkeypatch.setenv("TENANTRY_CONTROL_SOCKET", str(path))
        code, _, err = run("status")
    assert code == 3
    assert "closed the connection" in err


def test_an_answer_that_is_no_json_is_a_clear_failure(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for status, expected in ((b"200 OK", "no JSON"), (b"502 Bad Gateway", "status 502")):
        answer = b"HTTP/1.1 " + status + b"\r\ncontent-length: 2\r\n\r\n<>"
        with answering(answer) as path:
            monkeypatch.setenv("TENANTRY_CONTROL_SOCKET", str(path))
            code, _, err = run("status")
        assert code == 1
        assert expected in err


def test_a_daemon_that_keeps_silent_is_given_up() -> None:
    with (
        answering(None) as path,
        ControlClient(path, timeout=0.2) as client,
        pytest.raises(CommandError, match="no answer from the daemon within"),
    ):
        client.call("GET", "/status")
