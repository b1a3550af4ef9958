"""The manual: what looks like a command in it is run, or says why it is not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import pictures
from tests.manual import outputs, pages
from tests.manual.pages import PageError, read

BESIDE = Path("page.md")
SITE = pages.ROOT / "scripts" / "site.py"


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


def test_every_link_from_file_to_file_leads_somewhere() -> None:
    for path in pages.everywhere():
        text = re.sub(r"^```.*?^```$", "", read(path).text, flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)", text):
            if "://" not in target and not target.startswith("mailto:"):
                assert (path.parent / target).exists(), f"{path}: {target}"


def test_every_page_has_its_place_on_the_site() -> None:
    root = pages.ROOT
    listed = [*_leaves(yaml.safe_load((root / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])]
    docs = {one.relative_to(root / "docs").as_posix() for one in (root / "docs").rglob("*.md")}
    beside = set(re.findall(r'^    "\S+": "(\S+\.md)",$', SITE.read_text(), re.MULTILINE))
    assert len(beside) > 5
    assert sorted(listed) == sorted({one for one in docs if "adr/0" not in one} | beside)


def _leaves(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
        return
    for one in entry.values() if isinstance(entry, dict) else entry:
        yield from _leaves(one)
