"""The threads that handlers run on, so that a thread whose handler hangs can be left behind.

Python can't end a thread. A thread whose handler hangs is abandoned: the caller severs its
connection, its results are ignored, and it ends when the handler returns. Another thread takes its
place. With too many abandoned threads the process has to be restarted.
"""

from __future__ import annotations

import contextvars
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Final, NamedTuple, TypeAlias

import structlog

from tenantry.handlers.connection import HandlerCursor, HandlerMisuseError
from tenantry.handlers.message import Handler, Message
from tenantry.tracing import Tracer
from tenantry.turns.room import Room
from tenantry.turns.turns import Turns, Weights

log = structlog.get_logger(__name__)

IDLE_SECONDS: Final = 60.0
"""How long an idle thread is kept."""

MOST_ABANDONED: Final = 16
"""The most threads with handlers that hang."""

JOIN_TIMEOUT: Final = 1.0

OnHandled: TypeAlias = Callable[[str, float, str | None], object]
"""Called after each run of a handler: its topic, the seconds it took, and its trace's id."""


class Call(NamedTuple):
    """A handler, and the message to handle."""

    handler: Handler
    message: Message


@dataclass(frozen=True, slots=True)
class Ran:
    """The progress of a series of calls: `count` have ended; the next failed with `error`, if any.

    `harmless` has those of the `count` that failed before they used the database, by their place:
    nothing has to be undone for them. Without an error and with calls left, the time was up, or the
    last call failed and none was to follow it.
    """

    count: int
    error: BaseException | None = None
    harmless: Mapping[int, BaseException] = field(default_factory=dict)


class HandlerHangsError(Exception):
    """The call after the first `count` has not returned in time."""

    def __init__(self, count: int, seconds: float, where: str) -> None:
        super().__init__(f"the handler has not come back within {seconds:g} s{where}")
        self.count = count


class _Job:
    """A series of calls on one cursor. A lock decides whether handler or timeout came first."""

    def __init__(
        self,
        calls: Sequence[Call],
        cursor: HandlerCursor,
        until: float,
        *,
        in_order: bool,
        tracer: Tracer,
        on_handled: OnHandled,
    ) -> None:
        self._calls = calls
        self._tracer = tracer
        self._on_handled = on_handled
        self._trace_id: str | None = None
        self._in_order = in_order
        self._thread: int | None = None
        self._cursor = cursor
        self._until = until
        self._context = contextvars.copy_context()
        self._lock = threading.Lock()
        self._count = 0
        self._harmless: dict[int, BaseException] = {}
        self._since = monotonic()
        self._error: BaseException | None = None
        self._abandoned = False
        self._done = threading.Event()

    # On the handler's thread.

    def work(self) -> bool:
        """Make the calls; tell whether the caller still waits for them."""
        self._thread = threading.get_ident()
        try:
            self._context.run(self._make_calls)
        except Exception as error:  # noqa: BLE001 - of ours, not a handler's: nobody waits for it
            self._error = error
        self._done.set()
        with self._lock:
            return not self._abandoned

    def _make_calls(self) -> None:
        call = self._traced_call if self._tracer.on else self._call
        for handler, message in self._calls:
            if not self._go_on():
                return
            error = call(handler, message)
            self._on_handled(message.topic, monotonic() - self._since, self._trace_id)
            with self._lock:
                if self._abandoned:
                    return
                if error is not None:
                    if self._cursor.touched:
                        self._error = error
                        return
                    self._harmless[self._count] = error
                self._count += 1
                if error is not None and self._in_order:
                    return

    def _go_on(self) -> bool:
        now = monotonic()
        with self._lock:
            self._since = now
            return not self._abandoned and (now < self._until or not self._count)

    def _traced_call(self, handler: Handler, message: Message) -> BaseException | None:
        with self._tracer.handling(message) as span:
            self._trace_id = None if span.context is None else span.context.trace_id
            error = self._call(handler, message)
            if error is not None:
                span.failed(type(error).__name__)
        return error

    def _call(self, handler: Handler, message: Message) -> BaseException | None:
        self._cursor.touched = False
        try:
            result = handler(message, self._cursor)
        except BaseException as error:  # noqa: BLE001 - an exit, too, is the message's failure
            return error
        if result is not None and inspect.isawaitable(result):
            return HandlerMisuseError("the handler is asynchronous: nobody awaits what it returned")
        misuse = self._cursor.misuse()
        return None if misuse is None else HandlerMisuseError(misuse)

    # On the caller's.

    def wait(self, timeout: float) -> Ran:
        while not self._done.wait(max(0.001, self._since + timeout - monotonic())):
            with self._lock:
                if monotonic() - self._since >= timeout and not self._done.is_set():
                    self._abandoned = True
                    raise HandlerHangsError(self._count, timeout, self._where())
        return Ran(self._count, self._error, self._harmless)

    def _where(self) -> str:
        """Describe where in the handler's code its thread is."""
        # The only way to see another thread's stack; it exists since Python 2.5.
        frame = sys._current_frames().get(self._thread or 0)  # noqa: SLF001
        found = ""
        while frame is not None and frame.f_code is not _Job._call.__code__:
            code = frame.f_code
            file = code.co_filename.rpartition("/")[2]
            found = f": it is in {code.co_name}, at {file}:{frame.f_lineno}"
            frame = frame.f_back
        return found


