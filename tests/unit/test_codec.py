"""The codec is strict, and reads what older programs wrote."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from tenantry.domain.events import TenantCreated, TenantPaused
from tenantry.domain.tenant import Lifecycle, TenantState
from tenantry.journal.codec import (
    CODEC,
    Codec,
    MalformedEventError,
    decode_metadata,
    decode_state,
    encode_metadata,
    encode_state,
)
from tenantry.journal.port import Metadata, UnknownEventError

CREATED = {
    "tenant_id": "a",
    "name": "A",
    "workers": 1,
    "topics": ["x"],
    "partitions": 1,
    "topic_partitions": [3],
    "ordered": ["x"],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """An event that has had three shapes in its life."""

    tenant_id: str
    room: int
    floor: int
    tags: tuple[str, ...]


def room_becomes_a_number(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "room": int(data["room"]), "floor": 0}


def tags_come_in(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "tags": [f"floor-{data['floor']}"]}


UPCASTERS = {("Moved", 1): room_becomes_a_number, ("Moved", 2): tags_come_in}
NEWER = Codec({"Moved": Moved}, {"Moved": 3}, UPCASTERS)


def test_an_event_is_written_as_plain_json() -> None:
    event = TenantCreated(
        tenant_id="a",
        name="A",
        workers=1,
        topics=("x",),
        partitions=1,
        topic_partitions=(3,),
        ordered=("x",),
    )
    assert CODEC.encode(event) == ("TenantCreated", 2, CREATED)
    assert CODEC.decode("TenantCreated", 2, CREATED) == event


def test_old_events_are_lifted_step_by_step() -> None:
    wanted = Moved(tenant_id="a", room=12, floor=0, tags=("floor-0",))
    first = {"tenant_id": "a", "room": "12"}
    assert NEWER.decode("Moved", 1, first) == wanted
    assert first == {"tenant_id": "a", "room": "12"}
    assert NEWER.decode("Moved", 2, {"tenant_id": "a", "room": 12, "floor": 0}) == wanted
    assert NEWER.decode(*NEWER.encode(wanted)) == wanted  # type: ignore[arg-type]
    assert NEWER.encode(wanted)[1] == 3  # type: ignore[arg-type]


def test_a_gap_in_the_chain_of_upcasters_is_found_at_once() -> None:
    with pytest.raises(ValueError, match="Moved from version 1"):
        Codec({"Moved": Moved}, {"Moved": 3}, {("Moved", 2): tags_come_in})


@pytest.mark.parametrize(
    ("name", "version"), [("TenantAbducted", 1), ("TenantPaused", 2), ("TenantPaused", 0)]
)
def test_what_a_newer_program_wrote_is_refused(name: str, version: int) -> None:
    with pytest.raises(UnknownEventError, match=name):
        CODEC.decode(name, version, {"tenant_id": "a"})


@pytest.mark.parametrize(
    "change",
    [
        {"workers": None},
        {"workers": "1"},
        {"workers": 1.0},
        {"workers": True},
        {"name": None},
        {"name": 5},
        {"topics": "x"},
        {"topics": [1]},
        {"topics": {"x": 1}},
        {"topics": None},
        {"colour": "red"},
    ],
)
def test_ill_typed_and_extra_fields_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedEventError, match="TenantCreated"):
        CODEC.decode("TenantCreated", 2, {**CREATED, **change})


@pytest.mark.parametrize("field", list(CREATED))
def test_missing_fields_are_refused(field: str) -> None:
    data = {key: value for key, value in CREATED.items() if key != field}
    with pytest.raises(MalformedEventError, match=field):
        CODEC.decode("TenantCreated", 2, data)


def test_what_is_no_event_is_not_written() -> None:
    with pytest.raises(UnknownEventError):
        CODEC.encode(object())  # type: ignore[arg-type]
    with pytest.raises(UnknownEventError):
        NEWER.encode(TenantPaused(tenant_id="a"))


def test_metadata_from_a_newer_program_is_read_as_far_as_it_is_known() -> None:
    metadata = Metadata(actor="uid=0", correlation_id="c", causation_id="d")
    assert decode_metadata(encode_metadata(metadata)) == metadata
    assert decode_metadata({**encode_metadata(metadata), "device": "phone"}) == metadata
    assert encode_metadata(Metadata(actor="a", correlation_id="c")) == {
        "actor": "a",
        "correlation_id": "c",
    }


@pytest.mark.parametrize(
    "change", [{"lifecycle": "asleep"}, {"created_at": "yesterday"}, {"workers": "3"}, {"x": 1}]
)
def test_a_malformed_state_is_refused(change: dict[str, Any]) -> None:
    at = datetime(2030, 1, 1, tzinfo=UTC)
    state = TenantState(
        tenant_id="a",
        name="A",
        lifecycle=Lifecycle.ACTIVE,
        workers=3,
        topics=(),
        partitions=1,
        version=1,
        created_at=at,
        updated_at=at,
    )
    assert decode_state(encode_state(state)) == state
    with pytest.raises(MalformedEventError):
        decode_state({**encode_state(state), **change})
