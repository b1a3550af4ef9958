"""One of three nodes is killed, frozen, cut off or stopped, or its clock stepped, under load."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from urllib.parse import urlsplit, urlunsplit

import psycopg

from tenantry.terms.lease import LEASE, MARGIN
from tests.acceptance.program import Program
from tests.faults.clock import Clock
from tests.faults.proxy import Proxy
from tests.faults.rig import PATIENCE, Rig
from tests.faults.services import address_of
from tests.waiting import eventually

TAKEOVER = 15.0
"""Seconds within which the contract promises that a killed node's tenants consume elsewhere."""

STRANDED = 60.0
"""Seconds that it may take where a node is cut off from the broker alone."""

TENANTS = 6

STEPS = (-5400, -3600, -70, 70, 3600, 5400)
"""Seconds by which a node's clock is stepped: more than any lease, and hours."""

NO_SETTINGS: Mapping[str, str] = MappingProxyType({})


class Member:
    """A node with its own proxies before database and broker."""

    def __init__(self, rig: Rig, name: str, program: Program) -> None:
        self.name = name
        self.program = program
        program.settings["TENANTRY_NODE_NAME"] = name
        self.database = self._proxy(rig, program.database_url, "DATABASE_URL", DATABASE_QUERY)
        self.broker: Proxy | None = None
        if rig.broker == "rabbitmq":
            self.broker = self._proxy(rig, program.host.url, "RABBITMQ_URL", "")
        elif rig.broker == "iggy":
            self.broker = self._proxy(rig, rig.iggy_url, "BROKER_URL", "")

    def _proxy(self, rig: Rig, url: str, variable: str, query: str) -> Proxy:
        proxy = rig.stack.enter_context(Proxy(address_of(url)))
        parts = urlsplit(url)
        user = parts.username or "postgres"
        user += f":{parts.password}" if parts.password else ""
        there = parts._replace(netloc=f"{user}@127.0.0.1:{proxy.port}", query=query)
        self.program.settings[variable] = urlunsplit(there)
        return proxy


DATABASE_QUERY = "sslmode=disable&gssencmode=disable"


