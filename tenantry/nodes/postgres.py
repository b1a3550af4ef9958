"""Nodes in PostgreSQL (`tenantry.nodes.port.Nodes`), beside what is written under their terms."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC
from typing import Any, Final

from psycopg.rows import TupleRow

from tenantry.database.failures import PortErrors
from tenantry.database.pool import Database
from tenantry.nodes.port import Introduction, Node, NodesUnavailableError, Owned
from tenantry.sql import queries
from tenantry.terms.port import Holder, Standing
from tenantry.turns.backlogs import Progress

PATIENCE: Final = 2.0
"""Seconds to wait for a connection."""


class PostgresNodes:
    """The nodes of one database; its sessions write under the caller's term, if they write."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._errors = PortErrors(
            NodesUnavailableError, NodesUnavailableError, where=database.where
        )
        self._sql = queries("nodes")

    def open(self, name: str) -> int:
        """Make the row of a node name, if there is none; give the slot of its fence."""
        return int(self._rows("open", name=name)[0][0])

    def introduce(self, said: Introduction) -> None:
        """Register a node that joins under the term of its name."""
        self._change(
            "introduce",
            name=said.name,
            version=said.version,
            weight=said.weight,
            machine=said.machine,
            socket=said.socket,
            address=said.address,
        )

    def forget_lost(self, seconds: float) -> None:
        """Forget nodes that are lost, and have not been heard of for so long."""
        self._change("forget_lost", seconds=seconds)

    def look(self) -> Sequence[Node]:
        """See `Nodes.look`."""
        return [_node(row) for row in self._rows("look")]

    def counts(self) -> Mapping[str, int]:
        """Count the tenants of each node that has some."""
        return {str(name): int(count) for name, count in self._rows("count_tenants")}

    def report(self, name: str, *, active: bool, rate: float) -> None:
        """See `Nodes.report`."""
        self._change("report", name=name, active=active, rate=rate)

    def tell(self, name: str, progress: Progress) -> None:
        """See `Nodes.tell`."""
        self._change(
            "tell_progress",
            name=name,
            seconds=progress.seconds,
            weight=progress.weight,
            work=progress.work,
            batches=progress.batches,
            held=progress.held,
        )

    def undrain(self, name: str) -> bool:
        """Say that a node is not to be empty; False where there is no such node."""
        return bool(self._rows("set_draining", name=name, draining=False))

    def drain(self, name: str, *, alive: Collection[str]) -> bool:
        """Say that a node is to be empty; False where none of those `alive` could have its tenants.

        One at a time: of two nodes that are the last ones, one stays.
        """
        with (
            self._errors,
            self._database.connection(PATIENCE) as connection,
            connection.transaction(),
        ):
            connection.execute(self._sql["hold"])
            others = {"name": name, "alive": sorted(alive)}
            if connection.execute(self._sql["others"], others).fetchone() is None:
                return False
            connection.execute(self._sql["set_draining"], {"name": name, "draining": True})
        return True

    def bury(self, name: str, seen: Standing) -> bool:
        """See `Nodes.bury`."""
        return bool(self._rows("bury", name=name, number=seen.number, beat=seen.beat)[0][0])

    def leave(self, name: str, number: int) -> None:
        """See `Nodes.leave`."""
        self._rows("leave", name=name, number=number)

    def owned(self, name: str) -> Sequence[Owned]:
        """See `Nodes.owned`."""
        return [_owned(row, name) for row in self._rows("owned", name=name)]

    def unowned(self) -> Mapping[str, str | None]:
        """See `Nodes.unowned`."""
        return dict(self._rows("unowned"))

    def claim(self, name: str, tenant_ids: Collection[str]) -> Sequence[Owned]:
        """See `Nodes.claim`."""
        rows = self._rows("claim", name=name, ids=sorted(tenant_ids))
        return [_owned(row, name) for row in rows]

    def hand_over(self, tenant_id: str, *, source: str, target: str | None) -> int | None:
        """See `Nodes.hand_over`."""
        row = self._rows("hand_over", tenant=tenant_id, source=source, target=target)[0]
        return None if row[0] is None else int(row[0])

    def let_go(self, name: str, tenant_ids: Collection[str]) -> None:
        """See `Nodes.let_go`."""
        self._change("let_go", ids=sorted(tenant_ids), name=name)

    def owners(self, tenant_ids: Collection[str]) -> Mapping[str, Owned]:
        """See `Nodes.owners`."""
        rows = self._rows("owners", ids=sorted(tenant_ids))
        return {row[0]: _owned((row[0], *row[2:]), row[1]) for row in rows}

    def want(self, tenant_id: str, node: str | None) -> None:
        """Choose a tenant's node; with None, placement does."""
        self._change("want", tenant=tenant_id, node=node)
        self._rows("tell", name=node or "")

    def _rows(self, query: str, **parameters: Any) -> list[TupleRow]:
        with self._errors, self._database.connection(PATIENCE) as connection:
            return connection.execute(self._sql[query], parameters).fetchall()

    def _change(self, query: str, **parameters: Any) -> None:
        with self._errors, self._database.connection(PATIENCE) as connection:
            connection.execute(self._sql[query], parameters)


def _node(row: TupleRow) -> Node:
    name, version, weight, machine, socket, address, active, draining, rate, joined_at = row[:10]
    number, beat, held, instance, host, pid, since, heard = row[10:18]
    seconds, weighed, worked, batches, held_back = row[18:]
    return Node(
        introduction=Introduction(
            name=name,
            version=version,
            weight=weight,
            machine=machine,
            socket=socket,
            address=address,
        ),
        active=active,
        draining=draining,
        rate=rate,
        joined_at=joined_at.astimezone(UTC),
        standing=Standing(
            number=number,
            beat=beat,
            held=held,
            holder=Holder(instance=instance, host=host, pid=pid),
            since=since.astimezone(UTC),
        ),
        heard=heard,
        progress=Progress(
            seconds=seconds, weight=weighed, work=worked, batches=batches, held=held_back
        ),
    )


def _owned(row: TupleRow, node: str | None) -> Owned:
    tenant_id, epoch, wanted, previous = row
    return Owned(tenant_id=tenant_id, node=node, epoch=epoch, wanted=wanted, previous=previous)
