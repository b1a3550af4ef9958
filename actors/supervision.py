"""Supervision on top of Pykka: actors that report their failures, and can be replaced.

Pykka starts a thread per actor, and handles errors silently: an exception under `tell` ends the
actor and drops its mailbox; an exception in `on_start` calls no hook at all. So children do nothing
in `on_start`: messages do the work, and every failure takes the same way. `actors.backoff` decides
when a child is restarted and when it is given up; `actors.watch` notices a child that hangs.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import InvalidStateError
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue
from types import TracebackType
from typing import Any, Final, Self, cast

import pykka
import structlog

from tenantry.actors.messages import ChildFailed, Execute, Ping, Ref
from tenantry.control.port import ControlUnavailableError
from tenantry.loops import Heartbeat
from tenantry.unavailable import UnavailableError

log = structlog.get_logger("actors")

_ROOT: Final = Path(__file__).parents[2]


class ActorCrashError(Exception):
    """An exception that is not an `Exception` (an exit, say) ended an actor's work."""


class EscalationError(Exception):
    """A child failed too often; its parent fails in its turn."""


class NoThreadError(UnavailableError):
    """The operating system lets this process start no more threads, and each actor needs one."""

    def __init__(self) -> None:
        super().__init__(
            f"no more threads can be started ({threading.active_count()} run): raise the limit on "
            "tasks (TasksMax of the service, pids.max, ulimit -u, kernel.pid_max), or add a node"
        )


class FencedError(Exception):
    """The actor was replaced while it was busy: it may take no further step."""


def tell(ref: Ref, message: object) -> bool:
    """Put a message into an actor's mailbox; False, and no error, if the actor has stopped."""
    try:
        ref.tell(message)
    except pykka.ActorDeadError:
        return False
    return True


def refuse(message: Execute, error: Exception) -> None:
    """Answer a command with an error, unless it has been answered."""
    with suppress(InvalidStateError):
        message.reply.set_exception(error)


class SupervisedActor(pykka.ThreadingActor):
    """An actor that tells its parent when it fails.

    Subclasses implement `handle`, and may implement `stopped` and `crashed`, which run in the
    actor's own thread and must give back the actor's resources.
    """

    def __init__(self, *, name: str, parent: Ref | None, tenant_id: str | None = None) -> None:
        super().__init__()
        self.name = name
        self.parent = parent
        self.tenant_id = tenant_id
        self.failure: str | None = None
        """The error that ended the actor, once it has failed."""
        self.heartbeat = ActorHeartbeat("/".join(filter(None, (tenant_id, name))))
        self.heartbeat.on_fence(self._refuse_mailbox)
        self._actor_ref = SupervisedRef(self)

    def handle(self, message: object) -> object:
        """Handle one message; the result answers an `ask`."""
        raise NotImplementedError

    def stopped(self) -> None:
        """Give back what the actor owns, at an orderly stop."""

    def crashed(self) -> None:
        """Give back what the actor owns, after a failure: as at a stop."""
        self.stopped()

    def tell_parent(self, message: object) -> None:
        """Send the parent a message, unless the parent is gone or this actor was replaced."""
        parent = self.parent
        if parent is not None:
            self.heartbeat.unless_fenced(lambda: tell(parent, message))

    def beat(self, patience: float | None = None) -> None:
        """Beat between the steps of long work: see `ActorHeartbeat.go_on`."""
        self.heartbeat.go_on(patience)

    # Pykka's hooks.

    @classmethod
    def start(cls, *args: Any, **kwargs: Any) -> pykka.ActorRef[Self]:
        """Start an actor, and leave it out of pykka's registry. Raises `NoThreadError`.

        The registry is a list, and each actor that ends searches all of it.
        """
        actor = cls(*args, **kwargs)
        actor._start_actor_loop()
        return actor.actor_ref

    def _start_actor_loop(self) -> None:
        try:
            ActorThread(self).start()
        except RuntimeError as error:
            raise NoThreadError from error

    def on_start(self) -> None:
        """Bind the log lines of the actor's thread to the actor."""
        self.heartbeat.thread = threading.current_thread()
        context = {"actor": self.name}
        if self.tenant_id is not None:
            context["tenant"] = self.tenant_id
        structlog.contextvars.bind_contextvars(**context)

    def on_receive(self, message: object) -> object:
        """Pass a message to `handle`; an exception ends this actor and no other."""
        heartbeat = self.heartbeat
        if isinstance(message, Ping):
            with suppress(InvalidStateError):
                message.reply.set_result(None)
            return None
        if heartbeat.is_fenced():
            self._dismiss(message)
            return None
        heartbeat.beat()
        try:
            return self.handle(message)
        except BaseException as error:
            if heartbeat.is_fenced():
                return None  # The actor was replaced: its failure concerns no other actor.
            if isinstance(error, Exception):
                raise
            # Pykka would stop all actors; only this one is to end.
            raise ActorCrashError(f"{type(error).__name__}: {error}") from error
        finally:
            heartbeat.rest()
            if heartbeat.is_fenced():
                log.warning("actor.came_back")

    def on_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Clean up, refuse the commands in the mailbox, and tell the parent."""
        self.heartbeat.beat()
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
            self.heartbeat.forget()
            self.tell_parent(ChildFailed(child=self.actor_ref, error=error))

    def on_stop(self) -> None:
        """Clean up and refuse the commands in the mailbox."""
        self.heartbeat.beat()
        try:
            if not self.heartbeat.is_fenced():
                self.stopped()
        finally:
            self._refuse_mailbox()
            self.heartbeat.forget()

    def _refuse_mailbox(self) -> None:
        """Empty the mailbox, which is no longer read, and refuse the commands in it."""
        inbox = cast("Queue[Any]", self.actor_inbox)
        with suppress(Empty):
            while True:
                self._dismiss(inbox.get_nowait().message)

    @staticmethod
    def _dismiss(message: object) -> None:
        if isinstance(message, Execute):
            restarted = "the tenant's actor was restarted; try again"
            refuse(message, ControlUnavailableError(restarted))


class ActorThread(threading.Thread):
    """An actor's thread; a hung one does not keep the process from ending."""

    def __init__(self, actor: SupervisedActor) -> None:
        self.heartbeat = actor.heartbeat
        name = self.heartbeat.name
        super().__init__(target=actor._actor_loop, name=name, daemon=True)  # noqa: SLF001


