"""A tenant's own connection to Apache Iggy, as one of its users, to publish and to read.

Iggy's consumer groups are not for a tenant: with the right to join one, it could join the daemon's.
So offsets are stored for a consumer without a group, and the consumers of a process share the
partitions out here, among themselves.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from tenantry.broker.iggy import wire
from tenantry.broker.iggy.client import (
    Access,
    CredentialsError,
    MissingError,
    RefusedError,
    Session,
    library,
)
from tenantry.broker.iggy.publishing import AT_ONCE, made, send
from tenantry.broker.iggy.topology import READERS, Place, routed
from tenantry.broker.port import BrokerError, BrokerUnavailableError, Outgoing
from tenantry.tenant_client.amqp import (
    TIMEOUT,
    AttemptResult,
    PublishResult,
    TenantClientError,
    TenantMessage,
)

if TYPE_CHECKING:
    from apache_iggy import IggyClient

T = TypeVar("T")

SOURCE: Final = "the tenant's credentials, or --iggy-address"

PAUSE: Final = 0.05
"""Seconds between polls of partitions that have nothing new."""


class IggyTenantClient:
    """One connection. Belongs to the thread that opened it; every call is bounded in time.

    The library sends heartbeats by itself.
    """

    def __init__(self, iggy_url: str, *, ca_file: str = "", timeout: float = TIMEOUT) -> None:
        """Raises `TenantClientError` if the client library is missing.

        `ca_file` is the authority to trust with `iggys://`.
        """
        try:
            library()
        except BrokerError as error:
            raise TenantClientError(str(error)) from error
        self._access = Access.of(iggy_url, ca_file=ca_file, source=SOURCE)
        self._timeout = timeout
        self._session: Session | None = None

    @property
    def is_open(self) -> bool:
        """Whether the connection can be used; once lost it stays lost until the next `open`."""
        return self._session is not None

    def open(self) -> None:
        """Connect and log in. Raises `TenantClientError`."""
        self.close()
        try:
            self._session = Session(self._access)
        except BrokerError as error:
            raise TenantClientError(str(error)) from error

    def close(self) -> None:
        """Close and free the connection; harmless twice, and before `open`."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def idle(self, seconds: float) -> None:
        """Let time pass."""
        time.sleep(max(0.0, seconds))

    def publish(self, exchange: str, batch: Sequence[TenantMessage]) -> PublishResult:
        """Publish a batch, in at least one request per partition.

        Never raises. Unconfirmed messages may have been accepted all the same, so publish them
        again with the same message ids.
        """
        until = time.monotonic() + self._timeout
        places: dict[Place, list[int]] = {}
        for index, mail in enumerate(batch):
            places.setdefault(routed(exchange, mail.routing_key), []).append(index)
        confirmed: set[int] = set()
        reason: str | None = None
        for place, indexes in places.items():
            for start in range(0, len(indexes), AT_ONCE):
                part = indexes[start : start + AT_ONCE]
                try:
                    messages = [made(_outgoing(exchange, batch[index])) for index in part]
                    send(self._open_session(), place, messages, until)
                except BrokerUnavailableError as error:
                    self.close()
                    return PublishResult(confirmed=frozenset(confirmed), reason=str(error))
                except (BrokerError, TenantClientError) as error:
                    reason = reason or str(error)
                else:
                    confirmed.update(part)
        return PublishResult(confirmed=frozenset(confirmed), reason=reason)

    def call(self, ask: Callable[[IggyClient], Awaitable[T]]) -> T:
        """Make one request, and wait for its answer. Raises `BrokerError`, `TenantClientError`."""
        try:
            return self._open_session().call(ask, timeout=self._timeout)
        except BrokerUnavailableError:
            self.close()
            raise

    def attempt(
        self,
        ask: Callable[[IggyClient], Awaitable[object]],
        *,
        missing: AttemptResult = AttemptResult.ABSENT,
    ) -> AttemptResult:
        """Make one request, and return whether it is allowed.

        Only the server's "unauthorised" is a refusal. It says that something is missing before it
        checks rights, so that is no verdict, unless `missing` says otherwise. Raises
        `TenantClientError` if the server gives no answer.
        """
        try:
            self.call(ask)
        except CredentialsError:
            return AttemptResult.ALLOWED  # it has compared a password, so asking was allowed
        except RefusedError:
            return AttemptResult.REFUSED
        except MissingError:
            return missing
        except BrokerUnavailableError as error:
            raise TenantClientError(str(error)) from error
        except BrokerError:
            return AttemptResult.ALLOWED
        return AttemptResult.ALLOWED

    def _open_session(self) -> Session:
        if self._session is None:
            raise TenantClientError("not connected")
        return self._session


