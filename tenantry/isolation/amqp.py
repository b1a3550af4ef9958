"""What a tenant's user can reach on RabbitMQ.

The broker knows three rights on a name (configure, write, read) and looks at them before anything
else. So each is tried first in a way that changes nothing if it succeeds: a publication with a key
that no queue is bound by, a consumer that is closed before it keeps anything, a declaration with
other arguments than the object has. What would do harm (purging, deleting, publishing straight
into a queue) needs a right that was tried before, and is tried only where that was refused.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from tenantry.domain import names
from tenantry.isolation.checks import Action, Check, Notes
from tenantry.tenant_client.access import TenantNames
from tenantry.tenant_client.amqp import AmqpClient, AttemptResult

if TYPE_CHECKING:
    from pika.channel import Channel

UNBOUND: Final = "isolation-probe.nowhere"
"""A routing key that no queue can be bound by: a partition's ends in a number."""

_SOMEBODYS_TOPIC: Final = "amq.topic"
"""An exchange of the broker's own, to which others may have bound things."""

_FLEETING: Final = {"x-expires": 1000}
"""Arguments no tenant's queue has. If there were no such queue, one would be made for a second."""


def own(link: AmqpClient, mine: TenantNames) -> list[Check]:
    """Try what must be allowed, and what must not even on one's own objects."""
    notes = Notes(mine, mine)
    note = notes.note
    note("write", mine.stream, link.try_to_publish(mine.stream, UNBOUND))
    for queue in mine.queues:
        note("read", queue, link.try_to_consume(queue))
    forbidden = partial(note, forbidden=True)
    letters = names.dead_letter_queue_name(mine.tenant_id)
    forbidden("read", letters, link.try_to_consume(letters))
    for exchange, shown in (
        ("", f"{mine.queues[0]} (through the default exchange)"),
        (names.DEAD_LETTER_EXCHANGE, f"{letters} (through {names.DEAD_LETTER_EXCHANGE})"),
        (_SOMEBODYS_TOPIC, _SOMEBODYS_TOPIC),
    ):
        forbidden("write", shown, link.try_to_publish(exchange, UNBOUND))
    for queue in (mine.queues[0], letters):
        forbidden("configure", queue, link.attempt(_declare_queue(queue)))
    forbidden("configure", mine.stream, link.attempt(_declare_exchange(mine.stream)))
    return notes.checks


def foreign(link: AmqpClient, mine: TenantNames, other: TenantNames) -> list[Check]:
    """Try what must be refused."""
    notes = Notes(mine, other)
    _writes(link, mine, other, notes.note)
    _reads(link, other, notes.note)
    _changes(link, mine, other, notes.note)
    return notes.checks


_Note = Callable[[Action, str, AttemptResult], bool]


def _writes(link: AmqpClient, mine: TenantNames, other: TenantNames, note: _Note) -> None:
    # The right to publish is one on the exchange, whatever the key.
    note("write", other.stream, link.try_to_publish(other.stream, UNBOUND))
    through_default = f"{other.queues[0]} (through the default exchange)"
    if note("write", through_default, link.try_to_publish("", UNBOUND)):
        note(
            "write",
            f"{through_default[:-1]}, by its name)",
            link.try_to_publish("", other.queues[0]),
        )
    exchange = names.DEAD_LETTER_EXCHANGE
    if note("write", exchange, link.try_to_publish(exchange, UNBOUND)):
        note("write", f"{exchange} (by its id)", link.try_to_publish(exchange, other.tenant_id))
    forged = names.username(other.tenant_id)
    note(
        "write",
        f"{mine.stream} (in the name of {forged})",
        link.try_to_publish(mine.stream, UNBOUND, user_id=forged),
    )


def _reads(link: AmqpClient, other: TenantNames, note: _Note) -> None:
    for queue in (*other.queues, names.dead_letter_queue_name(other.tenant_id)):
        if note("read", queue, link.try_to_consume(queue)):
            note("read", f"{queue} (by purging it)", link.attempt(_purge(queue)))


def _changes(link: AmqpClient, mine: TenantNames, other: TenantNames, note: _Note) -> None:
    for queue in (other.queues[0], names.dead_letter_queue_name(other.tenant_id)):
        if note("configure", queue, link.attempt(_declare_queue(queue))):
            note("configure", f"{queue} (by deleting it)", link.attempt(_delete_queue(queue)))
    stream = other.stream
    if note("configure", stream, link.attempt(_declare_exchange(stream))):
        note("configure", f"{stream} (by deleting it)", link.attempt(_delete_exchange(stream)))
    bindings: tuple[tuple[Action, str, _Operation, _Operation], ...] = (
        ("write", f"{other.queues[0]} (by binding it to {mine.stream})",
         *_queue_binding(other.queues[0], mine.stream)),
        ("read", f"{stream} (by binding {mine.queues[0]} to it)",
         *_queue_binding(mine.queues[0], stream)),
        ("read", f"{stream} (by binding {mine.stream} to it)",
         *_exchange_binding(mine.stream, stream)),
        ("write", f"{stream} (by binding it to {mine.stream})",
         *_exchange_binding(stream, mine.stream)),
    )  # fmt: skip
    for action, target, bind, unbind in bindings:
        if not note(action, target, link.attempt(bind)):
            link.attempt(unbind)


_Operation = Callable[["Channel", Callable[[Any], None]], object]


def _declare_queue(queue: str) -> _Operation:
    return lambda channel, answered: channel.queue_declare(
        queue, auto_delete=True, arguments=_FLEETING, callback=answered
    )


def _declare_exchange(exchange: str) -> _Operation:
    return lambda channel, answered: channel.exchange_declare(
        exchange, "headers", auto_delete=True, callback=answered
    )


def _purge(queue: str) -> _Operation:
    return lambda channel, answered: channel.queue_purge(queue, callback=answered)


def _delete_queue(queue: str) -> _Operation:
    return lambda channel, answered: channel.queue_delete(
        queue, if_unused=True, if_empty=True, callback=answered
    )


def _delete_exchange(exchange: str) -> _Operation:
    return lambda channel, answered: channel.exchange_delete(
        exchange, if_unused=True, callback=answered
    )


def _queue_binding(queue: str, exchange: str) -> tuple[_Operation, _Operation]:
    return (
        lambda channel, answered: channel.queue_bind(queue, exchange, UNBOUND, callback=answered),
        lambda channel, answered: channel.queue_unbind(queue, exchange, UNBOUND, callback=answered),
    )


def _exchange_binding(destination: str, source: str) -> tuple[_Operation, _Operation]:
    return (
        lambda channel, answered: channel.exchange_bind(
            destination, source, UNBOUND, callback=answered
        ),
        lambda channel, answered: channel.exchange_unbind(
            destination, source, UNBOUND, callback=answered
        ),
    )
