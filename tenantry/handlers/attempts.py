"""The table of failed attempts at messages, which outlives the process that made them."""

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
"""Why an attempt failed: the handler raised, hung, or ended the daemon."""

KILLED: Final = "the daemon ended while the handler ran"
LOST_AFTER: Final = timedelta(days=7)
"""How long after its last attempt a message counts as gone."""

JITTER: Final = 0.2
LONGEST_ERROR: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """The number of attempts at a message, and the pauses between them; the last pause repeats."""

    attempts: int
    pauses: tuple[float, ...]

    def pause(self, attempt: int) -> float:
        """Give the pause in seconds after failed attempt 1, 2, ...; up to a fifth is jitter."""
        seconds = self.pauses[min(attempt, len(self.pauses)) - 1]
        return seconds * (1 + JITTER * random.random())  # noqa: S311


class Known(NamedTuple):
    """A message's row: `seconds` until it may be tried again.

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
    """A failed attempt, and the pause after it."""

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
        """Give the rows of messages."""
        parameters = {"tenant": tenant_id, "keys": list(keys)}
        rows = connection.execute(self._sql["known"], parameters, prepare=True).fetchall()
        return {bytes(key): Known(*rest) for key, *rest in rows}

    def note(
        self, connection: Connection, tenant_id: str, notes: Sequence[Note]
    ) -> Mapping[bytes, str]:
        """Store failed attempts; give the first error of each message."""
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
        """Remove the rows of messages that are stored now."""
        parameters = {"tenant": tenant_id, "keys": list(keys)}
        connection.execute(self._sql["forget"], parameters, prepare=True)

    def sweep(self, connection: Connection) -> int:
        """Remove the rows of messages that have not come for long; give how many."""
        return connection.execute(self._sql["sweep"], {"age": LOST_AFTER}).rowcount


def in_words(error: BaseException) -> str:
    """Describe on one line what a handler has raised, and where."""
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
