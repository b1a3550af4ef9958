from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
import structlog

from tenantry.telemetry.logging import configure, mask, mask_text
from tests.waiting import DEADLINE


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_away_from_a_terminal_an_event_is_one_json_object_a_line() -> None:
    stream = io.StringIO()
    configure("info", "auto", stream)
    structlog.get_logger("tenantry.test").info("tenant created", tenant_id="1", workers=3)
    (event,) = lines(stream)
    assert list(event)[:4] == ["timestamp", "level", "logger", "event"]
    assert event["event"] == "tenant created"
    assert (event["level"], event["workers"]) == ("info", 3)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", str(event["timestamp"]))


def test_nothing_in_a_value_breaks_a_json_line() -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    evil = 'a\n{"event":"forged"}\r\x1b[2J\u2028\u0085\ud800'
    structlog.get_logger().warning(evil, payload=evil, nested={"k": [evil]}, rate=float("nan"))
    (event,) = lines(stream)
    assert event["event"] == event["payload"] == evil
    assert stream.getvalue().isascii()


def test_nothing_in_a_value_breaks_a_console_line() -> None:
    stream = io.StringIO()
    configure("info", "console", stream)
    structlog.get_logger().warning("one\ntwo\x1b[2J", payload="three\rfour")
    assert len(stream.getvalue().splitlines()) == 1
    assert "one\\ntwo\\x1b[2J" in stream.getvalue()
    assert "three\\rfour" in stream.getvalue()


def test_a_terminal_gets_colours_and_a_piped_console_none() -> None:
    terminal, piped = Terminal(), io.StringIO()
    configure("info", "auto", terminal)
    structlog.get_logger().info("hello")
    configure("info", "console", piped)
    structlog.get_logger().info("hello")
    assert "\x1b[" in terminal.getvalue()
    assert "\x1b[" not in piped.getvalue()
    assert "hello" in piped.getvalue()


def test_the_standard_library_s_loggers_speak_the_same_way() -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    logging.getLogger("some.library").error("failed %s times", 3)
    (event,) = lines(stream)
    assert (event["event"], event["logger"], event["level"]) == (
        "failed 3 times",
        "some.library",
        "error",
    )


def test_an_exception_stays_on_its_line_and_its_secrets_are_masked() -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    try:
        int("amqp://u:hunter2@h:5672/")
    except ValueError:
        structlog.get_logger().exception("it failed")
    (event,) = lines(stream)
    assert "Traceback" in str(event["exception"])
    assert "hunter2" not in stream.getvalue()


def test_events_below_the_level_are_dropped() -> None:
    stream = io.StringIO()
    configure("warning", "json", stream)
    structlog.get_logger().info("quiet")
    logging.getLogger("other").info("quiet")
    structlog.get_logger().warning("loud")
    assert [event["event"] for event in lines(stream)] == ["loud"]


def test_chatty_libraries_are_quietened_until_debug() -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    logging.getLogger("pika.adapters").error("socket failed")
    logging.getLogger("uvicorn.error").info("started")
    assert lines(stream) == []
    configure("debug", "json", stream)
    logging.getLogger("pika.adapters").error("socket failed")
    assert [event["event"] for event in lines(stream)] == ["socket failed"]


def test_context_variables_are_part_of_every_event() -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    with structlog.contextvars.bound_contextvars(correlation_id="abc"):
        structlog.get_logger().info("one")
        logging.getLogger("other").warning("two")
    assert [event["correlation_id"] for event in lines(stream)] == ["abc", "abc"]


def test_configuring_twice_does_not_log_twice() -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    configure("info", "json", stream)
    structlog.get_logger().info("once")
    assert len(lines(stream)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "amqp://user:hunter2@host:5672/v",
        "at postgresql://user:hunter2@host/db?x=1 failed",
        "postgres://u:hun/ter2@x@host/db",
        "https://u:hunter2@host:15672/api",
        "host=h password=hunter2 dbname=d",
        "password='hunter2 hunter2'",
        "Authorization: Bearer hunter2",
    ],
)
def test_secrets_in_texts_are_masked(text: str) -> None:
    masked = mask_text(text)
    assert "ter2" not in masked
    assert "***" in masked


def test_urls_without_a_user_are_left_alone() -> None:
    text = "see https://example.org/@someone and amqp://host:5672/v"
    assert mask_text(text) == text


def test_values_of_telling_keys_are_masked_at_any_depth() -> None:
    value = {
        "password": "x",
        "list": [{"Authorization": "x"}, {"jwt_secret": b"x"}],
        "credentials": {"username": "u"},
        "tokens": 5,
        "plain": "p",
    }
    assert mask(value) == {
        "password": "***",
        "list": [{"Authorization": "***"}, {"jwt_secret": "***"}],
        "credentials": "***",
        "tokens": 5,
        "plain": "p",
    }


def test_sigusr1_writes_every_thread_s_stack_to_stderr() -> None:
    program = (
        "import signal, os\n"
        "from tenantry.telemetry.logging import dump_stacks_on_sigusr1\n"
        "dump_stacks_on_sigusr1()\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
        "print('alive')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.stdout == "alive\n"
    assert "most recent call first" in done.stderr
