"""Puts handlers before the message store, with threads and connections of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Final

import structlog

from tenantry.database.pool import STATEMENT_TIMEOUT, Database
from tenantry.handlers.attempt_runner import TRANSACTIONS
from tenantry.handlers.attempts import RetryPolicy
from tenantry.handlers.handler_pool import HandlerPool
from tenantry.handlers.message import Handler
from tenantry.handlers.store import HandlingStore
from tenantry.messages.port import MessageStore
from tenantry.messages.postgres import PostgresMessageStore
from tenantry.settings import Settings

log: Final = structlog.get_logger("daemon")

IDLE_MARGIN: Final = 30.0
"""Seconds beyond its time after which the server ends a transaction in which a handler hangs."""


def with_handlers(
    plain: PostgresMessageStore,
    handlers: Mapping[str, Handler],
    database: Database,
    settings: Settings,
    *,
    connections: int,
    stack: ExitStack,
    on_overrun: Callable[[str], None],
) -> MessageStore:
    """Give the store that runs the handlers, if there are any; `stack` closes what it needs.

    As many run at once as they have `connections`.
    """
    if not handlers:
        return plain
    seconds = settings.handler.timeout_seconds
    own = database.beside(
        pool_size=connections,
        statement_timeout=max(seconds, STATEMENT_TIMEOUT),
        idle_timeout=seconds + IDLE_MARGIN,
    )
    stack.callback(own.close)
    own.open()
    pool = HandlerPool(places=connections, timeout=seconds, on_overrun=on_overrun)
    stack.callback(pool.close)
    retry = RetryPolicy(attempts=settings.retry.attempts, pauses=settings.retry.backoff_seconds)
    store = HandlingStore(database, own, handlers, pool=pool, retry=retry)
    store.sweep()
    log.info("handlers.ready", topics=sorted(handlers), timeout_seconds=seconds)
    return store


def abandoned(store: MessageStore) -> int:
    """Count the threads that were left behind because a handler on them hangs."""
    return store.abandoned if isinstance(store, HandlingStore) else 0


def store_patience(handlers: Mapping[str, Handler], settings: Settings) -> float | None:
    """Give the seconds a batch may take with handlers; None, where there are none."""
    if not handlers:
        return None
    hang, one = settings.supervision.hang_seconds, settings.handler.timeout_seconds
    return hang + (TRANSACTIONS + 1) * one
