"""The comparison if retention removes stored messages: their ids are remembered."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Set as AbstractSet
from typing import Any

import psycopg

from tests.ledger.audit import Audit, Findings, Key
from tests.ledger.entries import Sent

_COUNTED = """
SELECT c.stored, c.removed + coalesce(r.by_age + r.by_rows, 0)
FROM tenantry.tenant_counters AS c
LEFT JOIN tenantry.removals AS r ON r.tenant_id = c.tenant_id COLLATE "C" WHERE c.tenant_id = %s
"""


class RemovingAudit(Audit):
    """Counts a removed message as stored once; the key of each message must be its id."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._removed: set[Key] = set()

    @property
    def stored(self) -> int:
        return len(self._rows.keys() | self._removed)

    def follow(self, sent: Sent) -> int:
        super().follow(sent)
        with psycopg.connect(self._database_url) as connection:
            for tenant_id in sent.tenants:
                known = self._rows.keys() | self._removed
                unseen = [one for one in sent.keys(tenant_id) if (tenant_id, one) not in known]
                self._removed |= _remembered(connection, tenant_id, unseen)
        return self.stored

    def missing(self, confirmed: AbstractSet[Key]) -> set[Key]:
        return super().missing(confirmed) - self._removed

    def _count(self, sent: Sent, found: Findings) -> None:
        """Check that no message is both a row and removed, and that the counts agree."""
        with psycopg.connect(self._database_url) as connection:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            for tenant_id in sent.tenants:
                rows = connection.execute(
                    "SELECT id FROM public.messages WHERE tenant_id = %s", [tenant_id]
                ).fetchall()
                there = {(tenant_id, one) for (one,) in rows}
                gone = _remembered(connection, tenant_id, sent.keys(tenant_id))
                found.doubled += [(*one, "removed, and a row") for one in sorted(there & gone)]
                counted = connection.execute(_COUNTED, [tenant_id]).fetchone()
                if counted != (len(there | gone), len(gone)):
                    found.unexpected.append(
                        (tenant_id, "stored, removed", counted, len(there | gone), len(gone))
                    )


def _remembered(
    connection: psycopg.Connection[Any], tenant_id: str, ids: Collection[str]
) -> set[Key]:
    found = connection.execute(
        "SELECT tenantry.remembered_of(%s, %s::text[])", [tenant_id, list(ids)]
    )
    return {(tenant_id, one) for (one,) in found}
