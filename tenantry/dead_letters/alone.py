"""One thread at a time for each tenant."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tenantry.messages.port import StoreUnavailableError


@dataclass(slots=True)
class _Door:
    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0


class Alone:
    """A lock for each tenant, with a timeout; threads of different tenants do not wait.

    The database has such a lock as well, for all nodes. But a thread that waits there holds a
    connection, and a tenant with many workers would hold nearly all of them.
    """

    def __init__(self, *, patience: float) -> None:
        """`patience` is the longest wait, in seconds."""
        self._patience = patience
        self._guard = threading.Lock()
        self._doors: dict[str, _Door] = {}

    @contextmanager
    def with_tenant(self, tenant_id: str) -> Iterator[None]:
        """Hold the tenant's lock. Raises `StoreUnavailableError` if that takes too long."""
        with self._guard:
            door = self._doors.setdefault(tenant_id, _Door())
            door.users += 1
        try:
            if not door.lock.acquire(timeout=self._patience):
                raise StoreUnavailableError(
                    f"the dead letters of tenant {tenant_id!r} are being worked on by others"
                )
            try:
                yield
            finally:
                door.lock.release()
        finally:
            with self._guard:
                door.users -= 1
                if not door.users:
                    del self._doors[tenant_id]
