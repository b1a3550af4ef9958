"""What Pykka leaves to its users: children that are watched, restarted within limits, given up.

The rules are Erlang's: a child that fails is restarted by its parent, after a backoff; one that
fails too often within a period is not worth restarting, and the failure is its parent's own.
Pykka starts a thread per actor, and what it does on an error is silent: an exception under `tell`
ends the actor and drops its mailbox, one in `on_start` calls no hook at all. So children do nothing
in `on_start`; the first message, `Begin`, does the work, and every failure takes the same way.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from concurrent.futures import InvalidStateError
from contextlib import suppress
from types import TracebackType
from typing import Final

import pykka
import structlog

from actors.clock import tell
from actors.messages import ChildFailed, Execute, Ping, Ref
from tenantry.api.port import Outcome, UnavailableError

log = structlog.get_logger("actors")

FIRST_BACKOFF: Final = 0.1
LONGEST_BACKOFF: Final = 5.0

STUCK_SECONDS: Final = 180.0
"""How long an actor may handle one message: every wait in it is bounded, and they don't add up to
this, not even while broker and database are away."""

_busy_since: Final[dict[str, float]] = {}
"""Of each actor that is handling a message, by its URN: since when, on the monotonic clock."""


class ActorCrashError(Exception):
    """Something that is no ordinary error (an exit, say) ended an actor's work."""


class EscalationError(Exception):
    """A child failed too often; its parent fails in its turn."""


class RestartIntensity:
    """How many restarts are allowed within how many seconds, for one child."""

    def __init__(self, *, restarts: int = 5, within: float = 30.0) -> None:
        self._restarts = restarts
        self._within = within
        self._times: deque[float] = deque()
        self.total = 0

    def allows(self, now: float) -> bool:
        """Count a failure at `now`; tell whether the child may be started once more."""
        self.total += 1
        self._times.append(now)
        while self._times and self._times[0] <= now - self._within:
            self._times.popleft()
        return len(self._times) <= self._restarts

    def backoff(self) -> float:
        """Give the seconds to wait before the next start, more with each recent failure."""
        return backoff(len(self._times))


def backoff(failures: int, longest: float = LONGEST_BACKOFF) -> float:
    """Give seconds to wait after so many failures in a row: doubling, bounded, with jitter."""
    ceiling = min(longest, FIRST_BACKOFF * 2.0 ** min(max(failures - 1, 0), 16))
    return ceiling * (0.5 + random.random() / 2)  # noqa: S311


class SupervisedActor(pykka.ThreadingActor):
    """An actor that tells its parent when it fails.

    Subclasses write `handle`, and may write `crashed` and `stopped`, which run in the actor's own
    thread: what they own must be given back there.
    """

    use_daemon_thread = True  # A hung actor must not keep the process from ending.

    def __init__(self, *, name: str, parent: Ref | None, tenant_id: str | None = None) -> None:
        super().__init__()
        self.name = name
        self.parent = parent
        self.tenant_id = tenant_id

    def handle(self, message: object) -> object:
        """Handle one message; what is returned answers an `ask`."""
        raise NotImplementedError

    def crashed(self) -> None:
        """Give back what the actor owns, after a failure."""

    def stopped(self) -> None:
        """Give back what the actor owns, at an orderly stop."""

    def tell_self(self, message: object) -> None:
        """Put a message at the end of the actor's own mailbox."""
        self.actor_ref.tell(message)

    def tell_parent(self, message: object) -> None:
        """Tell the parent something, if it is there to hear it."""
        if self.parent is not None:
            tell(self.parent, message)

    # Pykka's hooks.

    def on_start(self) -> None:
        """Name the thread, and what it logs, after the actor."""
        threading.current_thread().name = "/".join(filter(None, (self.tenant_id, self.name)))
        context = {"actor": self.name}
        if self.tenant_id is not None:
            context["tenant"] = self.tenant_id
        structlog.contextvars.bind_contextvars(**context)

    def on_receive(self, message: object) -> object:
        """Hand a message to `handle`; whatever escapes ends this actor and no other."""
        if isinstance(message, Ping):
            if message.reply is not None:
                with suppress(InvalidStateError):
                    message.reply.set_result(None)
            return True
        _busy_since[self.actor_urn] = time.monotonic()
        try:
            return self.handle(message)
        except Exception:
            raise
        except BaseException as error:
            # Pykka would stop every actor there is; one is enough.
            raise ActorCrashError(f"{type(error).__name__}: {error}") from error
        finally:
            del _busy_since[self.actor_urn]

    def on_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Clean up, answer who waits, and tell the parent."""
        kind = exception_type.__name__ if exception_type else "failure"
        error = f"{kind}: {exception_value}"
        log.error(
            "actor.failed",
            error=error,
            exc_info=(exception_type, exception_value, traceback)
            if exception_type and exception_value
            else None,
        )
        try:
            self.crashed()
        except Exception:
            log.exception("actor.cleanup_failed")
        finally:
            self._refuse_mailbox()
            self.tell_parent(ChildFailed(child=self.actor_ref, name=self.name, error=error))

    def on_stop(self) -> None:
        """Clean up and answer who waits."""
        try:
            self.stopped()
        finally:
            self._refuse_mailbox()

    def _refuse_mailbox(self) -> None:
        """Answer commands that nobody will handle any more, so that nobody waits for them."""
        while not self.actor_inbox.empty():
            message = self.actor_inbox.get().message
            if isinstance(message, Execute):
                refuse(message, UnavailableError("the tenant's actor was restarted; try again"))


def mailbox_depth(ref: Ref) -> int:
    """Count the messages waiting for an actor."""
    return int(ref.actor_inbox.qsize())  # type: ignore[attr-defined]


def is_stuck(ref: Ref) -> bool:
    """Tell whether an actor has been handling one message for longer than any may take."""
    since = _busy_since.get(ref.actor_urn)
    return since is not None and time.monotonic() - since > STUCK_SECONDS


def answer(message: Execute, outcome: Outcome) -> None:
    """Answer a command, unless its sender has stopped waiting."""
    with suppress(InvalidStateError):
        message.reply.set_result(outcome)


def refuse(message: Execute, error: Exception) -> None:
    """Answer a command with an error, unless it has been answered."""
    with suppress(InvalidStateError):
        message.reply.set_exception(error)
