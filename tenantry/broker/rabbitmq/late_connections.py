"""Connections that a user's earlier password has let in, and that are there only later.

RabbitMQ asks for the password when a client logs in, and opens the connection when the client says
so, up to its `handshake_timeout` (10 s) later: by then the password may be another. Such a
connection is not there yet when its user's are closed; nor is one that has only just been opened,
as the broker enters it in its table a moment later. So they are looked for during `LATE` seconds.

A connection is by the former password if the broker has accepted it before the change. The broker
tells when that was, by its own clock; what its clock showed at the change is known by connections
of ours, of which it tells the same. In a cluster each node has a clock of its own: they are taken
to agree. What can't be told until the end of these seconds is closed then.

What is looked for is kept in memory: if the daemon is killed within `LATE` seconds of the change, a
connection that comes late stays.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from typing import Final, NamedTuple

import pika
import structlog
from pika.exceptions import AMQPError

from tenantry.broker.port import BrokerError
from tenantry.broker.rabbitmq.connection import describe
from tenantry.broker.rabbitmq.management import ListedConnection, ManagementClient

log = structlog.get_logger(__name__)

LOOK_EVERY: Final = 3.0
"""Seconds between looks."""

LATE: Final = 30.0
"""Seconds after which all is listed that had begun before: the broker's `handshake_timeout` is
10 s by default, and a connection is listed some 5 s after it is open."""

CLOCK_HOLDS: Final = 60.0
"""Seconds for which what is known of the broker's clock is made use of; clocks drift apart."""

REFERENCES: Final = 3
"""Connections of ours by which the clock is read, one after the other."""

CLOSING: Final = 2.0
"""Seconds that the broker may take to close a connection, and that are given to a look's closing
all together; the rest is closed at the next."""


class Change(NamedTuple):
    """A user's connections were closed, as its password holds no more: when, by our clock.

    What is by the former password was accepted before `began`; what is by the next one, which
    nobody knew until then, after `ended`.
    """

    began: float
    ended: float
    reason: str
    closed: bool
    """Whether the broker has closed those that it knew of."""


class BrokerClock(NamedTuple):
    """By how many milliseconds the broker's clock is ahead of ours, which counts from anywhere."""

    least: float
    most: float

    @classmethod
    def read(cls, at: int, *, after: float, before: float) -> BrokerClock:
        """Give what it is where the broker's has shown `at`, in whole ms, between two of ours."""
        return cls(at - before * 1000, at + 1 - after * 1000)

    def narrowed(self, other: BrokerClock) -> BrokerClock:
        """Give what both allow; where that is nothing, a clock was set, and the other is newer."""
        both = BrokerClock(max(self.least, other.least), min(self.most, other.most))
        return both if both.least <= both.most else other

    def tells(self, change: Change) -> bool:
        """Tell whether it is known exactly enough to part the former password from the next."""
        return self.most - self.least + 1 <= (change.ended - change.began) * 1000

    def latest_former(self, change: Change, *, at_last: bool = False) -> float:
        """Tell until when, by the broker's clock, what it has accepted is by the former password.

        Nothing by the next one is; and all that is by the former, if the clock `tells`. `at_last`
        all that may be by the former is, even so: whose password is the next comes back by it.
        """
        latest = change.began * 1000 + self.most
        return latest if at_last else min(latest, change.ended * 1000 + self.least - 1)


class _Reference(NamedTuple):
    """A connection of ours, by which the broker's clock is read once it is listed."""

    connection: pika.BlockingConnection
    called: str
    after: float
    before: float


