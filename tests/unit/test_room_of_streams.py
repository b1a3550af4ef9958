"""What may be read for which live tail: bytes that wait to be sent are bounded, in turns."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, aclosing

from tenantry.api.streams import Chunk, Place, Room, Streams
from tests.api.serving import World
from tests.waiting import DEADLINE


def test_one_reading_is_made_for_a_client_at_a_time_in_turns() -> None:
    room = Room()
    first, second, third = (Place("acme") for _ in range(3))
    other = Place("other")
    with ExitStack() as reading:
        assert room.has_turn(first)
        reading.enter_context(room.reading(first))
        assert [room.has_turn(one) for one in (second, third, other)] == [False, False, True]
    assert (second.woken.is_set(), third.woken.is_set()) == (True, False)
    # Who has had its turn comes behind those that wait.
    assert [room.has_turn(one) for one in (first, third, second)] == [False, False, True]
    room.leave(third)
    assert room.has_turn(first)


def test_a_client_that_leaves_much_unread_is_given_nothing_more_and_others_are() -> None:
    room = Room(most=100, most_of_a_client=10)
    slow, slower, other, third = (Place(one) for one in ("acme", "acme", "other", "third"))
    with ExitStack() as held:
        held.enter_context(room.holding(slow, 10))
        assert (room.has_turn(slower), room.has_turn(other)) == (False, True)
        # One is let in though all together are over their limit; then no more of that client.
        held.enter_context(room.holding(other, 95))
        assert (room.has_turn(third), room.has_turn(Place("other"))) == (True, False)
        assert not slower.woken.is_set()
    assert slower.woken.is_set()
    assert room.has_turn(slower)


def test_a_stream_that_ends_while_it_waits_lets_the_next_one_read() -> None:
    room = Room(most_of_a_client=10)
    gone, next_one = Place("acme"), Place("acme")
    with room.holding(Place("acme"), 10):
        assert [room.has_turn(one) for one in (gone, next_one)] == [False, False]
    room.leave(gone)
    assert next_one.woken.is_set()
    assert room.has_turn(next_one)


def test_of_a_clients_streams_that_are_not_read_one_has_read_something() -> None:
    """Each would hold a message of whatever size: sixteen of them were a gigabyte."""
    large = bytes(9 * 1024 * 1024)

    async def scenario() -> None:
        streams, reads = Streams(World().control), 0
        first_has_come, goes_on = asyncio.Event(), asyncio.Event()

        def read(after: int) -> Chunk:
            nonlocal reads
            if after:
                return Chunk(b"", 0, after)
            reads += 1
            return Chunk(large, 1, 1)

        async def follow() -> None:
            followed = streams.follow(
                read, tenant_id="acme", after=0, opening=b"", closing=None, client="acme"
            )
            async with aclosing(followed) as events:
                await anext(events)
                assert await anext(events) is large
                unread.append(reads)
                first_has_come.set()
                await goes_on.wait()

        unread: list[int] = []
        following = [asyncio.create_task(follow()) for _ in range(16)]
        await first_has_come.wait()
        goes_on.set()
        await asyncio.gather(*following)
        # Each was read when the one before had been taken.
        assert unread == list(range(1, 17))

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE))
