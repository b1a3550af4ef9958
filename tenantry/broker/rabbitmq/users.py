"""Tenants' users on RabbitMQ: as they are the whole server's, each has its installation's mark.

RabbitMQ puts a user whether it exists or not, and its answer does not tell which. So a daemon that
makes a user checks it afterwards. Installations that share a virtual host are kept apart by a lock
in it. Others recognize each other by what the other has put by then: its mark, or rights elsewhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Final

import structlog

from tenantry.broker import topology as layout
from tenantry.broker.drift import mark_of, marks_in, stranger
from tenantry.broker.port import BrokerError, NotOursError, PasswordHash
from tenantry.broker.rabbitmq.late_connections import Change, LateConnections
from tenantry.broker.rabbitmq.management import ManagementClient
from tenantry.broker.survey import Permissions, User
from tenantry.domain import names
from tenantry.domain.names import UserKind

log = structlog.get_logger(__name__)

ENTERED: Final = 0.1
"""Seconds after which a new connection is mostly listed, so that the broker can close it."""

_CHANGED: Final = "the password was changed"
_DELETED: Final = "the tenant was deleted"

NO_PASSWORD: Final = ""
"""The hash of a user without a password: logging in as it is impossible."""


class RabbitUsers:
    """The part of `Administration` that is about users. Callable from any thread.

    `alone` keeps other installations that share the virtual host from making the same tenant
    meanwhile.
    """

    def __init__(
        self,
        management: ManagementClient,
        *,
        installation: str,
        where: str,
        alone: Callable[[str], AbstractContextManager[None]],
        late: LateConnections,
    ) -> None:
        self.management = management
        self._installation = installation
        self._where = where
        self._alone = alone
        self.late = late

    @property
    def mark(self) -> str:
        """The tag of our users."""
        return mark_of(self._installation)

    def check_owner(
        self, tenant_id: str, known: PasswordHash | None = None, kind: UserKind = UserKind.PRODUCER
    ) -> None:
        """See `Administration.check_owner`."""
        self._ours(names.username(tenant_id, kind), known, rights=False)

    def claim(
        self, tenant_id: str, known: PasswordHash | None = None, kind: UserKind = UserKind.PRODUCER
    ) -> None:
        """See `Administration.claim`."""
        name = names.username(tenant_id, kind)
        with self._alone(tenant_id):
            if self._ours(name, known, rights=False) is None:
                self.management.put_user(name, NO_PASSWORD, tags=[self.mark])
                self._ours(name, None, rights=False)

    def ensure_user(
        self, tenant_id: str, password: PasswordHash, kind: UserKind = UserKind.PRODUCER
    ) -> None:
        """See `Administration.ensure_user`."""
        name = names.username(tenant_id, kind)
        wanted = layout.permissions(tenant_id, kind)
        user = self._ours(name, password)
        if user is None or user.password_hash == NO_PASSWORD:
            self.late.is_made_anew(name)
        if user is None or user.password_hash != password.value or not self._marked(user):
            self.management.put_user(name, password.value, tags=[self.mark])
        if user is not None and user.permissions == wanted:
            return
        self.management.put_permissions(name, **wanted._asdict())
        if user is None or user.permissions is None:
            new = user is None or user.password_hash == NO_PASSWORD
            self._see_that_it_is_ours_alone(name, new=new)

    def remove_user(
        self, tenant_id: str, known: PasswordHash | None = None, kind: UserKind = UserKind.PRODUCER
    ) -> None:
        """See `Administration.remove_user`."""
        name = names.username(tenant_id, kind)
        try:
            user = self._ours(name, known)
        except NotOursError as error:
            log.warning("broker.user_left_to_another", user=name, reason=str(error))
            return
        if user is None:
            return
        # In this order, since a client whose connection is closed connects again at once.
        self.management.delete_user(name)
        began = time.monotonic()
        closed = self._close(name, _DELETED)
        # A client that has logged in, and opens only once a tenant has this id again, gets in.
        self.late.look_for(name, Change(began, math.inf, _DELETED, closed))

    def end_sessions(self, tenant_id: str, kind: UserKind = UserKind.PRODUCER) -> None:
        """See `Administration.end_sessions`."""
        name = names.username(tenant_id, kind)
        began = time.monotonic()
        closed = self._close(name, _CHANGED)
        if closed:
            time.sleep(ENTERED)
            closed = self._close(name, _CHANGED)
        self.late.look_for(name, Change(began, time.monotonic(), _CHANGED, closed))

    def is_anothers(self, user: User) -> bool:
        """Return whether a user carries another installation's mark."""
        return bool(user.marks - {self._installation})

    def is_there(self, name: str) -> bool:
        """Return whether a user exists. Raises `NotOursError` unless it carries our mark alone."""
        user = self.find(name, rights=False)
        if user is not None and user.marks != {self._installation}:
            raise NotOursError(self._refusal(name, "is not marked as ours"), here=False)
        return user is not None

    def find(self, name: str, *, rights: bool = True) -> User | None:
        """Return a user as it is now, or None.

        Without `rights`, the permissions of a user that carries our mark alone are not fetched: it
        is ours.
        """
        found = self.management.user(name)
        if found is None:
            return None
        password_hash, tags = found["password_hash"], found["tags"]
        known = not rights and marks_in(tags) == {self._installation}
        return self.read(password_hash, tags, {} if known else self.management.permissions_of(name))

    def read(
        self, password_hash: str, tags: frozenset[str], rights: Mapping[str, Permissions]
    ) -> User:
        """Make a `User` of what the management API says; `rights` are by virtual host."""
        ours = self.management.virtual_host
        return User(
            password_hash=password_hash,
            tags=frozenset(one for one in tags if not marks_in([one])),
            permissions=rights.get(ours),
            marks=marks_in(tags),
            elsewhere=tuple(f"virtual host {one!r}" for one in sorted(rights) if one != ours),
        )

    def _ours(self, name: str, known: PasswordHash | None, *, rights: bool = True) -> User | None:
        """Return a tenant's user, as `find` does, or None. Raises `NotOursError`."""
        user = self.find(name, rights=rights)
        whose = None if user is None else stranger(user, self._installation, known)
        if user is not None and whose is not None:
            raise NotOursError(self._refusal(name, whose), here=user.permissions is not None)
        return user

    def _marked(self, user: User) -> bool:
        return user.marks == {self._installation} and not user.tags

    def _see_that_it_is_ours_alone(self, name: str, *, new: bool) -> None:
        """Check whether another installation made the same user at the same moment; if so, undo it.

        The one of the two that checks last sees what the other has put: rights, or its mark.
        """
        try:
            user = self._ours(name, None)
        except NotOursError:
            self.management.delete_permissions(name)
            raise
        if user is not None and user.elsewhere and new:
            self.management.delete_user(name)
            whose = f"has rights in {', '.join(user.elsewhere)} as well"
            raise NotOursError(self._refusal(name, whose), here=False)

    def _refusal(self, name: str, whose: str) -> str:
        return (
            f"user {name!r} of RabbitMQ at {self._where} {whose}, and this is the installation "
            f"{self._installation}; users are the whole server's: choose another tenant id, or "
            "give each installation a RabbitMQ of its own; if nobody needs that user any more, "
            f"delete it (rabbitmqctl delete_user {name})"
        )

    def _close(self, name: str, reason: str) -> bool:
        try:
            self.management.close_connections(name, reason)
        except BrokerError as error:
            log.warning(
                "broker.connections_not_closed",
                user=name,
                error=str(error),
                remedy="they still go by the old password; it is tried again within seconds",
            )
            return False
        return True
