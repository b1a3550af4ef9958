"""Keeps a term: renews it, and says when it is lost."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

import structlog

from tenantry.loops import PeriodicService
from tenantry.terms.lease import ASK_AGAIN_EVERY, RENEW_EVERY, Term, time_since_boot
from tenantry.terms.port import Terms
from tenantry.unavailable import UnavailableError

log: Final = structlog.get_logger("terms")


LONGEST_RENEWAL: Final = 120.0
"""Seconds after which it is taken to hang: the database's answer is waited for much shorter."""


class TermKeeper(PeriodicService):
    """Renews a term until it is lost, or `stop`.

    While the terms can't be reached it goes on trying, at shorter pauses: a term that is about to
    lapse is kept, and one that has lapsed and that nobody has taken is good again, as soon as they
    can be. `lost` is called once, from `run`, when another daemon has.
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

        `give_back` is called with the number where more is given back than the term alone.
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
        """Give the term back, once nothing is done under it any more."""
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
