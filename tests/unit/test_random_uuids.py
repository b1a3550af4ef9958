"""Random UUIDs by the hundred."""

from __future__ import annotations

from uuid import UUID

from tenantry.messages.encoding import random_uuids


def test_as_many_are_made_as_are_asked_for_and_no_two_are_the_same() -> None:
    made = random_uuids(1000)
    assert len(set(made)) == len(made) == 1000


def test_they_are_random_uuids_of_the_standard() -> None:
    for text in random_uuids(20):
        read = UUID(text)
        assert str(read) == text
        assert read.version == 4


def test_none_are_made_where_none_are_asked_for() -> None:
    assert random_uuids(0) == []
