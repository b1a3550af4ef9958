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
    """Lets one thread after the other do something for a tenant; others' do theirs beside it.

    The database has a lock for that, too, for all nodes: but who waits there has a connection
    meanwhile, and a tenant with many workers would have nearly all of them.
    """

    def __init__(self, *, patience: float) -> None:
        """Nobody waits for longer than so many seconds."""
        self._patience = patience
        self._guard = threading.Lock()
        self._doors: dict[str, _Door] = {}

    @contextmanager
    def with_tenant(self, tenant_id: str) -> Iterator[None]:
        """Be the only one. Raises `StoreUnavailableError` where others take too long."""
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
