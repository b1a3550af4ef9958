"""Keeps a node's backlogs in balance with those of other nodes: all tell how far they have come."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import Final

import structlog

from tenantry.nodes.membership import Membership
from tenantry.nodes.port import Nodes, NodesUnavailableError
from tenantry.turns.backlogs import Backlogs, Progress
from tenantry.turns.balance import Balance

log: Final = structlog.get_logger("nodes")

HOLD_FOR: Final = 5.0
"""Seconds after which backlogs are held no longer, unless they are held anew."""


class Balancing:
    """Tells the other nodes of this one's backlogs, and holds these for the others' sake."""

    def __init__(
        self,
        nodes: Nodes,
        membership: Membership,
        backlogs: Backlogs,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._nodes = nodes
        self._membership = membership
        self._backlogs = backlogs
        self._now = now
        self._balance = Balance()
        self._held = False
        """Whether backlogs are held, and not by way of trial."""
        self._told = 0.0
        self._telling = False

    def turn(self) -> None:
        """Compare, hold, and tell. To be called after each look at the nodes."""
        membership, balance = self._membership, self._balance
        others = {
            node.name: node.progress
            for node in membership.seen
            if node.name in membership.alive and node.name != membership.name
        }
        mine = self._backlogs.progress()
        held = balance.step(self._now(), mine, others, needed=self._backlogs.waited())
        if held < inf:
            self._backlogs.hold_to(held, seconds=HOLD_FOR)
        else:
            self._backlogs.release()
        if not balance.trying and self._held is not (held < inf):
            self._held = held < inf
            if self._held:
                log.info("backlogs.held", node=membership.name, batches_for_weight=round(held, 2))
            else:
                log.info("backlogs.released", node=membership.name)
        if others:
            self._tell(replace(mine, held=held < inf or balance.trying))

    def _tell(self, mine: Progress) -> None:
        # Once more after the last backlog, so that it is known to be the last.
        tell, self._telling = self._telling, mine.weight > self._told
        self._told = mine.weight
        if tell or self._telling:
            try:
                self._nodes.tell(self._membership.name, mine)
            except NodesUnavailableError as error:
                log.debug("nodes.progress_not_told", error=str(error))
