"""Logging: one configuration for structlog and the standard library, one line an event.

On a terminal events are coloured text, elsewhere one JSON object a line. Nothing in a value can
break a line or forge another. Times are UTC, RFC 3339.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import signal
import sys
from typing import Any, Final, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from tenantry.telemetry.masking import mask_secrets

Format = Literal["auto", "console", "json"]

# Libraries that tell in detail what the adapters already report in one line.
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


def configure(
    level: str = "info",
    format: Format = "auto",  # noqa: A002 - the key's name in the configuration
    stream: TextIO | None = None,
) -> None:
    """Route every log event of the process to `stream` (stderr), from `level` upwards.

    May be called again; the last call holds. At `debug`, libraries speak from INFO upwards.
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
