"""The manual: what looks like a command in it is run, or says why it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import pictures
from tests.manual import outputs, pages
from tests.manual.pages import PageError, read

BESIDE = Path("page.md")


def test_every_block_of_commands_is_run_or_excused() -> None:
    """(Blocks that are neither keep a page from being read.)"""
    for path in pages.everywhere():
        page = read(path)
        assert not (lost := pages.not_fenced(page.text)), f"{page.name}: in no block: {lost}"
    assert len(pages.with_commands()) >= 8


def test_every_reason_is_needed() -> None:
    found = [read(path) for path in pages.everywhere()]
    assert {reason for page in found for reason in page.reasons} == pages.WHY.keys()
    excused = {one.program for page in found for one in page.commands if one.excuse}
    assert excused == pages.NOT_HERE.keys()


def test_a_session_is_cut_into_commands_and_what_they_print() -> None:
    text = "```console\n$ tenantry nodes\nvm\n\n$ cat <<X\n> 1\n> X\n1\n```\n"
    nodes, cat = read(BESIDE, text).commands
    assert (nodes.text, nodes.shown, nodes.line) == ("tenantry nodes", "vm\n\n", 2)
    assert (cat.text, cat.shown) == ("cat <<X\n1\nX", "1\n")
    assert [text[slice(*one.at)] for one in (nodes, cat)] == ["vm\n\n", "1\n"]


def test_a_script_is_cut_into_commands() -> None:
    text = "```sh\n# said\nsudo reboot\na \\\n  b\ncat > f <<'X'\nc\nX\nA=1 tenantry run\n```\n"
    found = read(BESIDE, text).commands
    assert [one.text for one in found] == [
        "sudo reboot", "a \\\n  b", "cat > f <<'X'\nc\nX", "A=1 tenantry run",
    ]  # fmt: skip
    assert [bool(one.excuse) for one in found] == [True, False, False, False]
    assert [one.stays for one in found] == [False, False, False, True]


@pytest.mark.parametrize(
    "text",
    [
        "```bash\nrm -r x\n```\n",
        "```\ntenantry stop\n```\n",
        "- one\n\n  ```sh\n  rm -r x\n  ```\n",
        "```sql\nDELETE FROM t\n```\n",
        "```console\nno command\n```\n",
        "<!-- manual: not run: tired -->\n\n```sh\nrm -r x\n```\n",
    ],
)
def test_a_block_that_no_test_would_run_is_found(text: str) -> None:
    with pytest.raises(PageError):
        read(BESIDE, text)


def test_a_command_in_an_indented_block_is_found() -> None:
    assert pages.not_fenced("Do:\n\n    tenantry stop\n\n```sh\n    tenantry\n```\n") == [
        "tenantry stop"
    ]


def test_a_reason_holds_for_one_block() -> None:
    text = "<!-- manual: not run: hosts -->\n\n```sh\na\n```\n\n```sh\nb\n```\n"
    assert [one.text for one in read(BESIDE, text).commands] == ["b"]


def test_what_is_shown_may_differ_in_what_is_another_each_time_and_in_nothing_else() -> None:
    shown = "id    at                    rate\nacme  2026-01-31T12:00:00Z  1,234.5\n"
    assert outputs.agrees(shown, "id  at  rate\nacme  2027-12-01T01:02:03.4Z  7.0\n")
    assert not outputs.agrees(shown, shown.replace("acme", "globex"))
    assert not outputs.agrees(shown, shown + "globex\n")
    assert outputs.agrees("...\nb\n...\n", "a\nb\nc\nd\n")
    assert outputs.agrees("a\n...\n", "a\n")
    assert not outputs.agrees("a\n...\nb\n", "a\nc\n")
    assert outputs.agrees("", "\n")
    assert not outputs.agrees("", "a\n")


def test_the_pictures_are_those_that_their_script_draws() -> None:
    there = {path: path.read_text(encoding="utf-8") for path in pictures.PICTURES.glob("*.svg")}
    assert there == dict(pictures.drawn())
