"""What the API stands on, in memory, as tests want it: it remembers, and fails when told."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from tenantry.audit.balance import Account
from tenantry.audit.port import CountingTookTooLongError
from tenantry.broker.port import (
    BrokerError,
    Credentials,
    DeadLettersBusyError,
    Outgoing,
    QueueCounts,
    QueuedDeadLetter,
)
from tenantry.control.port import (
    ActorStatus,
    Outcome,
    Readiness,
    SystemState,
    SystemStatus,
    TenantRuntime,
)
from tenantry.domain import names
from tenantry.domain.commands import (
    Command,
    ConfirmDeleted,
    ConfirmProvisioned,
    CreateTenant,
    GrantConsumerAccess,
    GrantSqlAccess,
    RequestDeletion,
    RotateCredentials,
)
from tenantry.domain.tenant import TenantState, decide
from tenantry.isolation.port import IsolationReport
from tenantry.journal.parts import NoSuchPartError, Part
from tenantry.journal.port import Metadata
from tenantry.messages.port import FIRST, Order, PartitionMissingError, StoredMessage, Whose, whose
from tenantry.messages.sql_access import SqlCredentials
from tenantry.metrics.statistics import Note, Slot
from tests.fakes.stores import InMemoryEventStore, InMemoryTenantDirectory


class FakeControl:
    """Decides and records commands; its actors do nothing."""

    def __init__(self, journal: InMemoryEventStore, directory: InMemoryTenantDirectory) -> None:
        self._journal = journal
        self._directory = directory
        self._lock = threading.Lock()
        self.error: Exception | None = None
        self.held: threading.Event | None = None
        self.entered = threading.Semaphore(0)
        self.metadata: list[Metadata] = []
        self.system = SystemStatus(
            state=SystemState.RUNNING,
            ready=True,
            reasons=(),
            started_at=datetime(2026, 1, 31, 12, tzinfo=UTC),
            version="0.1.0",
            pid=4711,
            tree=ActorStatus(
                name="supervisor", kind="Supervisor", state="running", mailbox=0, restarts=0
            ),
        )
        self.pending: dict[str, int] = {}
        self.stored: dict[str, int] = {}
        self.trouble: dict[str, str] = {}
        self.deaf = False
        self.ailments: tuple[str, ...] = ()
        self.pings = 0

    def execute(self, command: Command, *, metadata: Metadata, timeout: float) -> Outcome:
        self.entered.release()
        if self.held is not None:
            self.held.wait(timeout)
        if self.error is not None:
            raise self.error
        with self._lock:
            self.metadata.append(metadata)
            state = self._take(command, metadata)
            if isinstance(command, CreateTenant):
                state = self._take(ConfirmProvisioned(tenant_id=command.tenant_id), metadata)
            if isinstance(command, RequestDeletion):
                done = ConfirmDeleted(tenant_id=command.tenant_id, queued=1, stored=2)
                state = self._take(done, metadata)
        fresh = isinstance(command, CreateTenant | RotateCredentials | GrantConsumerAccess)
        return Outcome(
            tenant=state,
            runtime=self.runtime(state.tenant_id),
            credentials=Credentials(
                username=names.username(state.tenant_id),
                password="shown once",
                amqp_url="amqp://localhost",
            )
            if fresh
            else None,
            sql_credentials=SqlCredentials(
                username=f"tenant_{state.tenant_id}_sql_1",
                password="shown once",
                url="postgresql://localhost",
            )
            if isinstance(command, GrantSqlAccess)
            else None,
        )

    def _take(self, command: Command, metadata: Metadata) -> TenantState:
        tenant_id = command.tenant_id
        state = self._directory.get(tenant_id)
        events = decide(state, command)
        self._journal.append(
            names.journal_stream(tenant_id),
            events,
            expected=0 if state is None else state.version,
            metadata=metadata,
        )
        after = self._directory.get(tenant_id)
        assert after is not None
        return after

    def status(self) -> SystemStatus:
        return self.system

    def readiness(self) -> Readiness:
        ready, reasons = self.system.ready, self.system.reasons
        return Readiness(state=self.system.state, reasons=() if ready else reasons or ("unready",))

    def runtime(self, tenant_id: str) -> TenantRuntime | None:
        state = self._directory.get(tenant_id)
        if state is None or not state.exists:
            return None
        return TenantRuntime(
            tenant_id=tenant_id,
            workers_current=state.workers,
            consuming=True,
            unsettled=0,
            held=0,
            rate=0.0,
            pending=self.pending.get(tenant_id),
            stored=self.stored.get(tenant_id, 0),
            duplicates=0,
            dead_lettered=0,
            parked=None,
            trouble=self.trouble.get(tenant_id),
            incarnation=state.incarnation,
        )

    def runtimes(self) -> Mapping[str, TenantRuntime]:
        return self.system.tenants

    def liveness(self) -> tuple[str, ...]:
        return self.ailments

    def ping(self) -> Future[None]:
        self.pings += 1
        answer: Future[None] = Future()
        if not self.deaf:
            answer.set_result(None)
        return answer

    def drain(self) -> None:
        self.system = replace(
            self.system, state=SystemState.DRAINING, ready=False, reasons=("draining",)
        )

    def stop(self) -> None:
        self.system = replace(self.system, state=SystemState.STOPPING, ready=False)


class FakePublishing:
    """Confirms everything and remembers it, or raises `error`."""

    singly = True

    def __init__(self) -> None:
        self.sent: list[Outgoing] = []
        self.error: Exception | None = None

    def publish(self, messages: Sequence[Outgoing], *, timeout: float) -> None:
        if self.error is not None:
            raise self.error
        self.sent.extend(messages)


class FakeBrowser:
    """Browses a list of messages."""

    def __init__(self, queue: list[QueuedDeadLetter]) -> None:
        self._queue = queue
        self._there = list(queue)
        self._given: list[QueuedDeadLetter] = []
        self.gone = False
        self.complete = True

    def next(self, most: int) -> list[QueuedDeadLetter]:
        self._given, self._there = self._there[:most], self._there[most:]
        return list(self._given)

    def remove(self, indexes: Collection[int]) -> None:
        for index in indexes:
            here = next(at for at, one in enumerate(self._queue) if one is self._given[index])
            del self._queue[here]


class FakeDeadLetters:
    """Dead-letter queues that are lists."""

    def __init__(self) -> None:
        self.queues: dict[str, list[QueuedDeadLetter]] = {}
        self.error: Exception | None = None
        self.gone = True
        self.walked: set[str] = set()
        """Tenants along whose letters somebody else walks."""
        self.refused = threading.Semaphore(0)

    @contextmanager
    def browse(self, tenant_id: str) -> Iterator[FakeBrowser]:
        if self.error is not None:
            raise self.error
        if tenant_id in self.walked:
            self.refused.release()
            raise DeadLettersBusyError(f"the dead letters of {tenant_id} are being walked along")
        browser = FakeBrowser(self.queues.setdefault(tenant_id, []))
        yield browser
        browser.gone = self.gone

    def queue_counts(self) -> dict[str, QueueCounts]:
        return {
            tenant_id: QueueCounts(dead_letters=len(queue))
            for tenant_id, queue in self.queues.items()
        }


class FakeMessages:
    """Rows to be read."""

    def __init__(self, directory: InMemoryTenantDirectory) -> None:
        self._directory = directory
        self.rows: dict[str, list[StoredMessage]] = {}
        self.retained: dict[tuple[str, int], list[StoredMessage]] = {}
        self.error: Exception | None = None

    def vacate(self, former: TenantState) -> None:
        """Put aside what the former tenant of an id had, as the database does."""
        rows = self.rows.pop(former.tenant_id, [])
        if former.retained:
            self.retained[former.tenant_id, former.incarnation] = rows

    def whose(self, tenant_id: str) -> Whose:
        state = self._directory.get(tenant_id)
        return FIRST if state is None else whose(state)

    def add(self, tenant_id: str, **fields: Any) -> StoredMessage:
        rows = self.rows.setdefault(tenant_id, [])
        given: dict[str, Any] = {
            "id": f"m-{len(rows) + 1}",
            "topic": "default",
            "partition": 0,
            "payload": "{}",
            "body": None,
            "content_type": "application/json",
            "headers": None,
        } | fields
        row = StoredMessage(
            tenant_id=tenant_id,
            position=len(rows) + 1,
            published_at=None,
            created_at=datetime(2026, 1, 31, 12, tzinfo=UTC),
            **given,
        )
        rows.append(row)
        return row

    def page(
        self,
        tenant_id: str,
        *,
        topic: str | None = None,
        after: int | None = None,
        limit: int = 50,
        order: Order = Order.ASCENDING,
        retained: int | None = None,
    ) -> list[StoredMessage]:
        if self.error is not None:
            raise self.error
        up = order is Order.ASCENDING
        if retained is None:
            rows = self.rows.get(tenant_id, [])
        elif (tenant_id, retained) in self.retained:
            rows = self.retained[tenant_id, retained]
        else:
            raise PartitionMissingError(f"{tenant_id}, {retained}")
        return [
            row
            for row in (rows if up else reversed(rows))
            if (topic is None or row.topic == topic)
            and (after is None or (row.position > after if up else row.position < after))
        ][:limit]


class FakeAccounts:
    """Books in which nothing has happened yet, until a test puts others in."""

    def __init__(self, directory: InMemoryTenantDirectory) -> None:
        self._directory = directory
        self.books: dict[str, Account] = {}
        self.slow: set[str] = set()

    def read(self, tenant_id: str, *, seconds: float | None = None) -> Account | None:
        if self._directory.get(tenant_id) is None:
            return None
        if seconds is not None and tenant_id in self.slow:
            raise CountingTookTooLongError(f"the rows of tenant {tenant_id} are too many")
        known = self.books.get(tenant_id) or empty_account(tenant_id)
        return known if seconds is not None else replace(known, rows=None, newest=None)


class FakeQueues:
    """Queues that hold what a test says."""

    def __init__(self) -> None:
        self.counts: dict[str, QueueCounts] = {}
        self.error: BrokerError | None = None

    def queue_counts(self) -> dict[str, QueueCounts]:
        if self.error is not None:
            raise self.error
        return self.counts


def empty_account(tenant_id: str, **figures: int) -> Account:
    names = (
        "position", "stored", "duplicates", "dead_lettered", "removed", "kept", "replayed",
        "discarded", "missing", "listed", "settled", "rows", "newest", "aged", "crowded",
    )  # fmt: skip
    return Account(tenant_id=tenant_id, **(dict.fromkeys(names, 0) | figures))


class FakeStatistics:
    """Statistics as a test has put them in, by tenant and whether they are by hours."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 31, 12, 0, 30, tzinfo=UTC)
        self.slots: dict[tuple[str, bool], list[Slot]] = {}

    def note(self, at: datetime, notes: Mapping[str, Note]) -> None:
        raise AssertionError("the API only reads")

    def read(
        self, tenant_id: str, *, hourly: bool, start: datetime, end: datetime
    ) -> Sequence[Slot]:
        found = self.slots.get((tenant_id, hourly), [])
        return [one for one in found if start <= one.at < end]


