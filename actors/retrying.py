"""How a tenant comes back to what it could not do: one reminder at a time, ever less often."""

from __future__ import annotations

from typing import Final

import structlog

from tenantry.actors.clock import Clock
from tenantry.actors.messages import Ref, TryAgain
from tenantry.actors.restarts import HOPELESS, backoff
from tenantry.broker.port import BrokerUnavailableError
from tenantry.journal.port import JournalUnavailableError
from tenantry.messages.port import StoreUnavailableError

log = structlog.get_logger("actors.tenant")

Unavailable: Final = (JournalUnavailableError, StoreUnavailableError, BrokerUnavailableError)
"""An outage: the same step may succeed later. Waited out, not failed over."""

LONGEST_WAIT: Final = 2.0
"""Seconds between attempts during an outage."""


class Retries:
    """Sends `actor` a `TryAgain` when it is time; while one is on its way, no other."""

    def __init__(self, *, actor: Ref, clock: Clock) -> None:
        self._actor = actor
        self._clock = clock
        self._failures = 0
        self._waiting = False

    def after(self, error: Exception) -> None:
        """Try again soon: there is an outage."""
        self._failures += 1
        if self._waiting:
            return
        delay = backoff(self._failures, LONGEST_WAIT)
        log.warning("tenant.waits_for_outage", error=str(error), retry_in=round(delay, 2))
        self._remind(delay)

    def much_later(self, reason: str) -> None:
        """Try again in a minute: it has failed too often, and must be done all the same."""
        log.error("tenant.stands_still", reason=reason, seconds=HOPELESS)
        self._remind(HOPELESS)

    def due(self) -> None:
        """Note that `TryAgain` has come."""
        self._waiting = False

    def succeeded(self) -> None:
        """Note that all is done; after the next failure it is tried again at once."""
        self._failures = 0

    def _remind(self, delay: float) -> None:
        self._waiting = True
        self._clock.tell_later(delay, self._actor, TryAgain())
