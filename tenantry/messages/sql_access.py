"""A tenant's way to its own rows with SQL."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlCredentials:
    """A database role's way in. The password is shown once and kept nowhere."""

    username: str
    password: str = field(repr=False)
    url: str = field(repr=False)


class SqlAccess(Protocol):
    """Gives tenants roles that may read their own rows of `public.messages`, and nothing else.

    Every call is committed when it returns. Raises `StoreUnavailableError`, and
    `MessageStoreError` where the database refuses.
    """

    def granting(self, tenant_id: str) -> AbstractContextManager[SqlCredentials]:
        """Give a tenant its role; one it has already gets a new password.

        In force, and committed, once the context ends without an error; otherwise nothing changes.
        """

    def revoke(self, tenant_id: str) -> bool:
        """End the role's sessions and drop it; tell whether there was one."""
