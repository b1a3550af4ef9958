"""What is known of attempts at messages, also after the process that made them has ended."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple

from tenantry.handlers.handler_pool import HandlerHangsError
from tenantry.sql import queries

if TYPE_CHECKING:
    from tenantry.database.pool import Connection

HANDLER_FAILED: Final = "handler_failed"
HANDLER_TIMEOUT: Final = "handler_timeout"
WORKER_KILLED: Final = "worker_killed"
"""Why an attempt was in vain: the handler raised, did not come back, or took the daemon with it."""

KILLED: Final = "the daemon ended while the handler ran"
LOST_AFTER: Final = timedelta(days=7)
"""After so long without an attempt, a message is taken to be gone."""

JITTER: Final = 0.2
LONGEST_ERROR: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often a message is tried, and the pauses between; the last pause repeats."""

    attempts: int
    pauses: tuple[float, ...]

    def pause(self, attempt: int) -> float:
        """Give the seconds after a failed attempt, the first being 1; up to a fifth longer."""
        seconds = self.pauses[min(attempt, len(self.pauses)) - 1]
        return seconds * (1 + JITTER * random.random())  # noqa: S311


class Known(NamedTuple):
    """What is known of a message: `seconds` until it may be tried again.

    `judged`: it is a dead letter already. `attempts` is 0 for a message that was only tried
    together with others when the daemon ended.
    """

    attempts: int
    reason: str
    first_error: str
    last_error: str
    seconds: float
    judged: bool


class Note(NamedTuple):
    """An attempt that was in vain, and the pause after it."""

    key: bytes
    attempts: int
    reason: str
    error: str
    seconds: float


class Attempts:
    """The table `tenantry.attempts`. Each call is part of its connection's transaction."""

    def __init__(self) -> None:
        self._sql = queries("attempts")

    def known(
        self, connection: Connection, tenant_id: str, keys: Sequence[bytes]
    ) -> Mapping[bytes, Known]:
        """Give what is known of messages."""
        parameters = {"tenant": tenant_id, "keys": list(keys)}
        rows = connection.execute(self._sql["known"], parameters, prepare=True).fetchall()
        return {bytes(key): Known(*rest) for key, *rest in rows}

    def note(
        self, connection: Connection, tenant_id: str, notes: Sequence[Note]
    ) -> Mapping[bytes, str]:
        """Write attempts down; give the first error of each message."""
        once = {note.key: note for note in notes}
        keys, attempts, reasons, errors, seconds = zip(*once.values(), strict=True)
        parameters = {
            "tenant": tenant_id,
            "keys": list(keys),
            "attempts": list(attempts),
            "reasons": list(reasons),
            "errors": list(errors),
            "seconds": list(seconds),
        }
        rows = connection.execute(self._sql["note"], parameters, prepare=True).fetchall()
        return {bytes(key): first_error for key, first_error in rows}

    def forget(self, connection: Connection, tenant_id: str, keys: Sequence[bytes]) -> None:
        """Forget messages that are stored now."""
        parameters = {"tenant": tenant_id, "keys": list(keys)}
        connection.execute(self._sql["forget"], parameters, prepare=True)

    def sweep(self, connection: Connection) -> int:
        """Forget messages that have not come for long; tell how many."""
        return connection.execute(self._sql["sweep"], {"age": LOST_AFTER}).rowcount


def in_words(error: BaseException) -> str:
    """Say on one line what a handler has raised, and where."""
    text = " ".join(str(error).split()).replace("\0", "\ufffd").encode(errors="replace").decode()
    if isinstance(error, HandlerHangsError):
        return text[:LONGEST_ERROR]
    place = _place(error.__traceback__)
    line = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return line[: LONGEST_ERROR - len(place)] + place


def _place(trace: TracebackType | None) -> str:
    last = trace
    while trace is not None:
        last, trace = trace, trace.tb_next
    if last is None:
        return ""
    code = last.tb_frame.f_code
    return f" ({code.co_filename.rpartition('/')[2]}:{last.tb_lineno} in {code.co_name})"
