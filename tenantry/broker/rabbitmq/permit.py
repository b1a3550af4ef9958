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
_NAME: Final = re.compile(
    r"tenantry [^,]*(?:, of (?P<of>[a-z0-9-]+))?, term (?P<term>[0-9]{1,19})", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Permit:
    """A term, as connections see it: its number is in their names, so that others know them.

    Terms are counted by an `installation`, whose name is there, too.
    """

    number: int | None = None
    valid: Callable[[], bool] = lambda: True
    installation: str = ""

    def properties(self, name: str) -> dict[str, str]:
        """Give what a connection tells the broker about itself."""
        whose = f", of {self.installation}" if self.installation else ""
        term = "" if self.number is None else f", term {self.number}"
        return {"connection_name": f"tenantry {name}{whose}{term}", "product": PRODUCT}

    def outlived(self, connection_name: str) -> bool:
        """Tell whether a connection of this name was made under an earlier term.

        Anybody may call a connection so: ask only of those that the broker knows to be our user's.
        """
        match = _NAME.fullmatch(connection_name)
        if match is None or self.number is None or (match["of"] or "") != self.installation:
            return False
        return int(match["term"]) < self.number

    def check(self) -> None:
        """Raise `BrokerUnavailableError` once the term may be another's."""
        if not self.valid():
            raise BrokerUnavailableError(f"the term {self.number} has lapsed; nothing is sent")


UNLIMITED: Final = Permit()


class PermittedConnection(pika.SelectConnection):
    """A connection that sends nothing any more once its permit is not valid, and breaks instead.

    What a frozen daemon had ready to be sent when it was stopped, acknowledgements above all, stays
    unsent when it wakes up too late.
    """

    permit: Permit = UNLIMITED
    _breaking = False

    def _output_marshaled_frames(self, marshaled_frames: Any) -> None:
        """Send frames; everything pika sends goes this way."""
        if self.permit.valid():
            super()._output_marshaled_frames(marshaled_frames)
        elif not self._breaking:
            # Not before the caller has returned: pika's heartbeat, for one, would go on with a
            # connection that is closed.
            self._breaking = True
            self._adapter_call_later(0, self._break_off_lapsed)

    def break_off(self, error: Exception) -> None:
        """End the connection at once, for this reason: nothing is said on it any more."""
        self._terminate_stream(error)

    def _break_off_lapsed(self) -> None:
        if not self.is_closed:
            self.break_off(BrokerUnavailableError(f"the term {self.permit.number} has lapsed"))


def permitted(wanted: Permit) -> type[PermittedConnection]:
    """Give the kind of connection that is under this permit from its first word on."""

    class Permitted(PermittedConnection):
        permit = wanted

    return Permitted
