"""The port of tracing. Without a collector, all of this does nothing.

Headers name the trace that a message or request belongs to: the W3C's trace context. Headers come
from tenants and from any client that can reach the API. A header that is not exactly valid is
ignored, at no more cost than the check.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, NamedTuple, Protocol, Self, TypeGuard

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"

_LONGEST_PARENT: Final = 256
"""Characters; the present version has 55, and later versions may add to it."""

_LONGEST_STATE: Final = 512

_PARENT: Final = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?",
    re.ASCII,
)
_SAMPLED: Final = 0x01

NOT_RECORDED: Final = "-00"
"""The end of a `traceparent` that is not to be recorded; other flags need a closer look."""

_SAYS_NO: Final = re.compile(
    rf'"{TRACEPARENT}": ?"00-[0-9a-f]{{32}}-[0-9a-f]{{16}}{NOT_RECORDED}"', re.ASCII
)


class TraceContext(NamedTuple):
    """A place in a trace: its ids in hexadecimal, whether it is recorded, and vendors' state.

    The ids have 32 and 16 digits. `state` is for vendors of tracing, and is passed on unchanged.
    """

    trace_id: str
    span_id: str
    sampled: bool
    state: str = ""

    def headers(self) -> dict[str, str]:
        """Return the headers that carry this context."""
        flags = _SAMPLED if self.sampled else 0
        headers = {TRACEPARENT: f"00-{self.trace_id}-{self.span_id}-{flags:02x}"}
        return headers | {TRACESTATE: self.state} if self.state else headers


def read(parent: object, state: object = None) -> TraceContext | None:
    """Read a context from the values of its two headers; None where they are not valid."""
    if not isinstance(parent, str) or len(parent) > _LONGEST_PARENT:
        return None
    match = _PARENT.fullmatch(parent)
    if match is None or (match[1] == "00" and match[5] is not None):
        return None
    sampled = bool(int(match[4], 16) & _SAMPLED)
    return TraceContext(match[2], match[3], sampled, state if _is_state(state) else "")


def _is_state(state: object) -> TypeGuard[str]:
    return (
        isinstance(state, str)
        and len(state) <= _LONGEST_STATE
        and state.isascii()
        and state.isprintable()
    )


def of_message(headers: Mapping[str, object] | None) -> TraceContext | None:
    """Read the context in a message's headers."""
    if not headers:
        return None
    try:
        parent = headers.get(TRACEPARENT)
        return None if parent is None else read(parent, headers.get(TRACESTATE))
    except ValueError:  # the headers can't be read, which the message's own handling reports
        return None


def says_no(headers: Mapping[str, object]) -> bool:
    """Tell at little cost whether headers, the `text` of a flat JSON object, say not to record.

    True is certain. False is not: ask `of_message` then.
    """
    text = getattr(headers, "text", "")
    return (
        _SAYS_NO.search(text) is not None and text.count("{") == 1 and text.count(TRACEPARENT) == 1
    )


def of_request(headers: Iterable[tuple[bytes, bytes]]) -> TraceContext | None:
    """Read the context of an HTTP request, whose header names are in lower case."""
    parents, states = [], []
    for name, value in headers:
        if name == b"traceparent":
            parents.append(value.decode("latin-1"))
        elif name == b"tracestate":
            states.append(value.decode("latin-1"))
    return read(parents[0], ",".join(states)) if len(parents) == 1 else None


CLOSE_SECONDS: Final = 3.0
"""Seconds that sending the last spans may take at the end, whatever the collector does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """Where spans go, by OTLP over HTTP, and how they are named there.

    `sample_ratio` applies to traces without a caller's decision. `headers` go along with each
    request, which may take `timeout` seconds. `system` names the broker's kind. `lost_in` is the
    descriptor of a file in which lost spans are counted, for another process to read.
    """

    endpoint: str
    service_name: str
    system: str
    sample_ratio: float = 1.0
    timeout: float = 5.0
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    lost_in: int | None = None


class Asked(NamedTuple):
    """A request: its method, its route's template (with braces), its path, and its tenant."""

    method: str
    route: str
    path: str
    tenant_id: str | None


class Arrived(Protocol):
    """What tracing needs to know of a delivered message in a batch."""

    @property
    def id(self) -> str | None:
        """Its id, if its sender has given one."""

    @property
    def topic(self) -> str:
        """Its topic."""

    @property
    def partition(self) -> int:
        """Its partition."""

    @property
    def headers(self) -> Mapping[str, object] | None:
        """Its headers; reading them may raise `ValueError`."""


class Handled(Protocol):
    """What tracing needs to know of a message passed to a handler."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def tenant_id(self) -> str:
        """The tenant it belongs to."""

    @property
    def topic(self) -> str:
        """Its topic."""

    @property
    def partition(self) -> int:
        """Its partition."""

    @property
    def headers(self) -> Mapping[str, object]:
        """Its headers."""

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""


class Sent(Protocol):
    """What tracing needs to know of a published message."""

    @property
    def exchange(self) -> str:
        """The exchange it is published to."""

    @property
    def routing_key(self) -> str:
        """Its routing key."""

    @property
    def message_id(self) -> str | None:
        """Its id."""


class Span:
    """A unit of work: spans that begin within its `with` block are its children.

    This class records nothing. Its `context`, if any, is the one to pass on. `followed` lists the
    messages of a batch that belong to traces: each one's index and trace id.
    """

    __slots__ = ("context", "followed")

    def __init__(
        self, context: TraceContext | None = None, followed: Sequence[tuple[int, str]] = ()
    ) -> None:
        self.context = context
        self.followed = followed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def failed(self, kind: str) -> None:
        """Note that the work failed; `kind` says how, in one word."""

    def answered(self, status: int) -> None:
        """Note the status with which a request was answered."""


NO_SPAN: Final = Span()


class Tracer:
    """Traces work; this base class records nothing.

    Each method that returns a `Span` begins it: one call a batch or a request, and one for each
    handler that is run. They neither block nor raise. Callable from any thread.
    """

    on: bool = False
    """Whether anything is traced at all."""

    def context_of(self, headers: Iterable[tuple[bytes, bytes]]) -> TraceContext | None:
        """Read the trace that an HTTP request belongs to."""
        return None

    def current(self) -> TraceContext | None:
        """Return the context being recorded on this thread, or in this task."""
        return None

    def serving(self, asked: Asked, parent: TraceContext | None) -> Span:
        """Begin to serve a request."""
        return NO_SPAN

    def executing(self, command: str, tenant_id: str, parent: TraceContext | None) -> Span:
        """Begin to carry out a tenant's command, under its requester's context."""
        return NO_SPAN

    def publishing(
        self, tenant_id: str, messages: Sequence[Sent], parent: TraceContext | None
    ) -> Span:
        """Begin to publish messages, one at least; they are to carry the span's `context`."""
        return NO_SPAN

    def processing(self, tenant_id: str, batch: Sequence[Arrived]) -> Span:
        """Begin with a batch of messages, each of which may be a part of another trace."""
        return NO_SPAN

    def storing(self) -> Span:
        """Begin to store a batch, or a part of it, up to its commit."""
        return NO_SPAN

    def handling(self, message: Handled) -> Span:
        """Begin to call a handler with one of a batch's messages."""
        return NO_SPAN

    def lost(self) -> Mapping[str, int]:
        """Count the spans lost since the start, by reason; empty if tracing is off."""
        return {}

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Send the remaining spans, for `seconds` at most; then trace nothing any more."""
