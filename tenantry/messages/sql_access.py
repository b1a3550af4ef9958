"""A tenant's access to its own rows with SQL."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlCredentials:
    """A database role's credentials. The password is shown once and stored nowhere."""

    username: str
    password: str = field(repr=False)
    url: str = field(repr=False)


class SqlAccess(Protocol):
    """Gives tenants roles that may read their own rows of `public.messages`, and nothing else.

    Every call is committed when it returns. Raises `StoreUnavailableError`, and `MessageStoreError`
    if the database refuses.
    """

    def granting(self, tenant_id: str) -> AbstractContextManager[SqlCredentials]:
        """Grant a tenant its role; an existing role gets a new password.

        In force, and committed, once the context ends without an error; otherwise nothing changes.
        """

    def revoke(self, tenant_id: str) -> bool:
        """End the role's sessions and drop it; return whether it existed."""
