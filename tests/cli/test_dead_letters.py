"""`tenantry dead-letters` against a real API over ports in memory."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog

from tenantry.broker.port import (
    BrokerError,
    BrokerUnavailableError,
    DeadLettersBusyError,
    Outgoing,
    QueuedDeadLetter,
)
from tenantry.cli import replay_client
from tenantry.cli.main import main
from tenantry.dead_letters.port import RejectedMessage
from tenantry.messages.port import Incoming
from tests.api.serving import Served, World, serving

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    # The API runs in this process: its log must not mingle with what the command prints.
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    with serving(World()) as served:
        monkeypatch.setenv("TENANTRY_CONTROL_SOCKET", str(served.path))
        monkeypatch.setenv("TENANTRY_CONFIG", os.devnull)
        served.world.create("acme", topics=("logs",), partitions=2)
        yield served
    structlog.reset_defaults()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def invoke(*arguments: str) -> tuple[int, str, str]:
        code = main(["dead-letters", *arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return invoke


def reject(world: World, *ids: str | None, body: bytes = b"no \x1b[31mJSON") -> list[str]:
    messages = [Incoming(one, "logs", 1, body, "text/x", {"n": 1}, None) for one in ids]
    kept = world.letters.add(
        "acme", [RejectedMessage(one, "not_json", "no JSON", 1) for one in messages]
    )
    world.dead_letters.queues.setdefault("acme", []).extend(
        QueuedDeadLetter(one, "rejected", datetime.now(UTC), b"") for one in messages
    )
    return [str(one.id) for one in kept]


def data(run: Run, *arguments: str) -> Any:
    code, out, err = run(*arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_letters_are_listed_with_a_glance_at_what_they_hold(api: Served, run: Run) -> None:
    (_, nameless) = reject(api.world, "a", None)
    code, out, _ = run("list", "acme")
    assert code == 0
    assert out.count("\n") == 3
    assert out.splitlines()[1].startswith("a ")
    assert out.splitlines()[2].startswith(nameless)
    assert "logs.1" in out
    assert "no \\x1b[31mJSON" in out
    assert "\x1b" not in out
    assert [letter["id"] for letter in data(run, "list", "acme")] == ["a", nameless]
    (shown, _) = data(run, "list", "acme", "--no-payload")
    assert not shown.keys() & {"body", "headers"}
    assert "JSON" not in run("list", "acme", "--no-payload")[1]


def test_letters_are_listed_by_conditions(api: Served, run: Run) -> None:
    reject(api.world, "a")
    assert len(data(run, "list", "acme", "--since", "1h", "--reason", "not_json")) == 1
    assert data(run, "list", "acme", "--until", "1h") == []
    assert data(run, "list", "acme", "--topic", "events") == []
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    assert data(run, "list", "acme", "--since", tomorrow) == []


@pytest.mark.parametrize(
    "time",
    ["yesterday", "2026-01-31T12:00:00", "1w", "-1h", "999999d", "0001-01-01T00:00:00+14:00"],
)
def test_a_time_that_is_none_is_bad_usage(api: Served, run: Run, time: str) -> None:
    code, _, err = run("list", "acme", f"--since={time}")
    assert code == 2
    assert "--since" in err


def test_a_letter_is_shown_by_either_id(api: Served, run: Run) -> None:
    (one,) = reject(api.world, "a")
    code, out, _ = run("show", "acme", "a")
    assert code == 0
    for text in (one, "not_json", "text/x", "header n: 1", "no \\x1b[31mJSON"):
        assert text in out
    assert data(run, "show", "acme", one)["message_id"] == "a"
    assert "JSON\n" not in run("show", "acme", one, "--no-payload")[1].replace("no JSON", "")
    assert "body" not in data(run, "show", "acme", one, "--no-payload")


def test_a_letter_that_is_not_there_or_not_clear_is_one_line(api: Served, run: Run) -> None:
    reject(api.world, "a")
    reject(api.world, "a", body=b"other")
    assert run("show", "acme", "nothing")[::2] == (1, "error: there is no such dead letter\n")
    assert run("show", "nobody", "a")[::2] == (1, "error: there is no such tenant\n")
    code, _, err = run("show", "acme", "a")
    assert (code, err.count("\n")) == (1, 1)
    assert "letter_id" in err
    assert run("show", "acme", "a/b")[0] == 1


def test_a_dry_run_tells_and_changes_nothing(api: Served, run: Run) -> None:
    reject(api.world, "a", "b")
    code, out, _ = run("replay", "acme", "--all", "--dry-run")
    assert code == 0
    assert out.splitlines()[0] == "2 dead letters would be replayed"
    assert data(run, "replay", "acme", "a", "--dry-run")["count"] == 1
    preview = data(run, "discard", "acme", "--topic", "logs", "--dry-run")
    assert preview["places"] == [{"topic": "logs", "partition": 1, "count": 2}]
    assert api.world.publishing.sent == []
    assert len(data(run, "list", "acme")) == 2


def test_letters_are_replayed_by_id_by_condition_and_all(api: Served, run: Run) -> None:
    reject(api.world, "a", "b", "c", "d")
    assert data(run, "replay", "acme", "a", "a") == {"replayed": 1}
    assert data(run, "replay", "acme", "--until", "1h") == {"replayed": 0}
    assert run("replay", "acme", "--reason", "not_json", "--since", "1h")[:2] == (
        0,
        "replayed 3 dead letters\n",
    )
    assert data(run, "replay", "acme", "--all") == {"replayed": 0}
    assert [one.message_id for one in api.world.publishing.sent] == ["a", "b", "c", "d"]


def test_letters_are_discarded_only_with_a_yes(
    api: Served, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    reject(api.world, "a", "b", "c")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    code, _, err = run("discard", "acme", "--all")
    assert code == 2
    assert "--yes" in err
    assert data(run, "discard", "acme", "a") == {"discarded": 1}
    assert data(run, "discard", "acme", "--all", "--yes") == {"discarded": 2}
    assert api.world.dead_letters.queues["acme"] == []


@pytest.mark.parametrize(
    "which", [(), ("a", "--all"), ("--all", "--topic", "logs"), ("a", "--reason", "x")]
)
def test_which_letters_has_to_be_said_once(api: Served, run: Run, which: tuple[str, ...]) -> None:
    for command in ("replay", "discard"):
        code, _, err = run(command, "acme", *which)
        assert code == 2
        assert "say which" in err


def test_an_id_that_is_none_of_a_dead_letter_is_a_failure(api: Served, run: Run) -> None:
    reject(api.world, "a")
    assert run("replay", "acme", "nothing")[::2] == (1, "error: there is no such dead letter\n")


def test_what_was_replayed_too_often_takes_force(api: Served, run: Run) -> None:
    reject(api.world, "worn", "fresh")
    page = api.world.letters
    for one in page._tenant("acme").letters:
        one.row.replays = one.row.failed = 10 if one.message.id == "worn" else 0
    api.world.dead_letters.queues["acme"] = [
        one._replace(
            message=one.message._replace(
                headers={"x-tenantry-replay": str(row.id), "x-tenantry-replays": row.replays}
            )
        )
        for one, row in zip(
            api.world.dead_letters.queues["acme"],
            [one.row for one in page._tenant("acme").letters],
            strict=True,
        )
    ]
    assert data(run, "replay", "acme", "--all", "--dry-run")["replayed_too_often"] == 1
    code, out, err = run("replay", "acme", "--all")
    assert (code, out) == (1, "replayed 1 dead letter\n")
    assert err.startswith("error: 1 replayed as often as they may be")
    assert data(run, "replay", "acme", "worn", "--force") == {"replayed": 1}
    (_, worn) = api.world.publishing.sent
    assert worn.headers is not None
    assert worn.headers["x-tenantry-replays"] == 11


def test_very_many_ids_and_very_many_letters_take_several_calls(
    api: Served, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_client, "MOST_IDS", 3)
    monkeypatch.setattr(replay_client, "AT_ONCE", 4)
    names = [str(number) for number in range(10)]
    reject(api.world, *names)
    assert data(run, "replay", "acme", *names[:5]) == {"replayed": 5}

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stderr", Terminal())
    assert run("replay", "acme", "--all")[:2] == (0, "replayed 5 dead letters\n")


@pytest.mark.parametrize(
    "error", [BrokerUnavailableError("away"), DeadLettersBusyError("being replayed")]
)
def test_what_can_not_be_done_now_is_tried_again_for_a_while(
    api: Served, run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    api.app.state.services.turns._patience = 0.01  # the API's own, of which a test waits out none
    reject(api.world, "a")
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            api.world.dead_letters.error = None

    monkeypatch.setattr(replay_client.time, "sleep", pause)
    api.world.dead_letters.error = error
    assert run("replay", "acme", "--all")[:2] == (0, "replayed 1 dead letter\n")
    assert pauses == [1.0, 2.0]
    api.world.dead_letters.error = error
    reject(api.world, "b")
    code, _, err = run("replay", "acme", "--all")
    assert (code, err.count("\n")) == (1, 1)
    assert len(pauses) == 2 + len(replay_client.PAUSES)


def test_what_the_broker_does_not_take_is_told(
    api: Served, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    reject(api.world, "a", "never")
    publish = api.world.publishing.publish

    def refuse(messages: list[Outgoing], *, timeout: float) -> None:
        if any(one.message_id == "never" for one in messages):
            raise BrokerError("a message can't be sent over AMQP")
        publish(messages, timeout=timeout)

    monkeypatch.setattr(api.world.publishing, "publish", refuse)
    code, out, err = run("replay", "acme", "--all")
    assert (code, out) == (1, "replayed 1 dead letter\n")
    assert "not taken by the broker" in err
