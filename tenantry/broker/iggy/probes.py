"""Probe users in a tenant's place on Iggy, and excessive rights of the tenant's own users.

This needs no tenant's password: a probe is another user, with a password of its own and the rights
that the tenant's user has at this moment. It is removed afterwards.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import structlog

from tenantry.broker import topology as layout
from tenantry.broker.iggy.client import MissingError, Session, Sessions, library
from tenantry.broker.iggy.topology import (
    consumer_name,
    consumer_permissions,
    former_name,
    mark_topic,
    producer_name,
    producer_permissions,
)
from tenantry.broker.port import BrokerError, Credentials, Excess, Probe
from tenantry.domain import names
from tenantry.domain.names import UserKind

if TYPE_CHECKING:
    from apache_iggy import Permissions, UserInfoDetails

log = structlog.get_logger(__name__)

_GLOBAL: Final = (
    "manage_servers", "read_servers", "manage_users", "read_users", "manage_streams",
    "read_streams", "manage_topics", "read_topics", "poll_messages", "send_messages",
)  # fmt: skip
_STREAM: Final = (
    "manage_stream", "read_stream", "manage_topics", "read_topics", "poll_messages",
    "send_messages",
)  # fmt: skip
_TOPIC: Final = ("manage_topic", "read_topic", "poll_messages", "send_messages")


class _Right(NamedTuple):
    """A right: on a topic, on a stream, or on the whole server."""

    name: str
    stream: int | None = None
    topic: int | None = None


class _Login(NamedTuple):
    """A probe."""

    name: str
    password: str


class _Kept(NamedTuple):
    """Probes for reuse, those `free` now; and the callbacks that remove all of them."""

    removals: ExitStack
    free: list[_Login]


class IggyProbes:
    """Probes (`Probes`) on Iggy. Users are the whole server's: a probe's name has our digest."""

    management_address: Final = None

    def __init__(self, sessions: Sessions, installation: str) -> None:
        self._installation = installation
        self._sessions = sessions
        digest = hashlib.sha256(installation.encode()).hexdigest()[:12]
        # Tenants' users have other prefixes.
        self._prefix = f"tenantry-probe.{digest}."
        self._kept: _Kept | None = None

    def sweep(self) -> None:
        """See `Probes.sweep`."""
        with self._sessions.session() as session:
            for one in session.call(lambda client: client.get_users()):
                if one.username.startswith(self._prefix):
                    self._delete(session, one.username)

    @contextmanager
    def several(self) -> Iterator[None]:
        """See `Probes.several`: the server hashes a password for each user that is made."""
        with ExitStack() as removals:
            self._kept = _Kept(removals, [])
            removals.callback(self._forget)
            yield

    @contextmanager
    def probe(self, tenant_id: str) -> Iterator[Probe]:
        """See `Probes.probe`."""
        with ExitStack() as stack:
            stack.callback(self._empty_mark, tenant_id)
            sender = self._in_place_of(producer_name(tenant_id), stack)
            reader = self._in_place_of(consumer_name(tenant_id), stack)
            yield Probe(sender, reader)

    def excess(self, tenant_id: str) -> Sequence[Excess]:
        """See `Probes.excess`: topics are not tried, as a message can't be taken back."""
        with self._sessions.session() as session:
            named = {one.id: one.name for one in session.call(lambda client: client.get_streams())}
            own = {name: number for number, name in named.items()}.get(
                names.exchange_name(tenant_id)
            )
            if own is None:
                raise BrokerError(f"stream {names.exchange_name(tenant_id)!r} is not there")
            expected = {
                producer_name(tenant_id): producer_permissions(own),
                former_name(tenant_id): producer_permissions(own),
                consumer_name(tenant_id): consumer_permissions(own),
                former_name(tenant_id, UserKind.CONSUMER): consumer_permissions(own),
            }
            return [
                self._told(session, tenant_id, name, right, named)
                for name, permissions in expected.items()
                if (found := _find(session, name)) is not None
                for right in sorted(_rights(found.permissions) - _rights(permissions), key=str)
            ]

    def _in_place_of(self, name: str, stack: ExitStack) -> Credentials:
        with self._sessions.session() as session:
            user = _find(session, name)
            if user is None or user.permissions is None:
                raise BrokerError(f"user {name!r} is not there, or has no rights")
            probe = self._kept_one(session, user.permissions) or self._new(
                session, user.permissions, stack
            )
        if self._kept is not None:
            stack.callback(self._keep, probe)
        url = self._sessions.access.url_for(probe.name, probe.password)
        return Credentials(username=probe.name, password=probe.password, iggy_url=url)

    def _new(self, session: Session, rights: Permissions, stack: ExitStack) -> _Login:
        iggy = library()
        made = _Login(self._prefix + secrets.token_hex(8), secrets.token_urlsafe(32))
        whole = stack if self._kept is None else self._kept.removals
        whole.callback(self._remove, made.name)
        session.call(
            lambda client: client.create_user(
                made.name, made.password, iggy.UserStatus.Active, rights
            )
        )
        return made

    def _kept_one(self, session: Session, rights: Permissions) -> _Login | None:
        """Give a kept probe these rights; None if there is none, or it was swept away."""
        while self._kept is not None and self._kept.free:
            kept = self._kept.free.pop()
            try:
                session.call(lambda client: client.update_permissions(kept.name, rights))  # noqa: B023
            except MissingError:
                log.debug("broker.probe_was_gone", user=kept.name)
            else:
                return kept
        return None

    def _keep(self, probe: _Login) -> None:
        """Revoke a probe's rights, and keep it for the next tenant."""
        with self._sessions.session() as session:
            try:
                session.call(lambda client: client.update_permissions(probe.name, None))
            except MissingError:
                log.debug("broker.probe_was_gone", user=probe.name)
                return
        if self._kept is not None:
            self._kept.free.append(probe)

    def _forget(self) -> None:
        self._kept = None

    def _remove(self, name: str) -> None:
        with self._sessions.session() as session:
            self._delete(session, name)

    @staticmethod
    def _delete(session: Session, name: str) -> None:
        try:
            session.call(lambda client: client.delete_user(name))
        except MissingError:
            log.debug("broker.probe_was_gone", user=name)

    def _empty_mark(self, tenant_id: str) -> None:
        """Purge the tenant's mark of the messages that probes, its own too, have sent there."""
        stream, mark = names.exchange_name(tenant_id), mark_topic(self._installation)
        with self._sessions.session() as session:
            found = session.call(lambda client: client.get_topic(stream, mark))
            if found is None or not found.messages_count:
                return
            try:
                session.call(lambda client: client.purge_topic(stream, mark))
            except MissingError:
                log.debug("broker.topic_was_gone", topic=mark)

    @staticmethod
    def _told(
        session: Session, tenant_id: str, user: str, right: _Right, named: Mapping[int, str]
    ) -> Excess:
        by = f"(by {right.name} of {user})"
        action = _action(right.name)
        if right.stream is None:
            return Excess(tenant_id, action, f"server, whatever is there {by}")
        stream = named.get(right.stream)
        if stream is None:
            return Excess(tenant_id, action, f"stream number {right.stream}, if it is made {by}")
        target = stream
        if right.topic is not None:
            number = right.topic
            found = session.call(lambda client: client.get_topic(stream, number))
            target += f" -> {number if found is None else found.name}"
        return Excess(layout.owner_of(stream) or tenant_id, action, f"{target} {by}")


def _find(session: Session, name: str) -> UserInfoDetails | None:
    try:
        return session.call(lambda client: client.get_user(name))
    except MissingError:
        return None


def _rights(permissions: Permissions | None) -> set[_Right]:
    """Return each right as a separate item."""
    if permissions is None:
        return set()
    found = {_Right(name) for name in _given(permissions.global_permissions, _GLOBAL)}
    for stream, rights in (permissions.streams or {}).items():
        found |= {_Right(name, stream) for name in _given(rights, _STREAM)}
        for topic, of_topic in (rights.topics or {}).items():
            found |= {_Right(name, stream, topic) for name in _given(of_topic, _TOPIC)}
    return found


def _given(rights: Any, known: Sequence[str]) -> list[str]:
    return [name for name in known if getattr(rights, name)]


def _action(right: str) -> Literal["write", "read", "configure"]:
    if right.startswith("manage"):
        return "configure"
    return "write" if right == "send_messages" else "read"
