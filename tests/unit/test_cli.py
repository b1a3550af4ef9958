"""The command line against a real API over ports in memory."""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
import structlog

from tenantry.cli.client import ControlClient
from tenantry.cli.failures import CommandError
from tenantry.cli.main import cli, main
from tenantry.control.port import ActorStatus, SystemState, TermStatus
from tenantry.telemetry.logging import configure
from tests import preloaded
from tests.api.serving import Served, World, serving, short_directory

REPOSITORY = Path(__file__).parents[2]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    # The API runs in this process: its log must not mingle with what a command prints.
    configure("error", "json", io.StringIO())
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    with serving(World()) as served:
        monkeypatch.setenv("TENANTRY_CONTROL_SOCKET", str(served.path))
        yield served


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def invoke(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return invoke


def data(run: Run, *arguments: str) -> Any:
    code, out, err = run(*arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("command", list(commands(cli)), ids=" ".join)
def test_every_command_has_help_with_an_example_and_a_config_option(
    run: Run, command: tuple[str, ...]
) -> None:
    code, out, _ = run(*command, "--help")
    assert code == 0
    assert "Example:\n" in out
    assert "tenantry" in out.partition("Example:")[2]
    assert "--config PATH" in out


def test_a_tenant_is_created_with_credentials_shown_once(api: Served, run: Run) -> None:
    code, out, err = run("tenant", "create", "Acme Ltd", "--id", "acme", "--topic", "a,b")
    assert code == 0
    assert "tenant_acme_producer" in out
    assert "shown once" in out
    assert "this once" in err
    assert data(run, "tenant", "show", "acme")["topics"] == ["a", "b"]
    assert "shown once" not in run("tenant", "show", "acme")[1]


def test_a_tenant_s_life_is_told_in_json(api: Served, run: Run) -> None:
    made = data(run, "tenant", "create", "--id", "acme", "--workers", "2", "--partitions", "3")
    assert (made["name"], made["workers"], made["partitions"]) == ("acme", 2, 3)
    assert data(run, "tenant", "resize", "acme", "5")["workers"] == 5
    assert data(run, "tenant", "pause", "acme")["state"] == "paused"
    assert data(run, "tenant", "resume", "acme")["state"] == "active"
    assert data(run, "tenant", "rotate-credentials", "acme")["credentials"]["password"]
    assert [one["id"] for one in data(run, "tenant", "list")] == ["acme"]
    assert data(run, "tenant", "show", "acme", "--at", "2")["workers"] == 2
    assert data(run, "tenant", "delete", "acme", "--yes")["state"] == "deleted"
    assert data(run, "tenant", "list") == []


def test_deleting_asks_and_where_it_can_t_ask_it_refuses(
    api: Served, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.world.create("acme")
    code, _, err = run("tenant", "delete", "acme")
    assert code == 2
    assert "--yes" in err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    answers = iter([False, True])
    monkeypatch.setattr(click, "confirm", lambda *_a, **_k: next(answers))
    code, _, err = run("tenant", "delete", "acme")
    assert (code, err.strip()) == (1, "error: nothing was deleted")
    assert run("tenant", "delete", "acme")[0] == 0


def test_lists_are_complete_however_many_pages_they_have(
    api: Served, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenantry.cli.client.PAGE", 2)
    for number in range(5):
        api.world.create(f"t{number}")
    assert len(data(run, "tenant", "list")) == 5
    assert len(data(run, "tenant", "list", "--limit", "3")) == 3
    assert len(data(run, "events")) == 10


def test_piped_tables_are_plain_and_hostile_names_break_no_line(api: Served, run: Run) -> None:
    api.world.create("acme", name="[red]a[/red]")
    api.world.messages.add("acme", id="one\ntwo\x1b[2J", payload='"\u2028"')
    api.world.messages.add("acme", payload=None, body=b"a text\n")
    api.world.messages.add("acme", payload=None, body=b"\xff")
    code, out, _ = run("tenant", "list")
    assert code == 0
    assert out.splitlines()[0].split()[:3] == ["ID", "NAME", "STATE"]
    assert "[red]a[/red]" in out
    assert "\x1b" not in out
    out = run("messages", "acme")[1]
    assert len(out.splitlines()) == 4
    assert out.splitlines()[2].endswith("a text\\n")
    assert out.splitlines()[3].endswith("base64:/w==")
    assert "one\\ntwo\\x1b[2J" in out


def test_what_is_in_a_tenants_way_stands_with_it_wherever_tenants_are_shown(
    api: Served, run: Run
) -> None:
    for tenant_id in ("acme", "globex"):
        api.world.create(tenant_id)
    assert "TROUBLE" not in run("tenant", "list")[1]
    found = "broker user tenant_acme_producer is another installation's: delete one of the tenants"
    control = api.world.control
    control.trouble["acme"] = found
    runtimes = {name: one for name in ("acme", "globex") if (one := control.runtime(name))}
    before, control.system = control.system, replace(control.system, tenants=runtimes)
    try:
        for command in (("tenant", "list"), ("status",), ("tenant", "show", "acme")):
            out = run(*command)[1]
            assert [line.endswith(found) for line in out.splitlines()].count(True) == 1, out
    finally:
        control.trouble.clear()
        control.system = before


def test_messages_of_all_tenants_and_one_by_its_id(api: Served, run: Run) -> None:
    for tenant_id in ("b", "acme"):
        api.world.create(tenant_id)
        api.world.messages.add(tenant_id, id="a/b %2F\n")
    assert [one["tenant_id"] for one in data(run, "messages")] == ["acme", "b"]
    assert data(run, "messages", "acme", "--id", "a/b %2F\n")["tenant_id"] == "acme"
    assert run("messages", "acme", "--id", "nope")[0] == 1
    assert run("messages", "--id", "a/b")[0] == 2
    assert data(run, "messages", "acme", "--incarnation", "1")
    assert run("messages", "acme", "--incarnation", "2")[0] == 1
    assert run("messages", "--incarnation", "1")[0] == 2


def test_a_terminal_gets_boxes_and_trees(
    api: Served, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.world.create("acme", name="[red]a[/red]")
    child = ActorStatus(name="acme", kind="Tenant", state="running", mailbox=1, restarts=2)
    control = api.world.control
    control.system = replace(control.system, tree=replace(control.system.tree, children=(child,)))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    out = run("status")[1]
    assert "└── " in out
    assert "restarts 2" in out
    assert "[red]a[/red]" in run("tenant", "list")[1]


def test_status_shows_actors_and_tenants(api: Served, run: Run) -> None:
    api.world.create("acme")
    control = api.world.control
    child = ActorStatus(name="acme", kind="Tenant", state="running", mailbox=7, restarts=0)
    runtime = control.runtime("acme")
    assert runtime is not None
    since = datetime(2026, 1, 31, 12, tzinfo=UTC)
    control.system = replace(
        control.system,
        term=TermStatus(number=7, host="ingest-1", pid=4711, since=since),
        tree=replace(control.system.tree, children=(child,)),
        tenants={"acme": replace(runtime, stored=42)},
    )
    code, out, _ = run("status")
    assert code == 0
    assert "running, ready" in out
    assert "leader; term 7 is held by ingest-1 (pid 4711) since 2026-01-31T12:00:00" in out
    assert "  acme  Tenant, running, mailbox 7" in out
    assert "42" in out
    found = data(run, "status")
    assert found["tree"]["children"][0]["mailbox"] == 7
    assert found["tenants"]["acme"]["stored"] == 42


def test_events_are_printed_oldest_first_each_on_a_line(api: Served, run: Run) -> None:
    api.world.create("acme", name="one")
    api.world.create("globex")
    lines = run("events")[1].splitlines()
    assert [line.split()[2] for line in lines] == [
        "tenant-acme@1",
        "tenant-acme@2",
        "tenant-globex@1",
        "tenant-globex@2",
    ]
    assert [one["version"] for one in data(run, "events", "globex")] == [1, 2]
    assert len(data(run, "events", "--limit", "3")) == 3


def test_a_follower_sees_what_happens_later(
    api: Served, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    api.world.create("acme")
    codes: list[int] = []
    follower = threading.Thread(
        target=lambda: codes.append(main(["events", "--follow", "--json", "--limit", "4"]))
    )
    follower.start()
    api.world.create("globex")
    follower.join(20)
    assert codes == [0]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["position"] for one in lines] == [1, 2, 3, 4]


def test_draining_waits_until_it_is_done(
    api: Served, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = api.world.control
    looks = iter([SystemState.DRAINING, SystemState.DRAINING, SystemState.DRAINED])
    status = control.status

    def drained_in_the_end() -> Any:
        found = status()
        return replace(found, state=next(looks, SystemState.DRAINED))

    monkeypatch.setattr(control, "status", drained_in_the_end)
    assert run("drain")[:2] == (0, "drained\n")


def test_a_drain_that_takes_too_long_names_what_is_left(api: Served, run: Run) -> None:
    api.world.create("acme")
    control = api.world.control
    runtime = control.runtime("acme")
    assert runtime is not None
    control.system = replace(control.system, tenants={"acme": replace(runtime, unsettled=3)})
    code, _, err = run("drain", "--timeout", "0.3")
    assert code == 1
    assert "acme: 3" in err
    assert data(run, "drain", "--no-wait") == {"state": "draining"}


def test_stop_asks_the_daemon_to_end(api: Served, run: Run) -> None:
    assert data(run, "stop") == {"state": "stopping"}
    assert api.world.control.system.state is SystemState.STOPPING
    code, _, err = run("stop", "--wait", "--timeout", "0.3")
    assert code == 1
    assert "still runs" in err


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

    monkeypatch.setattr("tenantry.cli.options.load", fail)
    code, _, err = run("status")
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "RuntimeError" in err
    assert "hunter2" not in err


def test_ctrl_c_is_exit_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tenantry.cli.options.load", interrupted)
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
        timeout=60,
        check=True,
    )
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_the_schema_is_checked_and_brought_up_to_date(
    run: Run, monkeypatch: pytest.MonkeyPatch, empty_database_url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    code, out, _ = run("migrate", "--check")
    assert code == 1
    assert out.startswith("missing: 0001_")
    applied = data(run, "migrate")["applied"]
    assert applied
    assert data(run, "migrate") == {"applied": []}
    assert run("migrate", "--check")[:2] == (0, "the schema is up to date\n")


def test_a_database_that_can_t_be_reached_is_exit_1_without_the_password(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:hunter2@127.0.0.1:1/d")
    code, _, err = run("migrate")
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "hunter2" not in err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(run: Run, shell: str) -> None:
    code, out, _ = run("completion", shell)
    assert code == 0
    assert "_TENANTRY_COMPLETE" in out


def test_a_shell_completes_tenants_from_the_daemon(api: Served) -> None:
    for tenant_id in ("acme", "acre", "globex"):
        api.world.create(tenant_id)
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "_TENANTRY_COMPLETE": "bash_complete",
        "COMP_WORDS": "tenantry tenant show ac",
        "COMP_CWORD": "3",
    }

    def complete(**more: str) -> tuple[list[str], str]:
        command = [sys.executable, "-m", "tenantry.cli.main"]
        done = preloaded.run(command, cwd=REPOSITORY, env={**environment, **more}, timeout=60)
        assert done.returncode == 0
        return done.stdout.split(), done.stderr

    assert complete() == (["plain,acme", "plain,acre"], "")
    assert complete(TENANTRY_CONTROL_SOCKET="/tmp/there-is-no-daemon.sock") == ([], "")


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
                        over.wait(30)
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
            thread.join(10)


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