def _outgoing(exchange: str, mail: TenantMessage) -> Outgoing:
    return Outgoing(
        exchange=exchange,
        routing_key=mail.routing_key,
        body=mail.body,
        message_id=mail.message_id,
        content_type=mail.content_type,
        headers={"timestamp_in_ms": mail.published_at_ms},
    )


class Turns:
    """A topic's partitions, each read by one consumer at a time. Callable from any thread.

    A consumer that dies gives its partition back, and the next one takes it.
    """

    def __init__(self, partitions: int) -> None:
        self.partitions: Final = partitions
        self._free = deque(range(partitions))
        self._guard = threading.Lock()

    def take(self) -> int | None:
        """Take the partition that was read longest ago; None while other consumers have all."""
        with self._guard:
            return self._free.popleft() if self._free else None

    def give(self, partition: int) -> None:
        """Release a partition to other consumers."""
        with self._guard:
            self._free.append(partition)


class IggyReader(IggyTenantClient):
    """Reads a topic (`TopicReader`), a batch from one partition at a time."""

    def __init__(
        self,
        iggy_url: str,
        *,
        stream: str,
        topic: str,
        turns: Turns,
        ca_file: str = "",
        timeout: float = TIMEOUT,
    ) -> None:
        super().__init__(iggy_url, ca_file=ca_file, timeout=timeout)
        self._stream = stream
        self._topic = topic
        self._turns = turns
        self._held: int | None = None
        self._last = 0
        self._empty = False

    def close(self) -> None:
        """See `TopicReader.close`."""
        self._release()
        super().close()

    def receive(self, most: int, seconds: float) -> Sequence[bytes]:
        """See `TopicReader.receive`."""
        until = time.monotonic() + seconds
        while True:
            self._release()
            self._empty = True
            for _ in range(self._turns.partitions):
                self._held = self._turns.take()
                if self._held is None:
                    # The consumers that hold the partitions see what is in them.
                    break
                if batch := self._poll(self._held, most):
                    self._empty = False
                    return batch
                self._release()
            if (left := until - time.monotonic()) <= 0:
                return []
            time.sleep(min(PAUSE, left))

    def commit(self) -> None:
        """See `TopicReader.commit`."""
        if self._held is None:
            return
        place = Place(self._stream, self._topic, self._held)
        request = wire.store_offset(READERS, place, self._last, alone=True)
        try:
            self.call(lambda client: client.send_binary_request(wire.STORE_OFFSET, request))
        except BrokerError as error:
            self.close()
            raise TenantClientError(str(error)) from error
        self._release()

    def at_end(self) -> bool:
        """See `TopicReader.at_end`: the last poll of all partitions found nothing."""
        return self._empty

    def _poll(self, partition: int, most: int) -> list[bytes]:
        iggy = library()
        try:
            found = self.call(
                lambda client: client.poll_messages(
                    self._stream,
                    self._topic,
                    consumer=iggy.Consumer.Single(READERS),
                    polling_strategy=iggy.PollingStrategy.Next(),
                    count=most,
                    auto_commit=False,
                    partition_id=partition,
                )
            )
        except BrokerError as error:
            self.close()
            raise TenantClientError(str(error)) from error
        if found:
            self._last = found[-1].offset()
        return [one.payload() for one in found]

    def _release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._turns.give(held)
