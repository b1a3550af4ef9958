"""A tenant's state: what archived events came to is read by every program from then on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tenantry.journal.codec import (
    BASE_UPCASTERS,
    FIRST_BASE_SCHEMA,
    STATE_SCHEMA,
    decode_base,
    encode_state,
)

WRITTEN = Path(__file__).with_name("written_states.jsonl")
"""A state a line, in each shape in which it may be kept beside an archive."""

SAMPLES: list[dict[str, Any]] = [json.loads(line) for line in WRITTEN.read_text().splitlines()]

FORMER: dict[int, str] = {}
"""The digests of samples in former shapes, which nothing writes any more."""


def digest(sample: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(sample, sort_keys=True).encode()).hexdigest()[:16]


def test_there_is_a_sample_of_every_shape_and_a_way_to_the_next() -> None:
    shapes = range(FIRST_BASE_SCHEMA, STATE_SCHEMA + 1)
    assert [one["shape"] for one in SAMPLES] == list(shapes), f"add a line to {WRITTEN.name}"
    assert BASE_UPCASTERS.keys() == set(shapes[:-1]), "lift the former shape in BASE_UPCASTERS"
    former = {one["shape"]: digest(one) for one in SAMPLES if one["shape"] < STATE_SCHEMA}
    assert former == FORMER, "put the line back as it was, or add the digest of a new former one"


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda one: f"{one['shape']}")
def test_what_was_kept_is_read_and_what_is_kept_has_not_changed(sample: dict[str, Any]) -> None:
    shape, data = sample["shape"], sample["data"]
    state = decode_base(shape, data, stream="tenant-acme", version=data["version"])
    if shape == STATE_SCHEMA:
        remedy = "a state is written differently: raise STATE_SCHEMA, and lift what was kept"
        assert encode_state(state) == data, remedy
