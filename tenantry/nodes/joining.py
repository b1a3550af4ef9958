"""How a daemon becomes a node: it finds a name of its own, and takes that name's term."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from tenantry.database.pool import Database
from tenantry.nodes.membership import Watchers
from tenantry.nodes.port import Node
from tenantry.nodes.postgres import PostgresNodes
from tenantry.terms.lease import Term, time_since_boot
from tenantry.terms.port import Holder, Standing
from tenantry.terms.postgres import PostgresTerms
from tenantry.unavailable import UnavailableError

log: Final = structlog.get_logger("nodes")

MOST_NAMES: Final = 1000
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


class NodeNameTakenError(Exception):
    """The configured name belongs to another node, which is at work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A joined node: its name and term, its sessions' claim, and its watchers of other nodes."""

    name: str
    term: Term
    terms: PostgresTerms
    claim: str
    watchers: Watchers


class Joining:
    """Joins a daemon to the nodes; its owner calls `try_to_join` repeatedly.

    Without a `name`, the node takes the host's, with a number where that is taken. A `standby`
    joins only when no other node is at work.
    """

    def __init__(
        self,
        database: Database,
        me: Holder,
        *,
        name: str | None,
        standby: bool,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.standing: Standing | None = None
        """The state of a working node's term; None until it is known."""
        self.trouble: str | None = None
        """Why the nodes can't be read or joined at present, if so."""
        self._database = database
        self._nodes = PostgresNodes(database)
        self._me = me
        self._name = name
        self._standby = standby
        self._now = now
        self._watchers = Watchers(me)
        self._first_seen: dict[str, Standing] = {}

    def try_to_join(self) -> Joined | None:
        """Read the nodes, and join if that is possible; None while it is not.

        Takes a few seconds at most, and does not raise while the database is away. Raises
        `NodeNameTakenError` if a node that renews its term has the configured name.
        """
        try:
            joined = self._try()
        except UnavailableError as error:
            self._watchers.interrupted()
            if self.trouble is None:
                log.warning("term.out_of_reach", error=str(error))
            self.trouble = str(error)
            return None
        self.trouble = None
        return joined

    def _try(self) -> Joined | None:
        nodes = self._nodes.look()
        alive = self._watchers.alive(nodes, self._now())
        at_work = [node for node in nodes if node.name in alive]
        if self._standby and at_work:
            self.standing = at_work[0].standing
            return None
        judged = {node.name: node.standing for node in nodes}
        for name in self._names(nodes):
            if name not in alive:
                return self._take(name, judged.get(name))
            if self._name is not None:
                self._refuse(next(node for node in at_work if node.name == name))
                return None
        return None

    def _names(self, nodes: Sequence[Node]) -> Iterator[str]:
        """Give the names to try, best first: the name that this daemon had before, if any."""
        if self._name is not None:
            yield self._name
            return
        for node in nodes:
            if node.standing.holder.instance == self._me.instance:
                yield node.name
        base = default_name(self._me.host)
        yield base
        for number in range(2, MOST_NAMES):
            yield f"{base}-{number}"

    def _refuse(self, node: Node) -> None:
        """Refuse a name once its holder is seen to renew its term; until then it may be dead."""
        self.standing = node.standing
        first = self._first_seen.setdefault(node.name, node.standing)
        if _beat(first) != _beat(node.standing):
            holder = node.standing.holder
            raise NodeNameTakenError(
                f"node.name {node.name!r} is that of a node at work on {holder.host} "
                f"(pid {holder.pid}): choose another (TENANTRY_NODE_NAME)"
            )

    def _take(self, name: str, judged: Standing | None) -> Joined | None:
        """Take a name whose holder was `judged` dead, unless another daemon has taken it since."""
        slot = self._nodes.open(name)
        terms = PostgresTerms(self._database, scope_of(name), slot=slot)
        standing = terms.look()
        if standing.held and standing.holder.instance != self._me.instance:
            if judged is None or _beat(judged) != _beat(standing):
                return None  # Its holder lives: the next attempt tries another name.
            # It has lapsed: its tenants are freed first, so that all nodes see a new owner.
            self._nodes.bury(name, standing)
            standing = terms.look()
        asked_at = time_since_boot()
        taken = terms.take(standing, self._me)
        if taken is None:
            return None
        self.standing = taken
        log.info("node.joined", node=name, term=taken.number)
        return Joined(
            name=name,
            term=Term(taken, asked_at=asked_at),
            terms=terms,
            claim=terms.claim(taken.number),
            watchers=self._watchers,
        )


def _beat(standing: Standing) -> tuple[int, int]:
    return standing.number, standing.beat


def scope_of(name: str) -> str:
    """Name the scope of a node's term."""
    return f"node:{name}"


def default_name(host: str) -> str:
    """Make a node's name of a host's: what stands for a node in a URL and in a line of a log."""
    kept = "".join(char if char.isalnum() and char.isascii() else "-" for char in host.lower())
    return kept.strip("-")[:50] or "node"


def this_machine() -> str:
    """Name the machine, as long as it runs: processes of one name can reach one another's sockets.

    Containers may share the name of the kernel's run, but not that of the host.
    """
    boot = _BOOT.read_text("ascii").strip() if _BOOT.exists() else ""
    return f"{boot}@{socket.gethostname()}"
