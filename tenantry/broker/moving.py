"""Moves one broker's messages to another broker: none is lost and none doubled.

No other consumer reads the queues meanwhile. A message leaves its queue once the other broker has
confirmed it. If the move breaks off in between, the next one publishes such messages again, under
the same ids; a message without an id gets one made of its place. The store takes an id once. A
message that the other broker refuses stays in its queue, and holds up only the messages behind it
in an ordered partition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from decimal import Decimal
from itertools import compress
from typing import Final, NamedTuple, Protocol

import structlog
from psycopg import sql

from tenantry.broker import topology as layout
from tenantry.broker.dead_letter_table import TableDeadLetters
from tenantry.broker.port import (
    Administration,
    BrokerError,
    BrokerUnavailableError,
    Outgoing,
    PasswordHash,
    Publishing,
    QueuedDeadLetter,
    QueueSpec,
    TenantTopology,
    UnroutableError,
)
from tenantry.database.failures import PortErrors
from tenantry.database.pool import Database
from tenantry.domain import names
from tenantry.messages.encoding import headers_json
from tenantry.messages.headers import JsonHeaders, UnfitHeaders, UnreadableHeadersError

log = structlog.get_logger(__name__)

MESSAGES: Final = 1000
"""Messages published at once."""

CONFIRM_TIMEOUT: Final = 60.0
"""Seconds the other broker may take for a batch."""

NO_PASSWORD: Final = PasswordHash(value="")
"""The hash for a user whose password the other broker can't check: it permits no login."""

_CONFIRMED: Final = "SELECT password_hash FROM tenantry.credentials WHERE tenant_id = %s"


class Batch(NamedTuple):
    """Messages of one queue, in its order; in an `ordered` one, no message may overtake another."""

    messages: Sequence[Outgoing]
    ordered: bool


class Reading(Protocol):
    """The messages in a tenant's queues. Calls raise `BrokerError`, `psycopg.Error`."""

    @property
    def left(self) -> int:
        """The number of messages read so far that stay."""

    def next(self) -> Batch | None:
        """Return the next messages, or None if there are none."""

    def settle(self, refused: Sequence[bool]) -> None:
        """Remove the moved messages of the last batch; refused ones stay, and are not given again.

        In an ordered queue, neither are the messages behind a refused one.
        """


