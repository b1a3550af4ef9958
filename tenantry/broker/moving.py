"""Moving on: what lies in one broker goes to another, none lost and none doubled.

Nobody else reads the queues meanwhile. A message leaves its queue once the other broker has
confirmed it. If the move breaks off in between, the next one publishes such messages again, under
the same ids: those without one get an id made of their place. The store takes an id once. What the
other broker does not take stays where it is, and keeps nothing else from going but what is behind
it in a partition in order.
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
"""Messages that are published at once."""

CONFIRM_TIMEOUT: Final = 60.0
"""Seconds the other broker may take for a batch."""

NO_PASSWORD: Final = PasswordHash(value="")
"""What the other broker is told of a password that it can't check: nobody logs in with it."""

_CONFIRMED: Final = "SELECT password_hash FROM tenantry.credentials WHERE tenant_id = %s"


class Batch(NamedTuple):
    """Messages of one queue, in its order; where it is `ordered`, none is to pass another."""

    messages: Sequence[Outgoing]
    ordered: bool


class Reading(Protocol):
    """What lies in a tenant's queues. Calls raise `BrokerError`, `psycopg.Error`."""

    @property
    def left(self) -> int:
        """How many messages have come up that stay."""

    def next(self) -> Batch | None:
        """Give the next messages, until there are none."""

    def settle(self, refused: Sequence[bool]) -> None:
        """Take out what has gone of the last batch; what was refused stays, and is not given again.

        Nor is what is behind it in an ordered queue.
        """


class Source(Protocol):
    """A broker that is left. Calls raise `BrokerError`, `psycopg.Error`."""

    @property
    def hashes(self) -> str:
        """How the hashes of passwords begin that are this broker's."""

    @property
    def dead_letters(self) -> TableDeadLetters:
        """The dead letters there."""

    def tenants(self) -> Sequence[TenantTopology]:
        """Give the tenants, with what each has there."""

    def read(self, tenant: TenantTopology) -> AbstractContextManager[Reading]:
        """Begin to read a tenant's queues. Raises `BrokerError` where somebody else does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """How many of a tenant's messages and dead letters have gone over, and how many have not.

    The other broker does not take those that are `left`.
    """

    messages: int
    dead_letters: int
    left: int


class Move:
    """Moves everything from a source to the broker behind `administration` and `publishing`.

    Tenants' objects are made there first; their users get no password, and need their credentials
    rotated: those that were rotated there already keep them. Every call may raise `BrokerError`;
    whatever has not gone over by then is still where it was.
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
        """Move until nothing is left; what is published there meanwhile goes along.

        `progress` is told how many more messages have gone over.
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
        """Make the tenant's objects, and its user where it has none of that broker's by now."""
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
        """Publish messages; tell of each whether it stays, since the other broker refuses it.

        In order, so does all that is behind it.
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
        """Move the dead letters; tell how many have gone, and how many stay."""
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
    """Make what is published of a dead letter; it says itself from where it was rejected."""
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
    """Give headers as AMQP can say them: a number it has no type for goes as its digits.

    Bytes go as a row has them. Headers that can't be read go as one, by the name of `undecodable`.
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
