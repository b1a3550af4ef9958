"""What a tenant's two users can reach on Apache Iggy.

Iggy reports a missing object before it looks at rights: a refused user is told `Unauthorized`, and
only about existing objects. So only `Unauthorized` is a refusal. A missing object gives no verdict:
the proof then has none on the tenant's own objects, and reports another's as not there.

An accepted message can't be taken back, and Iggy, unlike RabbitMQ, never drops a message for lack
of a queue. So the right to send, which covers the whole stream, is tried on the topic that marks
the stream's owner: it has no readers, is not counted, and the daemon's own proofs empty it. Rights
on single topics are not tried but read by the daemon (`Probes.excess`).

All other attempts change nothing where they succeed: messages are read without storing an offset,
the topic and user to create exist already, a user keeps its name, a password is changed with a
wrong one. A harmful attempt needs a right that was tried before, and is made only where that was
refused.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from tenantry.broker.iggy import wire
from tenantry.broker.iggy.client import library
from tenantry.broker.iggy.topology import GROUP, Place, consumer_name, mark_topic, producer_name
from tenantry.broker.port import TenantTopology
from tenantry.domain import names
from tenantry.isolation.port import Action, Check, Findings
from tenantry.tenant_client.amqp import AttemptResult, TenantClientError
from tenantry.tenant_client.iggy import IggyTenantClient

if TYPE_CHECKING:
    from apache_iggy import IggyClient

PROBE: Final = "isolation-probe"
"""The message that a probe sends, and the consumer name it reads under."""

BEYOND: Final = 2**64 - 1
"""An offset that no partition has: the server stores none beyond the end."""

Request = Callable[["IggyClient"], Awaitable[object]]


class _Attempts:
    """Makes attempts as one user, and records their outcomes."""

    def __init__(
        self, client: IggyTenantClient, mine: TenantTopology, owner: TenantTopology
    ) -> None:
        self._client = client
        self.findings = Findings(mine, owner)

    def record(
        self, action: Action, target: str, ask: Request, *, forbidden: bool = False
    ) -> bool | None:
        """Make an attempt; return whether it was refused, None where the target is not there."""
        verdict = self._client.attempt(ask)
        if verdict is AttemptResult.ABSENT:
            return None
        return self.findings.record(action, target, verdict, forbidden=forbidden)

    def insist(self, action: Action, target: str, ask: Request, *, forbidden: bool = False) -> None:
        """Try a target that must exist. Raises `TenantClientError` where it does not."""
        if self.record(action, target, ask, forbidden=forbidden) is None:
            raise TenantClientError(f"{target} is not there, and so can't be tried")


def sending(
    client: IggyTenantClient,
    mine: TenantTopology,
    others: Sequence[TenantTopology],
    installation: str,
) -> list[Check]:
    """Try everything as the producing user: it may send to its own stream, and nothing else."""
    mark = mark_topic(installation)
    own = _Attempts(client, mine, mine)
    own.insist("write", mine.exchange, _send(mine, mark))
    for topic in _topics(mine):
        own.insist("read", f"{mine.exchange} -> {topic}", _poll(mine, topic), forbidden=True)
    _forbidden(own, mine)
    return own.findings.checks + _foreign(client, mine, others, mark)


def reading(
    client: IggyTenantClient,
    mine: TenantTopology,
    others: Sequence[TenantTopology],
    installation: str,
) -> list[Check]:
    """Try everything as the consuming user: it may read its own stream, and nothing else."""
    mark = mark_topic(installation)
    own = _Attempts(client, mine, mine)
    for topic in _topics(mine):
        own.insist("read", f"{mine.exchange} -> {topic}", _poll(mine, topic))
    own.insist("write", f"{mine.exchange} (as its reader)", _send(mine, mark), forbidden=True)
    _forbidden(own, mine)
    return own.findings.checks + _foreign(client, mine, others, mark)


def _forbidden(own: _Attempts, mine: TenantTopology) -> None:
    """Try what no tenant's user is allowed, even on its own objects."""
    iggy = library()
    stream, user = mine.exchange, producer_name(mine.tenant_id)
    password = secrets.token_urlsafe(32)
    forbidden: tuple[tuple[Action, str, Request], ...] = (
        ("configure", f"{stream} (its topics)", _make_topic(mine)),
        ("configure", f"{stream} (by naming it)", lambda one: one.update_stream(stream, stream)),
        ("configure", "server (its streams)", lambda one: one.create_stream(stream)),
        (
            "configure",
            "server (its users)",
            lambda one: one.create_user(user, password, iggy.UserStatus.Inactive, None),
        ),
        (
            "read",
            f"{stream} (its consumer groups)",
            lambda one: one.get_consumer_groups(stream, names.DEFAULT_TOPIC),
        ),
        ("read", "server (its streams)", lambda one: one.get_streams()),
        ("read", "server (its users)", lambda one: one.get_users()),
        (
            "read",
            "server (its clients)",
            lambda one: one.send_binary_request(wire.GET_CLIENTS, b""),
        ),
        ("read", "server (its figures)", lambda one: one.send_binary_request(wire.GET_STATS, b"")),
    )
    for action, target, ask in forbidden:
        own.insist(action, target, ask, forbidden=True)


