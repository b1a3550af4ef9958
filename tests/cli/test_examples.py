"""Each command's help ends with an example, and each example is taken as it stands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tenantry.cli.main import cli
from tests.commands import THAT_DO_SOMETHING


def examples(command: click.Command) -> list[list[str]]:
    """Give the arguments with which an example calls the program, each time it does."""
    lines = (command.epilog or "").splitlines()[2:]
    return [arguments for line in lines for arguments in calls(line)]


def calls(line: str) -> Iterator[list[str]]:
    """Find where a line for the shell calls the program, also for what is put in its place."""
    for inner in re.findall(r"\$\(([^)]*)\)", line):
        yield from calls(inner)
    words = shlex.shlex(re.sub(r"\$\([^)]*\)", "it", line), posix=True, punctuation_chars=True)
    words.whitespace_split = True
    tokens = iter([*words])
    for token in tokens:
        if token == "tenantry":
            yield [*takewhile(lambda one: not set(one) <= set("|&;<>()"), tokens)]


def test_a_line_is_cut_into_calls() -> None:
    assert [*calls("tenantry a 'b c' --x | jq '.[].id' > file; tenantry d")] == [
        ["a", "b c", "--x"],
        ["d"],
    ]
    assert [*calls("source <(tenantry d)")] == [["d"]]
    assert [*calls('curl -H "A: $(tenantry token --admin)" url')] == [["token", "--admin"]]


@pytest.mark.parametrize("path", THAT_DO_SOMETHING, ids=" ".join)
def test_an_example_is_there_and_is_taken_as_it_stands(
    path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    called: list[tuple[str, ...]] = []
    for other, command in THAT_DO_SOMETHING.items():
        # What it would do is for other tests: here it is only told what to do.
        monkeypatch.setattr(command, "callback", lambda other=other, **_: called.append(other))
    for arguments in examples(THAT_DO_SOMETHING[path]):
        before = len(called)
        for file in arguments:
            if re.fullmatch(r"\w+\.(csv|jsonl?)", file):
                Path(file).touch()
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, (arguments, result.output)
        assert len(called) > before, arguments
    assert path in called
