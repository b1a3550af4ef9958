"""A provider's keys (JWKS), fetched by a thread, cached, and fetched again if one is missing.

A key is known as long as the provider publishes it, and for an hour more while the provider can't
be reached. A token that names an unknown key waits for the next fetch: only keys fetched after the
token came can tell that there is no such key.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Final

import structlog

from tenantry.http.fetching import FetchError, fetch
from tenantry.http.jwks import Key, KeySet, read_key_set
from tenantry.http.tokens import BadTokenError, TokenUnreadableError
from tenantry.loops import Heartbeat

log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger("identity")

LONGEST_LOOK: Final = 60.0
"""Seconds after which a fetch counts as stuck; resolving a name can't be cancelled."""

_AWAY: Final = "the keys of the token's provider can't be had now; try again"

MAX_WAITING: Final = 64
"""Requests that may wait for a fetch at once, so that made-up key names hold up no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Times in seconds.

    The keys are fetched every `every`, and never again within `again`; one fetch takes at most
    `look`. They are good for `kept` after the last successful fetch. After failures the pauses grow
    from `again` to `longest`. A request waits at most `patience`.
    """

    every: float = 300.0
    again: float = 5.0
    look: float = 5.0
    kept: float = 3600.0
    longest: float = 60.0
    patience: float = 15.0


@dataclass(frozen=True, slots=True)
class _Known:
    keys: KeySet
    at: float


