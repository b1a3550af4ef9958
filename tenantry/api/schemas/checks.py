"""Audits and proofs of isolation: what is asked for, and what they have found."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field

from tenantry.api.schemas.common import (
    Answer,
    Cursor,
    PageQuery,
    StrictInput,
    StrictQuery,
    values_of,
)
from tenantry.audit.balance import Audit, Kind
from tenantry.isolation.port import IsolationReport

Quick: TypeAlias = Annotated[bool, Field(description="Count no rows; everything else is compared.")]


class AuditQuery(StrictQuery):
    """How thoroughly a tenant is audited."""

    quick: Quick = False


class AuditsQuery(PageQuery):
    """Which tenants are audited, and how thoroughly."""

    quick: Quick = False


class LetterBooks(Answer):
    """A tenant's dead letters since its creation: `kept` less the other three are `listed`."""

    kept: int = Field(description="Ever listed.", examples=[3])
    replayed: int = Field(examples=[1])
    discarded: int = Field(examples=[1])
    missing: int = Field(description="Listed, and found gone from the queue.", examples=[0])
    listed: int = Field(description="Listed now.", examples=[1])
    queued: int | None = Field(
        description="In the queue now; null where the broker can't be asked.", examples=[1]
    )


class RemovedMessages(Answer):
    """Stored messages that the tenant's retention removed, by the limit that they exceeded."""

    age: int = Field(description="Too old.", examples=[120])
    rows: int = Field(description="Too many.", examples=[0])


class AuditDifference(Answer):
    """Two figures that should be equal."""

    kind: str = Field(json_schema_extra=values_of(Kind))
    expected: int = Field(examples=[1000])
    found: int = Field(examples=[997])
    text: str = Field(examples=["3 rows of tenant acme are missing: counted 1000 stored, 997 rows"])


class TenantAudit(Answer):
    """A tenant's counts since its creation, compared with what is there."""

    tenant_id: str = Field(examples=["acme"])
    balanced: bool = Field(description="It adds up.")
    accepted: int = Field(
        description="stored + duplicates + dead_lettered + in_flight", examples=[1010]
    )
    stored: int = Field(examples=[1000])
    duplicates: int = Field(examples=[7])
    dead_lettered: int = Field(examples=[3])
    in_flight: int | None = Field(
        description="Taken, not yet acknowledged; null without actors.", examples=[0]
    )
    waiting: int | None = Field(
        description="Ready in the queues; null where the broker can't be asked."
    )
    removed: int = Field(description="Rows taken away on purpose.", examples=[120])
    removed_by: RemovedMessages
    rows: int | None = Field(description="Null where not counted.", examples=[997])
    dead_letters: LetterBooks
    differences: list[AuditDifference]
    moving: bool = Field(
        description="Books and queues never stood still together; these go uncompared."
    )
    uncounted: str | None = Field(description="Why the rows were not counted.")

    @classmethod
    def of(cls, found: Audit) -> Self:
        """Describe what an audit has found."""
        account, queues = found.account, found.queues
        return cls.made_of(
            account,
            balanced=found.balanced,
            accepted=found.accepted,
            in_flight=found.in_flight,
            waiting=None if queues is None else queues.ready,
            removed_by=RemovedMessages(age=account.aged, rows=account.crowded),
            dead_letters=LetterBooks.made_of(
                account, queued=None if queues is None else queues.dead_letters
            ),
            differences=found.differences,
            moving=found.moving,
            uncounted=found.uncounted,
        )


class AuditPage(Answer):
    """Audits of tenants, by id; `next_cursor` is null on the last page."""

    balanced: bool = Field(description="All on this page adds up.")
    data: list[TenantAudit]
    next_cursor: Cursor


class ProofWanted(StrictInput):
    """Whose isolation is to be proven, and where."""

    tenants: list[str] | None = Field(
        default=None, description="All, if none is named.", max_length=1000
    )
    broker: bool = Field(default=True, description="Also on the broker, not only in the database.")


class IsolationCheck(Answer):
    """One attempt: a probe in the tenant's place tried to reach what belongs to the owner."""

    tenant: str = Field(validation_alias="tenant_id", examples=["acme"])
    owner: str = Field(examples=["globex"])
    action: Literal["write", "read", "configure"]
    target: str = Field(examples=["tenant_globex_stream"])
    allowed: bool = Field(examples=[False])
    holds: bool = Field(description="It went as it should.", examples=[True])


class Isolation(Answer):
    """A proof that each tenant reaches its own and no other's."""

    isolated: bool
    leaks: list[str] = Field(description="What was possible and must not be.")
    denials: list[str] = Field(description="What was refused and must not be.")
    unjudged: list[str] = Field(description="Of whom there is no verdict, and why.")
    open: list[str] = Field(
        description="What the database leaves open to every role, and how it is closed."
    )
    checks: list[IsolationCheck]

    @classmethod
    def of(cls, report: IsolationReport) -> Self:
        """Describe a proof."""
        return cls.made_of(
            report,
            isolated=report.holds and not report.unjudged,
            leaks=[str(one) for one in report.leaks],
            denials=[str(one) for one in report.denials],
        )
