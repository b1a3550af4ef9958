"""The auditor: reads books, rows and queues, and reports differences."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Final

import structlog

from tenantry.audit.balance import Account, Audit, Difference, of_books, of_broker
from tenantry.audit.port import Accounts, CountingTookTooLongError
from tenantry.broker.port import BrokerError, QueueCounts, Queues
from tenantry.projections.port import TenantDirectory

log = structlog.get_logger(__name__)

SECONDS: Final = 60.0
"""How long reading and counting may take for all tenants of one call."""

STILL: Final = 6.0
"""Seconds that books and queues must stand still to be compared: the broker's counts are 5 old."""

PATIENCE: Final = 13.0
"""Seconds after which figures that never stood still are left uncompared."""

PAUSE: Final = 1.0
PAGE: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Latest:
    """The outcome of a tenant's latest audit; `at` is seconds since 1970."""

    difference: int
    at: float


@dataclass(eq=False, slots=True)
class Auditor:
    """Audits tenants. Callable from any thread; remembers the latest outcomes.

    `in_flight` returns how many of a tenant's deliveries the daemon holds; None without actors.
    """

    accounts: Accounts
    queues: Queues
    in_flight: Callable[[str], int | None]
    _: KW_ONLY
    still: float = STILL
    patience: float = PATIENCE
    pause: float = PAUSE
    seconds: float = SECONDS
    _stopping: threading.Event = field(default_factory=threading.Event, init=False)
    _latest: dict[str, Latest] = field(default_factory=dict, init=False)

    def audit(self, tenant_ids: Sequence[str], *, quick: bool = False) -> list[Audit]:
        """Audit tenants, in the order given; a tenant without books is left out.

        If reading takes too long, later tenants are left out too, for another call. The first is
        always included. `quick` counts no rows. Raises `StoreUnavailableError`.
        """
        until = time.monotonic() + self.seconds
        read: dict[str, Audit] = {}
        for tenant_id in tenant_ids:
            left = until - time.monotonic()
            if read and left <= self.seconds / 10:
                break
            found = self._books(tenant_id, None if quick else max(left, 1.0))
            if found is not None:
                read[tenant_id] = found
        self._compare_with_broker(read)
        for tenant_id, one in read.items():
            self._note(tenant_id, one, quick=quick)
        return list(read.values())

    def audit_all(
        self,
        directory: TenantDirectory,
        *,
        mine: Callable[[str], bool] = lambda _: True,
        go_on: Callable[[], None] = lambda: None,
    ) -> None:
        """Audit every existing tenant that is `mine`; call `go_on` every minute or so.

        Raises as `audit`, and `JournalUnavailableError`.
        """
        after: str | None = None
        existing: list[str] = []
        while page := directory.page(after=after, limit=PAGE):
            after = page[-1].tenant_id
            ids = [state.tenant_id for state in page if mine(state.tenant_id)]
            existing += ids
            while ids and not self._stopping.is_set():
                go_on()
                done = [one.tenant_id for one in self.audit(ids)]
                ids = [one for one in ids if done and one > done[-1]]
        for gone in self._latest.keys() - set(existing):
            self._latest.pop(gone, None)

    def latest(self) -> Mapping[str, Latest]:
        """Return the outcome of each tenant's latest audit that counted its rows."""
        return self._latest.copy()

    def stop(self) -> None:
        """End all waits."""
        self._stopping.set()

    def _books(self, tenant_id: str, seconds: float | None) -> Audit | None:
        uncounted = None if seconds is not None else "not asked for"
        try:
            account = self.accounts.read(tenant_id, seconds=seconds)
        except CountingTookTooLongError as error:
            uncounted = str(error)
            account = self.accounts.read(tenant_id)
        if account is None:
            return None
        return Audit(
            account=account,
            queues=None,
            in_flight=self.in_flight(tenant_id),
            differences=tuple(of_books(account)),
            uncounted=uncounted,
        )

    def _compare_with_broker(self, audits: dict[str, Audit]) -> None:
        """Compare with the queues, and look again until differing figures have stood still.

        Books and queues can't be read at one moment; most differences are messages on their way.
        """
        waiting = set(audits)
        stood: dict[str, tuple[object, float]] = {}
        began = time.monotonic()
        while waiting:
            try:
                counts = self.queues.queue_counts()
            except BrokerError as error:
                log.warning("audit.without_broker", error=str(error))
                return
            now = time.monotonic()
            for tenant_id in list(waiting):
                queues = counts.get(tenant_id, QueueCounts())
                found, figures, in_flight = self._look(tenant_id, queues)
                audits[tenant_id] = replace(audits[tenant_id], queues=queues, in_flight=in_flight)
                before = stood.get(tenant_id)
                if before is None or before[0] != figures:
                    stood[tenant_id] = figures, now
                if not found:
                    waiting.discard(tenant_id)
                elif now - stood[tenant_id][1] >= self.still:
                    books = audits[tenant_id].differences
                    audits[tenant_id] = replace(audits[tenant_id], differences=(*books, *found))
                    waiting.discard(tenant_id)
            if waiting and (now - began > self.patience or self._stopping.wait(self.pause)):
                break
        for tenant_id in waiting:
            audits[tenant_id] = replace(audits[tenant_id], moving=True)

    def _look(
        self, tenant_id: str, queues: QueueCounts
    ) -> tuple[tuple[Difference, ...], object, int | None]:
        account: Account | None = self.accounts.read(tenant_id)
        in_flight = self.in_flight(tenant_id)
        if account is None:  # deleted meanwhile
            return (), None, in_flight
        return tuple(of_broker(account, queues, in_flight)), (account, queues, in_flight), in_flight

    def _note(self, tenant_id: str, audit: Audit, *, quick: bool) -> None:
        for difference in audit.differences:
            log.error(
                "audit.difference",
                tenant=tenant_id,
                kind=difference.kind.value,
                expected=difference.expected,
                found=difference.found,
                difference=difference.text,
            )
        if not quick and audit.uncounted is None:
            size = sum(one.size for one in audit.differences)
            self._latest[tenant_id] = Latest(difference=size, at=time.time())
