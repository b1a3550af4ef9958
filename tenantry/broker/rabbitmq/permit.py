"""May this daemon act on the broker? What it sends, and under which name, depends on its term."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import pika

from tenantry.broker.port import BrokerUnavailableError

PRODUCT: Final = "Tenantry"
# A term is a bigint: more digits are nobody's, and Python would refuse to read thousands of them.
_NAME: Final = re.compile(r"tenantry .*, term ([0-9]{1,19})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Permit:
    """A term, as connections see it: its number is in their names, so that others know them."""

    number: int | None = None
    valid: Callable[[], bool] = lambda: True

    def properties(self, name: str) -> dict[str, str]:
        """Give what a connection tells the broker about itself."""
        term = "" if self.number is None else f", term {self.number}"
        return {"connection_name": f"tenantry {name}{term}", "product": PRODUCT}

    def check(self) -> None:
        """Raise `BrokerUnavailableError` once the term may be another's."""
        if not self.valid():
            raise BrokerUnavailableError(f"the term {self.number} has lapsed; nothing is sent")


UNLIMITED: Final = Permit()


def term_of(connection_name: str) -> int | None:
    """Tell under which term a connection of this name was made; None of all others.

    Anybody may call a connection so: ask only of those that the broker knows to be our user's.
    """
    match = _NAME.fullmatch(connection_name)
    return None if match is None else int(match[1])


class PermittedConnection(pika.SelectConnection):
    """A connection that sends nothing any more once its permit is not valid, and breaks instead.

    What a frozen daemon had ready to be sent when it was stopped, acknowledgements above all, stays
    unsent when it wakes up too late.
    """

    permit: Permit = UNLIMITED

    def _output_marshaled_frames(self, marshaled_frames: Any) -> None:
        """Send frames; everything pika sends goes this way."""
        if self.permit.valid():
            super()._output_marshaled_frames(marshaled_frames)
        else:
            self.break_off(BrokerUnavailableError(f"the term {self.permit.number} has lapsed"))

    def break_off(self, error: Exception) -> None:
        """End the connection at once, for this reason: nothing is said on it any more."""
        self._terminate_stream(error)


def permitted(wanted: Permit) -> type[PermittedConnection]:
    """Give the kind of connection that is under this permit from its first word on."""

    class Permitted(PermittedConnection):
        permit = wanted

    return Permitted
