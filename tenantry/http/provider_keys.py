"""A provider's keys (JWKS), fetched by a thread, cached, and fetched again if one is missing.

A key is known as long as the provider publishes it, and for an hour more while the provider can't
be reached. A token that names an unknown key waits for the next fetch: only keys fetched after the
token came can tell that there is no such key.

Which algorithm a key is for is read off the key: its kind and its curve. A token that names another
one is not looked at any further.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

import jwt
import orjson
import structlog
from jwt import algorithms

from tenantry.http.fetching import FetchError, fetch
from tenantry.http.tokens import BadTokenError, TokenUnreadableError
from tenantry.loops import Heartbeat

log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger("identity")

LONGEST_LOOK: Final = 60.0
"""Seconds after which a fetch counts as stuck; resolving a name can't be cancelled."""

_AWAY: Final = "the keys of the token's provider can't be had now; try again"

MAX_WAITING: Final = 64
"""Requests that may wait for a fetch at once, so that made-up key names hold up no more."""

ALGORITHMS: Final[Mapping[tuple[str, str | None], str]] = {
    ("RSA", None): "RS256",
    ("EC", "P-256"): "ES256",
    ("OKP", "Ed25519"): "EdDSA",
}
"""The algorithm of each kind of key and its curve."""

MAX_KEYS: Final = 100
LEAST_BITS, MOST_BITS = 2048, 8192
_MOST_TEXT: Final = MOST_BITS // 6 + 8
_MOST_EXPONENT: Final = 8
_PUBLIC: Final = ("kty", "crv", "n", "e", "x", "y")
_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


def can_verify() -> bool:
    """Tell whether the library that verifies signatures is installed."""
    return bool(algorithms.has_crypto)


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key, by its name if it has one, and the one algorithm that it is for."""

    kid: str | None
    algorithm: str
    public: jwt.PyJWK


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySet:
    """The keys of a set; `passed_over` says of each other one why it is not used."""

    keys: tuple[Key, ...] = ()
    passed_over: tuple[str, ...] = ()

    def find(self, kid: str | None, algorithm: str) -> Key | None:
        """Give the key that a token is signed with by what its header says; None: not known here.

        Raises `BadTokenError` where the header fits no key, whatever else comes to be known.
        """
        named = [key for key in self.keys if kid in (None, key.kid)]
        if kid is None and len(named) > 1:
            raise BadTokenError("the token names no key (kid), and its provider has several")
        fitting = [key for key in named if key.algorithm == algorithm]
        if len(fitting) > 1:
            raise BadTokenError("several keys of the provider bear the name (kid) in the token")
        if named and not fitting:
            raise BadTokenError("the token is not signed by the algorithm of its key")
        return fitting[0] if fitting else None


class _PassedOverError(Exception):
    """A key is not used; the message says why."""


def read_key_set(document: bytes) -> KeySet:
    """Read a set. What is in it and is no key to verify with is passed over.

    Raises `ValueError` where it is none.
    """
    try:
        tree = orjson.loads(document)
    except ValueError:
        raise ValueError("it is no JSON") from None
    entries = tree.get("keys") if isinstance(tree, dict) else None
    if not isinstance(entries, list):
        raise ValueError('it is no key set: an object with a list of "keys"')  # noqa: TRY004
    if len(entries) > MAX_KEYS:
        raise ValueError(f"it has {len(entries)} keys, and {MAX_KEYS} at most are taken")
    keys, passed_over = [], []
    for number, entry in enumerate(entries, start=1):
        try:
            keys.append(_key(entry))
        except _PassedOverError as error:
            kid = entry.get("kid") if isinstance(entry, dict) else None
            which = repr(kid[:100]) if isinstance(kid, str) else number
            passed_over.append(f"key {which} {error}")
    return KeySet(keys=tuple(keys), passed_over=tuple(passed_over))


def _key(entry: Any) -> Key:
    if not isinstance(entry, dict):
        raise _PassedOverError("is no object")
    algorithm = _algorithm(entry)
    if _PRIVATE & entry.keys():
        raise _PassedOverError("shows its private part: whoever reads it can sign")
    if entry.get("use", "sig") != "sig":
        raise _PassedOverError("is not for signatures (use)")
    operations = entry.get("key_ops")
    if operations is not None and not (isinstance(operations, list) and "verify" in operations):
        raise _PassedOverError("is not to verify with (key_ops)")
    if entry.get("alg", algorithm) != algorithm:
        raise _PassedOverError(f"is for another algorithm than {algorithm} (alg)")
    kid = entry.get("kid")
    if kid is not None and not isinstance(kid, str):
        raise _PassedOverError("has a name that is no text (kid)")
    if algorithm == "RS256":
        _check_size(entry)
    public = {name: entry[name] for name in _PUBLIC if name in entry}
    try:
        made = jwt.PyJWK(public, algorithm=algorithm)
    except Exception:  # noqa: BLE001 - whatever the libraries make of a stranger's numbers
        raise _PassedOverError("can't be read") from None
    if algorithm == "RS256" and not LEAST_BITS <= made.key.key_size <= MOST_BITS:
        raise _PassedOverError(f"has not {LEAST_BITS} to {MOST_BITS} bits")
    return Key(kid=kid, algorithm=algorithm, public=made)


def _algorithm(entry: Mapping[str, Any]) -> str:
    kind, curve = entry.get("kty"), entry.get("crv")
    for (wanted, of), algorithm in ALGORITHMS.items():
        if kind == wanted and of in (None, curve):
            return algorithm
    raise _PassedOverError("is of no kind that is used: RSA, EC on P-256, Ed25519")


def _check_size(entry: Mapping[str, Any]) -> None:
    """See that what an RSA key is made of is not so large that it costs much to look at."""
    for name, most in (("n", _MOST_TEXT), ("e", _MOST_EXPONENT)):
        number = entry.get(name)
        if not isinstance(number, str) or len(number) > most:
            raise _PassedOverError(f"has no {name}, or one that is too large")


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
