"""An event: what programs of any version have written is read, and what is written now is known."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tenantry.journal.codec import CODEC, EVENT_TYPES, VERSIONS

WRITTEN = Path(__file__).with_name("written_events.jsonl")
"""An event a line, as it stands in journals: of each type one in each of its schema versions."""

SAMPLES = [json.loads(line) for line in WRITTEN.read_text().splitlines()]

FORMER = {
    ("MessageDeadLettered", 1): "e0ae1d2b9671df8f",
    ("DeadLettersReplayed", 1): "c52c5117b0f8dc57",
    ("DeadLettersDiscarded", 1): "36d20bf22eca440b",
    ("WorkersResized", 1): "39942486dd07ab44",
    ("TenantCreated", 1): "8e78d53fe0d39625",
    ("TopicsAdded", 1): "be2dcbfbe92d5e99",
    ("MessageDeadLettered", 2): "8c447fbe875afe5c",
    ("DeadLettersAggregated", 1): "4fa3ec3a900c579e",
}
"""The digests of samples in former versions: nothing writes such an event any more, so that
nothing else would notice another. One that is current today gets its digest here when the version
goes up."""


def digest(sample: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(sample, sort_keys=True).encode()).hexdigest()[:16]


def test_samples_of_former_versions_are_never_edited() -> None:
    former = {
        (one["type"], one["version"]): digest(one)
        for one in SAMPLES
        if one["version"] < VERSIONS.get(one["type"], 1)
    }
    assert former == FORMER, "put the line back as it was, or add the digest of a new former one"


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
