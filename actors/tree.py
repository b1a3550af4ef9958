"""The tree of actors: how it is started, and how it is drained and stopped.

To drain, `DrainAll` goes down the tree and `Drained` comes up: new commands are refused, consumers
cancel, workers finish the deliveries that they and their consumer hold, acks are sent, tenants
stop. The actors' backends (broker connection, journal, database) are closed after them, by their
owner.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from typing import Final

import pykka
import structlog

from tenantry.actors.messages import Begin, DrainAll, Orphan, Ref
from tenantry.actors.ports import ActorPorts
from tenantry.actors.runtime_state import RuntimeState
from tenantry.actors.supervision import tell
from tenantry.actors.supervisor import STOP_TIMEOUT, Supervisor

log = structlog.get_logger("actors.drain")

TURN: Final = 0.2
"""Seconds of one wait on the main thread. A signal that comes just before a wait, or to another
thread, is handled only after the wait: a second signal, which ends the daemon at once, must not be
delayed."""


def start_actors(
    ports: ActorPorts, runtime: RuntimeState, *, on_crash: Callable[[str], None]
) -> Ref:
    """Start the supervisor, and set it in `runtime`; it does nothing before `begin`.

    `on_crash` is called with the reason where the supervisor fails, from its thread.
    """
    supervisor: Ref = Supervisor.start(ports=ports, runtime=runtime, on_crash=on_crash)
    runtime.supervisor = supervisor
    return supervisor


def begin(supervisor: Ref) -> None:
    """Let the supervisor start an actor for each existing tenant."""
    tell(supervisor, Begin())


def drain_and_stop(supervisor: Ref, *, seconds: float) -> tuple[Orphan, ...]:
    """Drain the whole tree within `seconds`, stop it, and name what was left unfinished.

    Stopping may take a few seconds more. Never raises for an actor that is dead or hangs.
    """
    until = time.monotonic() + seconds + 1.0
    reply: Future[tuple[Orphan, ...]] = Future()
    if not tell(supervisor, DrainAll(seconds=seconds, stop=True, reply=reply)):
        return ()
    orphans: tuple[Orphan, ...] = (Orphan(tenant_id="*", actor="supervisor", deliveries=0),)
    while (left := until - time.monotonic()) > 0:
        with suppress(FutureTimeoutError):
            orphans = reply.result(min(left, TURN))
            break
    try:
        supervisor.stop(block=True, timeout=STOP_TIMEOUT + 1.0)
    except (pykka.Timeout, pykka.ActorDeadError) as error:
        log.warning("supervisor.does_not_stop", error=repr(error))
    return orphans


def report(orphans: Collection[Orphan]) -> None:
    """Name each orphan in the log; one line names them all."""
    for one in orphans:
        log.error("drain.orphan", tenant=one.tenant_id, actor=one.actor, deliveries=one.deliveries)
    named = [f"{one.tenant_id}/{one.actor}: {one.deliveries} deliveries" for one in orphans]
    log.error("daemon.stopped_unfinished", orphans=named)
