"""Shares between nodes: a node holds its backlogs where those of other nodes gain by it.

A node shares its capacity among its own tenants. What nodes share, the database, or the processors
of one machine, none of them sees. So it is tried: a node whose backlogs are ahead of others', for
their weights, holds them to what all of these have on average. If the others gain too little of
what it gives up, then whatever slows them is not what it uses, and it goes on as before.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Final

from tenantry.turns.backlogs import Progress

WINDOWS: Final = (2.0, 4.0, 8.0)
"""Seconds over which it is measured how fast nodes are: the least in which they store `ENOUGH`."""

ENOUGH: Final = 12
"""Batches from which a rate is known well enough. Who stores fewer is compared with nobody."""

SETTLE: Final = 1.0
"""Seconds from the beginning of a trial in which nothing is measured."""

RECENT: Final = 1.0
"""Seconds by which it is judged whether tenants have only just come, or gone."""

SILENT: Final = 2.5
"""Seconds without news after which a node is taken to have no backlogs."""

AHEAD: Final = 1.2
"""How many times as fast as others', for their weights, a node's backlogs may be."""

STEP: Final = 4.0
"""A node goes that many times slower at once, at most."""

LEAST: Final = 0.1
"""Full batches a second, for each weight, that a node is held to at least."""

PAYS: Final = 0.25
"""The part of what a node gives up that others must gain."""

AGAIN: Final = 5.0
AGAIN_SELDOM: Final = 160.0
"""Seconds from a trial to the next: twice as many each time until one has paid, up to so many."""

FIRST_CHECK: Final = 8.0
CHECK_EVERY: Final = 20.0
CHECK_SELDOM: Final = 160.0
"""Seconds after which a node that is held tries whether it still pays: first, then, and, as it is
twice as many each time, at last."""

KNOWN_FOR: Final = 60.0
"""Seconds in which what has paid, by a check, need not be tried again, when backlogs come again."""

NEW_SHARE: Final = 0.2
"""How much of the latest average goes into the moving one that a node is held to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast a node's backlogs are: their weight on average, and full batches a second."""

    window: float
    weight: float
    work: float
    lately: float = 0.0
    """Full batches a second for each weight, over the longest window that is known."""
    steady: bool = True
    """Whether it weighs as much now as it did in all of the window."""

    @property
    def rate(self) -> float:
        """Full batches a second for each weight."""
        return self.work / self.weight

    def weighs_like(self, other: Pace) -> bool:
        """Tell whether much the same tenants have backlogs, judged by their weight."""
        return 0.75 < self.weight / other.weight < 1.33