class SpareThreads:
    """Sees, now and then, that more threads than one can be started: all other parts need some."""

    SPARE: Final = 96
    EVERY: Final = 32
    """The number of actors between two looks."""

    PAUSE: Final = 1.0
    """Seconds for which a look that has found too few stands: many actors may wait."""

    def __init__(self) -> None:
        self._asked = 0
        self._none_until = 0.0

    def check(self, now: float) -> None:
        """Be called before each start of an actor. Raises `NoThreadError`."""
        if now < self._none_until:
            raise NoThreadError
        if self._asked % self.EVERY == 0 and not self._can_be_started():
            self._none_until = now + self.PAUSE
            raise NoThreadError
        self._asked += 1

    def _can_be_started(self) -> bool:
        release, started = threading.Event(), list[threading.Thread]()
        try:
            for _ in range(self.SPARE):
                thread = threading.Thread(target=release.wait, name="spare", daemon=True)
                thread.start()
                started.append(thread)
        except RuntimeError:
            return False
        finally:
            release.set()
            for thread in started:
                thread.join()
        return True


class ActorHeartbeat(Heartbeat):
    """A heartbeat, and a fence.

    Python can't end an actor's thread that hangs. A replaced actor is fenced instead: from then on
    it tells its parent nothing and handles no message, and the thread that fences it gives back
    the actor's outside resources.
    """

    __slots__ = ("_fenced", "_gate", "_releases", "name", "stuck", "thread")

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.thread: threading.Thread | None = None
        self._fenced = False
        self.stuck = False
        """Written by the watch alone."""
        self._gate = threading.Lock()
        self._releases: list[Callable[[], None]] = []

    def is_fenced(self) -> bool:
        """Tell whether the actor has been replaced."""
        return self._fenced

    def fence(self) -> None:
        """Void the actor's messages from now on, and give back its resources. From any thread.

        When this returns, no message of the actor is under way any more. Harmless twice.
        """
        with self._gate:
            self._fenced = True
            releases, self._releases = self._releases, []
        for release in releases:
            self._release(release)

    def on_fence(self, release: Callable[[], None]) -> None:
        """Register `release`, which gives back a resource at a fence; called from any thread."""
        with self._gate:
            if not self._fenced:
                self._releases.append(release)
                return
        self._release(release)

    def forget(self) -> None:
        """Drop the releases, and so the actor, which has ended and given everything back."""
        with self._gate:
            self._releases.clear()

    def go_on(self, patience: float | None = None) -> None:
        """Beat between the steps of long work: before each step with an effect outside.

        The next beat, or the end of the message, is due within `patience` seconds; without, within
        the watch's own. Raises `FencedError` where the actor has been replaced meanwhile, so that
        it takes no further step.
        """
        if self._fenced:
            raise FencedError(self.name)
        self.beat(patience)

    def unless_fenced(self, say: Callable[[], object]) -> None:
        """Call `say`, which must not block, unless the actor has been replaced."""
        with self._gate:
            if not self._fenced:
                say()

    def at_ease(self) -> bool:
        """Tell whether the actor's live thread waits for a message, and it is not marked stuck."""
        thread = self.thread
        return self._latest is None and not self.stuck and thread is not None and thread.is_alive()

    @property
    def ended(self) -> bool:
        """Whether the actor's thread has started and ended."""
        return self.thread is not None and not self.thread.is_alive()

    def where(self) -> str:
        """Describe where in the program the actor's thread is now."""
        return "" if self.thread is None else where_is(self.thread)

    def _release(self, release: Callable[[], None]) -> None:
        try:
            release()
        except Exception:
            log.exception("actor.release_failed", stuck=self.name)


class SupervisedRef(pykka.ActorRef[SupervisedActor]):
    """An actor's reference with its heartbeat, readable without asking the actor."""

    def __init__(self, actor: SupervisedActor) -> None:
        super().__init__(actor)
        self.heartbeat = actor.heartbeat


def heartbeat_of(ref: Ref) -> ActorHeartbeat:
    """Return the heartbeat of a `SupervisedActor`."""
    if not isinstance(ref, SupervisedRef):
        raise TypeError(f"{ref} is no supervised actor")
    return ref.heartbeat


def mailbox_depth(ref: Ref) -> int:
    """Count the messages waiting for an actor."""
    return int(ref.actor_inbox.qsize())  # type: ignore[attr-defined]


def where_is(thread: threading.Thread) -> str:
    """Describe where in the program a thread is now."""
    # The only way to look at another thread; it exists since Python 2.5.
    frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001
    places: list[str] = []
    while frame is not None and len(places) < 3:
        path = Path(frame.f_code.co_filename)
        name = path.relative_to(_ROOT) if path.is_relative_to(_ROOT) else path.name
        places.append(f"{name}:{frame.f_lineno} in {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(places)
