"""What commands print: on any standard output, and every number as the API gave it."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from tenantry import exact
from tenantry.cli.main import main
from tenantry.cli.output import _Output, working
from tenantry.telemetry.logging import configure
from tests.api.serving import Served, World, serving
from tests.waiting import DEADLINE

REPOSITORY = Path(__file__).parents[2]
NAME = "Müller & 漢字 😀 ·"
NUMBERS = ["1e20", "0.1000000000000000000001", "-0.0", "-0", "1E400", "12.50", "9" * 5000, "7"]


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    # The API runs in this process: its log must not mingle with what a command prints.
    configure("error", "json", io.StringIO())
    with serving(World()) as served:
        served.world.create("acme", name=NAME)
        payload = "[" + ",".join([*NUMBERS, '"ü"', "[" * 900 + "1e2" + "]" * 900]) + "]"
        served.world.messages.add("acme", payload=payload)
        yield served
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def _reached(api: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TENANTRY_CONTROL_SOCKET", str(api.path))


def printed(monkeypatch: pytest.MonkeyPatch, encoding: str, *arguments: str) -> bytes:
    """Run a command with a standard output of some encoding, and give its bytes."""
    raw = io.BytesIO()
    out = _Output(raw, encoding=encoding, errors="backslashreplace", write_through=True)
    monkeypatch.setattr(sys, "stdout", out)
    assert main(arguments) == 0
    out.flush()
    return raw.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii", "cp1252", "koi8-r"])
def test_any_encoding_of_standard_output_can_show_every_name(
    monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    shown = printed(monkeypatch, encoding, "tenant", "list").decode(encoding)
    assert NAME.encode(encoding, "backslashreplace").decode(encoding) in shown
    document = json.loads(printed(monkeypatch, encoding, "tenant", "list", "--json"))
    assert document[0]["name"] == NAME
    assert printed(monkeypatch, encoding, "dead-letters", "list", "--help").decode(encoding)
    assert printed(monkeypatch, encoding, "messages", "acme").decode(encoding)


def test_numbers_are_printed_as_the_api_gives_them(monkeypatch: pytest.MonkeyPatch) -> None:
    document = printed(monkeypatch, "utf-8", "messages", "acme", "--json").decode()
    read = json.loads(document, parse_int=str, parse_float=str, parse_constant=str)
    assert read[0]["payload"][: len(NUMBERS)] == NUMBERS
    assert "1e2" in document
    table = printed(monkeypatch, "utf-8", "messages", "acme").decode()
    assert ", ".join(NUMBERS) in table


def command(out: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a process, with its standard output put elsewhere by a shell."""
    line = f'"$0" -m tenantry.cli.main "$@" {out}'
    return subprocess.run(
        ["bash", "-c", line, sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


@pytest.mark.parametrize("out", [">&-", ">/dev/full"])
def test_a_standard_output_that_takes_nothing_is_one_clear_line(out: str) -> None:
    done = command(out, "tenant", "list")
    assert done.returncode == 1
    assert done.stderr.startswith("error: can't write to standard output: ")
    assert done.stderr.count("\n") == 1


numbers = st.one_of(
    st.sampled_from([one for one in NUMBERS if len(one) < 99]),
    st.from_regex(r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
)
documents = st.recursive(
    st.one_of(numbers, st.text().map(json.dumps), st.sampled_from(["true", "false", "null"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda one: f"[{', '.join(one)}]"),
        st.dictionaries(st.text(max_size=5).map(json.dumps), inner, max_size=4).map(
            lambda one: f"{{{', '.join(f'{key}: {value}' for key, value in one.items())}}}"
        ),
    ),
    max_leaves=20,
)


@given(documents)
def test_json_is_written_with_the_numbers_it_was_read_with(text: str) -> None:
    def parsed(document: str) -> Any:
        return json.loads(document, parse_int=str, parse_float=str)

    assert exact.dumps(exact.loads(text), ascii_only=True) == text
    assert parsed(exact.dumps(exact.loads(text), indent=2)) == parsed(text)


@pytest.mark.parametrize("depth", [99, 100, 101, 1500, 6000])
def test_json_may_be_nested_as_deeply_as_the_database_takes_it(depth: int) -> None:
    text = "[" * depth + '1e2, {"a]": "[\\"{", "b": -0.0}' + "]" * depth
    assert exact.dumps(exact.loads(text)) == text


def test_what_is_printed_while_a_terminal_shows_progress_goes_to_standard_output(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out, terminal = io.StringIO(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", terminal)
    with working("examining"):
        click.echo("Ensured access to stream: tenant_acme_stream")
    assert out.getvalue() == "Ensured access to stream: tenant_acme_stream\n"
    assert "Ensured" not in terminal.getvalue()