class Course:
    """What was seen of a node's progress, since its backlogs came, or it was released."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, Progress]] = deque()
        self.idle = True
        """Whether it had no backlog when it was last seen."""

    @property
    def held(self) -> bool:
        """Whether the node was held when it was last seen."""
        return bool(self._seen) and self._seen[-1][1].held

    def see(self, progress: Progress, now: float) -> None:
        """Note how far the node has come. The same once more is no news."""
        if self._seen:
            latest = self._seen[-1][1]
            if progress.seconds == latest.seconds:
                return
            self.idle = progress.weight <= latest.weight
            started_again = progress.seconds < latest.seconds
            if self.idle or started_again or (latest.held and not progress.held):
                self._seen.clear()
        self._seen.append((now, progress))
        while now - self._seen[0][0] > WINDOWS[-1]:
            self._seen.popleft()

    def silent(self, now: float) -> bool:
        """Tell whether there has been no news for a while."""
        return not self._seen or now - self._seen[-1][0] >= SILENT

    def pace(self, now: float) -> Pace | None:
        """Tell how fast the node is; None if it is not known."""
        known = [one for window in WINDOWS if (one := self.over(window, now, ENOUGH)) is not None]
        if not known:
            return None
        recent = self.over(RECENT, now)
        steady = recent is None or recent.weighs_like(known[0])
        return replace(known[0], lately=known[-1].rate, steady=steady)

    def over(self, window: float, now: float, enough: int = 0) -> Pace | None:
        """Tell how fast it was in the latest so many seconds; None if too little was seen."""
        first = next((one for at, one in self._seen if at >= now - window), None)
        if first is None:
            return None
        latest = self._seen[-1][1]
        seconds = latest.seconds - first.seconds
        if seconds < window / 2 or latest.batches - first.batches < enough:
            return None
        return Pace(
            window=window,
            weight=(latest.weight - first.weight) / seconds,
            work=(latest.work - first.work) / seconds,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How fast a node is, and others with backlogs that are not held themselves, by name."""

    mine: Pace
    each: Mapping[str, Pace]

    def behind(self) -> Standing | None:
        """Leave out the others that this node is not ahead of, or not long enough to tell."""
        each = {
            name: one
            for name, one in self.each.items()
            if one.steady and max(one.rate, one.lately) * AHEAD < self.mine.rate
        }
        if not self.mine.steady:
            return None
        return Standing(mine=self.mine, each=each) if each else None

    def among(self, names: Iterable[str]) -> Standing | None:
        """Leave out all others but these."""
        each = {name: self.each[name] for name in names if name in self.each}
        return Standing(mine=self.mine, each=each) if each else None

    @property
    def others(self) -> float:
        """What the others have had lately, for each weight, together."""
        each = self.each.values()
        return sum(one.lately * one.weight for one in each) / sum(one.weight for one in each)

    @property
    def even(self) -> float:
        """What all would have for each weight, if they had the same and no more together."""
        weight = sum(one.weight for one in self.each.values())
        return (self.mine.work + self.others * weight) / (self.mine.weight + weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """What a change cost the node that was, or was to be, held, and what each of the others got."""

    given: float
    gains: Mapping[str, float]

    def plus(self, other: _Change) -> _Change:
        """Add what was found for those that both know."""
        gains = {
            name: gain + other.gains[name]
            for name, gain in self.gains.items()
            if name in other.gains
        }
        return _Change(given=self.given + other.given, gains=gains)

    @property
    def pays(self) -> bool:
        """Whether the others have got enough of it."""
        return 0 < PAYS * self.given <= sum(self.gains.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """A trial to go slower, or faster again, and what follows from it."""

    began: float
    before: Standing
    slower: bool
    if_pays: float
    if_not: float
    """What the node is to be held to if to be held pays, and if it does not."""
    pause: float
    """The pause before it."""
    earlier: _Change | None = None
    """What was found on the way there, if this is the way back."""

    @property
    def window(self) -> float:
        """The seconds that are measured after it has settled."""
        return max(one.window for one in (self.before.mine, *self.before.each.values()))

    def found(self, after: Standing) -> _Change | None:
        """Compare with before, and with what was found earlier; None if others compete now."""
        before, sign = self.before, 1 if self.slower else -1
        gains = {
            name: sign * (one.work - before.each[name].work)
            for name, one in after.each.items()
            if one.weighs_like(before.each[name])
        }
        if not gains or not after.mine.weighs_like(before.mine):
            return None
        change = _Change(given=sign * (before.mine.work - after.mine.work), gains=gains)
        return change if self.earlier is None else self.earlier.plus(change)

    def gained(self, change: _Change) -> frozenset[str]:
        """Name the others that have got enough by it, for their weights."""
        each = self.before.each
        fair = PAYS * change.given / sum(one.weight for one in each.values())
        return frozenset(
            name for name, gain in change.gains.items() if gain >= fair * each[name].weight
        )


class Balance:
    """What a node holds its backlogs to. It reads no clock, and belongs to one thread.

    A node is held for the sake of those that have gained by it, to what it and they have, for their
    weights, on average. Nodes that are held don't count: nobody goes slower for their sake.
    """

    def __init__(self, *, chance: Callable[[], float] = random.random) -> None:
        """`chance` gives numbers from 0 to 1: nodes must not try in step, nor with what goes on."""
        self._chance = chance
        self.held = inf
        """Full batches a second for each weight; `inf` while not held."""
        self._changed_at = -inf
        """When that changed at once, and not bit by bit."""
        self._needed_at = -inf
        """When batches last waited because of it."""
        self._for: frozenset[str] = frozenset()
        """For whose sake it is, or was last."""
        self._known_until = -inf
        self._known = inf
        """The rate that has paid, until then."""
        self._mine = Course()
        self._others: dict[str, Course] = {}
        self._stepped_at = self._compared_at = -inf
        self._trial: _Trial | None = None
        self._try_at = -inf
        self._pause = AGAIN
        self._check_at = inf
        self._check_pause = FIRST_CHECK

    @property
    def trying(self) -> bool:
        """Whether something is tried: what the node is held to, or not, may be for that alone."""
        return self._trial is not None

    def step(
        self, now: float, mine: Progress, others: Mapping[str, Progress], *, needed: bool
    ) -> float:
        """Tell what backlogs are to be held to from now on; `inf`: they are not.

        `others` are the other nodes at work, by name; `needed` tells whether a batch has waited
        since the last step, as the node is held. To be called every second or so.
        """
        if now - self._stepped_at >= SILENT:
            self._mine, self._others = Course(), {}
            self._release(now)
        self._stepped_at = now
        if needed:
            self._needed_at = now
        self._mine.see(mine, now)
        self._others = {name: self._others.get(name, Course()) for name in others}
        for name, course in self._others.items():
            course.see(others[name], now)
        competing = self._competing(now)
        if self._mine.idle or not competing:
            self._release(now)
        elif self._trial is not None:
            if now - self._trial.began >= SETTLE + self._trial.window:
                self._judge(self._trial, competing, now)
        elif self.held < inf:
            self._go_on_held(competing, now)
        elif (standing := self._standing(competing, now)) is not None:
            self._go_slower(standing, now)
        return self.held

    def _competing(self, now: float) -> dict[str, Course]:
        """Give the other nodes with backlogs."""
        return {
            name: course
            for name, course in self._others.items()
            if not (course.idle or course.silent(now))
        }

    def _standing(self, competing: Mapping[str, Course], now: float) -> Standing | None:
        """Compare the nodes; None if it is not known how fast they are."""
        mine = self._mine.pace(now)
        if mine is None and self.held < inf:
            mine = self._mine.over(WINDOWS[-1], now)  # it is steady, if there are few batches
        each = {
            name: pace
            for name, course in competing.items()
            if not course.held and (pace := course.pace(now)) is not None
        }
        return None if mine is None or not each else Standing(mine=mine, each=each)

    def _go_on_held(self, competing: Mapping[str, Course], now: float) -> None:
        standing = self._standing(competing, now)
        mine = None if standing is None else standing.among(self._for)
        if standing is not None and mine is not None:
            self._compared_at = now
        last = max(self._changed_at, self._compared_at)
        if now - last >= WINDOWS[-1] or now - max(self._changed_at, self._needed_at) >= WINDOWS[0]:
            self._release(now)
        elif standing is not None and mine is not None and self._settled(standing, now):
            if now >= self._check_at:
                self._check(mine, now)
                return
            if mine.others * AHEAD > self.held:
                self.held = max(LEAST, self.held + (mine.even - self.held) * NEW_SHARE)
            self._go_slower(standing, now)

    def _settled(self, standing: Standing, now: float) -> bool:
        """Tell whether the node was held to the same, in about, in all of what was measured."""
        return now - self._changed_at >= SETTLE + standing.mine.window

    def _go_slower(self, standing: Standing, now: float) -> None:
        """Hold, or try to, where this node is ahead of others."""
        behind = standing.behind()
        if behind is None or now < self._try_at or not self._settled(standing, now):
            return
        target = max(behind.even, behind.mine.rate / STEP, LEAST)
        if now < self._known_until and self._known < self.held and behind.among(self._for):
            self._hold(max(target, self._known), now)
            self._check_at = now + FIRST_CHECK * self._jitter()
        elif target < self.held:
            self._try_slower(behind, target, now)

    def _try_slower(self, standing: Standing, rate: float, now: float) -> None:
        trial = _Trial(
            began=now,
            before=standing,
            slower=True,
            if_pays=rate,
            if_not=self.held,
            pause=self._pause,
        )
        # Also where it is not judged, as backlogs come and go.
        self._pause = min(AGAIN_SELDOM, self._pause * 2)
        self._try_at = now + SETTLE + trial.window + trial.pause * self._jitter()
        self._begin(trial, rate, now)

    def _check(self, standing: Standing, now: float) -> None:
        trial = _Trial(
            began=now,
            before=standing,
            slower=False,
            if_pays=self.held,
            if_not=inf,
            pause=self._pause,
        )
        self._begin(trial, inf, now)

    def _begin(self, trial: _Trial, rate: float, now: float) -> None:
        self._trial = trial
        self._hold(rate, now)

    def _judge(self, trial: _Trial, competing: Mapping[str, Course], now: float) -> None:
        self._trial = None
        after = self._after(trial, competing, now)
        change = None if after is None else trial.found(after)
        if after is not None and change is not None:
            if change.pays:
                self._pays(trial, change, now)
                return
            if trial.earlier is None:
                # All may have become faster or slower meanwhile. The way back tells, too.
                back = trial.if_not if trial.slower else trial.if_pays
                slower = not trial.slower
                trial = replace(trial, began=now, before=after, slower=slower, earlier=change)
                self._begin(trial, back, now)
                return
        self._known_until = -inf
        self._pause = min(AGAIN_SELDOM, trial.pause * 2)
        self._try_at = now + trial.pause * self._jitter()
        self._hold(trial.if_not, now)

    def _after(self, trial: _Trial, competing: Mapping[str, Course], now: float) -> Standing | None:
        mine = self._mine.over(trial.window, now)
        each = {
            name: pace
            for name in trial.before.each.keys() & competing.keys()
            if not competing[name].held
            and (pace := competing[name].over(trial.window, now)) is not None
        }
        return None if mine is None else Standing(mine=mine, each=each)

    def _pays(self, trial: _Trial, change: _Change, now: float) -> None:
        if trial.slower is (trial.earlier is None):
            self._for = trial.gained(change) or frozenset(change.gains)
            self._try_at, self._pause = now, trial.pause
            self._check_pause = FIRST_CHECK
        else:
            self._pause = AGAIN
            self._check_pause = min(CHECK_SELDOM, max(CHECK_EVERY, self._check_pause * 2))
            self._known, self._known_until = trial.if_pays, now + KNOWN_FOR
        if self.held != trial.if_pays:
            self._hold(trial.if_pays, now)
        self._check_at = now + self._check_pause * self._jitter()

    def _jitter(self) -> float:
        return 0.75 + self._chance() / 2

    def _hold(self, rate: float, now: float) -> None:
        self.held, self._changed_at = rate, now

    def _release(self, now: float) -> None:
        self._trial = None
        if self.held < inf:
            self._hold(inf, now)
