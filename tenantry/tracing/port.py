"""What is followed of the work that is done. Where nobody collects it, all of this does nothing.

The trace that something belongs to stands in headers: the W3C's trace context. Headers come from
tenants and from anybody who can reach the API. What is not exactly as it should be is no context,
and costs no more than to see that.
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
"""Characters; the version that there is has 55, and later ones may add to it."""

_LONGEST_STATE: Final = 512

_PARENT: Final = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?",
    re.ASCII,
)
_SAMPLED: Final = 0x01

NOT_RECORDED: Final = "-00"
"""How the header of a trace ends that shall not be recorded; other flags need a closer look."""

_SAYS_NO: Final = re.compile(
    rf'"{TRACEPARENT}": ?"00-[0-9a-f]{{32}}-[0-9a-f]{{16}}{NOT_RECORDED}"', re.ASCII
)


class TraceContext(NamedTuple):
    """A place in a trace: its ids in hexadecimal digits, whether it is recorded, and others' notes.

    The ids have 32 and 16 digits. `state` is for vendors of tracing, and passed on as it came.
    """

    trace_id: str
    span_id: str
    sampled: bool
    state: str = ""

    def headers(self) -> dict[str, str]:
        """Give the headers that carry it."""
        flags = _SAMPLED if self.sampled else 0
        headers = {TRACEPARENT: f"00-{self.trace_id}-{self.span_id}-{flags:02x}"}
        return headers | {TRACESTATE: self.state} if self.state else headers


def read(parent: object, state: object = None) -> TraceContext | None:
    """Read a context from the values of its two headers; None where there is none to be read."""
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
    """Read the context that a message has come with."""
    if not headers:
        return None
    try:
        parent = headers.get(TRACEPARENT)
        return None if parent is None else read(parent, headers.get(TRACESTATE))
    except ValueError:  # they can't be read: the message will be told so
        return None


def says_no(headers: Mapping[str, object]) -> bool:
    """Tell at little cost whether headers, the `text` of a flat JSON object, say not to record.

    What looks like a no is one. False says nothing: `of_message` does.
    """
    text = getattr(headers, "text", "")
    return (
        _SAYS_NO.search(text) is not None and text.count("{") == 1 and text.count(TRACEPARENT) == 1
    )


def of_request(headers: Iterable[tuple[bytes, bytes]]) -> TraceContext | None:
    """Read the context of an HTTP request, whose names of headers are in small letters."""
    parents, states = [], []
    for name, value in headers:
        if name == b"traceparent":
            parents.append(value.decode("latin-1"))
        elif name == b"tracestate":
            states.append(value.decode("latin-1"))
    return read(parents[0], ",".join(states)) if len(parents) == 1 else None


CLOSE_SECONDS: Final = 3.0
"""How long the last spans may take to be sent at the end, whoever collects them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """Where spans go, by OTLP over HTTP, and how they are named there.

    Of what nobody else has decided about, `sample_ratio` is recorded. `headers` go along with each
    request, which may take `timeout` seconds. `system` names the broker's kind. Where another
    process is to see how many were lost, they are counted in the file of a descriptor, `lost_in`.
    """

    endpoint: str
    service_name: str
    system: str
    sample_ratio: float = 1.0
    timeout: float = 5.0
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    lost_in: int | None = None


class Asked(NamedTuple):
    """A request: its method, the route that answers it, with braces in it, its path, and whose."""

    method: str
    route: str
    path: str
    tenant_id: str | None


class Arrived(Protocol):
    """What is told of a message that a batch is made of."""

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
    """What is told of a message that a handler is called with."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def tenant_id(self) -> str:
        """Whose it is."""

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
    """What is told of a message that is published."""

    @property
    def exchange(self) -> str:
        """Where it goes."""

    @property
    def routing_key(self) -> str:
        """What it is routed by."""

    @property
    def message_id(self) -> str | None:
        """Its id."""


class Span:
    """Something that is being done: between `with` and its end, what else begins is a part of it.

    This one is not recorded. Its `context`, if there is one, is what others are to be told.
    `followed` are messages of a batch that stand in traces: the index of each, and its trace's id.
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
        """Note that it was in vain; `kind` says how, in one word."""

    def answered(self, status: int) -> None:
        """Note the status with which a request was answered."""


NO_SPAN: Final = Span()


class Tracer:
    """Follows what is done, and ignores it where a subclass does not say otherwise.

    Each method begins a span. A call a batch or a request, and one for each handler that is run;
    they neither block nor raise. Callable from any thread.
    """

    on: bool = False
    """Whether anything is followed at all."""

    def context_of(self, headers: Iterable[tuple[bytes, bytes]]) -> TraceContext | None:
        """Read the trace that an HTTP request belongs to."""
        return None

    def current(self) -> TraceContext | None:
        """Tell what is being recorded on this thread, or in this task."""
        return None

    def serving(self, asked: Asked, parent: TraceContext | None) -> Span:
        """Begin to serve a request."""
        return NO_SPAN

    def executing(self, command: str, tenant_id: str, parent: TraceContext | None) -> Span:
        """Begin to carry out a tenant's command, for who has asked for it."""
        return NO_SPAN

    def publishing(
        self, tenant_id: str, messages: Sequence[Sent], parent: TraceContext | None
    ) -> Span:
        """Begin to publish messages, one at least; its `context` is what they are to carry."""
        return NO_SPAN

    def processing(self, tenant_id: str, batch: Sequence[Arrived]) -> Span:
        """Begin with a batch of messages, each of which may be a part of another trace."""
        return NO_SPAN

    def storing(self) -> Span:
        """Begin to store a batch, or a part of it, as far as its commit."""
        return NO_SPAN

    def handling(self, message: Handled) -> Span:
        """Begin to call a handler with one of a batch's messages."""
        return NO_SPAN

    def lost(self) -> Mapping[str, int]:
        """Count the spans that did not arrive since the start, by reason; none if nothing is on."""
        return {}

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Send what is left, for so long at most; after that nothing is followed any more."""
