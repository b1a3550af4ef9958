"""The command line against a real API over ports in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import ShellComplete

from tenantry.cli.main import cli, main
from tenantry.control.port import ActorStatus, SystemState, TermStatus
from tenantry.metrics.statistics import Slot
from tests import preloaded
from tests.api.serving import Served
from tests.commands import THAT_DO_SOMETHING
from tests.waiting import DEADLINE

REPOSITORY = Path(__file__).parents[2]

Run = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.usefixtures("_isolated")


def data(run: Run, *arguments: str) -> Any:
    code, out, err = run(*arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


@pytest.mark.parametrize("command", THAT_DO_SOMETHING, ids=" ".join)
def test_every_command_has_help_with_an_example_and_a_config_option(
    run: Run, command: tuple[str, ...]
) -> None:
    code, out, _ = run(*command, "--help")
    assert code == 0
    assert "Example:\n" in out
    assert "tenantry" in out.partition("Example:")[2]
    assert "--config PATH" in out


def test_topics_are_created_with_partitions_and_ordering(api: Served, run: Run) -> None:
    code, out, _ = run(
        "tenant", "create", "acme", "--topics", "logs,orders:8:ordered", "--topic", "audit:ordered"
    )
    assert code == 0
    assert "orders:8:ordered" in out
    (found,) = data(run, "tenant", "list")
    told = [(one["name"], one["partitions"], one["ordering"]) for one in found["topic_settings"]]
    assert told == [("logs", 1, "none"), ("orders", 8, "partition"), ("audit", 1, "partition")]


def test_a_tenant_is_given_topics_and_they_are_shown(api: Served, run: Run) -> None:
    api.world.create("acme")
    assert data(run, "tenant", "topics", "acme") == []
    added = ("--add", "logs,orders:8:ordered", "--add", "audit:2")
    found = data(run, "tenant", "topics", "acme", *added)
    told = [(one["name"], one["partitions"], one["ordering"]) for one in found]
    assert told == [("logs", 1, "none"), ("orders", 8, "partition"), ("audit", 2, "none")]
    code, out, _ = run("tenant", "topics", "acme")
    assert code == 0
    assert [line.split() for line in out.splitlines()][2] == ["orders", "8", "partition"]


def test_a_topic_that_is_there_with_other_partitions_is_refused_with_its_name(
    api: Served, run: Run
) -> None:
    api.world.create("acme")
    assert run("tenant", "topics", "acme", "--add", "orders:8")[0] == 0
    assert run("tenant", "topics", "acme", "--add", "orders:8")[0] == 0
    code, _, err = run("tenant", "topics", "acme", "--add", "orders:4")
    assert (code, "orders" in err) == (1, True)


@pytest.mark.parametrize("topics", ["", ",", "a:b"])
def test_topics_that_are_none_are_bad_usage(api: Served, run: Run, topics: str) -> None:
    code, _, err = run("tenant", "topics", "acme", "--add", topics)
    assert (code, "NAME[:PARTITIONS][:ordered]" in err) == (2, True)


def test_a_shell_completes_topics_of_the_tenant_that_is_named(
    api: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    api.world.create("acme", topics=("logs", "orders"))
    shell = ShellComplete(cli, {}, "tenantry", "_TENANTRY_COMPLETE")

    def offered(*before: str, incomplete: str = "") -> list[str]:
        return [one.value for one in shell.get_completions([*before], incomplete)]

    assert offered("messages", "acme", "--topic", incomplete="o") == ["orders"]
    assert offered("dead-letters", "list", "acme", "--topic") == ["logs", "orders"]
    assert offered("messages", "--topic") == []
    elsewhere = tmp_path / "elsewhere.toml"
    elsewhere.write_text('control = {socket = "/tmp/there-is-no-daemon.sock"}\n')
    monkeypatch.delenv("TENANTRY_CONTROL_SOCKET")
    own = tmp_path / "own.toml"
    own.write_text(f'control = {{socket = "{api.path}"}}\n')
    for config in ("--config", str(own)), ("--config", str(elsewhere)):
        for place in (0, 1):
            words = ["messages", "acme"]
            words[place:place] = config
            expected = ["logs", "orders"] if config[1] == str(own) else []
            assert offered(*words, "--topic") == expected, words
    monkeypatch.setenv("TENANTRY_CONTROL_SOCKET", "/tmp/there-is-no-daemon.sock")
    assert offered("messages", "acme", "--topic") == []


@pytest.mark.parametrize("topic", ["a:", "a:b", "a:8:9", "a:ordered:8", "a:ordered:ordered"])
def test_a_topic_written_otherwise_is_bad_usage(api: Served, run: Run, topic: str) -> None:
    code, _, err = run("tenant", "create", "acme", "--topic", topic)
    assert (code, "NAME[:PARTITIONS][:ordered]" in err) == (2, True)


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


def test_statistics_are_lines_of_eighty_columns_at_most(api: Served, run: Run) -> None:
    api.world.create("acme")
    at = api.world.statistics.now.replace(second=0) - timedelta(minutes=30)
    api.world.statistics.slots["acme", False] = [Slot(at=at, stored=6_000_000, backlog=12)]
    code, out, err = run("tenant", "stats", "acme")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    (stored,) = (line for line in out.splitlines() if line.startswith("stored/s"))
    assert "100,000.0" in stored
    assert data(run, "tenant", "stats", "acme", "--window", "2m")["step_seconds"] == 60
    assert run("tenant", "stats", "acme", "--window", "1y")[0] == 1


def test_limits_are_given_as_people_write_them(api: Served, run: Run) -> None:
    api.world.create("acme")
    given = ("--rate", "500", "--backlog", "1000,64MiB", "--retention", "7d")
    limits = data(run, "tenant", "limits", "acme", *given)
    assert limits["rate"] == 500
    assert limits["backlog"] == {"messages": 1000, "bytes": 64 * 1024 * 1024}
    assert limits["retention"] == {"age": 7 * 24 * 60 * 60, "rows": None}
    assert data(run, "tenant", "limits", "acme", "--backlog", "none")["backlog"] is None
    code, out, _ = run("tenant", "limits", "acme")
    assert code == 0
    assert "500" in out


@pytest.mark.parametrize(
    "wrong",
    [("--rate", "fast"), ("--backlog", "1,2"), ("--backlog", "64miles"), ("--retention", "soon")],
)
def test_a_limit_that_can_t_be_read_is_bad_usage(
    api: Served, run: Run, wrong: tuple[str, str]
) -> None:
    api.world.create("acme")
    code, _, err = run("tenant", "limits", "acme", *wrong)
    assert code == 2
    assert wrong[1] in err


def test_a_health_check_says_by_its_exit_code_whether_the_daemon_is_well(
    api: Served, run: Run
) -> None:
    assert run("healthcheck") == (0, "healthy\n", "")
    assert run("healthcheck", "--ready")[0] == 0
    system = api.world.control.system
    api.world.control.system = replace(system, ready=False, reasons=("the broker is away",))
    code, out, err = run("healthcheck", "--ready")
    assert (code, out) == (1, "")
    assert "the broker is away" in err
    assert run("healthcheck")[0] == 0


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
    follower.join(DEADLINE)
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
        done = preloaded.run(command, cwd=REPOSITORY, env={**environment, **more}, timeout=DEADLINE)
        assert done.returncode == 0
        return done.stdout.split(), done.stderr

    assert complete() == (["plain,acme", "plain,acre"], "")
    assert complete(TENANTRY_CONTROL_SOCKET="/tmp/there-is-no-daemon.sock") == ([], "")


def test_the_command_line_starts_without_what_only_some_commands_need() -> None:
    code = "import sys, tenantry.cli.main; print({'pika', 'psycopg', 'fastapi'} & {*sys.modules})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