class Source(Protocol):
    """The broker to move away from. Calls raise `BrokerError`, `psycopg.Error`."""

    @property
    def hashes(self) -> str:
        """The prefix of this broker's password hashes."""

    @property
    def dead_letters(self) -> TableDeadLetters:
        """The dead letters in this broker."""

    def tenants(self) -> Sequence[TenantTopology]:
        """Return the tenants, each with its topics and partitions."""

    def read(self, tenant: TenantTopology) -> AbstractContextManager[Reading]:
        """Begin to read a tenant's queues. Raises `BrokerError` if another reader has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """How many of a tenant's messages and dead letters have moved, and how many have not.

    The other broker refuses those counted in `left`.
    """

    messages: int
    dead_letters: int
    left: int


class Move:
    """Moves everything from a source to the broker behind `administration` and `publishing`.

    Tenants' objects are made there first. Their users get no password, so their credentials must be
    rotated; a user whose credentials were rotated there already keeps them. Every call may raise
    `BrokerError`; whatever has not moved by then is still in its old place.
    """

    def __init__(
        self,
        database: Database,
        source: Source,
        *,
        administration: Administration,
        publishing: Publishing,
    ) -> None:
        self._database = database
        self._source = source
        self._errors = PortErrors(BrokerUnavailableError, BrokerError, where=database.where)
        self._administration = administration
        self._publishing = publishing

    def run(self, *, progress: Callable[[int], None] = lambda _: None) -> Mapping[str, Moved]:
        """Move until nothing is left, including messages published meanwhile.

        `progress` is called with the number of messages just moved.
        """
        with self._errors:
            moved = {
                tenant.tenant_id: self._move(tenant, progress) for tenant in self._source.tenants()
            }
            with self._database.connection() as connection:
                for table in ("credentials", "consumer_credentials"):
                    connection.execute(
                        sql.SQL(
                            "UPDATE tenantry.{} SET password_hash = ''"
                            " WHERE pg_catalog.starts_with(password_hash, {})"
                        ).format(sql.Identifier(table), sql.Literal(self._source.hashes))
                    )
        return moved

    def _move(self, tenant: TenantTopology, progress: Callable[[int], None]) -> Moved:
        count = 0
        with self._source.read(tenant) as reading:
            self._make_room(tenant)
            while (batch := reading.next()) is not None:
                refused = self._publish(batch)
                reading.settle(refused)
                gone = refused.count(False)
                count += gone
                progress(gone)
            dead_letters, kept = self._move_dead_letters(tenant.tenant_id, progress)
        return Moved(messages=count, dead_letters=dead_letters, left=reading.left + kept)

    def _make_room(self, tenant: TenantTopology) -> None:
        """Make the tenant's objects, and its user unless its credentials were rotated there."""
        with self._database.connection() as connection:
            row = connection.execute(_CONFIRMED, [tenant.tenant_id]).fetchone()
        confirmed = "" if row is None else row[0] or ""
        rotated = confirmed != "" and not confirmed.startswith(self._source.hashes)
        known = PasswordHash(value=confirmed) if rotated else None
        self._administration.claim(tenant.tenant_id, known)
        self._administration.ensure_topology(tenant)
        if not rotated:
            self._administration.ensure_user(tenant.tenant_id, NO_PASSWORD)

    def _publish(self, batch: Batch) -> list[bool]:
        """Publish messages; return for each whether the other broker refuses it, so that it stays.

        In an ordered batch, the messages behind a refused one stay too.
        """
        messages = batch.messages
        try:
            self._publishing.publish(messages, timeout=CONFIRM_TIMEOUT)
        except (BrokerUnavailableError, UnroutableError):
            raise
        except BrokerError as error:
            if len(messages) == 1:
                log.warning(
                    "broker.message_left_behind",
                    exchange=messages[0].exchange,
                    id=messages[0].message_id,
                    error=str(error),
                )
                return [True]
        else:
            return [False] * len(messages)
        middle = len(messages) // 2
        first = self._publish(batch._replace(messages=messages[:middle]))
        if batch.ordered and any(first):
            return first + [True] * (len(messages) - middle)
        return first + self._publish(batch._replace(messages=messages[middle:]))

    def _move_dead_letters(
        self, tenant_id: str, progress: Callable[[int], None]
    ) -> tuple[int, int]:
        """Move the dead letters; return how many have moved, and how many stay."""
        count = kept = 0
        with self._source.dead_letters.browse(tenant_id) as browser:
            while found := browser.next(MESSAGES):
                fit = [not isinstance(one.message.headers, UnfitHeaders) for one in found]
                letters = list(compress(zip(found, browser.numbers, strict=True), fit))
                self._publishing.publish(
                    [_dead_letter(tenant_id, one, number) for one, number in letters],
                    timeout=CONFIRM_TIMEOUT,
                )
                browser.remove(list(compress(range(len(found)), fit)))
                count += len(letters)
                kept += len(found) - len(letters)
                progress(len(letters))
        return count, kept


def _dead_letter(tenant_id: str, queued: QueuedDeadLetter, number: int) -> Outgoing:
    """Make the message for a dead letter; its headers name the queue that it was rejected from."""
    one = queued.message
    return Outgoing(
        exchange=names.DEAD_LETTER_EXCHANGE,
        routing_key=tenant_id,
        body=one.body,
        message_id=one.id,
        content_type=one.content_type,
        headers={
            **amqp_headers(one.headers or {}),
            layout.FIRST_DEATH_QUEUE: QueueSpec.of(tenant_id, one.topic, one.partition).name,
            layout.FIRST_DEATH_NUMBER: number,
            "timestamp_in_ms": one.published_at_ms,
        },
    )


def amqp_headers(headers: Mapping[str, object]) -> Mapping[str, object]:
    """Return headers in AMQP's types: a number that none of them can hold becomes its digits.

    Bytes look as in a stored row. Unreadable headers become a single header, `undecodable`.
    """
    if not isinstance(headers, JsonHeaders):
        headers = JsonHeaders(headers_json(headers).decode())
    try:
        return {name: _sayable(value) for name, value in headers.items()}
    except UnreadableHeadersError:
        return {"undecodable": headers_json(headers).decode()}


def _sayable(value: object) -> object:
    match value:
        case bool():
            return value
        case Decimal():
            return str(value)
        case int():
            return value if -(2**63) <= value < 2**63 else str(Decimal(value))
        case dict():
            return {name: _sayable(item) for name, item in value.items()}
        case list():
            return [_sayable(item) for item in value]
        case _:
            return value
