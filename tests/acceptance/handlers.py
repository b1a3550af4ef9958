"""Handlers for the daemon under test. Each message says what its handler is to do."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import psycopg
from opentelemetry import trace

from tenantry.handlers.message import Message

not_a_function = 7


def act(message: Message, cursor: psycopg.Cursor[Any]) -> None:
    """Write a row; then fail, hang or end the daemon, if the message says so."""
    cursor.execute(
        "INSERT INTO effects VALUES (%s, %s, %s)", [message.tenant_id, message.id, message.attempt]
    )
    match message.payload:
        case {"fails": int(often)} if message.attempt <= often:
            raise ValueError(f"attempt {message.attempt} is in vain")
        case {"exits": "thread"}:
            sys.exit(3)
        case {"exits": "process"}:
            os._exit(9)
        case {"hangs": True}:
            time.sleep(3600)
        case {"span": str(name)}:
            trace.get_tracer("handlers").start_span(name).end()


def one_in_a_hundred(message: Message, cursor: psycopg.Cursor[Any]) -> None:
    """Write a row; fail if the message has the header `poison`, as one in a hundred has."""
    cursor.execute("INSERT INTO effects VALUES (%s, %s, 1)", [message.tenant_id, message.id])
    if message.headers.get("poison"):
        raise ValueError("poison")


def while_not_broken(message: Message, cursor: psycopg.Cursor[Any]) -> None:
    """Do nothing; fail while the table `broken` has a row."""
    if cursor.execute("SELECT FROM broken").fetchone() is not None:
        raise ValueError(f"{message.topic} can't be handled")
