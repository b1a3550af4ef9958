"""Which figures must be equal, and the differences between them. Pure: no side effects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from tenantry.broker.port import QueueCounts


class Kind(StrEnum):
    """Which figures differ."""

    COUNTS = "counts"
    ROWS = "rows"
    DEAD_LETTERS = "dead_letters"
    DEAD_LETTER_QUEUE = "dead_letter_queue"
    IN_FLIGHT = "in_flight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A tenant's books at one moment: its counts, and what the database really holds.

    Counts are since the tenant's creation. `position` is the last position given out. `removed`
    counts rows removed on purpose: `aged` of them were too old for the tenant's limits, `crowded`
    too many. `kept` dead letters were listed once; they are still `listed`, or were `replayed`,
    `discarded` or found `missing` from the queue; `settled` ones wait to leave the queue. `rows`
    and `newest` (their highest position) are None where they were not counted.
    """

    tenant_id: str
    position: int
    stored: int
    duplicates: int
    dead_lettered: int
    removed: int
    kept: int
    replayed: int
    discarded: int
    missing: int
    listed: int
    settled: int
    rows: int | None = None
    newest: int | None = None
    aged: int = 0
    crowded: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Two figures that should be equal; `text` describes the difference for people."""

    kind: Kind
    expected: int
    found: int
    text: str

    @property
    def size(self) -> int:
        """By how much they differ."""
        return abs(self.expected - self.found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The outcome of a tenant's audit.

    `queues` is None where the broker could not be asked, `in_flight` where the tenant has no
    actors. `moving`: broker and books never stood still together, and were not compared.
    `uncounted` is the reason why the rows were not counted, if they were not.
    """

    account: Account
    queues: QueueCounts | None
    in_flight: int | None
    differences: tuple[Difference, ...]
    moving: bool = False
    uncounted: str | None = None

    @property
    def tenant_id(self) -> str:
        """The tenant that was audited."""
        return self.account.tenant_id

    @property
    def balanced(self) -> bool:
        """Whether there are no differences."""
        return not self.differences

    @property
    def accepted(self) -> int:
        """Messages taken from the broker: finished, or in flight."""
        account = self.account
        ended = account.stored + account.duplicates + account.dead_lettered
        return ended + (self.in_flight or 0)


def of_books(account: Account) -> Iterator[Difference]:
    """Compare a tenant's counts with its rows and its list of dead letters."""
    tenant = account.tenant_id
    given, used = account.position, account.stored + account.duplicates
    if given != used:
        yield Difference(
            kind=Kind.COUNTS,
            expected=given,
            found=used,
            text=f"the counts of tenant {tenant} disagree: {given} positions were given out, to "
            f"{account.stored} stored and {account.duplicates} duplicates",
        )
    if account.rows is not None:
        yield from _rows(account, account.rows)
    expected = account.kept - account.replayed - account.discarded - account.missing
    if account.listed != expected:
        change = _words(account.listed - expected, "dead letter", tenant)
        yield Difference(
            kind=Kind.DEAD_LETTERS,
            expected=expected,
            found=account.listed,
            text=f"{change}: counted {expected}, {account.listed} are listed",
        )


def of_broker(account: Account, queues: QueueCounts, in_flight: int | None) -> Iterator[Difference]:
    """Compare a tenant's books with its queues.

    The two are never read at the same moment: a difference counts only if all figures stand still.
    """
    tenant = account.tenant_id
    there, most = queues.dead_letters, account.listed + account.settled
    if not account.listed <= there <= most:
        expected = account.listed if there < account.listed else most
        change = _words(there - expected, "dead letter", tenant, "in the queue")
        yield Difference(
            kind=Kind.DEAD_LETTER_QUEUE,
            expected=expected,
            found=there,
            text=f"{change}: {account.listed} are listed, {there} are in the queue",
        )
    # The broker may count more than the daemon's deliveries: the tenant's user may consume too.
    if in_flight is not None and in_flight > queues.unsettled:
        yield Difference(
            kind=Kind.IN_FLIGHT,
            expected=queues.unsettled,
            found=in_flight,
            text=f"the daemon holds {in_flight} deliveries of tenant {tenant}, of which the broker "
            f"knows {queues.unsettled}",
        )


def _rows(account: Account, rows: int) -> Iterator[Difference]:
    expected = account.stored - account.removed
    removed = f" less {account.removed} removed" if account.removed else ""
    if rows != expected:
        change = _words(rows - expected, "row", account.tenant_id)
        yield Difference(
            kind=Kind.ROWS,
            expected=expected,
            found=rows,
            text=f"{change}: counted {account.stored} stored{removed}, {rows} rows",
        )
    if account.newest is not None and account.newest > account.position:
        yield Difference(
            kind=Kind.ROWS,
            expected=account.position,
            found=account.newest,
            text=f"tenant {account.tenant_id} has a row at position {account.newest}, and "
            f"{account.position} was the last one given out",
        )


def _words(change: int, what: str, tenant: str, where: str = "") -> str:
    """Describe how many are missing, or too many."""
    count = abs(change)
    these = f"{count} {what}{'' if count == 1 else 's'} of tenant {tenant}"
    verb = "is" if count == 1 else "are"
    state = "missing" if change < 0 else "too many"
    return f"{these} {verb} {state}{f' {where}' if where else ''}"
