"""Which dead letter a message is, where there are very many of the same."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from tenantry.dead_letters.matching import Matching, Row, keys
from tenantry.dead_letters.port import QueueMessage, RejectedMessage
from tests.fakes.messages import incoming

NOW = datetime(2026, 1, 31, tzinfo=UTC)
MESSAGE = incoming(None, b"bad")


def a_row(copy: int, seen_in: UUID | None) -> Row:
    one = uuid4()
    (fingerprint,), _ = keys([MESSAGE])
    return Row(
        was=one, id=one, fingerprint=fingerprint, copy=copy, seen_in=seen_in, reason="not_json",
        error="no", first_error=None, attempts=1, dead_lettered_at=NOW,
    )  # fmt: skip


def test_of_many_that_are_the_same_each_is_looked_at_a_few_times_and_not_for_each_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = 0
    is_original = Matching._is_original

    def counted(row: Row) -> bool:
        nonlocal looks
        looks += 1
        return is_original(row)

    monkeypatch.setattr(Matching, "_is_original", staticmethod(counted))
    browse = uuid4()
    rows = [a_row(copy, browse if copy < 500 else None) for copy in range(1000)]
    matching = Matching(rows, new_id=uuid4, now=NOW, browse=browse)
    found = [QueueMessage(RejectedMessage(MESSAGE, "rejected", "no", 0), NOW) for _ in range(100)]
    told = matching.lookup(found)
    assert [one.id for one in told] == [row.id for row in rows[500:600]]
    assert looks <= 2 * len(rows)
