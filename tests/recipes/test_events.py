"""An event: what programs of any version have written is read, and what is written now is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tenantry.journal.codec import CODEC, EVENT_TYPES, VERSIONS

WRITTEN = Path(__file__).with_name("written_events.jsonl")
"""An event a line, as it stands in journals: of each type one in each of its schema versions."""

SAMPLES = [json.loads(line) for line in WRITTEN.read_text().splitlines()]


def test_there_is_a_sample_of_every_version_of_every_event() -> None:
    wanted = {
        (name, version) for name in EVENT_TYPES for version in range(1, VERSIONS.get(name, 1) + 1)
    }
    there = {(one["type"], one["version"]) for one in SAMPLES}
    assert there == wanted, f"add a line to {WRITTEN.name}, as the event is written"


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda one: f"{one['type']}-{one['version']}")
def test_what_was_written_is_read_and_what_is_written_has_not_changed(
    sample: dict[str, object],
) -> None:
    name, version, data = sample["type"], sample["version"], sample["data"]
    assert isinstance(name, str)
    assert isinstance(version, int)
    assert isinstance(data, dict)
    event = CODEC.decode(name, version, data)
    if version == VERSIONS.get(name, 1):
        remedy = f"{name} is written differently: raise its version, and lift what was written"
        assert CODEC.encode(event) == (name, version, data), remedy
