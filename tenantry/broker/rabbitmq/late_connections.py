"""Closes connections that logged in with a user's former password and appear after its change.

RabbitMQ checks the password when a client logs in, and opens the connection when the client asks
for it, up to its `handshake_timeout` (10 s) later: by then the password may have changed. Such a
connection does not exist yet when its user's connections are closed. Neither is one listed that has
only just been opened, as the broker enters it in its table a moment later. So the connections are
polled for `LATE` seconds.

A connection used the former password if the broker accepted it before the change. The broker gives
the time by its own clock; what that clock showed at the change is derived from reference
connections of ours, whose times it gives as well. In a cluster each node has its own clock: they
are taken to agree. Connections that are undecided at the end of these seconds are closed then.

The changes are kept in memory: if the daemon is killed within `LATE` seconds of a change, a
connection that appears late stays.
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
"""Seconds after which every connection begun before is listed: the broker's `handshake_timeout` is
10 s by default, and a connection is listed some 5 s after it is open."""

CLOCK_HOLDS: Final = 60.0
"""Seconds for which a reading of the broker's clock is used; clocks drift apart."""

REFERENCES: Final = 3
"""The number of reference connections, made one after the other to read the clock."""

CLOSING: Final = 2.0
"""Seconds that the broker may take to close a connection; also the total that one look spends on
closing. The rest is closed at the next look."""


class Change(NamedTuple):
    """A password change, after which a user's connections were closed; times are by our clock.

    The broker accepted connections with the former password before `began`, and connections with
    the next one, which was unknown until then, after `ended`.
    """

    began: float
    ended: float
    reason: str
    closed: bool
    """Whether the broker has closed the connections that it knew of."""


class BrokerClock(NamedTuple):
    """The bounds, in milliseconds, of the broker's clock minus our monotonic one."""

    least: float
    most: float

    @classmethod
    def read(cls, at: int, *, after: float, before: float) -> BrokerClock:
        """Return the bounds from one reading: `at`, in whole ms, lay between two times of ours."""
        return cls(at - before * 1000, at + 1 - after * 1000)

    def narrowed(self, other: BrokerClock) -> BrokerClock:
        """Return the overlap of both; without one a clock was set: the newer `other` holds."""
        both = BrokerClock(max(self.least, other.least), min(self.most, other.most))
        return both if both.least <= both.most else other

    def tells(self, change: Change) -> bool:
        """Return whether the bounds are narrow enough to tell the former password from the next."""
        return self.most - self.least + 1 <= (change.ended - change.began) * 1000

    def latest_former(self, change: Change, *, at_last: bool = False) -> float:
        """Return the last accept time, by the broker's clock, under the former password.

        Connections with the next password are accepted later. If the clock `tells`, all with the
        former one are accepted by then. With `at_last` the limit takes in every connection that may
        have used the former one: a client with the next password connects again.
        """
        latest = change.began * 1000 + self.most
        return latest if at_last else min(latest, change.ended * 1000 + self.least - 1)


class _Reference(NamedTuple):
    """A connection of ours by which the broker's clock is read once it is listed."""

    connection: pika.BlockingConnection
    called: str
    after: float
    before: float


class LateConnections:
    """Closes late connections. Callable from any thread; one thread looks at a time."""

    def __init__(
        self,
        management: ManagementClient,
        *,
        user: str,
        connect: Callable[[str], pika.BlockingConnection],
    ) -> None:
        """`connect` makes a connection as `user`, with its argument as the connection's name."""
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
        """Connections already closed: they stay listed a while, and names may be reused."""

    def look_for(self, user: str, change: Change) -> None:
        """Close late connections with a user's former password, or with one before that."""
        with self._changing:
            self._changes[user] = change

    def is_made_anew(self, user: str) -> None:
        """Spare connections with the new password, if the user was deleted a moment ago."""
        with self._changing:
            change = self._changes.get(user)
            if change is not None and change.ended == math.inf:
                self._changes[user] = change._replace(ended=time.monotonic())

    def look(self) -> None:
        """Close the late connections listed now. After an outage, the next look does."""
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
        """Close the reference connections kept between looks."""
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
            return  # new connections are not listed at once
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
        """Make the reference connections: of several, one will have been made quickly."""
        while len(self._references) < REFERENCES:
            called = f"clock {secrets.token_hex(8)}"
            after = time.monotonic()
            connection = self._connect(called)
            before = time.monotonic()
            self._references.append(_Reference(connection, called, after, before))

    def _read_clock(self, listed: Collection[ListedConnection]) -> None:
        for reference in self._references:
            # This answers the broker's heartbeats, so that it keeps the connection.
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
        self, changes: Mapping[str, Change], clock: BrokerClock, listed: Iterable[ListedConnection]
    ) -> Collection[str]:
        """Close connections with a former password; return the users that may still have some."""
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
        """Close all connections of users whose first closing failed: accept times are unknown.

        A broker whose management API gives no statistics gives none.
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
