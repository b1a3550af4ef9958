"""The operator's drill, as docs/drill.md describes it."""

from __future__ import annotations

import os
import re

import pytest

from tests.deployed import found
from tests.depth import THOROUGH
from tests.drill.__main__ import PAGE, put
from tests.drill.scenes import SCENES


def test_every_scene_has_its_place_on_the_page_and_was_seen() -> None:
    page = PAGE.read_text(encoding="utf-8")
    places = re.findall(r"<!-- drill: ([\w-]+) -->\n(.*?)<!-- as seen -->", page, re.DOTALL)
    assert [name for name, _ in places] == list(SCENES)
    assert all("Alerts that fire" in seen for _, seen in places)
    assert put(page, "disk-full", "it was full").count("it was full") == 1


@pytest.mark.skipif(not THOROUGH, reason="minutes: for thorough runs")
@pytest.mark.parametrize("name", SCENES)
def test_what_goes_wrong_is_seen_and_comes_right(name: str) -> None:
    found("prometheus")
    if name == "disk-full" and os.geteuid() != 0:
        pytest.skip("a small disk can't be mounted by this user")
    assert SCENES[name]().parts