class Storm:
    """Faults, one after another, each at a random node."""

    def __init__(self, rig: Rig, rounds: int) -> None:
        self.rig = rig
        first = rig.program
        others = [
            rig.stack.enter_context(Program(first.broker, first.database_url)) for _ in range(2)
        ]
        self.members = [
            Member(rig, name, program)
            for name, program in zip(("one", "two", "three"), (first, *others), strict=True)
        ]
        self.faults: list[Callable[[Member], bool]] = [
            self.kill, self.freeze, self.cut, self.leave, self.move,
        ]  # fmt: skip
        if rig.broker != "embedded":
            self.faults.append(self.strand)
        self.clocks: dict[str, Clock] = {}
        if rounds > len(self.faults):  # daemons with their own clock take longer to start
            self.clocks = {one.name: Clock(one.program) for one in self.members}
            self.faults.append(self.step)
        self.kinds: Counter[str] = Counter()
        self.longest: dict[str, float] = {}

    def owned_by(self) -> Counter[str | None]:
        with psycopg.connect(self.rig.program.database_url) as connection:
            rows = connection.execute("SELECT node, count(*) FROM tenantry.owners GROUP BY node")
            return Counter(dict(rows.fetchall()))

    def one_with_tenants(self) -> Member:
        """Choose a node that owns tenants, so that the others have some to take over."""
        owned = self.owned_by()
        return self.rig.random.choice([one for one in self.members if owned[one.name]])

    def wait_without(self, victim: Member | None) -> None:
        """Wait until the other nodes consume for all tenants, and the victim owns none."""
        there = [one for one in self.members if one is not victim]

        def spread() -> bool:
            owned = self.owned_by()
            if victim is not None and owned[victim.name]:
                return False
            consuming = {
                one.name: sum(
                    told["consuming"] for told in one.program.get("/status")["tenants"].values()
                )
                for one in there
            }
            # Placement follows from the tenants' ids, so a node may have none.
            return +Counter(consuming) == owned and sum(consuming.values()) == TENANTS

        eventually(spread, timeout=PATIENCE, what="the others have all tenants")

    def move(self, victim: Member) -> bool:
        """Move all tenants to one node, one after another; let placement choose again for half."""
        longest = 0.0
        for tenant in self.rig.tenants:
            asked = self.rig.random.choice(self.members).program
            began = time.monotonic()
            answer = asked.call(
                "POST", f"/tenants/{tenant.id}/move", {"node": victim.name}, timeout=PATIENCE
            )
            assert answer.status_code == 200, answer.text
            longest = max(longest, time.monotonic() - began)
        if self.owned_by() != Counter({victim.name: TENANTS}):
            self.rig.figures.wrong.append(f"{victim.name} was not given all tenants")
        for tenant in self.rig.random.sample(self.rig.tenants, TENANTS // 2):
            answer = victim.program.call(
                "POST", f"/tenants/{tenant.id}/move", {"node": None}, timeout=PATIENCE
            )
            assert answer.status_code == 200, answer.text
        self.kinds["move"] += 1
        self.longest["move"] = max(self.longest.get("move", 0.0), longest)
        return False

    def kill(self, victim: Member) -> bool:
        victim.program.kill()
        self.took("kill", victim)
        return True

    def freeze(self, victim: Member) -> bool:
        victim.program.freeze()
        self.took("freeze", victim)
        self.rig.moment(1.0)
        victim.program.send(signal.SIGCONT)
        self.ends(victim, "frozen")
        return True

    def cut(self, victim: Member) -> bool:
        """Let nothing pass between node and database, with every connection open."""
        victim.database.freeze()
        self.took("cut", victim)
        victim.database.thaw()
        self.ends(victim, "cut off")
        return True

    def strand(self, victim: Member) -> bool:
        """Cut one node off from the broker; its tenants go to nodes that reach it."""
        assert victim.broker is not None
        victim.broker.freeze()
        victim.broker.cut_all()
        self.took("strand", victim, promised=STRANDED)
        victim.broker.thaw()
        return False

    def step(self, victim: Member) -> bool:
        """Step the node's clock until another node's is stepped; no node may lose a tenant."""
        for name, clock in self.clocks.items():
            clock.step(self.rig.random.choice(STEPS) if name == victim.name else 0)
            eventually(clock.is_stepped, timeout=PATIENCE, what=f"{name}'s clock")
        before = self.owned_by()
        began = time.monotonic()
        while time.monotonic() - began < LEASE + MARGIN:
            self.rig.wait_for_some()
            self.rig.caught_up()
        if self.owned_by() != before:
            self.rig.figures.wrong.append(f"tenants moved as {victim.name}'s clock jumped")
        self.kinds["step"] += 1
        return False

    def leave(self, victim: Member) -> bool:
        began = time.monotonic()
        if victim.program.stop(timeout=PATIENCE) != 0:
            self.rig.figures.wrong.append(f"{victim.name} did not end in order")
        self.took("leave", victim, began=began)
        return True

    def ends(self, victim: Member, how: str) -> None:
        if (code := victim.program.wait(PATIENCE)) != 1:
            self.rig.figures.wrong.append(f"a node that was {how} ended with {code}")

    def took(
        self, kind: str, victim: Member, *, promised: float = TAKEOVER, began: float | None = None
    ) -> None:
        began = time.monotonic() if began is None else began
        self.wait_without(victim)
        seconds = time.monotonic() - began
        self.kinds[kind] += 1
        self.longest[kind] = max(self.longest.get(kind, 0.0), seconds)
        self.rig.figures.took(seconds, promised, f"round {self.rig.figures.rounds + 1}: {kind}")


def run(
    rig: Rig,
    rounds: int,
    *,
    topic: object = "events",
    settings: Mapping[str, str] = NO_SETTINGS,
    rate: float = 100,
    prepare: Callable[[Rig], None] = lambda _: None,
) -> None:
    storm = Storm(rig, rounds)
    for one in storm.members:
        one.program.settings |= settings
    rig.start(tenants=TENANTS, topic=topic)
    prepare(rig)
    for one in storm.members[1:]:
        one.program.spawn()
        one.program.wait_ready(PATIENCE)
    storm.wait_without(None)
    with rig.load(rate=rate):
        for number in rig.rounds(rounds):
            rig.wait_for_some()
            rig.moment(0.3)
            victim = storm.one_with_tenants()
            # The faults come in turn.
            if storm.faults[(number - 1) % len(storm.faults)](victim):
                victim.program.spawn()
                victim.program.wait_ready(PATIENCE)
            storm.wait_without(None)
            rig.caught_up()
    for one in storm.members[1:]:
        if one.program.stop(timeout=PATIENCE) != 0:
            rig.figures.wrong.append(f"{one.name} did not end in order")
    storm.members = storm.members[:1]
    storm.wait_without(None)
    rig.figures.notes["faults"] = dict(storm.kinds)
    rig.figures.notes["longest_seconds"] = {
        kind: round(seconds, 1) for kind, seconds in storm.longest.items()
    }
