"""Tenants' users on Iggy: the installation they belong to, and the password they were made with.

Iggy keeps no remark with a user, so a mark in the tenant's stream tells which installation it
belongs to. A password can only be set when a user is made, or with the former password. So it is
changed by making another user of the name. The former user is put aside until the change is
confirmed; if it can't be brought back, the log says so.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import structlog

from tenantry.broker import topology as layout
from tenantry.broker.drift import stranger
from tenantry.broker.iggy.client import ExistsError, MissingError, Session, Sessions, library
from tenantry.broker.iggy.passwords import Made, Passwords
from tenantry.broker.iggy.topology import (
    consumer_name,
    consumer_permissions,
    former_name,
    marked_by,
    permissions_of,
    producer_name,
    retired_before,
    retired_name,
    user_name,
)
from tenantry.broker.port import BrokerUnavailableError, Credentials, NotOursError, PasswordHash
from tenantry.broker.survey import LOST_PASSWORD, Permissions, User
from tenantry.domain import names
from tenantry.domain.names import UserKind

if TYPE_CHECKING:
    from apache_iggy import StreamDetails, UserInfoDetails

log = structlog.get_logger(__name__)

OTHER: Final = Permissions("other", "other", "other")
"""Shown for a user whose rights are not those that it was made with."""


class IggyUsers:
    """The users' part of `Administration`. Callable from any thread."""

    def __init__(self, sessions: Sessions, passwords: Passwords, *, installation: str) -> None:
        self.sessions = sessions
        self._passwords = passwords
        self._installation = installation

    def ensure_stream(self, session: Session, tenant_id: str) -> StreamDetails:
        """Make the tenant's stream, if it is missing, with the mark of this installation."""
        raise NotImplementedError

    def check_owner(
        self, tenant_id: str, known: PasswordHash | None = None, kind: UserKind = UserKind.PRODUCER
    ) -> None:
        """See `Administration.check_owner`."""
        with self.sessions.session() as session:
            self._ours(session, tenant_id, known if kind is UserKind.PRODUCER else None)

    def claim(
        self, tenant_id: str, known: PasswordHash | None = None, kind: UserKind = UserKind.PRODUCER
    ) -> None:
        """See `Administration.claim`. A reading user belongs to its stream, made with that."""
        if kind is UserKind.CONSUMER:
            self.check_owner(tenant_id, known, kind)
            return
        with self.sessions.session() as session:
            self._ours(session, tenant_id, known)
            self.ensure_stream(session, tenant_id)
            # If two installations mark the same stream at once, both see both marks.
            if self._ours(session, tenant_id, known) is None:
                self._make(session, producer_name(tenant_id), None, active=False)

    def ensure_user(
        self, tenant_id: str, password: PasswordHash, kind: UserKind = UserKind.PRODUCER
    ) -> None:
        """See `Administration.ensure_user`.

        A password that is no longer known can't be set: then the user has an unknown one until its
        credentials are rotated.
        """
        with self.sessions.session() as session:
            self._ours(session, tenant_id, password if kind is UserKind.PRODUCER else None)
            stream = self.ensure_stream(session, tenant_id)
            self._ensure_password(session, tenant_id, kind, password, stream.id)
            if kind is UserKind.PRODUCER:
                self._ensure_consumer(session, tenant_id, stream.id)

    def remove_user(
        self, tenant_id: str, known: PasswordHash | None = None, kind: UserKind = UserKind.PRODUCER
    ) -> None:
        """See `Administration.remove_user`. The reading user stays, with an unknown password."""
        with self.sessions.session() as session:
            try:
                self._ours(session, tenant_id, known if kind is UserKind.PRODUCER else None)
            except NotOursError as error:
                log.warning(
                    "broker.user_left_to_another",
                    user=user_name(tenant_id, kind),
                    reason=str(error),
                )
                return
            for name in _names(tenant_id, *(UserKind if kind is UserKind.PRODUCER else (kind,))):
                self._retire(session, name)
            if kind is UserKind.CONSUMER:
                stream = names.exchange_name(tenant_id)
                found = session.call(lambda client: client.get_stream(stream))
                if found is not None and _marks(found) == {self._installation}:
                    self._ensure_consumer(session, tenant_id, found.id)
                return
        self._passwords.remove(tenant_id)

    def remove_group(self, tenant_id: str) -> None:
        """See `Administration.remove_group`: Iggy copies nothing; there are no queues to remove."""

    def end_sessions(self, tenant_id: str, kind: UserKind = UserKind.PRODUCER) -> None:
        """See `Administration.end_sessions`: a retired user can do nothing any more."""
        with self.sessions.session() as session:
            self._retire(session, former_name(tenant_id, kind))

    def new_credentials(
        self, tenant_id: str, kind: UserKind = UserKind.PRODUCER
    ) -> tuple[Credentials, PasswordHash]:
        """Generate a password and its hash; nothing changes on the server."""
        password, value = self._passwords.generate()
        name = user_name(tenant_id, kind)
        url = self.sessions.access.url_for(name, password)
        return Credentials(username=name, password=password, iggy_url=url), value

    def surveyed(
        self, session: Session, streams: Mapping[str, StreamDetails], named: Mapping[int, str]
    ) -> Mapping[str, User]:
        """Give tenants' users; `named` has the names of all streams, by number.

        A reading user is listed once it has been given a password.
        """
        known = self._passwords.known()
        users: dict[str, User] = {}
        tenants = {layout.owner_of(one) or "" for one in streams}
        listed = [one.username for one in session.call(lambda client: client.get_users())]
        tenants.update(layout.owner_of(one) or "" for one in listed)
        self._delete_retired(session, listed)
        for tenant_id in tenants - {""}:
            found = self._find(session, producer_name(tenant_id))
            if found is None:
                continue
            stream = streams.get(names.exchange_name(tenant_id))
            user = self._read(tenant_id, found, stream, known, named)
            reader = self._find(session, consumer_name(tenant_id))
            if user.permissions is not None and not _reads_right(reader, stream):
                user = replace(user, permissions=OTHER)
            users[names.username(tenant_id)] = user
            if reader is not None and reader.status == library().UserStatus.Active:
                kind = UserKind.CONSUMER
                users[names.username(tenant_id, kind)] = self._read(
                    tenant_id, reader, stream, known, named, kind=kind
                )
        return users

    def disown(self, session: Session, tenant_id: str, stream_id: int) -> None:
        """Take all rights in a stream from the tenant's users."""
        for name in _names(tenant_id, *UserKind):
            found = self._find(session, name)
            given = None if found is None else found.permissions
            if given is not None and stream_id in (given.streams or {}):
                session.call(lambda client, name=name: client.update_permissions(name, None))  # type: ignore[misc]

    def _ensure_password(
        self,
        session: Session,
        tenant_id: str,
        kind: UserKind,
        password: PasswordHash,
        stream_id: int,
    ) -> None:
        name, aside = user_name(tenant_id, kind), former_name(tenant_id, kind)
        rights = permissions_of(kind, stream_id)
        known = self._passwords.of(tenant_id)
        present, former = self._find(session, name), self._find(session, aside)
        if present is not None and known.get(_made(present)) == password.value:
            self._let(session, present, rights)
            return
        if former is not None and known.get(_made(former)) == password.value:
            self._retire(session, name)
            session.call(
                lambda client: client.update_user(aside, name, library().UserStatus.Active)
            )
            self._let(session, former, rights)
            return
        clear = self._passwords.take(password)
        if present is not None:
            kept = known.get(_made(present)) == self._passwords.confirmed(tenant_id, kind)
            if kept and clear is not None:
                self._retire(session, aside)
                session.call(lambda client: client.update_user(name, aside))
            else:
                self._retire(session, name)
        if clear is None:
            log.warning(
                "broker.password_lost",
                user=name,
                remedy="Iggy sets no password by its hash: rotate the tenant's credentials",
            )
        made = self._make(session, name, rights, password=clear)
        lost = clear is None
        self._passwords.record(
            tenant_id, _made(made), PasswordHash(value=LOST_PASSWORD) if lost else password
        )
        self._passwords.forget(password)

    def _ensure_consumer(self, session: Session, tenant_id: str, stream_id: int) -> None:
        """Make the reading user, with an unknown password until access is granted."""
        name = consumer_name(tenant_id)
        rights = consumer_permissions(stream_id)
        present = self._find(session, name)
        if present is None:
            self._make(session, name, rights, active=False)
        elif present.permissions != rights:
            session.call(lambda client: client.update_permissions(name, rights))

    def _make(
        self,
        session: Session,
        name: str,
        rights: Any,
        *,
        password: str | None = None,
        active: bool = True,
    ) -> UserInfoDetails:
        """Make a user; without a given password it has an unknown one."""
        status = library().UserStatus.Active if active else library().UserStatus.Inactive
        secret = password or secrets.token_urlsafe(32)
        try:
            return session.call(lambda client: client.create_user(name, secret, status, rights))
        except ExistsError as error:
            raise BrokerUnavailableError(
                f"another daemon has made the user {name!r} at this moment: {error}"
            ) from error

    def _let(self, session: Session, user: UserInfoDetails, rights: Any) -> None:
        """Give a user its rights, and enable it."""
        if user.permissions != rights:
            session.call(lambda client: client.update_permissions(user.id, rights))
        if user.status != library().UserStatus.Active:
            session.call(
                lambda client: client.update_user(user.id, status=library().UserStatus.Active)
            )

    def _find(self, session: Session, name: str) -> UserInfoDetails | None:
        try:
            return session.call(lambda client: client.get_user(name))
        except MissingError:
            return None

    def _retire(self, session: Session, name: str) -> None:
        """Retire a user, so that its sessions can do nothing any more.

        Iggy ties a session to its user's number, also after that user was deleted, and gives a
        deleted user's number to the next new one, perhaps another tenant's. So the number is kept,
        without rights and without a login, as long as the server runs.
        """
        found = self._find(session, name)
        if found is None:
            return
        never_in = found.permissions is None and found.status != library().UserStatus.Active
        try:
            if never_in:
                session.call(lambda client: client.delete_user(found.id))
                return
            session.call(lambda client: client.update_permissions(found.id, None))
            started = session.call(lambda client: client.get_stats()).start_time
            session.call(
                lambda client: client.update_user(
                    found.id, retired_name(started, found.id), library().UserStatus.Inactive
                )
            )
        except MissingError:
            log.debug("broker.user_was_gone", user=name)

    def _delete_retired(self, session: Session, listed: Sequence[str]) -> None:
        """Delete users that were retired before the server's start: it ended their sessions."""
        if not any(retired_before(name, 0) for name in listed):
            return
        started = session.call(lambda client: client.get_stats()).start_time
        for name in listed:
            if retired_before(name, started):
                try:
                    session.call(lambda client, name=name: client.delete_user(name))  # type: ignore[misc]
                except MissingError:
                    log.debug("broker.user_was_gone", user=name)

    def _ours(self, session: Session, tenant_id: str, known: PasswordHash | None) -> User | None:
        """Give the tenant's user, if there is one. Raises `NotOursError`."""
        name = producer_name(tenant_id)
        stream = session.call(lambda client: client.get_stream(names.exchange_name(tenant_id)))
        found = self._find(session, name)
        if found is not None:
            named = {one.id: one.name for one in session.call(lambda c: c.get_streams())}
            user = self._read(tenant_id, found, stream, self._passwords.of(tenant_id), named)
        elif stream is not None and stream.topics:
            user = User(password_hash="", permissions=OTHER, marks=_marks(stream))
        else:
            return None
        whose = stranger(user, self._installation, known)
        if whose is not None:
            raise NotOursError(self._refusal(tenant_id, whose), here=user.permissions is not None)
        return None if found is None else user

    def _read(
        self,
        tenant_id: str,
        found: UserInfoDetails,
        stream: StreamDetails | None,
        known: Mapping[Made, str],
        named: Mapping[int, str],
        *,
        kind: UserKind = UserKind.PRODUCER,
    ) -> User:
        """Make a user from the server's description."""
        password = known.get(_made(found), "")
        marks = _marks(stream) if stream is not None else frozenset()
        if password:
            # This installation made it, whatever has become of its stream.
            marks |= {self._installation}
        given = found.permissions
        streams = dict((given.streams if given is not None else None) or {})
        own = None if stream is None else streams.pop(stream.id, None)
        exact = stream is not None and given == permissions_of(kind, stream.id)
        return User(
            password_hash=password,
            tags=self._tags(found),
            permissions=layout.permissions(tenant_id, kind) if exact else OTHER if own else None,
            marks=marks,
            # A deleted stream gives no rights; another stream may get its number.
            elsewhere=tuple(f"stream {named.get(one, one)!r}" for one in sorted(streams)),
        )

    def _tags(self, found: UserInfoDetails) -> frozenset[str]:
        given = found.permissions
        every = library().GlobalPermissions()
        tags = {"powerful"} if given is not None and given.global_permissions != every else set()
        known = given is not None and found.status != library().UserStatus.Active
        return frozenset(tags | ({"inactive"} if known else set()))

    def _refusal(self, tenant_id: str, whose: str) -> str:
        name, stream = producer_name(tenant_id), names.exchange_name(tenant_id)
        return (
            f"user {name!r}, or stream {stream!r}, of Iggy at {self.sessions.access.where} {whose},"
            f" and this is the installation {self._installation}; they are the whole server's:"
            " choose another tenant id, or give each installation an Iggy of its own; if nobody"
            " needs them any more, delete them"
        )


def _names(tenant_id: str, *kinds: UserKind) -> list[str]:
    """Name a tenant's users, including those of former passwords."""
    return [name(tenant_id, kind) for kind in kinds for name in (user_name, former_name)]


def _reads_right(reader: UserInfoDetails | None, stream: StreamDetails | None) -> bool:
    return (
        stream is not None
        and reader is not None
        and reader.permissions == consumer_permissions(stream.id)
    )


def _made(user: UserInfoDetails) -> Made:
    return Made(user.id, user.created_at)


def _marks(stream: StreamDetails) -> frozenset[str]:
    return frozenset(mark for topic in stream.topics if (mark := marked_by(topic.name)))
