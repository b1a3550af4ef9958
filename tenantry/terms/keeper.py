"""Takes a term once that is possible, keeps it renewed, and reports when it is lost."""

from __future__ import annotations

import os
import random
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from tenantry.loops import PeriodicService
from tenantry.terms.lease import ASK_AGAIN_EVERY, RENEW_EVERY, Term, TermWatch, time_since_boot
from tenantry.terms.port import Holder, Standing, Terms
from tenantry.unavailable import UnavailableError

log: Final = structlog.get_logger("terms")


LONGEST_RENEWAL: Final = 120.0
"""Seconds after which a renewal counts as hung: the wait for the database is much shorter."""


class Candidate:
    """A daemon that wants the term; its owner calls `try_to_lead` again and again."""

    def __init__(
        self,
        terms: Terms,
        me: Holder,
        *,
        now: Callable[[], float] = time.monotonic,
        boot_time: Callable[[], float] = time_since_boot,
    ) -> None:
        self.me = me
        self.standing: Standing | None = None
        """The term's standing when last seen; None before that."""
        self.trouble: str | None = None
        """Why the term can't be seen or taken; None while it can."""
        self._terms = terms
        self._watch = TermWatch(me)
        self._now = now
        self._boot_time = boot_time

    def try_to_lead(self) -> Term | None:
        """Look at the term, and take it if it is free; None while it is not.

        Takes a few seconds at most, and never raises for an outage of the database.
        """
        try:
            standing = self._terms.look()
        except UnavailableError as error:
            self._watch.interrupted()
            self._note_trouble(str(error))
            return None
        self.standing = standing
        if not self._watch.may_take(standing, self._now()):
            self._note_trouble(None)
            return None
        asked_at = self._boot_time()
        try:
            taken = self._terms.take(standing, self.me)
        except UnavailableError as error:
            self._note_trouble(str(error))
            return None
        self._note_trouble(None)
        if taken is None:
            return None
        self.standing = taken
        log.info("term.taken", number=taken.number, after=standing.holder.host or None)
        return Term(taken, asked_at=asked_at, now=self._boot_time)

    def _note_trouble(self, trouble: str | None) -> None:
        if trouble is not None and self.trouble is None:
            log.warning("term.out_of_reach", error=trouble)
        self.trouble = trouble


FILE: Final = "instance"


def holder_of(state_dir: Path, control_socket: Path) -> Holder:
    """Return this process's identity as a holder, once it has the control socket's lock.

    The lock's owner has outlived every earlier process with the same socket. The file in
    `state_dir` tells machines apart whose paths and names are alike.
    """
    host = socket.gethostname()
    return Holder(
        instance=f"{_kept(state_dir / FILE)}@{host}:{control_socket}", host=host, pid=os.getpid()
    )


def _kept(file: Path) -> str:
    try:
        with file.open("x", encoding="ascii") as made:
            made.write(f"{uuid.uuid4()}\n")
    except FileExistsError:
        pass
    return file.read_text(encoding="ascii").strip()


class TermKeeper(PeriodicService):
    """Renews a term until it is lost, or `stop`.

    While the terms can't be reached the keeper goes on trying, at shorter pauses. Once they can be
    reached, a term about to lapse is kept, and a lapsed term that no other daemon has taken is
    valid again. `lost` is called once, from `run`, when another daemon has taken the term.
    """

    def __init__(
        self,
        terms: Terms,
        term: Term,
        *,
        lost: Callable[[], None],
        every: float = RENEW_EVERY,
        again: float = ASK_AGAIN_EVERY,
        give_back: Callable[[int], object] | None = None,
        now: Callable[[], float] = time_since_boot,
    ) -> None:
        """Renew `every` so many seconds, and `again` seconds after a renewal that failed.

        `give_back`, called with the term's number, replaces the terms' own release.
        """
        super().__init__(self._renew, every=every, longest=LONGEST_RENEWAL)
        self._terms = terms
        self._term = term
        self._lost = lost
        self._give_back = give_back
        self._now = now
        self._again = again
        self._failed = self._lapsed = False

    def release(self) -> None:
        """Give the term back, once all work under it has ended."""
        self._term.end()
        try:
            (self._give_back or self._terms.release)(self._term.number)
        except UnavailableError as error:
            log.warning("term.not_released", number=self._term.number, error=str(error))

    def _pause(self) -> float:
        return self._again * random.uniform(0.5, 1.0) if self._failed else super()._pause()  # noqa: S311

    def _renew(self) -> None:
        asked_at = self._now()
        try:
            mine = self._terms.renew(self._term.number)
        except UnavailableError as error:
            self._failed = True
            if not self._lapsed and not self._term.valid():
                self._lapsed = True
                log.warning("term.lapsed", number=self._term.number, error=str(error))
            return
        if not mine:
            self._term.end()
            self.stop()
            self._lost()
            return
        self._term.renewed(asked_at)
        self._failed = False
        if self._lapsed:
            self._lapsed = False
            log.info("term.renewed", number=self._term.number)
