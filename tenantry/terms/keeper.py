"""Keeps a term: renews it, and says when it is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

import structlog

from tenantry.telemetry.heartbeat import Heartbeat
from tenantry.terms.lease import RENEW_EVERY, Term, time_since_boot
from tenantry.terms.port import Terms
from tenantry.unavailable import UnavailableError

log: Final = structlog.get_logger("terms")


LONGEST_RENEWAL: Final = 120.0
"""Seconds after which it is taken to hang: the database's answer is waited for much shorter."""


class TermKeeper:
    """Renews a term until `stop`; `run` belongs on a thread of its own.

    While the terms can't be reached it goes on trying: a term that has lapsed and that nobody has
    taken is renewed and good again. `lost` is called once, from `run`, when somebody has.
    """

    def __init__(
        self,
        terms: Terms,
        term: Term,
        *,
        lost: Callable[[], None],
        every: float = RENEW_EVERY,
        now: Callable[[], float] = time_since_boot,
    ) -> None:
        self.heartbeat: Final = Heartbeat()
        self._terms = terms
        self._term = term
        self._lost = lost
        self._every = every
        self._now = now
        self._stopping = threading.Event()

    def run(self) -> None:
        """Renew the term until it is lost or `stop`."""
        lapsed = False
        while not self._stopping.wait(self._every):
            asked_at = self._now()
            self.heartbeat.beat(LONGEST_RENEWAL)
            try:
                mine = self._terms.renew(self._term.number)
            except UnavailableError as error:
                if not lapsed and not self._term.valid():
                    lapsed = True
                    log.warning("term.lapsed", number=self._term.number, error=str(error))
                continue
            finally:
                self.heartbeat.rest()
            if not mine:
                self._term.end()
                self._lost()
                return
            self._term.renewed(asked_at)
            if lapsed:
                lapsed = False
                log.info("term.renewed", number=self._term.number)

    def stop(self) -> None:
        """End `run`; harmless twice, and before it."""
        self._stopping.set()

    def release(self) -> None:
        """Give the term back, once nothing is done under it any more."""
        self._term.end()
        try:
            self._terms.release(self._term.number)
        except UnavailableError as error:
            log.warning("term.not_released", number=self._term.number, error=str(error))
