"""A broker is taken to be silent when nothing comes from it, and only then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from pika.exceptions import AMQPHeartbeatTimeout

from tenantry.broker.rabbitmq.connection import LOOK_EVERY, SILENT_AFTER, SilenceWatch


class Loop:
    def __init__(self) -> None:
        self.next: Callable[[], None] | None = None

    def call_later(self, seconds: float, fn: Callable[[], None]) -> None:
        assert seconds == LOOK_EVERY
        assert self.next is None
        self.next = fn

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            assert self.next is not None
            due, self.next = self.next, None
            due()


class Connection:
    is_open = True
    bytes_received = 100

    def __init__(self) -> None:
        self.broken: list[Exception] = []

    def break_off(self, error: Exception) -> None:
        self.broken.append(error)
        self.is_open = False


def watched() -> tuple[Loop, Connection]:
    loop, connection = Loop(), Connection()
    SilenceWatch(cast("Any", loop), cast("Any", connection))
    return loop, connection


def test_a_connection_on_which_nothing_comes_is_broken_off_once() -> None:
    loop, connection = watched()
    loop.turn(SILENT_AFTER - 1)
    assert not connection.broken
    loop.turn()
    assert isinstance(connection.broken[0], AMQPHeartbeatTimeout)
    assert str(connection.broken[0]) == "the broker has been silent for 16 s"
    assert loop.next is None


def test_a_single_byte_is_a_sign_of_life() -> None:
    loop, connection = watched()
    for _ in range(3):
        loop.turn(SILENT_AFTER - 1)
        connection.bytes_received += 1
        loop.turn()
    assert not connection.broken


def test_a_connection_that_has_ended_is_let_go() -> None:
    loop, connection = watched()
    connection.is_open = False
    loop.turn()
    assert loop.next is None
    assert not connection.broken
