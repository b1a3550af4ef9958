"""What Pykka leaves to its users: actors that tell when they fail, and can be replaced.

Pykka starts a thread per actor, and what it does on an error is silent: an exception under `tell`
ends the actor and drops its mailbox, one in `on_start` calls no hook at all. So children do nothing
in `on_start`; the first message, `Begin`, does the work, and every failure takes the same way. When
a child is started again and when it is given up stands in `actors.restarts`; how one that hangs is
noticed, in `actors.watch`.
"""

from __future__ import annotations

import threading
from concurrent.futures import InvalidStateError
from contextlib import suppress
from queue import Empty, Queue
from types import TracebackType
from typing import Any, Final, cast

import pykka
import structlog

from tenantry.actors.clock import tell
from tenantry.actors.messages import ChildFailed, Execute, Ping, Ref
from tenantry.actors.pulse import Pulse
from tenantry.control.port import Outcome, UnavailableError

log = structlog.get_logger("actors")

RESTARTED: Final = "the tenant's actor was restarted; try again"


class ActorCrashError(Exception):
    """Something that is no ordinary error (an exit, say) ended an actor's work."""


class EscalationError(Exception):
    """A child failed too often; its parent fails in its turn."""


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
        self.failure: str | None = None
        """What ended the actor, once it has failed."""
        self.pulse = Pulse("/".join(filter(None, (tenant_id, name))))
        self.pulse.on_fence(self._refuse_mailbox)
        self._actor_ref = SupervisedRef(self)

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
        """Tell the parent something, if it is there to hear it and this actor is not replaced."""
        parent = self.parent
        if parent is not None:
            self.pulse.unless_fenced(lambda: tell(parent, message))

    def beat(self, patience: float | None = None) -> None:
        """Say, between the steps of a long work, that it goes on.

        The next beat, or the end of the message, is due within `patience` seconds; without, within
        the usual. Raises `FencedError` where the actor has been replaced meanwhile, so that it
        takes no further step: to be called before each one that counts outside.
        """
        self.pulse.go_on(patience)

    # Pykka's hooks.

    def on_start(self) -> None:
        """Name the thread, and what it logs, after the actor."""
        self.pulse.thread = threading.current_thread()
        self.pulse.thread.name = self.pulse.name
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
        if self.pulse.is_fenced():
            self._dismiss(message)
            return None
        self.pulse.beat()
        try:
            return self.handle(message)
        except BaseException as error:
            if self.pulse.is_fenced():
                return None  # It was replaced: its failure is nobody's concern any more.
            if isinstance(error, Exception):
                raise
            # Pykka would stop every actor there is; one is enough.
            raise ActorCrashError(f"{type(error).__name__}: {error}") from error
        finally:
            self.pulse.rest()
            if self.pulse.is_fenced():
                log.warning("actor.came_back")

    def on_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Clean up, answer who waits, and tell the parent."""
        self.pulse.beat()
        kind = exception_type.__name__ if exception_type else "failure"
        error = self.failure = f"{kind}: {exception_value}"
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
            self.pulse.forget()
            self.tell_parent(ChildFailed(child=self.actor_ref, name=self.name, error=error))

    def on_stop(self) -> None:
        """Clean up and answer who waits."""
        self.pulse.beat()
        try:
            if not self.pulse.is_fenced():
                self.stopped()
        finally:
            self._refuse_mailbox()
            self.pulse.forget()

    def _refuse_mailbox(self) -> None:
        """Answer commands that nobody will handle any more, so that nobody waits for them."""
        inbox = cast("Queue[Any]", self.actor_inbox)
        with suppress(Empty):
            while True:
                self._dismiss(inbox.get_nowait().message)

    @staticmethod
    def _dismiss(message: object) -> None:
        if isinstance(message, Execute):
            refuse(message, UnavailableError(RESTARTED))


def claim(message: Execute) -> bool:
    """Tell whether a command's sender still waits; from then on it waits until it is answered."""
    reply = message.reply
    return not reply.done() and reply.set_running_or_notify_cancel()


def answer(message: Execute, outcome: Outcome) -> None:
    """Answer a command, unless its sender has stopped waiting."""
    with suppress(InvalidStateError):
        message.reply.set_result(outcome)


def refuse(message: Execute, error: Exception) -> None:
    """Answer a command with an error, unless it has been answered."""
    with suppress(InvalidStateError):
        message.reply.set_exception(error)


class SupervisedRef(pykka.ActorRef[SupervisedActor]):
    """An actor's reference, with its pulse: what others may know of it without asking."""

    def __init__(self, actor: SupervisedActor) -> None:
        super().__init__(actor)
        self.pulse = actor.pulse


def pulse_of(ref: Ref) -> Pulse:
    """Give the pulse of one of our actors."""
    if not isinstance(ref, SupervisedRef):
        raise TypeError(f"{ref} is no supervised actor")
    return ref.pulse


def mailbox_depth(ref: Ref) -> int:
    """Count the messages waiting for an actor."""
    return int(ref.actor_inbox.qsize())  # type: ignore[attr-defined]
