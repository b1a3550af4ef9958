"""The codec gives back every event and every state it was given."""

from __future__ import annotations

import json
from datetime import UTC, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from tenantry.domain.events import Event
from tenantry.domain.tenant import Lifecycle, TenantState
from tenantry.journal.codec import CODEC, EVENT_TYPES, decode_state, encode_state
from tests.property.strategies import EVENT_KINDS, events, text

zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
times = st.datetimes(timezones=st.just(UTC) | zones)
states = st.builds(
    TenantState,
    tenant_id=text,
    name=text,
    lifecycle=st.sampled_from(Lifecycle),
    workers=st.integers(),
    topics=st.lists(text).map(tuple),
    partitions=st.integers(),
    version=st.integers(),
    created_at=times,
    updated_at=times,
    parked=st.none() | text,
    parked_at=st.none() | times,
    retained=st.booleans(),
)


def test_every_event_of_the_domain_has_a_name_in_the_journal() -> None:
    assert set(EVENT_TYPES.values()) == set(EVENT_KINDS)


@given(events)
def test_every_event_survives_json(event: Event) -> None:
    name, version, data = CODEC.encode(event)
    assert CODEC.decode(name, version, json.loads(json.dumps(data))) == event


@given(states)
def test_every_state_survives_json(state: TenantState) -> None:
    assert decode_state(json.loads(json.dumps(encode_state(state)))) == state


@given(events)
def test_what_was_decoded_is_encoded_to_the_same(event: Event) -> None:
    once = CODEC.encode(event)
    assert CODEC.encode(CODEC.decode(*once)) == once