class _Runner:
    """A thread, and its queue of jobs."""

    def __init__(self, name: str, pool: HandlerPool) -> None:
        self.jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._pool = pool
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while True:
            try:
                job = self.jobs.get(timeout=IDLE_SECONDS)
            except Empty:
                if self._pool.dismiss(self):
                    return
                continue
            if job is None:
                return
            if not job.work():
                self._pool.returned()
                return


class HandlerPool:
    """Runs handlers on a bounded number of threads. Callable from any thread."""

    def __init__(
        self,
        *,
        places: int,
        timeout: float,
        weights: Weights | None = None,
        on_overrun: Callable[[str], object] = log.critical,
        tracer: Tracer | None = None,
        on_handled: OnHandled = lambda *_: None,
    ) -> None:
        """A call may take `timeout` seconds. `on_overrun` is called when too many threads hang.

        `on_handled` is called after each run that returned, also late, on the handler's thread: it
        must neither block nor raise.
        """
        self._turns = Turns(
            weights or Weights(),
            room=Room(least=places, most=places),
            most=places,
            most_of_one=places,
        )
        self._timeout = timeout
        self._tracer = tracer or Tracer()
        self._on_handled = on_handled
        self._on_overrun = on_overrun
        self._idle: list[_Runner] = []
        self._lock = threading.Lock()
        self._started = 0
        self._closed = False
        self.abandoned = 0
        """The number of abandoned threads that have not ended."""

    @contextmanager
    def place(self, tenant_id: str, seconds: float) -> Iterator[bool]:
        """Take a place, waiting at most so long for the tenant's turn; False if there is none.

        Tenants share the time in which their handlers run.
        """
        turn = self._turns.take(tenant_id, 1.0, patience=seconds)
        try:
            yield turn is not None
        finally:
            if turn is not None:
                self._turns.ended(turn, lambda seconds: seconds)

    def run(
        self,
        calls: Sequence[Call],
        cursor: HandlerCursor,
        *,
        until: float,
        in_order: bool = False,
    ) -> Ran:
        """Make the calls one after the other, at least one; begin none after `until`.

        With `in_order`, none is made after a failed one, harmless or not.

        Raises `HandlerHangsError`: then the thread is abandoned with the cursor, whose connection
        the caller has to sever.
        """
        runner = self._runner()
        job = _Job(
            calls,
            cursor,
            until,
            in_order=in_order,
            tracer=self._tracer,
            on_handled=self._on_handled,
        )
        runner.jobs.put(job)
        try:
            ran = job.wait(self._timeout)
        except HandlerHangsError:
            self._abandon(runner)
            raise
        with self._lock:
            self._idle.append(runner)
        return ran

    def close(self) -> None:
        """End the idle threads; name those that hang, and leave them."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for runner in idle:
            runner.jobs.put(None)
        for runner in idle:
            runner.thread.join(JOIN_TIMEOUT)
        if self.abandoned:
            log.warning("handlers.hang", threads=self.abandoned)

    # For the threads.

    def dismiss(self, runner: _Runner) -> bool:
        """Release an idle thread, unless it was just given a job."""
        with self._lock:
            if runner not in self._idle:
                return False
            self._idle.remove(runner)
            return True

    def returned(self) -> None:
        """Note that an abandoned thread has returned and ends."""
        with self._lock:
            self.abandoned -= 1

    def _runner(self) -> _Runner:
        with self._lock:
            if self._idle:
                return self._idle.pop()
            self._started += 1
            number = self._started
        return _Runner(f"handler-{number}", self)

    def _abandon(self, runner: _Runner) -> None:
        with self._lock:
            self.abandoned += 1
            count = self.abandoned
        log.error("handler.abandoned", thread=runner.thread.name, abandoned=count)
        if count > MOST_ABANDONED:
            self._on_overrun(f"{count} threads hang in handlers")