def _foreign(
    client: IggyTenantClient, mine: TenantTopology, others: Sequence[TenantTopology], mark: str
) -> list[Check]:
    """Try what must be refused; on a tenant without a stream there is nothing to try."""
    checks: list[Check] = []
    for other in others:
        attempts = _Attempts(client, mine, other)
        if _stream_of(attempts, other, mark):
            _users_of(attempts, other)
        checks += attempts.findings.checks
    return checks


def _stream_of(attempts: _Attempts, other: TenantTopology, mark: str) -> bool:
    """Try to reach another tenant's stream; return whether it exists."""
    stream, first = other.exchange, names.DEFAULT_TOPIC
    read = {
        topic: attempts.record("read", f"{stream} -> {topic}", _poll(other, topic))
        for topic in _topics(other)
    }
    if read[first] is None:
        return False
    look = attempts.record(
        "read", f"{stream} (what is in it)", lambda one: one.get_consumer_groups(stream, first)
    )
    if look and read[first]:
        request = wire.store_offset(GROUP, Place(stream, first, 0), BEYOND, alone=True)
        attempts.record(
            "write",
            f"{stream} (offsets of its consumers)",
            lambda one: one.send_binary_request(wire.STORE_OFFSET, request),
        )
        attempts.record(
            "read",
            f"{stream} (by joining the group {GROUP})",
            lambda one: _join_and_leave(one, stream, first),
        )
    attempts.insist("write", stream, _send(other, mark))
    changes: tuple[tuple[str, Request], ...] = (
        ("its topics", _make_topic(other)),
        ("by naming it", lambda one: one.update_stream(stream, stream)),
        ("by emptying it", lambda one: one.purge_topic(stream, mark)),
    )
    for how, ask in changes:
        attempts.record("configure", f"{stream} ({how})", ask)
    return True


def _users_of(attempts: _Attempts, other: TenantTopology) -> None:
    wrong = secrets.token_urlsafe(32)
    for user in (producer_name(other.tenant_id), consumer_name(other.tenant_id)):
        attempts.record("configure", f"user {user}", partial(_name_again, user))
        attempts.record(
            "configure", f"user {user} (its password)", partial(_change_password, user, wrong)
        )


def _topics(tenant: TenantTopology) -> list[str]:
    """Name the tenant's topics, the smallest objects that rights apply to."""
    return list(dict.fromkeys(queue.topic for queue in tenant.queues()))


def _send(tenant: TenantTopology, mark: str) -> Request:
    iggy = library()
    message = iggy.SendMessage(PROBE.encode(), None, None)
    partition = iggy.Partitioning.partition_id(0)
    return lambda client: client.send_messages(tenant.exchange, mark, partition, [message])


def _poll(tenant: TenantTopology, topic: str) -> Request:
    iggy = library()
    return lambda client: client.poll_messages(
        tenant.exchange,
        topic,
        consumer=iggy.Consumer.Single(PROBE),
        polling_strategy=iggy.PollingStrategy.First(),
        count=1,
        auto_commit=False,
        partition_id=0,
    )


def _make_topic(tenant: TenantTopology) -> Request:
    request = wire.create_topic(tenant.exchange, names.DEFAULT_TOPIC, 1, ())
    return lambda client: client.send_binary_request(wire.CREATE_TOPIC, request)


async def _name_again(user: str, client: IggyClient) -> None:
    await client.update_user(user, user)


async def _change_password(user: str, wrong: str, client: IggyClient) -> None:
    await client.change_password(user, wrong, wrong)


async def _join_and_leave(client: IggyClient, stream: str, topic: str) -> None:
    await client.join_consumer_group(stream, topic, GROUP)
    await client.leave_consumer_group(stream, topic, GROUP)
