"""The connection that reads partitions, as a member of the daemon's group on each topic."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from tenantry.broker.iggy import client as library
from tenantry.broker.iggy import wire
from tenantry.broker.iggy.client import ExistsError, MissingError
from tenantry.broker.iggy.topology import GROUP, Place

if TYPE_CHECKING:
    from apache_iggy import IggyClient, ReceiveMessage, TopicDetails

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Link:
    """The connection, with the topics whose group it has joined. Calls raise `BrokerError`."""

    def __init__(self, client: IggyClient, where: str) -> None:
        self.client: Final = client
        self._where = where
        self._joined: dict[tuple[str, str], int] = {}
        iggy = library.library()
        self._consumer = iggy.Consumer.Group(GROUP)
        self._at = iggy.PollingStrategy.Offset

    async def ask(self, answer: Awaitable[T]) -> T:
        """Wait for the answer to a request; a server that gives none in time is unavailable."""
        try:
            async with asyncio.timeout(library.TIMEOUT):
                return await answer
        except (RuntimeError, ValueError, TypeError, OverflowError, TimeoutError) as error:
            raise library.error_of(error, self._where) from error

    async def messages(self, place: Place, offset: int, count: int) -> list[ReceiveMessage]:
        """Fetch messages from an offset on."""
        return await self.ask(
            self.client.poll_messages(
                place.stream,
                place.topic,
                consumer=self._consumer,
                polling_strategy=self._at(offset),
                count=count,
                auto_commit=False,
                partition_id=place.partition,
            )
        )

    async def topic(self, stream: str, topic: str) -> TopicDetails | None:
        """Return a topic as it is now, with its partitions, or None."""
        try:
            return await self.ask(self.client.get_topic(stream, topic))
        except MissingError:
            return None

    async def join(self, stream: str, topic: str, made: int) -> bool:
        """Join the daemon's group of a topic; return whether the group was missing."""
        if self._joined.get((stream, topic)) == made:
            return False
        fresh = False
        if await self.ask(self.client.get_consumer_group(stream, topic, GROUP)) is None:
            try:
                await self.ask(self.client.create_consumer_group(stream, topic, GROUP))
                fresh = True
            except ExistsError:
                log.debug("broker.group_made_by_another", stream=stream, topic=topic)
        await self.ask(self.client.join_consumer_group(stream, topic, GROUP))
        self._joined[stream, topic] = made
        return fresh

    def leave(self, stream: str, topic: str) -> None:
        """Have a topic's group joined again before the next read."""
        self._joined.pop((stream, topic), None)

    async def assigned(self, stream: str, topic: str) -> frozenset[int]:
        """Return the partitions of a topic that are assigned to this connection."""
        request = wire.sync_group(GROUP, stream, topic)
        return wire.read_assignment(
            await self.ask(self.client.send_binary_request(wire.SYNC_GROUP, request))
        )

    async def remake(self, stream: str, topic: str, made: int) -> None:
        """Delete the daemon's group, with its members and stored offsets, and join it anew."""
        await self.ask(self.client.delete_consumer_group(stream, topic, GROUP))
        self.leave(stream, topic)
        await self.join(stream, topic, made)

    async def offsets(self, place: Place) -> wire.Offsets | None:
        """Return the group's stored offset for a partition, or None."""
        request = wire.get_offset(GROUP, place)
        return wire.read_offsets(
            await self.ask(self.client.send_binary_request(wire.GET_OFFSET, request))
        )

    async def store(self, place: Place, offset: int) -> None:
        """Store the offset of the last settled message."""
        request = wire.store_offset(GROUP, place, offset)
        await self.ask(self.client.send_binary_request(wire.STORE_OFFSET, request))

    async def close(self) -> None:
        """Close the connection."""
        await library.disconnect(self.client)
