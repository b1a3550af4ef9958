"""The port through which an audit reads the database."""

from __future__ import annotations

from typing import Protocol

from tenantry.audit.balance import Account


class CountingTookTooLongError(Exception):
    """A tenant's rows were not counted in the allowed time."""


class Accounts(Protocol):
    """Gives tenants' books, each as of one moment, whatever writes go on meanwhile.

    Raises `StoreUnavailableError`.
    """

    def read(self, tenant_id: str, *, seconds: float | None = None) -> Account | None:
        """Read a tenant's books; None where it has none.

        Its rows are counted, in `seconds` at most (`CountingTookTooLongError`), or left out with
        None.
        """
