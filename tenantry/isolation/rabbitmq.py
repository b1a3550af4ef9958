"""What a tenant's user can reach on RabbitMQ, over AMQP and over the management API.

The broker knows three rights on a name (configure, write, read) and checks them before anything
else. So each is tried first in a way that changes nothing if it succeeds: a publication with a
routing key without a binding, a consumer that is closed before it keeps a message, a declaration
with other arguments than the object has. A harmful attempt (purging, deleting, publishing straight
into a queue) needs a right that was tried before, and is made only where that was refused.

The management API shows every queue, user and connection of a virtual host, and lets its users
publish and read there. It admits only users with a tag, and tenants' users have none.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from pika.channel import Channel

from tenantry.broker.port import Credentials, TenantTopology
from tenantry.broker.rabbitmq.tls import SYSTEMS, Tls, problem
from tenantry.domain import names
from tenantry.isolation.port import Action, Check, Findings
from tenantry.tenant_client.amqp import AmqpClient, AttemptResult, TenantClientError

TIMEOUT: Final = 10.0
CONNECT_TIMEOUT: Final = 3.0
"""Seconds."""

PATHS: Final = ("/api/whoami", "/api/queues")

_REFUSED: Final = {401, 403}

UNBOUND: Final = "isolation-probe.nowhere"
"""A routing key that no queue can be bound by: a partition's key ends in a number."""

_BIND: Final = Channel.queue_bind

_SOMEBODYS_TOPIC: Final = "amq.topic"
"""A built-in exchange of the broker, to which other clients may have bound queues."""

_AS_READER: Final = "(as its reader)"
"""Suffix of a target's name in attempts by the tenant's consuming user."""

_FLEETING: Final = {"x-expires": 1000}
"""Arguments that no tenant's queue has. If the queue is missing, a new one expires in a second."""


def own(client: AmqpClient, mine: TenantTopology) -> list[Check]:
    """Try what must be allowed, and what must be refused even on the tenant's own objects."""
    findings = Findings(mine, mine)
    record = findings.record
    record("write", mine.exchange, client.try_to_publish(mine.exchange, UNBOUND))
    for queue in mine.queue_names:
        record("read", queue, client.try_to_consume(queue))
    forbidden = partial(record, forbidden=True)
    letters = names.dead_letter_queue_name(mine.tenant_id)
    forbidden("read", letters, client.try_to_consume(letters))
    for exchange, shown in (
        ("", f"{mine.queue_names[0]} (through the default exchange)"),
        (names.DEAD_LETTER_EXCHANGE, f"{letters} (through {names.DEAD_LETTER_EXCHANGE})"),
        (_SOMEBODYS_TOPIC, _SOMEBODYS_TOPIC),
    ):
        forbidden("write", shown, client.try_to_publish(exchange, UNBOUND))
    for queue in (mine.queue_names[0], letters):
        forbidden("configure", queue, _declare_queue(client, queue))
    forbidden("configure", mine.exchange, _declare_exchange(client, mine.exchange))
    return findings.checks


def reading(client: AmqpClient, mine: TenantTopology) -> list[Check]:
    """Try what the consuming user must be allowed, and what it must be refused.

    The queues that the daemon stores from must be closed to it even for reading: a message that it
    took from them would be lost.
    """
    findings = Findings(mine, mine)
    record = findings.record
    for queue in _groups(mine):
        record("read", queue, client.try_to_consume(queue))
    forbidden = partial(record, forbidden=True)
    letters = names.dead_letter_queue_name(mine.tenant_id)
    for queue in (*mine.queue_names, letters):
        forbidden("read", f"{queue} {_AS_READER}", client.try_to_consume(queue))
    for exchange, shown in (
        (mine.exchange, mine.exchange),
        ("", f"{mine.queue_names[0]} (through the default exchange)"),
        (names.DEAD_LETTER_EXCHANGE, f"{letters} (through {names.DEAD_LETTER_EXCHANGE})"),
        (_SOMEBODYS_TOPIC, _SOMEBODYS_TOPIC),
    ):
        attempt = client.try_to_publish(exchange, UNBOUND)
        forbidden("write", f"{shown} {_AS_READER}", attempt)
    first = names.group_queue_name(mine.tenant_id, names.DEFAULT_TOPIC)
    probe = names.group_queue_name(mine.tenant_id, "isolation-probe")
    for queue in (first, mine.queue_names[0], letters, probe):
        forbidden("configure", f"{queue} {_AS_READER}", _declare_queue(client, queue))
    shown = f"{mine.exchange} {_AS_READER}"
    forbidden("configure", shown, _declare_exchange(client, mine.exchange))
    ends = first, mine.exchange, UNBOUND
    if not forbidden("configure", f"{first} (by binding it)", client.attempt(_BIND, *ends)):
        client.attempt(Channel.queue_unbind, *ends)
    return findings.checks


def _groups(tenant: TenantTopology) -> list[str]:
    """Name the queues that a tenant's own consumers read, if it has any."""
    topics = dict.fromkeys(one.topic for one in tenant.queues()) if tenant.consumer_access else ()
    return [names.group_queue_name(tenant.tenant_id, topic) for topic in topics]


