"""A tenant's place on its broker in AsyncAPI: channels, operations and users of each kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tenantry.api.asyncapi_messages import PUBLISHED, Json, ref
from tenantry.broker.port import QueueSpec
from tenantry.domain import names
from tenantry.domain.names import UserKind
from tenantry.domain.tenant import TenantState

_AMQP_BINDING: Final = "0.3.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerPlace:
    """The broker's address for a tenant's clients; `system` is its kind, named as in traces.

    `scheme` is that of the broker's URL; `path` is RabbitMQ's virtual host, or the database.
    """

    system: str = "postgresql"
    scheme: str = ""
    host: str = "localhost"
    path: str = ""


class BrokerKind(ABC):
    """Describes one kind of broker."""

    @abstractmethod
    def server(self, broker: BrokerPlace) -> Json:
        """Describe the broker's address."""

    @abstractmethod
    def user(self, state: TenantState) -> str:
        """Say what the tenant's broker user may do."""

    @abstractmethod
    def channels(self, state: TenantState, broker: BrokerPlace, topic: str) -> Json:
        """Describe where messages of a topic go; the first one has the topic's name."""

    def operations(self, state: TenantState, topic: str) -> Json:
        """Describe a topic's operations: Tenantry stores it; with consumer access it is read."""
        made = {f"{topic}.publish": self.publish(topic)}
        if state.consumer_access:
            made[f"{topic}.consume"] = self.consume(state, topic)
        return made

    def publish(self, topic: str) -> Json:
        """Describe that Tenantry stores what is published to a topic."""
        return {
            "action": "receive",
            "channel": ref(f"channels/{topic}"),
            "summary": f"Store what is published to {topic}.",
        }

    def consume(self, state: TenantState, topic: str) -> Json:
        """Describe how the tenant's own consumers read a topic."""
        return {
            "action": "send",
            "channel": ref(f"channels/{topic}"),
            "summary": f"Read by {names.username(state.tenant_id, UserKind.CONSUMER)}.",
        }


class _RabbitMQ(BrokerKind):
    def server(self, broker: BrokerPlace) -> Json:
        return {
            "host": broker.host,
            "pathname": f"/{broker.path}" if broker.path != "/" else "/",
            "protocol": broker.scheme,
            "protocolVersion": "0-9-1",
            "title": "RabbitMQ",
            "security": [ref("components/securitySchemes/user")],
        }

    def user(self, state: TenantState) -> str:
        name = names.username(state.tenant_id)
        return f"{name} publishes to {names.exchange_name(state.tenant_id)}, and nowhere else."

    def channels(self, state: TenantState, broker: BrokerPlace, topic: str) -> Json:
        exchange = {
            "name": names.exchange_name(state.tenant_id),
            "type": "direct",
            "durable": True,
            "autoDelete": False,
            "vhost": broker.path,
        }
        bindings = {"bindings": _amqp({"is": "routingKey", "exchange": exchange})}
        made = {topic: _channel(state, topic, _key(topic)) | bindings}
        for number in range(partitions_of(state, topic)):
            queue = QueueSpec.of(state.tenant_id, topic, number)
            made[f"{topic}.{number}.queue"] = {
                "address": queue.name,
                "title": f"Where what was published with {queue.routing_key} waits",
                "description": "Tenantry consumes it; another consumer would take from the store.",
                "servers": [ref("servers/broker")],
                "bindings": _queue(queue.name, broker),
            }
        if state.consumer_access:
            copies = names.group_queue_name(state.tenant_id, topic)
            made[f"{topic}.copies"] = {
                "address": copies,
                "title": f"Copies of {topic}, for the tenant's own consumers",
                "servers": [ref("servers/broker")],
                "messages": _messages(PUBLISHED),
                "bindings": _queue(copies, broker),
            }
        return made

    def publish(self, topic: str) -> Json:
        # The properties Tenantry wants: unroutable messages are returned, a restart loses none.
        wanted = {"deliveryMode": 2, "mandatory": True, "timestamp": True, "ack": True}
        return super().publish(topic) | {"bindings": _amqp(wanted)}

    def consume(self, state: TenantState, topic: str) -> Json:
        return super().consume(state, topic) | {
            "channel": ref(f"channels/{topic}.copies"),
            "bindings": _amqp({"ack": True}),
        }


