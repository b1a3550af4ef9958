"""The manual's commands are run as they stand, and must print what the manual shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.depth import examples
from tests.manual import pages
from tests.manual.session import Session, follow

USUALLY = ("docs/first-steps.md", "docs/operations.md", "docs/embedded-broker.md")
"""Pages that are tried for every change; a thorough run tries all."""


@pytest.mark.parametrize(
    "name", examples(USUALLY, [str(one.relative_to(pages.ROOT)) for one in pages.with_commands()])
)
def test_a_page_does_what_it_says(name: str) -> None:
    wrong = follow(pages.read(pages.ROOT / name)).wrong()
    assert not wrong, f"{wrong}\n(python -m tests.manual --write {name})"


def test_what_a_page_gets_wrong_is_found(tmp_path: Path) -> None:
    text = "```console\n$ echo one\ntwo\n$ cd /; echo $OLDPWD | wc -l\n1\n```\n"
    page = pages.read(tmp_path / "page.md", text)
    with Session(page) as session:
        for command in page.commands:
            session.run(command)
    assert "--- shown\ntwo\n--- printed\none\n" in session.wrong()
    assert session.written() == text.replace("two", "one")
    failing = pages.read(tmp_path / "page.md", "```sh\ntenantry no-such-command\n```\n")
    with pytest.raises(AssertionError, match="page:2: tenantry no-such-command\nended with 2"):
        follow(failing)