def foreign(client: AmqpClient, mine: TenantTopology, other: TenantTopology) -> list[Check]:
    """Try what must be refused."""
    findings = Findings(mine, other)
    _writes(client, mine, other, findings.record)
    _reads(client, other, findings.record)
    _changes(client, mine, other, findings.record)
    return findings.checks


_Record = Callable[[Action, str, AttemptResult], bool]


def _writes(
    client: AmqpClient, mine: TenantTopology, other: TenantTopology, record: _Record
) -> None:
    # The right to publish is on the exchange, whatever the routing key.
    record("write", other.exchange, client.try_to_publish(other.exchange, UNBOUND))
    through_default = f"{other.queue_names[0]} (through the default exchange)"
    if record("write", through_default, client.try_to_publish("", UNBOUND)):
        record(
            "write",
            f"{through_default[:-1]}, by its name)",
            client.try_to_publish("", other.queue_names[0]),
        )
    exchange = names.DEAD_LETTER_EXCHANGE
    if record("write", exchange, client.try_to_publish(exchange, UNBOUND)):
        record("write", f"{exchange} (by its id)", client.try_to_publish(exchange, other.tenant_id))
    forged = names.username(other.tenant_id)
    record(
        "write",
        f"{mine.exchange} (in the name of {forged})",
        client.try_to_publish(mine.exchange, UNBOUND, user_id=forged),
    )


def _reads(client: AmqpClient, other: TenantTopology, record: _Record) -> None:
    letters = names.dead_letter_queue_name(other.tenant_id)
    for queue in (*other.queue_names, letters, *_groups(other)):
        if record("read", queue, client.try_to_consume(queue)):
            record("read", f"{queue} (by purging it)", client.attempt(Channel.queue_purge, queue))


def _changes(
    client: AmqpClient, mine: TenantTopology, other: TenantTopology, record: _Record
) -> None:
    for queue in (other.queue_names[0], names.dead_letter_queue_name(other.tenant_id)):
        if record("configure", queue, _declare_queue(client, queue)):
            deleted = client.attempt(Channel.queue_delete, queue, if_unused=True, if_empty=True)
            record("configure", f"{queue} (by deleting it)", deleted)
    theirs, ours = other.exchange, mine.exchange
    if record("configure", theirs, _declare_exchange(client, theirs)):
        deleted = client.attempt(Channel.exchange_delete, theirs, if_unused=True)
        record("configure", f"{theirs} (by deleting it)", deleted)
    queue, own_queue = other.queue_names[0], mine.queue_names[0]
    of_queue = Channel.queue_bind, Channel.queue_unbind
    of_exchange = Channel.exchange_bind, Channel.exchange_unbind
    bindings: tuple[tuple[Action, str, tuple[_Operation, _Operation], str, str], ...] = (
        ("write", f"{queue} (by binding it to {ours})", of_queue, queue, ours),
        ("read", f"{theirs} (by binding {own_queue} to it)", of_queue, own_queue, theirs),
        ("read", f"{theirs} (by binding {ours} to it)", of_exchange, ours, theirs),
        ("write", f"{theirs} (by binding it to {ours})", of_exchange, theirs, ours),
    )
    for action, target, (bind, unbind), *ends in bindings:
        if not record(action, target, client.attempt(bind, *ends, UNBOUND)):
            client.attempt(unbind, *ends, UNBOUND)


_Operation = Callable[..., object]


def _declare_queue(client: AmqpClient, queue: str) -> AttemptResult:
    return client.attempt(Channel.queue_declare, queue, auto_delete=True, arguments=_FLEETING)


def _declare_exchange(client: AmqpClient, exchange: str) -> AttemptResult:
    return client.attempt(Channel.exchange_declare, exchange, "headers", auto_delete=True)


def management(
    address: str, credentials: Credentials, mine: TenantTopology, tls: Tls = SYSTEMS
) -> list[Check]:
    """Try the management API at `address` with the tenant's own credentials.

    The credentials must be known to be right: wrong ones are refused in the same way. Raises
    `TenantClientError` where the API can't be reached, or gives no clear verdict.
    """
    import httpx

    findings = Findings(mine, mine)
    timeout = httpx.Timeout(TIMEOUT, connect=CONNECT_TIMEOUT)
    login = (credentials.username, credentials.password)
    try:
        verify = tls.context() if address.startswith("https") else False
        # Neither a proxy nor a .netrc applies to the connection to the broker.
        with httpx.Client(auth=login, timeout=timeout, trust_env=False, verify=verify) as http:
            for path in PATHS:
                # A list of queues may be long; the status is enough.
                with http.stream("GET", address + path) as response:
                    verdict = _verdict(response.status_code, address)
                findings.record("read", f"{path} (the management API)", verdict, forbidden=True)
    except httpx.HTTPError as error:
        reason = problem(error) or str(error) or type(error).__name__
        raise TenantClientError(
            f"the management API at {address} can't be reached: {reason}"
        ) from error
    return findings.checks


def _verdict(status: int, address: str) -> AttemptResult:
    if status in _REFUSED:
        return AttemptResult.REFUSED
    if 200 <= status < 300:
        return AttemptResult.ALLOWED
    raise TenantClientError(f"the management API at {address} answered {status}")
