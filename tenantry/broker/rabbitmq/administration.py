"""Tenants' objects on RabbitMQ: declared over AMQP; users and counts over the management API."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Final
from urllib.parse import unquote

import structlog
from pika.exceptions import AMQPError, ChannelClosedByBroker

from tenantry.broker import topology as layout
from tenantry.broker.adapter import UNFENCED, TermFence
from tenantry.broker.port import (
    BrokerError,
    Credentials,
    KeptLimits,
    PasswordHash,
    QueueCounts,
    TenantTopology,
)
from tenantry.broker.rabbitmq import limits as limiting
from tenantry.broker.rabbitmq.blocking_channels import BlockingChannels, reply_text
from tenantry.broker.rabbitmq.late_connections import LateConnections
from tenantry.broker.rabbitmq.management import ManagementClient
from tenantry.broker.rabbitmq.term_fence import shut_out
from tenantry.broker.rabbitmq.tls import SYSTEMS, Tls
from tenantry.broker.rabbitmq.users import RabbitUsers
from tenantry.broker.survey import Survey
from tenantry.domain import names
from tenantry.domain.limits import Limits
from tenantry.domain.names import UserKind
from tenantry.urls import amqp_url, split

log = structlog.get_logger(__name__)

_PRECONDITION_FAILED: Final = 406
_SALT_BYTES: Final = 4


class RabbitAdministration(RabbitUsers):
    """Makes and removes tenants' objects on RabbitMQ. Callable from any thread.

    `url` is the AMQP URL of a user that may configure everything in its virtual host;
    `management_url` that of the management API, of a user with the tag administrator.
    """

    def __init__(
        self,
        *,
        url: str,
        management_url: str,
        queue_type: layout.QueueType,
        installation: str,
        fence: TermFence = UNFENCED,
        tls: Tls = SYSTEMS,
    ) -> None:
        """Tenants' users carry the name of the `installation`."""
        self._channels = BlockingChannels(url, fence, tls)
        self._fence = fence
        self._scheme = split(url).scheme
        self._user = unquote(split(url).username or "guest")
        vhost = self._channels.node.virtual_host
        management = ManagementClient(management_url, vhost=vhost, fence=fence, tls=tls)
        super().__init__(
            management,
            installation=installation,
            where=self._channels.where,
            alone=self._claiming,
            late=LateConnections(
                management, user=self._user, connect=self._channels.connect_to_read_the_clock
            ),
        )
        self._queue_type = queue_type

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._where!r})"

    def close(self) -> None:
        """Close the connections kept open between calls."""
        self.late.close()
        self._channels.close()
        self.management.close()

    def ensure_topology(self, topology: TenantTopology) -> None:
        """Make the tenant's missing exchange, queues, bindings and dead-letter queue.

        A queue of the other type stays as it is: `queue.type` is for queues made from now on.
        Raises `BrokerError` if one of the objects exists with other arguments.
        """
        plan = layout.plan(topology, self._queue_type)
        try:
            self._declare(plan)
        except _OtherArgumentsError as error:
            log.info("broker.queue_of_other_type", queue=error.name, queue_type=self._queue_type)
            self._declare_mixed(topology)
            self._declare(replace(plan, exchanges=(), queues=()))

    def _declare(self, plan: layout.Plan) -> None:
        with self._channels.channel() as channel:
            for exchange in plan.exchanges:
                with _naming("exchange", exchange):
                    channel.exchange_declare(exchange, exchange_type="direct", durable=True)
            for queue in plan.queues:
                with _naming("queue", queue.name, self._queue_type):
                    channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))
            for binding in plan.bindings:
                with _naming("queue", binding.queue):
                    channel.queue_bind(binding.queue, binding.exchange, binding.routing_key)

    def _declare_mixed(self, topology: TenantTopology) -> None:
        """Declare queue by queue, each as the type it has, or a new one as the configured type."""
        other: layout.QueueType = "classic" if self._queue_type == "quorum" else "quorum"
        wanted = layout.plan(topology, self._queue_type).queues
        for queue, alternative in zip(wanted, layout.plan(topology, other).queues, strict=True):
            one = layout.Plan(exchanges=(), queues=(queue,), bindings=())
            try:
                self._declare(one)
            except _OtherArgumentsError:
                self._declare(replace(one, queues=(alternative,)))

    def remove_topology(self, tenant_id: str) -> int:
        """Delete the tenant's exchange and all its queues; return how many messages they held.

        The exchange goes first, so that nothing is published any more. The dead-letter queue goes
        last, so that no message is dead-lettered into nothing meanwhile.
        """
        owned = [
            queue
            for queue in self.management.queues(f"^{re.escape(f'tenant_{tenant_id}_')}")
            if layout.owner(queue) == tenant_id
        ]
        owned.sort(key=layout.is_dead_letter_queue)
        dropped = 0
        with self._channels.channel() as channel:
            channel.exchange_delete(names.exchange_name(tenant_id))
            for queue in owned:
                with _naming("queue", queue):
                    held = channel.queue_delete(queue).method.message_count
                dropped += 0 if layout.is_group_queue(queue) else held
        self.management.delete_operator_policy(limiting.policy_name(tenant_id))
        return dropped

    @property
    def kept_limits(self) -> KeptLimits:
        """See `Administration.kept_limits`."""
        return limiting.kept(self._queue_type)

    def limits_of(self, topology: TenantTopology, limits: Limits) -> Mapping[str, object]:
        """See `Administration.limits_of`."""
        return limiting.limits_of(topology, limits)

    def ensure_limits(self, topology: TenantTopology, limits: Limits) -> None:
        """See `Administration.ensure_limits`."""
        wanted = limiting.limits_of(topology, limits)
        for kind in UserKind:
            name = names.username(topology.tenant_id, kind)
            if self.is_there(name):
                limiting.limit_user(self.management, name, wanted.get(f"user {name}"))
        policy = wanted.get(f"operator policy {limiting.policy_name(topology.tenant_id)}")
        limiting.limit_queues(self.management, topology.tenant_id, policy)

    def remove_group(self, tenant_id: str) -> None:
        """See `Administration.remove_group`."""
        pattern = f"^{re.escape(names.group_queue_name(tenant_id, ''))}"
        owned = [one for one in self.management.queues(pattern) if layout.is_group_queue(one)]
        if not owned:
            return
        with self._channels.channel() as channel:
            for queue in owned:
                with _naming("queue", queue):
                    channel.queue_delete(queue)

    def new_credentials(
        self, tenant_id: str, kind: UserKind = UserKind.PRODUCER
    ) -> tuple[Credentials, PasswordHash]:
        """Generate a password and its hash; nothing changes on the broker."""
        password = secrets.token_urlsafe(32)
        name, node = names.username(tenant_id, kind), self._channels.node
        url = amqp_url(
            scheme=self._scheme,
            user=name,
            password=password,
            host=node.host,
            port=node.port,
            vhost=node.virtual_host,
        )
        credentials = Credentials(username=name, password=password, amqp_url=url)
        return credentials, PasswordHash(value=hash_password(password))

    def shut_out_earlier_terms(self) -> int:
        """Close this node's connections of earlier terms; see `term_fence.shut_out`."""
        return shut_out(self.management, self._fence, user=self._user)

    def shut_out_node(self, node: str, number: int) -> int:
        """Close another node's connections of terms before `number`."""
        earlier = replace(self._fence, node=node, number=number)
        return shut_out(self.management, earlier, user=self._user)

    def survey(self) -> Survey:
        """Survey all tenants' objects, in six calls of the management API."""
        found = self.management.definitions()
        rights = self.management.permissions()
        users = {
            user["name"]: self.read(
                user["password_hash"], user["tags"], rights.get(user["name"], {})
            )
            for user in self.management.users()
        }
        return Survey(
            exchanges={one["name"]: one["type"] for one in found["exchanges"] if one["durable"]},
            queues={one["name"]: one["arguments"] for one in found["queues"] if one["durable"]},
            bindings=frozenset(
                (one["source"], one["destination"], one["routing_key"])
                for one in found["bindings"]
                if one["destination_type"] == "queue"
            ),
            users=users,
            consumed=self.management.consumed_by(self._user),
            copies=True,
            limits=limiting.surveyed(
                self.management,
                frozenset(n for n, one in users.items() if one.marks == {self._installation}),
            ),
            installation=self._installation,
        )

    def queue_counts(self) -> Mapping[str, QueueCounts]:
        """Count the ready and unsettled messages in each tenant's queues."""
        self._channels.close_old()  # this call is sure to come every few seconds
        return layout.counts_by_tenant(self.management.message_counts())

    def check(self) -> None:
        """Raise `BrokerError`, with a clear line, if the broker can't be used."""
        with self._channels.channel() as channel, _naming("exchange", names.DEAD_LETTER_EXCHANGE):
            channel.exchange_declare(
                names.DEAD_LETTER_EXCHANGE, exchange_type="direct", durable=True
            )
        if "administrator" not in self.management.tags():
            raise BrokerError(
                f"the user of RabbitMQ's management API at {self.management.address} may not "
                "manage users: give it the tag administrator"
            )
        self.management.check_vhost()

    @contextmanager
    def _claiming(self, tenant_id: str) -> Iterator[None]:
        """Keep all other daemons in this virtual host from claiming the tenant meanwhile."""
        with self._channels.channel() as channel:
            # An exclusive queue belongs to one connection, and is deleted with it.
            lock = f"tenantry_claim_{tenant_id}"
            channel.queue_declare(lock, exclusive=True)
            try:
                yield
            finally:
                # If that fails, the channel is lost, and the connection is not kept.
                with suppress(AMQPError, OSError):
                    channel.queue_delete(lock)


class _OtherArgumentsError(BrokerError):
    """An object of this name exists with other arguments."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


def hash_password(password: str) -> str:
    """Hash a password as RabbitMQ stores it: base64 of a random salt and the SHA-256 of both."""
    salt = secrets.token_bytes(_SALT_BYTES)
    digest = hashlib.sha256(salt + password.encode()).digest()
    return base64.b64encode(salt + digest).decode("ascii")


@contextmanager
def _naming(kind: str, name: str, queue_type: str | None = None) -> Iterator[None]:
    """Name the object whose declaration the broker refuses, and the remedy."""
    try:
        yield
    except ChannelClosedByBroker as error:
        if error.reply_code != _PRECONDITION_FAILED:
            raise
        wanted = f" (queue.type is {queue_type})" if queue_type else ""
        raise _OtherArgumentsError(
            name,
            f"{kind} {name!r} exists with other arguments than wanted{wanted}: "
            f"set the configuration back, or empty and delete the {kind} and start again; "
            f"RabbitMQ says: {reply_text(error)}",
        ) from error
