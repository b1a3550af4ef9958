"""Logging: one configuration for structlog and the standard library, one line an event.

On a terminal events are coloured text, elsewhere one JSON object a line. Nothing in a value can
break a line or forge another, and secrets are masked in whatever shape they are logged. Times are
UTC, RFC 3339. The number of lines that tenants' messages cause is bounded: otherwise a tenant could
fill the log by sending messages.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import math
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

Format = Literal["auto", "console", "json"]

# Libraries that log in detail what the adapters already report in one line.
_QUIET: Final = {
    "asyncio": logging.WARNING,
    "filelock": logging.WARNING,
    "httpcore": logging.WARNING,
    "httpx": logging.WARNING,
    "opentelemetry": logging.CRITICAL,
    "pika": logging.CRITICAL,
    "psycopg.pool": logging.ERROR,
    "pykka": logging.WARNING,
    "uvicorn": logging.WARNING,
    "uvicorn.access": logging.WARNING,
    "uvicorn.error": logging.WARNING,
}

_FIRST: Final = ("timestamp", "level", "logger", "event")
_MANY_LINES: Final = frozenset({"exception", "stack"})

MASK: Final = "***"

_SECRET_KEY: Final = re.compile(
    r"passw(or)?d|secret|token|authori[sz]ation|credential|cookie|api_?key", re.IGNORECASE
)
# Greedy up to the last @: a password that holds an unescaped @ or / is masked as a whole, even if
# that swallows the host too.
_USERINFO: Final = re.compile(r"\b((?:amqps?|postgres(?:ql)?)://)\S*@", re.IGNORECASE)
_HTTP_USERINFO: Final = re.compile(r"\b(https?://)[^\s/@]+@", re.IGNORECASE)
_ASSIGNED: Final = re.compile(r"\b(password\s*=\s*)('[^']*'|\S+)", re.IGNORECASE)
_BEARER: Final = re.compile(r"\b(bearer\s+)[^\s\"',]+", re.IGNORECASE)

_DEPTH: Final = 6

LINES: Final = 60
"""Lines of one kind about one tenant in one minute."""

WINDOW: Final = 60.0

_MANY: Final = 1000
"""Tenants remembered before those without a recent line are forgotten."""


def configure(
    level: str = "info",
    format: Format = "auto",  # noqa: A002 - the key's name in the configuration
    stream: TextIO | None = None,
) -> None:
    """Route every log event of the process to `stream` (stderr), from `level` upwards.

    May be called again; the last call holds. At `debug`, libraries log from INFO upwards.
    """
    stream = stream or sys.stderr
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    is_terminal = stream.isatty()
    as_json = format == "json" or (format == "auto" and not is_terminal)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.StackInfoRenderer(),
                structlog.processors.format_exc_info,
                mask_secrets,
                *([_render_json] if as_json else [_escape_controls, _console(is_terminal)]),
            ],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        if isinstance(old.formatter, structlog.stdlib.ProcessorFormatter):
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(threshold)
    for name, quiet in _QUIET.items():
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO if threshold <= logging.DEBUG else max(quiet, threshold))
        logger.propagate = True
    logging.captureWarnings(True)


def dump_stacks_on_sigusr1() -> None:
    """Write every thread's stack to stderr whenever the process gets SIGUSR1."""
    faulthandler.register(signal.SIGUSR1, all_threads=True, chain=False)


def _console(colors: bool) -> Processor:
    return structlog.dev.ConsoleRenderer(
        colors=colors, exception_formatter=structlog.dev.plain_traceback
    )


def _render_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    ordered: dict[str, Any] = {key: event[key] for key in _FIRST if key in event}
    # ASCII only: no line separator of Unicode's and no lone surrogate gets through.
    return json.dumps(ordered | dict(event), ensure_ascii=True)


def _escape_controls(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {
        key: _escaped(value) if isinstance(value, str) and key not in _MANY_LINES else value
        for key, value in event.items()
    }


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def mask_text(text: str) -> str:
    """Mask the user part of URLs, `password=` settings and bearer tokens in a text."""
    if "://" in text:
        text = _USERINFO.sub(rf"\1{MASK}@", text)
        text = _HTTP_USERINFO.sub(rf"\1{MASK}@", text)
    text = _ASSIGNED.sub(rf"\1{MASK}", text)
    return _BEARER.sub(rf"\1{MASK}", text)


def mask(value: object, depth: int = 0) -> object:
    """Return the value as plain data with its secrets masked; unknown objects as their repr."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)  # JSON has no NaN
    if isinstance(value, str):
        return mask_text(value)
    if depth < _DEPTH:
        if isinstance(value, Mapping):
            return {
                str(key): MASK if _is_secret(str(key), one) else mask(one, depth + 1)
                for key, one in value.items()
            }
        if isinstance(value, (list, tuple, set, frozenset)):
            return [mask(one, depth + 1) for one in value]
    return mask_text(repr(value))


def mask_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Mask an event's secrets: by the names of its keys, and within its texts."""
    return {key: MASK if _is_secret(key, value) else mask(value) for key, value in event.items()}


def _is_secret(key: str, value: object) -> bool:
    # A number under such a key counts or measures something (tokens issued, say).
    return not isinstance(value, (int, float)) and _SECRET_KEY.search(key) is not None


class Sparing:
    """Limits how often a kind of line is logged for each tenant. Callable from any thread."""

    def __init__(self, lines: int = LINES, *, now: Callable[[], float] = time.monotonic) -> None:
        self._lines = lines
        self._now = now
        self._lock = threading.Lock()
        self._known: dict[str, list[float]] = {}
        """By tenant: since when lines are counted, their number, and how many were left out."""

    def left_out(self, about: str) -> int | None:
        """Return how many lines about a tenant were left out before; None to leave this one out."""
        now = self._now()
        with self._lock:
            known = self._known.get(about)
            if known is None:
                self._forget(now)
                known = self._known[about] = [now, 0, 0]
            since, lines, left_out = known
            if now - since >= WINDOW:
                known[:] = now, 1, 0
                return int(left_out)
            if lines < self._lines:
                known[1] = lines + 1
                return 0
            known[2] = left_out + 1
            return None

    def _forget(self, now: float) -> None:
        if len(self._known) >= _MANY:
            recent = {one: known for one, known in self._known.items() if now - known[0] < WINDOW}
            self._known = recent
