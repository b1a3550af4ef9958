"""Whom a proof of isolation examines, and what it says when it can't."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from hypothesis import given
from hypothesis import strategies as st

from tenantry.broker.port import BrokerError, Excess, Probe, TenantTopology
from tenantry.isolation.prover import NEIGHBOURS, IsolationProver, neighbours
from tenantry.journal.port import Metadata
from tenantry.messages.sql_access import SqlCredentials
from tests.api.serving import World

BY = Metadata(actor="test")


def names(tenant_id: str) -> TenantTopology:
    return TenantTopology(tenant_id=tenant_id, topics=(), partitions=1)


ids = st.sets(st.text("ab1-", min_size=1, max_size=5), min_size=1, max_size=60)


@given(ids=ids, own=st.text("ab1-", min_size=1, max_size=5))
def test_neighbours_are_others_each_once_and_no_more_than_so_many(ids: set[str], own: str) -> None:
    everybody = [names(one) for one in sorted(ids | {own})]
    chosen = [one.tenant_id for one in neighbours(names(own), everybody)]
    assert len(chosen) == len(set(chosen)) == min(NEIGHBOURS, len(everybody) - 1)
    assert own not in chosen
    alike = [one for one in sorted(ids - {own}) if one.startswith(own) or own.startswith(one)]
    assert set(alike[: NEIGHBOURS // 2]) <= set(chosen)


class NoDatabase:
    """A database in which no roles can be made."""

    def available(self) -> bool:
        return False

    def sweep(self) -> None:
        raise AssertionError

    def probe(self, tenant_id: str) -> SqlCredentials:  # type: ignore[override]
        raise AssertionError

    def excess(self, tenant_id: str) -> list[str]:
        raise AssertionError

    def open(self) -> list[str]:
        return ["advisory locks (a remedy)"]


class LockedBroker:
    """A broker that gives no probe."""

    management_address = None

    def __init__(self) -> None:
        self.swept = 0

    def sweep(self) -> None:
        self.swept += 1

    def several(self) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def probe(self, tenant_id: str) -> Iterator[Probe]:
        raise BrokerError(f"no user for {tenant_id}")
        yield

    def excess(self, tenant_id: str) -> list[Excess]:
        raise AssertionError


def prover(world: World, broker: LockedBroker | None) -> IsolationProver:
    return IsolationProver(
        directory=world.directory,
        journal=world.journal,
        broker=broker,
        database=NoDatabase(),  # type: ignore[arg-type]
    )


def test_who_can_not_be_judged_is_named_and_not_journalled_as_verified() -> None:
    world, broker = World(), LockedBroker()
    world.create("acme")
    made = prover(world, broker)
    head = len(list(world.journal.read_all(after=0, limit=100)))
    report = made.prove(metadata=BY)
    assert report.unjudged == ("tenant acme: no user for acme",)
    assert broker.swept == 1
    latest = made.latest()
    assert latest is not None
    assert (latest.failures, latest.unjudged) == (0, 1)
    assert len(list(world.journal.read_all(after=0, limit=100))) == head


def test_where_no_role_can_be_made_no_tenant_reads_with_sql_and_nothing_is_tried() -> None:
    world = World()
    world.create("acme")
    report = prover(world, LockedBroker()).prove(broker=False, metadata=BY)
    assert report.unjudged == ()
    assert report.checks == ()
    assert report.open == ("advisory locks (a remedy)",)
