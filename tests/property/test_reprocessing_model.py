"""Replays and discards that break off anywhere, under messages that die and come back.

A broker of lists, a worker that stores or gives up, and the real `Reprocessing` over the index in
memory. Whatever breaks, and however often a message went out twice: in the end every message with
an id is stored once, or listed once, or was discarded; and the books agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tenantry.broker.port import BrokerUnavailableError, Outgoing, QueuedDeadLetter
from tenantry.dead_letters.port import EVERYTHING, RejectedMessage, Selection, Work
from tenantry.dead_letters.replay import Reprocessing
from tenantry.dead_letters.telling import DeadLetterEvents
from tenantry.domain.events import DeadLettersDiscarded, DeadLettersReplayed, MessageDeadLettered
from tenantry.journal.port import ANY, Metadata
from tenantry.messages.port import Incoming
from tests.api.fakes import FakeDeadLetters
from tests.depth import examples
from tests.fakes.dead_letters import InMemoryDeadLetterIndex
from tests.fakes.stores import InMemoryEventStore
from tests.waiting import DEADLINE

TENANT = "acme"
STREAM = "dead_letters-acme"
ME = Metadata(actor="model")


class DiedError(Exception):
    """The process has died."""


class World:
    """What outlives the process: queues, rows, the index, the journal."""

    singly = True

    def __init__(self) -> None:
        self.main: list[tuple[Incoming, bool]] = []
        self.dead = FakeDeadLetters()
        self.dead.queues[TENANT] = []
        self.index = InMemoryDeadLetterIndex()
        self.journal = InMemoryEventStore()
        self.stored: Counter[str] = Counter()
        self.replays: Counter[str | None] = Counter()
        self.poison: set[bytes] = set()
        self.clock = datetime.now(UTC).replace(microsecond=0)
        self.fuse: Callable[[str], None] = lambda _step: None
        self.outcome_unknown = False

    # The broker.

    def publish(self, messages: Sequence[Outgoing], *, timeout: float) -> None:
        self.fuse("before publish")
        for one in messages:
            sent = Incoming(one.message_id, "logs", 0, one.body, None, one.headers, None)
            self.main.append((sent, False))
            self.replays[one.message_id] += 1
        if self.outcome_unknown:
            raise BrokerUnavailableError("no confirm")
        self.fuse("after publish")

    def bury(self, message: Incoming, reason: str) -> None:
        self.clock += timedelta(seconds=1)
        self.dead.queues[TENANT].append(QueuedDeadLetter(message, reason, self.clock, b""))

    # The daemon.

    def work(self, *, dies_before_reject: bool) -> None:
        message, redelivered = self.main.pop(0)
        if message.id is not None and self.stored[message.id]:
            return
        if message.body not in self.poison and not redelivered:  # else judged already
            self.stored[message.id or str(uuid4())] += 1
            return
        (kept,) = self.index.add(
            TENANT, [RejectedMessage(message, "handler_failed", "no", 1, again=redelivered)]
        )
        event = MessageDeadLettered(
            tenant_id=TENANT, message_id=message.id, topic="logs", partition=0,
            reason="handler_failed", error="no", first_error="no", attempts=1, size=1,
        )  # fmt: skip
        self.journal.append(STREAM, [event], expected=ANY, metadata=ME, ids=[kept.event_id])
        if dies_before_reject:
            self.main.insert(0, (message, True))
        else:
            self.bury(message, "rejected")

    def reprocessing(self) -> Reprocessing:
        journal: Any = _Fused(self.journal, self)
        return Reprocessing(
            index=_Fused(self.index, self),  # type: ignore[arg-type]
            queues=self.dead,  # type: ignore[arg-type]
            publishing=self,  # type: ignore[arg-type]
            journal=journal,
            events=DeadLetterEvents(journal, lambda _: 1),
            publish_timeout=DEADLINE,
            max_replays=3,
        )

    def listed(self) -> list[Any]:
        return self.index.page(TENANT, limit=10_000)[0]


class _Fused:
    """Calls that can be the last ones."""

    def __init__(self, target: Any, world: World) -> None:
        self._target, self._world = target, world

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._target, name)

        def fused(*given: Any, **options: Any) -> Any:
            self._world.fuse(f"before {name}")
            done = call(*given, **options)
            self._world.fuse(f"after {name}")
            return done

        return fused


STEPS = [
    f"{side} {name}"
    for name in ("lookup", "begin", "publish", "append", "settle", "recorded", "gone", "withdraw")
    for side in ("before", "after")
]


class Replays(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.sent: dict[str, bytes] = {}
        self.nameless: Counter[bytes] = Counter()
        self.count = 0

    @initialize(poison=st.sets(st.sampled_from([b"a", b"b", b"c"])))
    def begin(self, poison: set[bytes]) -> None:
        self.world.poison = set(poison)

    @rule(body=st.sampled_from([b"a", b"b", b"c"]))
    def produce(self, body: bytes) -> None:
        self.count += 1
        self.sent[f"m-{self.count}"] = body
        self.world.main.append(
            (Incoming(f"m-{self.count}", "logs", 0, body, None, None, None), False)
        )

    @rule(body=st.sampled_from([b"a", b"b", b"c"]))
    def produce_without_an_id(self, body: bytes) -> None:
        self.nameless[body] += 1
        self.world.main.append((Incoming(None, "logs", 0, body, None, None, None), False))

    @rule(dies=st.booleans())
    def work(self, dies: bool) -> None:
        if self.world.main:
            self.world.work(dies_before_reject=dies)

    @rule()
    def work_off(self) -> None:
        while self.world.main:
            self.world.work(dies_before_reject=False)

    @rule()
    def expire(self) -> None:
        world = self.world
        if not world.main or world.main[0][1]:
            return
        # A replay that went out twice, one copy stored and the other expired, is listed though it
        # is stored: to replay it once more changes nothing. So only what went out once expires,
        # and only once it is certain that it did.
        message = world.main[0][0]
        if message.headers and (world.index.unfinished() or world.replays[message.id] > 1):
            return
        world.bury(world.main.pop(0)[0], "expired")

    @rule(body=st.sampled_from([b"a", b"b", b"c"]))
    def heal(self, body: bytes) -> None:
        # As with what expires: of two copies of a replay one may be stored after the other has
        # failed, if what it failed for is mended between the two. It is listed then, too.
        if not any(self.world.replays[message.id] > 1 for message, _ in self.world.main):
            self.world.poison ^= {body}

    @rule(
        kind=st.sampled_from(["replay", "discard", "look"]),
        which=st.sampled_from([EVERYTHING, Selection(reason="expired"), "one"]),
        most=st.sampled_from([None, 1, 2]),
        dies=st.none() | st.sampled_from(STEPS),
        unconfirmed=st.booleans(),
        acks_lost=st.booleans(),
        force=st.booleans(),
    )
    def reprocess(
        self,
        kind: str,
        which: Selection | str,
        most: int | None,
        dies: str | None,
        unconfirmed: bool,
        acks_lost: bool,
        force: bool,
    ) -> None:
        world = self.world
        if isinstance(which, str):
            listed = world.listed()
            which = Selection(names=frozenset(str(one.id) for one in listed[:1])) or EVERYTHING
        before = list(world.dead.queues[TENANT])

        def fuse(step: str) -> None:
            if step == dies:
                raise DiedError

        world.fuse, world.outcome_unknown = fuse, unconfirmed
        world.dead.gone = not acks_lost
        letters = world.reprocessing()
        try:
            if kind == "replay":
                letters.replay(TENANT, which, ME, most=most, force=force)
            elif kind == "discard":
                letters.discard(TENANT, which, ME, most=most)
            else:
                letters.look(TENANT)
        except (DiedError, BrokerUnavailableError):
            if acks_lost:
                world.dead.queues[TENANT] = before
        else:
            if acks_lost:
                world.dead.queues[TENANT] = before
        finally:
            world.fuse, world.outcome_unknown = lambda _step: None, False
            world.dead.gone = True

    @invariant()
    def no_letter_is_listed_twice(self) -> None:
        listed = Counter(one.message_id for one in self.world.listed() if one.message_id)
        assert all(count == 1 for count in listed.values())

    def teardown(self) -> None:
        world = self.world
        letters = world.reprocessing()
        # Whatever was begun is finished, and what comes of it worked off.
        for _ in range(20):
            letters.look(TENANT)
            if not world.main:
                break
            self.work_off()
        letters.look(TENANT)
        listed = world.listed()
        events = [one.event for one in world.journal.read_stream(STREAM)]
        gone = [UUID(one) for event in events if isinstance(event, DeadLettersDiscarded)
                for one in event.ids]  # fmt: skip
        died = sum(isinstance(event, MessageDeadLettered) for event in events)
        replayed = sum(event.count for event in events if isinstance(event, DeadLettersReplayed))
        discarded = sum(event.count for event in events if isinstance(event, DeadLettersDiscarded))
        # The books.
        assert died - replayed - discarded == len(listed)
        totals = world.index.totals(TENANT)
        assert totals.get("dead_lettered", 0) == died
        assert (totals.get("replay", 0), totals.get("discard", 0)) == (replayed, discarded)
        assert len(gone) == len(set(gone))
        assert len(world.dead.queues[TENANT]) == len(listed)
        # Every message with an id: stored once, or listed once, or discarded.
        names = [one.message_id for one in listed]
        for name in self.sent:
            here = world.stored[name] + names.count(name)
            assert here <= 1, name
            assert world.stored[name] <= 1
        missing = [name for name in self.sent if not world.stored[name] and name not in names]
        # Without an id: never fewer than were sent, but for the discarded.
        rows = world.index._tenant(TENANT).letters
        thrown_away = {one.message.id for one in rows if one.row.settled and one.row.intent
                       and one.row.intent.work is Work.DISCARD}  # fmt: skip
        assert set(missing) <= thrown_away
        nameless = sum(world.stored.values()) + len(listed) + discarded
        assert nameless >= len(self.sent) + sum(self.nameless.values())


TestReplays = Replays.TestCase
TestReplays.settings = settings(
    max_examples=examples(20, 300), stateful_step_count=40, deadline=None
)
