"""Creates, restores and removes a tenant's objects on broker and database, in repeatable steps."""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from tenantry import failpoints
from tenantry.broker.port import (
    Administration,
    BrokerError,
    BrokerUnavailableError,
    Credentials,
    NotOursError,
    PasswordHashes,
)
from tenantry.broker.topology import topology_of
from tenantry.domain.names import UserKind
from tenantry.domain.tenant import TenantState
from tenantry.messages.port import ForeignRowsError, MessageStore, MessageStoreError, whose
from tenantry.messages.sql_access import SqlAccess

log = structlog.get_logger("actors.tenant")


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """How many messages were removed with a tenant: from its queues, and from its partition."""

    queued: int
    stored: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Provisioner:
    """Makes broker and database match a tenant's state."""

    administration: Administration
    messages: MessageStore
    passwords: PasswordHashes
    sql_access: SqlAccess

    def provision(self, state: TenantState) -> Credentials:
        """Create all objects of a new tenant.

        The user's name is claimed first; the user gets its password last.
        """
        self.claim(state.tenant_id)
        self.messages.create_partition(state.tenant_id, whose(state))
        self.administration.ensure_topology(topology_of(state))
        return self.propose_credentials(state.tenant_id)

    def vacate(self, former: TenantState) -> None:
        """Remove a deleted tenant's leftovers, and put aside its retained rows.

        Its objects were removed when it was deleted; this is for objects that have appeared since,
        behind the daemon's back or late.
        """
        self.administration.remove_user(former.tenant_id, kind=UserKind.CONSUMER)
        self.administration.remove_user(former.tenant_id)
        self.administration.remove_topology(former.tenant_id)
        self.passwords.remove(former.tenant_id)
        self.sql_access.revoke(former.tenant_id)
        self.messages.vacate(former)

    def check_owner(self, tenant_id: str, kind: UserKind = UserKind.PRODUCER) -> None:
        """Raise `NotOursError` where another owner has taken the name of the tenant's user."""
        self.administration.check_owner(tenant_id, self.passwords.load(tenant_id, kind), kind)

    def claim(self, tenant_id: str, kind: UserKind = UserKind.PRODUCER) -> None:
        """Claim the name of the tenant's user for Tenantry. Raises `NotOursError`."""
        self.administration.claim(tenant_id, self.passwords.load(tenant_id, kind), kind)

    def restore(self, state: TenantState) -> None:
        """Create the missing objects of an existing tenant; its password stays."""
        try:
            self.messages.create_partition(state.tenant_id, whose(state))
        except ForeignRowsError as error:
            # The tenant's messages are stored all the same: no need to wait for an operator.
            log.warning("tenant.foreign_rows", error=str(error))
        self.administration.ensure_topology(topology_of(state))
        self.restore_users(state)
        if state.limits.of_the_broker:
            self.restore_limits(state)

    def restore_limits(self, state: TenantState) -> None:
        """Set the tenant's limits on the broker; if it refuses them, go on without them."""
        try:
            self.administration.ensure_limits(topology_of(state), state.limits)
        except BrokerUnavailableError:
            raise
        except BrokerError as error:
            log.warning("tenant.limits_not_in_force", error=str(error))

    def restore_users(self, state: TenantState) -> None:
        """Restore the tenant's users; another owner's user of that name stays as it is."""
        for kind in UserKind:
            if kind is UserKind.CONSUMER and not state.consumer_access:
                continue
            try:
                self.restore_user(state.tenant_id, kind)
            except NotOursError as error:
                # Messages are stored all the same; an operator must settle who may publish.
                log.warning("tenant.user_of_another", error=str(error))

    def restore_user(self, tenant_id: str, kind: UserKind = UserKind.PRODUCER) -> None:
        """Restore the tenant's user, with the password that was shown last."""
        known = self.passwords.load(tenant_id, kind)
        if known is None:
            # A daemon died before the password was confirmed, and so before it was shown.
            self.propose_credentials(tenant_id, kind)
            self.passwords.confirm(tenant_id, kind)
        else:
            self.administration.ensure_user(tenant_id, known, kind)

    def propose_credentials(
        self, tenant_id: str, kind: UserKind = UserKind.PRODUCER
    ) -> Credentials:
        """Give the tenant's user a new password, which is pending until it is confirmed.

        Appending the event about it to the journal confirms it. Until then `restore_user` restores
        the former password.
        """
        credentials, hashed = self.administration.new_credentials(tenant_id, kind)
        self.passwords.propose(tenant_id, hashed, kind)
        failpoints.reach("password_pending")
        self.administration.ensure_user(tenant_id, hashed, kind)
        failpoints.reach("password_set")
        return credentials

    def withdraw_consumer_access(self, tenant_id: str) -> None:
        """Remove the tenant's consuming user, and the queues that it reads."""
        known = self.passwords.load(tenant_id, UserKind.CONSUMER)
        self.administration.remove_user(tenant_id, known, UserKind.CONSUMER)
        self.administration.remove_group(tenant_id)

    def end_sessions(self, tenant_id: str, kind: UserKind = UserKind.PRODUCER) -> None:
        """End the sessions of a former password; a failure is only logged."""
        try:
            self.administration.end_sessions(tenant_id, kind)
        except BrokerError as error:
            log.warning("tenant.sessions_not_ended", error=str(error))

    def remove(self, tenant_id: str, *, retain: bool) -> Removed:
        """Remove all objects; the users go first, so that nothing new comes in or goes out."""
        for kind in (UserKind.CONSUMER, UserKind.PRODUCER):
            known = self.passwords.load(tenant_id, kind)
            self.administration.remove_user(tenant_id, known, kind)
        queued = self.administration.remove_topology(tenant_id)
        return self._remove_the_rest(tenant_id, queued, retain=retain)

    def _remove_the_rest(self, tenant_id: str, queued: int, *, retain: bool) -> Removed:
        self.passwords.remove(tenant_id)
        self.sql_access.revoke(tenant_id)
        stored = self.messages.drop_partition(tenant_id, retain=retain)
        return Removed(queued=queued, stored=stored)

    def clear(self, tenant_id: str, *, retain: bool) -> None:
        """Remove the leftovers of a tenant that does not exist.

        If another owner has taken the user's name, and that user has rights in Tenantry's own
        virtual host, the queues there belong to that user, and stay.
        """
        try:
            self.check_owner(tenant_id)
        except NotOursError as error:
            if error.here:
                self._remove_the_rest(tenant_id, 0, retain=retain)
                return
        self.remove(tenant_id, retain=retain)

    def undo(self, tenant_id: str) -> bool:
        """Remove the objects of a failed provisioning; return whether all are gone."""
        try:
            self.clear(tenant_id, retain=False)
        except (BrokerError, MessageStoreError) as error:
            log.warning("tenant.undo_failed", error=str(error))
            return False
        return True
