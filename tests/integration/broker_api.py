"""The daemon's API, as far as the producer needs it, over real objects on RabbitMQ."""

from __future__ import annotations

import secrets
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx

from tenantry.broker import topology
from tenantry.broker.port import TenantTopology
from tenantry.broker.rabbitmq.administration import RabbitAdministration
from tenantry.domain.names import UserKind
from tenantry.producer.run import ProducerOptions
from tenantry.tenant_client.access import TenantAccess, rotate, topology_of
from tests.services_rabbitmq import RabbitHost
from tests.waiting import DEADLINE


def small(**given: Any) -> ProducerOptions:
    """Give options for a few messages, of tenants whose isolation is not proven."""
    few = {"tenants": 2, "producers": 1, "partitions": 2, "batches": 2, "ensure_access": False}
    return ProducerOptions(**(few | given))


class BrokerApi:
    """The daemon's API as far as the producer needs it: real objects on the broker, no daemon.

    Users are shared by all virtual hosts, so each API's users have names of their own.
    """

    def __init__(self, host: RabbitHost) -> None:
        parts = urlsplit(host.management_url)
        self.host = host
        self.tenants: dict[str, dict[str, Any]] = {}
        self.unavailable = 0
        self._prefix = f"producer-{secrets.token_hex(4)}"
        self._administration = RabbitAdministration(
            url=host.url,
            management_url=host.management_url,
            queue_type="classic",
            installation="test",
        )
        self.http = httpx.Client(
            base_url=f"http://{parts.hostname}:{parts.port}/api",
            auth=(parts.username or "", parts.password or ""),
            trust_env=False,
            timeout=DEADLINE,
        )

    def close(self) -> None:
        for tenant_id in self.tenants:
            for kind in UserKind:
                self.http.delete(f"/users/{self.user(tenant_id, kind)}")
        self.http.close()
        self._administration.close()

    def user(self, tenant_id: str, kind: UserKind = UserKind.PRODUCER) -> str:
        return f"{self._prefix}-{tenant_id}-{kind}"

    def send(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        if self.unavailable and method == "POST":
            self.unavailable -= 1
            return 503, {"detail": "starting"}
        match (method, *urlsplit(path).path.strip("/").split("/")):
            case ("GET", "healthz"):
                return 200, {"status": "ok"}
            case ("GET", "tenants"):
                return 200, {"data": list(self.tenants.values()), "next_cursor": None}
            case ("POST", "tenants"):
                if body["id"] in self.tenants:
                    return 409, {"detail": "exists"}
                self.tenants[body["id"]] = {"state": "active", **body}
                self._ensure(body["id"])
                return 201, {**self.tenants[body["id"]], "credentials": self.rotate(body["id"])}
            case ("GET", "tenants", tenant_id):
                return 200, self.tenants[tenant_id]
            case ("POST", "tenants", tenant_id, "topics"):
                tenant = self.tenants[tenant_id]
                tenant["topics"] += [one for one in body["topics"] if one not in tenant["topics"]]
                self._ensure(tenant_id)
                return 200, tenant
            case ("POST", "tenants", tenant_id, "credentials", "rotate"):
                answer = {**self.tenants[tenant_id], "credentials": self.rotate(tenant_id)}
                return 200, answer
            case ("POST", "tenants", tenant_id, "consumer-access"):
                self.tenants[tenant_id]["consumer_access"] = True
                self._ensure(tenant_id)
                credentials = self.rotate(tenant_id, UserKind.CONSUMER)
                return 200, {**self.tenants[tenant_id], "credentials": credentials}
            case _:
                return 404, {"detail": f"{method} {path}"}

    def _ensure(self, tenant_id: str) -> None:
        tenant = self.tenants[tenant_id]
        self._administration.ensure_topology(
            TenantTopology(
                tenant_id=tenant_id,
                topics=tuple(tenant["topics"]),
                partitions=tenant["partitions"],
                consumer_access=tenant.get("consumer_access", False),
            )
        )

    def rotate(self, tenant_id: str, kind: UserKind = UserKind.PRODUCER) -> dict[str, str]:
        user, password = self.user(tenant_id, kind), secrets.token_urlsafe(12)
        self.http.put(f"/users/{user}", json={"password": password, "tags": ""}).raise_for_status()
        allowed = topology.permissions(tenant_id, kind)
        self.allow(tenant_id, write=allowed.write, read=allowed.read, kind=kind)
        url = urlsplit(self.host.url)
        address = f"{url.hostname}:{url.port}"
        return {
            "username": user,
            "password": password,
            "amqp_url": urlunsplit(url._replace(netloc=f"{user}:{password}@{address}")),
        }

    def allow(
        self,
        tenant_id: str,
        *,
        configure: str = "^$",
        write: str,
        read: str,
        kind: UserKind = UserKind.PRODUCER,
    ) -> None:
        self.http.put(
            f"/permissions/{self.host.vhost}/{self.user(tenant_id, kind)}",
            json={"configure": configure, "write": write, "read": read},
        ).raise_for_status()

    def access(self, tenant_id: str) -> TenantAccess:
        return TenantAccess(
            topology=topology_of(self.tenants[tenant_id]), credentials=rotate(self, tenant_id)
        )

    def cut_connections(self, least: int = 1) -> bool:
        """Close its users' connections, once there are so many; tell whether it did.

        By user: the list of all has a connection only once statistics of it were gathered.
        """
        users = [self.user(one, kind) for one in tuple(self.tenants) for kind in UserKind]
        of_each = [f"/connections/username/{user}" for user in users]
        there = sum(len(self.http.get(one).raise_for_status().json()) for one in of_each)
        if there < least:
            return False
        answers = [self.http.delete(one) for one in of_each]
        return all(one.is_success for one in answers)


def depth(channel: Any, queue: str) -> int:
    count: int = channel.queue_declare(queue, passive=True).method.message_count
    return count


def taken(channel: Any, queue: str) -> list[tuple[Any, bytes]]:
    """Take out what lies in a queue; to get each singly costs much more."""
    found: list[tuple[Any, bytes]] = []
    if count := depth(channel, queue):
        for _, properties, body in channel.consume(queue, auto_ack=True, inactivity_timeout=20):
            assert body is not None, f"{len(found)} of {count} messages"
            found.append((properties, body))
            if len(found) == count:
                break
        channel.cancel()
    return found