class _Embedded(BrokerKind):
    def server(self, broker: BrokerPlace) -> Json:
        return {
            "host": broker.host,
            "pathname": f"/{broker.path}",
            "protocol": "postgresql",
            "title": "PostgreSQL, which is the broker as well",
            "description": "A publish is confirmed by its commit.",
            "security": [ref("components/securitySchemes/user")],
        }

    def user(self, state: TenantState) -> str:
        name = names.username(state.tenant_id)
        return f"The role {name} calls tenantry.publish for this tenant, and reads no table."

    def channels(self, state: TenantState, broker: BrokerPlace, topic: str) -> Json:  # noqa: ARG002
        more = "id => $3, headers => $4"
        if topic != names.DEFAULT_TOPIC:
            more += ", key => $5"
        sql = {
            "publish": f"SELECT tenantry.publish('{topic}', $1, {_renumbered(more)})",
            "publish_bytes": f"SELECT tenantry.publish_bytes('{topic}', $1, $2, {more})",
        }
        if state.consumer_access:
            sql |= {
                "receive": f"SELECT * FROM tenantry.receive('{topic}', $1)",  # noqa: S608 - shown
                "settle": "SELECT tenantry.settle($1)",
            }
        return {topic: _channel(state, topic, _key(topic)) | {"x-sql": sql}}


class _Iggy(BrokerKind):
    def server(self, broker: BrokerPlace) -> Json:
        return {
            "host": broker.host,
            "protocol": broker.scheme,
            "title": "Apache Iggy",
            "security": [ref("components/securitySchemes/user")],
        }

    def user(self, state: TenantState) -> str:
        stream = names.exchange_name(state.tenant_id)
        return f"{names.username(state.tenant_id)} sends to the stream {stream}, and to no other."

    def channels(self, state: TenantState, broker: BrokerPlace, topic: str) -> Json:  # noqa: ARG002
        stream = names.exchange_name(state.tenant_id)
        place = {"stream": stream, "topic": topic, "partitions": partitions_of(state, topic)}
        address = f"{stream}/{topic}/{{partition}}"
        if topic == names.DEFAULT_TOPIC:
            address = f"{stream}/{topic}/0"
        return {topic: _channel(state, topic, address) | {"x-iggy": place}}


KINDS: Final[Mapping[str, BrokerKind]] = {
    "rabbitmq": _RabbitMQ(),
    "postgresql": _Embedded(),
    "iggy": _Iggy(),
}
"""The kinds of brokers, by their names in traces."""


def partitions_of(state: TenantState, topic: str) -> int:
    """Tell how many partitions a topic has; the default one has one queue."""
    return 1 if topic == names.DEFAULT_TOPIC else state.partitions_of(topic)


def _channel(state: TenantState, topic: str, address: str) -> Json:
    order = "Order is not kept among messages that wait at the same time."
    if topic in state.ordered:
        order = "A partition's messages are handled and stored as they were published."
    made: Json = {
        "address": address,
        "title": f"The topic {topic}",
        "description": order,
        "servers": [ref("servers/broker")],
        "messages": _messages(PUBLISHED),
    }
    if topic != names.DEFAULT_TOPIC:
        numbers = [str(number) for number in range(partitions_of(state, topic))]
        how = "With a key: CRC-32 of its UTF-8 bytes modulo the number of partitions."
        made["parameters"] = {"partition": {"enum": numbers, "default": "0", "description": how}}
    return made


def _key(topic: str) -> str:
    return topic if topic == names.DEFAULT_TOPIC else f"{topic}.{{partition}}"


def _messages(wanted: Iterable[str]) -> Json:
    return {name: ref(f"components/messages/{name}") for name in wanted}


def _renumbered(arguments: str) -> str:
    """Return the arguments for the call that has one parameter less before them."""
    for number in (3, 4, 5):
        arguments = arguments.replace(f"${number}", f"${number - 1}")
    return arguments


def _amqp(binding: Mapping[str, Any]) -> Json:
    return {"amqp": {**binding, "bindingVersion": _AMQP_BINDING}}


def _queue(name: str, broker: BrokerPlace) -> Json:
    queue = {
        "name": name,
        "durable": True,
        "exclusive": False,
        "autoDelete": False,
        "vhost": broker.path,
    }
    return _amqp({"is": "queue", "queue": queue})