class ProviderKeys:
    """Keeps a provider's keys: `run` is for a thread, `find` for event loops on other threads."""

    def __init__(self, url: str, *, tls: ssl.SSLContext, pace: Pace | None = None) -> None:
        """`tls` has the trusted authorities, for https."""
        self.heartbeat: Final = Heartbeat()
        self._url = url
        self._tls = tls
        self._pace = pace or Pace()
        self._known: _Known | None = None
        self._began = monotonic()
        self._changed = threading.Condition()
        self._waiting: list[Future[str | None]] = []
        self._looked_at: float | None = None
        self._failures = 0
        self._wanted = False
        self._stopping = False
        self._break_off: Callable[[], object] = lambda: None

    @property
    def age(self) -> float:
        """Seconds since the keys were last fetched, or since this object was made."""
        known = self._known
        return monotonic() - (self._began if known is None else known.at)

    async def find(self, kid: str | None, algorithm: str) -> Key:
        """Give the key that a token's header names.

        Raises `BadTokenError` if the provider has no such key, and `TokenUnreadableError` if the
        provider can't be asked now.
        """
        key = self.known(kid, algorithm)
        if key is None:
            await self._next_look()
            key = self.known(kid, algorithm)
        if key is None:
            raise BadTokenError("the token is signed with a key that its provider does not have")
        return key

    def known(self, kid: str | None, algorithm: str) -> Key | None:
        """Give a key from the cache, if any. Raises `BadTokenError`, as `KeySet.find` does."""
        known = self._known
        if known is None or monotonic() - known.at > self._pace.kept:
            return None
        return known.keys.find(kid, algorithm)

    async def _next_look(self) -> None:
        """Wait for a fetch that has not begun yet. Raises `TokenUnreadableError`."""
        asked: Future[str | None] = Future()
        with self._changed:
            is_full = len(self._waiting) >= MAX_WAITING
            if self._stopping or is_full or self._has_just_failed():
                raise TokenUnreadableError(_AWAY)
            self._waiting.append(asked)
            self._changed.notify_all()
        try:
            async with asyncio.timeout(self._pace.patience):
                failed = await asyncio.wrap_future(asked)
        except TimeoutError:
            failed = "they take too long"
        finally:
            with self._changed, suppress(ValueError):
                self._waiting.remove(asked)
        if failed is not None:
            raise TokenUnreadableError(_AWAY)

    def _has_just_failed(self) -> bool:
        """Tell whether the last fetch has just failed: then requests need not wait for another."""
        looked_at = self._looked_at
        is_fresh = looked_at is not None and monotonic() < looked_at + self._pace.again
        return bool(self._failures) and is_fresh

    # The thread that fetches.

    def run(self) -> None:
        """Fetch the keys regularly, until `stop`."""
        while (asked := self._wait()) is not None:
            self.heartbeat.beat(LONGEST_LOOK)
            failed = self._look()
            self.heartbeat.rest()
            for one in asked:
                if one.set_running_or_notify_cancel():
                    one.set_result(failed)
        with self._changed:
            left, self._waiting = self._waiting, []
        for one in left:
            if one.set_running_or_notify_cancel():
                one.set_result("the server stops")

    def stop(self) -> None:
        """End `run`, and cancel a running fetch."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            with suppress(RuntimeError):  # it has just ended by itself
                self._break_off()

    def look_soon(self) -> None:
        """Have the keys fetched as soon as the pace allows."""
        with self._changed:
            self._wanted = True
            self._changed.notify_all()

    def _wait(self) -> list[Future[str | None]] | None:
        """Wait until a fetch is due; give the requests that wait for it, or None at the end."""
        pace = self._pace
        pause = pace.every * random.uniform(0.9, 1.0)  # noqa: S311 - jitter
        if self._failures:
            pause = min(pace.longest, pace.again * 2 ** min(self._failures - 1, 10))
            pause *= random.uniform(0.5, 1.0)  # noqa: S311
        with self._changed:
            while not self._stopping:
                looked_at = self._looked_at
                due = 0.0
                if looked_at is not None:
                    is_asked = self._wanted or self._waiting
                    due = looked_at + (pace.again if is_asked else max(pause, pace.again))
                left = due - monotonic()
                if left <= 0:
                    asked, self._waiting, self._wanted = self._waiting, [], False
                    return asked
                self._changed.wait(left)
        return None

    def _look(self) -> str | None:
        """Fetch the keys once; give the reason if that fails."""
        self._looked_at = monotonic()
        try:
            with asyncio.Runner() as runner:
                document = runner.run(self._fetch())
            keys = read_key_set(document)
        except asyncio.CancelledError:
            return "the server stops"
        except (FetchError, ValueError) as error:
            return self._failed(str(error))
        except Exception as error:  # noqa: BLE001 - a foreign answer may bring about anything
            return self._failed(f"{type(error).__name__}: {error}")
        finally:
            self._break_off = lambda: None
        self._failures = 0
        self._take(keys)
        return None

    def _take(self, keys: KeySet) -> None:
        before = None if self._known is None else self._known.keys
        self._known = _Known(keys, monotonic())
        if before is not None and _names(before) == _names(keys):
            return
        log.info("identity.keys_taken", url=self._url, keys=len(keys.keys))
        if keys.passed_over or not keys.keys:
            log.warning(
                "identity.keys_passed_over",
                url=self._url,
                passed_over=list(keys.passed_over),
                left=len(keys.keys),
            )

    def _failed(self, reason: str) -> str:
        self._failures += 1
        self._tell_failure(reason)
        return reason

    def _tell_failure(self, error: str) -> None:
        known = self._known
        left = 0.0 if known is None else max(0.0, known.at + self._pace.kept - monotonic())
        log.warning(
            "identity.keys_not_fetched",
            url=self._url,
            error=error,
            good_for_seconds=round(left),
            remedy="until then the keys from before hold; see to security.jwks_url",
        )

    async def _fetch(self) -> bytes:
        """Fetch the key set's document. Raises `FetchError`."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None  # noqa: S101 - it is one
        with self._changed:
            if self._stopping:
                raise asyncio.CancelledError
            self._break_off = lambda: loop.call_soon_threadsafe(task.cancel)
        fetched = await fetch(self._url, tls=self._tls, seconds=self._pace.look)
        if fetched.status != 200:
            raise FetchError(f"it answers with status {fetched.status}")
        return fetched.body


def _names(keys: KeySet) -> tuple[object, ...]:
    return tuple((key.kid, key.algorithm) for key in keys.keys), keys.passed_over