class FakeParts:
    """The parts of a journal as a test has put them in; nothing becomes of them."""

    def __init__(self) -> None:
        self.parts: list[Part] = []

    def listed(self) -> list[Part]:
        return self.parts

    def begin(self, most: int) -> int | None:
        return None

    def lines(self, part: int, *, after: int = 0, limit: int = 1) -> list[tuple[int, str]]:
        raise NoSuchPartError(part)

    def archive(self, part: int, *, digest: str, archive: str, metadata: Metadata) -> Part:
        raise NoSuchPartError(part)

    def put_back(self, part: int, lines: Sequence[str], *, after: int) -> int:
        raise NoSuchPartError(part)

    def restore(self, part: int, metadata: Metadata) -> Part:
        raise NoSuchPartError(part)


class FakeProver:
    """Gives the report a test has put in, and remembers what it was asked."""

    def __init__(self) -> None:
        self.report = IsolationReport(checks=())
        self.asked: list[tuple[list[str] | None, bool]] = []

    def prove(
        self, tenant_ids: Sequence[str] | None = None, *, broker: bool = True, metadata: Metadata
    ) -> IsolationReport:
        self.asked.append((None if tenant_ids is None else list(tenant_ids), broker))
        return self.report


class MemoryIdempotencyKeys:
    """Keys that are forgotten with the process, and the oldest of very many before."""

    def __init__(self, most: int = 10_000) -> None:
        self._most = most
        self._kept: dict[bytes, dict[bytes, bytes]] = {}
        self._lock = threading.Lock()

    def claim(self, owner: bytes, key: bytes, fingerprint: bytes) -> bool:
        with self._lock:
            own = self._kept.setdefault(owner, {})
            kept = own.setdefault(key, fingerprint)
            while len(own) > self._most:
                del own[next(iter(own))]
            return kept == fingerprint
