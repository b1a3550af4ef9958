"""The connection to the database is cut around a COMMIT: the daemon can't know the outcome."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Literal, TypeAlias

from tests.faults.pgwire import Commits
from tests.faults.proxy import Heard, Link, Watch
from tests.faults.rig import PATIENCE, Rig

Cut: TypeAlias = Literal["before", "with", "after"]
CUTS: tuple[Cut, ...] = ("before", "with", "after")
"""Before the server has the COMMIT; as it gets it; once it has committed, but not answered."""


class Cutter:
    """Cuts the next connection that commits after `cut_next`."""

    def __init__(self) -> None:
        self._next: Cut | None = None
        self._lock = threading.Lock()
        self.done = threading.Event()

    def cut_next(self, how: Cut) -> None:
        with self._lock:
            self.done.clear()
            self._next = how

    def watch(self, link: Link) -> tuple[Watch, Heard]:
        commits = Commits()

        def up(link: Link, data: bytes) -> bool:
            if not commits.feed(data):
                return True
            with self._lock:
                how, self._next = self._next, None
            match how:
                case "before":
                    link.cut()
                case "with":
                    link.server.sendall(data)
                    link.cut()
                case "after":
                    link.deaf = True
                    return True
                case None:
                    return True
            self.done.set()
            return False

        def down(link: Link, data: bytes) -> bool:
            if link.deaf:
                # The answer shows that the server has committed; the client will not get it.
                link.cut()
                self.done.set()
            return not link.deaf

        return up, down


def run(rig: Rig, rounds: int) -> None:
    cutter = Cutter()
    rig.proxy_to_database(watch=cutter.watch)
    rig.start()
    made: Counter[Cut] = Counter()
    with rig.load():
        for number in rig.rounds(rounds):
            how = CUTS[number % len(CUTS)]
            rig.wait_for_some(100)
            cutter.cut_next(how)
            assert cutter.done.wait(PATIENCE), "no commit came by"
            made[how] += 1
            rig.caught_up()
    rig.program.check_running()
    rig.count_duplicates()
    rig.figures.notes["cuts"] = dict(made)
    # Each cut after the commit leaves a stored batch that is delivered again.
    if made["after"] and not rig.figures.duplicates:
        rig.figures.wrong.append("no batch was cut after its commit: the experiment does not bite")