class LateConnections:
    """Closes them. Callable from any thread; one looks at a time."""

    def __init__(
        self,
        management: ManagementClient,
        *,
        user: str,
        connect: Callable[[str], pika.BlockingConnection],
    ) -> None:
        """`connect` makes a connection as `user`, which tells the broker that it is called so."""
        self._management = management
        self._user = user
        self._connect = connect
        self._changes: dict[str, Change] = {}
        self._changing = threading.Lock()
        self._looking = threading.Lock()
        self._clock: BrokerClock | None = None
        self._clock_read = 0.0
        self._references: list[_Reference] = []
        self._done: set[ListedConnection] = set()
        """What was closed: it is listed for a while, and its name may be another's by then."""

    def look_for(self, user: str, change: Change) -> None:
        """Close what comes late by a user's former password, or by one before that."""
        with self._changing:
            self._changes[user] = change

    def is_made_anew(self, user: str) -> None:
        """Let what comes by its new password be, if the user was deleted a moment ago."""
        with self._changing:
            change = self._changes.get(user)
            if change is not None and change.ended == math.inf:
                self._changes[user] = change._replace(ended=time.monotonic())

    def look(self) -> None:
        """Close what has come. An outage only makes it wait for the next time."""
        if not self._changes or not self._looking.acquire(blocking=False):
            return
        try:
            self._look()
        except (AMQPError, OSError) as error:
            self._let_go()
            log.debug("broker.late_connections_unknown", error=describe(error))
        except BrokerError as error:
            log.debug("broker.late_connections_unknown", error=str(error))
        finally:
            self._looking.release()

    def close(self) -> None:
        """Give up what is kept open between looks."""
        if self._looking.acquire(timeout=CLOSING):
            self._let_go()
            self._looking.release()

    def _look(self) -> None:
        now = time.monotonic()
        changes = dict(self._changes)
        if self._clock is not None and now - self._clock_read > CLOCK_HOLDS:
            self._clock = None
        if self._clock is None and not self._references:
            self._refer()
            return  # they are not listed at once
        listed = self._management.connections()
        self._read_clock(listed)
        if self._clock is not None:
            left = self._close_late(changes, self._clock, listed)
        elif now - self._references[0].before > LATE:
            left = self._close_all_unclosed(changes)
            self._let_go()
        else:
            left = changes.keys()
        self._forget(
            {
                user: change
                for user, change in changes.items()
                if user not in left and now - change.began > LATE
            }
        )
        clock = self._clock
        if clock is not None and not all(map(clock.tells, list(self._changes.values()))):
            self._refer()

    def _refer(self) -> None:
        """Make connections to read the clock by: of several, one will have been made quickly."""
        while len(self._references) < REFERENCES:
            called = f"clock {secrets.token_hex(8)}"
            after = time.monotonic()
            connection = self._connect(called)
            before = time.monotonic()
            self._references.append(_Reference(connection, called, after, before))

    def _read_clock(self, listed: Collection[ListedConnection]) -> None:
        for reference in self._references:
            # The broker hears from it, and so keeps it.
            reference.connection.process_data_events(time_limit=0)
            for one in listed:
                ours = one.user == self._user and reference.called in one.called
                if not ours or one.accepted_at is None:
                    continue
                read = BrokerClock.read(
                    one.accepted_at, after=reference.after, before=reference.before
                )
                self._clock = read if self._clock is None else self._clock.narrowed(read)
                self._clock_read = max(self._clock_read, reference.before)
        if self._references and self._clock_read >= self._references[0].before:
            self._let_go()

    def _close_late(
        self,
        changes: Mapping[str, Change],
        clock: BrokerClock,
        listed: Iterable[ListedConnection],
    ) -> Collection[str]:
        """Close what is by a former password; give the users of which something may be left."""
        now = time.monotonic()
        until = now + CLOSING
        left: set[str] = set()
        for one in listed:
            change = changes.get(one.user)
            if change is None or one.accepted_at is None or one in self._done:
                continue
            at_last = now - change.began > LATE
            if one.accepted_at > clock.latest_former(change, at_last=at_last):
                continue
            seconds = until - time.monotonic()
            if seconds <= 0:
                left.add(one.user)
                continue
            try:
                self._management.close_connection(one.name, change.reason, seconds=seconds)
            except BrokerError as error:
                left.add(one.user)
                log.debug("broker.late_connections_unknown", error=str(error))
            else:
                self._done.add(one)
                log.info("broker.late_connection_closed", user=one.user, connection=one.name)
        return left

    def _close_all_unclosed(self, changes: Mapping[str, Change]) -> Collection[str]:
        """Close all of those users of whom none could be: the broker does not tell which are old.

        So does one whose management API gives no statistics.
        """
        for user, change in changes.items():
            if not change.closed:
                self._management.close_connections(user, change.reason)
        return ()

    def _forget(self, past: Mapping[str, Change]) -> None:
        with self._changing:
            for user, change in past.items():
                if self._changes.get(user) is change:
                    del self._changes[user]
            if not self._changes:
                self._done.clear()
                self._clock = None

    def _let_go(self) -> None:
        references, self._references = self._references, []
        for reference in references:
            with suppress(AMQPError, OSError):
                reference.connection.close()
